"""One task's settled operations as canonical nodes: unique names, one array for equal contents."""

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np

from patchloom.compiler import nodes
from patchloom.compiler.graph import Floats, Graph, Node
from patchloom.compiler.nodes import Expert
from patchloom.compiler.passes.engine import in_order
from patchloom.compiler.passes.operands import first_columns
from patchloom.compiler.passes.selection import selection
from patchloom.compiler.primitive import Attend, Fixed, Linear, Mixture, Primitive, Source, View, float32, whole


class Pool:
    """One array for equal contents, so that what tasks share stays shared after folding."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[bytes, tuple[int, ...]], Floats] = {}

    def __call__(self, array: Floats) -> Floats:
        array = float32(array)
        digest = blake2b(array.data, digest_size=16).digest()
        return self.arrays.setdefault((digest, array.shape), array)

    def expert(self, expert: Expert) -> Expert:
        return Expert(self(expert.w1), self(expert.b1), self(expert.w2), self(expert.b2))


class Lowering:
    """One task's rewritten operations, as canonical nodes with unique names."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.nodes: dict[object, Node] = {}
        self.names: Counter[str] = Counter()

    def graph(self, task: str, results: Mapping[str, View]) -> Graph:
        for base in in_order(list(results.values())):
            if not isinstance(base, Source):
                self.node(whole(base))
        return Graph(task, tuple(self._output(name, view) for name, view in results.items()))

    def _output(self, name: str, view: View) -> nodes.Output:
        if not isinstance(view.base, Source):
            return nodes.Output(name=name, x=self.node(view), index=view.index)
        x = self.node(view.reshape(-1, view.shape[-1] if view.shape else 1))
        return nodes.Output(name=name, x=x, index=np.arange(view.index.size).reshape(view.shape))

    def node(self, view: View) -> Node:
        """The canonical node of a settled operand."""
        base = view.base
        assert base is not None, "settled operands come from one operation"
        key: object = (base, view.shape, view.index.tobytes()) if isinstance(base, Source) else base
        if key not in self.nodes:
            self.nodes[key] = LOWER[type(base)](self, base, view)
        return self.nodes[key]

    def name(self, base: Primitive) -> dict[str, str]:
        """Inputs and outputs have names of their own."""
        name = base.origin.name or base.origin.op or type(base).__name__.lower()
        self.names[name] += 1
        unique = name if self.names[name] == 1 else f"{name}_{self.names[name] - 1}"
        return {"name": unique, "source": base.origin.where}

    def optional(self, view: View | None) -> Node | None:
        return None if view is None else self.node(view)


def _lower_source(_: Lowering, base: Source, view: View) -> Node:
    return nodes.Input(name=base.name, index=np.ascontiguousarray(view.index), user_shape=base.user_shape)


def _lower_fixed(at: Lowering, base: Fixed, _: View) -> Node:
    return nodes.Constant(value=at.pool(base.value), **at.name(base))


def _lower_linear(at: Lowering, base: Linear, _: View) -> Node:
    chosen = None if isinstance(base.x.base, Source) else selection(base.x)
    name = at.name(base)  # before its operands take theirs
    return nodes.Matmul(
        x=at.node(base.x),
        weight=at.pool(base.weight),
        bias=at.pool(base.bias),
        epsilon=base.epsilon,
        activation=base.activation,
        residual=at.optional(base.residual),
        rows=(chosen and chosen.block) or (0, base.shape[0]),
        **name,
    )


def _lower_mixture(at: Lowering, base: Mixture, _: View) -> Node:
    return nodes.Moe(
        x=at.node(base.x),
        gate_weight=at.pool(base.gate_weight),
        gate_bias=at.pool(base.gate_bias),
        experts=tuple(at.pool.expert(expert) for expert in base.experts),
        activation=base.activation,
        top_k=base.top_k,
        scoring=base.scoring,
        epsilon=base.epsilon,
        residual=at.optional(base.residual),
        **at.name(base),
    )


def _lower_attend(at: Lowering, base: Attend, _: View) -> Node:
    return nodes.Attention(
        q=at.node(base.q),
        k=at.node(base.k),
        v=at.node(base.v),
        q_columns=first_columns(base.q) or (),
        k_columns=first_columns(base.k) or (),
        v_columns=first_columns(base.v) or (),
        head_dim=base.q.shape[2],
        value_dim=base.v.shape[2],
        scale=base.scale,
        **at.name(base),
    )


LOWER: Mapping[type[Primitive], Callable[[Lowering, Any, View], Node]] = {
    Source: _lower_source,
    Fixed: _lower_fixed,
    Linear: _lower_linear,
    Mixture: _lower_mixture,
    Attend: _lower_attend,
}
