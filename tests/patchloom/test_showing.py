"""Frames into a folder, by the command line: what lies there afterwards, and what is refused before."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import patchloom
from patchloom import cli, showing, sources
from patchloom.compiler.machine.errors import InputError
from patchloom.experts import Routing
from patchloom.showing import DifferentError, Eyes, check_names


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch, seeing):
    """A folder to stand in: a Program, a folder of pictures."""
    monkeypatch.chdir(tmp_path)
    patchloom.save(seeing, Path("program"))
    Path("in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 8, 16), dtype=np.uint8)
    for name, pixels in zip("abc", noise, strict=True):
        Image.fromarray(pixels).save(f"in/{name}.png")
    return noise


@pytest.fixture
def call(monkeypatch, capsys):
    """Exit code, output, error output of `patchloom run`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["patchloom", "run", "program", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code or 0, *capsys.readouterr())

    return run


def names(folder="out"):
    return sorted(path.name for path in Path(folder).iterdir())


def test_every_task_sees_every_picture(call, seeing):
    code, out, err = call("in", "-o", "out")
    assert (code, err) == (0, "")
    assert names() == [f"{name}.png.{kind}" for name in "abc" for kind in ("npz", "png")]
    assert [line.split(" ")[:2] for line in out.splitlines()] == [[str(i), f"{n}.png:"] for i, n in enumerate("abc", 1)]
    for name in "abc":
        with np.load(f"out/{name}.png.npz") as found:
            assert set(found) == {f"{part}{task}/{task}" for part in ("", "raw/") for task in ("classes", "number")}
            for task in ("classes", "number"):
                wanted = patchloom.run(seeing, f"in/{name}.png", task=task)
                np.testing.assert_array_equal(found[f"raw/{task}/{task}"], wanted.raw[task])
                np.testing.assert_array_equal(found[f"{task}/{task}"], wanted.outputs[task])
        Image.open(f"out/{name}.png.png").verify()


def test_json_lines_of_one_task_without_pictures(call, seeing):
    code, out, err = call("in/b.png", "in/a.png", "-o", "out", "--task", "number", "--json", "--no-pictures")
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["frame"] for line in lines] == ["b.png", "a.png"]
    assert [line["written"] for line in lines] == [["out/b.png.npz"], ["out/a.png.npz"]]
    result = patchloom.run(seeing, "in/b.png", task="number")
    facts = {
        "outputs": {"number": [1, 2, 4]}, "cycles": None,
        "saturations": result.saturations, "clipped": result.clipped,
    }  # fmt: skip
    assert lines[0]["tasks"] == {"number": facts}
    assert names() == ["a.png.npz", "b.png.npz"]


REFUSED = {
    "in -o in": "--output must be another folder than those of the inputs and the Program, not 'in'",
    "in/a.png -o in/../in": "--output must be another folder",
    "in -o linked": "--output must be another folder",
    "in -o program": "--output must be another folder",
    "--watch in -o in": "--output must be another folder",
    "in -o notes": "--output must be a folder, or end in .npz, not 'notes'",
    "in -o out.txt": "--output must be a folder, or end in .npz, not 'out.txt'",
    "in --watch in -o out": "a run must have either inputs, or --watch, or --camera",
    "-o out": "a run must have either inputs, or --watch, or --camera",
    "--watch in -o out.npz": "--output must be a folder with --watch, --camera, --experts and --no-pictures",
    "in --task depth -o out": "task must be one of classes, number, not 'depth'",
    "in notes.png -o out": "notes.png is neither a PNG nor a JPEG picture",
    "--watch nowhere -o out": "--watch must be a folder, not 'nowhere'",
    "empty -o out": "empty must have pictures that end in .png, .jpg, .jpeg, and there are none",
    "--camera 0 -o out": "--camera needs cv2: pip install 'patchloom[camera]'",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused_with_nothing_written(line, call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    Path("linked").symlink_to("in")
    Path("empty").mkdir()
    for name in ("notes", "notes.png"):
        Path(name).write_text("mine")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    code, out, err = call(*line.split())
    assert (code, out) == (1, "")
    assert REFUSED[line] in err
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_without_matplotlib(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = call("in", "-o", "out")
    assert (code, Path("out").exists()) == (1, False)
    assert err == "error: drawing results needs matplotlib: pip install 'patchloom[figures]'\n"
    assert call("in", "-o", "out", "--no-pictures")[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_ends_cleanly(call, monkeypatch, pictures, number):
    monkeypatch.setattr(sources, "SETTLED", 0)
    watched, look = threading.Event(), sources.Folder.new
    monkeypatch.setattr(sources.Folder, "new", lambda folder: (watched.set(), look(folder))[1])

    def user():
        """Puts pictures there when it is watched, and ends it when they are seen, or after a minute."""
        watched.wait(60)
        Path("in/bad.png").write_text("junk")
        Image.fromarray(pictures[0]).save("new.png")
        Path("new.png").rename("in/new.png")
        end = time.monotonic() + 60
        while not Path("out/new.png.png").exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=user)
    thread.start()
    code, out, err = call("--watch", "in", "-o", "out")
    thread.join()
    assert (code, names()) == (0, ["new.png.npz", "new.png.png"])
    assert err == "warning: input 'image': in/bad.png is neither a PNG nor a JPEG picture\n"
    assert out.startswith("1 new.png: ")


def test_a_camera_with_a_device_in_between(call, monkeypatch, pictures, seeing):
    """Frames of a camera on the RTL, experts by the interpreter beside it."""
    frames = [np.repeat(pixels[..., None], 3, axis=2) for pixels in pictures]
    capture = SimpleNamespace(
        isOpened=lambda: True, set=lambda *_: True, release=lambda: None,
        read=lambda: (True, frames.pop(0)) if frames else (False, None),
    )  # fmt: skip
    module = SimpleNamespace(VideoCapture=lambda _: capture, CAP_PROP_BUFFERSIZE=38)
    monkeypatch.setitem(sys.modules, "cv2", module)
    code, out, err = call("--camera", 0, "-o", "out", "--device", "sim", "--experts", "--json")
    assert (code, err) == (1, "error: camera 0 gives no more pictures\n")
    assert names() == [f"frame-{number:06}.{kind}" for number in (1, 2, 3) for kind in ("npz", "png")]
    for line, name in zip(map(json.loads, out.splitlines()), "abc", strict=True):
        cycles = patchloom.predict(seeing, f"in/{name}.png", task="number").cycles
        assert line["tasks"]["number"]["cycles"] == [cycles]
    assert call("in", "-o", "other")[0] == 0
    for number, name in enumerate("abc", 1):  # the same picture as the interpreter's
        assert Path(f"out/frame-{number:06}.png").read_bytes() == Path(f"other/{name}.png.png").read_bytes()


def test_a_device_that_differs_from_the_interpreter_is_told(seeing):
    def lying(samples):
        for inputs, task in samples:
            result = patchloom.run(seeing, inputs, task=task)
            yield replace(result, raw={name: raw ^ 1 for name, raw in result.raw.items()})

    eyes = Eyes(seeing, seeing.tasks, lying, beside=True, routing=Routing())
    with pytest.raises(DifferentError, match=r"a\.png: output 'classes' of task 'classes' is not the interpreter's"):
        list(eyes.seen(sources.files(seeing.tasks, [Path("in")])))


def test_names_that_would_clash(seeing):
    [output] = seeing.tasks[0].outputs
    tasks = [
        replace(seeing.tasks[0], name=task, outputs=(replace(output, name=name),))
        for task, name in (("x", "y/z"), ("x/y", "z"))
    ]
    check_names(tasks[:1])
    with pytest.raises(InputError, match="cannot hold 'x/y/z' twice"):
        check_names(tasks)


def test_a_file_that_cannot_be_written_whole_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), showing.replaced(tmp_path / "out" / "a.npz") as temporary:
        temporary.write_text(Path("nowhere").read_text())
    with pytest.raises(ValueError, match="pickle"):
        showing.write_arrays(tmp_path / "out" / "a.npz", {"good": np.zeros(3), "bad": np.array([{}])})
    assert names(tmp_path / "out") == []
