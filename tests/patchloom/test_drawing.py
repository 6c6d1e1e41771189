"""What is drawn of a tensor, by its shape; names of any kind can be drawn, and the bytes are the same again."""

import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import patchloom
from patchloom import drawing
from patchloom.compiler.machine.errors import MissingExtraError
from patchloom.compiler.machine.program import Port
from patchloom.drawing import Sight, as_picture, drawn, picture_axes
from patchloom.experts import Routing


def panel(*shape: int, size=(8, 16)):
    return drawing._panel("x", np.random.default_rng(0).normal(size=shape), size)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((), "_Bars"), ((1,), "_Bars"), ((1000,), "_Bars"), ((1, 7, 1), "_Bars"),
        ((4, 8), "_Map"), ((1, 4, 8), "_Map"), ((9, 5), "_Map"),
        ((3, 4, 8), "_Classes"), ((1, 5, 9, 7), "_Classes"),
        ((2, 3, 4, 8), "_Words"),
    ],
)  # fmt: skip
def test_kinds(shape, kind):
    assert type(panel(*shape)).__name__ == kind


@pytest.mark.parametrize(
    ("shape", "count"),
    [((3, 4, 8), 3), ((4, 8, 3), 3), ((4, 8, 16), 4), ((5, 6, 7), 5)],
    ids=["first", "last", "both have the aspect", "none has"],
)
def test_classes_are_the_axis_beside_the_aspect(shape, count):
    found = panel(*shape)
    assert found.count == count
    assert found.numbers.shape == tuple(n for n in shape if n != count)


@pytest.mark.parametrize("layout", ["CHW", "HWC", "HW"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_input_is_the_picture_that_the_model_sees(layout, channels):
    if layout == "HW" and channels == 3:
        pytest.skip("no such preprocessing")
    kept = patchloom.Preprocessing(size=(8, 16), mean=[0.4] * channels, std=[0.2] * channels, layout=layout)
    picture = np.random.default_rng(0).integers(0, 256, (8, 16, channels), dtype=np.uint8)
    value = kept.normalised(picture)
    port = Port("x", value.shape, 0, value.size, 0, 8, np.arange(value.size), kept)
    np.testing.assert_array_equal(as_picture(port, value), picture[..., 0] if channels == 1 else picture)
    bare = replace(port, preprocessing=None)
    if layout == "HW":
        assert as_picture(bare, value) is None
    else:
        found = as_picture(bare, value)
        assert (found.min(), found.max(), found.shape[:2]) == (0, 1, (8, 16))
        assert picture_axes(value.shape) == ((1, 2) if layout == "CHW" else (0, 1))
    assert as_picture(replace(bare, shape=(5, 4, 8)), np.zeros((5, 4, 8))) is None
    assert not as_picture(replace(bare, shape=(1, 4, 8)), np.ones((1, 4, 8))).any()


def sights(program, scenes, *, named: str | None = None):
    for task in program.tasks:
        routing, [port] = Routing(), task.inputs
        result = patchloom.run(program, scenes[0], task=task.name, observe=routing)
        sets = routing.taken(task)
        yield Sight(replace(task, name=named or task.name), {port.name: scenes[0]}, result, sets)


def test_the_same_bytes_whatever_the_names(seeing, scenes, recwarn):
    first, second = (drawn(seeing, list(sights(seeing, scenes, named="$x_{1$" + "学" * 60))) for _ in range(2))
    assert first == second
    width, height = Image.open(BytesIO(first)).size
    assert width > height > 100
    assert [str(warning.message) for warning in recwarn] == []


def test_experts_lie_side_by_side_where_their_patch_is(seeing, scenes):
    for sight in sights(seeing, scenes):
        *_, last = drawing._panels(seeing, sight)
        assert type(last).__name__ == "_Experts"
        shown = last.numbers()
        _, sets = sight.sets
        for row in range(2):
            for column in range(4):
                token = 1 + 4 * (column // 2) + 2 * row + column % 2  # windows of 2 x 2, behind the class token
                stripe = shown[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                np.testing.assert_array_equal(stripe, np.tile(np.flatnonzero(sets[token]).repeat(2), (4, 1)))


def test_experts_of_tokens_without_a_place_are_bars(seeing, scenes):
    [sight, _] = sights(seeing, scenes)
    flat = replace(sight.task, inputs=(replace(sight.task.inputs[0], preprocessing=None, name="image"),))
    picture = {"image": np.zeros((4, 4, 8))}  # neither grey nor colours
    *_, last = drawing._panels(seeing, replace(sight, task=flat, inputs=picture))
    np.testing.assert_array_equal(last.values, sight.sets[1].sum(axis=0))
    *_, last = drawing._panels(seeing, replace(sight, sets=None))
    assert "experts" not in last.title


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    drawing.need_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        MissingExtraError, match=r"drawing results needs matplotlib: pip install 'patchloom\[figures\]'"
    ):
        drawing.need_matplotlib()
