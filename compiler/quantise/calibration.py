"""What a model's tensors hold when it runs on samples of its inputs."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.graph import Graph, evaluate
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.node import Floats, Node
from patchloom.compiler.quantise.errors import QuantiseError

Progress = Callable[[str, int, int], None]  # what, how many done, of how many
Samples = Mapping[str, NDArray[np.floating]]  # [samples, ...] per user input
Key = tuple[str, str, int, tuple[int, ...]]

SAMPLE = 1 << 15  # values of one tensor that its scale is chosen by
FEWEST = 256  # of them, of each time it is computed
HEADROOM = 0.5  # by which other samples may exceed the largest magnitude of one
RARE = 1000  # samples, of which one may have a larger magnitude than is held


def keys_of(graphs: Sequence[Graph]) -> dict[Node, Key]:
    """Tells which nodes of different tasks are the same layer: kind, name, count of that name, shape."""
    keys: dict[Node, Key] = {}
    for graph in graphs:
        count: Counter[tuple[str, str]] = Counter()
        for node in graph.nodes():
            name = node.kind, node.name
            keys.setdefault(node, (*name, count[name], node.shape))
            count[name] += 1
    return keys


def reach(peaks: Sequence[float]) -> float:
    """What peaks of other samples exceed once in `RARE`, if they are distributed as maxima are (Gumbel).

    Few peaks tell little of how they are spread, so it is taken for larger; it is half as much again at the most.
    """
    if not peaks:
        return 0.0
    largest, count = max(peaks), len(peaks)
    spread = float(np.std(peaks, ddof=1)) * (1 + 2 / math.sqrt(count)) if count > 1 else math.inf
    beyond = math.sqrt(6) / math.pi * spread * max(math.log(RARE / count), 0.0)
    return largest + min(beyond, HEADROOM * largest)


@dataclass
class Observed:
    """Range of a quantity, 0 included, and a random sample of its values."""

    low: float = 0.0
    high: float = 0.0
    parts: list[Floats] = field(default_factory=list, repr=False)
    peaks: list[float] = field(default_factory=list, repr=False)  # the largest magnitude, each time that it was seen
    least: float = np.inf  # 0 not included
    most: float = -np.inf

    def add(self, array: Floats, count: int, rng: np.random.Generator) -> None:
        if array.size:
            self.low, self.high = min(self.low, float(array.min())), max(self.high, float(array.max()))
            self.least, self.most = min(self.least, float(array.min())), max(self.most, float(array.max()))
            self.peaks.append(float(np.abs(array).max()))
            flat = array.reshape(-1)
            self.parts.append(flat[rng.integers(0, flat.size, min(count, flat.size))])

    @property
    def absmax(self) -> float:
        return max(-self.low, self.high)

    @property
    def reach(self) -> float:
        """The largest magnitude that other samples are expected to have."""
        return max(self.absmax, reach(self.peaks))

    @property
    def values(self) -> Floats:
        return np.concatenate(self.parts)

    @staticmethod
    def of_all(several: Sequence["Observed"]) -> "Observed":
        low, high = min(o.low for o in several), max(o.high for o in several)
        least, most = min(o.least for o in several), max(o.most for o in several)
        parts = [part for o in several for part in o.parts]
        return Observed(low, high, parts, max((o.peaks for o in several), key=reach), least, most)


@dataclass(eq=False)
class Calibration:
    """What every layer saw, by key and quantity, and what every node chose: its integer quantities, per sample."""

    keys: dict[Node, Key]
    seen: dict[tuple[Key, str], Observed] = field(default_factory=dict)
    chosen: dict[Node, list[Ints]] = field(default_factory=dict)

    def observed(self, node: Node, quantity: str) -> Observed:
        return self.seen[self.keys[node], quantity]

    def run(self, graphs: Sequence[Graph], samples: Samples, tell: Progress) -> None:
        """Raises `QuantiseError` if the samples do not fit the graphs or something is not finite."""
        number = _count(graphs, samples)
        total, rng = number * len(graphs), np.random.default_rng(0)
        values = max(SAMPLE // total, FEWEST)

        def observe(node: Node, quantity: str, array: NDArray[Any]) -> None:
            if not np.isfinite(array).all():
                raise QuantiseError(f"calibration: {quantity} of '{node.name}' is not finite")
            if np.issubdtype(array.dtype, np.integer):
                self.chosen.setdefault(node, []).append(array)
            seen = self.seen.setdefault((self.keys[node], quantity), Observed())
            seen.add(node.relevant(quantity, array), values, rng)

        for done in range(total):
            tell("calibrate", done, total)
            sample, graph = divmod(done, len(graphs))
            inputs = {name: np.asarray(array[sample], np.float32) for name, array in samples.items()}
            evaluate(graphs[graph], inputs, observe)
        tell("calibrate", total, total)


def _count(graphs: Sequence[Graph], samples: Samples) -> int:
    """How many samples there are."""
    shapes = {name: shape for graph in graphs for name, shape in graph.inputs().items()}
    if set(shapes) != set(samples):
        raise QuantiseError(
            f"calibration must have samples of {', '.join(sorted(shapes))}, not of {', '.join(sorted(samples))}"
        )
    for name, shape in shapes.items():
        if samples[name].shape[1:] != shape or not len(samples[name]):
            raise QuantiseError(
                f"calibration samples of '{name}' must have shape (samples, {', '.join(map(str, shape))}), "
                f"not {samples[name].shape}"
            )
    counts = {len(array) for array in samples.values()}
    if len(counts) > 1:
        raise QuantiseError(f"calibration must have as many samples of each input, not {sorted(counts)}")
    return counts.pop() if counts else 1
