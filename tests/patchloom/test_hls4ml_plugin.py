"""A transformer as one layer of an hls4ml model: what hls4ml's functions return, and which conversions are refused."""

import contextlib
import os
import subprocess
import sys
import tomllib
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import hls4ml
import numpy as np
import pytest
import torch
from hls4ml.backends import VitisBackend
from torch import nn

import patchloom
from examples.hls4ml_model import Body, pictures
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.program import to_region
from patchloom.hls4ml import Leaf, MismatchError, wrap
from patchloom.hls4ml.check import _compare, coarse_leaf
from patchloom.hls4ml.emit import fixed, header

IMAGES = pictures(8, seed=3)[0]


def convert(model, shape, backend, path, channels_last="full", io_type="io_parallel", **precisions):
    """hls4ml's usual two calls; `precisions` are those of layers' results."""
    config = hls4ml.utils.config_from_pytorch_model(
        model, shape, backend=backend, granularity="name", channels_last_conversion=channels_last
    )
    for name, precision in precisions.items():
        config["LayerName"][name]["Precision"]["result"] = precision
    return hls4ml.converters.convert_from_pytorch_model(
        model, hls_config=config, backend=backend, io_type=io_type, output_dir=str(path)
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    body = nn.Sequential(OrderedDict(body=Body(), head=nn.Linear(32, 6)))
    return wrap(body, "body", calibration=pictures(16, seed=4)[0])


@pytest.fixture(scope="module")
def converted(model, tmp_path_factory):
    return convert(model, (1, 16, 16), "Patchloom", tmp_path_factory.mktemp("hls4ml") / "project")


@pytest.fixture(scope="module")
def traced(converted):
    """hls4ml compiles a model in order to trace it."""
    return converted.trace(IMAGES.numpy())


@pytest.fixture
def built(traced, converted, monkeypatch):
    """The model, compiled again without waiting for g++."""
    library = converted._top_function_lib._name
    monkeypatch.setattr(VitisBackend, "compile", lambda *_: library)
    return converted


# --- What hls4ml's functions return ---


def test_the_leaf_is_its_program(model, traced):
    result = patchloom.run(model.body.program, IMAGES)
    [expected] = result.outputs.values()
    np.testing.assert_array_equal(traced[1]["body"], expected)


def test_a_prediction_is_the_program_then_hls4mls_dense(model, converted, traced, tmp_path):
    head = nn.Sequential(OrderedDict(head=model.head)).eval()
    leaf_format = fixed(model.body.output)
    dense = convert(head, (32,), "Vitis", tmp_path / "dense", input_1=leaf_format)
    dense.compile()
    [features] = patchloom.run(model.body.program, IMAGES).outputs.values()
    predicted = converted.predict(IMAGES.numpy())
    np.testing.assert_array_equal(predicted, dense.predict(features.astype(np.float32)))
    np.testing.assert_array_equal(predicted, traced[0])


def test_the_project_has_the_kernels_and_their_language(converted, traced):
    project = Path(converted.config.get_output_dir())
    assert (project / "firmware" / "patchloom" / "frame.hpp").exists()
    flags = [line for line in (project / "build_prj.tcl").read_text().splitlines() if "-std=" in line]
    assert len(flags) == 3
    assert all("-std=c++17" in line for line in flags)


def test_layers_may_be_joined_by_streams(model, traced, tmp_path):
    """hls4ml wants a stream's channels last."""
    streaming = convert(model, (1, 16, 16), "Patchloom", tmp_path / "streams", "internal", "io_stream")
    streaming.compile()
    given = np.ascontiguousarray(np.moveaxis(IMAGES.numpy(), 1, -1))
    np.testing.assert_array_equal(streaming.predict(given), traced[0])


def test_build_says_what_is_missing(built, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match='Make sure "vitis-run" is on PATH'):
        built.build()


def test_build_runs_vitis_where_there_is_one(built, monkeypatch, tmp_path, capfd):
    tool = tmp_path / "vitis-run"
    tool.write_text('#!/bin/sh\necho "$@"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    built.build()
    said = capfd.readouterr().out
    assert "--tcl build_prj.tcl --mode hls" in said
    assert "does not exist" in said  # the tool made no report


def test_a_report_that_does_not_exist_is_told(built, capsys):
    hls4ml.report.read_vivado_report(built.config.get_output_dir())
    assert "Project myproject_prj does not exist. Rerun" in capsys.readouterr().out


def test_plot_model_needs_what_it_always_needs(built, tmp_path):
    expected = contextlib.nullcontext() if find_spec("pydot") else pytest.raises(ImportError, match="pydot")
    with expected:
        hls4ml.utils.plot_model(built, to_file=str(tmp_path / "model.png"))


# --- What is refused ---


@pytest.mark.parametrize("layer", ["body", "head"])
def test_a_conversion_that_is_not_the_model_is_refused(layer, built, model, monkeypatch):
    weight = model.head.weight if layer == "head" else model.body.module.mixture.attn.proj.weight
    monkeypatch.setattr(weight, "data", -weight.data)
    with pytest.raises(
        MismatchError, match=rf"^layer '{layer}' must differ from torch by at most [\d.e-]+, .*, not [\d.e-]+ "
    ):
        built.compile()


def test_a_dropped_operation_is_named():
    """hls4ml 1.3.0 drops `x[:, 0]`."""
    with pytest.raises(
        MismatchError, match=r"^layer 'head' must return 6 values, as in torch, not 102: hls4ml has dropped"
    ):
        _compare("head", np.zeros((2, 102)), np.zeros((2, 6)), 1.0)


def test_a_faithful_conversion_is_not_refused(built):
    built.compile()


@pytest.mark.parametrize("precision", ["w4a8", "w8a8", "w8a16", "w16a16"])
def test_what_quantisation_explains_is_about_what_it_costs(precision):
    torch.manual_seed(0)
    leaf = wrap(Body(), calibration=IMAGES, precision=precision).patchloom
    [actual] = patchloom.run(leaf.program, IMAGES).outputs.values()
    with torch.no_grad():
        exact, coarse = leaf.module(IMAGES).numpy(), coarse_leaf(leaf)(IMAGES).numpy()
    ratio = np.sqrt(np.square(actual - exact).mean() / np.square(coarse - exact).mean())
    print(f"{precision}: {ratio:.2f} of the coarse copy's error")
    assert 0.1 < ratio < 3


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)

    def forward(self, x):
        return self.body(self.body(x))


def test_wrap_names_what_it_needs():
    with pytest.raises(InputError, match="part must be a submodule of the model, one of 'body', not 'head'"):
        wrap(Twice(), "head", calibration=torch.zeros(2, 4))
    with pytest.raises(InputError, match="the part must be called once, with one tensor"):
        wrap(Twice(), "body", calibration=torch.zeros(2, 4))


# --- Pieces ---


ORDERS = ("import hls4ml; from patchloom.hls4ml import wrap", "from patchloom.hls4ml import wrap; import hls4ml")


@pytest.mark.parametrize("imports", ORDERS)
def test_hls4ml_loads_the_entry_point(imports, tmp_path):
    """Whichever is imported first; hls4ml prints why it could not load one."""
    project = tomllib.loads(Path(patchloom.__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    [(name, value)] = project["entry-points"]["hls4ml.backends"].items()
    metadata = tmp_path / "patchloom-0.dist-info"  # instead of the installed one
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: patchloom\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[hls4ml.backends]\n{name} = {value}\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    code = f"{path}; {imports}; print(*hls4ml.backends.get_available_backends())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "patchloom" in done.stdout.split()
    assert "WARNING" not in done.stdout


def numbers(text, name):
    line = next(line for line in text.splitlines() if f" {name}[] = " in line)
    return np.array(line.split("{")[1].split("}")[0].split(","), int)


@pytest.mark.parametrize("channels_last", [False, True])
def test_index_tables_follow_hls4mls_layout(channels_last, program, samples, mlp):
    leaf = Leaf(mlp, program, torch.from_numpy(samples), "w8a8")
    text = header(leaf, "body", channels_last=channels_last)
    array = np.moveaxis(samples[0], 0, -1) if channels_last else samples[0]
    taken = np.append(array.reshape(-1), 0)[numbers(text, "body_input_index")]
    expected, _ = to_region(leaf.input, samples[0])
    high = (1 << leaf.input.width - 1) - 1
    integers = np.floor(taken * 2.0**leaf.input.fraction + 0.5).clip(-high - 1, high)
    np.testing.assert_array_equal(integers[: expected.size], expected)
    result = numbers(text, "body_output_index")
    result = result.reshape(8, 5).T if channels_last else result.reshape(5, 8)
    np.testing.assert_array_equal(result, leaf.output.index.reshape(5, 8))
