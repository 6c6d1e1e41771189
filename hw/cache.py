"""Generated files that are kept: where they lie, and the keys they are found by.

A key covers everything that goes into an entry, so that an entry is never stale: its tools, its parameters, and every
source file under the folders it is made from.
"""

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from patchloom.compiler.machine.errors import Error

PACKAGE = Path(__file__).parents[1]
RTL = (PACKAGE / "hw", PACKAGE / "compiler" / "machine")  # whatever a unit's Verilog can depend on
UNSOURCED = {"__pycache__", ".pyc", ".pyo"}
SEAL = ".complete"  # of an entry: what each of its files must be


class CacheError(Error, OSError):
    """Generated files cannot be kept where they should be."""


def directory(kind: str) -> Path:
    """Where entries of a kind are kept: under $PATCHLOOM_BUILD, in build/ of a checkout, or in the user's cache."""
    path = Path(os.environ.get("PATCHLOOM_BUILD") or _default()) / kind
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{path} must be a folder to write to, and is not: {error.strerror}") from error
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
    """The directory of a key, filled by `build` at most once, whoever asks at the same time.

    An entry that is not as it was built is built again. One that is whole is used wherever it can be read.
    """
    path = directory(kind) / key
    if _is_whole(path):
        return path
    with _locked(directory(kind) / f"{key}.lock"):
        if not _is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            build(path)
            (path / SEAL).write_text(json.dumps(_checksums(path)))
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    except OSError as error:
        raise CacheError(
            f"{path.parent} must be writable to build what is not there yet, and is not: {error.strerror}; "
            "$PATCHLOOM_BUILD names another place"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _checksums(path: Path) -> dict[str, int]:
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != SEAL)
    return {str(file.relative_to(path)): zlib.crc32(file.read_bytes()) for file in files}


def _is_whole(path: Path) -> bool:
    try:
        return bool(json.loads((path / SEAL).read_bytes()) == _checksums(path))
    except (OSError, ValueError):
        return False
