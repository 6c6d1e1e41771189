"""What the benchmark's machines take of a device; and how fast the small one runs on an ECP5, routed by nextpnr.

`python -m benchmarks.area [names of configs]`. Results are kept in `results/area.json` by a hash of the design and of
the tools, so that only machines that changed are built again. No vendor tool takes part: timing on Xilinx devices is
not known, and Vivado would count somewhat differently.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.configs import CONFIGS, DEVICES
from patchloom.boards.area import PLACE, clock, design, measure, router
from patchloom.boards.description import Family
from patchloom.boards.place import ROUTER
from patchloom.hw import cache

RESULTS = Path(__file__).parent / "results" / "area.json"
FAMILIES: dict[str, Family] = {"ecp5-85k": "ecp5", "xcup": "xcup"}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """An `Area` and what was found besides."""

    dsp: int
    bram: float
    lut: int
    ff: int
    fmax_mhz: float | None = None  # None where nothing was routed
    routed: bool | None = None
    seconds: float = 0.0
    date: str = ""


def area(name: str, progress: Progress = print) -> Measured:
    """Of a config by name, from `RESULTS` if nothing has changed."""
    family = FAMILIES[DEVICES[name]]
    tools = () if family == "xcup" else (*PLACE, *ROUTER)
    key = cache.digest(design(CONFIGS[name]), DEVICES[name], version("pyosys"), *router()[:1], *tools)
    if key not in known().get(name, {}):
        begin = time.monotonic()
        progress(f"{name}: to {DEVICES[name]}")
        made = measure(CONFIGS[name], family)
        progress(f"{name}: {made}")
        fmax, routed = clock(CONFIGS[name]) if family == "ecp5" else (None, None)
        when = {"seconds": round(time.monotonic() - begin), "date": datetime.now(UTC).date().isoformat()}
        found = asdict(made) | {"fmax_mhz": fmax, "routed": routed} | when
        # Another one may have been measured since.
        RESULTS.write_text(json.dumps(known() | {name: {key: found}}, indent=1) + "\n")
    return Measured(**known()[name][key])


def known() -> dict[str, dict[str, dict[str, float]]]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def measured(name: str) -> Measured | None:
    """What `RESULTS` holds, whichever version of the machine it is of."""
    return next((Measured(**found) for found in known().get(name, {}).values()), None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CONFIGS))
    for chosen in parser.parse_args().names:
        print(chosen, area(chosen))
