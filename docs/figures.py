"""Draws the figures of the documentation: `python -m docs.figures`.

way.svg: the way of a model through Patchloom. datapath.svg: the units of the machine, as in hw/.
"""

from itertools import pairwise
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from docs.page import DOCS

COLOURS = {"data": "#e8eef7", "engine": "#fdebd3", "memory": "#e6f2e6", "control": "#f3e8f5"}
INK = "#334"


class Box(NamedTuple):
    x: float  # of the centre
    y: float
    title: str
    text: str
    colour: str
    width: float = 2.1
    height: float = 0.9

    def draw(self, axes: Axes) -> None:
        corner = (self.x - self.width / 2, self.y - self.height / 2)
        style = "round,pad=0,rounding_size=0.1"
        axes.add_patch(FancyBboxPatch(corner, self.width, self.height, style, fc=COLOURS[self.colour], ec=INK))
        axes.text(self.x, self.y + 0.14, self.title, ha="center", va="center", fontsize=11, weight="bold")
        axes.text(self.x, self.y - 0.2, self.text, ha="center", va="center", fontsize=8)


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """Along the points; the last part has the head."""
    for start, end in pairwise(points[:-1]):
        axes.plot(*zip(start, end, strict=True), color=INK, linewidth=1)
    style = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", points[-1], points[-2], arrowprops=style)


def label(axes: Axes, x: float, y: float, text: str, size: int = 7, **style: str) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, **style)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def way() -> Figure:
    steps = [
        Box(1.2, 2.6, "torch module", "trained, with its checkpoint", "data"),
        Box(3.8, 2.6, "graph", "one per task, float", "data"),
        Box(6.4, 2.6, "integers", "formats, scales, weights", "data"),
        Box(9.0, 2.6, "Program", "commands + memory image", "data"),
    ]
    engines = [
        Box(1.2, 0.85, "cycle model", "cycles alone, no data", "control"),
        Box(3.8, 0.85, "RTL", "Amaranth, in Verilator", "engine"),
        Box(6.4, 0.85, "HLS C++", "for Vitis HLS, under g++", "engine"),
        Box(9.0, 0.85, "interpreter", "NumPy: the definition", "engine"),
    ]
    figure, axes = canvas(10.2, 3.3)
    for box in (*steps, *engines):
        box.draw(axes)
    for name, left, right in zip(("capture", "quantise", "schedule"), steps, steps[1:], strict=False):
        arrow(axes, (left.x + left.width / 2, left.y), (right.x - right.width / 2, right.y))
        label(axes, (left.x + right.x) / 2, left.y + 0.16, name, style="italic")
    program, bend = steps[-1], 1.72
    for engine in engines:
        from_bottom = (program.x, program.y - program.height / 2)
        arrow(axes, from_bottom, (program.x, bend), (engine.x, bend), (engine.x, engine.y + engine.height / 2))
    for left, right in pairwise(engines):
        label(axes, (left.x + right.x) / 2, left.y, "=", size=20)
    label(axes, (engines[0].x + engines[1].x) / 2, 0.25, "every cycle", size=8)
    label(axes, (engines[1].x + engines[3].x) / 2, 0.25, "every output element, every saturation count", size=8)
    return figure


def datapath() -> Figure:
    """Memory above, the shared compute unit in a row, the scratchpad below."""
    bus = Box(3.9, 5.05, "DMA", "AXI4 master: weights, commands, tensors", "memory", width=5.4)
    control = Box(11.0, 5.05, "registers", "AXI4-Lite, interrupt", "control", width=2.6)
    storer = Box(2.1, 3.85, "storer", "results", "control", width=1.6)
    loader = Box(5.1, 3.85, "loader", "tiles, parameters, chunks", "control")
    sequencer = Box(11.0, 3.85, "sequencer", "commands of the task", "control", width=2.6)
    operand = Box(2.1, 2.5, "operand", "normalise, exp, digits", "engine")
    array = Box(5.1, 2.5, "array", "K x N, weight-stationary", "engine", width=2.2)
    sums = Box(8.0, 2.5, "accumulators", "sums over digits, tiles", "engine")
    epilogue = Box(11.0, 2.5, "epilogue", "requantise, GELU, + residual", "engine", width=2.6)
    statistics = Box(2.1, 0.85, "statistics", "mean, variance of rows", "memory", width=1.9)
    scratchpad = Box(6.6, 0.85, "scratchpad", "all activations of a frame, in chunks of lanes", "memory", width=4.6)
    router = Box(11.0, 0.85, "router", "top-k, queues of experts", "control", width=2.2)
    figure, axes = canvas(12.8, 5.7)
    for box in (
        bus,
        control,
        loader,
        sequencer,
        storer,
        operand,
        array,
        sums,
        epilogue,
        statistics,
        scratchpad,
        router,
    ):
        box.draw(axes)
    for left, right in pairwise((operand, array, sums, epilogue)):
        arrow(axes, (left.x + left.width / 2, left.y), (right.x - right.width / 2, right.y))
    wires = [
        ([(11.0, 4.6), (11.0, 4.3)], (11.25, 4.45), "start"),
        ([(5.1, 4.6), (5.1, 4.3)], (0, 0), ""),
        ([(2.1, 4.3), (2.1, 4.6)], (0, 0), ""),
        ([(5.1, 3.4), (5.1, 2.95)], (5.55, 3.15), "weight tiles"),
        ([(6.6, 5.05), (9.2, 5.05), (9.2, 4.0), (9.7, 4.0)], (8.0, 5.15), "commands"),
        ([(9.7, 3.8), (6.15, 3.8)], (8.0, 3.9), "what to fetch, in order"),
        ([(11.0, 3.4), (11.0, 2.95)], (11.5, 3.15), "row by row"),
        ([(6.6, 1.3), (6.6, 3.5), (6.15, 3.5)], (7.1, 1.85), "tiles of K, V"),
        ([(5.9, 3.4), (5.9, 3.15), (6.4, 3.15), (6.4, 1.3)], (6.0, 1.85), "chunks"),
        ([(4.3, 0.6), (3.5, 0.6), (3.5, 0.2), (0.5, 0.2), (0.5, 3.85), (1.3, 3.85)], (2.1, 0.1), "chunks"),
        ([(4.3, 1.1), (3.7, 1.1), (3.7, 2.3), (3.15, 2.3)], (4.0, 1.2), "rows a"),
        ([(1.7, 1.3), (1.7, 2.05)], (1.2, 1.65), "row constants"),
        ([(10.3, 2.05), (10.3, 1.6), (8.0, 1.6), (8.0, 1.3)], (9.1, 1.7), "rows o"),
        ([(8.0, 1.6), (2.5, 1.6), (2.5, 1.3)], (3.1, 1.7), "their sums"),
        ([(8.9, 1.1), (9.55, 1.1), (9.55, 1.8), (9.9, 1.8), (9.9, 2.05)], (9.25, 1.2), "rows r"),
        ([(8.9, 0.6), (9.9, 0.6)], (9.4, 0.5), "logits"),
        ([(11.6, 1.3), (11.6, 2.05)], (12.05, 1.65), "scores"),
    ]
    for points, (x, y), text in wires:
        arrow(axes, *points)
        label(axes, x, y, text)
    return figure


def main() -> None:
    mpl.rcParams |= {"svg.hashsalt": "patchloom", "svg.fonttype": "none", "font.family": "sans-serif"}
    for draw in (way, datapath):
        draw().savefig(DOCS / f"{draw.__name__}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
