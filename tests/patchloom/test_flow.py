"""The front door: how inputs may be given, what comes back, and what is refused."""

import copy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import patchloom
from patchloom import cli
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import ClippedWarning
from patchloom.compiler.machine.program import ProgramError
from patchloom.compiler.machine.store import VERSION
from patchloom.compiler.problems import CaptureError
from patchloom.compiler.quantise import QuantiseError
from patchloom.compiler.schedule import FitError

EXAMPLE = torch.zeros(1, 5, 16)


def message(kind, function, *arguments, **options):
    with pytest.raises(kind) as caught:
        function(*arguments, **options)
    return str(caught.value)


# --- Running ---


def test_outputs_are_near_float(mlp, program, samples):
    with torch.no_grad():
        expected = mlp(torch.from_numpy(samples)).numpy()
    result = patchloom.run(program, samples)
    np.testing.assert_allclose(result.outputs["main"], expected, atol=0.05)
    assert result.raw["main"].dtype == np.int16
    assert result.cycles is None


def test_one_sample_is_a_batch_without_its_dimension(program, samples):
    one, batch = patchloom.run(program, samples[3]), patchloom.run(program, samples[3:4])
    assert one.outputs["main"].shape == (5, 8)
    np.testing.assert_array_equal(one.outputs["main"], batch.outputs["main"][0])


def test_hls_kernels_agree_with_the_interpreter(program, samples):
    expected, result = patchloom.run(program, samples), patchloom.run(program, samples, engine="hls")
    np.testing.assert_array_equal(result.raw["main"], expected.raw["main"])
    assert (result.saturations, result.clipped, result.cycles) == (expected.saturations, expected.clipped, None)


@pytest.mark.parametrize(
    "give", [torch.from_numpy, lambda x: (x,), lambda x: {"x": x}], ids=["tensor", "tuple", "dict"]
)
def test_inputs_may_be_given_as(give, program, samples):
    np.testing.assert_array_equal(
        patchloom.run(program, give(samples)).raw["main"], patchloom.run(program, samples).raw["main"]
    )


def test_inputs_out_of_range_are_counted(program, samples):
    loud = samples[0].copy()
    loud[0, :3] = 1e6
    assert patchloom.run(program, loud).clipped == 3
    assert patchloom.run(program, samples[0] * 0).clipped == 0


def test_progress_and_observer_see_every_step(program, samples):
    steps, kinds = [], []
    patchloom.run(
        program,
        samples[:2],
        observe=lambda _, command, __: kinds.append(command),
        progress=lambda *step: steps.append(step),
    )
    assert steps == [("run main", 1, 2), ("run main", 2, 2)]
    assert kinds == list(program.tasks[0].commands) * 2


def bad_inputs(samples):
    nan = samples.copy()
    nan[0, 0, :2] = np.nan, np.inf
    return {
        "input 'x' must have shape [5, 16], or that behind a batch dimension, not [8, 5, 15]": samples[..., :15],
        "input 'x' must have shape [5, 16], or that behind a batch dimension, not []": np.float32(1),
        "input 'x' must have shape [5, 16], or that behind a batch dimension, not [0, 5, 16]": samples[:0],
        "input 'x' must be finite, 2 of its 640 values are NaN or infinite": nan,
        "input 'x' must hold numbers, not <U1": np.array("a"),
        "inputs must be given for 'x', not 2 of them": (samples, samples),
        "inputs must be given for 'x', not for 'y'": {"y": samples},
    }


def test_bad_inputs(program, samples):
    for expected, inputs in bad_inputs(samples).items():
        assert message(InputError, patchloom.run, program, inputs) == expected


def test_unknown_task_and_engine(program, samples):
    assert message(InputError, patchloom.run, program, samples, task="depth") == "task must be one of main, not 'depth'"
    text = message(InputError, patchloom.run, program, samples, engine="gpu")
    assert text == "engine must be one of interpreter, hls, rtl, not 'gpu'"


# --- Compiling ---


def test_calibration_may_be_a_batch_a_tuple_or_named(mlp, program, samples):
    for calibration in (torch.from_numpy(samples), (samples,), {"x": samples}):
        assert patchloom.compile(mlp, EXAMPLE, calibration=calibration).image == program.image


def test_calibration_that_is_refused(mlp, samples):
    nan = samples.copy()
    nan[1, 2, 3] = np.nan
    cases = {
        "calibration of 'x' must be finite, 1 of its 640 values are NaN or infinite": (InputError, nan),
        "calibration must be given for 'x', not for 'image'": (InputError, {"image": samples}),
        "calibration samples of 'x' must have shape (samples, 5, 16), not (8, 16)": (QuantiseError, samples[:, 0]),
        "calibration samples of 'x' must have shape (samples, 5, 16), not (0, 5, 16)": (QuantiseError, samples[:0]),
    }
    for expected, (kind, calibration) in cases.items():
        assert message(kind, patchloom.compile, mlp, EXAMPLE, calibration=calibration) == expected


def test_every_unsupported_operation_is_named(models, samples):
    text = message(CaptureError, patchloom.compile, models.Unsupported(), EXAMPLE, calibration=samples)
    assert "frac" in text
    assert "cumsum" in text
    assert "models.py:" in text


def test_weights_that_are_not_finite(mlp, samples):
    bad = copy.deepcopy(mlp)
    bad.fc2.weight.data[0, 0] = float("nan")
    assert "fc2.weight" in message(CaptureError, patchloom.compile, bad, EXAMPLE, calibration=samples)


def test_no_module(samples):
    text = message(InputError, patchloom.compile, print, EXAMPLE, calibration=samples)
    assert text == "module must be a torch.nn.Module, not builtin_function_or_method"


def test_unknown_precision_and_idle_override(mlp, samples):
    assert "w3a8" in message(QuantiseError, patchloom.compile, mlp, EXAMPLE, calibration=samples, precision="w3a8")
    options = {"calibration": samples, "overrides": {"fc9*": "w8a16"}}
    assert "fc9*" in message(QuantiseError, patchloom.compile, mlp, EXAMPLE, **options)


def test_a_model_that_does_not_fit(mlp, samples):
    small = patchloom.Config(scratchpad_chunks=64)
    example = torch.zeros(1, 100, 16)
    text = message(FitError, patchloom.compile, mlp, example, calibration=np.zeros((1, 100, 16)), config=small)
    assert text.startswith("does not fit: task 'main': scratchpad (chunks) needs 102, has 64")


# --- A Program's directory ---


def test_saved_and_loaded_program_is_the_same(program, saved, samples):
    loaded = patchloom.load(saved)
    assert (loaded.image, loaded.config) == (program.image, program.config)
    np.testing.assert_array_equal(
        patchloom.run(loaded, samples).raw["main"], patchloom.run(program, samples).raw["main"]
    )


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [flip, truncate])
@pytest.mark.parametrize("name", ["manifest.json", "image-*.bin", "index-*.bin"])
def test_damaged_program(saved, harm, name):
    [file] = saved.glob(name)
    harm(file)
    assert str(file) in message(ProgramError, patchloom.load, saved)


def test_newer_program(saved):
    manifest = saved / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"version": {VERSION}', f'"version": {VERSION + 1}'))
    assert "newer version" in message(ProgramError, patchloom.load, saved)


def test_save_replaces_nothing_but_a_program(program, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert str(tmp_path) in message(ProgramError, patchloom.save, program, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


# --- Names are free text ---


class Named(torch.nn.Module):
    def __init__(self, names):
        super().__init__()
        self.names, self.fc = names, torch.nn.Linear(16, 8)

    def forward(self, x):
        return {name: self.fc(x) for name in self.names}


FREE = ["file", "arr_0", "a b", "[red]x[/red]", "größe", "raw/x", "con.", "kwds"]


def test_any_name_of_an_output_reaches_the_file(samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = patchloom.compile(Named(FREE), torch.from_numpy(samples[:1]), calibration=samples)
    patchloom.save(program, tmp_path / "p")
    np.save("samples.npy", samples)
    done = CliRunner().invoke(cli.app, ["run", "p", "samples.npy", "--output", "out.npz"])
    assert done.exit_code == 0, done.output
    with np.load("out.npz") as outputs:
        assert {*FREE, *(f"raw/{name}" for name in FREE)} == set(outputs)
    assert all(name in done.output for name in FREE)


@pytest.mark.parametrize("name", ["", "../../evil", "/etc/passwd", "a\x1b[2J", "a\nb", "..\\evil", "x" * 101])
def test_names_that_could_break_something_are_refused(name, samples):
    example = torch.from_numpy(samples[:1])
    text = message(ProgramError, patchloom.compile, Named([name]), example, calibration=samples)
    assert "an output must have a name of 1 to 100 printable characters that is no path" in text
    assert repr(name) in text
    text = message(InputError, patchloom.compile, Named(["y"]), (example, 0), calibration=samples, tasks=(name,))
    assert repr(name) in text


# --- Inputs in another range ---


def test_bytes_into_a_program_calibrated_on_less_are_a_warning(program, samples):
    with pytest.warns(ClippedWarning, match=r"input 'x': \d+% of its values do not fit and are clipped: they lie from"):
        patchloom.run(program, np.clip(samples * 60 + 128, 0, 255).astype(np.uint8))


def test_outliers_are_none(program, samples):
    outlier = samples.copy()
    outlier[0, 0, 0] = 1e6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert patchloom.run(program, outlier).clipped == 1


@pytest.mark.parametrize(("strict", "code"), [([], 0), (["--strict"], 1)])
def test_the_command_line_warns_or_refuses(strict, code, saved, samples, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("bytes.npy", np.full(samples.shape, 255, np.uint8))
    words = ["patchloom", "run", str(saved), "bytes.npy", "--output", "out.npz", *strict]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == code
    assert "input 'x': 100% of its values do not fit" in capsys.readouterr().err
    assert Path("out.npz").exists() == (code == 0)


# --- Options that an engine has not ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"trace": "a.vcd"}, "trace must be left out with engine 'interpreter'"),
        ({"engine": "hls", "latency": 3}, "latency must be left out with engine 'hls'"),
        ({"engine": "hls", "observe": print}, "observe must be left out with engine 'hls'"),
        ({"engine": "rtl", "latencies": 3}, "latencies must be among the settings of engine 'rtl'"),
        ({"engine": "rtl", "latency": -1}, "latency must be a whole number from 0 to"),
        ({"engine": "rtl", "cycles_per_beat": 0.5}, "cycles_per_beat must be a whole number from 1 to"),
    ],
)
def test_options_that_mean_nothing_are_told(options, text, program, samples):
    assert text in message(InputError, patchloom.run, program, samples, **options)


# --- One input, read in several layouts ---


class Layouts(torch.nn.Module):
    """Two patch sizes, a slice and a flip of one picture, beside another input."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = torch.nn.Conv2d(2, 12, 4, 4), torch.nn.Conv2d(2, 12, 8, 8)
        self.rows, self.flipped, self.other = (torch.nn.Linear(n, 12) for n in (16, 16, 6))

    def forward(self, image, other):
        parts = [conv(image).flatten(2).transpose(1, 2) for conv in (self.fine, self.coarse)]
        rows = [self.rows(image[:, 0]), self.flipped(image.flip(3)[:, 1, 2:5]), self.other(other)]
        return torch.cat([part.mean(1) for part in (*parts, *rows)], 1)


def test_one_input_is_one_input_however_it_is_read():
    torch.manual_seed(0)
    model = Layouts().eval()
    image, other = torch.randn(6, 2, 16, 16), torch.randn(6, 5, 6)
    program = patchloom.compile(model, (image[:1], other[:1]), calibration=(image, other), precision="w16a16")
    assert [port.name for port in program.tasks[0].inputs] == ["image", "other"]
    with torch.no_grad():
        expected = model(image, other).numpy()
    results = [patchloom.run(program, (image, other), engine=engine) for engine in ("interpreter", "hls")]
    np.testing.assert_allclose(results[0].outputs["main"], expected, atol=2e-3)
    np.testing.assert_array_equal(results[0].raw["main"], results[1].raw["main"])
    assert results[0].clipped == 0
