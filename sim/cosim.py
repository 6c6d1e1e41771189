"""cocotb on a component, from pytest in one line: `simulate(Reader(config), BENCH, case={"seed": 1})`."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from cocotb_tools.runner import Verilator
from numpy.typing import NDArray

from patchloom.hw import cache
from patchloom.hw.verilog import emit
from patchloom.sim import toolchain
from patchloom.sim.bench import CASE, RESULT

RUNTIME = ("verilated", "verilated_dpi", "verilated_vpi", "verilated_threads")
BUILD_ARGS = (*toolchain.QUIET, *toolchain.QUICK, "-CFLAGS", "-O1")
logging.getLogger("Verilator").setLevel(logging.WARNING)


class SimulationError(AssertionError):
    """A cocotb test failed, the simulator crashed or the wall clock ran out."""


class _Runner(Verilator):
    """cocotb's runner in our environment, with a wall-clock deadline."""

    def __init__(
        self, *, path: Sequence[Path] = (), objects: Sequence[Path] = (), timeout: float | None = None
    ) -> None:
        super().__init__()
        self._path, self._objects, self._timeout, self.returncode = path, objects, timeout, 0

    def _simulator_in_path_build_only(self) -> None:
        self.executable = str(toolchain.verilator())

    def _set_env_common(self) -> None:
        super()._set_env_common()
        libraries = self.env["PATH"].removeprefix(os.environ.get("PATH", ""))
        self.env.update(toolchain.environment())
        self.env["PATH"] += libraries
        self.env["PYTHONPATH"] = os.pathsep.join([*map(str, self._path), *sys.path])

    def _execute_cmds(self, cmds: Sequence[Sequence[str]], cwd: Any, stdout: TextIO | None = None) -> None:
        for words in cmds:
            # Only the ports are looked at: public inner signals make large designs slow to build and to run.
            command = [word for word in words if word != "--public-flat-rw"]
            for file in self._objects if command[0] == "make" else ():
                shutil.copyfile(file, self.build_dir / file.name)  # newer than the makefile: done
            done = subprocess.run(
                command,
                cwd=cwd,
                env=self.env,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                timeout=self._timeout,
                check=False,
            )
            self.returncode = done.returncode
            if done.returncode:
                return


def build(verilog: str, name: str, *, waves: bool) -> Path:
    """The directory with the simulator of a design; built once per content."""

    def make(directory: Path) -> None:
        source, ports = directory / f"{name}.v", directory / "ports.vlt"
        source.write_text(verilog)
        ports.write_text(_public_ports(verilog, name))
        runner = _Runner(objects=toolchain.runtime([*RUNTIME, *(["verilated_vcd_c"] if waves else [])]))
        runner.build(
            sources=[ports, source],
            hdl_toplevel=name,
            build_dir=directory,
            build_args=list(BUILD_ARGS),
            timescale=("1ns", "1ps"),
            waves=waves,
            log_file=directory / "build.log",
        )
        if runner.returncode:
            raise toolchain.ToolchainError(f"{name} did not build:\n{(directory / 'build.log').read_text()[-6000:]}")
        toolchain.drop_intermediates(directory)

    key = cache.digest(verilog, name, str(waves), toolchain.version(), *BUILD_ARGS)
    return cache.entry("cosim", key, make)


def _public_ports(verilog: str, name: str) -> str:
    """A Verilator configuration that opens the top level's ports to the test bench."""
    top = verilog[verilog.index(f"module {name}(") :]
    ports = top[top.index("(") + 1 : top.index(")")].split(",")
    lines = [f'public_flat_rw -module "{name}" -var "{port.strip()}"' for port in ports]
    return "\n".join(["`verilator_config", *lines]) + "\n"


def simulate(
    component: Any,
    module: str | Path,
    *,
    case: Mapping[str, Any] | None = None,
    tests: str | Sequence[str] | None = None,
    seed: int = 0,
    plusargs: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    waves: bool = False,
    timeout: float = 300.0,
    name: str = "top",
) -> dict[str, NDArray[Any]]:
    """Run the cocotb tests of `module` (a name, or a .py file) on `component`; raises if one fails.

    `case` holds arrays and numbers that the tests find as `bench.case()`; what they leave with `bench.save(...)` is
    returned. `tests` picks tests by name. `waves` leaves a VCD file beside the log, under build/runs. `timeout` is
    wall-clock seconds for the simulation, without the build.
    """
    file = Path(module)
    paths = [file.resolve().parent] if file.suffix == ".py" else []
    directory = build(emit(component, name), name, waves=waves)
    run = Path(tempfile.mkdtemp(prefix=f"{file.stem}-", dir=cache.directory("runs")))
    np.savez(run / "case.npz", **dict(case or {}))
    runner = _Runner(path=paths, timeout=timeout)
    try:
        runner.test(
            test_module=file.stem if paths else str(module),
            hdl_toplevel=name,
            hdl_toplevel_lang="verilog",
            testcase=tests,
            seed=seed,
            plusargs=list(plusargs),
            extra_env={CASE: str(run / "case.npz"), RESULT: str(run / "result.npz"), **(env or {})},
            waves=waves,
            build_dir=directory,
            test_dir=run,
            results_xml=str(run / "results.xml"),
            log_file=run / "log.txt",
        )
    except subprocess.TimeoutExpired:
        raise SimulationError(f"{module} was still running after {timeout:g} s\n{_tail(run)}") from None
    except SystemExit:  # how the runner reports failures under pytest; the results say more
        pass
    _raise_failures(module, run, runner.returncode)
    result = dict(np.load(run / "result.npz")) if (run / "result.npz").exists() else {}
    if not waves:
        shutil.rmtree(run)
    return result


def _tail(run: Path) -> str:
    log = run / "log.txt"
    return f"...{log.read_text(errors='replace')[-4000:]}\n(in {log})" if log.exists() else f"(no log in {run})"


def _raise_failures(module: str | Path, run: Path, returncode: int) -> None:
    results = run / "results.xml"
    if not results.exists():
        raise SimulationError(f"{module}: the simulator ended with {returncode} and no results\n{_tail(run)}")
    cases = list(xml.etree.ElementTree.parse(results).iter("testcase"))
    failures = [
        f"{case.get('name')}: {found.text or found.get('message')}"
        for case in cases
        if (found := case.find("failure") if case.find("failure") is not None else case.find("error")) is not None
    ]
    if failures or returncode:
        raise SimulationError(
            "\n".join([f"{module} failed", *failures, *([] if failures else [_tail(run)]), f"(in {run})"])
        )
    if all(case.find("skipped") is not None for case in cases):
        raise SimulationError(f"{module}: no test ran\n{_tail(run)}")
