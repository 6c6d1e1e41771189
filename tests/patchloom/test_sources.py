"""Frames from files, from a folder that is watched, from a camera."""

import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from patchloom import sources
from patchloom.compiler.machine.errors import Error, InputError, MissingExtraError
from patchloom.sources import Folder, camera, files, watched


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()


@pytest.fixture
def tasks(seeing):
    return seeing.tasks


def grey(name: str, seed: int = 0) -> np.ndarray:
    """A picture in a file, and as the model takes it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(name, format="PNG")
    return pixels[None].astype(np.float32) / np.float32(255)


# --- Files ---


def test_pictures_come_one_by_one_for_every_task(tasks):
    wanted = {name: grey(f"in/{name}", seed) for seed, name in enumerate(("a.png", "b.PNG"))}
    [burst] = files(tasks, [Path("in")])
    for shot, (name, picture) in zip(burst, wanted.items(), strict=True):
        assert (shot.name, list(shot.inputs)) == (name, [task.name for task in tasks])
        for inputs in shot.inputs.values():
            np.testing.assert_array_equal(inputs["image"], picture)


def test_arrays_are_as_many_frames_as_samples(tasks, scenes):
    np.save("in/a.npy", scenes[:3])
    [burst] = files(tasks, [Path("in/a.npy")])
    found = list(burst)
    assert [shot.name for shot in found] == ["a-000000", "a-000001", "a-000002"]
    for shot, scene in zip(found, scenes, strict=False):
        np.testing.assert_array_equal(shot.inputs["number"]["image"], scene)


def test_what_is_wrong_with_files_is_told_before_the_first(tasks):
    grey("in/a.png")
    Path("in/b.png").write_bytes(Path("in/a.png").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"in/b\.png cannot be read"):
        next(files(tasks, [Path("in/a.png"), Path("in/b.png")]))
    Path("other").mkdir()
    shutil.copy("in/a.png", "other")
    with pytest.raises(InputError, match=r"different names, .* 'a\.png' comes twice"):
        next(files(tasks, [Path("in/a.png"), Path("other")]))


# --- A folder ---


class Watch:
    """A folder at a time of its own."""

    def __init__(self, tasks):
        self.time, self.told = 0.0, []
        self.folder = Folder(Path("in"), tasks, lambda error: self.told.append(str(error)), lambda: self.time)

    def later(self, seconds: float = sources.SETTLED) -> list[str]:
        """What is new then; it was seen before."""
        first = [shot.name for shot in self.folder.new()]
        self.time += seconds
        return first + [shot.name for shot in self.folder.new()]


def test_each_once_when_it_has_settled(tasks):
    grey("in/before.png")
    watch = Watch(tasks)
    assert watch.later() == []
    for name in ("b.png", "a.png", "notes.txt"):
        grey(f"in/{name}", len(name))
    os.utime("in/a.png", ns=(0, 0))
    assert watch.later(sources.SETTLED / 2) == []
    assert watch.later(sources.SETTLED / 2) == ["a.png", "b.png"]  # the oldest first
    Path("in/b.png").rename("in/c.png")
    assert watch.later() == []
    grey("in/a.png", 5)
    assert watch.later() == ["a.png"]  # another picture
    assert watch.told == []


def test_a_file_that_is_being_written_is_not_taken(tasks):
    watch, whole = Watch(tasks), b""
    grey("whole.png")
    whole = Path("whole.png").read_bytes()
    for size in range(0, len(whole) - 40, 40):  # the last bytes hold no pixel
        Path("in/a.png").write_bytes(whole[:size])
        assert watch.later(sources.SETTLED * 0.9) == []
    assert watch.told == []
    watch.time += 9  # the writer has stopped for long
    assert watch.later() == []
    assert len(watch.told) == 1
    assert watch.later() == []
    assert len(watch.told) == 1  # and is told once
    Path("in/a.png").write_bytes(whole)
    assert watch.later() == ["a.png"]


def test_a_file_that_changes_while_it_is_read_is_not_taken(tasks, monkeypatch):
    watch = Watch(tasks)
    grey("in/a.png")
    watch.later(0)
    read = sources.of_file

    def slowly(path, of):
        found = read(path, of)
        grey("in/a.png", 9)
        os.utime("in/a.png", ns=(1, 1))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(sources, "of_file", slowly)
        assert watch.later() == []
    assert watch.later() == ["a.png"]


def test_what_is_no_picture_harms_nothing(tasks):
    watch = Watch(tasks)
    long = f"{'n' * 237}.png"
    grey(f"in/{long}")
    Path("in/d.png").mkdir()
    Path("in/nowhere.png").symlink_to("/nowhere")
    os.mkfifo("in/fifo.png")
    Path("in/junk.jpg").write_text("junk")
    Path("in/empty.jpeg").touch()
    grey("target")
    Path("in/link.png").symlink_to(Path("target").resolve())
    grey(os.fsencode("in/").decode() + os.fsdecode(b"\xff .png"), 1)
    assert sorted(watch.later()) == sorted([os.fsdecode(b"\xff .png"), "link.png"])
    assert sorted(text.removeprefix("input 'image': ").split(" ")[0] for text in watch.told) == [
        "in/empty.jpeg",
        "in/junk.jpg",
        f"in/{long}",
    ]


def test_a_burst_ends_when_nothing_waits(tasks):
    watch, slept, bursts = Watch(tasks), [], []

    def sleep(seconds):
        slept.append(seconds)
        watch.time += sources.SETTLED
        grey(f"in/{len(slept)}.png", len(slept))

    bursts += ([shot.name for shot in burst] for burst in watched(watch.folder, lambda: len(bursts) == 3, sleep))
    assert bursts == [["1.png"], ["2.png"], ["3.png"]]


def test_a_stop_ends_a_burst(tasks):
    watch = Watch(tasks)
    for name in "abc":
        grey(f"in/{name}.png", ord(name))
    watch.later(0)
    watch.time += sources.SETTLED
    found: list[str] = []
    found += (shot.name for burst in watched(watch.folder, lambda: bool(found)) for shot in burst)
    assert found == ["a.png"]


def test_what_cannot_be_watched(tasks, program):
    with pytest.raises(InputError, match="--watch must be a folder, not 'nowhere'"):
        Folder(Path("nowhere"), tasks, print)
    with pytest.raises(
        InputError, match="--watch needs tasks whose only input has a preprocessing, and 'main' takes 'x'"
    ):
        Folder(Path("in"), program.tasks, print)


# --- A camera ---


class Capture:
    """OpenCV's, of frames that a test gives."""

    def __init__(self, frames, opened=True):
        self.frames, self.opened, self.released, self.settings = list(frames), opened, 0, {}

    def isOpened(self):  # noqa: N802 - OpenCV's
        return self.opened

    def set(self, what, value):
        self.settings[what] = value

    def read(self):
        return (True, self.frames.pop(0)) if self.frames else (False, None)

    def release(self):
        self.released += 1


@pytest.fixture
def opened(monkeypatch):
    def put(capture):
        module = SimpleNamespace(VideoCapture=lambda number: capture, CAP_PROP_BUFFERSIZE=38)
        monkeypatch.setitem(sys.modules, "cv2", module)
        return capture

    return put


def test_frames_of_a_camera(tasks, opened):
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 16, 3), dtype=np.uint8)  # blue, green, red
    capture, found = opened(Capture(frames)), []
    with pytest.raises(InputError, match="camera 4 gives no more pictures"):
        found += (shot for burst in camera(4, tasks, lambda: False) for shot in burst)
    assert [shot.name for shot in found] == [f"frame-{number:06}" for number in (1, 2, 3)]
    for shot, frame in zip(found, frames, strict=True):
        luma = np.asarray(Image.fromarray(frame[..., ::-1].copy()).convert("L"))
        np.testing.assert_array_equal(shot.inputs["classes"]["image"], luma[None] / np.float32(255))
    assert (capture.settings, capture.released) == ({38: 1}, 1)


def test_a_camera_is_stopped_and_given_back(tasks, opened):
    capture = opened(Capture([np.zeros((8, 16, 3), np.uint8)] * 5))
    found: list[str] = []
    found += (shot.name for burst in camera(0, tasks, lambda: len(found) == 2) for shot in burst)
    assert (len(found), capture.released) == (2, 1)


def test_no_camera(tasks, opened, monkeypatch, program):
    capture = opened(Capture([], opened=False))
    with pytest.raises(InputError, match="--camera must be the number of a camera, and there is none of number 7"):
        list(camera(7, tasks, lambda: False))
    assert capture.released == 1
    with pytest.raises(Error, match="--camera needs tasks whose only input has a preprocessing"):
        list(camera(0, program.tasks, lambda: False))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"--camera needs cv2: pip install 'patchloom\[camera\]'"):
        list(camera(0, tasks, lambda: False))


def test_a_camera_of_another_size(tasks, opened):
    opened(Capture([np.zeros((480, 640, 3), np.uint8)]))
    with pytest.raises(InputError, match="input 'image' must have 8 x 16 pixels, not 480 x 640"):
        list(next(camera(0, tasks, lambda: False)))


def test_a_camera_without_colours(tasks, opened):
    opened(Capture([np.zeros((8, 16), np.uint8)]))
    with pytest.raises(InputError, match=r"a camera's frames must have three colours, not shape \[8, 16\]"):
        list(next(camera(0, tasks, lambda: False)))
