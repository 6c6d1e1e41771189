"""Compiles the trained example and runs its held-back scenes in float, on the interpreter and on the RTL.

    python -m examples.demo

Prints a table; writes pictures and report.json to build/demo. Fails if the RTL and the interpreter differ in one
output element or in the number of saturations.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

import patchloom
from examples.fashion_scenes.evaluate import (
    HERE,
    METRICS,
    HeldBack,
    class_map,
    load_model,
    load_scenes,
    network_input,
    predict,
    score,
    trivial,
)
from examples.fashion_scenes.model import CLASSES, TASKS, FashionSceneViT, MixtureOfExperts
from patchloom.compiler.machine.commands import Command, Kind
from patchloom.compiler.machine.frames import Tell
from patchloom.design import compile_design, load_design
from patchloom.experts import Sets, sets_of_queues
from patchloom.progress import progress_bar
from patchloom.sim.interpret import State

SCENES = 64  # held back
PICTURES = 4  # scenes a picture shows
STYLES: dict[str, dict[str, Any]] = {
    "image": {"cmap": "gray", "vmin": 0, "vmax": 255},
    "segmentation": {"cmap": "tab20", "vmin": 0, "vmax": CLASSES - 1},
    "depth": {"cmap": "viridis", "vmin": 0.2, "vmax": 1},
}


@dataclass(frozen=True)
class Runs:
    """One task's outputs on every engine, scene by scene; the RTL may have run only the first ones.

    Experts are [mixture layers, frames, tokens, experts]: which ones a token is sent to.
    """

    float_outputs: NDArray[np.float32]
    float_experts: Sets = field(repr=False)
    interpreter: patchloom.Result
    interpreter_experts: Sets = field(repr=False)
    interpreter_beside_rtl: patchloom.Result  # on the same scenes
    rtl: patchloom.Result


def main(
    output: Annotated[Path, typer.Option(help="Folder for report.json and the pictures.")] = Path("build/demo"),
    rtl_scenes: Annotated[int, typer.Option(min=1, max=SCENES, help="Scenes per task that the RTL runs.")] = SCENES,
) -> None:
    """Compiles the trained example and runs its held-back scenes on every engine."""
    model, scenes = load_model(), load_scenes()
    with progress_bar() as tell:
        patchloom.save(compile_design(load_design(HERE / "design.yaml"), tell), output / "program")
        program = patchloom.load(output / "program")
        rtl = run_rtl(program, network_input(scenes.images[:rtl_scenes]), tell)
        runs = {task: run_others(program, model, scenes, task, rtl[task], tell) for task in TASKS}
    report = {task: figures(program, task, runs[task], scenes) for task in TASKS}
    (output / "report.json").write_text(json.dumps({"tasks": report}, indent=1) + "\n")
    for task in TASKS:
        draw(output / f"{task}.png", task, runs[task], scenes)
    Console().print(table(report))
    if not all(entry["identical"] for entry in report.values()):
        raise SystemExit("RTL and interpreter differ")


def run_rtl(program: patchloom.Program, images: NDArray[np.float32], tell: Tell) -> dict[str, patchloom.Result]:
    """Each task on a machine of its own, side by side."""

    def run(task: str) -> patchloom.Result:
        return patchloom.run(program, images, task=task, engine="rtl", progress=named(tell, "RTL"))

    with ThreadPoolExecutor() as pool:
        return dict(zip(TASKS, pool.map(run, TASKS), strict=True))


def run_others(
    program: patchloom.Program,
    model: FashionSceneViT,
    scenes: HeldBack,
    task: str,
    rtl: patchloom.Result,
    tell: Tell,
) -> Runs:
    images = network_input(scenes.images)
    float_outputs, float_experts = float_run(model, scenes.images, task)
    interpreter, experts = routed_sets(program, images, task, named(tell, "interpreter"))
    beside = patchloom.run(program, images[: len(rtl.raw[task])], task=task)
    return Runs(float_outputs, float_experts, interpreter, experts, beside, rtl)


def named(tell: Tell, engine: str) -> Tell:
    return lambda what, done, total: tell(f"{what} on the {engine}", done, total)


# --- Routing ---


def float_run(model: FashionSceneViT, images: NDArray[np.uint8], task: str) -> tuple[NDArray[np.float32], Sets]:
    """The float model's outputs, and the experts that its gates choose."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    logits: list[list[Tensor]] = [[] for _ in mixtures]
    hooks = [
        mixture.gates[TASKS.index(task)].register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        for mixture, seen in zip(mixtures, logits, strict=True)
    ]
    outputs = predict(model, images, task)
    for hook in hooks:
        hook.remove()
    layers = [np.concatenate([part.numpy() for part in seen]) for seen in logits]
    sets = [sets_of_logits(layer, mixture.top_k) for layer, mixture in zip(layers, mixtures, strict=True)]
    return outputs, np.stack(sets).reshape(len(mixtures), len(images), -1, sets[0].shape[-1])


def routed_sets(
    program: patchloom.Program, images: NDArray[np.float32], task: str, tell: Tell | None = None
) -> tuple[patchloom.Result, Sets]:
    """What the interpreter computes, and the experts that its queues are of."""
    experts: list[Sets] = []
    orders = program.task(task).experts

    def observe(_: int, command: Command, state: State) -> None:
        if command.kind == Kind.ROUTE:
            tokens = [queue.token for queue in state.queues]
            experts.append(sets_of_queues(command, tokens, orders[len(experts) % len(orders)]))

    result = patchloom.run(program, images, task=task, observe=observe, progress=tell)
    by_frame = np.stack(experts).reshape(len(images), -1, *experts[0].shape)
    return result, by_frame.swapaxes(0, 1)


def sets_of_logits(logits: NDArray[np.float32], top_k: int) -> Sets:
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    return np.asarray((chosen[:, :, None] == np.arange(logits.shape[1])).any(axis=1))


# --- Figures ---


def figures(program: patchloom.Program, task: str, runs: Runs, scenes: HeldBack) -> dict[str, Any]:
    """One task's entry of report.json."""
    name, higher_is_better = METRICS[task]
    metrics = json.loads((HERE / "metrics.json").read_text())
    raw, cycles = runs.rtl.raw[task], np.array(runs.rtl.cycles)
    config, seen = program.config, first(scenes, len(raw))
    same = (
        np.array_equal(raw, runs.interpreter_beside_rtl.raw[task])
        and runs.rtl.saturations == runs.interpreter_beside_rtl.saturations
    )
    return {
        "metric": name,
        "higher_is_better": higher_is_better,
        "trivial": score(task, trivial(task, metrics, scenes), scenes),
        "float": score(task, runs.float_outputs, scenes),
        "interpreter": score(task, runs.interpreter.outputs[task], scenes),
        "rtl": score(task, runs.rtl.outputs[task], seen),
        "identical": bool(same),
        "elements": raw.size,
        "cycles": round(cycles.mean()),  # of a frame
        "utilisation": program.task(task).macs * len(cycles) / float(cycles.sum() * config.inputs * config.outputs),
        "routing_agreement": float((runs.float_experts == runs.interpreter_experts).all(axis=-1).mean()),
        "saturations": runs.interpreter.saturations,
        "rtl_scenes": len(raw),
    }


def first(scenes: HeldBack, count: int) -> HeldBack:
    return HeldBack(scenes.images[:count], scenes.classes[:count], scenes.depth[:count], scenes.calibration)


# What a row of the table is called, and how it is written.
ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "figure": lambda f: f"{f['metric']} ({'higher' if f['higher_is_better'] else 'lower'} is better)",
    "never looking": lambda f: f"{f['trivial']:.4f}",
    "float": lambda f: f"{f['float']:.4f}",
    "interpreter": lambda f: f"{f['interpreter']:.4f}",
    "RTL": lambda f: f"{f['rtl']:.4f}" + (f" (first {f['rtl_scenes']} scenes)" if f["rtl_scenes"] < SCENES else ""),
    "RTL = interpreter": lambda f: "identical" if f["identical"] else "DIFFERENT",
    "output elements compared": lambda f: f"{f['elements']:,}",
    "cycles a frame": lambda f: f"{f['cycles']:,}",
    "multipliers used": lambda f: f"{f['utilisation']:.1%}",
    "tokens routed as in float": lambda f: f"{f['routing_agreement']:.2%}",
    "saturations": lambda f: f"{f['saturations']:,}",
}


def table(report: dict[str, dict[str, Any]]) -> Table:
    shown = Table("", *report)
    for title, written in ROWS.items():
        shown.add_row(title, *(written(entry) for entry in report.values()))
    return shown


def draw(path: Path, task: str, runs: Runs, scenes: HeldBack) -> None:
    """A few scenes, one a row: image, label, float, RTL."""
    columns = {
        "image": (scenes.images, STYLES["image"]),
        "label": (scenes.classes if task == "segmentation" else scenes.depth.astype(np.float32), STYLES[task]),
        "float": (as_picture(task, runs.float_outputs), STYLES[task]),
        "RTL": (as_picture(task, runs.rtl.outputs[task]), STYLES[task]),
    }
    count = min(PICTURES, len(runs.rtl.outputs[task]))
    figure = Figure(figsize=(3.2 * len(columns), 1.75 * count))
    axes = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, (pictures, style)) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        for row in range(count):
            axes[row, column].imshow(pictures[row], interpolation="nearest", **style)
            axes[row, column].axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=80)


def as_picture(task: str, outputs: NDArray[np.floating[Any]]) -> NDArray[Any]:
    return class_map(outputs) if task == "segmentation" else outputs[:, 0]


if __name__ == "__main__":
    typer.run(main)
