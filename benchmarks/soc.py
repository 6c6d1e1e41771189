"""Whole SoCs with LiteDRAM under Verilator, beside the interpreter and the cycle model: `python -m benchmarks.soc`.

The example is uploaded and run over the SoC's own link. The reference workload's image is put straight into the model
of the memory; its frames go over the link. Cycles are those that the machine counts itself.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.configs import BOARDS, on_board
from benchmarks.run import workload
from examples.fashion_scenes.evaluate import HERE, load_scenes, network_input
from patchloom.boards.board import Board, board
from patchloom.boards.simulated import simulate
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.frames import input_region
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.schedule import schedule
from patchloom.design import compile_design, load_design
from patchloom.host.device import Region
from patchloom.host.session import Session
from patchloom.host.transports.soc import SocDevice
from patchloom.sim.cycles import predict, queue_lengths
from patchloom.sim.interpret import execute
from patchloom.sim.soc import SimulatedSoc

RESULTS = Path(__file__).parent / "results" / "soc.json"
WORKLOADS = ("fashion_scenes", "m3vit_t")
PRELOADED = 1 << 20  # bytes of an image that is not sent over the link

Elements = NDArray[np.int16]
Row = dict[str, Any]
app = typer.Typer(add_completion=False)


class Preloading(SocDevice):
    """A large image goes straight into the memory's model."""

    simulated: SimulatedSoc
    image = Region(0, 0)

    @classmethod
    def on(cls, simulated: SimulatedSoc) -> "Preloading":
        device = cls.uart(simulated.map, simulated.stream())
        device.simulated = simulated
        return device

    def allocate(self, size: int) -> Region:
        region = super().allocate(size)
        if size >= PRELOADED:
            self.image = region
        return region

    def _in_image(self, address: int) -> bool:
        return 0 <= address - self.image.address < self.image.size

    def crc(self, region: Region) -> int:
        """None of the image's, so that it is put: the simulated machine would sum it for minutes."""
        return -1 if self._in_image(region.address) else super().crc(region)

    def put(self, address: int, data: bytes) -> None:
        if self._in_image(address):
            self.simulated.preload(address, data + bytes(-len(data) % 64))
        else:
            super().put(address, data)


def fashion_scenes(machine: Config) -> tuple[Program, NDArray[np.float32]]:
    """The example, and one of its scenes."""
    design = replace(load_design(HERE / "design.yaml"), config=machine)
    return compile_design(design), network_input(load_scenes().images[:1])[0]


def m3vit_t(machine: Config) -> tuple[Program, NDArray[np.float32]]:
    """The reference workload, and its picture."""
    work = workload()
    return schedule(work.quantised, machine), work.image[0].numpy()


def measure(found: Board, name: str) -> Iterator[Row]:
    """A row per task, one after another on one SoC."""
    program, image = {"fashion_scenes": fashion_scenes, "m3vit_t": m3vit_t}[name](on_board(found.name))
    with simulate(found.name, program.config) as soc:
        begin, at = time.process_time(), soc.cycles
        session = Session(Preloading.on(soc), program)
        common: Row = {
            "board": found.name,
            "workload": name,
            "image_bytes": len(program.image),
            "image": "preloaded" if len(program.image) >= PRELOADED else "uploaded over the link",
            "upload_cycles": soc.cycles - at,
            "upload_cpu_seconds": round(time.process_time() - begin, 1),
        }
        for task in program.tasks:
            yield common | frame(found, session, soc, task, image)


def frame(found: Board, session: Session, soc: SimulatedSoc, task: Task, image: NDArray[np.float32]) -> Row:
    region, _ = input_region(task, {task.inputs[0].name: image})
    begin, at = time.process_time(), soc.cycles
    output, cycles, saturations = session.frame(region, task.name)
    seconds, passed = time.process_time() - begin, soc.cycles - at
    expected, expected_saturations = execute(session.program, task.name, region)
    queues = queue_lengths(session.program, task.name, region)
    predicted = predict(session.program, task.name, queues=queues, **found.memory.timing).cycles
    return {
        "task": task.name,
        "cycles": cycles,
        "predicted_cycles": predicted,
        "predicted_with": found.memory.timing,
        "cycles_beyond_prediction_percent": round(100 * (cycles / predicted - 1), 3),
        "identical": bool(np.array_equal(output, expected)) and saturations == expected_saturations,
        "elements": output.size,
        "saturations": saturations,
        **{key: session.device.read(key) for key in ("stall_weights", "stall_writes")},
        "milliseconds_at_board_clock": round(cycles / found.clock_hz * 1e3, 2),
        "sim_khz_of_cpu_time": round(passed / seconds / 1e3, 1),
        "sim_cpu_seconds": round(seconds, 1),
    }


@app.command()
def main(
    boards: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(BOARDS)}; both if none is named")] = None,
    only: Annotated[str | None, typer.Option("--workload", help=f"one of {', '.join(WORKLOADS)}")] = None,
    results: Path = RESULTS,
) -> None:
    """Measure, print, and write the results; those of other boards and workloads are kept. Fails on a difference."""
    rows: list[Row] = json.loads(results.read_text())["rows"] if results.exists() else []
    for found in map(board, boards or BOARDS):
        for name in [only] if only else WORKLOADS:
            for row in measure(found, name):
                typer.echo(json.dumps(row))
                rows = [other for other in rows if _key(other) != _key(row)] + [row]
                save(results, rows)
    if not all(row["identical"] for row in rows):
        raise SystemExit("a SoC and the interpreter differ")


def _key(row: Row) -> tuple[str, ...]:
    return row["board"], row["workload"], row["task"]


def save(path: Path, rows: list[Row]) -> None:
    command = " ".join(["python -m benchmarks.soc", *sys.argv[1:]])
    content = {"command": command, "date": datetime.now(UTC).date().isoformat(), "rows": sorted(rows, key=_key)}
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    app()
