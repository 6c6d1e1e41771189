"""Softmax attention of several heads."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patchloom.compiler.graph import Evaluation, Floats, Node
from patchloom.compiler.nodes.float32 import softmax


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

    @property
    def flags(self) -> Iterator[str]:
        starts = f"{list(self.q_columns)} {list(self.k_columns)} {list(self.v_columns)}"
        yield f"heads {starts} of {self.head_dim}, {self.value_dim}, scale {self.scale:.6g}"

    def evaluate(self, at: Evaluation) -> Floats:
        def heads(x: Node, first: tuple[int, ...], width: int) -> Floats:
            return np.stack([at.values[x][:, column : column + width] for column in first])

        q = heads(self.q, self.q_columns, self.head_dim)
        k = heads(self.k, self.k_columns, self.head_dim)
        scores = q @ k.transpose(0, 2, 1) * np.float32(self.scale)
        at.observe(self, "scores", scores)
        probabilities = softmax(scores)
        at.observe(self, "probabilities", probabilities)
        result = probabilities @ heads(self.v, self.v_columns, self.value_dim)
        return result.transpose(1, 0, 2).reshape(self.shape)

    @property
    def macs(self) -> int:
        return len(self.q_columns) * self.shape[0] * self.k.shape[0] * (self.head_dim + self.value_dim)
