"""The canonical graph: what a model is once captured and rewritten, before numbers become integers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from patchloom.compiler.node import Evaluation, Floats, Node, Observe


@dataclass(frozen=True, eq=False)
class Graph:
    """One task: its outputs, in the order the user's forward returns them. Refuses nodes that are not settled."""

    task: str
    outputs: tuple[Node, ...]
    arguments: tuple[str, ...] = ()  # names of the user's tensors in the order of forward

    def __post_init__(self) -> None:
        for node in self.nodes():
            node.require(node.settled, "is not canonical: it must read whole rows, or heads as columns, of one node")

    def nodes(self) -> Iterator[Node]:
        """Every node once, each after all its inputs."""
        yield from in_order(self.outputs)

    def tensors(self) -> list[Node]:
        """Every node whose result is stored: all but the outputs, which name elements of others."""
        return [node for node in self.nodes() if node not in self.outputs]

    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the user's tensors that it reads, without the batch dimension, in the order of forward."""
        read = {node.name: shape for node in self.nodes() if (shape := node.user_input) is not None}
        return {name: read[name] for name in (*self.arguments, *read) if name in read}


def in_order(roots: Iterable[Node]) -> list[Node]:
    """The roots and all that they read: every node once, each after all its inputs."""
    order: dict[Node, None] = {}
    stack = [*roots][::-1]
    while stack:
        node = stack[-1]
        before = [base for base in node.inputs if base not in order]
        if node not in order and before:
            stack.extend(before[::-1])
            continue
        stack.pop()
        order.setdefault(node)
    return list(order)


def describe(graph: Graph) -> str:
    """One line per node: number, operation, name, shape, operands, flags. The form that tests compare."""
    numbers = {node: f"%{i}" for i, node in enumerate(graph.nodes())}

    def line(node: Node) -> str:
        operands = " ".join(numbers[before] for before in node.inputs)
        parts = [f"{numbers[node]} = {node.kind} '{node.name}' {node.shape[0]}x{node.shape[1]}", operands]
        return " ".join(part for part in (*parts, ", ".join(node.flags)) if part)

    return "\n".join([f"task '{graph.task}'", *(line(node) for node in graph.nodes())]) + "\n"


def evaluate(graph: Graph, inputs: Mapping[str, Floats], observe: Observe = lambda *_: None) -> dict[str, Floats]:
    """What the graph means, in float32: its outputs by name.

    `observe(node, quantity, array)` sees every intermediate that will need a number format.
    """
    at = Evaluation(inputs, observe)
    for node in graph.nodes():
        at.values[node] = node.evaluate(at)
        if node not in graph.outputs:
            observe(node, "output", at.values[node])
    return {output.name: at.values[output] for output in graph.outputs}
