"""Generated files that are kept: where they lie, and the keys they are found by.

A key covers everything that goes into an entry, so that an entry is never stale: its tools, its parameters, and every
source file under the folders it is made from.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from platformdirs import user_cache_path

PACKAGE = Path(__file__).parents[1]
RTL = (PACKAGE / "hw", PACKAGE / "compiler" / "machine")  # whatever a unit's Verilog can depend on
UNSOURCED = {"__pycache__", ".pyc", ".pyo"}


def directory(kind: str) -> Path:
    """Where entries of a kind are kept: under $PATCHLOOM_BUILD, in build/ of a checkout, or in the user's cache."""
    path = Path(os.environ.get("PATCHLOOM_BUILD") or _default()) / kind
    path.mkdir(parents=True, exist_ok=True)
    return path


def _default() -> Path:
    checkout = PACKAGE.parent
    return checkout / "build" if (checkout / "pyproject.toml").is_file() else user_cache_path("patchloom")


def digest(*parts: str | bytes) -> str:
    """Key of an entry."""
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        total.update(len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()[:20]


def sources(*places: Path) -> Iterator[str | bytes]:
    """Name and content of every file under the folders, and of the files themselves."""
    for place in places:
        files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
        for file in files:
            if UNSOURCED.isdisjoint({file.suffix, file.parent.name}):
                yield file.name if file == place else file.relative_to(place).as_posix()
                yield file.read_bytes()


def text(kind: str, key: str, make: Callable[[], str]) -> str:
    """The text of a key, made at most once."""
    return (entry(kind, key, lambda path: _write(path / "text", make())) / "text").read_text()


def _write(path: Path, content: str) -> None:
    path.write_text(content)


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory of a key, filled by `build` at most once, whoever asks at the same time."""
    path = directory(kind) / key
    complete = path / ".complete"
    if complete.exists():
        return path
    with (directory(kind) / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            build(path)
            complete.touch()
    return path
