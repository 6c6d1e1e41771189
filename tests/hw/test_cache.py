"""A cache entry is never stale: whatever source it is made from is in its key."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patchloom.hw import cache

ROOT = Path(__file__).parents[2]
# Names of the entries that a small component, the HLS kernels and the cycle model are kept under. No compiler runs.
KEYS = """
from amaranth.lib import wiring
from patchloom.compiler.machine.config import Config
from patchloom.hw.dma import Writer
from patchloom.hw import cache
from patchloom.hw.verilog import emit_cached
from patchloom.sim import cycles, hls
from patchloom.sim.toolchain import ToolchainError

cache.entry = lambda kind, key, build: print(kind, key) or cache.PACKAGE
cache.text = lambda kind, key, make: print(kind, key) or ""
emit_cached(lambda: Writer(Config()), "writer")
hls.build(Config())
try:
    cycles._library()
except OSError:
    pass
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources."""
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("patchloom", "compiler", "hw", "sim"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def keys(tree: Path) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-c", KEYS], cwd=tree, capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def before(tree):
    found = keys(tree)
    assert set(found) == {"verilog", "hls", "native"}
    assert keys(tree) == found
    return found


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("hw/array.py", "old = Mux(later.first, 0, found)", "old = Mux(later.first, 1, found)", {"verilog"}),
        ("compiler/machine/fixed.py", "EXP2_GUARD = 4", "EXP2_GUARD = 5", {"verilog", "hls"}),
        ("hw/hls/kernels/softmax.hpp", "#pragma once", "#pragma once\n", {"verilog", "hls"}),
        ("sim/native/cycles.cpp", "namespace", "\nnamespace", {"native"}),
    ],
)
def test_a_changed_source_gives_another_key(tree, before, file, old, new, changed):
    path = tree / file
    text = path.read_text()
    assert old in text
    try:
        path.write_text(text.replace(old, new, 1))
        after = keys(tree)
    finally:
        path.write_text(text)
    assert {kind for kind in before if after[kind] != before[kind]} == changed


def test_a_new_file_in_a_folder_of_a_folder_counts(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.py").write_text("a")
    first = list(cache.sources(tmp_path))
    (tmp_path / "folder" / "a.py").write_text("a")
    assert list(cache.sources(tmp_path)) == [*first, "folder/a.py", b"a"]
    (tmp_path / "folder" / "a.pyc").write_text("not a source")
    assert len(list(cache.sources(tmp_path))) == 4


def made(path: Path) -> None:
    (path / "inner").mkdir()
    (path / "inner" / "result").write_text("whole")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLOOM_BUILD", str(tmp_path / "a folder"))
    return cache.entry("kind", "key", made)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: (path / "inner" / "result").write_text("half"),
        lambda path: (path / "inner" / "result").unlink(),
        lambda path: (path / "another").write_text("stray"),
        lambda path: (path / cache.SEAL).write_text("{"),
        lambda path: (path / cache.SEAL).unlink(),
    ],
)
def test_a_damaged_entry_is_built_again(kept, harm):
    harm(kept)
    assert cache.entry("kind", "key", made) == kept
    assert [file.name for file in sorted(kept.iterdir())] == [cache.SEAL, "inner"]
    assert (kept / "inner" / "result").read_text() == "whole"


def test_a_whole_entry_is_not_built_again(kept):
    assert cache.entry("kind", "key", lambda path: pytest.fail("built twice")) == kept


def test_a_read_only_cache_is_used(kept, monkeypatch):
    """Also where no lock can be taken; what is not there is told."""

    def refuse(*_args, **_kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(cache.os, "open", refuse)
    assert cache.entry("kind", "key", made) == kept
    with pytest.raises(cache.CacheError, match="must be writable to build what is not there yet, and"):
        cache.entry("kind", "other", made)


def test_a_cache_that_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHLOOM_BUILD", str(tmp_path / "file"))
    with pytest.raises(cache.CacheError, match="file/kind must be a folder to write to, and is not: Not a directory"):
        cache.directory("kind")
