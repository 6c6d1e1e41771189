"""How a picture becomes a model's input; the Program keeps it, so that whoever runs the Program need not know it.

A picture is bytes: an array of type uint8, or a file (`patchloom.pictures`, which also resizes). Floats are in the
model's own units and never touched.
"""

import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.errors import Error, InputError

Bytes = NDArray[np.uint8]

LAYOUTS = ("CHW", "HWC", "HW")
RESIZES = ("crop", "squash")
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's
SMALLEST_CROP = 0.1  # below it a picture would be enlarged beyond any memory


class PreprocessingError(Error, ValueError):
    """Every rule that a preprocessing breaks, one a line."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """A picture is brought to `size`; then each channel is (bytes / `divide` - `mean`) / `std`, in float32.

    It applies to pictures only: files, and arrays of type uint8 in [height, width, channels] or [channels, height,
    width]. Floats are taken as the model's own units. A uint8 array that has `size` is taken as resized already.

    `resize` None takes pictures of exactly `size`. "crop" keeps the aspect: the picture is scaled until it just covers
    `size` / `crop_pct`, and the middle is cut out; "squash" scales it to `size` / `crop_pct` whatever its aspect, and
    cuts out the middle. Both are timm's, to the pixel, and what torchvision's `Resize` and `CenterCrop` do.
    """

    size: tuple[int, int]  # height and width of the model's input
    mean: tuple[float, ...]  # one number a channel: of red, green and blue, or of grey
    std: tuple[float, ...]
    divide: float = 255.0
    layout: str = "CHW"  # of the model's input, without its batch dimension
    resize: str | None = None
    crop_pct: float = 1.0
    interpolation: str | None = None  # Pillow's name; needed to resize

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            if isinstance(value := getattr(self, name), Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        self._refuse(self._types())
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
        for name in ("divide", "crop_pct"):
            object.__setattr__(self, name, float(getattr(self, name)))
        self._refuse(self._rules())

    @property
    def channels(self) -> int:
        """3 are red, green and blue; 1 is grey."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the model's input."""
        sizes = dict(zip("HWC", (*self.size, self.channels), strict=True))
        return tuple(sizes[letter] for letter in self.layout)

    def applied(self, what: str, pictures: Bytes) -> NDArray[np.float32]:
        """The model's input of pictures that have its size, one or a batch, in any layout of a picture."""
        return self.normalised(self.sized(what, self.arranged(what, pictures)))

    def arranged(self, what: str, pictures: Bytes) -> Bytes:
        """[height, width, channels] of one picture, or that behind a batch dimension."""
        count, rank = self.channels, pictures.ndim
        said = f"[height, width, {count}] or [{count}, height, width]"
        if self.layout == "HW":
            said = "[height, width]"
            if rank in (2, 3):
                return pictures[..., None]
        elif rank == 2 and count == 1:
            return pictures[..., None]
        elif rank in (3, 4):
            first, last = (pictures.shape[axis] == count for axis in (-3, -1))
            if first and last:
                raise InputError(
                    f"{what} of type uint8 and shape {list(pictures.shape)} can be read as [height, width, {count}] "
                    f"and as [{count}, height, width]: give floats in the model's units"
                )
            if first or last:
                return np.moveaxis(pictures, -3, -1) if first else pictures
        raise InputError(
            f"{what} of type uint8 must be a picture of shape {said}, or a batch of them, not {list(pictures.shape)}"
        )

    def sized(self, what: str, pictures: Bytes) -> Bytes:
        """Arranged pictures, if they have the model's size."""
        if pictures.shape[-3:-1] != self.size or not pictures.size:
            found = " x ".join(map(str, pictures.shape[-3:-1]))
            rule = " x ".join(map(str, self.size))
            fix = (
                "the preprocessing that the Program was compiled with has no resize"
                if self.resize is None
                else "patchloom.run and patchloom.Session resize with Pillow: pip install 'patchloom[images]'"
            )
            raise InputError(f"{what} must have {rule} pixels, not {found}: {fix}")
        return pictures

    def normalised(self, pictures: Bytes) -> NDArray[np.float32]:
        """The model's input of pictures [..., height, width, channels] of its size."""
        mean, std = (np.array(numbers, np.float32) for numbers in (self.mean, self.std))
        values: NDArray[np.float32] = (pictures.astype(np.float32) / np.float32(self.divide) - mean) / std
        if self.layout == "HW":
            return values[..., 0]
        return np.moveaxis(values, -1, -3) if self.layout == "CHW" else values

    # --- Rules ---

    def _refuse(self, rules: Iterator[tuple[str, str, bool]]) -> None:
        broken = [
            f"preprocessing.{name} must be {rule}, not {reprlib.repr(getattr(self, name))}"
            for name, rule, holds in rules
            if not holds
        ]
        if broken:
            raise PreprocessingError("\n".join(broken))

    def _types(self) -> Iterator[tuple[str, str, bool]]:
        whole = isinstance(self.size, tuple) and all(type(n) is int and 1 <= n < 1 << 16 for n in self.size)
        yield "size", "height and width, from 1 to 65535", whole and len(self.size) == 2
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = isinstance(value, tuple) and len(value) in (1, 3) and all(map(_is_number, value))
            yield name, "one number for grey, or three for red, green and blue", numbers
        yield "divide", "a number", _is_number(self.divide)
        yield "crop_pct", "a number", _is_number(self.crop_pct)
        yield "layout", f"one of {', '.join(LAYOUTS)}", self.layout in LAYOUTS
        yield "resize", f"one of {', '.join(RESIZES)}, or left out", self.resize in (None, *RESIZES)
        known = self.interpolation in (None, *INTERPOLATIONS)
        yield "interpolation", f"one of {', '.join(INTERPOLATIONS)}, or left out", known

    def _rules(self) -> Iterator[tuple[str, str, bool]]:
        yield "std", f"as many numbers as mean has, {len(self.mean)}", len(self.std) == len(self.mean)
        yield "std", "positive", min(self.std) > 0
        yield "divide", "positive", self.divide > 0
        yield "layout", "CHW or HWC for three channels", self.channels == 1 or self.layout != "HW"
        yield "crop_pct", f"from {SMALLEST_CROP} to 1", SMALLEST_CROP <= self.crop_pct <= 1
        yield "crop_pct", "left out without resize", self.resize is not None or self.crop_pct == 1
        named = self.interpolation is not None
        yield "interpolation", "left out without resize", self.resize is not None or not named
        yield "interpolation", f"one of {', '.join(INTERPOLATIONS)} with resize", self.resize is None or named
        if len(self.std) == len(self.mean) and min(*self.std, self.divide) > 0:
            with np.errstate(all="ignore"):
                ends = self.normalised(np.array([[[0] * self.channels, [255] * self.channels]], np.uint8))
            yield "std", "such that bytes become finite in float32", bool(np.isfinite(ends).all())


def _is_number(value: object) -> bool:
    """Finite, as a float."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


# --- What a user may give ---


NAMES = tuple(field.name for field in fields(Preprocessing))
REQUIRED = tuple(field.name for field in fields(Preprocessing) if field.default is MISSING)
TIMM = ("input_size", "crop_mode")  # what its dictionaries are told by
TIMM_NEEDS = ("crop_pct", "interpolation")
TIMM_MODES = {"center": "crop", "squash": "squash"}


def stated(given: Any) -> Preprocessing:
    """A Preprocessing, its fields in a dictionary, or what `timm.data.resolve_data_config` returns.

    Raises `PreprocessingError` with everything that is wrong.
    """
    if isinstance(given, Preprocessing):
        return given
    if not isinstance(given, Mapping):
        raise PreprocessingError(f"preprocessing must be a Preprocessing or a dictionary, not {type(given).__name__}")
    values, problems = _without_timm(given) if any(name in given for name in TIMM) else (dict(given), [])
    problems += [
        f"preprocessing.{name} is not known: it has {', '.join(NAMES)}" for name in values if name not in NAMES
    ]
    problems += [f"preprocessing must have {name}" for name in REQUIRED if name not in values]
    if problems:
        raise PreprocessingError("\n".join(problems))
    return Preprocessing(**values)


def _without_timm(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields that timm's dictionary states, and what is wrong with it."""
    values, problems = dict(given), []
    size, mode = values.pop("input_size", None), values.pop("crop_mode", "center")
    if clash := sorted({"size", "resize", "layout"} & values.keys()):
        problems.append(f"preprocessing must have {clash[0]} or timm's input_size and crop_mode, not both")
    if isinstance(size, tuple | list) and len(size) == 3:
        values |= {"size": tuple(size[1:]), "layout": "CHW"}
        if isinstance(mean := values.get("mean"), tuple | list) and len(mean) != size[0]:
            problems.append(f"preprocessing.mean must have a number for each of {size[0]} channels, not {len(mean)}")
    else:
        values["size"] = ()
        problems.append(f"preprocessing.input_size must be channels, height and width, not {reprlib.repr(size)}")
    if not isinstance(mode, str) or mode not in TIMM_MODES:
        problems.append(f"preprocessing.crop_mode must be one of {', '.join(TIMM_MODES)}, not {reprlib.repr(mode)}")
    elif {"crop_mode", "crop_pct", "interpolation"} & given.keys():
        values["resize"] = TIMM_MODES[mode]
        problems += [f"preprocessing must have {name}, as timm's has" for name in TIMM_NEEDS if name not in values]
    return values, problems


def by_input(given: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Preprocessing]:
    """The preprocessing of each input that has one: given alone, for the only input, or in a dictionary by name.

    `shapes` are the model's inputs, without a batch dimension. Raises `PreprocessingError`.
    """
    if given is None:
        return {}
    named = isinstance(given, Mapping) and given and all(isinstance(v, Mapping | Preprocessing) for v in given.values())
    if not named:
        if len(shapes) != 1:
            raise PreprocessingError(f"preprocessing must be given by the names of inputs: {', '.join(shapes)}")
        given = dict.fromkeys(shapes, given)
    if unknown := [name for name in given if name not in shapes]:
        raise PreprocessingError(
            f"preprocessing is given for {', '.join(map(repr, unknown))}, the inputs are {', '.join(shapes)}"
        )
    made = {name: stated(value) for name, value in given.items()}
    for name, preprocessing in made.items():
        if preprocessing.shape != tuple(shapes[name]):
            raise PreprocessingError(
                f"preprocessing of '{name}' gives {list(preprocessing.shape)} ({preprocessing.layout}), "
                f"the model takes {list(shapes[name])}"
            )
    return made
