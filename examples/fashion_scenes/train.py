"""Trains the model on scenes drawn anew for every step, and writes what the other files read.

    python -m examples.fashion_scenes.train

Written to the output folder: checkpoint.safetensors (weights, float32), scenes.safetensors (64 held-back scenes
and 32 training pictures for calibration) and metrics.json (loss curves and final figures of this run).
"""

import json
import math
import re
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from torch import Tensor, nn

from examples.fashion_scenes.evaluate import (
    HERE,
    METRICS,
    HeldBack,
    class_iou,
    load_scenes,
    predict,
    score,
    trivial,
)
from examples.fashion_scenes.model import CLASSES, TASKS, FashionSceneViT
from examples.fashion_scenes.scenes import BACKGROUND, CLASS_NAMES, DATA, Items, Scenes, load_items, make_scenes

PEAK_RATE, WEIGHT_DECAY, WARMUP, CLIP = 2e-3, 0.05, 200, 1.0  # WARMUP in steps, CLIP on the gradient's norm
BACKGROUND_WEIGHT = 0.4  # four pixels in five are background; without this the small items are given up
DEPTH_WEIGHT, DEPTH_KNEE = 4.0, 0.05  # beyond the knee the depth loss grows linearly
BALANCE_WEIGHT, GATE_NOISE = 0.01, 0.3
HELD_BACK, CALIBRATION, STATISTICS, EXTRA = 64, 32, 512, 512  # scenes


class Routing:
    """Watches every gate of a model through forward hooks: keeps the routing balanced, and counts it.

    While the model trains, noise is added to the logits and the auxiliary loss of the Switch Transformer
    (arXiv 2101.03961, eq. 4: experts x sum of load share x mean probability) is gathered in `losses`.
    Otherwise `load` counts the tokens that each gate, by its name, sends to each expert.
    """

    def __init__(self, model: nn.Module, top_k: int) -> None:
        self.top_k = top_k
        self.noise = 0.0
        self.losses: list[Tensor] = []
        self.load: dict[str, Tensor] = {}
        for name, module in model.named_modules():
            if ".gates." in name:
                module.register_forward_hook(lambda gate, _, logits, name=name: self.on_gate(name, gate, logits))

    def on_gate(self, name: str, gate: nn.Module, logits: Tensor) -> Tensor | None:
        """Hook on a gate with logits [tokens, experts]; in training its result replaces them."""
        experts = logits.shape[1]
        if not gate.training:
            self.load[name] = self.load.get(name, 0) + self.count(logits)
            return None
        noisy = logits + self.noise * torch.randn_like(logits)
        share = self.count(noisy) / (self.top_k * len(noisy))
        self.losses.append(experts * (share * logits.softmax(1).mean(0)).sum())
        return noisy

    def count(self, logits: Tensor) -> Tensor:
        """Tokens sent to each expert."""
        return torch.bincount(logits.topk(self.top_k, dim=1).indices.flatten(), minlength=logits.shape[1])

    def take_loss(self) -> Tensor:
        """Sum of the auxiliary losses since the last call; 1 per gate is perfect balance."""
        total = torch.stack(self.losses).sum()
        self.losses.clear()
        return total

    def take_shares(self) -> dict[str, list[float]]:
        """Each gate's share of tokens per expert since the last call."""
        shares = {name: [round(x, 4) for x in (load / load.sum()).tolist()] for name, load in self.load.items()}
        self.load.clear()
        return shares


def to_bytes(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pictures in [0, 1] as bytes."""
    return np.round(images * 255).astype(np.uint8)


def held_back(scenes: Scenes, calibration: Scenes) -> HeldBack:
    """Scenes in the form they are stored in."""
    return HeldBack(to_bytes(scenes.images), scenes.classes, scenes.depth.astype(np.float16),
                    to_bytes(calibration.images))  # fmt: skip


def write_scenes(path: Path, train: Items, test: Items, seed: int) -> None:
    """Held-back scenes made of test items, and calibration pictures made of training items."""
    scenes = held_back(make_scenes(HELD_BACK, test, np.random.default_rng([seed, 1])),
                       make_scenes(CALIBRATION, train, np.random.default_rng([seed, 2])))  # fmt: skip
    save_arrays(vars(scenes), path)


def constants(train: Items, seed: int) -> dict[str, float]:
    """What a predictor that never looks would say, from training scenes."""
    scenes = make_scenes(STATISTICS, train, np.random.default_rng([seed, 3]))
    majority = int(np.bincount(scenes.classes.ravel(), minlength=CLASSES).argmax())
    return {"majority_class": majority, "mean_depth": float(scenes.depth.mean(dtype=np.float64))}


def rate(step: int, steps: int) -> float:
    """Fraction of the peak learning rate: linear warm-up, then half a cosine down to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP) / max(steps - WARMUP, 1))


def losses(model: nn.Module, routing: Routing, scenes: Scenes, weights: Tensor) -> dict[str, Tensor]:
    """Both tasks' losses and the balance loss on one batch."""
    images = torch.from_numpy(scenes.images)[:, None]
    segmentation = F.cross_entropy(model(images, 0), torch.from_numpy(scenes.classes).long(), weights)
    depth = F.smooth_l1_loss(model(images, 1)[:, 0], torch.from_numpy(scenes.depth), beta=DEPTH_KNEE)
    return {"segmentation": segmentation, "depth": depth, "balance": routing.take_loss()}


def optimiser_for(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only, not biases, norms and embeddings of position."""
    matrices = [p for n, p in model.named_parameters() if p.ndim > 1 and n not in ("cls_token", "pos_embed")]
    others = [p for n, p in model.named_parameters() if p.ndim <= 1 or n in ("cls_token", "pos_embed")]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Values to the digits worth printing."""
    return {name: round(value, 5) for name, value in values.items()}


def figures(model: FashionSceneViT, scenes: HeldBack) -> dict[str, float]:
    """The model's figure for each task, by the figure's name."""
    model.eval()
    return {METRICS[task][0]: score(task, predict(model, scenes.images, task), scenes) for task in TASKS}


def fit(model: FashionSceneViT, routing: Routing, items: Items, scenes: HeldBack,
        steps: int, batch: int, seed: int, every: int) -> list[dict[str, float]]:  # fmt: skip
    """Trains in place; returns the curve: mean losses since the last point, and figures on `scenes`.

    The figures are only reported: nothing is chosen by them, and the last step's weights stay.
    """
    rng = np.random.default_rng([seed, 0])
    optimiser = optimiser_for(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: rate(done, steps))
    weights = torch.ones(CLASSES)
    weights[BACKGROUND] = BACKGROUND_WEIGHT
    curve: list[dict[str, float]] = []
    recent: list[list[float]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("training", total=steps)
        for step in range(1, steps + 1):
            model.train()
            routing.noise = GATE_NOISE * rate(step - 1, steps)
            loss = losses(model, routing, make_scenes(batch, items, rng), weights)
            optimiser.zero_grad()
            total = loss["segmentation"] + DEPTH_WEIGHT * loss["depth"] + BALANCE_WEIGHT * loss["balance"]
            torch.autograd.backward(total)
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            recent.append([value.item() for value in loss.values()])
            if step % every == 0 or step == steps:
                means = {f"{name}_loss": value for name, value in zip(loss, np.mean(recent, 0).tolist(), strict=True)}
                curve.append({"step": step, **rounded({**means, **figures(model, scenes)})})
                recent.clear()
                routing.load.clear()
                progress.console.print("  ".join(f"{k} {v:g}" for k, v in curve[-1].items()), soft_wrap=True)
            progress.advance(bar)
    return curve


def report(model: FashionSceneViT, routing: Routing, scenes: HeldBack, extra: HeldBack,
           known: dict[str, float]) -> dict[str, Any]:  # fmt: skip
    """Final figures: the 64 stored scenes, more held-back scenes, the trivial predictors, and the routing."""
    model.eval()
    iou = class_iou(predict(model, scenes.images, "segmentation"), scenes.classes)
    blind = {METRICS[task][0]: score(task, trivial(task, {"trivial": known}, scenes), scenes) for task in TASKS}
    routing.load.clear()
    return {
        "model": rounded(figures(model, scenes)),
        "expert_shares": routing.take_shares(),
        "trivial": rounded({**known, **blind}),
        "class_iou": dict(zip(CLASS_NAMES, iou.round(4).tolist(), strict=True)),
        f"model_on_{EXTRA}_more_held_back_scenes": rounded(figures(model, extra)),
    }


def write_whole(path: Path, save: Any) -> None:
    """Calls `save(path)` under another name and renames, so that a reader never sees half a file."""
    draft = path.with_name(path.name + ".draft")
    save(draft)
    draft.replace(path)


def dump(metrics: dict[str, Any]) -> str:
    """JSON with one line per point of the curve and per gate, for short and readable differences."""
    text = json.dumps(metrics, indent=1)
    return re.sub(r"([\[{])\n {3,}([^\[\]{}]*?)\n *([\]}])", lambda m: m[1] + re.sub(r"\n +", " ", m[2]) + m[3], text)


def main(
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 6000,
    batch: Annotated[int, typer.Option(help="Scenes per step.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of weights, scenes and noise.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    every: Annotated[int, typer.Option(help="Steps between points of the curve.")] = 250,
    data: Annotated[Path, typer.Option(help="Folder of the four Fashion-MNIST .gz files.")] = DATA,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = HERE,
) -> None:
    """Trains, scores and writes the model."""
    started = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    train, test = load_items("train", data), load_items("test", data)
    write_whole(output / "scenes.safetensors", lambda path: write_scenes(path, train, test, seed))
    scenes = load_scenes(output / "scenes.safetensors")
    model = FashionSceneViT()
    routing = Routing(model, top_k=2)
    curve = fit(model, routing, train, scenes, steps, batch, seed, every)
    extra = make_scenes(EXTRA, test, np.random.default_rng([seed, 4]))
    result = report(model, routing, scenes, held_back(extra, extra), constants(train, seed))
    metrics = {
        "command": shlex.join(["python", "-m", "examples.fashion_scenes.train", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(time.monotonic() - started),
        "torch": torch.__version__,
        "threads": threads,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "batch": batch,
        "seed": seed,
        **result,
        "curve": curve,
    }
    write_whole(output / "checkpoint.safetensors", lambda path: save_file(model.state_dict(), path))
    write_whole(output / "metrics.json", lambda path: path.write_text(dump(metrics) + "\n"))


if __name__ == "__main__":
    typer.run(main)
