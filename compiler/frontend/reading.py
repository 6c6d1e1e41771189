"""A block read from traces of it: what of each token is common to all, and what its experts add.

Each result is rows, one for each of some tokens. A row is a sum: terms that all rows have in all traces are ordinary
layers (a residual, a shared expert); the others come and go with the choice of experts, and their weights tell by which
gate. Tokens that reach every expert make the reading complete.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from patchloom.compiler.frontend.build import Builder
from patchloom.compiler.frontend.experts import experts_of, readable, weighs_inside
from patchloom.compiler.frontend.functions import (
    ONE,
    Affine,
    Doubles,
    Linearity,
    Reader,
    Row,
    Slot,
)
from patchloom.compiler.frontend.gates import Fit, best_fit, candidates, scores_said
from patchloom.compiler.frontend.trace import Computed, Decision
from patchloom.compiler.node import Node, View, common_terms, float32, whole
from patchloom.compiler.nodes import Moe
from patchloom.compiler.nodes.captured import Add, Normalise
from patchloom.compiler.nodes.matmul import Matmul
from patchloom.compiler.origin import Origin
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.problems import UnsupportedError

TOLERANCE = 1e-4  # of the largest
SCORES = (
    "weights must be the softmax of the selected gate logits, or the selected entries of the softmax of all, times a "
    "constant of each expert"
)


class NoMixtureError(Exception):
    """Nothing here comes and goes with a choice of experts, or it was made elsewhere."""


class IncompleteError(Exception):
    """Experts that no token has reached yet, of a gate."""

    def __init__(self, experts: list[int], gate: Affine) -> None:
        super().__init__(", ".join(map(str, experts)))
        self.experts, self.gate = experts, gate


@dataclass(frozen=True, eq=False)
class Traced:
    """A trace of the block, and what it returned there."""

    reader: Reader
    result: View  # [rows, features]


@dataclass(eq=False)
class Reading:
    """Of one result of a block."""

    origin: Origin
    traced: Sequence[Traced]
    linearity: Linearity = field(default_factory=Linearity)

    def __post_init__(self) -> None:
        self.rows = [each.reader.rows(each.result) for each in self.traced]
        self.features = self.traced[0].result.shape[1]
        self.routed = self._routed()

    def view(self) -> View:
        groups: dict[Hashable, list[int]] = {}
        for row in range(len(self.rows[0])):
            key = "routed" if row in self.routed else frozenset(Counter(slot.key for slot in self.rows[0][row]).items())
            groups.setdefault(key, []).append(row)
        parts = [(rows, self._mixture(rows) if key == "routed" else self._plain(rows)) for key, rows in groups.items()]
        terms, indices = common_terms([view for _, view in parts])
        index = np.full((len(self.rows[0]), self.features), -1)
        for (rows, _), part in zip(parts, indices, strict=True):
            index[rows] = part
        return View(terms, index)

    def _routed(self) -> set[int]:
        """Rows of which something comes and goes."""
        rest: dict[int, list[Slot]] = {}
        for row in range(len(self.rows[0])):
            common = set.intersection(*({_name(slot) for slot in rows[row]} for rows in self.rows))
            varied = [slot for rows in self.rows for slot in rows[row] if _name(slot) not in common or slot.scores]
            if varied:
                rest[row] = varied
        experts = {slot.function for slots in rest.values() for slot in slots} - {ONE}
        also = {r for r, row in enumerate(self.rows[0]) if rest and experts & {slot.function for slot in row}}
        common = self._common(sorted(rest))
        return set(rest) | {r for r in also if any(s.key not in common for rows in self.rows for s in rows[r])}

    def _common(self, rows: Sequence[int]) -> set[Hashable]:
        """What all of the rows have, in all traces."""
        keys = [{slot.key for slot in trace[row] if not slot.scores} for trace in self.rows for row in rows]
        return set.intersection(*keys) if keys else set()

    def _plain(self, rows: Sequence[int]) -> View:
        here = [self.rows[0][row] for row in rows]
        return self._builder(here).row(here[0], self.features)

    def _builder(self, rows: Sequence[Row]) -> Builder:
        """Of the tokens that the rows are of; what adds several tokens is no mixture, but attention."""
        tokens = []
        for row in rows:
            of = {slot.token for slot in row} - {None}
            if len(of) > 1:
                raise NoMixtureError
            tokens.append(next(iter(of), 0))
        [*_, main] = self.traced[0].reader.inputs
        return Builder(main, np.asarray(tokens), self.origin)

    # --- What comes and goes ---

    def _mixture(self, rows: Sequence[int]) -> View:
        common = self._common(rows)
        varied = [[tuple(s for s in trace[r] if s.scores or s.key not in common) for r in rows] for trace in self.rows]
        builder = self._builder([self.rows[0][row] for row in rows])
        inner = self._peeled(rows, varied, builder) or self._routed_sum(varied, builder)
        first = self.rows[0][rows[0]]
        rest = tuple(slot for slot in first if slot.key in common and not slot.scores)
        if not rest:
            return inner
        around = builder.row(rest, self.features)
        return whole(Add(origin=self.origin, a=plain(around), b=plain(inner)))

    def _peeled(self, rows: Sequence[int], varied: Sequence[Sequence[Row]], builder: Builder) -> View | None:
        """A layer over the mixture, the same for all tokens."""
        slots = [slot for trace in varied for row in trace for slot in row]
        if any(len(row) != 1 for trace in varied for row in trace):
            return None
        if any(slot.scores or slot.owner < 0 or slot.function.kind not in ("matmul", "norm") for slot in slots):
            return None
        nodes = [[self.traced[t].reader.trace.node_of(row[0].owner) for row in trace] for t, trace in enumerate(varied)]
        first, _ = nodes[0][0]
        outer = {(slot.factor.tobytes(), slot.columns.tobytes()) for slot in slots}
        if len(outer) != 1 or not isinstance(first, Matmul | Normalise) or slots[0].function.width != first.shape[1]:
            return None
        if len({self._layer(node) for trace in nodes for node, _ in trace}) != 1:
            return None
        under = []
        for traced, trace in zip(self.traced, nodes, strict=True):
            rows_of = [(node.views[0], element // node.shape[-1]) for node, element in trace]
            views = [x.pick(x.index[[row]]) for x, row in rows_of]
            under.append(Traced(traced.reader, _stacked(views)))
        inner = Reading(self.origin, under, self.linearity).view()
        return builder.slot(slots[0], whole(replace(first, x=inner)))

    def _layer(self, node: Node) -> Hashable:
        """The same for the same layer of whatever it reads."""
        digest = self.traced[0].reader.functions.digest
        key: Hashable = node
        match node:
            case Matmul():
                key = digest(node.weight), digest(node.bias)
            case Normalise():
                key = digest(node.gamma), digest(node.beta), node.epsilon, node.centred
        return key

    def _routed_sum(self, varied: Sequence[Sequence[Row]], builder: Builder) -> View:
        names: dict[Hashable, tuple[Slot, Doubles]] = {}
        weights = [[self._weights(t, row, names) for row in trace] for t, trace in enumerate(varied)]
        functions = [slot.function for slot, _ in names.values()]
        if any(weighs_inside(function) for function in functions if function.kind in ("matmul", "activate")):
            raise UnsupportedError("weighs tokens before their experts", "weigh the experts' results")
        if not _may_be_mixture([slot for slot, _ in names.values()]):
            raise NoMixtureError
        table = np.array([[row.get(name, 0.0) for name in names] for trace in weights for row in trace])
        samples = [(t, self._token(row)) for t, trace in enumerate(varied) for row in trace]
        found = candidates([each.reader for each in self.traced])
        fit = best_fit(found, samples, table)
        if fit is None:
            raise NoMixtureError
        affine = [self._affine(slot, direction) for slot, direction in names.values()]
        if fit.error > TOLERANCE:
            self._refuse_ties(self.linearity.of_row(fit.candidate.row, fit.candidate.width), fit)
            self._refuse(fit, varied, list(names))
        self._complete(fit)
        return self._moe(fit, affine, builder)

    def _weights(self, t: int, row: Row, names: dict[Hashable, tuple[Slot, Doubles]]) -> dict[Hashable, float]:
        """Of each function that comes and goes; the functions are gathered."""
        found: dict[Hashable, float] = {}
        for slot in row:
            largest = slot.factor[np.abs(slot.factor).argmax()]
            direction = slot.factor / largest
            name = _function_name(slot)
            names.setdefault(name, (slot, direction))
            found[name] = found.get(name, 0.0) + largest * self.traced[t].reader.value(slot.scores)
        return found

    def _token(self, row: Row) -> int:
        return next((slot.token for slot in row if slot.token is not None), 0)

    def _affine(self, slot: Slot, direction: Doubles) -> Affine:
        return self.linearity.of_row((replace(slot, factor=direction, scores=()),), self.features)

    def _refuse(self, fit: Fit, varied: Sequence[Sequence[Row]], names: Sequence[Hashable]) -> None:
        """Why the weights are none of a gate."""
        trace = self.traced[0].reader.trace
        if where := trace.counts():
            text = (
                f"it counts the tokens of each expert by cumsum at {where[0]}: an expert must take any number of tokens"
            )
            raise UnsupportedError(text, "leave out the limit, which no token reaches in inference")
        if across := [decision for decision in trace.decisions if self._across(decision)]:
            text = f"{across[0].origin} chooses among tokens: each token must choose its experts by itself"
            raise UnsupportedError(text, "choose experts for a token, not tokens for an expert")
        wrong = {name for name, error in zip(names, fit.errors, strict=True) if not error <= TOLERANCE}
        rows = [tuple(slot for slot in row if _function_name(slot) in wrong) for row in varied[0]]
        said = scores_said(self.traced[0].reader, rows)
        by = f", which it computes by {said}," if said else ""
        of = "its experts" if len(wrong) == len(names) else f"{len(wrong)} of the {len(names)} functions that it adds"
        raise UnsupportedError(f"the weights of {of}{by} are not what the machine has (closest: {fit})", SCORES)

    def _across(self, decision: Decision) -> bool:
        rows = self.traced[0].reader.rows(decision.of.reshape(-1, decision.of.shape[-1]))
        return any(len({slot.token for slot in row} - {None}) > 1 for row in rows)

    def _complete(self, fit: Fit) -> None:
        missing = np.flatnonzero(fit.reached == 0).tolist()
        if missing:
            raise IncompleteError(missing, self.linearity.of_row(fit.candidate.row, fit.candidate.width))

    def _moe(self, fit: Fit, affine: Sequence[Affine], builder: Builder) -> View:
        gate = self.linearity.of_row(fit.candidate.row, fit.candidate.width)
        if fit.top_k == 1 and fit.scoring == "softmax_of_selected":
            gate = self._without_length(gate)
        for base in gate.parts:
            try:
                readable(base)
            except UnsupportedError as refusal:
                raise UnsupportedError(f"its gate {refusal.text}", refusal.hint) from refusal
        self._refuse_ties(gate, fit)
        mixed = [_mixed(affine, mix, self.features) for mix in fit.mix]
        experts, activation, operands = experts_of(mixed, self.linearity)
        gates = tuple(gate.parts)
        x = builder.joined(operands)
        weight = np.concatenate([gate.parts[base] for base in gates], axis=1)
        if set(gates) <= set(operands):
            zeros = np.zeros
            weight = np.concatenate(
                [gate.parts.get(base, zeros((fit.candidate.width, base.width))) for base in operands], axis=1
            )
        made = Moe(
            origin=self.origin,
            x=plain(x),
            gate_x=None if set(gates) <= set(operands) else plain(builder.joined(gates)),
            gate_weight=float32(weight),
            gate_bias=float32(gate.constant),
            experts=experts,
            activation=activation,
            top_k=fit.top_k,
            scoring=fit.scoring,
        )
        return whole(made)

    def _without_length(self, gate: Affine) -> Affine:
        """Which logit is the largest does not depend on what all are divided by, e.g. the token's length."""
        [base, *others] = gate.parts
        if others or gate.constant.any() or not isinstance(base.node, Computed) or base.node.origin.op != "aten.div":
            return gate
        return self.linearity.of_row(base.rows[0], base.width).through(gate.parts[base])

    def _refuse_ties(self, gate: Affine, fit: Fit) -> None:
        """Two experts that have the same logit for every token."""
        rows = np.concatenate([*gate.parts.values(), gate.constant[:, None]], axis=1)
        alike = [(i, j) for j in range(len(rows)) for i in range(j) if np.array_equal(rows[i], rows[j])]
        if alike and fit.top_k < len(rows):
            i, j = alike[0]
            raise UnsupportedError(
                f"its gate has the same weights for experts {i} and {j}: all tokens are a tie",
                "train the gate; which of two such experts a token takes is chance",
            )


def _name(slot: Slot) -> Hashable:
    return slot.key, slot.token, slot.scores


def _function_name(slot: Slot) -> Hashable:
    """Of what is weighed: a function, by any factor."""
    direction = slot.factor / slot.factor[np.abs(slot.factor).argmax()]
    columns = np.where(slot.factor != 0, slot.columns, -1)
    return id(slot.function), columns.tobytes(), float32(direction).tobytes()


def _may_be_mixture(slots: Sequence[Slot]) -> bool:
    """Not some elements of one function, as a choice among logits is."""
    functions = {slot.function for slot in slots if slot.function.kind not in ("softmax", "one")}
    wholes = {id(function.part_of or function) for function in functions}
    return len(wholes) > 1 or (bool(functions) and any(slot.scores for slot in slots))


def _mixed(affine: Sequence[Affine], mix: Doubles, features: int) -> Affine:
    total = Affine({}, np.zeros(features))
    for each, by in zip(affine, mix, strict=True):
        if by:
            scaled = Affine({base: matrix * by for base, matrix in each.parts.items()}, each.constant * by)
            total = total.plus(scaled)
    return total


def _stacked(views: Sequence[View]) -> View:
    terms, indices = common_terms(views)
    return View(terms, np.concatenate(indices))
