"""The bare core's self-test in the simulators that are here: `python -m benchmarks.core [icarus] [verilator]`.

Of several Configs; results go to results/core.json. Fails if one does not pass.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.configs import CONFIGS
from patchloom.boards.core import write_core
from patchloom.compiler.machine.config import Config
from patchloom.sim import toolchain

RESULTS = Path(__file__).parent / "results" / "core.json"
SMALL = {"scratchpad_chunks": 1024, "max_rows": 16, "statistics_rows": 128, "command_depth": 128, "fifo_beats": 64}
MACHINES = {
    "8 x 8, bus of 64": Config(inputs=8, outputs=8, lanes=4, **SMALL),
    "8 x 16 of 16 bits, bus of 128": Config(
        inputs=8, outputs=16, lanes=8, bus_width=128, weight_width=16, activation_width=16, **SMALL
    ),
    "8 x 8 for PYNQ-Z2": replace(CONFIGS["ulx3s"], bus_width=64),
}
VERSIONS = {"icarus": ("iverilog", "-V"), "verilator": ("verilator", "--version")}
PASSED = re.compile(r"^PASS: frame selftest, (?P<elements>\d+) elements, (?P<cycles>\d+) cycles$", re.MULTILINE)


def here() -> list[str]:
    """Simulators that this computer has."""
    path = environment()["PATH"]
    return [name for name, (command, _) in VERSIONS.items() if shutil.which(command, path=path)]


def environment() -> dict[str, str]:
    return dict(os.environ) | toolchain.environment()


def version(simulator: str) -> str:
    done = subprocess.run(VERSIONS[simulator], capture_output=True, text=True, check=True, env=environment())
    return done.stdout.splitlines()[0]


def passed(config: Config, simulator: str) -> dict[str, Any]:
    """What the bench says. Raises `RuntimeError` if it does not pass."""
    with tempfile.TemporaryDirectory(prefix="patchloom-") as folder:
        write_core(config, Path(folder) / "core")
        begin, command = time.monotonic(), ["make", simulator]
        done = subprocess.run(
            command, cwd=Path(folder) / "core", capture_output=True, text=True, check=False, env=environment()
        )
    found = PASSED.search(done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"{simulator}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {
        "elements": int(found["elements"]),
        "cycles": int(found["cycles"]),
        "seconds": round(time.monotonic() - begin),
        "version": version(simulator),
        "command": f"python -m benchmarks.core {simulator}",
        "date": datetime.now(UTC).date().isoformat(),
    }


def main(simulators: list[str]) -> None:
    for name, config in MACHINES.items():
        for simulator in simulators:
            made = passed(config, simulator)
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            known.setdefault(name, {})[simulator] = made
            RESULTS.write_text(json.dumps(known, indent=1) + "\n")
            print(name, simulator, made)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("simulators", nargs="*", default=here())
    try:
        main(parser.parse_args().simulators)
    except RuntimeError as error:
        sys.exit(str(error))
