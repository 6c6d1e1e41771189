"""Design files: what a good one compiles to, and what each bad one is told, word for word.

A new message is recorded by running with GOLDEN=write.
"""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patchloom.compiling import PRESETS
from patchloom.design import DesignError, compile_design, load_design

HERE = Path(__file__).parent
BAD = sorted(path.stem for path in (HERE / "designs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(HERE / "designs", tmp_path, dirs_exist_ok=True)
    shutil.copy(HERE / "models.py", tmp_path)
    rng = np.random.default_rng(0)
    np.save("samples.npy", rng.normal(size=(4, 5, 16)))
    np.savez("pair.npz", left=rng.integers(0, 255, (4, 5 * 16)), right=rng.normal(size=(4, 5, 24)))


@pytest.mark.parametrize("name", BAD)
def test_message(name):
    golden = HERE / "designs" / f"{name}.txt"
    with pytest.raises(DesignError) as caught:
        compile_design(load_design(Path(f"{name}.yaml")))
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(f"{caught.value}\n")
    assert f"{caught.value}\n" == golden.read_text()


def write(text: str) -> Path:
    path = Path("design.yaml")
    path.write_text(text)
    return path


def test_defaults():
    design = load_design(write("module: models.py:Mlp\ncalibration: {file: samples.npy}\n"))
    assert (design.precision, design.config, design.tasks, design.checkpoint) == ("w8a8", PRESETS["small"], None, None)
    assert [port.shape for port in compile_design(design).tasks[0].inputs] == [(5, 16)]


def test_machine_follows_precision_and_fields():
    text = "module: models.py:Mlp\ncalibration: {file: samples.npy}\nprecision: w16a16\n"
    text += "config: {preset: wide, inputs: 64}\n"
    expected = replace(PRESETS["wide"], inputs=64, weight_width=16, activation_width=16)
    assert load_design(write(text)).config == expected


def test_arguments_and_overrides():
    text = "module: models.py:Mlp\narguments: {hidden: 48}\ncalibration: {file: samples.npy}\noverrides: {fc2: w8a16}\n"
    program = compile_design(load_design(write(text)))
    assert program.precision == "w8a8, fc2: w8a16"
    assert program.tasks[0].macs == 5 * 48 * (16 + 8)


def test_inputs_by_name_in_any_order_around_the_task():
    program = compile_design(
        load_design(
            write("""
module: models.py:TwoInputs
tasks: [one, both]
calibration:
  right: {file: pair.npz, key: right}
  left: {file: pair.npz, key: left, divide: 255, shape: [5, 16]}
""")
        )
    )
    assert {port.name: port.shape for port in program.task("both").inputs} == {"left": (5, 16), "right": (5, 24)}
    assert [port.name for port in program.task("one").inputs] == ["left"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("module: models.py:broken", "design.yaml:1: models.py:broken failed: RuntimeError: no weights today"),
        ("module: models.py:not_a_module", "design.yaml:1: module must be or return a torch.nn.Module, not int"),
        ("module: nowhere.py:A", "design.yaml:1: nowhere.py cannot be imported: FileNotFoundError"),
        ("module: no.such:A", "design.yaml:1: no.such cannot be imported: ModuleNotFoundError"),
        ("module: models.py:Mlp\narguments: {width: 3}", "got an unexpected keyword argument 'width'"),
    ],
)
def test_model_that_cannot_be_made(lines, message):
    with pytest.raises(DesignError) as caught:
        compile_design(load_design(write(f"{lines}\ncalibration: {{file: samples.npy}}\n")))
    assert message in str(caught.value)
