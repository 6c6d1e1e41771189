"""Draws the way of a model through Patchloom.

python docs/way.py                # writes docs/way.svg
"""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

Box = tuple[float, float, str, str]  # centre, title, what it is

WIDTH, HEIGHT = 2.1, 0.9
STEPS: list[Box] = [
    (1.2, 2.4, "torch module", "trained, with its checkpoint"),
    (3.8, 2.4, "graph", "one per task, float"),
    (6.4, 2.4, "integers", "formats, scales, weights"),
    (9.0, 2.4, "Program", "commands + memory image"),
]
NAMES = ["capture", "quantise", "schedule"]
ENGINES: list[Box] = [
    (6.4, 0.85, "interpreter", "NumPy: the definition"),
    (9.0, 0.85, "RTL", "Amaranth, in Verilator"),
]
COLOURS = {"data": "#e8eef7", "engine": "#fdebd3"}


def draw_box(axes: Axes, box: Box, colour: str) -> None:
    x, y, title, text = box
    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=0.1", fc=colour, ec="#334"))
    axes.text(x, y + 0.14, title, ha="center", va="center", fontsize=11, weight="bold")
    axes.text(x, y - 0.22, text, ha="center", va="center", fontsize=8)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#334", "shrinkA": 0, "shrinkB": 0})


def main() -> None:
    mpl.rcParams |= {"svg.hashsalt": "way", "svg.fonttype": "none", "font.family": "sans-serif"}
    figure = Figure(figsize=(10.2, 3.1))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 10.2), ylim=(0, 3.1))
    axes.axis("off")
    for box in STEPS:
        draw_box(axes, box, COLOURS["data"])
    for box in ENGINES:
        draw_box(axes, box, COLOURS["engine"])
    for name, (x, y, *_), (to, *_) in zip(NAMES, STEPS, STEPS[1:], strict=False):
        arrow(axes, (x + WIDTH / 2, y), (to - WIDTH / 2, y))
        axes.text((x + to) / 2, y + 0.12, name, ha="center", fontsize=7, style="italic")
    program_x, program_y, *_ = STEPS[-1]
    for x, y, *_ in ENGINES:
        arrow(axes, (program_x, program_y - HEIGHT / 2), (x, y + HEIGHT / 2))
    left, right = (x for x, *_ in ENGINES)
    axes.text((left + right) / 2, 0.85, "=", ha="center", va="center", fontsize=22)
    axes.text((left + right) / 2, 0.15, "every output element and saturation count identical", ha="center", fontsize=8)
    path = Path(__file__).with_name("way.svg")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
