"""nextpnr-ecp5: a netlist placed and routed, its progress followed, its reports read."""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchloom.boards import tools
from patchloom.boards.description import BoardError

# The default placer's wires are a fifth longer, the default router is many times slower, and with --tmg-ripup router2
# never ends where a clock cannot be met.
OPTIONS = ("--placer", "static", "--router", "router2", "--timing-allow-fail")
# Of router2, which nextpnr takes from the netlist alone: ways as short as they can be found, and more room for detours.
# By default it looks in the direction of the target alone, and with 85 % of an ECP5's multipliers and memories in use
# does not end.
SETTINGS = {"router2/estimateWeight": "1.0", "router2/bbMargin/x": "5", "router2/bbMargin/y": "5"}
STUCK = 40  # iterations of the router since fewest wires were overused; of so few wires one takes seconds
PACKAGES = {"381": "CABGA381", "554": "CABGA554"}
PART = re.compile(r"LFE5(?P<kind>UM5G|UM|U)-(?P<size>\d+)F-(?P<speed>\d)BG(?P<pins>\d+)[CI]")
FMAX = re.compile(
    r"Max frequency for clock +'(?P<clock>[^']+)': +(?P<mhz>[\d.]+) MHz \((?:PASS|FAIL) at (?P<asked>[\d.]+)"
)
ITERATION = re.compile(r"iter=(?P<iteration>\d+) .*overused=(?P<overused>\d+)")
USED = re.compile(r"(?P<kind>TRELLIS_COMB|TRELLIS_FF|DP16KD|MULT18X18D): +(?P<used>\d+)/ *(?P<of>\d+)")
STAGES = {"Packing": "pack", "placer": "place", "Routing": "route", "router2": "route"}

HOPE = 0.85  # of the clock asked for, that a placed design's estimate must be: routed ones had up to 15 % more
ROUTER = (*OPTIONS, json.dumps(SETTINGS))  # all that nextpnr is told
RULES = (*ROUTER, str(HOPE), str(STUCK))  # that an outcome depends on

Watch = Callable[[str, str], None]  # stage, and what is new of it


@dataclass(frozen=True)
class Clock:
    name: str
    mhz: float
    asked: float

    @property
    def met(self) -> bool:
        return self.mhz >= self.asked

    def __str__(self) -> str:
        return f"{self.name} {self.mhz:.1f} MHz of {self.asked:g} asked"


class Missed(tools.BuildError):
    """The timing, before or after routing, or the routing itself."""

    def __init__(self, seed: int, clocks: list[Clock], when: str) -> None:
        self.seed, self.clocks, self.when = seed, clocks, when
        missed = ", ".join(str(clock) for clock in clocks if not clock.met)
        super().__init__(f"seed {seed}, {when}" + (f": {missed}" if missed else ""))


@dataclass(frozen=True)
class Routed:
    """A routed design that meets its timing."""

    seed: int
    clocks: tuple[Clock, ...]
    used: dict[str, tuple[int, int]]  # by kind of cell: used, available
    iterations: int  # of the router
    seconds: int  # of placing and routing, on the computer that did it


def device_options(part: str) -> list[str]:
    """Nextpnr's for a part as one orders it."""
    found = PART.fullmatch(part)
    if found is None or found["pins"] not in PACKAGES:
        raise BoardError(f"part must be an ECP5 in one of {', '.join(PACKAGES.values())}, not {part}")
    kind = found["kind"].lower().removeprefix("u")
    prefix = {"": "", "m": "um-", "m5g": "um5g-"}[kind]
    return [f"--{prefix}{found['size']}k", "--package", PACKAGES[found["pins"]], "--speed", found["speed"]]


def settings_in(top: str) -> tuple[str, str]:
    """What in a netlist of Yosys is replaced by what, so that it holds `SETTINGS`."""
    head = f'    "{top}": {{\n'
    return head, f'{head}      "settings": {json.dumps(SETTINGS)},\n'


def with_settings(netlist: str, top: str) -> str:
    head, replacement = settings_in(top)
    if netlist.count(head) != 1:
        raise tools.BuildError(f"the netlist must have one module {top}, as Yosys writes it, not {netlist.count(head)}")
    return netlist.replace(head, replacement)


def route(folder: Path, part: str, seed: int, watch: Watch) -> Routed:
    """netlist.json and soc.lpf of a folder to soc.config, report.json and nextpnr.log there.

    Raises `Missed` before routing where a clock's estimate is far below what is asked, and where the router is stuck.
    """
    files = ("--json", "netlist.json", "--lpf", "soc.lpf", "--textcfg", "soc.config", "--report", "report.json")
    command = [tools.ecp5()["nextpnr-ecp5"].command, *device_options(part), *files, *OPTIONS, "--seed", str(seed)]
    progress, begin = _Progress(seed, watch), time.monotonic()
    tools.call(command, folder, "nextpnr.log", progress)
    report = json.loads((folder / "report.json").read_text())
    clocks = clocks_of(report)
    if not all(clock.met for clock in clocks):
        raise Missed(seed, list(clocks), "routed")
    used = {kind: (cells["used"], cells["available"]) for kind, cells in report["utilization"].items() if cells["used"]}
    return Routed(seed, clocks, used, progress.iterations, round(time.monotonic() - begin))


def clocks_of(report: dict[str, Any]) -> tuple[Clock, ...]:
    return tuple(
        Clock(plain(name), clock["achieved"], clock["constraint"]) for name, clock in sorted(report["fmax"].items())
    )


def plain(net: str) -> str:
    """A clock's name as the design has it."""
    return net.removeprefix("$glbnet$")


class _Progress:
    """What nextpnr prints, line by line."""

    def __init__(self, seed: int, watch: Watch) -> None:
        self.seed, self.watch = seed, watch
        self.stage, self.iterations = "pack", 0
        self.least, self.least_at = sys.maxsize, 0  # wires overused, and since which iteration
        self.estimates: dict[str, Clock] = {}

    def __call__(self, line: str) -> None:
        if (stage := next((s for word, s in STAGES.items() if word in line), None)) and stage != self.stage:
            self._enter(stage)
        if found := FMAX.search(line):
            clock = Clock(plain(found["clock"]), float(found["mhz"]), float(found["asked"]))
            self.estimates[clock.name] = clock
            self.watch(self.stage, str(clock))
        elif found := USED.search(line):
            self.watch(self.stage, f"{found['kind']} {found['used']} of {found['of']}")
        elif found := ITERATION.search(line):
            self._iteration(int(found["iteration"]), int(found["overused"]))

    def _enter(self, stage: str) -> None:
        if stage == "route" and any(clock.mhz < HOPE * clock.asked for clock in self.estimates.values()):
            raise Missed(self.seed, list(self.estimates.values()), "placed")
        self.stage = stage
        self.watch(stage, "")

    def _iteration(self, iteration: int, overused: int) -> None:
        self.iterations = iteration
        if overused <= self.least:
            self.least, self.least_at = overused, iteration
        if iteration > self.least_at + STUCK:
            when = f"router stuck in iteration {iteration}, no fewer than {self.least} wires overused"
            raise Missed(self.seed, list(self.estimates.values()), when)
        self.watch(self.stage, f"iteration {iteration}, {overused} wires overused")
