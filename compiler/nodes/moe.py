"""A sparse mixture of experts, with its gate."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.machine.commands import Kind, Queue, Residual, RowScale
from patchloom.compiler.machine.config import ELEMENT_WIDTH
from patchloom.compiler.node import Evaluation, Floats, Indices, Node, View
from patchloom.compiler.nodes.float32 import normalise, softmax
from patchloom.compiler.quantise.driver import Quantising
from patchloom.compiler.quantise.formats import Demand, Format, demand_of, format_of, log2_format, near_maximum
from patchloom.compiler.quantise.linear import Epilogue, Linear, Operand, normalised_demand
from patchloom.compiler.schedule.drafting import Drafting, Tensor
from patchloom.compiler.schedule.products import product

Scoring = Literal["softmax_of_selected", "softmax_of_all"]

GATE_WIDTH = 16  # bits of a gate's operand and weights: a wrong choice of expert costs more than four bytes
GATE_GUARD = 6  # fractional bits of an expert's result beyond the output's, while it meets its score


@dataclass(frozen=True, eq=False)
class Expert:
    """`w2 @ activation(w1 @ x + b1) + b2`; all experts of a layer have the same shapes."""

    w1: Floats = field(repr=False)
    b1: Floats = field(repr=False)
    w2: Floats = field(repr=False)
    b2: Floats = field(repr=False)


@dataclass(frozen=True, eq=False)
class ExpertNumbers:
    number: int  # in the model
    first: Linear
    second: Linear
    expected: bool  # it had tokens in every calibration sample


def turns(tokens: Indices) -> Indices:
    """Experts in the order in which they are computed, by the tokens of each in calibration: [samples, experts].

    All take equally long to fetch. While one with many tokens multiplies, the buffer fills, and one with few needs at
    once what is in it: the fewest and the most take turns. (A flow shop of two machines with a limited buffer between
    them; for an unlimited one Johnson's order of 1954, the most first, is best.) Of the few, those that had tokens in
    every sample come first, as they are fetched before it is known who has any; who had none comes last.
    """
    total, certain = tokens.sum(axis=0), tokens.min(axis=0) > 0
    order = np.argsort(total, kind="stable")
    idle, busy = order[total[order] == 0], order[total[order] > 0]
    few, many = busy[: (len(busy) + 1) // 2], busy[(len(busy) + 1) // 2 :][::-1]
    busy[0::2], busy[1::2] = few[np.argsort(~certain[few], kind="stable")], many.copy()
    return np.concatenate([busy, idle])


@dataclass(frozen=True, eq=False)
class MoeNumbers:
    """Of a mixture; the gate's channels and the experts are in the order of `turns`."""

    gate: Linear
    logits: Format  # in units of log2
    exp_shift: int
    hidden: Format
    experts: tuple[ExpertNumbers, ...] = field(repr=False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Moe(Node):
    """`sum over the top_k experts e of score_e * expert_e(norm(x)) + residual`.

    Logits are `norm(x) @ gate_weight.T + gate_bias`. Scores are the softmax of the selected logits, or the
    selected entries of the softmax of all logits. `epsilon`, `centred` as in `Matmul`.
    """

    is_layer: ClassVar[bool] = True

    x: View  # [tokens, inputs], a whole node once settled
    gate_weight: Floats = field(repr=False)  # [experts, inputs of the gate]
    gate_bias: Floats = field(repr=False)
    experts: tuple[Expert, ...] = field(repr=False)
    activation: str  # of `ACTIVATIONS`
    top_k: int
    scoring: Scoring
    epsilon: float | None = None
    centred: bool = True
    residual: View | None = None  # of the result's shape
    gate_x: View | None = None  # what the gate reads, not normalised, where it is not what the experts do

    def __post_init__(self) -> None:
        count, gate_x = len(self.experts), self.x if self.gate_x is None else self.gate_x
        self.require(
            gate_x.shape[0] == self.x.shape[0], f"gate must see {self.x.shape[0]} tokens, not {gate_x.shape[0]}"
        )
        self.require(1 <= self.top_k <= count, f"top_k must be 1 to {count}, not {self.top_k}")
        self.require(
            self.gate_weight.shape == (count, gate_x.shape[1]),
            f"gate must be {(count, gate_x.shape[1])}, not {self.gate_weight.shape}",
        )
        names = ", ".join(ACTIVATIONS)
        self.require(self.activation in ACTIVATIONS, f"activation must be one of {names}, not '{self.activation}'")
        if self.residual is not None:
            self.require(self.residual.shape == self.shape, f"residual is {self.residual.shape}, not {self.shape}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.experts[0].w2.shape[0]

    @property
    def flags(self) -> Iterator[str]:
        if self.epsilon is not None:
            yield f"{'norm' if self.centred else 'rms'}({self.epsilon:g})"
        yield f"experts {len(self.experts)} of {len(self.experts[0].w1)}, top {self.top_k}, {self.scoring}"
        if ACTIVATIONS[self.activation].post:
            yield self.activation
        if self.residual is not None:
            yield "+ residual"
        if self.gate_x is not None:
            yield "gate of its own"

    @property
    def macs(self) -> int:
        expert = self.experts[0]
        return self.shape[0] * (self.gate_weight.size + self.top_k * (expert.w1.size + expert.w2.size))

    def evaluate(self, at: Evaluation) -> Floats:
        operand = normalise(at.read(self.x), self.epsilon, centred=self.centred)
        at.observe(self, "operand", operand)
        choice, scores = self._route(at, operand if self.gate_x is None else at.read(self.gate_x))
        result = self._mix(at, operand, choice, scores)
        at.observe(self, "result", result)
        return result if self.residual is None else result + at.read(self.residual)

    def _route(self, at: Evaluation, operand: Floats) -> tuple[Indices, Floats]:
        """Experts of each token, the one with the largest logit first, and their scores."""
        logits = operand @ self.gate_weight.T + self.gate_bias
        at.observe(self, "logits", logits)
        choice = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k]
        at.observe(self, "choice", choice)
        if self.scoring == "softmax_of_selected":
            return choice, softmax(np.take_along_axis(logits, choice, axis=1))
        return choice, np.take_along_axis(softmax(logits), choice, axis=1)

    def _mix(self, at: Evaluation, operand: Floats, choice: Indices, scores: Floats) -> Floats:
        activate, result = ACTIVATIONS[self.activation], np.zeros(self.shape, np.float32)
        preactivations, hiddens = [], []
        for number, expert in enumerate(self.experts):
            tokens, rank = np.nonzero(choice == number)
            if len(tokens):
                preactivations.append(operand[tokens] @ expert.w1.T + expert.b1)
                hiddens.append(activate(preactivations[-1]))
                result[tokens] += scores[tokens, rank, None] * (hiddens[-1] @ expert.w2.T + expert.b2)
        at.observe(self, "preactivation", np.concatenate(preactivations))
        at.observe(self, "hidden", np.concatenate(hiddens))
        return result

    def demands(self, activations: int) -> Iterator[tuple[Node, Demand]]:
        wide = Demand(ELEMENT_WIDTH)
        yield self.x.node, wide if self.epsilon is None else normalised_demand(self.x.shape[1], self.epsilon)
        if self.gate_x is not None:
            yield self.gate_x.node, wide
        if self.residual is not None:
            yield from ((tensor, wide) for tensor in (self, self.residual.node))

    def relevant(self, quantity: str, array: Floats) -> Floats:
        return near_maximum(array) if quantity == "logits" else array

    def numbers(self, at: Quantising) -> MoeNumbers:
        tokens = np.stack([np.bincount(choice.reshape(-1), minlength=len(self.experts)) for choice in at.chosen(self)])
        order = turns(tokens)
        logits, exp_shift = log2_format(at.observed(self, "logits"))
        operand = at.operand(self, *self._gate_operand, GATE_WIDTH, centred=self.centred)
        epilogue = Epilogue(logits.scale / math.log2(math.e))
        gate = at.linear(operand, self.gate_weight[order], self.gate_bias[order], GATE_WIDTH, epilogue)
        width = at.bits(self)[1]
        hidden = format_of(at.observed(self, "hidden"), Demand(width) | demand_of(self.activation))
        operand = at.operand(self, self.x.node, self.epsilon, width, centred=self.centred)
        experts = (self._expert(at, number, operand, hidden, tokens[:, number]) for number in order.tolist())
        return MoeNumbers(gate, logits, exp_shift, hidden, tuple(experts))

    def _expert(self, at: Quantising, number: int, x: Operand, hidden: Format, tokens: Indices) -> ExpertNumbers:
        """`tokens`: what it had of each calibration sample."""
        e, (bits, _), out = self.experts[number], at.bits(self), at.formats[self]
        first = at.linear(x, e.w1, e.b1, bits, Epilogue.of(self.activation, hidden))
        narrow = Epilogue(out.scale / 2**GATE_GUARD, post_shift=GATE_GUARD)
        return ExpertNumbers(
            number, first, at.linear(Operand(hidden), e.w2, e.b2, bits, narrow), expected=bool(tokens.min())
        )

    @property
    def _gate_operand(self) -> tuple[Node, float | None]:
        return (self.x.node, self.epsilon) if self.gate_x is None else (self.gate_x.node, None)

    @property
    def normalised(self) -> Node | None:
        return None if self.epsilon is None else self.x.node

    def draft(self, d: Drafting) -> None:
        numbers: MoeNumbers = d.quantised.numbers[self]
        x = d.operand(self, self.x.node)
        self._draft_gate(d, numbers, x if self.gate_x is None else d.tensors[self.gate_x.node])
        out = d.tensor(self, gathers=True)
        for queue, expert in enumerate(numbers.experts):
            self._draft_expert(d, numbers.hidden, queue, expert, x, out)
        d.experts.append(tuple(expert.number for expert in numbers.experts))

    def _draft_gate(self, d: Drafting, numbers: MoeNumbers, x: Tensor) -> None:
        experts, rows = len(self.experts), self.shape[0]
        config, tokens = d.config, f"'{self.name}': tokens of a mixture of experts"
        top = {"max_top_k": self.top_k} | ({"max_experts": experts} if experts > config.max_experts else {})
        d.demand(tokens, rows, config.max_rows, "fewer tokens", {"max_rows": rows})
        d.demand(f"'{self.name}': experts", experts, config.max_experts, "fewer experts", {"max_experts": experts})
        d.demand(f"'{self.name}': experts per token", self.top_k, config.max_top_k, "a smaller top_k", top)
        logits = d.buffer(f"{self.name} logits", rows, np.arange(experts), numbers.logits.width)
        product(d, f"{self.name}: gate", numbers.gate, x, logits, rows=rows)
        d.draft(
            Kind.ROUTE, f"{self.name}: route", {"a_address": logits.at()}, rows=rows, columns=experts,
            a_stride=logits.stride, top_k=self.top_k, score_all=int(self.scoring == "softmax_of_all"),
            exp_shift=numbers.exp_shift,
        )  # fmt: skip

    def _draft_expert(
        self, d: Drafting, form: Format, queue: int, expert: ExpertNumbers, x: Tensor, out: Tensor
    ) -> None:
        added = None if self.residual is None else d.tensors[self.residual.node]
        chain = Residual.CHAIN_ZERO if added is None else Residual.CHAIN
        note, rows = f"{self.name}: expert {expert.number}", self.shape[0]
        fields: dict[str, Any] = {"rows": rows, "expert": queue, "expected": int(expert.expected)}
        here = np.arange(expert.first.matrix.shape[1])
        hidden = d.buffer(f"{note} hidden", rows, here, form.width, packed=form.width < ELEMENT_WIDTH)
        product(d, f"{note} first", expert.first, x, hidden, queue=Queue.GATHER, **fields)
        product(
            d, f"{note} second", expert.second, hidden, out, second=added, residual=chain,
            queue=Queue.SCATTER, row_scale=RowScale.GATE, **fields,
        )  # fmt: skip
