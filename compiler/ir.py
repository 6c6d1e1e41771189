"""The canonical graph: what a model is once captured and rewritten, before numbers become integers.

Every node yields one two-dimensional tensor, tokens x features, of one sample. Nodes are immutable, check
themselves when built and derive their shape, so a graph never goes stale. Weights are float32 arrays in
torch's layout, `[outputs, inputs]`.

Attention heads, fused projections and image patches need no nodes of their own: an operand names the
columns it uses, and an input or output is a gather by flat index, whatever views the model wrote.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Scoring = Literal["softmax_of_selected", "softmax_of_all"]


class GraphError(ValueError):
    """A node whose parts do not fit together: the message names the node, the rule and the value."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Node:
    """One operation on tensors. `name` is the path of the torch module, `source` the user's file:line."""

    name: str
    source: str = field(default="", repr=False)

    @property
    def inputs(self) -> tuple["Node", ...]:
        return ()

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, features)."""
        raise NotImplementedError

    def require(self, rule: bool, text: str) -> None:
        if not rule:
            raise GraphError(f"{type(self).__name__.lower()} '{self.name}' {text}{self.source and f' ({self.source})'}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Node):
    """Element [t, f] is element `index[t, f]` of the flattened user input `name` of one sample; -1 reads zero."""

    index: Indices = field(repr=False)
    user_shape: tuple[int, ...]  # without the batch dimension

    @property
    def shape(self) -> tuple[int, int]:
        return self.index.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Node):
    """A learned tensor, e.g. position embeddings."""

    value: Floats = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.value.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Matmul(Node):
    """`activation(norm(x[rows]) @ weight.T + bias) + residual`.

    `epsilon` given: norm is layer normalisation without scale and shift (they are folded into weight and bias).
    """

    x: Node
    weight: Floats = field(repr=False)  # [outputs, inputs]
    bias: Floats = field(repr=False)  # [outputs]
    epsilon: float | None = None
    activation: str = "none"
    residual: Node | None = None
    rows: tuple[int, int]  # [first, last) row of x

    def __post_init__(self) -> None:
        outputs, inputs = self.weight.shape
        self.require(self.x.shape[1] == inputs, f"needs {inputs} features, x has {self.x.shape[1]}")
        self.require(self.bias.shape == (outputs,), f"bias must have shape ({outputs},), not {self.bias.shape}")
        first, last = self.rows
        self.require(0 <= first < last <= self.x.shape[0], f"rows {self.rows} must lie in x's {self.x.shape[0]} rows")
        if self.residual is not None:
            self.require(self.residual.shape == self.shape, f"residual is {self.residual.shape}, not {self.shape}")

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows[1] - self.rows[0], self.weight.shape[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Attention(Node):
    """Per head h: `softmax(scale * Q_h @ K_h.T) @ V_h`, heads side by side in the output's columns.

    `q_columns[h]` is the first column of head h in `q` (likewise k, v); q, k, v may be the same node.
    """

    q: Node
    k: Node
    v: Node
    q_columns: tuple[int, ...]
    k_columns: tuple[int, ...]
    v_columns: tuple[int, ...]
    head_dim: int
    value_dim: int
    scale: float

    def __post_init__(self) -> None:
        heads = len(self.q_columns)
        self.require(
            len(self.k_columns) == len(self.v_columns) == heads > 0,
            f"needs one q, k and v column per head, not {heads}, {len(self.k_columns)}, {len(self.v_columns)}",
        )
        self.require(self.k.shape[0] == self.v.shape[0], f"has {self.k.shape[0]} keys, {self.v.shape[0]} values")

    @property
    def inputs(self) -> tuple[Node, ...]:
        return self.q, self.k, self.v

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], len(self.q_columns) * self.value_dim


@dataclass(frozen=True, eq=False)
class Expert:
    """`w2 @ activation(w1 @ x + b1) + b2`; all experts of a layer have the same shapes."""

    w1: Floats = field(repr=False)
    b1: Floats = field(repr=False)
    w2: Floats = field(repr=False)
    b2: Floats = field(repr=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Moe(Node):
    """Sparse mixture of experts: `sum over the top_k experts e of score_e * expert_e(norm(x)) + residual`.

    Logits are `norm(x) @ gate_weight.T + gate_bias`. Scores are the softmax of the selected logits, or the
    selected entries of the softmax of all logits. `epsilon` as in `Matmul`.
    """

    x: Node
    gate_weight: Floats = field(repr=False)  # [experts, inputs]
    gate_bias: Floats = field(repr=False)
    experts: tuple[Expert, ...] = field(repr=False)
    activation: str
    top_k: int
    scoring: Scoring
    epsilon: float | None = None
    residual: Node | None = None

    def __post_init__(self) -> None:
        count = len(self.experts)
        self.require(1 <= self.top_k <= count, f"top_k must be 1 to {count}, not {self.top_k}")
        self.require(
            self.gate_weight.shape == (count, self.x.shape[1]),
            f"gate must be {(count, self.x.shape[1])}, not {self.gate_weight.shape}",
        )
        if self.residual is not None:
            self.require(self.residual.shape == self.shape, f"residual is {self.residual.shape}, not {self.shape}")

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.x,) if self.residual is None else (self.x, self.residual)

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.experts[0].w2.shape[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Output(Node):
    """What the user's forward returns as `name`: element i of the flattened result is element `index[i]` of x."""

    x: Node
    index: Indices = field(repr=False)  # of the result's shape, into x flattened

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.x,)

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape


@dataclass(frozen=True, eq=False)
class Graph:
    """One task: its outputs, in the order the user's forward returns them."""

    task: str
    outputs: tuple[Output, ...]

    def nodes(self) -> Iterator[Node]:
        """Every node once, each after all its inputs."""
        seen: set[int] = set()

        def visit(node: Node) -> Iterator[Node]:
            if id(node) in seen:
                return
            seen.add(id(node))
            for before in node.inputs:
                yield from visit(before)
            yield node

        for output in self.outputs:
            yield from visit(output)


def describe(graph: Graph) -> str:
    """One line per node: number, operation, name, shape, operands, flags. The form that tests compare."""
    numbers = {node: f"%{i}" for i, node in enumerate(graph.nodes())}

    def line(node: Node) -> str:
        operation = type(node).__name__.lower()
        operands = " ".join(numbers[before] for before in node.inputs)
        parts = [f"{numbers[node]} = {operation} '{node.name}' {node.shape[0]}x{node.shape[1]}", operands, _flags(node)]
        return " ".join(part for part in parts if part)

    return "\n".join([f"task '{graph.task}'", *(line(node) for node in graph.nodes())]) + "\n"


def _flags(node: Node) -> str:
    flags = []
    if isinstance(node, Input):
        flags.append(f"of {'x'.join(map(str, node.user_shape))}")
    if isinstance(node, Matmul) and node.rows != (0, node.x.shape[0]):
        flags.append(f"rows {node.rows[0]}:{node.rows[1]}")
    if isinstance(node, Matmul | Moe) and node.epsilon is not None:
        flags.append(f"norm({node.epsilon:g})")
    if isinstance(node, Attention):
        starts = f"{list(node.q_columns)} {list(node.k_columns)} {list(node.v_columns)}"
        flags.append(f"heads {starts} of {node.head_dim}, {node.value_dim}, scale {node.scale:.6g}")
    if isinstance(node, Moe):
        flags.append(f"experts {len(node.experts)} of {len(node.experts[0].w1)}, top {node.top_k}, {node.scoring}")
    if isinstance(node, Matmul | Moe):
        flags += [node.activation] * (node.activation != "none") + ["+ residual"] * (node.residual is not None)
    if isinstance(node, Output):
        flags.append(f"as {'x'.join(map(str, node.index.shape))}")
    return ", ".join(flags)
