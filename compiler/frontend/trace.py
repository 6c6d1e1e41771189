"""What a module computes of concrete values, operation by operation, whatever its control flow.

The user's code runs as it is. Beside every tensor lie the numbers of its elements: which element of which node each of
them is. Integers and truth values are as they turn out (a choice of experts, rows where a mask holds), and what they
select by are numbers as any other. Loops over `nonzero`, `tolist` and writing in place thus leave nothing behind but
elements of nodes; another choice of experts is another trace.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from patchloom.compiler.frontend.elementwise import summed as sum_of_views
from patchloom.compiler.frontend.linear import product
from patchloom.compiler.frontend.operations import meaning_of
from patchloom.compiler.frontend.origin import is_users, shown_path
from patchloom.compiler.frontend.site import Args, Site, arguments_of, operation_name
from patchloom.compiler.node import Indices, Node, View, float32, whole
from patchloom.compiler.nodes import Constant, Input
from patchloom.compiler.nodes.captured import Captured, Function, Multiply, Normalise, Product
from patchloom.compiler.origin import Origin
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.problems import UnsupportedError

ZERO, FIXED = -1, -2  # numbers of elements that are of no node: zero, and whatever the tensor holds
FEW = 64  # parts of a sum, at most, that are looked at one by one; more are taken for a sum over tokens


@dataclass(frozen=True, eq=False, kw_only=True)
class Times(Captured):
    """Two tensors that depend on the inputs, element by element."""

    a: View
    b: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Total(Captured):
    """Over the first dimension."""

    x: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]


@dataclass(frozen=True, eq=False, kw_only=True)
class Computed(Captured):
    """What no row of the table of operations stands for: of interest are its values, and why."""

    out_shape: tuple[int, ...]
    operands: tuple[View, ...] = field(repr=False)
    arguments: str  # those that are no tensors
    refusal: UnsupportedError

    @property
    def shape(self) -> tuple[int, ...]:
        return self.out_shape


@dataclass(frozen=True, eq=False)
class Decision:
    """An operation that makes integers or truth values of floats: along the last dimension of what it looks at."""

    origin: Origin
    of: View
    most: int | None = None  # how many it chooses, where it tells


@dataclass(eq=False)
class Trace:
    """Nodes, the number of the first element of each, and the value of every element."""

    nodes: list[Node] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    place: dict[Node, int] = field(default_factory=dict)
    values: Any = field(default_factory=lambda: np.full(1 << 16, np.nan))
    decisions: list[Decision] = field(default_factory=list)
    running: list[tuple[str, int]] = field(default_factory=list)  # where something is counted, and along how many

    def counts(self) -> list[str]:
        """Where it counts along what are as many as tokens, or more."""
        tokens = [node.size // node.user_shape[-1] for node in self.nodes if isinstance(node, Input)]
        return [where for where, length in self.running if length >= max(tokens)]

    def number(self, node: Node) -> int:
        """Of its first element."""
        if node not in self.place:
            start = self.first[-1] + self.nodes[-1].size if self.nodes else 0
            self.place[node] = start
            self.nodes.append(node)
            self.first.append(start)
            while start + node.size > len(self.values):
                self.values = np.concatenate([self.values, np.full(len(self.values), np.nan)])
            if isinstance(node, Constant):
                self.values[start : start + node.size] = node.value.reshape(-1)
        return self.place[node]

    def numbers(self, view: View) -> Indices:
        view = plain(view)
        table = [self.number(base) + np.arange(base.size) for base, _ in view.terms]
        result: Indices = np.concatenate([*table, [ZERO]])[view.index]
        return result

    def view(self, numbers: Indices, value: Tensor, origin: Origin) -> View:
        """Of nodes; what is fixed becomes a constant."""
        flat = numbers.reshape(-1).copy()
        fixed = flat == FIXED
        if fixed.any():
            held = np.where(fixed, value.detach().double().reshape(-1).numpy(), 0.0)
            flat[fixed & (held == 0)] = ZERO
            fixed &= held != 0
        if fixed.any():
            constant = Constant(origin=origin, value=float32(held[fixed])[None])
            flat[fixed] = self.number(constant) + np.arange(fixed.sum())
        places = np.searchsorted(self.first, flat, side="right") - 1
        used = np.unique(places[flat >= 0])
        index, start, terms = np.full(flat.shape, -1), 0, []
        for place in used.tolist():
            here = (places == place) & (flat >= 0)
            index[here] = flat[here] - self.first[place] + start
            terms.append((self.nodes[place], 1.0))
            start += self.nodes[place].size
        if not terms:
            return whole(Constant(origin=origin, value=np.zeros((1, flat.size), np.float32))).reshape(*numbers.shape)
        return View(tuple(terms), index.reshape(numbers.shape))

    def node_of(self, number: int) -> tuple[Node, int]:
        """And which element of it."""
        place = bisect_right(self.first, number) - 1
        return self.nodes[place], number - self.first[place]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs the user's operations, and keeps the numbers of their elements by storage: views share them."""

    def __init__(self, names: Mapping[int, str], within: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace()
        self.names, self.within = names, within
        self.kept: dict[int, tuple[Any, Tensor]] = {}  # by storage: itself, so that it is not freed, and its numbers

    def place(self, name: str, value: Tensor, origin: Origin) -> None:
        """A tensor of the user's."""
        node = Input.flat(name, tuple(value.shape), origin)
        self.write(value, np.arange(node.size).reshape(value.shape) + self.trace.number(node))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten.cumsum.default:
            self.trace.running.append((user_line(), args[0].shape[args[1]]))
        if func.is_view or not any(self.live(tensor) for tensor in tensors):
            result = func(*args, **kwargs)
            if func._schema.is_mutable and not func.is_view:
                self.forget(args[0])
            return result
        name = operation_name(func)
        if func._schema.is_mutable and name.endswith("_"):
            return self.in_place(func, name[:-1], args, kwargs)
        result = func(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not any(leaf.is_floating_point() for leaf in leaves):
            self.decide(name, args, kwargs)
        elif all(leaf.untyped_storage()._cdata not in self.kept or leaf.numel() == 0 for leaf in leaves):
            self.write_all(result, self.meaning(func, name, args, kwargs, result))
        return result

    def live(self, tensor: Tensor) -> bool:
        """Whether any element is of a node."""
        return tensor.is_floating_point() and bool((self.numbers(tensor) >= 0).any())

    def numbers(self, tensor: Tensor) -> Indices:
        kept = self.kept.get(tensor.untyped_storage()._cdata)
        if kept is None:
            return np.full(tuple(tensor.shape), FIXED)
        return self.lying(kept[1], tensor).numpy()

    def lying(self, numbers: Tensor, tensor: Tensor) -> Tensor:
        return torch.as_strided(numbers, tensor.shape, tensor.stride(), tensor.storage_offset())

    def write(self, tensor: Tensor, numbers: Indices) -> None:
        self.lying(self.shadow(tensor), tensor).copy_(torch.from_numpy(np.ascontiguousarray(numbers)))
        flat = numbers.reshape(-1)
        self.trace.values[flat[flat >= 0]] = tensor.detach().double().reshape(-1).numpy()[flat >= 0]

    def shadow(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.kept:
            numbers = torch.full((storage.nbytes() // tensor.element_size(),), FIXED)
            self.kept[storage._cdata] = storage, numbers
        return self.kept[storage._cdata][1]

    def forget(self, tensor: Any) -> None:
        """It was written with what does not depend on the inputs."""
        if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata in self.kept:
            self.lying(self.shadow(tensor), tensor).fill_(FIXED)

    def write_all(self, result: Any, meaning: Any) -> None:
        pairs = zip(tree_leaves(result), tree_leaves(meaning), strict=False)
        for tensor, numbers in pairs:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and isinstance(numbers, np.ndarray):
                self.write(tensor, numbers.reshape(tensor.shape))

    def in_place(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        target = args[0]
        if name == "aten.zero":
            self.forget(target)
            return func(*args, **kwargs)
        if name in MOVES:
            moved = self.moved(func, args, kwargs)
            result = func(*args, **kwargs)
            self.write(target, moved)
            return result
        functional = getattr(getattr(torch.ops.aten, name.partition(".")[2]), func._overloadname)
        value = functional(*args, **kwargs)
        meaning = self.meaning(functional, name, args, kwargs, value)
        result = func(*args, **kwargs)
        self.write_all([target], [tree_leaves(meaning)[0]])
        return result

    def decide(self, name: str, args: Any, kwargs: Any) -> None:
        """Integers and truth values are as they turn out."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and self.live(value):
                most = 1 if name in ("aten.argmax", "aten.argmin") else None
                origin = Origin(op=name, where=user_line())
                self.trace.decisions.append(Decision(origin, self.operand(value, origin), most))

    def meaning(self, func: Any, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        """Numbers of the elements of what an operation returns."""
        if name in MOVES:
            return self.moved(func, args, kwargs)
        origin = self.origin(name, args)
        a = arguments_of(func, *tree_map(lambda leaf: self.operand(leaf, origin), (tuple(args), dict(kwargs))))
        try:
            own = OWN.get(name)
            made = own(self, origin, a, result) if own else None
            if made is None:
                made = self.readable(meaning_of(name)(Site(origin, ()), a))
        except UnsupportedError as refusal:
            made = self.computed(origin, name, a, result, refusal)
        return tree_map(lambda leaf: self.trace.numbers(leaf) if isinstance(leaf, View) else leaf, made)

    def readable(self, made: Any) -> Any:
        """As it is, unless it is what only some passes can make something of."""
        pending = [base for leaf in tree_leaves(made) if isinstance(leaf, View) for base, _ in leaf.terms]
        met: list[Node] = []
        while pending:
            met.append(pending.pop())
            pending += [base for base in met[-1].inputs if base not in self.trace.place]
        for node in met:
            if isinstance(node, Function):
                raise UnsupportedError(node.text, node.hint)
        if any(isinstance(node, Multiply) for node in met):
            raise UnsupportedError("multiplies two tensors that depend on the input", "weigh experts by their scores")
        return made

    def moved(self, func: Any, args: Any, kwargs: Any) -> Indices:
        """The same operation on the numbers of the elements; what it fills in is fixed."""

        def number(name: str, leaf: Any) -> Any:
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                return torch.from_numpy(self.numbers(leaf).copy())
            return FIXED if name in ("value", "other", "self") and isinstance(leaf, int | float | bool) else leaf

        names = [argument.name for argument in func._schema.arguments]
        new = [tree_map(lambda leaf, n=name: number(n, leaf), arg) for name, arg in zip(names, args, strict=False)]
        more = {name: tree_map(lambda leaf, n=name: number(n, leaf), arg) for name, arg in kwargs.items()}
        more = {name: value for name, value in more.items() if name not in ("dtype", "memory_format")}
        if func is torch.ops.aten._to_copy.default:
            func, more = torch.ops.aten.clone.default, {}
        if func is torch.ops.aten.constant_pad_nd.default:
            new, more = new[:2], {"value": FIXED}
        moved: Indices = func(*new, **more).numpy()
        return moved

    def operand(self, leaf: Any, origin: Origin) -> Any:
        """A view, or a tensor as it is now: it may be written later."""
        if not isinstance(leaf, Tensor):
            return leaf
        if not self.live(leaf):
            return leaf if leaf.untyped_storage()._cdata in self.names else leaf.clone()
        return self.trace.view(self.numbers(leaf), leaf, origin)

    def computed(self, origin: Origin, name: str, a: Args, result: Any, refusal: UnsupportedError) -> Any:
        operands = tuple(leaf for leaf in tree_leaves(a) if isinstance(leaf, View))
        told = repr([leaf for leaf in tree_leaves(a) if not isinstance(leaf, Tensor | View)])

        def one(value: Tensor) -> View:
            shape = tuple(value.shape) if value.dim() > 1 else (1, value.numel())
            made = Computed(origin=origin, out_shape=shape, operands=operands, arguments=told, refusal=refusal)
            return whole(made).reshape(*value.shape)

        return tree_map(lambda leaf: one(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else 0, result)

    def origin(self, name: str, args: Any) -> Origin:
        """Named after the module whose weight it uses, else after the block."""
        found = (
            self.names.get(leaf.untyped_storage()._cdata) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)
        )
        owner = next((owner for owner in found if owner), f"{self.within}.{name.rpartition('.')[2].strip('_')}")
        return Origin(op=name, name=owner.lstrip("."), where=user_line())


def user_line() -> str:
    """file:line of the innermost frame of the user's."""
    frame = sys._getframe()
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            return f"{shown_path(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


# --- Operations that mean something else where values are concrete ---

# What only moves elements, by whatever it is told to.
MOVES = {
    f"aten.{name}"
    for name in (
        *(
            "clone",
            "_to_copy",
            "copy",
            "lift_fresh_copy",
            "cat",
            "stack",
            "flip",
            "roll",
            "repeat",
            "repeat_interleave",
        ),
        *("index", "index_select", "gather", "take", "where", "masked_select", "masked_fill", "masked_scatter", "fill"),
        *("scatter", "index_copy", "index_fill", "select_scatter", "slice_scatter", "constant_pad_nd"),
    )
}


def chosen(at: Recorder, origin: Origin, a: Args, result: Any) -> Any:
    """Values along a dimension, and where they are: elements of the operand."""
    if isinstance(result, Tensor):
        raise UnsupportedError("is not supported", "take the largest along the experts")
    values, places = result
    view, dim = a["self"], a["dim"]
    most = a.get("k", None if "descending" in a else 1)
    at.trace.decisions.append(Decision(origin, view.pick(np.moveaxis(view.index, dim, -1)), most))
    kept = places if places.dim() == len(view.shape) else places.unsqueeze(dim)
    picked = view.pick(np.take_along_axis(view.index, kept.numpy(), axis=dim))
    return picked.reshape(*values.shape), None


def multiplied(_: Recorder, origin: Origin, a: Args, __: Any) -> View | None:
    first, second = a["self"], a["other"]
    if not (isinstance(first, View) and isinstance(second, View)):
        return None
    shape = np.broadcast_shapes(first.shape, second.shape)
    one, other = (
        view.pick(np.broadcast_to(view.index, shape)).reshape(-1, (shape or (1,))[-1]) for view in (first, second)
    )
    return whole(Times(origin=origin, a=one, b=other)).reshape(*shape)


def summed(_: Recorder, origin: Origin, a: Args, __: Any) -> View | None:
    """Few parts, e.g. what several experts add."""
    view: View = a["self"]
    rank = len(view.shape)
    axes = {axis % rank for axis in (a.get("dim") or range(rank))}
    order = sorted(range(rank), key=lambda axis: axis not in axes)
    rest = [view.shape[axis] for axis in order[len(axes) :]]
    parts = view.index.transpose(order).reshape(-1, *rest)
    if len(parts) > FEW:
        return None
    made = Total(origin=origin, x=view.pick(parts.reshape(len(parts), -1, (rest or [1])[-1])))
    kept = [1 if axis in axes else size for axis, size in enumerate(view.shape) if axis not in axes or a.get("keepdim")]
    return whole(made).reshape(*kept)


def added(at: Recorder, origin: Origin, target: Any, places: Tensor, values: Any) -> View:
    """`target[places] += values`, all as flat elements; what goes to one place goes there one after the other."""
    site = Site(origin, ())
    total, flat = site.view(target), site.view(values)
    where = places.reshape(-1).numpy()
    turn = _turns(where)
    width = (total.shape or (1,))[-1]
    total, shape = total.reshape(-1), total.shape
    for number in range(int(turn.max(initial=-1)) + 1):
        here = np.flatnonzero(turn == number)
        inside = total.pick(total.index[where[here]])
        if len(here) % width == 0:
            inside, more = inside.reshape(-1, width), flat.pick(flat.index.reshape(-1)[here].reshape(-1, width))
        else:
            inside, more = inside.reshape(1, -1), flat.pick(flat.index.reshape(-1)[here][None])
        total = _replaced(at, total, where[here], sum_of_views(site, inside, more, 1.0, 1.0).reshape(-1), origin)
    return total.reshape(*shape)


def _turns(places: Indices) -> Indices:
    """How many equal ones come before each."""
    order = np.argsort(places, kind="stable")
    ranked = places[order]
    fresh = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])) if len(ranked) else np.zeros(0, int)
    starts = np.repeat(fresh, np.diff([*fresh, len(ranked)]))
    turns = np.empty(len(places), np.int64)
    turns[order] = np.arange(len(ranked)) - starts
    return turns


def _replaced(at: Recorder, total: View, where: Indices, by: View, origin: Origin) -> View:
    numbers = at.trace.numbers(total).copy()
    numbers[where] = at.trace.numbers(by)
    return at.trace.view(numbers, torch.zeros(numbers.shape), origin)


def index_add(at: Recorder, origin: Origin, a: Args, _: Any) -> View:
    shape = tuple(a["self"].shape)
    places = torch.arange(int(np.prod(shape))).reshape(shape).index_select(a["dim"], a["index"])
    values = _scaled(a["source"], a.get("alpha", 1))
    return added(at, origin, a["self"], places, values)


def scatter_add(at: Recorder, origin: Origin, a: Args, _: Any) -> View:
    if a.get("reduce", "sum") not in ("sum", "add"):
        raise UnsupportedError(f"reduces by {a['reduce']}", "add the experts' results")
    shape, index = tuple(a["self"].shape), a["index"]
    places = torch.arange(int(np.prod(shape))).reshape(shape).gather(a["dim"], index)
    source = a["src"]
    part = tuple(slice(0, size) for size in index.shape)
    source = source.pick(source.index[part]) if isinstance(source, View) else source[part]
    return added(at, origin, a["self"], places, source)


def index_put(at: Recorder, origin: Origin, a: Args, _: Any) -> View:
    shape = tuple(a["self"].shape)
    places = torch.arange(int(np.prod(shape))).reshape(shape)[
        tuple(slice(None) if i is None else i for i in a["indices"])
    ]
    values = Site(origin, ()).view(a["values"])
    spread = values.pick(np.broadcast_to(values.index, tuple(places.shape)))
    if a["accumulate"]:
        return added(at, origin, a["self"], places, spread)
    total = Site(origin, ()).view(a["self"]).reshape(-1)
    return _replaced(at, total, places.reshape(-1).numpy(), spread.reshape(-1), origin).reshape(*shape)


def _scaled(value: Any, by: float) -> Any:
    return value.scaled(float(by)) if isinstance(value, View) else value * by


def layer_norm(_: Recorder, origin: Origin, a: Args, __: Any) -> Any:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    features = x.shape[-1]
    fit = list(a["normalized_shape"]) == [features] and not any(isinstance(part, View) for part in (weight, bias))
    if not fit:
        raise UnsupportedError("normalises over more than the last dimension", "normalise over the last dimension only")
    made = Normalise(
        origin=origin,
        x=plain(x).reshape(-1, features),
        gamma=np.ones(features, np.float32) if weight is None else float32(weight),
        beta=np.zeros(features, np.float32) if bias is None else float32(bias),
        epsilon=float(a["eps"]),
    )
    return whole(made).reshape(*x.shape), None, None


def batched(at: Recorder, origin: Origin, a: Args, _: Any) -> View | None:
    """Matrices of learned elements, one for each of the first dimension."""
    first, second = (a[name] for name in (("batch1", "batch2") if "batch1" in a else ("self", "mat2")))
    if (isinstance(first, View) and isinstance(second, View)) or len(first.shape) != 3:
        return None
    if not isinstance(first, View):
        return mixed(at, origin, a, None)
    if a.get("beta", 1) != 1 or a.get("alpha", 1) != 1:
        return None
    parts = []
    for i in range(first.shape[0]):
        one, other = (x.pick(x.index[i]) if isinstance(x, View) else x[i] for x in (first, second))
        if not isinstance(one, View) and not isinstance(other, View):
            other = Site(origin, ()).view(other)
        parts.append(at.trace.numbers(product(Site(origin, ()), one, other)))
    numbers = np.stack(parts)
    total = at.trace.view(numbers, torch.zeros(numbers.shape), origin)
    if "batch1" not in a:
        return total
    return sum_of_views(Site(origin, ()), total, a["self"], 1.0, 1.0)


def mixed(_: Recorder, origin: Origin, a: Args, __: Any) -> View | None:
    """Rows by rows of a fixed matrix, e.g. of ones where an expert was chosen."""
    first, second = (a[name] for name in (("batch1", "batch2") if "batch1" in a else ("self", "mat2")))
    if isinstance(first, View) or "batch1" in a:
        return None
    shape = tuple(first.shape)
    fixed = Site(origin, ()).view(first).reshape(-1, *shape[-2:])
    made = Product(origin=origin, a=fixed, b=second.reshape(-1, *second.shape[-2:]))
    return whole(made).reshape(*shape[:-1], second.shape[-1])


def vector(_: Recorder, origin: Origin, a: Args, __: Any) -> View | None:
    if isinstance(a["vec"], View):
        return None
    return product(Site(origin, ()), a["self"], a["vec"][:, None]).reshape(-1)


Own = Callable[[Recorder, Origin, Args, Any], Any]
OWN: Mapping[str, Own] = {
    **dict.fromkeys(("aten.topk", "aten.sort", "aten.max", "aten.min", "aten.kthvalue"), chosen),
    "aten.mul": multiplied,
    "aten.sum": summed,
    "aten.index_add": index_add,
    **dict.fromkeys(("aten.scatter_add", "aten.scatter_reduce"), scatter_add),
    "aten.index_put": index_put,
    "aten.native_layer_norm": layer_norm,
    **dict.fromkeys(("aten.bmm", "aten.baddbmm"), batched),
    "aten.mm": mixed,
    "aten.mv": vector,
    "aten._safe_softmax": lambda at, origin, a, _: meaning_of("aten._softmax")(Site(origin, ()), {**a, "dtype": None}),
}
