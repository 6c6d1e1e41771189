"""Models at their real sizes on a machine of the ZCU102: `python -m benchmarks.zoo.real [names]`, results/real.json.

Weights are random: cycles depend on none. The machine is sized for each (`patchloom.sizing`), cycles are those of the
cycle model with the board's memory, and no board ran this. Time and memory are those of capture, quantisation by two
samples, and a schedule; every model has a process of its own.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.zoo.measure import module_macs, program_macs, reasons
from benchmarks.zoo.packages import timm
from benchmarks.zoo.published.backbones import Local
from benchmarks.zoo.row import Row
from patchloom.boards.board import board
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.quantise import Precision, quantise
from patchloom.compiler.schedule import schedule
from patchloom.compiling import read_model as read_module
from patchloom.sizing import ROOMY, Budget, read_model, sized

RESULTS = Path(__file__).parents[1] / "results" / "real.json"
COMMAND = "python -m benchmarks.zoo.real"
BOARD = "zcu102"
PRECISION = "w8a8"
TRIES = 4  # Configs that are scheduled
SIZE = (3, 224, 224)


class Global(nn.Module):
    """UniFormer's global block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.block = timm.models.vision_transformer.Block(dim, heads, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position(x)
        return self.block(x.flatten(2).mT).mT.reshape(x.shape)


class Patches(nn.Module):
    """Embedding of patches, and their norm."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inputs, outputs, size, size), nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class UniFormer(nn.Module):
    """UniFormer-S for images (Li et al., 2022, arXiv:2201.09450)."""

    def __init__(self) -> None:
        super().__init__()
        dims, depths = (3, 64, 128, 320, 512), (3, 4, 8, 3)
        parts: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            dim = dims[stage + 1]
            parts.append(Patches(dims[stage], dim, 2 if stage else 4))
            parts += [Local(dim, 2, widened=4) if stage < 2 else Global(dim, dim // 64) for _ in range(depth)]
        self.parts, self.norm, self.head = nn.Sequential(*parts), nn.BatchNorm2d(dims[-1]), nn.Linear(dims[-1], 1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.parts(image)).flatten(2).mean(2))


def of_timm(name: str) -> Callable[[], nn.Module]:
    return partial(timm.create_model, name)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "DeiT-T": (of_timm("deit_tiny_patch16_224"), SIZE),
    "DeiT-S": (of_timm("deit_small_patch16_224"), SIZE),
    "ViT-B/16": (of_timm("vit_base_patch16_224"), SIZE),
    "DINOv2-S": (of_timm("vit_small_patch14_dinov2"), (3, 518, 518)),
    "Swin-T": (of_timm("swin_tiny_patch4_window7_224"), SIZE),
    "PVT v2 b0": (of_timm("pvt_v2_b0"), SIZE),
    "LeViT-128S": (of_timm("levit_128s"), SIZE),
    "MobileViT-S": (of_timm("mobilevit_s"), (3, 256, 256)),
    "UniFormer-S": (UniFormer, SIZE),
}


def measure(name: str) -> dict[str, Any]:
    """What it takes to compile it, and what it gets from the board; or why it does not."""
    make, shape = MODELS[name]
    row = Row(name, name, make, (shape,))
    module = row.module()
    found: dict[str, Any] = {
        "macs": module_macs(row, module),
        "parameters": sum(p.numel() for p in module.parameters()),
    }
    begin = time.process_time()
    try:
        (x,) = row.inputs(2, seed=1)
        model = read_module(module, (x[:1],), calibration=(x,))
        quantised = quantise(model.graphs, model.samples, Precision.parse(PRECISION))
        schedule(quantised, ROOMY)
        found |= {"compile_seconds": round(time.process_time() - begin, 1), "compile_peak_mib": peak()}
        program, budget = sized(read_model(quantised, model.samples), board(BOARD), tries=TRIES)
        [task] = program.tasks
        found |= {"commands": len(task.commands), "compiled_macs": program_macs(task, [])} | of(budget, found["macs"])
    except Error as error:
        found["refused"] = reasons(error)
    return found


def peak() -> int:
    """MiB of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def of(budget: Budget, macs: int) -> dict[str, Any]:
    config, [cycles], [rate] = budget.config, budget.cycles.values(), budget.frames_per_second.values()
    return {
        "array": f"{config.inputs} x {config.outputs}",
        "cycles": cycles,
        "utilisation": round(macs / (cycles * config.inputs * config.outputs), 4),
        "frames_per_second": round(rate, 2),
        "limit": budget.limit,
    }


def main(names: list[str], jobs: int) -> None:
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for name, found in zip(names, pool.imap(measure, names), strict=True):
            known = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
            known[name] = found | {"date": datetime.now(UTC).date().isoformat()}
            content = {"command": COMMAND, "board": BOARD, "precision": PRECISION, "models": known}
            RESULTS.write_text(json.dumps(content, indent=1) + "\n")
            print(name, found, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MODELS], default=[], help="all if none is named")
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    main(asked.names or list(MODELS), asked.jobs)
