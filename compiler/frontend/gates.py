"""Which gate, how many experts and which scores give the weights that a trace shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.frontend.functions import Doubles, Reader, Row, width_of
from patchloom.compiler.frontend.terms import is_score, is_sigmoid
from patchloom.compiler.frontend.trace import Computed, Trace
from patchloom.compiler.node import View
from patchloom.compiler.nodes import Scoring
from patchloom.compiler.nodes.captured import Softmax
from patchloom.compiler.nodes.float32 import softmax

ROUNDING = 10  # misfits that differ by no more than this factor are equal
TIE = 1e-5  # of the usual logit: what two logits that decide must differ by
MOST = 1024  # experts
HARDLY, NEARLY = 1e-4, 1e-5

Flags = NDArray[np.bool_]
Sample = tuple[int, int]  # the number of a trace, and a token


@dataclass(eq=False)
class Candidate:
    """What a choice or a score was computed of: logits, it may be."""

    row: Row
    width: int
    values: dict[tuple[int, int | None], Doubles] = field(default_factory=dict)  # by trace and token
    most: set[int] = field(default_factory=set)
    decides: bool = False

    def of(self, samples: Sequence[Sample]) -> Doubles | None:
        found = [self.values.get((t, token), self.values.get((t, None))) for t, token in samples]
        known = [value for value in found if value is not None]
        return np.stack(known) if len(known) == len(found) else None


@dataclass(frozen=True, eq=False)
class Fit:
    """`scores @ mix` are the weights of the functions."""

    candidate: Candidate
    top_k: int
    scoring: Scoring
    mix: Doubles  # [experts, functions]
    errors: Doubles  # of each function, relative to the largest weight
    reached: Doubles  # how often each expert was chosen

    @property
    def error(self) -> float:
        return float(self.errors.max())

    def __str__(self) -> str:
        return f"top_k={self.top_k}, {self.scoring}, error {self.error:.1g}"


def candidates(readers: Sequence[Reader]) -> list[Candidate]:
    """Those that are the same function of a token in all traces; what was decided by before what was scored."""
    found: dict[object, Candidate] = {}
    met: list[set[object]] = []
    for number, reader in enumerate(readers):
        met.append(set())
        for view, most, decides in _looked_at(reader.trace):
            for key, candidate, values in _rows(reader, view):
                known = found.setdefault(key, candidate)
                known.values |= {(number, token): value for token, value in values.items()}
                known.most |= {most} if most else set()
                known.decides |= decides
                met[-1].add(key)
    everywhere = [candidate for key, candidate in found.items() if all(key in keys for keys in met)]
    chosen = {candidate.width for candidate in everywhere if candidate.decides}
    return [candidate for candidate in everywhere if not chosen or candidate.width in chosen]


def _looked_at(trace: Trace) -> Iterator[tuple[View, int | None, bool]]:
    for decision in trace.decisions:
        yield decision.of, decision.most, True
    for node in reversed(trace.nodes):
        if isinstance(node, Softmax | Computed) or is_sigmoid(node):
            yield from ((view, None, False) for view in node.views or getattr(node, "operands", ()))


def _rows(reader: Reader, view: View) -> Iterator[tuple[object, Candidate, dict[int | None, Doubles]]]:
    width = view.shape[-1] if view.shape else 0
    if not 2 <= width <= MOST:
        return
    matrix = view.reshape(-1, width)
    rows = reader.rows(matrix)
    keys = {tuple(slot.key for slot in row) for row in rows}
    if len(keys) != 1 or any(slot.scores for row in rows for slot in row):
        return
    values: dict[int | None, Doubles] = {}
    for row, value in zip(rows, values_of(reader, matrix), strict=True):
        tokens = {slot.token for slot in row} - {None}
        if len(tokens) > 1:
            return
        values[next(iter(tokens), None)] = value
    yield keys.pop(), Candidate(rows[0], width), values


def values_of(reader: Reader, view: View) -> Doubles:
    terms = reader.algebra.of(view)
    known = np.where(terms.numbers >= 0, reader.trace.values[terms.numbers], 1.0)
    values: Doubles = (terms.factor * known.prod(axis=1)).sum(axis=0).reshape(view.shape)
    return values


def best_fit(found: Sequence[Candidate], samples: Sequence[Sample], weights: Doubles) -> Fit | None:
    """Of all gates, numbers of experts and scores: what fits as well as the best does, with the fewest experts.

    A last score near zero hardly shows.
    """
    seen = int((weights != 0).sum(axis=1).max())
    told = {most for candidate in found for most in candidate.most}
    fits = []
    for candidate in found:
        logits = candidate.of(samples)
        if logits is None or not np.isfinite(logits).all():
            continue
        for top_k in sorted({seen, *(told or {candidate.width})}):
            if top_k <= candidate.width:
                fits += [_fit(candidate, logits, top_k, scoring, weights) for scoring in get_args(Scoring)]
    fits = [fit for fit in fits if not np.isnan(fit.error)]  # weights may be of no token at all
    if not fits:
        return None
    least = min(fit.error for fit in fits)
    alike = [fit for fit in fits if fit.error <= ROUNDING * least + np.finfo(np.float32).eps]
    return min(alike, key=lambda fit: fit.top_k)


def _fit(candidate: Candidate, logits: Doubles, top_k: int, scoring: Scoring, weights: Doubles) -> Fit:
    sure = ~ties(logits, top_k)
    scores = scored(logits[sure], top_k, scoring)
    if not sure.any():
        return Fit(
            candidate,
            top_k,
            scoring,
            np.zeros((candidate.width, weights.shape[1])),
            np.full(weights.shape[1], np.inf),
            scores.sum(0),
        )
    mix = _mix(scores, weights[sure])
    largest = np.abs(weights).max() or 1.0
    errors = np.abs(scores @ mix - weights[sure]).max(axis=0) / largest
    return Fit(candidate, top_k, scoring, mix, errors, (scores > 0).sum(axis=0))


def _mix(scores: Doubles, weights: Doubles) -> Doubles:
    """The fewest experts that a function is part of: what hardly shows is left out, and what is nearly one is one."""
    mix = np.linalg.lstsq(scores, weights, rcond=1e-9)[0]
    shown = np.abs(mix) * scores.max(axis=0, initial=0.0)[:, None] > HARDLY * np.abs(weights).max(axis=0, initial=0.0)
    for function in range(weights.shape[1]):
        here = shown[:, function]
        mix[:, function] = 0.0
        mix[here, function] = np.linalg.lstsq(scores[:, here], weights[:, function], rcond=1e-9)[0]
    return np.where(np.abs(mix - 1) < NEARLY, 1.0, mix)


def scored(logits: Doubles, top_k: int, scoring: Scoring) -> Doubles:
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    if scoring == "softmax_of_selected":
        scores = softmax(np.take_along_axis(logits, chosen, axis=1))
    else:
        scores = np.take_along_axis(softmax(logits), chosen, axis=1)
    result = np.zeros_like(logits)
    np.put_along_axis(result, chosen, scores, axis=1)
    return result


def ties(logits: Doubles, top_k: int) -> Flags:
    """Rows whose choice rounding may change."""
    ranked = -np.sort(-logits, axis=1)
    if top_k == ranked.shape[1]:
        return np.zeros(len(ranked), bool)
    near: Flags = ranked[:, top_k - 1] - ranked[:, top_k] <= TIE * np.median(np.abs(ranked), axis=1)
    return near


def scores_said(reader: Reader, rows: Sequence[Row]) -> str:
    """By which operations the weights of experts were computed."""
    numbers = {number for row in rows for slot in row for number in slot.scores}
    names: dict[str, None] = {}
    pending = [reader.trace.node_of(number)[0] for number in sorted(numbers)]
    seen = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_score(node) or isinstance(node, Computed):
            names.setdefault(str(node.origin.op))
            views = node.views or getattr(node, "operands", ())
            pending += [base for view in views for base, _ in view.terms]
        elif width_of(node) and node.kind in ("add", "scale", "times", "total"):
            pending += [base for view in node.views for base, _ in view.terms]
    return ", ".join(name.removeprefix("aten.").lstrip("_") for name in names)
