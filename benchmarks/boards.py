"""Frames a second of models on every board, each on a machine sized for both: `python -m benchmarks.boards [models]`.

From the cycle model with each board's memory, results/boards.json; the table of docs/boards.md is theirs:
`python -m docs.boards`. No board ran this. With `--map`, Yosys counts what each machine of the results takes, which is
minutes for a large one; one that does not fit beside its SoC ends it with an error.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.run import workload
from benchmarks.vit import SIZE, ViT, deit_tiny, vit_small
from patchloom.boards.area import measure
from patchloom.boards.board import BOARDS, Board
from patchloom.boards.estimate import device_area, exceeds, soc_area
from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.frames import Samples
from patchloom.compiler.quantise import Precision, Quantised, quantise
from patchloom.design import load_design, load_module
from patchloom.hw.cache import RTL, digest, sources
from patchloom.sizing import Model, read_model, sized

COMMAND = "python -m benchmarks.boards"
RESULTS = Path(__file__).parent / "results" / "boards.json"
EXAMPLE = Path(__file__).parents[1] / "examples" / "fashion_scenes" / "design.yaml"
TRIES = 6


def fashion_scenes() -> tuple[Quantised, Samples]:
    design = load_design(EXAMPLE)
    images = design.calibration[""].load(design.preprocessing.get(""))
    graphs = capture(load_module(design), (torch.from_numpy(images[:1]).float(), 0), tasks=design.tasks)
    samples = dict.fromkeys(graphs[0].inputs(), images)
    return quantise(graphs, samples, Precision.parse(design.precision, design.overrides)), samples


def m3vit_t() -> tuple[Quantised, Samples]:
    work = workload()
    return work.quantised, {"image": work.image.numpy()}


def vit(make: Callable[[], ViT]) -> tuple[Quantised, Samples]:
    """With random weights, and an image of noise: cycles depend on neither."""
    image = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    samples = {"image": image.numpy()}
    return quantise(capture(make(), (image,)), samples, Precision.parse("w8a8")), samples


MODELS: dict[str, Callable[[], tuple[Quantised, Samples]]] = {
    "fashion_scenes": fashion_scenes,
    "M3ViT-T": m3vit_t,
    "DeiT-T": lambda: vit(deit_tiny),
    "ViT-S/16": lambda: vit(vit_small),
}


def result(model: Model, board: Board) -> dict[str, Any]:
    """What the model gets from the board, or why nothing."""
    try:
        _, budget = sized(model, board, tries=TRIES)
    except Error as error:
        return {"refused": str(error)}
    return {
        "config": changed(budget.config),
        "cycles": dict(budget.cycles),
        "frames_per_second": {task: round(rate, 3) for task, rate in budget.frames_per_second.items()},
        "bytes_read": dict(budget.bytes_read),
        "limit": budget.limit,
    }


def changed(config: Config) -> dict[str, Any]:
    """Fields that are not as `Config()` has them."""
    return {f.name: getattr(config, f.name) for f in fields(Config) if getattr(config, f.name) != f.default}


def results() -> dict[str, Any]:
    """By model and board."""
    return dict(json.loads(RESULTS.read_text())["models"]) if RESULTS.exists() else {}


def keep(name: str, board: Board, made: dict[str, Any]) -> None:
    known = results()  # another run may have written meanwhile
    known.setdefault(name, {})[board.name] = made
    RESULTS.write_text(json.dumps({"command": COMMAND, "models": known}, indent=1) + "\n")


def size(names: Sequence[str], boards: Sequence[Board]) -> None:
    for name in names:
        model = read_model(*MODELS[name]())
        for board in boards:
            made = {**result(model, board), "date": datetime.now(UTC).date().isoformat()}
            keep(name, board, made)
            print(name, board.name, made.get("frames_per_second", made.get("refused")), made.get("limit"), flush=True)


def map_each(names: Sequence[str], boards: Sequence[Board]) -> None:
    """Of the machines in the results, by Yosys: the SoC's share is that of the area model."""
    rtl = digest(*sources(*RTL))
    for name, board in itertools.product(names, boards):
        made = results()[name][board.name]
        if "refused" in made or made.get("mapped", {}).get("rtl") == rtl:
            continue
        area = measure(Config(**made["config"]), board.device.family)
        excess = exceeds(area + soc_area(board), device_area(board))
        mapped = {"machine": asdict(area), "soc": asdict(soc_area(board)), "fits": not excess, "rtl": rtl}
        keep(name, board, {**made, "mapped": {**mapped, "date": datetime.now(UTC).date().isoformat()}})
        print(name, board.name, area, "fits" if not excess else f"does not fit: {excess}", flush=True)
        if excess:
            sys.exit(f"{name} on {board.name}: {excess} of {device_area(board)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--board", action="append", choices=list(BOARDS), help="all if none is named")
    parser.add_argument("--map", action="store_true", help="the machines of the results by Yosys, no new ones")
    asked = parser.parse_args()
    (map_each if asked.map else size)(asked.models, [BOARDS[name] for name in asked.board or BOARDS])
