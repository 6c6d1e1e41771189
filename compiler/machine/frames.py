"""Frames: a user's arrays to the regions that a machine reads and writes, and back, whoever runs it."""

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.machine.preprocessing import Preprocessing
from patchloom.compiler.machine.program import Program, Task, from_region, to_region

Samples = dict[str, NDArray[np.floating[Any]]]
Elements = NDArray[np.int16]  # of an input or output region
Frame = tuple[Elements, int | None, int]  # output region, cycles if they are counted, saturations
Tell = Callable[[str, int, int], None]  # what, how many done, of how many


CLIPPED_SHARE = 0.01  # of an input's values: more than that is no outlier


class ClippedWarning(Error, UserWarning):
    """An input is in another range than the program was calibrated for, and its values are clipped."""


@dataclass(frozen=True)
class Result:
    """What a Program computed, by output. Given a batch, every array has its dimension."""

    outputs: Samples
    raw: dict[str, Elements] = field(repr=False)  # outputs as the machine's integers
    cycles: tuple[int, ...] | None  # per frame; only the RTL counts them
    saturations: int  # values that did not fit their format or that ReLU6 clipped, over all frames
    clipped: int  # input values that did not fit theirs


Run = Callable[[Iterable[Elements]], Iterator[Frame]]  # frames by their input regions, one for each, in order


def run_frames(task: Task, samples: list[Samples], batched: bool, run: Run, progress: Tell | None = None) -> Result:
    """What `input_frames` gives, frame by frame. May warn of a `ClippedWarning`."""
    warn_of_clipping(task, samples)
    lost: list[int] = []

    def regions() -> Iterator[Elements]:
        for sample in samples:
            region, clipped = input_region(task, sample)
            lost.append(clipped)
            yield region

    frames = []
    for frame in run(regions()):
        frames.append(frame)
        if progress:
            progress(f"run {task.name}", len(frames), len(samples))
    return result_of(task, frames, batched, sum(lost))


def result_of(task: Task, frames: Sequence[Frame], batched: bool, clipped: int) -> Result:
    """`clipped` is the number of input values that did not fit."""
    outputs, cycles, saturations = zip(*frames, strict=True)
    raw = {port.name: np.stack([from_region(port, output) for output in outputs]) for port in task.outputs}
    if not batched:
        raw = {name: array[0] for name, array in raw.items()}
    values = {port.name: raw[port.name] * 2.0**-port.fraction for port in task.outputs}
    return Result(values, raw, None if None in cycles else cycles, sum(saturations), clipped)


def warn_of_clipping(task: Task, samples: list[Samples]) -> None:
    """Of inputs whose values do not fit, more than outliers."""
    for port in task.inputs:
        values = np.stack([sample[port.name] for sample in samples])
        limit = 2.0 ** (port.width - 1 - port.fraction)
        share = float(np.mean((values < -limit) | (values >= limit)))
        if share > CLIPPED_SHARE:
            warnings.warn(
                f"input '{port.name}': {share:.0%} of its values do not fit and are clipped: they lie from "
                f"{values.min():g} to {values.max():g}, the format that calibration chose reaches from {-limit:g} to "
                f"{limit:g}",
                ClippedWarning,
                stacklevel=2,
            )


def task_of(program: Program, name: str | None) -> Task:
    try:
        return program.task(name)
    except KeyError as error:
        raise InputError(str(error.args[0])) from None


def input_frames(task: Task, inputs: Any) -> tuple[list[Samples], bool]:
    """The samples, each by input, and whether they came as a batch.

    Arrays of type uint8 are pictures for an input that has a preprocessing, and numbers for any other.
    """
    given = by_name("inputs", inputs, [port.name for port in task.inputs])
    batches, counts = {}, {}
    for port in task.inputs:
        value = in_model_units(f"input '{port.name}'", given[port.name], port.preprocessing)
        if value.shape not in (port.shape, (len(value) if value.ndim else 0, *port.shape)) or not value.size:
            rule = f"have shape {list(port.shape)}, or that behind a batch dimension"
            raise InputError(f"input '{port.name}' must {rule}, not {list(value.shape)}")
        counts[port.name] = len(value) if value.ndim > len(port.shape) else None
        batches[port.name] = value if value.ndim > len(port.shape) else value[None]
    if len(set(counts.values())) != 1:
        raise InputError(f"inputs must be one sample or equally many each, not {counts}")
    samples = len(next(iter(batches.values())))
    return [{name: value[i] for name, value in batches.items()} for i in range(samples)], None not in counts.values()


def input_region(task: Task, frame: Samples) -> tuple[Elements, int]:
    """One sample as the machine reads it, and how many of its values did not fit."""
    region, clipped = np.zeros(task.input_bytes // 2, np.int16), 0
    for port in task.inputs:
        elements, lost = to_region(port, frame[port.name])
        used = port.index >= 0  # between them lies what is another input's
        port.part(region)[used] = elements[used]
        clipped += lost
    return region, clipped


def input_samples(task: Task, region: Elements) -> Samples:
    """The sample that `input_region` makes this region of, as far as its formats hold it."""
    samples: Samples = {}
    for port in task.inputs:
        used, value = port.index >= 0, np.zeros(math.prod(port.shape))
        value[port.index[used]] = port.part(region)[used] * 2.0**-port.fraction
        samples[port.name] = value.reshape(port.shape)
    return samples


# --- What a user may give ---


def in_model_units(name: str, value: Any, preprocessing: Preprocessing | None) -> NDArray[np.floating[Any]]:
    """As `as_floats`; what is of type uint8 is a picture if there is a preprocessing for it."""
    if preprocessing is None:
        return as_floats(name, value)
    array = as_array(name, value)
    if array.dtype == np.uint8:
        return preprocessing.applied(name, array)
    if array.dtype.kind in "iub":
        raise InputError(
            f"{name} must be of type uint8, which is a picture, or hold floats in the model's units, not {array.dtype}"
        )
    return as_floats(name, array)


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Of a tensor or array, whatever it holds."""
    try:
        return _from_torch(value) if _is_tensor(value) else np.asarray(value)
    except ValueError as error:  # of unequal lengths
        raise InputError(f"{name} is no array: {error}") from error


def as_floats(name: str, value: Any) -> NDArray[np.floating[Any]]:
    """A tensor or array of numbers as finite floats."""
    array = as_array(name, value)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} must hold numbers, not {array.dtype}")
    floats: NDArray[np.floating[Any]] = array if array.dtype.kind == "f" else array.astype(np.float32)
    bad = np.count_nonzero(~np.isfinite(floats))
    if bad:
        raise InputError(f"{name} must be finite, {bad} of its {floats.size} values are NaN or infinite")
    return floats


def _is_tensor(value: Any) -> bool:
    """Whether it is torch's, which need not be installed."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _from_torch(tensor: Any) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())


def by_name(what: str, value: Any, names: list[str]) -> dict[str, Any]:
    """One value per input, given as a dictionary, as a tuple in the inputs' order, or alone."""
    if isinstance(value, dict):
        if set(value) != set(names):
            raise InputError(f"{what} must be given for {_listed(names)}, not for {_listed(value)}")
        return {name: value[name] for name in names}
    values = list(value) if isinstance(value, tuple) else [value]
    if len(values) != len(names):
        raise InputError(f"{what} must be given for {_listed(names)}, not {len(values)} of them")
    return dict(zip(names, values, strict=True))


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "no input"
