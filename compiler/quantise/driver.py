"""From graphs to formats and integers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.node import Floats, Node
from patchloom.compiler.quantise.calibration import Calibration, Observed, Progress, Samples, keys_of
from patchloom.compiler.quantise.errors import QuantiseError
from patchloom.compiler.quantise.formats import Format, choose_formats, scale_of
from patchloom.compiler.quantise.linear import Epilogue, Linear, Operand, normalise_constants, quantise_linear
from patchloom.compiler.quantise.precision import Precision


@dataclass(frozen=True, eq=False)
class Quantised:
    """Graphs with a format per stored tensor and the integers of every layer, of a type of its kind's own."""

    graphs: tuple[Graph, ...]
    precision: Precision
    calibration: Calibration = field(repr=False)
    formats: dict[Node, Format] = field(repr=False)
    numbers: dict[Node, Any] = field(repr=False)


def quantise(
    graphs: Sequence[Graph], calibration: Samples, precision: Precision, progress: Progress | None = None
) -> Quantised:
    """`calibration` holds [samples, ...] per user input; `progress` is told of every sample and layer."""
    precision.check(dict.fromkeys(node.name for node in _layers(graphs)))
    return quantise_by(graphs, calibrate(graphs, calibration, progress), precision, progress)


def calibrate(graphs: Sequence[Graph], samples: Samples, progress: Progress | None = None) -> Calibration:
    """What the graphs' tensors hold on the samples: the same for every precision."""
    seen = Calibration(keys_of(graphs))
    seen.run(graphs, samples, progress or _silent)
    return seen


def quantise_by(
    graphs: Sequence[Graph], seen: Calibration, precision: Precision, progress: Progress | None = None
) -> Quantised:
    """By what these very graphs' calibration has seen; `precision` is one that fits them."""
    tell, layers = progress or _silent, _layers(graphs)
    formats = choose_formats(graphs, precision, seen)
    at, numbers = Quantising(precision, formats, seen), {}
    for done, node in enumerate(layers):
        tell("quantise", done, len(layers))
        numbers[node] = at.numbers(node)
    tell("quantise", len(layers), len(layers))
    return Quantised(tuple(graphs), precision, seen, formats, numbers)


def _layers(graphs: Sequence[Graph]) -> list[Node]:
    return list(dict.fromkeys(node for graph in graphs for node in graph.nodes() if node.is_layer))


def _silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(eq=False)
class Quantising:
    """What layers make their integers with. Equal weights with equal formats are quantised once."""

    precision: Precision
    formats: Mapping[Node, Format]
    calibration: Calibration
    made: dict[object, Linear] = field(default_factory=dict)

    def numbers(self, node: Node) -> Any:
        try:
            return node.numbers(self)
        except ValueError as error:
            raise QuantiseError(f"{node.kind} '{node.name}': {error}") from error

    def bits(self, node: Node) -> tuple[int, int]:
        """Of weights and activations."""
        return self.precision.of(node.name)

    def observed(self, node: Node, quantity: str) -> Observed:
        return self.calibration.observed(node, quantity)

    def chosen(self, node: Node) -> list[Ints]:
        """Its integer quantity in each sample."""
        return self.calibration.chosen[node]

    def operand(self, node: Node, x: Node, epsilon: float | None, width: int, *, centred: bool = True) -> Operand:
        """X as it is stored or, with an epsilon, normalised to the "operand" that `node` showed."""
        stored = self.formats[x]
        if epsilon is None:
            return Operand(stored)
        scale = scale_of(self.observed(node, "operand"), width)
        scale, constants = normalise_constants(x.shape[1], epsilon, stored.scale, scale)
        return Operand(Format(width, scale), constants, centred)

    def linear(self, operand: Operand, weight: Floats, bias: Floats, bits: int, epilogue: Epilogue) -> Linear:
        digest = blake2b(weight.tobytes()).digest(), blake2b(bias.tobytes()).digest()
        key = operand, digest, weight.shape, bits, epilogue
        if key not in self.made:
            self.made[key] = quantise_linear(operand, weight, bias, bits, epilogue)
        return self.made[key]
