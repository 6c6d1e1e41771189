"""Draws what the example sees and where its experts go: `python -m examples.picture` writes docs/scene.png.

From the interpreter: its outputs, and the queues that its ROUTE commands fill.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

import patchloom
from examples.demo import STYLES, Sets, as_picture, routed_sets
from examples.fashion_scenes.evaluate import HERE, load_scenes, network_input
from examples.fashion_scenes.model import PATCH, TASKS
from patchloom.design import compile_design, load_design

PATH = Path(__file__).parents[1] / "docs" / "scene.png"
SCENE = 1
EXPERTS = ListedColormap(["#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#911eb4", "#46f0f0", "#f032e6"])


def main() -> None:
    program = compile_design(load_design(HERE / "design.yaml"))
    scene = load_scenes().images[SCENE]
    figure = Figure(figsize=(11, 4.4))
    axes = figure.subplots(2, 3)
    show(axes[0, 0], "image", scene, **STYLES["image"])
    for column, task in enumerate(TASKS, 1):
        result, sets = routed_sets(program, network_input(scene[None]), task)
        show(axes[0, column], task, as_picture(task, result.outputs[task])[0], **STYLES[task])
        show(axes[1, column], "experts of its last mixture", scene, **STYLES["image"])
        experts = halves(sets[-1, 0, 1:], scene.shape)
        axes[1, column].imshow(experts, EXPERTS, alpha=0.55, vmin=-0.5, vmax=EXPERTS.N - 0.5, interpolation="nearest")
    legend(figure, axes[1, 0], program)
    figure.tight_layout(pad=0.4)
    figure.savefig(PATH, dpi=80)


def show(axes: Axes, title: str, picture: NDArray[Any], **style: Any) -> None:
    axes.set_title(title, fontsize=10)
    axes.imshow(picture, interpolation="nearest", **style)
    axes.axis("off")


def halves(chosen: Sets, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """[height, width]: each patch has the numbers of its two experts, side by side; `chosen` is [patches, experts]."""
    pairs = np.nonzero(chosen)[1].reshape(shape[0] // PATCH, -1)
    return np.repeat(np.repeat(pairs, PATCH, 0), PATCH // 2, 1)


def legend(figure: Figure, axes: Axes, program: patchloom.Program) -> None:
    """The colours of the experts."""
    axes.axis("off")
    inset = axes.inset_axes((0.05, 0.5, 0.9, 0.16))
    colours = ScalarMappable(cmap=EXPERTS)
    colours.set_clim(-0.5, EXPERTS.N - 0.5)
    figure.colorbar(colours, inset, orientation="horizontal", ticks=range(EXPERTS.N))
    inset.set_title(f"the two experts of each patch, of {len(program.tasks[0].experts[-1])}", fontsize=10)


if __name__ == "__main__":
    main()
