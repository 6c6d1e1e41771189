"""Functions of a token as operations again, on all tokens at once."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np

from patchloom.compiler.frontend.experts import readable
from patchloom.compiler.frontend.functions import ONE, Function, Row, Slot
from patchloom.compiler.frontend.reduction import spread
from patchloom.compiler.frontend.site import Site
from patchloom.compiler.node import Indices, View, common_terms, float32, whole
from patchloom.compiler.nodes import Constant, Matmul
from patchloom.compiler.nodes.captured import Activate, Add, Normalise, Scale
from patchloom.compiler.origin import Origin
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.problems import UnsupportedError


class Builder:
    """Of the tokens of one group of rows."""

    def __init__(self, inputs: View, tokens: Indices, origin: Origin) -> None:
        self.inputs, self.tokens, self.origin = inputs, tokens, origin
        self.known: dict[tuple[Hashable, bool], View] = {}

    def of(self, function: Function) -> View:
        """[tokens, width]; of what is no function of a token, the same for each."""
        if depends(function):
            return self._of(function, alone=False)
        one = self._of(function, alone=True)
        return (
            one
            if len(self.tokens) == 1
            else spread(
                Site(replace(self.origin, name=f"{self.origin.name}.gate")),
                one,
                self.inputs.pick(self.inputs.index[self.tokens]),
            )
        )

    def joined(self, functions: Sequence[Function]) -> View:
        return beside([self.of(function) for function in functions])

    def row(self, row: Row, width: int) -> View:
        parts = [self.slot(slot, self.of(slot.function) if slot.function is not ONE else None) for slot in row]
        return self._sum(parts, width, len(self.tokens))

    def _of(self, function: Function, *, alone: bool) -> View:
        key = function, alone
        if key not in self.known:
            self.known[key] = self._made(function, alone)
        return self.known[key]

    def _made(self, function: Function, alone: bool) -> View:
        readable(function)
        node = function.node
        if function.kind == "tokens" and node is not None:
            return (
                whole(node)
                .reshape(-1, function.width)
                .pick(whole(node).index.reshape(-1, function.width)[function.row : function.row + 1])
            )
        if function.kind == "input" and node is not None:
            index = whole(node).index.reshape(-1, function.width)
            return whole(node).pick(index[self.tokens])
        if not function.rows:
            raise UnsupportedError("computes something of several tokens that depends on their experts", "")
        width = node.weight.shape[1] if isinstance(node, Matmul) else function.width
        x = self._inner(function.rows[0], width, alone)
        match node:
            case Matmul():
                return whole(replace(node, x=x))
            case Activate():
                return whole(replace(node, x=x))
            case Normalise() if function.kind == "normal":
                ones, zeros = np.ones(function.width, np.float32), np.zeros(function.width, np.float32)
                return whole(replace(node, x=x, gamma=ones, beta=zeros))
            case Normalise():
                return whole(replace(node, x=x))
        raise UnsupportedError(f"computes {function.kind} of a token", "")

    def _inner(self, row: Row, width: int, alone: bool) -> View:
        parts = []
        for slot in row:
            if slot.function is ONE:
                parts.append(self.slot(slot, None))
            else:
                parts.append(self.slot(slot, self._of(slot.function, alone=True) if alone else self.of(slot.function)))
        return self._sum(parts, width, 1 if alone else len(self.tokens))

    def slot(self, slot: Slot, view: View | None) -> View:
        if slot.scores:
            raise UnsupportedError("weighs tokens before their experts", "weigh the experts' results")
        if view is None:
            return whole(Constant(origin=self.origin, value=float32(slot.factor)[None]))
        used = slot.factor != 0
        columns = np.where(used, slot.columns, 0)
        view = view.pick(np.where(used, view.index[:, columns], -1))
        factors = np.unique(slot.factor[used])
        if len(factors) == 1:
            return view.scaled(float(factors[0]))
        factor = np.broadcast_to(float32(slot.factor), view.shape)
        return whole(Scale(origin=self.origin, x=view, factor=np.ascontiguousarray(factor)))

    def _sum(self, parts: list[View], width: int, rows: int) -> View:
        """Parts of different columns lie beside each other, others are added."""
        if not parts:
            return whole(Constant(origin=self.origin, value=np.zeros((rows, width), np.float32)))
        parts = [part.pick(np.broadcast_to(part.index, (rows, width))) for part in parts]
        total = parts[0]
        for part in parts[1:]:
            apart = not ((total.index >= 0) & (part.index >= 0)).any()
            if apart:
                terms, (one, other) = common_terms([total, part])
                total = View(terms, np.where(one >= 0, one, other))
            else:
                total = whole(Add(origin=self.origin, a=plain(total), b=plain(part)))
        return total


def beside(views: Sequence[View]) -> View:
    if len(views) == 1:
        return views[0]
    terms, indices = common_terms(views)
    return View(terms, np.concatenate(indices, axis=1))


def depends(function: Function) -> bool:
    """On a token."""
    if function.kind == "input":
        return True
    return any(depends(slot.function) for row in function.rows for slot in row)
