"""Random graphs, straight from nodes, and how far a Program is from its graph."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from patchloom.compiler.graph import Graph, evaluate
from patchloom.compiler.machine.commands import Residual
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Program, from_region, to_region
from patchloom.compiler.node import Node, heads_of, rows_of, whole
from patchloom.compiler.nodes import Attention, Constant, Expert, Input, Matmul, Moe, Output
from patchloom.compiler.quantise import Precision, Quantised, quantise
from patchloom.compiler.schedule import FitError, schedule
from patchloom.sim.interpret import execute

CONFIGS = {
    "small": Config(),
    "wide": Config(inputs=32, outputs=16, lanes=8),
    "native16": Config(inputs=8, outputs=8, lanes=8, weight_width=16, activation_width=16),
}


class Builder:
    """Nodes with random weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray[Any, Any]:
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def weight(self, outputs: int, inputs: int) -> np.ndarray[Any, Any]:
        return self.normal(outputs, inputs, scale=inputs**-0.5)

    def input(self, rows: int, features: int, name: str = "x") -> Input:
        index = np.arange(rows * features).reshape(rows, features)
        return Input(name=name, index=index, user_shape=(rows, features))

    def constant(self, rows: int, features: int, name: str = "position") -> Constant:
        return Constant(name=name, value=self.normal(rows, features, scale=0.3))

    def matmul(self, name: str, x: Node, outputs: int, **kwargs: Any) -> Matmul:
        """Of `rows` of x, [first, last), if not of all; `residual` is a node."""
        first, last = kwargs.pop("rows", (0, x.shape[0]))
        residual = kwargs.pop("residual", None)
        return Matmul(
            name=name,
            x=rows_of(x, first, last),
            weight=self.weight(outputs, x.shape[1]),
            bias=self.normal(outputs, scale=0.1),
            residual=residual and whole(residual),
            **kwargs,
        )

    def attention(self, name: str, qkv: Node, heads: int, head_dim: int) -> Attention:
        columns = np.arange(3 * heads).reshape(3, heads) * head_dim
        q, k, v = (heads_of(qkv, first.tolist(), head_dim) for first in columns)
        return Attention(name=name, q=q, k=k, v=v, scale=head_dim**-0.5)

    def moe(self, name: str, x: Node, experts: int, hidden: int, top_k: int = 2, **kwargs: Any) -> Moe:
        features = x.shape[1]
        kwargs = {"activation": "gelu", "scoring": "softmax_of_selected", "epsilon": 1e-6, "residual": x} | kwargs
        residual = kwargs.pop("residual")
        return Moe(
            name=name, x=whole(x),
            gate_weight=self.weight(experts, features), gate_bias=self.normal(experts, scale=0.1),
            experts=tuple(
                Expert(self.weight(hidden, features), self.normal(hidden, scale=0.1),
                       self.weight(features, hidden), self.normal(features, scale=0.1))
                for _ in range(experts)
            ),
            top_k=top_k, residual=residual and whole(residual), **kwargs,
        )  # fmt: skip

    def block(self, name: str, x: Node, heads: int, experts: int = 0) -> Node:
        """A pre-norm transformer layer."""
        dim = x.shape[1]
        qkv = self.matmul(f"{name}.qkv", x, 3 * dim, epsilon=1e-6)
        attention = self.attention(f"{name}.attention", qkv, heads, dim // heads)
        x = self.matmul(f"{name}.proj", attention, dim, residual=x)
        if experts:
            return self.moe(f"{name}.moe", x, experts, 2 * dim)
        hidden = self.matmul(f"{name}.fc1", x, 4 * dim, epsilon=1e-6, activation="gelu")
        return self.matmul(f"{name}.fc2", hidden, dim, residual=x)

    def output(self, name: str, x: Node) -> Output:
        return Output(name=name, x=whole(x))


def transformer(
    *, tokens: int = 20, dim: int = 32, heads: int = 2, layers: int = 4, experts: int = 0, seed: int = 0
) -> Graph:  # fmt: skip
    """Patch embedding, position, layers (every second one a mixture if there are experts), norm, classes."""
    b = Builder(seed)
    x: Node = b.matmul("embed", b.input(tokens, 24), dim, residual=b.constant(tokens, dim))
    for layer in range(layers):
        x = b.block(f"layer{layer}", x, heads, experts if layer % 2 else 0)
    return Graph("main", (b.output("y", b.matmul("head", x, 10, epsilon=1e-6)),))


def random_graph(seed: int) -> Graph:
    """A few nodes of any kind on each other's results, several of which are outputs."""
    b = Builder(seed)
    rng, features = b.rng, int(b.rng.choice([4, 7, 16, 24, 36]))

    def one_of(several: list[Any]) -> Any:
        return several[rng.integers(len(several))]

    pool: list[Node] = [b.input(int(rng.integers(1, 40)), features), b.input(int(rng.integers(1, 30)), features, "z")]
    pool.append(b.constant(pool[0].shape[0], features))

    def matmul(name: str, x: Node) -> Node:
        first, last = sorted(rng.choice(x.shape[0] + 1, 2, replace=False).tolist())
        outputs = one_of([features, features, int(rng.integers(1, 50))])
        residual = one_of([None, *(p for p in pool if p.shape == (last - first, outputs))])
        return b.matmul(
            name, x, outputs, rows=(first, last), epsilon=one_of([None, 1e-5]),
            activation=one_of(["none", "relu", "gelu"]), residual=residual,
        )  # fmt: skip

    def attention(name: str, x: Node) -> Node:
        heads, width = int(rng.integers(1, 4)), int(rng.integers(1, 20))
        first, last = (tuple(range(n * heads * width, (n + 1) * heads * width, width)) for n in (0, 1))
        q, kv = b.matmul(f"{name}.q", x, heads * width), b.matmul(f"{name}.kv", one_of(pool), 2 * heads * width)
        pool.extend((q, kv))
        k, v = heads_of(kv, first, width), heads_of(kv, last, width)
        return Attention(name=name, q=heads_of(q, first, width), k=k, v=v, scale=width**-0.5)

    def moe(name: str, x: Node) -> Node:
        experts = int(rng.integers(2, 7))
        return b.moe(
            name, x, experts, int(rng.integers(1, 40)), top_k=int(rng.integers(1, min(experts, 4) + 1)),
            activation=one_of(["none", "relu", "gelu"]), scoring=one_of(["softmax_of_selected", "softmax_of_all"]),
            epsilon=one_of([None, 1e-5]), residual=one_of([None, *(p for p in pool if p.shape == x.shape)]),
        )  # fmt: skip

    for i in range(rng.integers(1, 8)):
        make = one_of([matmul, matmul, attention, moe])
        x = one_of([p for p in pool if p.shape[1] >= 4])
        pool.append(make(f"{make.__name__}{i}", x))
    chosen = [pool[-1], *(p for p in pool[:-1] if rng.random() < 0.2)]
    return Graph("main", tuple(b.output(f"y{i}", p) for i, p in enumerate(chosen)))


def samples(graph: Graph, count: int, seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    shapes = {node.name: node.user_shape for node in graph.nodes() if isinstance(node, Input)}
    return {name: rng.standard_normal((count, *shape)).astype(np.float32) for name, shape in shapes.items()}


def quantised(*graphs: Graph, precision: str = "w8a8", **overrides: str) -> Quantised:
    return quantise(graphs, samples(graphs[0], 4), Precision.parse(precision, overrides))


def compiled(graph: Graph, precision: str, config: Config | None = None, **overrides: str) -> Program:
    quantised = quantise([graph], samples(graph, 8), Precision.parse(precision, overrides))
    return schedule(quantised, config or Config())


def run(program: Program, inputs: dict[str, np.ndarray[Any, Any]], task: str | None = None) -> dict[str, Any]:
    """A Program's outputs as floats."""
    chosen = program.task(task)
    region = np.zeros(chosen.input_bytes // 2, np.int16)
    for port in chosen.inputs:
        port.part(region)[:] = to_region(port, inputs[port.name])[0]
    out, _ = execute(program, task, region)
    return {p.name: from_region(p, out) * 2.0**-p.fraction for p in chosen.outputs}


def sqnr(expected: np.ndarray[Any, Any], actual: np.ndarray[Any, Any]) -> float:
    """Signal to quantisation noise, in dB."""
    noise = np.square(expected.astype(np.float64) - actual).sum()
    return float(10 * np.log10(np.square(expected, dtype=np.float64).sum() / max(noise, 1e-300)))


def quality(graph: Graph, program: Program, count: int = 4) -> float:
    """SQNR over all outputs of fresh inputs."""
    expected, actual = [], []
    for i in range(count):
        inputs = {name: array[i] for name, array in samples(graph, count, seed=2).items()}
        floats, integers = evaluate(graph, inputs), run(program, inputs)
        expected += [floats[name].reshape(-1) for name in floats]
        actual += [integers[name].reshape(-1) for name in floats]
    return sqnr(np.concatenate(expected), np.concatenate(actual))


def one(x: Node) -> Graph:
    """With one output."""
    return Graph("main", (Builder().output("y", x),))


def check(graph: Graph, config: Config | None = None, bound: float = 60, precision: str = "w16a16") -> Program:
    program = compiled(graph, precision, config)
    assert quality(graph, program) > bound
    return program


def in_place(graph: Graph, program: Program | None = None) -> list[str]:
    task = (program or check(graph)).tasks[0]
    return [
        note
        for note, c in zip(task.notes, task.commands, strict=True)
        if c.residual == Residual.ADD and c.o_address == c.r_address
    ]


def fit_error(graph: Graph, precision: str = "w8a8", **sizes: int) -> str:
    with pytest.raises(FitError) as error:
        compiled(graph, precision, replace(Config(), **sizes))
    return str(error.value)
