"""`patchloom flash`: a project's bitstream into its board, by openFPGALoader."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from patchloom.boards import tools
from patchloom.boards.board import board
from patchloom.boards.sources import MACHINE
from patchloom.boards.tools import BuildError
from patchloom.hw.folder import MANIFEST, ProjectError, is_unaltered

LOADER = "openFPGALoader"
LOG = "patchloom-flash.log"


def flash(project: Path, *, persistent: bool, folder: Path, watch: Callable[[str], None]) -> str:
    """Load the board that hangs on this computer; returns the board's name. `folder` takes the loader's log.

    Until power is cut, or into the flash memory that the FPGA starts from (`persistent`). Raises `ProjectError` for a
    folder that is no unaltered project with a bitstream, `BuildError` if the loader is missing or fails.
    """
    found, bitstream = _project(project)
    command = shutil.which(LOADER)
    if command is None:
        raise BuildError(
            f"loading a bitstream needs {LOADER}, which is not on PATH: most package managers have it as "
            "openfpgaloader, and https://trabucayre.github.io/openFPGALoader says how to install it"
        )
    where = ["--write-flash"] if persistent else []
    tools.call([command, "--board", found, *where, str(bitstream.resolve())], folder, LOG, watch)
    return found


def _project(path: Path) -> tuple[str, Path]:
    """The loader's name of the board, and the bitstream."""
    bitstream = path / f"{MACHINE}.bit"
    if not is_unaltered(path):
        raise ProjectError(f"{path} must be a project as `patchloom build` wrote it, unaltered, and is none")
    found = board(json.loads((path / MANIFEST).read_bytes())["board"])
    if not bitstream.exists():
        how = "build it without --sources-only" if found.tools == "open" else "README.md there says how to load it"
        raise ProjectError(f"{path} holds no {bitstream.name}: {how}")
    return found.built_by_litex().loader, bitstream
