"""`patchloom deploy`: a folder to copy to a board, or to the computer that a board hangs on.

Whole or not at all, and the same bytes of the same inputs; its manifest has a digest of every file. The driver takes
the folder as `project=`, and `patchloom flash` as a project.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from patchloom.boards.board import board
from patchloom.boards.description import Board
from patchloom.boards.wheel import wheel
from patchloom.compiler.machine.program import Program
from patchloom.compiler.machine.store import save
from patchloom.hw.folder import MANIFEST, PRODUCTS, ProjectError, files_under, is_unaltered, write_project

FORMAT, PROJECT = "patchloom deployment", "patchloom project"
BITSTREAM, NOTEBOOK = "patchloom.bit", "patchloom.ipynb"
SOC = "soc.json"  # of boards whose SoC is LiteX's
BARE_METAL = ("patchloom.h", "patchloom.c", "example.c", "patchloom_regs.h")
TEMPLATES = files("patchloom") / "boards" / "templates" / "deploy"
CELL = "# %%"  # begins a cell of the notebook's source, as Jupytext and editors know it


@dataclass(frozen=True)
class Deployed:
    board: Board
    bitstream: bool  # whether it is there


def deploy(program: Program, project: Path, output: Path) -> Deployed:
    """Of a Program and the project that `patchloom build` wrote for its board.

    Raises `ProjectError` for a project of another Config, and for an `output` that holds anything but its own work.
    """
    facts = _facts(project)
    _check_place(project, output)
    if facts["fingerprint"] != f"{program.config.fingerprint:08x}":
        raise ProjectError(f"{project} must be a project of the Program's Config, which it is not: build it again")
    found, made = board(facts["board"]), _from_project(project)
    name, content = wheel()
    made |= _program_files(program)
    made |= {
        f"driver/{name}": content,
        "validate.py": (TEMPLATES / "validate.py").read_text(),
        "README.md": readme(found, name, bitstream=BITSTREAM in made),
    }
    if found.zynq:
        made[NOTEBOOK] = notebook((TEMPLATES / "notebook.py").read_text())
    write_project(output, made, {**facts, "format": FORMAT})
    return Deployed(found, BITSTREAM in made)


def _facts(project: Path) -> dict[str, Any]:
    """The project's manifest without its digests."""
    if not is_unaltered(project):
        raise ProjectError(f"{project} must be a project as `patchloom build` wrote it, unaltered, and is none")
    facts = dict(json.loads((project / MANIFEST).read_bytes()))
    if facts.get("format") != PROJECT:
        raise ProjectError(f"{project} must be a project of a board, and its manifest says '{facts.get('format')}'")
    del facts["sha256"]
    return facts


def _check_place(project: Path, output: Path) -> None:
    if output.resolve() == project.resolve() or project.resolve() in output.resolve().parents:
        raise ProjectError(f"{output} must be outside of the project {project}, which it would alter")
    if (output / MANIFEST).is_file() and is_unaltered(output):
        stated = json.loads((output / MANIFEST).read_bytes())
        if stated.get("format") != FORMAT:
            raise ProjectError(f"{output} exists and is a '{stated.get('format')}': remove it or choose another path")


def _from_project(project: Path) -> dict[str, str | bytes]:
    """What a board needs of it: the bitstream, here or where Vivado leaves it; the SoC's map; the driver in C."""
    places = {
        BITSTREAM: (BITSTREAM, f"{PRODUCTS}/{BITSTREAM}", f"{PRODUCTS}/soc.bit"),
        SOC: (SOC,),
        **{f"c/{name}": (name,) for name in BARE_METAL},
    }
    found = {name: next(filter(Path.is_file, (project / place for place in of)), None) for name, of in places.items()}
    return {name: path.read_bytes() for name, path in found.items() if path}


def _program_files(program: Program) -> dict[str, str | bytes]:
    with tempfile.TemporaryDirectory(prefix="patchloom-") as folder:
        saved = Path(folder) / "program"
        save(program, saved)
        return {f"program/{file.name}": file.read_bytes() for file in files_under(saved)}


# --- Texts ---


def readme(found: Board, driver: str, *, bitstream: bool) -> str:
    kind = "zynq" if found.zynq else "litex"
    facts = {
        "title": found.title,
        "proven": found.proven,
        "driver": driver,
        "bitstream": "the bitstream" if bitstream else "not here yet: the bitstream",
        "missing": "" if bitstream else (TEMPLATES / f"missing.{found.tools}.md").read_text(),
        "loader": found.built_by_litex().loader if found.litex else "",
        "registers": f"{found.registers:x}",
    }
    return Template((TEMPLATES / f"README.{kind}.md").read_text()).substitute(facts)


def notebook(source: str) -> str:
    """Jupyter's format 4.5 of a script whose cells begin with `# %%`; those of `# %% [markdown]` are comments."""
    cells = [_cell(number, text) for number, text in enumerate(_cells(source))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def _cells(source: str) -> Iterator[str]:
    """What stands before the first is the script's own."""
    return iter(f"\n{source}".split(f"\n{CELL}")[1:])


def _cell(number: int, text: str) -> dict[str, Any]:
    kind, _, body = text.partition("\n")
    lines = body.strip("\n").splitlines(keepends=True)
    cell: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "id": f"cell-{number}",
        "metadata": {},
        "outputs": [],
    }
    if "markdown" in kind:
        cell = {"cell_type": "markdown", "id": f"cell-{number}", "metadata": {}}
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    return cell | {"source": lines}
