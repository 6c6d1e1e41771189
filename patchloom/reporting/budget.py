"""The noise of each layer, alone and accumulated, against the model in float; and the tokens that go elsewhere."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.frames import Samples
from patchloom.compiler.machine.program import Task
from patchloom.compiler.node import Evaluation, Floats, Node, float32
from patchloom.compiler.quantise.formats import Format
from patchloom.reporting.machine import Chosen, Frame
from patchloom.reporting.report import Quality, Range, Routing

NOISELESS = 0.0


@dataclass(eq=False)
class Noise:
    """Energies of a signal and of what is added to it, frame by frame."""

    signal: list[float] = field(default_factory=list)
    noise: list[float] = field(default_factory=list)

    def add(self, exact: Iterable[Floats], found: Iterable[Floats]) -> None:
        pairs = [(a.astype(np.float64), b) for a, b in zip(exact, found, strict=True)]
        self.signal.append(sum(float(np.square(a).sum()) for a, _ in pairs))
        self.noise.append(sum(float(np.square(a - b).sum()) for a, b in pairs))

    @property
    def quality(self) -> Quality:
        ratios = [_decibels(signal, noise) for signal, noise in zip(self.signal, self.noise, strict=True)]
        return Quality(_finite(np.median(ratios)), _finite(min(ratios)))


def _decibels(signal: float, noise: float) -> float:
    if noise == NOISELESS:
        return np.inf
    return 10 * float(np.log10(max(signal, np.finfo(float).tiny) / noise))


def _finite(value: Any) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None


@dataclass(eq=False)
class Measured:
    """Of one layer over frames."""

    alone: Noise = field(default_factory=Noise)
    accumulated: Noise = field(default_factory=Noise)
    at_output: Noise = field(default_factory=Noise)
    low: float = np.inf
    high: float = -np.inf
    saturations: int = 0
    elsewhere: list[NDArray[np.bool_]] = field(default_factory=list)  # of each frame's tokens
    alone_elsewhere: int = 0
    gaps: list[Floats] = field(default_factory=list)

    @property
    def seen(self) -> Range:
        return self.low, self.high

    @property
    def routing(self) -> Routing | None:
        if not self.elsewhere:
            return None
        elsewhere, gaps = np.concatenate(self.elsewhere), np.concatenate(self.gaps)
        wrong = gaps[elsewhere] if gaps.size else gaps
        return Routing(
            tokens=elsewhere.size,
            otherwise=int(elsewhere.sum()),
            alone=self.alone_elsewhere,
            gap=float(np.median(wrong)) if wrong.size else None,
            widest=float(wrong.max()) if wrong.size else None,
            usual=float(np.median(gaps)) if gaps.size else None,
        )


@dataclass(eq=False)
class Budget:
    """Of one task; frames are added one by one."""

    graph: Graph
    task: Task
    output: Noise = field(default_factory=Noise)
    layers: list[Measured] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = list(self.graph.nodes())
        self.layers = [Measured() for _ in self.nodes]

    def add(self, sample: Samples, frame: Frame) -> None:
        """A frame as the machine has computed it."""
        exact = _Run(sample)
        exact.evaluate(self.nodes)
        found = _Run(sample)
        for number, node in enumerate(self.nodes):
            measured, reference = self.layers[number], found.of(node)
            value = self._found(number, reference, frame)
            found.values[node] = value
            measured.alone.add([reference], [value])
            measured.accumulated.add([exact.values[node]], [value])
            measured.at_output.add(self._outputs(exact), self._disturbed(exact, node, value - reference))
            measured.low = min(measured.low, float(exact.values[node].min()))
            measured.high = max(measured.high, float(exact.values[node].max()))
            measured.saturations += frame.saturations[number]
            if number in frame.chosen:
                _add_routing(measured, frame.chosen[number], exact, found, node)
        self.output.add(self._outputs(exact), self._outputs(found))

    def _found(self, number: int, reference: Floats, frame: Frame) -> Floats:
        """The machine's; of what is loaded the nearest that its format has, of an output what it names."""
        node, layer = self.nodes[number], self.task.layers[number]
        if number in frame.values:
            return frame.values[number]
        if node in self.graph.outputs:
            return reference
        assert not node.inputs, f"the Program must say where the result of '{node.name}' lies"
        return float32(Format(layer.width, layer.scale).round(reference) * layer.scale)

    def _outputs(self, run: "_Run") -> list[Floats]:
        return [run.values[output] for output in self.graph.outputs]

    def _disturbed(self, exact: "_Run", node: Node, noise: Floats) -> list[Floats]:
        """The outputs of the float model to which this one layer's noise is added."""
        if not noise.any():
            return self._outputs(exact)
        run, changed = _Run(exact.at.inputs), {node}
        run.values.update(exact.values)
        run.values[node] = exact.values[node] + noise
        for later in self.nodes[self.nodes.index(node) + 1 :]:
            if not changed.isdisjoint(later.inputs):
                changed.add(later)
                run.values[later] = run.of(later)
        return self._outputs(run)

    def shares(self) -> list[float]:
        """Of the noise at the outputs, by the layers' numbers, were noise of many only added."""
        powers = [sum(measured.at_output.noise) for measured in self.layers]
        return [power / (sum(powers) or 1) for power in powers]


class _Run:
    """A frame in float."""

    def __init__(self, sample: Mapping[str, Floats]) -> None:
        self.logits: dict[Node, Floats] = {}
        self.choice: dict[Node, NDArray[Any]] = {}
        self.at = Evaluation(sample, self._observe)

    @property
    def values(self) -> dict[Node, Floats]:
        return self.at.values

    def of(self, node: Node) -> Floats:
        """Its result of what it reads."""
        return node.evaluate(self.at)

    def evaluate(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self.values[node] = self.of(node)

    def _observe(self, node: Node, quantity: str, array: NDArray[Any]) -> None:
        if quantity == "logits":
            self.logits[node] = array
        elif quantity == "choice":
            self.choice[node] = array


def _add_routing(measured: Measured, machine: Chosen, exact: _Run, found: _Run, node: Node) -> None:
    in_float, top = _as_sets(exact, node), exact.choice[node].shape[1]
    measured.elsewhere.append((machine != in_float).any(axis=1))
    measured.alone_elsewhere += int((machine != _as_sets(found, node)).any(axis=1).sum())
    ranked = -np.sort(-exact.logits[node], axis=1)
    if top < ranked.shape[1]:
        measured.gaps.append(ranked[:, top - 1] - ranked[:, top])
    else:
        measured.gaps.append(np.zeros(0, np.float32))


def _as_sets(run: _Run, node: Node) -> Chosen:
    sets = np.zeros(run.logits[node].shape, np.bool_)
    np.put_along_axis(sets, run.choice[node], True, axis=1)
    return sets
