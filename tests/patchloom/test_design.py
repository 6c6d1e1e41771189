"""Design files: what a good one compiles to, and what each bad one is told, word for word.

A new message is recorded by running with GOLDEN=write.
"""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from patchloom.compiling import PRESETS
from patchloom.design import DesignError, compile_design, load_design, load_module
from tests.patchloom.models import Mlp, Tied

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
        ("module: models.py:leaves", "design.yaml:1: models.py:leaves failed: SystemExit: bye"),
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


@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_model_by_its_name(package: str, monkeypatch: pytest.MonkeyPatch):
    """As the package itself makes it; where it is missing, that is told."""
    asked = []

    def make(name: str, **arguments: int) -> Mlp:
        asked.append(name)
        return Mlp(**arguments)

    text = f"module: {package}:some/tiny_model.v1\narguments: {{hidden: 48}}\ncalibration: {{file: samples.npy}}\n"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DesignError, match=rf"design.yaml:1: .* needs it, but {package} is not installed: pip install"):
        compile_design(load_design(write(text)))
    found = SimpleNamespace(create_model=make, AutoModel=SimpleNamespace(from_pretrained=make))
    monkeypatch.setitem(sys.modules, package, found)
    assert compile_design(load_design(write(text))).tasks[0].macs == 5 * 48 * (16 + 8)
    assert asked == ["some/tiny_model.v1"]


def test_tasks_by_name_where_forward_takes_a_str():
    text = "module: models.py:ByName\ntasks: [near, far]\ncalibration: {file: samples.npy}\n"
    program = compile_design(load_design(write(text)))
    assert [program.task(name).outputs[0].shape for name in ("near", "far")] == [(5, 3), (5, 7)]


# --- Checkpoints ---


def checkpoint(change=lambda tensors: None, model=Mlp) -> dict[str, torch.Tensor]:
    """A file with a model's weights, after a change; what was written."""
    tensors = {name: torch.randn_like(tensor) for name, tensor in model().state_dict().items()}
    change(tensors)
    save_file(tensors, "weights.safetensors")
    return tensors


def loaded(line: str = "checkpoint: weights.safetensors", model: str = "Mlp") -> torch.nn.Module:
    design = f"module: models.py:{model}\n{line}\ncalibration: {{file: samples.npy}}\n"
    return load_module(load_design(write(design)))


def test_weights_arrive():
    expected = checkpoint()
    for name, tensor in loaded().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


def test_weights_of_other_floats_arrive():
    expected = checkpoint(lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}))
    torch.testing.assert_close(loaded().fc1.weight, expected["fc1.weight"].float(), rtol=0, atol=0)


def test_weights_behind_a_prefix_arrive_when_it_is_given():
    expected = checkpoint(lambda t: [t.update({f"module.{name}": t.pop(name)}) for name in list(t)])
    with pytest.raises(DesignError, match=r"has 'module\.' before every name: give the checkpoint as"):
        loaded()
    model = loaded("checkpoint: {file: weights.safetensors, prefix: module.}")
    torch.testing.assert_close(model.fc1.weight, expected["module.fc1.weight"], rtol=0, atol=0)


def test_one_name_of_a_tied_weight_is_enough():
    checkpoint(lambda t: t.pop("b.weight"), Tied)
    model = loaded(model="Tied")
    assert model.a.weight is model.b.weight


def test_everything_wrong_with_a_checkpoint_is_told():
    def harm(tensors):
        tensors["fc1.weight"] = tensors["fc1.weight"].T.contiguous()
        tensors["fc2.weight"] = (tensors["fc2.weight"] * 9).to(torch.int8)
        tensors["fc3.weight"] = tensors.pop("fc1.bias")

    checkpoint(harm)
    with pytest.raises(DesignError) as caught:
        loaded()
    assert str(caught.value).splitlines() == [
        f"design.yaml:2: weights.safetensors {text}"
        for text in (
            "has no fc1.bias",
            "has fc3.weight, which the model has not",
            "has fc1.weight of shape [16, 32], not [32, 16]",
            "has fc2.weight of type torch.int8, which cannot become torch.float32",
        )
    ]


# --- Whatever stands in a file ---

# Text of 8**20 words.
BOMB = "\n".join(
    ["k0: &k0 [x]", *(f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 8)}]" for i in range(1, 21)), "module: *k20"]
)


@pytest.mark.parametrize(
    "text",
    [
        "module: &a [*a]",
        "config: {preset: [a]}",
        "config: {preset: {a: b}}",
        'checkpoint: "\\0.safetensors"',
        "checkpoint: [a]",
        "tasks: [[a], {b: c}, [a]]",
        "? [a, b]\n: c",
        "? {a: b}\n: c",
        "<<: {module: x}",
        "calibration: {file: {}, shape: [[1]], key: 7, divide: .nan}",
        "overrides: {a: {b: c}}",
        "arguments: 2001-99-99",
        "a: " + "[" * 5000,
        BOMB,
    ],
)
def test_strange_files_are_told(text):
    with pytest.raises(DesignError, match=r"design\.yaml"):
        load_design(write(text))


def test_a_board_sizes_the_machine_unless_there_is_a_config():
    text = "module: models.py:Mlp\ncalibration: {file: samples.npy}\nboard: ulx3s_85f\n"
    design = load_design(write(text))
    assert (design.board, design.config) == ("ulx3s_85f", None)
    design = load_design(write(text + "config: {inputs: 32}\n"))
    assert design.config == replace(PRESETS["small"], inputs=32, bus_width=32)
    assert load_design(Path("design.yaml"), board="kv260") == replace(design, board="kv260", config=None)
