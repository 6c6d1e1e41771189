"""Scores predictions for the held-back scenes, and the trained model beside predictors that never look.

python -m examples.fashion_scenes.evaluate
python -m examples.fashion_scenes.evaluate --picture examples/fashion_scenes/scenes.png
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file
from safetensors.torch import load_model as load_weights

from examples.fashion_scenes.model import CLASSES, TASKS, FashionSceneViT

HERE = Path(__file__).parent
METRICS = {"segmentation": ("mIoU", True), "depth": ("RMSE", False)}  # name, and whether higher is better


@dataclass(frozen=True)
class HeldBack:
    """Scenes the model never saw, and a few it did for choosing number formats.

    images [64, 64, 128] and calibration [32, 64, 128] are bytes (the network's input is byte / 255),
    classes [64, 64, 128] are 0..10, depth [64, 64, 128] is half precision, 1 = the wall.
    """

    images: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    depth: NDArray[np.float16]
    calibration: NDArray[np.uint8]


def load_model(path: Path = HERE / "checkpoint.safetensors") -> FashionSceneViT:
    """The trained model, in evaluation mode."""
    model = FashionSceneViT()
    load_weights(model, path)
    return model.eval()


def load_scenes(path: Path = HERE / "scenes.safetensors") -> HeldBack:
    """The 64 held-back scenes and the 32 calibration pictures."""
    return HeldBack(**load_file(path))


def network_input(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes [n, 64, 128] as the network takes them: float32 [n, 1, 64, 128] in [0, 1]."""
    return images[:, None].astype(np.float32) / np.float32(255)


def class_map(predictions: NDArray[Any]) -> NDArray[np.int64]:
    """Classes [n, 64, 128] of logits [n, 11, 64, 128]; a map of classes is left as it is."""
    return (predictions.argmax(1) if predictions.ndim == 4 else predictions).astype(np.int64)


def confusion(predicted: NDArray[np.int64], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Pixels counted by [label, predicted class]."""
    pairs = labels.astype(np.int64) * CLASSES + predicted
    return np.bincount(pairs.ravel(), minlength=CLASSES * CLASSES).reshape(CLASSES, CLASSES)


def class_iou(predictions: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each class over the whole set; NaN for a class that occurs on neither side."""
    counts = confusion(class_map(np.asarray(predictions)), np.asarray(labels))
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def miou(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Mean of the 11 classes' intersection over union, 0..1, for logits [n, 11, h, w] or classes [n, h, w]."""
    return float(np.nanmean(class_iou(predictions, labels)))


def rmse(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Root of the mean squared error over all pixels, in the labels' unit; [n, 1, h, w] or [n, h, w]."""
    truth = np.asarray(labels, np.float64)
    return float(np.sqrt(np.mean((np.asarray(predictions, np.float64).reshape(truth.shape) - truth) ** 2)))


def score(task: str, predictions: ArrayLike, scenes: HeldBack) -> float:
    """The task's figure (`METRICS`) for the model's outputs [n, channels, 64, 128] on `scenes`."""
    if task == "segmentation":
        return miou(predictions, scenes.classes)
    if task == "depth":
        return rmse(predictions, scenes.depth)
    raise ValueError(f"task must be one of {TASKS}, not {task!r}")


def predict(model: FashionSceneViT, images: NDArray[np.uint8], task: str, batch: int = 32) -> NDArray[np.float32]:
    """The model's output [n, channels, 64, 128] for pictures in bytes [n, 64, 128]."""
    inputs = torch.from_numpy(network_input(images))
    with torch.inference_mode():
        return torch.cat([model(part, TASKS.index(task)) for part in torch.split(inputs, batch)]).numpy()


def trivial(task: str, metrics: dict[str, Any], scenes: HeldBack) -> NDArray[np.float64]:
    """What never looking gives: the training scenes' commonest class or mean depth at every pixel."""
    constant = metrics["trivial"][{"segmentation": "majority_class", "depth": "mean_depth"}[task]]
    return np.full(scenes.depth.shape, constant, np.float64)


def draw_picture(model: FashionSceneViT, scenes: HeldBack, count: int, path: Path) -> None:
    """Writes the first `count` scenes with labels and predictions as a PNG file, one scene a row."""
    import matplotlib  # noqa: PLC0415 - only this picture needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    images = scenes.images[:count]
    columns: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
        "image": (images, {"cmap": "gray", "vmin": 0, "vmax": 255}),
        "class": (scenes.classes, {"cmap": "tab20", "vmin": 0, "vmax": CLASSES - 1}),
        "class, predicted": (class_map(predict(model, images, "segmentation")),
                             {"cmap": "tab20", "vmin": 0, "vmax": CLASSES - 1}),
        "depth": (scenes.depth.astype(np.float32), {"cmap": "viridis", "vmin": 0.2, "vmax": 1}),
        "depth, predicted": (predict(model, images, "depth")[:, 0], {"cmap": "viridis", "vmin": 0.2, "vmax": 1}),
    }  # fmt: skip
    figure, axes = plt.subplots(count, len(columns), figsize=(2.6 * len(columns), 1.35 * count), squeeze=False)
    for column, (title, (pictures, style)) in enumerate(columns.items()):
        axes[0, column].set_title(title, fontsize=9)
        for row in range(count):
            axes[row, column].imshow(pictures[row], interpolation="nearest", **style)
            axes[row, column].axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=80)


def main(
    picture: Annotated[Path | None, typer.Option(help="Also write a PNG picture of a few scenes here.")] = None,
    count: Annotated[int, typer.Option(help="How many scenes the picture shows.")] = 6,
) -> None:
    """Scores the checkpoint on the held-back scenes."""
    model, scenes = load_model(), load_scenes()
    metrics = json.loads((HERE / "metrics.json").read_text())
    table = Table("task", "figure", "model", "trivial")
    for task, (figure, higher) in METRICS.items():
        figures = [score(task, outputs, scenes)
                   for outputs in (predict(model, scenes.images, task), trivial(task, metrics, scenes))]  # fmt: skip
        table.add_row(task, f"{figure} ({'higher' if higher else 'lower'} is better)", *(f"{f:.4f}" for f in figures))
    Console().print(table)
    if picture:
        draw_picture(model, scenes, count, picture)


if __name__ == "__main__":
    typer.run(main)
