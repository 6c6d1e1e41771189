"""`patchloom build`: a board's project in a folder, and its bitstream where open tools make it.

Netlists and routed designs are kept by what they are made from, those whose timing was missed too: Programs that share
a Config share a bitstream, and a build that was stopped goes on where it was.
"""

import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchloom.boards import place, tools
from patchloom.boards.board import board
from patchloom.boards.description import Board, BoardError
from patchloom.boards.place import Clock, Missed, Routed, Watch
from patchloom.boards.project import NETLIST, SYNTHESIS, Project, project
from patchloom.boards.sources import MACHINE, SOC, check
from patchloom.boards.tools import BuildError
from patchloom.compiler.machine.program import Program
from patchloom.host.session import BUFFERS, frame_bytes
from patchloom.hw import cache
from patchloom.hw.folder import check_replaceable, write_project

SEEDS = 3  # tried one after another
OUTCOME, SECONDS = "outcome.json", "seconds"


@dataclass(frozen=True)
class Built:
    """What lies in the folder; `routed` is nothing where no bitstream was made."""

    path: Path
    project: Project
    routed: Routed | None


def build(
    program: Program,
    output: Path,
    *,
    board_name: str,
    sources_only: bool = False,
    seed: int = 1,
    watch: Watch = lambda stage, news: None,
) -> Built:
    """The project of a board for a Program's machine, whole or not at all; one of before at `output` is replaced.

    Raises `BoardError` for a board that cannot run the Program, `BuildError` for a missing tool or missed timing,
    `ProjectError` for a folder that holds something else.
    """
    found = board(board_name)
    check_program(found, program)
    check_replaceable(output)
    tools.need_packages("patchloom build")
    routing = found.tools == "open" and not sources_only
    if routing:
        tools.ecp5()
    watch("sources", f"{found.title}, {found.clock_hz / 1e6:g} MHz")
    made = project(found, program.config)
    found_routed, files = bitstream(made, seed, watch) if routing else (None, {})
    facts = {**made.facts, "bitstream": found_routed and {"seed": found_routed.seed, "tools": _routing_tools()}}
    write_project(output, {**made.files, **files}, facts)
    return Built(output, made, found_routed)


def check_program(found: Board, program: Program) -> None:
    """That this board can have the machine of the Program, which is no other board's, and that its memory holds it."""
    if program.board not in ("", found.name):
        raise BoardError(
            f"board must be {program.board}, which the Program's machine was sized for, not {found.name}: compile it "
            "for this board, or with a Config of its own for any"
        )
    check(found, program.config)
    needed = len(program.image) + BUFFERS * sum(frame_bytes(program))
    if needed > found.memory.bytes:
        raise BoardError(f"board {found.name} has {found.memory.bytes} bytes of memory, and the Program needs {needed}")
    if program.config.multipliers_packed and found.device.family != "xcup":
        raise BoardError(
            f"board {found.name}'s multipliers are too narrow for two products: Config.multipliers_packed must be False"
        )


# --- Synthesis and routing ---


def bitstream(made: Project, seed: int, watch: Watch) -> tuple[Routed, dict[str, str | bytes]]:
    """The first of `SEEDS` seeds that meets the timing, and its files: bitstream and reports."""
    missed: list[Missed] = []
    for tried in range(seed, seed + SEEDS):
        try:
            return routed(made, tried, watch)
        except Missed as error:
            watch("route", f"timing missed by {error}")
            missed.append(error)
    raise BuildError(
        f"no seed tried routes {made.board.name} with its timing met; another --seed, a smaller Config or a slower "
        "clock may help:\n" + "\n".join(map(str, missed))
    )


def netlist(made: Project, watch: Watch) -> Path:
    """Directory of the netlist, compressed, and of Yosys's log and statistics."""
    sources = {name: made.files[name] for name in made.sources}

    def synthesise(folder: Path) -> None:
        watch("synthesis", f"{sum(map(len, sources.values())) >> 10} kB of sources")
        with _workshop(folder, f"{NETLIST}.gz", "stat.json", "yosys.log", SECONDS) as work:
            for name, text in sources.items():
                (work / name).write_text(text)
            begin = time.monotonic()
            tools.yosys(SYNTHESIS, work, "yosys.log")
            (work / SECONDS).write_text(str(round(time.monotonic() - begin)))
            with (work / NETLIST).open("rb") as plain, gzip.open(work / f"{NETLIST}.gz", "wb", 6) as packed:
                shutil.copyfileobj(plain, packed)

    return cache.entry(
        "netlists", cache.digest(*_flat(sources), *SYNTHESIS, *_flat(tools.package_versions())), synthesise
    )


def synthesis_seconds(made: Project) -> int:
    """On the computer that made the netlist."""
    return int((netlist(made, lambda stage, news: None) / SECONDS).read_text())


def routed(made: Project, seed: int, watch: Watch) -> tuple[Routed, dict[str, str | bytes]]:
    """Raises `Missed`, at once where it is known."""
    begin = netlist(made, watch)
    part, constraints = made.board.device.part, made.files[f"{SOC}.lpf"]
    key = cache.digest(begin.name, constraints, part, *place.RULES, str(seed), *_flat(_routing_tools()))
    folder = cache.entry("bitstreams", key, lambda folder: _route(folder, begin, constraints, part, seed, watch))
    outcome = json.loads((folder / OUTCOME).read_text())
    if "missed" in outcome:
        raise Missed(seed, [Clock(**clock) for clock in outcome["missed"]], outcome["when"])
    reports = {f"reports/{name}": (folder / name).read_text() for name in ("report.json", "nextpnr.log")}
    reports["reports/cells.json"] = (begin / "stat.json").read_text()
    clocks = tuple(Clock(**clock) for clock in outcome["clocks"])
    used = {kind: (count, limit) for kind, (count, limit) in outcome["used"].items()}
    return Routed(**{**outcome, "clocks": clocks, "used": used}), {
        f"{MACHINE}.bit": (folder / f"{MACHINE}.bit").read_bytes(),
        **reports,
    }


def _route(folder: Path, begin: Path, constraints: str, part: str, seed: int, watch: Watch) -> None:
    """A folder of the cache: a bitstream that meets its timing, or what was missed."""
    outcome: dict[str, Any]
    with _workshop(folder, f"{MACHINE}.bit", "report.json", "nextpnr.log", OUTCOME) as work:
        with gzip.open(begin / f"{NETLIST}.gz", "rt") as packed:
            (work / NETLIST).write_text(place.with_settings(packed.read(), SOC))
        (work / f"{SOC}.lpf").write_text(constraints)
        watch("pack", f"seed {seed}, {tools.ecp5()['nextpnr-ecp5'].version}")
        try:
            outcome = asdict(place.route(work, part, seed, watch))
        except Missed as error:
            outcome = {"missed": [asdict(clock) for clock in error.clocks], "when": error.when}
        else:
            watch("bitstream", "")
            packer = tools.ecp5()["ecppack"].command
            tools.call([packer, "--compress", f"{SOC}.config", "--bit", f"{MACHINE}.bit"], work, "ecppack.log")
        (work / OUTCOME).write_text(json.dumps(outcome))


@contextmanager
def _workshop(folder: Path, *kept: str) -> Iterator[Path]:
    """A folder in `folder`, gone at the end; files named `kept` are moved out. A tool that outlives a build that was
    killed writes there, and not where the next build works.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="work-") as name:
        yield Path(name)
        for file in kept:
            if (Path(name) / file).exists():
                (Path(name) / file).replace(folder / file)


def _routing_tools() -> dict[str, str]:
    return {name: tool.version for name, tool in tools.ecp5().items()}


def _flat(texts: dict[str, str]) -> list[str]:
    return [text for item in sorted(texts.items()) for text in item]
