"""Whether what Vivado is given fits its boards, by Yosys: `python -m benchmarks.vendor [boards]`.

Of a board with a processing system the top is the machine in its wrapper, without the two SmartConnects and the reset
block, which are Vivado's; of the Arty it is LiteX's whole SoC. Counts go to results/vendor.json. Vivado would count
somewhat differently, and nothing is placed or timed.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.configs import CONFIGS
from patchloom.boards import sources, vivado
from patchloom.boards.area import FAMILIES, synthesise
from patchloom.boards.board import BOARDS, board
from patchloom.boards.core import WRAPPER
from patchloom.boards.description import Board
from patchloom.boards.project import project
from patchloom.boards.sources import DIGEST, MACHINE, SOC
from patchloom.compiler.machine.config import Config

RESULTS = Path(__file__).parent / "results" / "vendor.json"


def config_of(found: Board) -> Config:
    """The 8 x 8 machine of the benchmarks, with a bus as wide as the board's memory port."""
    return replace(CONFIGS["ulx3s"], bus_width=found.memory.bus_width)


def top(found: Board) -> tuple[str, dict[str, str]]:
    """Name of the top, and files; the machine as Yosys reads it quickly."""
    config = config_of(found)
    name, others = (WRAPPER, (WRAPPER,)) if found.zynq else (SOC, (SOC, DIGEST))
    files = vivado.sources(found, config)[1] if found.zynq else project(found, config).files
    made = {f"{MACHINE}.il": sources.machine_rtlil(config)}
    return name, made | {f"{other}.v": files[f"{other}.v"] for other in others}


def measure(found: Board) -> dict[str, Any]:
    name, files = top(found)
    rules, begin = FAMILIES[found.device.family], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="patchloom-") as folder:
        pads = "" if name == SOC else " -noiopad"  # a whole SoC has pins that are driven both ways
        passes = [line.replace("-top top", f"-top {name}").replace(" -noiopad", pads) for line in rules.passes]
        area = rules.area(synthesise(Path(folder), files, passes))
    device = found.device
    used = {"luts": area.lut, "ffs": area.ff, "dsps": area.dsp, "brams": area.bram}
    limits = {"luts": device.luts, "ffs": device.ffs, "dsps": device.dsps, "brams": device.brams}
    return {
        "top": name,
        "part": device.part,
        "config": asdict(config_of(found)),
        "used": used,
        "limits": limits,
        "fits": all(used[kind] <= limits[kind] for kind in used),
        "pyosys": version("pyosys"),
        "command": f"python -m benchmarks.vendor {found.name}",
        "seconds": round(time.monotonic() - begin),
        "date": datetime.now(UTC).date().isoformat(),
    }


def main(names: list[str]) -> None:
    for name in names:
        made = measure(board(name))
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(dict(sorted({**known, name: made}.items())), indent=1) + "\n")
        print(name, made["used"], "of", made["limits"])
        if not made["fits"]:
            sys.exit(f"{name}: the top does not fit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[name for name, found in BOARDS.items() if found.tools == "vivado"])
    main(parser.parse_args().names)
