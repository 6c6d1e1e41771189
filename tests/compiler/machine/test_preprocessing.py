"""Bytes become the model's input as a formula says, in every layout; what could be two things is refused."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import input_frames
from patchloom.compiler.machine.preprocessing import Preprocessing, PreprocessingError, by_input, stated
from patchloom.compiler.machine.program import Port, Task

GREY = Preprocessing(size=(5, 16), mean=(0.5,), std=(0.25,))
RGB = Preprocessing(size=(4, 6), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RESIZED = {"resize": "crop", "interpolation": "bicubic"}


def like(preprocessing: Preprocessing, **changes) -> Preprocessing:
    return Preprocessing(**vars(preprocessing) | changes)


def frames(preprocessing: Preprocessing | None, value, shape=None):
    """What a task of one input makes of a value."""
    shape = shape or preprocessing.shape
    index = np.arange(np.prod(shape))
    port = Port("x", shape, 0, len(index), 8, 16, index, preprocessing)
    samples, batched = input_frames(Task("main", (), (port,), (), 2 * len(index), 0, 0), value)
    return np.stack([sample["x"] for sample in samples]), batched


def refusal(function, *arguments, kind=InputError, **options) -> str:
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    return str(caught.value)


# --- Right ---


@st.composite
def cases(draw):
    """A preprocessing, pictures [n, height, width, channels] of its size, and whether they are given channels first."""
    channels = draw(st.sampled_from([1, 3]))
    size = draw(st.tuples(st.integers(4, 7), st.integers(4, 7)))  # more than channels: else it could be read both ways
    numbers = st.lists(st.floats(2**-6, 2, width=32), min_size=channels, max_size=channels)
    layout = draw(st.sampled_from(["CHW", "HWC", *["HW"] * (channels == 1)]))
    divide = draw(st.sampled_from([255.0, 1.0, 127.5]))
    made = Preprocessing(size=size, mean=draw(numbers), std=draw(numbers), divide=divide, layout=layout)
    pictures = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 256, (2, *size, channels), dtype=np.uint8)
    return made, pictures, draw(st.booleans())


@settings(max_examples=50, deadline=None)
@given(cases())
def test_every_byte_follows_the_formula(case):
    made, pictures, first = case
    given_as = pictures[..., 0] if made.layout == "HW" else np.moveaxis(pictures, -1, 1) if first else pictures
    values, batched = frames(made, given_as)
    assert batched
    assert values.dtype == np.float32
    axes = {"CHW": "nchw", "HWC": "nhwc", "HW": "nhw"}[made.layout]
    for n, y, x, c in np.ndindex(pictures.shape):
        place = tuple({"n": n, "h": y, "w": x, "c": c}[letter] for letter in axes)
        quotient = np.float32(pictures[n, y, x, c]) / np.float32(made.divide)
        assert values[place] == (quotient - np.float32(made.mean[c])) / np.float32(made.std[c])


def test_it_is_torchs_to_every_bit():
    pictures = np.random.default_rng(0).integers(0, 256, (9, *RGB.size, 3), dtype=np.uint8)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (RGB.mean, RGB.std))
    expected = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)
    np.testing.assert_array_equal(frames(RGB, pictures)[0], expected.numpy())


@pytest.mark.parametrize("shape", [(5, 16), (5, 16, 1), (1, 5, 16), (2, 5, 16, 1), (2, 1, 5, 16)])
def test_layouts_of_a_grey_picture(shape):
    values, batched = frames(GREY, np.full(shape, 255, np.uint8))
    assert batched == (len(shape) == 4)
    np.testing.assert_array_equal(values, np.full((len(values), 1, 5, 16), 2, np.float32))


def test_tensors_of_bytes_are_pictures():
    tensor = torch.full((3, 4, 6), 7, dtype=torch.uint8)
    np.testing.assert_array_equal(frames(RGB, tensor)[0], frames(RGB, tensor.numpy())[0])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_are_the_models_own(kind):
    values = np.arange(80, dtype=kind).reshape(1, 5, 16)
    np.testing.assert_array_equal(frames(GREY, values)[0][0], values)


def test_without_preprocessing_bytes_are_numbers():
    values = np.arange(80, dtype=np.uint8).reshape(5, 16)
    np.testing.assert_array_equal(frames(None, values, (5, 16))[0][0], values)


# --- Refused ---


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((4, 6, 1), np.uint8), "shape [height, width, 3] or [3, height, width], or a batch of them, not"),
        (np.zeros((4, 6, 4), np.uint8), "or a batch of them, not [4, 6, 4]"),
        (np.zeros((4, 6), np.uint8), "or a batch of them, not [4, 6]"),
        (np.zeros(3, np.uint8), "or a batch of them, not [3]"),
        (np.zeros((3, 6, 3), np.uint8), "can be read as [height, width, 3] and as [3, height, width]: give floats"),
        (np.zeros((4, 7, 3), np.uint8), "must have 4 x 6 pixels, not 4 x 7: the preprocessing that the Program was"),
        (np.zeros((0, 4, 6, 3), np.uint8), "must have 4 x 6 pixels, not 4 x 6"),
        (np.zeros((4, 6, 3), np.int64), "must be of type uint8, which is a picture, or hold floats in the model"),
        (np.zeros((4, 6, 3), np.uint16), "units, not uint16"),
        (np.zeros((4, 6, 3), np.bool_), "units, not bool"),
        ([[1, 2], [3]], "is no array: "),
        (np.zeros((4, 6, 3), np.float32), "must have shape [3, 4, 6], or that behind a batch dimension, not [4, 6, 3]"),
    ],
)  # fmt: skip
def test_arrays_that_are_refused(value, text):
    assert text in refusal(frames, RGB, value)


def test_another_size_names_what_resizes():
    text = refusal(frames, like(RGB, **RESIZED), np.zeros((9, 9, 3), np.uint8))
    assert "must have 4 x 6 pixels, not 9 x 9: " in text
    assert "pip install 'patchloom[images]'" in text


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size": (4,)}, "preprocessing.size must be height and width, from 1 to 65535, not (4,)"),
        ({"size": (4, 0)}, "preprocessing.size must be height and width"),
        ({"size": (4, True)}, "preprocessing.size must be height and width"),
        ({"size": 4}, "preprocessing.size must be height and width"),
        ({"mean": (0.5, 0.5)}, "preprocessing.mean must be one number for grey, or three for red, green and blue, not"),
        ({"mean": (0.5, 0.5, NAN)}, "preprocessing.mean must be one number"),
        ({"mean": "abc"}, "preprocessing.mean must be one number"),
        ({"std": (1, 1, 10**400)}, "preprocessing.std must be one number"),
        ({"std": (1.0,)}, "preprocessing.std must be as many numbers as mean has, 3, not (1.0,)"),
        ({"std": (1, 0, 1)}, "preprocessing.std must be positive, not (1.0, 0.0, 1.0)"),
        ({"std": (1, 1, 1e-44)}, "preprocessing.std must be such that bytes become finite in float32"),
        ({"mean": (0, 0, 1e39)}, "bytes become finite in float32"),
        ({"divide": 0}, "preprocessing.divide must be positive, not 0.0"),
        ({"divide": INF}, "preprocessing.divide must be a number, not inf"),
        ({"divide": None}, "preprocessing.divide must be a number, not None"),
        ({"layout": "WHC"}, "preprocessing.layout must be one of CHW, HWC, HW, not 'WHC'"),
        ({"layout": "HW"}, "preprocessing.layout must be CHW or HWC for three channels, not 'HW'"),
        ({"resize": "stretch"}, "preprocessing.resize must be one of crop, squash, or left out, not 'stretch'"),
        ({"resize": "crop"}, "preprocessing.interpolation must be one of nearest, box, bilinear, hamming, bicubic"),
        ({"interpolation": "bicubic"}, "preprocessing.interpolation must be left out without resize"),
        ({"crop_pct": 0.9}, "preprocessing.crop_pct must be left out without resize"),
        (RESIZED | {"crop_pct": 1.1}, "preprocessing.crop_pct must be from 0.1 to 1, not 1.1"),
        (RESIZED | {"crop_pct": 0.05}, "preprocessing.crop_pct must be from 0.1 to 1, not 0.05"),
        (RESIZED | {"interpolation": "random"}, "preprocessing.interpolation must be one of nearest"),
    ],
)  # fmt: skip
def test_rules(changes, text):
    assert text in refusal(like, RGB, kind=PreprocessingError, **changes)


JUNK = [0, -1, 1 << 70, 1.5, NAN, "", "HW", None, True, [], {}, [[]], [0] * 9, [1, 1], [True], [None], ["a"], {"a": 0}]


@pytest.mark.parametrize("name", vars(GREY))
def test_whatever_is_put_in_a_field_is_taken_or_refused(name):
    """Nothing but a `PreprocessingError` comes out, and what is taken can be used."""
    taken = 0
    for value in JUNK:
        with suppress(PreprocessingError):
            made = stated(vars(GREY) | {name: value})
            assert np.isfinite(made.applied("x", np.zeros(made.size, np.uint8))).all()
            taken += 1
    assert taken < len(JUNK)


def test_everything_wrong_is_told_at_once():
    text = refusal(like, RGB, kind=PreprocessingError, size=3, mean=[], layout="")
    assert [line.split()[0] for line in text.splitlines()] == [
        f"preprocessing.{name}" for name in ("size", "mean", "layout")
    ]


# --- As a user may give it ---

TIMM = {
    "input_size": (3, 4, 6), "interpolation": "bicubic", "mean": RGB.mean, "std": RGB.std, "crop_pct": 0.875,
    "crop_mode": "center",
}  # fmt: skip


def without(*names: str) -> dict:
    return {name: value for name, value in TIMM.items() if name not in names}


def test_a_dictionary_of_fields():
    assert stated(RGB) is RGB
    assert stated({"size": [4, 6], "mean": list(RGB.mean), "std": list(RGB.std)}) == RGB


def test_timms_dictionary():
    expected = like(RGB, crop_pct=0.875, **RESIZED)
    assert stated(TIMM) == expected
    assert stated(without("crop_mode")) == expected
    assert stated(TIMM | {"crop_mode": "squash"}) == like(expected, resize="squash")
    assert stated(without("crop_mode", "crop_pct", "interpolation")) == RGB


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("RGB", "preprocessing must be a Preprocessing or a dictionary, not str"),
        ({}, "preprocessing must have size\npreprocessing must have mean\npreprocessing must have std"),
        (
            {"size": (4, 6), "mean": (0,), "std": (1,), "gamma": 2},
            "preprocessing.gamma is not known: it has size, mean",
        ),
        (TIMM | {"url": ""}, "preprocessing.url is not known"),
        (TIMM | {"size": (4, 6)}, "preprocessing must have size or timm's input_size and crop_mode, not both"),
        (TIMM | {"input_size": (4, 6)}, "preprocessing.input_size must be channels, height and width, not (4, 6)"),
        (TIMM | {"input_size": (1, 4, 6)}, "preprocessing.mean must have a number for each of 1 channels, not 3"),
        (TIMM | {"crop_mode": "border"}, "preprocessing.crop_mode must be one of center, squash, not 'border'"),
        (TIMM | {"crop_mode": []}, "preprocessing.crop_mode must be one of center, squash, not []"),
        (TIMM | {"interpolation": "random"}, "preprocessing.interpolation must be one of nearest"),
        (without("crop_pct"), "preprocessing must have crop_pct, as timm's has"),
        (without("interpolation"), "preprocessing must have interpolation, as timm's has"),
        (without("input_size"), "preprocessing.input_size must be channels, height and width, not None"),
    ],
)
def test_dictionaries_that_are_refused(value, text):
    assert text in refusal(stated, value, kind=PreprocessingError)


def test_by_the_names_of_inputs():
    shapes = {"image": (3, 4, 6), "rows": (7,)}
    assert by_input(None, shapes) == {}
    assert by_input(TIMM, {"image": (3, 4, 6)}) == {"image": stated(TIMM)}
    assert by_input({"image": RGB}, shapes) == {"image": RGB}
    cases = {
        "preprocessing must be given by the names of inputs: image, rows": RGB,
        "preprocessing is given for 'picture', the inputs are image, rows": {"picture": RGB},
        "preprocessing of 'image' gives [1, 5, 16] (CHW), the model takes [3, 4, 6]": {"image": GREY},
    }
    for text, value in cases.items():
        assert refusal(by_input, value, shapes, kind=PreprocessingError) == text
