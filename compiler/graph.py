"""Nodes, and the canonical graph: what a model is once captured and rewritten, before numbers become integers.

A node reads other nodes through views. In a canonical graph every node is settled: its views are what the machine
can read, and it yields one two-dimensional tensor, tokens x features, of one sample. Nodes are immutable, check
themselves when built and derive their shape, so a graph never goes stale. Weights are float32 arrays in
torch's layout, `[outputs, inputs]`. What kinds there are, `compiler.nodes` tells: nothing here knows one.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchloom.compiler.origin import NOWHERE, Origin
from patchloom.compiler.view import View

if TYPE_CHECKING:
    from patchloom.compiler.quantise.driver import Quantising
    from patchloom.compiler.quantise.formats import Demand
    from patchloom.compiler.schedule.drafting import Drafting, Tensor

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Heads = tuple["Node", tuple[int, ...], int]  # a tensor, the first column of each head, columns of a head
Observe = Callable[["Node", str, np.ndarray[Any, Any]], None]


def float32(value: ArrayLike) -> Floats:
    return np.ascontiguousarray(value, dtype=np.float32)


class GraphError(ValueError):
    """A node whose parts do not fit together: the message names the node, the rule and the value."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Node(ABC):
    """One operation on tensors. `name` is unique in a graph: an input's or an output's own, else after `origin`.

    What a kind of node does not say of itself is as here: no operand, nothing to multiply, no demands.
    """

    is_layer: ClassVar[bool] = False  # multiplies: has bits of its own, and integers

    name: str = ""
    origin: Origin = field(default=NOWHERE, repr=False)

    def require(self, rule: bool, text: str) -> None:
        if not rule:
            where = self.origin.where and f" ({self.origin.where})"
            raise GraphError(f"{self.kind} '{self.name or self.origin.name}' {text}{where}")

    # What it is

    @property
    def kind(self) -> str:
        return type(self).__name__.lower()

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(tokens, features), where it is settled."""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @cached_property
    def views(self) -> tuple[View, ...]:
        """Its operands."""
        values = (getattr(self, part.name) for part in fields(self))
        return tuple(value for value in values if isinstance(value, View))

    def with_views(self, change: Callable[[View], View]) -> Self:
        """The same operation on changed operands; itself when none changed."""
        old = {part.name: getattr(self, part.name) for part in fields(self)}
        new: dict[str, Any] = {name: change(value) for name, value in old.items() if isinstance(value, View)}
        return self if all(new[name] is old[name] for name in new) else replace(self, **new)

    @property
    def inputs(self) -> tuple["Node", ...]:
        """Of each view in turn, the nodes that it is of: one each, where the node is settled."""
        return tuple(base for view in self.views for base, _ in view.terms)

    @property
    def settled(self) -> bool:
        """Whether the machine can read its operands as they are."""
        return all(view.is_whole() for view in self.views)

    @property
    def user_input(self) -> tuple[int, ...] | None:
        """Shape of the user's tensor that it reads, without the batch dimension; it is called as the node is."""
        return None

    @property
    def residual(self) -> View | None:
        """The tensor that its result is added to, as a whole: they share a scale and lie alike."""
        return None

    @property
    def flags(self) -> Iterable[str]:
        """What `describe` says of it besides its operands."""
        return ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one frame, as the model counts them."""
        return 0

    # What it computes

    def evaluate(self, at: "Evaluation") -> Floats:
        """Its result in float32; `at` is told of every intermediate that will need a number format."""
        raise NotImplementedError

    # Its integers

    def demands(self, activations: int) -> Iterable[tuple["Node", "Demand"]]:
        """What it asks of the formats of stored tensors, itself included; `activations` are the bits it is given."""
        return ()

    def relevant(self, quantity: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of an intermediate, the values that its format must hold."""
        return array

    def numbers(self, at: "Quantising") -> Any:
        """Integers of a layer. Raises `ValueError` where 16 bits do not express them."""
        raise NotImplementedError

    # Its commands

    @property
    def normalised(self) -> "Node | None":
        """The operand that it normalises: each row by its statistics."""
        return None

    @property
    def heads(self) -> Iterable[Heads]:
        """Parts of rows that its commands read: they begin a chunk each."""
        return ()

    @property
    def starts(self) -> Iterable[int]:
        """Columns of its own result that must begin a chunk."""
        return ()

    @property
    def divides(self) -> bool:
        """Whether it can compute some columns alone: see `draft_columns`."""
        return False

    def streams(self, x: "Node") -> bool:
        """Whether it reads x as nothing but its streamed operand, row after row."""
        return False

    def loads(self, x: "Node") -> bool:
        """Whether it can have x, an input, loaded part by part as it reads it: see `transfers.load_rows`."""
        return False

    def packs(self, lanes: int) -> bool:
        """Whether its commands can write a result of 8 bits two to an element."""
        return False

    def draft(self, d: "Drafting") -> None:
        """Its commands and its tensor, or its port."""
        raise NotImplementedError

    def draft_columns(self, d: "Drafting", note: str, columns: Indices) -> "Tensor":
        """Commands for some columns; each run of them begins a chunk."""
        raise NotImplementedError


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


@dataclass(eq=False)
class Evaluation:
    """One sample on its way through a graph."""

    inputs: Mapping[str, Floats]  # by name, without the batch dimension
    observe: Observe
    values: dict[Node, Floats] = field(default_factory=dict)

    def read(self, view: View) -> Floats:
        """What a settled view is of its node's result."""
        return self.values[view.node].reshape(-1).take(view.index)


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
