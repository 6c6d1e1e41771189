"""Rows of a trace as functions of a token: what is computed of each, without which token it is.

Equal functions are one object, in whatever trace and of whatever token they were met, so that an expert is known again.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.frontend.terms import NONE, Algebra, Terms
from patchloom.compiler.frontend.trace import Computed, Trace
from patchloom.compiler.node import Floats, Indices, Node, View, whole
from patchloom.compiler.nodes import Input, Matmul
from patchloom.compiler.nodes.captured import Activate, Normalise, Softmax

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Function:
    """Of a token: a kind, what it is besides (weights, by their contents), and the rows that it reads."""

    kind: str
    width: int
    rows: tuple["Row", ...] = field(default=(), repr=False)
    node: Node | None = field(default=None, repr=False)  # one that computes it
    row: int = 0  # of the node, where it is not a function of one token
    part_of: "Function | None" = field(default=None, repr=False)  # where it is some columns of another one


ONE = Function("one", 0)  # the constant


@dataclass(frozen=True, eq=False)
class Slot:
    """A term of a row: `factor` per column, times scores, times columns of a function of a token."""

    factor: Doubles
    scores: tuple[int, ...]  # numbers of their elements
    function: Function
    columns: Indices  # of the function; where the factor is zero they do not matter
    token: int | None  # that the function is of
    owner: int = NONE  # number of the first element of the function's row

    @property
    def key(self) -> Hashable:
        columns = np.where(self.factor != 0, self.columns, NONE)
        return self.factor.tobytes(), id(self.function), columns.tobytes()


Row = tuple[Slot, ...]


class Functions:
    """All that were met in the traces of one block."""

    def __init__(self) -> None:
        self.known: dict[Hashable, Function] = {}
        self.digests: dict[int, tuple[Any, bytes]] = {}
        self.narrow: dict[Hashable, Function] = {}

    def one(self, key: Hashable, made: Function) -> Function:
        return self.known.setdefault((made.kind, made.width, key), made)

    def digest(self, array: NDArray[Any]) -> bytes:
        if id(array) not in self.digests:
            found = blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
            self.digests[id(array)] = array, found
        return self.digests[id(array)][1]

    def narrowed(self, slot: Slot) -> Slot:
        """Some columns of a layer or of its activation are a layer of their own: experts may lie side by side."""
        function, columns = slot.function, slot.columns
        if function.kind not in ("matmul", "activate") or np.array_equal(columns, np.arange(function.width)):
            return slot
        if not slot.factor.all():
            return slot
        key = id(function), columns.tobytes()
        if key not in self.narrow:
            self.narrow[key] = self._narrowed(function, columns)
        return replace(slot, function=self.narrow[key], columns=np.arange(len(columns)))

    def _narrowed(self, function: Function, columns: Indices) -> Function:
        [row], node = function.rows, function.node
        if isinstance(node, Matmul):
            weight, bias = node.weight[columns], node.bias[columns]
            key: Hashable = (self.digest(weight), self.digest(bias)), self.row_keys((row,))
            some = replace(node, weight=weight, bias=bias)
            return self.one(key, Function("matmul", len(columns), (row,), some, part_of=function))
        picked = [replace(slot, factor=slot.factor[columns], columns=slot.columns[columns]) for slot in row]
        row = tuple(self.narrowed(slot) for slot in picked if slot.factor.any())
        assert isinstance(node, Activate)
        return self.one(
            (node.activation, self.row_keys((row,))), Function("activate", len(columns), (row,), node, part_of=function)
        )

    def row_keys(self, rows: tuple[Row, ...], scored: Sequence[Hashable] = ()) -> Hashable:
        return tuple(tuple(slot.key for slot in row) for row in rows), tuple(scored)


class Reader:
    """Rows of one trace."""

    def __init__(self, trace: Trace, functions: Functions, tokens: int) -> None:
        self.algebra, self.trace, self.functions, self.tokens = Algebra(trace), trace, functions, tokens
        self.inputs = [_tokens(node) for node in trace.nodes if isinstance(node, Input)]
        self.known: dict[Node, list[tuple[Function, int | None]]] = {}
        self.keys: dict[Node, bytes] = {}

    def rows(self, view: View) -> list[Row]:
        """Of a matrix."""
        return [tuple(slots) for slots in self._slots(self.algebra.of(view), *view.shape)]

    def value(self, numbers: Sequence[int]) -> float:
        return float(np.prod(self.trace.values[list(numbers)])) if numbers else 1.0

    def _slots(self, terms: Terms, rows: int, columns: int) -> list[list[Slot]]:
        result: list[list[Slot]] = [[] for _ in range(rows)]
        factor = terms.factor.reshape(-1, rows, columns)
        numbers = terms.numbers.reshape(len(factor), -1, rows, columns)
        for k in range(len(factor)):
            usual = self._usual(factor[k], numbers[k])
            for row in np.flatnonzero((factor[k] != 0).any(axis=1)).tolist():
                if usual[row]:
                    result[row].append(self._whole_row(factor[k, row], numbers[k, :, row]))
                else:
                    result[row] += self._split(factor[k, row], numbers[k, :, row])
        return result

    def _usual(self, factor: Doubles, numbers: Indices) -> NDArray[np.bool_]:
        """Which rows are scores times whole rows of one function: most are."""
        columns = factor.shape[1]
        if columns < 2:
            return np.zeros(len(factor), bool)
        begin = numbers[:, :, :1]
        whole = (numbers == begin + np.arange(columns)).all(axis=2) & (begin[..., 0] >= 0)
        same = (numbers == begin).all(axis=2)
        place = np.searchsorted(self.trace.first, begin[..., 0], side="right") - 1
        known, where = np.unique(place, return_inverse=True)
        width = np.asarray([width_of(self.trace.nodes[p]) for p in known])[where.reshape(place.shape)]
        aligned = (width == columns) & ((begin[..., 0] - np.asarray(self.trace.first)[place]) % columns == 0)
        fit: NDArray[np.bool_] = (whole & aligned).sum(axis=0) == 1
        fit &= (same | (whole & aligned)).all(axis=0) & (factor != 0).all(axis=1)
        return fit

    def _whole_row(self, factor: Doubles, numbers: Indices) -> Slot:
        first, second = numbers[:, 0], numbers[:, 1]
        [owner] = first[second != first].tolist()
        function, token = self._function(owner)
        scores = tuple(first[(second == first) & (first >= 0)].tolist())
        return Slot(factor, scores, function, np.arange(len(factor)), token, owner)

    def _split(self, factor: Doubles, numbers: Indices) -> Iterator[Slot]:
        """By the rows that its columns are of: those of a joined tensor are of several."""
        live = factor != 0
        scores, vectors = [], []
        for part in numbers:
            used = part[live]
            if used[0] >= 0 and len(part) > 1 and live.sum() > 1 and (used == used[0]).all():
                scores.append(int(used[0]))
            elif (used >= 0).any():
                vectors.append(part)
        if not vectors:
            yield Slot(factor, tuple(scores), ONE, np.zeros(len(factor), np.int64), None)
            return
        places = [self._places(part, live) for part in vectors]
        owners = np.stack([place[0] for place in places])
        for owner in np.unique(owners[:, live], axis=1).T:
            here = live & (owners == owner[:, None]).all(axis=0)
            yield self._slot(
                np.where(here, factor, 0.0), scores, [(o, c) for o, (_, c) in zip(owner, places, strict=True)]
            )

    def _places(self, numbers: Indices, live: NDArray[np.bool_]) -> tuple[Indices, Indices]:
        """Of each element: which row of all nodes' rows it is in, by the number of the row's first, and its column."""
        first = np.asarray(self.trace.first)
        place = np.searchsorted(first, numbers, side="right") - 1
        widths = np.asarray([width_of(self.trace.nodes[p]) for p in np.unique(place)])
        width = widths[np.searchsorted(np.unique(place), place)]
        column = (numbers - first[place]) % width
        owner = np.where(live & (numbers >= 0), numbers - column, NONE)
        return owner, column

    def _slot(self, factor: Doubles, scores: list[int], parts: list[tuple[int, Indices]]) -> Slot:
        parts = [(int(owner), columns) for owner, columns in parts if owner >= 0]
        found = [(self._function(owner), columns) for owner, columns in parts]
        if len(found) == 1:
            (function, token), columns = found[0]
            return self.functions.narrowed(Slot(factor, tuple(scores), function, columns, token, parts[0][0]))
        if not found:
            return Slot(factor, tuple(scores), ONE, np.zeros(len(factor), np.int64), None)
        rows = tuple((Slot(np.where(factor != 0, 1.0, 0.0), (), f, c, t),) for (f, t), c in found)
        function, token = self._interned("product", "", len(factor), rows, None, 0)
        return Slot(factor, tuple(scores), function, np.arange(len(factor)), token)

    def _function(self, owner: int) -> tuple[Function, int | None]:
        """Of the row that begins with this element, and of which token it is."""
        node, element = self.trace.node_of(owner)
        if node not in self.known:
            self.known[node] = self._functions(node)
        return self.known[node][element // width_of(node)]

    def _functions(self, node: Node) -> list[tuple[Function, int | None]]:
        width, digest = width_of(node), self.functions.digest
        count = node.size // width
        key: tuple[Any, ...] | None = None
        views: Sequence[View] = node.views
        match node:
            case Input() if count == self.tokens:
                made = self.functions.one(node.name, Function("input", width, node=node))
                return [(made, row) for row in range(count)]
            case Matmul():
                key = "matmul", digest(node.weight), digest(node.bias)
            case Normalise():
                key = "norm", digest(node.gamma), digest(node.beta), node.epsilon, node.centred
            case Activate():
                key = "activate", node.activation
            case Softmax():
                key = ("softmax",)
            case Computed() if all(view.index.size % count == 0 for view in node.operands):
                key, views = ("computed", node.origin.op, node.arguments), node.operands
        if key is not None:
            return self._rowwise(key, node, [view.reshape(count, -1) for view in views])
        return [self._whole(node, row) for row in range(count)]

    def _rowwise(self, key: tuple[Any, ...], node: Node, views: Sequence[View]) -> list[tuple[Function, int | None]]:
        several = [self.rows(view) for view in views]
        return [
            self._interned(key[0], key[1:], width_of(node), rows, node, number)
            for number, rows in enumerate(zip(*several, strict=True))
        ]

    def _interned(
        self, kind: str, key: Hashable, width: int, rows: tuple[Row, ...], node: Node | None, number: int
    ) -> tuple[Function, int | None]:
        """The function of one token; if it is of several, the row itself."""
        slots = [slot for row in rows for slot in row]
        scored = [self._function_of_element(score) for slot in slots for score in slot.scores]
        tokens = {slot.token for slot in slots} | {token for _, _, token in scored}
        tokens.discard(None)
        keys = self.functions.row_keys(rows, [(id(f), c) for f, c, _ in scored])
        if len(tokens) <= 1:
            made = self.functions.one((key, keys), Function(kind, width, rows, node))
            return made, next(iter(tokens), None)
        if node is None:
            where = tuple(slot.token for slot in slots)
            return self.functions.one((key, keys, where), Function("tokens", width, rows)), None
        return self._whole(node, number)

    def _function_of_element(self, number: int) -> tuple[Function, int, int | None]:
        node, element = self.trace.node_of(number)
        column = element % width_of(node)
        function, token = self._function(number - column)
        return function, column, token

    def _whole(self, node: Node, row: int) -> tuple[Function, None]:
        """What depends on several tokens is known again by the whole operation."""
        made = Function("tokens", width_of(node), node=node, row=row)
        return self.functions.one((self._key(node), row), made), None

    def _key(self, node: Node) -> bytes:
        """The same for the same operation of the same inputs, in every trace; it is made of those of all before."""
        if node not in self.keys:
            self.keys[node] = node.name.encode() if isinstance(node, Input) else self._digest(node)
        return self.keys[node]

    def _digest(self, node: Node) -> bytes:
        made = blake2b(f"{type(node).__name__} {node.origin.op}".encode(), digest_size=16)
        for part in fields(node):
            value = getattr(node, part.name)
            if isinstance(value, np.ndarray):
                made.update(self.functions.digest(value))
            elif part.name != "name" and isinstance(value, bool | int | float | str | None):
                made.update(f"{part.name} {value!r}".encode())
        for view in node.views:
            made.update(self.functions.digest(view.index))
            for base, factor in view.terms:
                made.update(self._key(base) + repr(factor).encode())
        return made.digest()


def _tokens(node: Input) -> View:
    return whole(node).reshape(-1, width_of(node))


def width_of(node: Node) -> int:
    """Columns of what is read row by row: an input's last dimension."""
    return int(node.user_shape[-1] if isinstance(node, Input) else node.shape[-1])


# --- What is linear in them ---


@dataclass(frozen=True, eq=False)
class Affine:
    """`sum over bases of matrix @ base + constant`; no base is a layer without an activation."""

    parts: dict[Function, Doubles]
    constant: Doubles

    def through(self, weight: Doubles, bias: Doubles | float = 0.0) -> "Affine":
        return Affine({base: weight @ matrix for base, matrix in self.parts.items()}, weight @ self.constant + bias)

    def plus(self, other: "Affine") -> "Affine":
        parts = dict(self.parts)
        for base, matrix in other.parts.items():
            parts[base] = parts[base] + matrix if base in parts else matrix
        return Affine(parts, self.constant + other.constant)


class Linearity:
    def __init__(self) -> None:
        self.known: dict[Function, Affine] = {}
        self.norms: dict[Hashable, Function] = {}
        self.weighted: dict[Hashable, Function] = {}

    def of(self, function: Function) -> Affine:
        if function not in self.known:
            self.known[function] = self._made(function)
        return self.known[function]

    def _made(self, function: Function) -> Affine:
        node = function.node
        if function.kind == "matmul" and isinstance(node, Matmul):
            return self.of_row(function.rows[0], node.weight.shape[1]).through(
                _doubles(node.weight), _doubles(node.bias)
            )
        if function.kind == "norm" and isinstance(node, Normalise):
            key = node.epsilon, node.centred, tuple(slot.key for slot in function.rows[0])
            plain = self.norms.setdefault(key, Function("normal", function.width, function.rows, node))
            return Affine({plain: np.diag(_doubles(node.gamma))}, _doubles(node.beta))
        return Affine({function: np.eye(function.width)}, np.zeros(function.width))

    def of_row(self, row: Row, width: int) -> Affine:
        total = Affine({}, np.zeros(width))
        for slot in row:
            if slot.function is ONE and not slot.scores:
                total = total.plus(Affine({}, slot.factor))
                continue
            if not slot.scores and is_whole(slot):
                total = total.plus(self.of(slot.function))
                continue
            chosen = np.zeros((width, slot.function.width))
            used = np.flatnonzero(slot.factor)
            if slot.scores:
                made = self.weighted.setdefault((slot.key, slot.scores), Function("product", width, (row,)))
                total = total.plus(Affine({made: np.diag(slot.factor)}, np.zeros(width)))
                continue
            chosen[used, slot.columns[used]] = slot.factor[used]
            total = total.plus(self.of(slot.function).through(chosen))
        return total


def is_whole(slot: Slot) -> bool:
    return bool((slot.factor == 1).all()) and np.array_equal(slot.columns, np.arange(slot.function.width))


def _doubles(array: Floats) -> Doubles:
    return array.astype(np.float64)
