"""A generated folder that a user asks for: whole or not at all, and nothing of the user's is touched."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from patchloom.compiler.machine.errors import Error

MANIFEST = "manifest.json"
PRODUCTS = "build"  # what tools make in a project's folder by its scripts: theirs, never checked, moved along
Files = Mapping[str, str | bytes]  # by path within the folder


class ProjectError(Error, ValueError):
    """A folder that holds what nobody may overwrite."""


def write_folder(path: Path, files: Files) -> None:
    """Raises `ProjectError` if `path` holds anything."""
    path = Path(path)
    if path.exists() and not _is_empty(path):
        raise ProjectError(f"{path} exists and is not an empty directory: remove it or choose another path")
    _replace(path, files)


def write_project(path: Path, files: Files, facts: Mapping[str, Any]) -> None:
    """As `write_folder`, with a manifest of `facts` and of every file's SHA-256. Its own work, unaltered, it replaces.

    What lies in `PRODUCTS` stays.

    Killed in between, it leaves the old folder, none, or the new one, and perhaps a hidden one beside it.
    """
    path = Path(path)
    check_replaceable(path)
    digests = {name: _sha256(content) for name, content in sorted(files.items())}
    manifest = json.dumps({**facts, "sha256": digests}, indent=1) + "\n"
    _replace(path, {**files, MANIFEST: manifest})


def check_replaceable(path: Path) -> None:
    """Raises what `write_project` would, so that nobody works for it in vain."""
    if path.exists() and not (_is_empty(path) or is_unaltered(path)):
        raise ProjectError(
            f"{path} exists and holds something else than an unaltered project: remove it or choose another path"
        )


def files_under(path: Path) -> Iterator[Path]:
    """In the order of their names."""
    return (file for file in sorted(path.rglob("*")) if not file.is_dir())


def is_unaltered(path: Path) -> bool:
    """Whether the folder holds what its manifest says, and no more but `PRODUCTS`."""
    try:
        stated = json.loads((path / MANIFEST).read_bytes())["sha256"]
        found = {
            file.relative_to(path).as_posix(): file for file in files_under(path) if path / PRODUCTS not in file.parents
        }
        del found[MANIFEST]
        return {name: _sha256(file.read_bytes()) for name, file in found.items()} == stated
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _sha256(content: str | bytes) -> str:
    return hashlib.sha256(_raw(content)).hexdigest()


def _raw(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _replace(path: Path, files: Files) -> None:
    """Written beside, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = temporary / "new"
        new.mkdir()
        for name, content in files.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(_raw(content))
        if path.exists() and not _is_empty(path):
            path.replace(temporary / "old")
            if (temporary / "old" / PRODUCTS).is_dir():
                (temporary / "old" / PRODUCTS).replace(new / PRODUCTS)
        new.replace(path)
    finally:
        shutil.rmtree(temporary)
