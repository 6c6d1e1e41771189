"""Pictures of results: what each task sees beside its input, and the experts that each part of it went to.

What an output is, follows from its shape, dimensions of one element left out:

    none, or [n]           bars: the largest, by number
    [height, width]        a map of colours from the least value to the largest
    [n, height, width]     classes: the largest of n at each place; or [height, width, n] where that
                           alone has the aspect of the input
    more dimensions        its shape, in words

An input is drawn alike, but three channels are red, green and blue, and one that takes pictures is the picture that the
model sees.
"""

import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import Kind
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.machine.frames import Result, Samples
from patchloom.compiler.machine.program import Port, Program, Task
from patchloom.experts import Sets, apart, token_places
from patchloom.extras import needed_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

Values = NDArray[np.floating[Any]]
BARS = 10
TITLE = 44  # characters
PANEL = 3.4  # inches
DPI = 80
BY_NUMBER = {"tab10": 10, "tab20": 20, "nipy_spectral": 1 << 16}  # colours of classes and experts: how many each has
ALPHA = 0.55  # of experts over a picture


@dataclass(frozen=True, eq=False)
class Sight:
    """What one task sees of one frame; without `sets` nobody knows where its tokens went."""

    task: Task
    inputs: Samples = field(repr=False)
    result: Result
    sets: Sequence[Sets] | None = None  # by mixture


def need_matplotlib() -> None:
    """Raises `MissingExtraError`, before anything is run in vain."""
    with needed_by("drawing results", "figures"):
        import matplotlib.figure  # noqa: F401, PLC0415 - an extra


def drawn(program: Program, sights: Sequence[Sight]) -> bytes:
    """A PNG picture: a row a task, with its inputs, outputs and mixtures."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    rows = [list(_panels(program, sight)) for sight in sights]
    columns = max(map(len, rows))
    aspect = min(1.5, max(0.5, *map(_aspect, sights)))
    figure = Figure(figsize=(PANEL * columns, (PANEL * aspect + 0.3) * len(rows)), layout="constrained")
    for line, panels in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axes in line:
            axes.axis("off")
        for axes, panel in zip(line, panels, strict=False):
            panel.draw(axes)
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name that the font has not
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _panels(program: Program, sight: Sight) -> Iterator["_Panel"]:
    task, pictures = sight.task, {port.name: as_picture(port, sight.inputs[port.name]) for port in sight.task.inputs}
    for port in task.inputs:
        picture = pictures[port.name]
        yield _panel(port.name, sight.inputs[port.name]) if picture is None else _Picture(port.name, picture)
    sizes = [picture.shape[:2] for picture in pictures.values() if picture is not None]
    for port in task.outputs:
        value = sight.result.outputs[port.name]
        name = port.name if port.name == task.name else f"{task.name}: {port.name}"
        yield _panel(name, value, sizes[0] if sizes else None)
    if sight.sets:
        yield from _mixtures(program, sight, pictures)


def _mixtures(program: Program, sight: Sight, pictures: Mapping[str, NDArray[Any] | None]) -> Iterator["_Panel"]:
    task = sight.task
    notes = [note for command, note in zip(task.commands, task.notes, strict=True) if command.kind == Kind.ROUTE]
    port = next((port for port in task.inputs if pictures[port.name] is not None), None)
    places = token_places(program, task, port, picture_axes(port.shape)) if port else [None] * len(notes)
    for note, sets, place in zip(notes, sight.sets or (), places, strict=True):
        title = f"experts of {note.removesuffix(': route')}"
        picture = pictures[port.name] if port else None
        if place is not None and picture is not None and apart(place):
            yield _Experts(title, picture, sets, place)
        else:
            yield _Bars(f"{title}: tokens", sets.sum(axis=0).astype(float))


def _aspect(sight: Sight) -> float:
    """Height by width of what is largest."""
    picture = as_picture(sight.task.inputs[0], sight.inputs[sight.task.inputs[0].name])
    return 0.75 if picture is None else picture.shape[0] / picture.shape[1]


# --- What a tensor is ---


def picture_axes(shape: Sequence[int]) -> tuple[int, int]:
    """Those of height and width: of [height, width] beside a dimension of one or three channels, or of the last two."""
    return (
        (0, 1)
        if len(shape) == 3 and shape[0] not in (1, 3) and shape[2] in (1, 3)
        else (len(shape) - 2, len(shape) - 1)
    )


def as_picture(port: Port, value: Values) -> NDArray[Any] | None:
    """[height, width] or [height, width, 3] of an input that is a picture: bytes as the model sees them, or from the
    least value to the largest in [0, 1].
    """
    kept, shape = port.preprocessing, value.shape
    if kept is None and (len(shape) != 3 or not {shape[0], shape[2]} & {1, 3}):
        return None
    axes = (kept.layout.index("H"), kept.layout.index("W")) if kept else picture_axes(shape)
    channels = value.reshape(*shape, 1) if len(shape) == 2 else np.moveaxis(value, axes, (0, 1))
    if kept:
        units = (channels * np.array(kept.std) + np.array(kept.mean)) * kept.divide
        picture = np.clip(np.rint(units), 0, 255).astype(np.uint8)
    else:
        picture = (channels - channels.min()) / (float(np.ptp(channels)) or 1.0)
    shown: NDArray[Any] = picture[..., 0] if picture.shape[-1] == 1 else picture
    return shown


def _panel(title: str, value: Values, size: tuple[int, ...] | None = None) -> "_Panel":
    """Of a tensor, by its shape; `size` is the height and width of the input's picture."""
    bare = value.reshape([n for n in value.shape if n > 1])
    if bare.ndim < 2:
        return _Bars(title, bare.reshape(-1))
    if bare.ndim == 2:
        return _Map(title, bare)
    if bare.ndim == 3:
        first, last = (size is not None and _alike(shape, size) for shape in (bare.shape[1:], bare.shape[:2]))
        axis = 2 if last and not first else 0
        return _Classes(title, bare.argmax(axis), bare.shape[axis])
    return _Words(title, f"of shape {' x '.join(map(str, value.shape))}")


def _alike(shape: Sequence[int], size: Sequence[int]) -> bool:
    """In their aspect."""
    return shape[0] * size[1] == shape[1] * size[0]


# --- Panels ---


@dataclass(frozen=True, eq=False)
class _Panel:
    title: str

    def draw(self, axes: "Axes") -> None:
        axes.set_title(textwrap.shorten(self.title, TITLE, placeholder=" ..."), fontsize=9, parse_math=False)
        self.fill(axes)

    def fill(self, axes: "Axes") -> None:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class _Words(_Panel):
    text: str

    def fill(self, axes: "Axes") -> None:
        axes.text(0.5, 0.5, self.text, ha="center", va="center", fontsize=9)


@dataclass(frozen=True, eq=False)
class _Bars(_Panel):
    """The largest of a vector, by their numbers."""

    values: Values

    def fill(self, axes: "Axes") -> None:
        axes.axis("on")
        largest = np.argsort(-self.values, kind="stable")[:BARS]
        axes.barh([str(number) for number in largest], self.values[largest])
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        if len(self.values) > BARS:
            axes.set_xlabel(f"the {BARS} largest of {len(self.values)}", fontsize=7)


@dataclass(frozen=True, eq=False)
class _Map(_Panel):
    values: Values

    def fill(self, axes: "Axes") -> None:
        shown = axes.imshow(self.values, "viridis", interpolation="nearest")
        axes.figure.colorbar(shown, ax=axes, shrink=0.7).ax.tick_params(labelsize=7)


@dataclass(frozen=True, eq=False)
class _Picture(_Panel):
    pixels: NDArray[Any]

    def fill(self, axes: "Axes") -> None:
        axes.imshow(self.pixels, "gray", interpolation="nearest", **_scale(self.pixels))


@dataclass(frozen=True, eq=False)
class _Classes(_Panel):
    """By number, each in the same colour on every frame."""

    numbers: Ints
    count: int

    def fill(self, axes: "Axes") -> None:
        _numbered(axes, self.numbers, self.count)


@dataclass(frozen=True, eq=False)
class _Experts(_Panel):
    """Over a picture; where a token has several, side by side in the order of their numbers."""

    pixels: NDArray[Any]
    sets: Sets
    places: Ints

    def fill(self, axes: "Axes") -> None:
        axes.imshow(self.pixels, "gray", interpolation="nearest", **_scale(self.pixels))
        numbers = self.numbers()
        _numbered(axes, np.ma.masked_less(numbers, 0), self.sets.shape[1], alpha=ALPHA)

    def numbers(self) -> Ints:
        """Of the expert at each pixel, -1 is none."""
        shown = np.full(self.pixels.shape[:2], -1)
        for chosen, (top, left, bottom, right) in zip(self.sets, self.places, strict=True):
            if bottom > top:
                experts = np.flatnonzero(chosen)
                shown[top:bottom, left:right] = experts[np.arange(right - left) * len(experts) // (right - left)]
        return shown


def _scale(pixels: NDArray[Any]) -> dict[str, Any]:
    return {"vmin": 0, "vmax": 255 if pixels.dtype == np.uint8 else 1}


def _numbered(axes: "Axes", numbers: Ints, count: int, **style: Any) -> None:
    """Colours by number, and a bar that says which of them are there."""
    limits: dict[str, Any] = {"vmin": -0.5, "vmax": count - 0.5}
    shown = axes.imshow(numbers, _colours(count), interpolation="nearest", **limits, **style)
    bar = axes.figure.colorbar(shown, ax=axes, shrink=0.7, ticks=np.unique(np.ma.compressed(numbers))[: BARS * 2])
    bar.ax.tick_params(labelsize=7)


def _colours(count: int) -> "Colormap":
    import matplotlib as mpl  # noqa: PLC0415 - an extra

    name = next(name for name, colours in BY_NUMBER.items() if count <= colours)
    colours = mpl.colormaps[name]
    places = np.arange(count) if count <= colours.N <= 20 else np.linspace(0, 1, count)  # by number, or along a scale
    return mpl.colors.ListedColormap(colours(places))
