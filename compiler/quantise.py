"""From floats to integers: number formats measured on calibration samples, weights scaled per output channel.

A tensor's value is `integer * scale`. The residual stream and whatever is normalised has 16 bits and shares
one scale along every chain of residual adds, since the epilogue adds the residual as it is. All else has the
bits of the layer that reads it, and the scale of least mean squared error. Scales are powers of two only where
something shifts: what comes in, goes out, or leaves a GELU.

Tasks are calibrated together: a layer that several tasks run has one format and one weight image.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.graph import Floats, Graph, Node, evaluate
from patchloom.compiler.machine.commands import FIELDS
from patchloom.compiler.machine.config import BIAS_WIDTH
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.fixed import (
    EPILOGUE_WIDTH,
    GELU_FRACTION,
    MEAN_GUARD,
    ROW_ONE,
    SCORE_FRACTION,
    Ints,
    multiplier_of,
    operand_limits,
)
from patchloom.compiler.nodes import Attention, Input, Matmul, Moe, Output

Progress = Callable[[str, int, int], None]  # what, how many done, of how many

GATE_WIDTH = 16  # bits of a gate's operand and weights: a wrong choice of expert costs more than four bytes
HEADROOM = 1.5  # of 16-bit tensors beyond the largest calibrated magnitude
GATE_GUARD = 6  # fractional bits of an expert's result beyond the output's, while it meets its score
SOFTMAX_DEPTH = 16.0  # e**-16 is nothing in a softmax of 16 bits
SOFTMAX_GUARD = 12  # at most, of a softmax-weighted sum
WEIGHT_LIMIT = {4: 7, 8: 127, 16: operand_limits(16)[1]}
CLIPPING = {4: np.linspace(1, 0.4, 13), 8: np.linspace(1, 0.8, 5), 16: np.ones(1)}  # of a channel's largest weight
EPSILON_WIDTH = FIELDS["epsilon"][0]
SAMPLE = 1 << 15  # values of one tensor that its scale is chosen by


class QuantiseError(Error, ValueError):
    """What cannot be expressed in integers, and where."""


# --- Precision ---


@dataclass(frozen=True)
class Precision:
    """Bits of weights (4, 8, 16) and activations (8, 16); `overrides` are (name pattern, weights, activations)."""

    weights: int
    activations: int
    overrides: tuple[tuple[str, int, int], ...] = ()

    @staticmethod
    def parse(text: str, overrides: Mapping[str, str] | None = None) -> "Precision":
        """'w8a16', and per layer {fnmatch pattern of the node's name: 'w4a8'}; the last match counts."""
        layers = tuple((pattern, *_bits(layer)) for pattern, layer in (overrides or {}).items())
        return Precision(*_bits(text), layers)

    def of(self, name: str) -> tuple[int, int]:
        """(weight bits, activation bits) of the node `name`."""
        matches = [bits for pattern, *bits in self.overrides if fnmatchcase(name, pattern)]
        weights, activations = matches[-1] if matches else (self.weights, self.activations)
        return weights, activations

    def __str__(self) -> str:
        layers = [f"{pattern}: w{weights}a{activations}" for pattern, weights, activations in self.overrides]
        return ", ".join([f"w{self.weights}a{self.activations}", *layers])

    def check(self, names: Iterable[str]) -> None:
        """Every pattern must match a name."""
        known = list(names)
        idle = [pattern for pattern, *_ in self.overrides if not any(fnmatchcase(name, pattern) for name in known)]
        if idle:
            patterns = ", ".join(f"'{pattern}'" for pattern in idle)
            raise QuantiseError(f"precision override {patterns} matches no layer; layers are {', '.join(known)}")


def _bits(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"w(4|8|16)a(8|16)", text)
    if not match:
        raise QuantiseError(f"precision must be w4, w8 or w16 with a8 or a16, e.g. w8a8, not {text!r}")
    return int(match[1]), int(match[2])


# --- What the scheduler gets ---


@dataclass(frozen=True)
class Format:
    """value = integer * scale; `width` bits, signed."""

    width: int
    scale: float

    @property
    def fraction(self) -> int:
        """Of a power-of-two scale, which those of inputs and outputs are."""
        mantissa, exponent = math.frexp(self.scale)
        assert mantissa == 0.5
        return 1 - exponent


@dataclass(frozen=True)
class Normalise:
    """Fields of a command that normalises its operand; see `sim.interpret`."""

    mean_multiplier: int
    mean_shift: int
    norm_scale: int
    norm_shift: int
    epsilon: int


@dataclass(frozen=True)
class Operand:
    """The streamed side of a product. Without `normalise` it is the stored tensor."""

    format: Format
    normalise: Normalise | None = None


@dataclass(frozen=True, eq=False)
class Linear:
    """One product: operand, integer weights [inputs, outputs], epilogue."""

    operand: Operand
    matrix: NDArray[np.int16] = field(repr=False)
    bits: int  # of a weight
    bias: Ints = field(repr=False)  # the rest as in `layout.Weights`
    multiplier: Ints = field(repr=False)
    shift: Ints = field(repr=False)
    activation: str
    post_shift: int


@dataclass(frozen=True)
class AttentionNumbers:
    scores: Format  # in units of log2
    exp_shift: int
    score_multiplier: int
    score_shift: int
    width: int  # bits of the exponentials
    multiplier: int
    shift: int
    post_shift: int


@dataclass(frozen=True, eq=False)
class ExpertNumbers:
    number: int  # in the model
    first: Linear
    second: Linear
    expected: bool  # it had tokens in every calibration sample


@dataclass(frozen=True, eq=False)
class MoeNumbers:
    """Experts with many tokens in calibration come first: weights of later ones arrive while these multiply.

    With fetching and multiplying as the two machines of a flow shop this is Johnson's order (1954), as all experts
    take equally long to fetch. The gate's channels are in the same order.
    """

    gate: Linear
    logits: Format  # in units of log2
    exp_shift: int
    hidden: Format
    experts: tuple[ExpertNumbers, ...] = field(repr=False)


Numbers = Linear | AttentionNumbers | MoeNumbers


@dataclass(frozen=True, eq=False)
class Quantised:
    """Graphs with a format per stored tensor and integers per Matmul, Attention and Moe."""

    graphs: tuple[Graph, ...]
    precision: Precision
    formats: dict[Node, Format] = field(repr=False)
    numbers: dict[Node, Numbers] = field(repr=False)


def quantise(
    graphs: list[Graph],
    calibration: Mapping[str, NDArray[np.floating]],
    precision: Precision,
    progress: Progress | None = None,
) -> Quantised:
    """`calibration` holds [samples, ...] per user input; `progress` is told of every sample and layer."""
    tell = progress or (lambda what, done, total: None)
    layers = _unique(node for graph in graphs for node in graph.nodes() if isinstance(node, Matmul | Attention | Moe))
    precision.check(dict.fromkeys(node.name for node in layers))
    keys = _keys(graphs)
    seen, loads = _observe(graphs, calibration, keys, tell)
    formats = _formats(graphs, precision, keys, seen)
    maker = _Maker(
        precision,
        formats,
        {node: {q: o for (k, q), o in seen.items() if k == keys[node]} for node in layers},
        loads,
    )
    numbers = {}
    for done, node in enumerate(layers):
        tell("quantise", done, len(layers))
        numbers[node] = maker.numbers(node)
    tell("quantise", len(layers), len(layers))
    return Quantised(tuple(graphs), precision, formats, numbers)


def _unique(nodes: Iterable[Node]) -> list[Node]:
    return list({id(node): node for node in nodes}.values())


# --- Calibration ---

Key = tuple[type[Node], str, int, tuple[int, int]]


def _keys(graphs: list[Graph]) -> dict[Node, Key]:
    """Tells which nodes of different tasks are the same layer: type, name, count of that name, shape."""
    keys: dict[Node, Key] = {}
    for graph in graphs:
        count: Counter[tuple[type[Node], str]] = Counter()
        for node in graph.nodes():
            kind = type(node), node.name
            keys.setdefault(node, (*kind, count[kind], node.shape))
            count[kind] += 1
    return keys


@dataclass
class Observed:
    """Largest magnitude of a quantity, and a random sample of its values."""

    absmax: float = 0.0
    parts: list[Floats] = field(default_factory=list, repr=False)

    def add(self, array: Floats, count: int, rng: np.random.Generator) -> None:
        if array.size:
            self.absmax = max(self.absmax, float(np.abs(array).max()))
            flat = array.reshape(-1)
            self.parts.append(flat[rng.integers(0, flat.size, min(count, flat.size))])

    @property
    def values(self) -> Floats:
        return np.concatenate(self.parts)


@dataclass
class Load:
    """Calibration's tokens of each expert of one task's mixture: of all samples, and of the sample with fewest."""

    total: Ints
    least: Ints

    def add(self, tokens: Ints) -> None:
        self.total, self.least = self.total + tokens, np.minimum(self.least, tokens)


Seen = dict[tuple[Key, str], Observed]


def _observe(
    graphs: list[Graph], calibration: Mapping[str, NDArray[np.floating]], keys: dict[Node, Key], tell: Progress
) -> tuple[Seen, dict[Node, Load]]:
    """What every layer saw, and where every mixture sent its tokens."""
    samples = _samples(graphs, calibration)
    seen: Seen = {}
    loads: dict[Node, Load] = {}
    rng = np.random.default_rng(0)
    count = max(SAMPLE // (samples * len(graphs)), 256)

    def observe(node: Node, quantity: str, array: Floats) -> None:
        if not np.isfinite(array).all():
            raise QuantiseError(f"calibration: {quantity} of '{node.name}' is not finite")
        if quantity in {"scores", "logits"}:  # what is far below its row's maximum may saturate there
            array = np.maximum(array, array.max(axis=-1, keepdims=True) - SOFTMAX_DEPTH)
        if quantity == "choice":
            assert isinstance(node, Moe)
            tokens = np.bincount(array.reshape(-1), minlength=len(node.experts))
            loads.setdefault(node, Load(0 * tokens, tokens)).add(tokens)
        seen.setdefault((keys[node], quantity), Observed()).add(array, count, rng)

    for sample in range(samples):
        inputs = {name: np.asarray(array[sample], np.float32) for name, array in calibration.items()}
        for number, graph in enumerate(graphs):
            tell("calibrate", sample * len(graphs) + number, samples * len(graphs))
            evaluate(graph, inputs, observe)
    tell("calibrate", samples * len(graphs), samples * len(graphs))
    return seen, loads


def _samples(graphs: list[Graph], calibration: Mapping[str, NDArray[np.floating]]) -> int:
    """How many there are."""
    shapes = {n.name: n.user_shape for graph in graphs for n in graph.nodes() if isinstance(n, Input)}
    if set(shapes) != set(calibration):
        raise QuantiseError(
            f"calibration must have samples of {', '.join(sorted(shapes))}, not of {', '.join(sorted(calibration))}"
        )
    for name, shape in shapes.items():
        if calibration[name].shape[1:] != shape or not len(calibration[name]):
            raise QuantiseError(
                f"calibration samples of '{name}' must have shape (samples, {', '.join(map(str, shape))}), "
                f"not {calibration[name].shape}"
            )
    counts = {len(array) for array in calibration.values()}
    if len(counts) > 1:
        raise QuantiseError(f"calibration must have as many samples of each input, not {sorted(counts)}")
    return counts.pop() if counts else 1


# --- Formats ---


def _formats(graphs: list[Graph], precision: Precision, keys: dict[Node, Key], seen: Seen) -> dict[Node, Format]:
    nodes = [node for graph in graphs for node in graph.nodes() if not isinstance(node, Output)]
    widths = _widths(graphs, precision, keys)
    chains = Chains()
    for node in nodes:
        if isinstance(node, Matmul | Moe) and node.residual is not None:
            chains.join(keys[node], keys[node.residual])
    powers = {keys[x] for graph in graphs for n in graph.outputs for x in n.inputs}
    powers |= {keys[n] for n in nodes if isinstance(n, Input)}
    powers |= {keys[n] for n in nodes if isinstance(n, Matmul) and n.activation == "gelu"}
    finest = _finest(nodes, keys)
    formats: dict[Key, Format] = {}
    for members in chains.groups(keys[node] for node in nodes):
        observed = [seen[key, "output"] for key in members]
        largest = Observed(max(o.absmax for o in observed), [part for o in observed for part in o.parts])
        width = widths[members[0]]
        power = not powers.isdisjoint(members)
        scale = max(scale_of(largest, width, power=power), *(finest.get(key, 0) for key in members), 0)
        formats |= dict.fromkeys(members, Format(width, power_of_two(scale) if power else scale))
    return {node: formats[keys[node]] for node in nodes}


def _finest(nodes: list[Node], keys: dict[Node, Key]) -> dict[Key, float]:
    """Scales that must not be finer: a GELU's result is shifted right; a normalised one's epsilon has 48 bits."""
    finest: dict[Key, float] = {}
    for node in nodes:
        if isinstance(node, Matmul) and node.activation == "gelu":
            finest[keys[node]] = max(finest.get(keys[node], 0), 2.0**-GELU_FRACTION)
        if isinstance(node, Matmul | Moe) and node.epsilon is not None:
            least = node.x.shape[1] * math.sqrt(node.epsilon / 2 ** (EPSILON_WIDTH - 1))
            finest[keys[node.x]] = max(finest.get(keys[node.x], 0), least)
    return finest


def _widths(graphs: list[Graph], precision: Precision, keys: dict[Node, Key]) -> dict[Key, int]:
    """Bits each tensor is stored with: the most that a reader asks for."""
    widths: dict[Key, int] = {}
    for graph in graphs:
        for node in graph.nodes():
            for tensor, width in _wants(node, precision):
                widths[keys[tensor]] = max(widths.get(keys[tensor], 8), width)
    return widths


def _wants(node: Node, precision: Precision) -> Iterator[tuple[Node, int]]:
    _, activations = precision.of(node.name)
    if isinstance(node, Output):
        yield node.x, 16
    elif isinstance(node, Attention):
        yield from ((tensor, activations) for tensor in node.inputs)
    elif isinstance(node, Matmul | Moe):
        yield node.x, activations if isinstance(node, Matmul) and node.epsilon is None else 16
        if node.residual is not None:
            yield from ((node, 16), (node.residual, 16))


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


def power_of_two(scale: float) -> float:
    """The next one up."""
    return float(2.0 ** math.ceil(math.log2(scale)))


def wide_scale(absmax: float) -> float:
    """Of 16 bits, with headroom."""
    return (absmax or 1) * HEADROOM / operand_limits(16)[1]


def narrow_scale(observed: Observed, *, power: bool) -> float:
    """Of 8 bits, with the least mean squared error: a finer step costs clipped outliers."""
    full = (observed.absmax or 1) / 127
    candidates = [power_of_two(full) / 2**i for i in range(4)] if power else [full * 2 ** (-i / 8) for i in range(21)]
    values = observed.values.astype(np.float64)

    def error(scale: float) -> float:
        return float(np.square(np.clip(np.rint(values / scale), -128, 127) * scale - values).mean())

    return min(candidates, key=error)


def scale_of(observed: Observed, width: int, *, power: bool = False) -> float:
    if width == 8:
        return narrow_scale(observed, power=power)
    return power_of_two(wide_scale(observed.absmax)) if power else wide_scale(observed.absmax)


# --- Integers of one layer ---


class _Maker:
    """Makes `Numbers`; equal weights with equal formats are quantised once."""

    def __init__(
        self,
        precision: Precision,
        formats: dict[Node, Format],
        seen: dict[Node, dict[str, Observed]],
        loads: dict[Node, Load],
    ) -> None:
        self.precision, self.formats, self.seen, self.loads = precision, formats, seen, loads
        self.made: dict[object, Linear] = {}

    def numbers(self, node: Node) -> Numbers:
        try:
            if isinstance(node, Matmul):
                return self._matmul(node)
            return self._attention(node) if isinstance(node, Attention) else self._moe(node)  # type: ignore[arg-type]
        except ValueError as error:
            raise QuantiseError(f"{type(node).__name__.lower()} '{node.name}': {error}") from error

    def _matmul(self, node: Matmul) -> Linear:
        weights, activations = self.precision.of(node.name)
        out, gelu = self.formats[node], node.activation == "gelu"
        return self.linear(
            self.operand(node, activations), node.weight, node.bias, weights, node.activation,
            2.0**-GELU_FRACTION if gelu else out.scale, GELU_FRACTION - out.fraction if gelu else 0,
        )  # fmt: skip

    def operand(self, node: Matmul | Moe, width: int) -> Operand:
        stored = self.formats[node.x]
        if node.epsilon is None:
            return Operand(stored)
        scale = scale_of(self.seen[node]["operand"], width)
        scale, constants = normalise_constants(node.x.shape[1], node.epsilon, stored.scale, scale)
        return Operand(Format(width, scale), constants)

    def linear(
        self, operand: Operand, weight: Floats, bias: Floats, bits: int, activation: str, word: float, shift: int
    ) -> Linear:
        """`word` is the scale of the epilogue's word, `shift` its distance to the output's scale."""
        digest = blake2b(weight.tobytes()).digest(), blake2b(bias.tobytes()).digest()
        key = (operand, digest, weight.shape, bits, activation, word, shift)
        if key not in self.made:
            self.made[key] = quantise_linear(operand, weight, bias, bits, activation, word, shift)
        return self.made[key]

    def _attention(self, node: Attention) -> AttentionNumbers:
        q, k, v, out = (self.formats[n] for n in (node.q, node.k, node.v, node))
        _, width = self.precision.of(node.name)
        scores, exp_shift = log2_format(self.seen[node]["scores"])
        ratio = v.scale / out.scale
        # The word is (sum / 2**exponent <= 2) times a mean of v.
        post_shift = min(max(EPILOGUE_WIDTH - 1 - v.width - math.ceil(math.log2(ratio)), 0), SOFTMAX_GUARD)
        return AttentionNumbers(
            scores, exp_shift, *multiplier_of(node.scale * math.log2(math.e) * q.scale * k.scale / scores.scale),
            width, *multiplier_of(ratio * 2**post_shift), post_shift,
        )  # fmt: skip

    def _moe(self, node: Moe) -> MoeNumbers:
        weights, activations = self.precision.of(node.name)
        seen, out, load = self.seen[node], self.formats[node], self.loads[node]
        order = np.argsort(-load.total, kind="stable")
        logits, exp_shift = log2_format(seen["logits"])
        word = logits.scale / math.log2(math.e)
        gate = self.linear(
            self.operand(node, GATE_WIDTH), node.gate_weight[order], node.gate_bias[order], GATE_WIDTH, "none", word, 0
        )  # fmt: skip
        gelu = node.activation == "gelu"
        hidden = Format(activations, scale_of(seen["hidden"], activations, power=gelu))
        if gelu:
            hidden = Format(activations, max(hidden.scale, 2.0**-GELU_FRACTION))
        operand = self.operand(node, activations)
        first = 2.0**-GELU_FRACTION if gelu else hidden.scale

        def expert(number: int) -> ExpertNumbers:
            e, shift = node.experts[number], GELU_FRACTION - hidden.fraction if gelu else 0
            return ExpertNumbers(
                number,
                self.linear(operand, e.w1, e.b1, weights, node.activation, first, shift),
                self.linear(Operand(hidden), e.w2, e.b2, weights, "none", out.scale / 2**GATE_GUARD, GATE_GUARD),
                expected=bool(load.least[number]),
            )

        return MoeNumbers(gate, logits, exp_shift, hidden, tuple(expert(number) for number in order.tolist()))


def log2_format(observed: Observed) -> tuple[Format, int]:
    """16-bit format in units of log2 of natural logits, and the shift to SCORE_FRACTION."""
    scale = power_of_two(wide_scale(observed.absmax * math.log2(math.e)))
    fraction = min(-round(math.log2(scale)), SCORE_FRACTION)
    if fraction < 0:
        raise ValueError(f"scores reach {observed.absmax:.3g}, too far for a softmax of 16 bits")
    return Format(16, 2.0**-fraction), SCORE_FRACTION - fraction


def normalise_constants(features: int, epsilon: float, x_scale: float, scale: float) -> tuple[float, Normalise]:
    """Constants that yield an operand of `scale`, or of the finest coarser scale that a right shift can reach."""
    added = max(round(epsilon * features**2 / x_scale**2), 1)
    if added >= 1 << EPSILON_WIDTH:
        raise ValueError(f"epsilon {epsilon} is too large for its input's scale of {x_scale}")
    smallest = (added.bit_length() - 1) >> 1  # exponent of the reciprocal root of no variance
    wanted, scale = scale, max(scale, features * 2.0 ** -(16 + MEAN_GUARD + smallest))
    if scale > 64 * wanted:
        raise ValueError(f"epsilon {epsilon} is too small for its input's scale of {x_scale}")
    mantissa, exponent = math.frexp(features / scale)
    if mantissa == 0.5:
        mantissa, exponent = 1.0, exponent - 1
    return scale, Normalise(
        *multiplier_of(2**MEAN_GUARD / features),
        norm_scale=round(ROW_ONE * mantissa),
        norm_shift=16 + MEAN_GUARD - exponent,
        epsilon=added,
    )


def quantise_linear(
    operand: Operand, weight: Floats, bias: Floats, bits: int, activation: str, word: float, post_shift: int
) -> Linear:
    x = operand.format
    scale = np.maximum(_least_error(weight, bits), _least_scale(weight, bias, x, word))
    limit = WEIGHT_LIMIT[bits]
    matrix = np.clip(np.rint(weight / scale[:, None]), -limit, limit).astype(np.int16)
    factors = np.array([multiplier_of(float(s)) for s in scale * x.scale / word], np.int64)
    integers = np.rint(bias.astype(np.float64) / (scale * x.scale)).astype(np.int64)
    return Linear(
        operand, np.ascontiguousarray(matrix.T), bits, integers, factors[:, 0], factors[:, 1], activation, post_shift
    )


def _least_error(weight: Floats, bits: int) -> NDArray[np.float64]:
    """Scale per output channel with the least mean squared error."""
    limit = WEIGHT_LIMIT[bits]
    full: NDArray[np.float64] = np.abs(weight).max(axis=1).astype(np.float64) / limit
    if len(CLIPPING[bits]) == 1:
        return full
    safe = np.where(full > 0, full, 1).astype(np.float32)
    errors = []
    for part in CLIPPING[bits].astype(np.float32):
        step = (safe * part)[:, None]
        errors.append(np.square(np.clip(np.rint(weight / step), -limit, limit) * step - weight).sum(axis=1))
    best: NDArray[np.float64] = full * CLIPPING[bits][np.argmin(errors, axis=0)]
    return best


def _least_scale(weight: Floats, bias: Floats, x: Format, word: float) -> NDArray[np.float64]:
    """Below it a channel's sum could leave the accumulator, or its multiplier the 16 bits."""
    largest = np.abs(weight).sum(axis=1, dtype=np.float64) * 2 ** (x.width - 1) + np.abs(bias) / x.scale
    least: NDArray[np.float64] = np.maximum(largest / 2 ** (BIAS_WIDTH - 1) * 1.01, word / x.scale * 2.0**-32)
    return least
