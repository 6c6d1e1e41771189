"""Softmax attention of several heads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from patchloom.compiler.graph import Evaluation, Floats, Node
from patchloom.compiler.machine.fixed import EPILOGUE_WIDTH, multiplier_of
from patchloom.compiler.nodes.float32 import softmax
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, Format, log2_format, near_maximum

SOFTMAX_GUARD = 12  # fractional bits, at most, of a softmax-weighted sum beyond the output's


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Attention(Node):
    """Per head h: `softmax(scale * Q_h @ K_h.T) @ V_h`, heads side by side in the output's columns.

    `q_columns[h]` is the first column of head h in `q` (likewise k, v); q, k, v may be the same node.
    """

    is_layer: ClassVar[bool] = True

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

    @property
    def macs(self) -> int:
        return len(self.q_columns) * self.shape[0] * self.k.shape[0] * (self.head_dim + self.value_dim)

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

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        yield from ((tensor, Demand(activations)) for tensor in self.inputs)

    def relevant(self, quantity: str, array: Floats) -> Floats:
        return near_maximum(array) if quantity == "scores" else array

    def numbers(self, at: Quantising) -> AttentionNumbers:
        q, k, v, out = (at.formats[node] for node in (*self.inputs, self))
        scores, exp_shift = log2_format(at.observed(self, "scores"))
        ratio = v.scale / out.scale
        # The word is (sum / 2**exponent <= 2) times a mean of v.
        post_shift = min(max(EPILOGUE_WIDTH - 1 - v.width - math.ceil(math.log2(ratio)), 0), SOFTMAX_GUARD)
        return AttentionNumbers(
            scores, exp_shift, *multiplier_of(self.scale * math.log2(math.e) * q.scale * k.scale / scores.scale),
            at.bits(self)[1], *multiplier_of(ratio * 2**post_shift), post_shift,
        )  # fmt: skip
