"""The number format of every stored tensor: its bits and its scale."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.machine.fixed import SCORE_FRACTION, Ints, operand_limits, saturate
from patchloom.compiler.node import Floats, Node
from patchloom.compiler.quantise.calibration import HEADROOM, Calibration, Key, Observed
from patchloom.compiler.quantise.errors import QuantiseError
from patchloom.compiler.quantise.precision import Precision

NARROW = 8  # bits of what no reader wants wider
LIMIT_FRACTION = 14  # log2 of the integer that stands for an activation's limit in 16 bits
SOFTMAX_DEPTH = 16.0  # e**-16 is nothing in a softmax of 16 bits


@dataclass(frozen=True)
class Format:
    """value = integer * scale; `width` bits, signed."""

    width: int
    scale: float

    def round(self, values: Floats) -> Ints:
        """The nearest integers; what is out of range saturates."""
        return saturate(np.floor(values.astype(np.float64) / self.scale + 0.5), self.width)

    @property
    def fraction(self) -> int:
        """Of a power-of-two scale, which those of inputs and outputs are."""
        mantissa, exponent = math.frexp(self.scale)
        assert mantissa == 0.5
        return 1 - exponent


@dataclass(frozen=True)
class Demand:
    """What a node asks of a tensor's format; `a | b` is what both ask."""

    width: int = NARROW  # bits, at least
    power_of_two: bool = False  # its scale, because something shifts by it
    finest: float = 0.0  # its scale must not be finer
    limits: frozenset[float] = frozenset()  # where saturation must clip

    def __or__(self, other: "Demand") -> "Demand":
        return Demand(
            max(self.width, other.width),
            self.power_of_two or other.power_of_two,
            max(self.finest, other.finest),
            self.limits | other.limits,
        )


def demand_of(activation: str) -> Demand:
    """What a function asks of the format of its result: a table's is shifted right, a clipped one's clips."""
    row = ACTIVATIONS[activation]
    return Demand(
        power_of_two=row.fraction is not None,
        finest=0.0 if row.fraction is None else 2.0**-row.fraction,
        limits=frozenset() if row.limit is None else frozenset({row.limit}),
    )


def choose_formats(graphs: Sequence[Graph], precision: Precision, calibration: Calibration) -> dict[Node, Format]:
    """Of every stored tensor; layers that are the same in several tasks have the same."""
    keys = calibration.keys
    tensors = [node for graph in graphs for node in graph.tensors()]
    demands, chains = _demands(graphs, precision, keys), Chains()
    for node in tensors:
        if node.residual is not None:
            chains.join(keys[node], keys[node.residual.node])
    inputs: dict[str, Key] = {}
    for node in tensors:
        if node.user_input is not None:  # however many layouts it is read in
            chains.join(keys[node], inputs.setdefault(node.name, keys[node]))
    formats: dict[Key, Format] = {}
    for members in chains.groups(keys[node] for node in tensors):
        observed = Observed.of_all([calibration.seen[key, "output"] for key in members])
        demand = Demand()
        for key in members:
            demand |= demands.get(key, Demand())
        try:
            formats |= dict.fromkeys(members, format_of(observed, demand))
        except ValueError as error:
            raise QuantiseError(f"{', '.join(name for _, name, *_ in members)}: {error}") from error
    return {node: formats[keys[node]] for node in tensors}


def _demands(graphs: Sequence[Graph], precision: Precision, keys: Mapping[Node, Key]) -> dict[Key, Demand]:
    demands: dict[Key, Demand] = {}
    for graph in graphs:
        for node in graph.nodes():
            for tensor, demand in node.demands(precision.of(node.name)[1]):
                demands[keys[tensor]] = demands.get(keys[tensor], Demand()) | demand
    return demands


class Chains:
    """Union-find: what is connected by residual adds."""

    def __init__(self) -> None:
        self.parent: dict[Key, Key] = {}

    def root(self, key: Key) -> Key:
        while self.parent.setdefault(key, key) != key:
            key = self.parent[key]
        return key

    def join(self, a: Key, b: Key) -> None:
        self.parent[self.root(a)] = self.root(b)

    def groups(self, keys: Iterable[Key]) -> list[list[Key]]:
        out: dict[Key, list[Key]] = {}
        for key in dict.fromkeys(keys):
            out.setdefault(self.root(key), []).append(key)
        return list(out.values())


# --- Scales ---


def format_of(observed: Observed, demand: Demand) -> Format:
    """Of a tensor with these values."""
    scale = max(scale_of(observed, demand.width, power=demand.power_of_two), demand.finest)
    if demand.power_of_two:
        scale = power_of_two(scale)
    return Format(demand.width, _clipping(scale, demand) if demand.limits else scale)


def _clipping(scale: float, demand: Demand) -> float:
    """At least `scale`, and such that saturation clips at the limit: see `linear.Epilogue`."""
    limit, *others = sorted(demand.limits)
    if demand.width < ELEMENT_WIDTH:
        coarser = limit / operand_limits(demand.width)[1]
    else:
        finest = limit * 2.0**-LIMIT_FRACTION
        coarser = finest * max(power_of_two(scale / finest), 1)
    if others:
        raise ValueError(f"must be clipped alike in all tasks, not at {limit:g} and at {others[0]:g}")
    if demand.power_of_two and power_of_two(coarser) != coarser:
        raise ValueError(f"what is clipped at {limit:g} must not be an output; put a linear layer behind it")
    return coarser


def power_of_two(scale: float) -> float:
    """The next one up."""
    return float(2.0 ** math.ceil(math.log2(scale)))


def wide_scale(observed: Observed, *, power: bool) -> float:
    """Of 16 bits: holds what other samples are expected to have; a power of two, half as much again as was seen."""
    most = (1 + HEADROOM) * observed.absmax if power else observed.reach
    scale = (most or 1) / operand_limits(ELEMENT_WIDTH)[1]
    return power_of_two(scale) if power else scale


def narrow_scale(observed: Observed, *, power: bool) -> float:
    """Of 8 bits, with the least mean squared error: a finer step costs clipped outliers."""
    low, high = operand_limits(NARROW)
    full = (observed.absmax or 1) / high
    candidates = [power_of_two(full) / 2**i for i in range(4)] if power else [full * 2 ** (-i / 8) for i in range(21)]
    values = observed.values.astype(np.float64)

    def error(scale: float) -> float:
        return float(np.square(np.clip(np.rint(values / scale), low, high) * scale - values).mean())

    return min(candidates, key=error)


def scale_of(observed: Observed, width: int, *, power: bool = False) -> float:
    if width < ELEMENT_WIDTH:
        return narrow_scale(observed, power=power)
    return wide_scale(observed, power=power)


# --- Softmax ---


def near_maximum(logits: Floats) -> Floats:
    """What is far below its row's maximum may saturate."""
    near: Floats = np.maximum(logits, logits.max(axis=-1, keepdims=True) - np.float32(SOFTMAX_DEPTH))
    return near


def log2_format(observed: Observed) -> tuple[Format, int]:
    """16-bit format in units of log2 of natural logits, and the shift to SCORE_FRACTION."""
    bits = math.log2(math.e)
    scale = wide_scale(Observed(observed.low * bits, observed.high * bits), power=True)
    fraction = min(-round(math.log2(scale)), SCORE_FRACTION)
    if fraction < 0:
        raise ValueError(f"scores reach {observed.absmax:.3g}, too far for a softmax of 16 bits")
    return Format(ELEMENT_WIDTH, 2.0**-fraction), SCORE_FRACTION - fraction
