"""The command line: what it writes, what it prints, and that a failure is one message and writes nothing."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import patchloom
from patchloom import cli


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, samples):
    """A folder with a design file, its model and its data, to stand in."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).with_name("models.py"), tmp_path)
    np.save("samples.npy", samples)
    Path("design.yaml").write_text("module: models.py:Mlp\ncalibration: {file: samples.npy}\n")
    return tmp_path


@pytest.fixture
def call(monkeypatch, capsys):
    """Exit code, output, error output of a command line."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["patchloom", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code or 0, *capsys.readouterr())

    return run


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_compile_run_inspect(call, samples):
    code, out, err = call("compile", "design.yaml", "-o", "build/program")
    assert (code, err) == (0, "")
    assert "tasks main" in out

    code, out, err = call("run", "build/program", "samples.npy", "--output", "results/out.npz")
    assert (code, err) == (0, "")
    assert "saturations: " in out
    expected = patchloom.run(patchloom.load("build/program"), samples)
    with np.load("results/out.npz") as results:
        assert set(results) == {"main", "raw/main"}
        np.testing.assert_array_equal(results["main"], expected.outputs["main"])
        np.testing.assert_array_equal(results["raw/main"], expected.raw["main"])

    code, out, err = call("run", "build/program", "samples.npy", "--output", "results/out.npz", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "outputs": {"main": list(expected.outputs["main"].shape)},
        "cycles": None,
        "saturations": expected.saturations,
        "clipped": expected.clipped,
        "written": "results/out.npz",
    }

    code, out, err = call("inspect", "build/program")
    assert (code, err) == (0, "")
    assert "main" in out


def test_compile_replaces_a_program(call):
    assert [call("compile", "design.yaml", "-o", "program")[0] for _ in range(2)] == [0, 0]


def test_hls_project(call, saved):
    code, out, err = call("hls", saved, "project", "--input", "samples.npy")
    assert (code, err) == (0, "")
    assert "vitis_hls -f vitis_hls.tcl" in out
    assert Path("project/program.bin").stat().st_size > 0
    assert np.fromfile("project/output0.bin", "<i2").any()


# Command line -> what its error says.
FAILURES = {
    "compile nowhere.yaml -o p": "error: nowhere.yaml cannot be read: No such file or directory",
    "compile bad.yaml -o p": "error: bad.yaml:1: 'modle' is not a key of a design; did you mean 'module'?",
    "compile unsupported.yaml -o p": "Unsupported cannot be compiled for task 'main':",
    "compile nan.yaml -o p": "error: nan.yaml:2: nan.npy must be finite, 1 of its 640 values are NaN or infinite",
    "compile shape.yaml -o p": "must be key: value pairs",
    "compile big.yaml -o p": "error: does not fit: ",
    "compile design.yaml -o .": "exists and is not a Program",
    "run nowhere samples.npy --output o.npz": "cannot be read: No such file or directory",
    "run program nowhere.npy --output o.npz": "error: nowhere.npy cannot be read: No such file or directory",
    "run program design.yaml --output o.npz": "must be a file that ends in .npy, .npz, .safetensors",
    "run program torn.npy --output o.npz": "error: torn.npy cannot be read: ",
    "run program samples.npy --output o.txt": "error: --output must be a folder, or end in .npz, not 'o.txt'",
    "run program samples.npy --output o.npz --task depth": "error: task must be one of main, not 'depth'",
    "run program nan.npy --output o.npz": "error: input 'x' must be finite",
    "run program named.npz --output o.npz": "error: named.npz must hold 'x'; it holds 'a', 'b'",
    "run program samples.npy --output o.npz --engine hls --device sim": "error: --engine must be left out with",
    "run program samples.npy --output o.npz --project .": "error: --project must be left out without --device",
    "run program samples.npy --output o.npz --device usb": "must be a Device or one of sim, soc:BOARD, uart",
    "run program samples.npy --output o.npz --device uart:tty": "needs the project that `patchloom build`",
    "run program samples.npy --output o.npz --device uart:tty --project .": "error: manifest.json must be the",
    "run program samples.npy --output o.npz --device pynq:a.bit": "needs the project that `patchloom build`",
    "run program samples.npy --output o.npz --device uio:vision": "error: no uio device is named vision",
    "validate nowhere": "cannot be read: No such file or directory",
    "validate program --device usb": "must be a Device or one of sim, soc:BOARD, uart",
    "inspect design.yaml": "cannot be read",
    "hls nowhere p": "cannot be read: No such file or directory",
    "hls program .": "error: . exists and is not an empty directory: remove it or choose another path",
    "hls program samples.npy": "error: samples.npy exists and is not an empty directory",
    "hls program p --input nan.npy": "error: input 'x' must be finite",
}


@pytest.mark.parametrize("line", FAILURES)
def test_failure(line, call, folder, saved, samples):
    nan = samples.copy()
    nan[0, 0, 0] = np.nan
    np.save("nan.npy", nan)
    np.savez("named.npz", a=samples, b=samples)
    Path("torn.npy").write_bytes(Path("samples.npy").read_bytes()[:-5])
    data = "calibration: {file: samples.npy}\n"
    Path("bad.yaml").write_text("modle: models.py:Mlp\n" + data)
    Path("unsupported.yaml").write_text("module: models.py:Unsupported\n" + data)
    Path("nan.yaml").write_text("module: models.py:Mlp\ncalibration: {file: nan.npy}\n")
    Path("shape.yaml").write_text("module: models.py:Mlp\ncalibration: samples.npy\n")
    Path("big.yaml").write_text(
        "module: models.py:Mlp\narguments: {hidden: 6000}\nconfig: {scratchpad_chunks: 64}\n" + data
    )
    before = everything(folder)
    code, out, err = call(*line.split())
    assert code == 1
    assert FAILURES[line] in err
    assert "Traceback" not in out + err
    assert everything(folder) == before


def test_wrong_command_line(call):
    code, _, err = call("compile", "--nonsense")
    assert code == 2
    assert "--nonsense" in err


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["patchloom", "--debug", "inspect", "nowhere"])
    with pytest.raises(ValueError, match="nowhere"):
        cli.main()


def test_compile_for_a_board(call):
    code, out, err = call("compile", "design.yaml", "-o", "program", "--board", "ulx3s_85f")
    assert (code, err) == (0, "")
    table, _, after = out.partition("array ")
    assert all(name in table for name in ("ULX3S", "LUT", "FF", "DSP", "BRAM"))
    assert "frames a second" in after
    assert "limited by " in after
    assert patchloom.load("program").board == "ulx3s_85f"
    assert "made for board ulx3s_85f" in call("inspect", "program")[1]


def test_an_unknown_board(call):
    code, _, err = call("compile", "design.yaml", "-o", "program", "--board", "kv26")
    assert (code, Path("program").exists()) == (1, False)
    assert "board must be kv260, not 'kv26'" in err


def test_boards(call):
    code, out, err = call("boards")
    assert (code, err) == (0, "")
    assert all(name in out for name in ("ulx3s_85f", "zcu102", "LFE5U-85F", "156"))
