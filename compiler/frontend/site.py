"""What a row of the table of operations says, and what a handler of one gets.

A handler gets the place in the user's model and the operation's arguments by name, of which those that depend
on the inputs are views. It returns a view, or a list of them, or raises `UnsupportedError`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from patchloom.compiler.node import View, float32, whole
from patchloom.compiler.nodes import Constant
from patchloom.compiler.origin import Origin
from patchloom.compiler.problems import UnsupportedError

Args = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Block:
    """A module that routes tokens to experts: each of its results as a view of its inputs, or why there is none."""

    inputs: tuple[str, ...]
    results: tuple[View | UnsupportedError | None, ...]


@dataclass(frozen=True, eq=False)
class Pair:
    """A complex tensor: it never leaves the frontend."""

    real: View
    imag: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.real.shape


def is_live(leaf: Any) -> bool:
    return isinstance(leaf, View | Pair)


@dataclass(frozen=True)
class Site:
    """Where an operation stands, and the blocks of its model that were read already."""

    origin: Origin
    blocks: Sequence[Block] = ()

    def view(self, value: View | Tensor) -> View:
        if isinstance(value, View):
            return value
        made = whole(Constant(origin=self.origin, value=float32(value.detach())))
        return made.reshape(*value.shape)  # a scalar is none in a node


def operation_name(target: Any) -> str:
    """Without the overload, e.g. aten.add."""
    return str(target).rpartition(".")[0] if isinstance(target, OpOverload) else str(target)


def parameters_of(target: Any) -> list[Any]:
    return list(target._schema.arguments) if isinstance(target, OpOverload) else []


def arguments_of(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Args:
    """By the names of the operation's schema, with its defaults."""
    parameters = parameters_of(target)
    bound = {parameter.name: parameter.default_value for parameter in parameters}
    bound.update(zip((parameter.name for parameter in parameters), args, strict=False))
    bound.update(kwargs)
    return {**bound, "target": target}


def call_by_schema(target: Any, a: Args) -> Any:
    parameters = parameters_of(target)
    positional = [a[part.name] for part in parameters if not part.kwarg_only]
    return target(*positional, **{part.name: a[part.name] for part in parameters if part.kwarg_only})


Handler = Callable[[Site, Args], Any]
ALL = ("*",)  # the handler runs the operation itself, with every attribute
# What no result depends on.
IDLE = {
    "target",
    "memory_format",
    "layout",
    "device",
    "pin_memory",
    "non_blocking",
    "copy",
    "implicit",
    "cudnn_enable",
    "cudnn_enabled",
}


@dataclass(frozen=True)
class Row:
    """An operation: its handler, and what each of its arguments is.

    `data`: those whose elements matter. `lends`: those that give a shape or a type, and no element. `reads`: attributes
    that the handler heeds. All others must be what they are by default: an attribute that nobody reads is refused.
    """

    handler: Handler
    data: tuple[str, ...]
    lends: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def __call__(self, site: Site, a: Args) -> Any:
        for name in self.lends:
            if isinstance(a.get(name), View):
                a[name] = torch.empty(a[name].shape)
        depends = {name for name, value in a.items() if any(is_live(leaf) for leaf in tree_leaves(value))}
        if not depends:
            return call_by_schema(a["target"], a)
        if stray := sorted(depends.difference(self.data)):
            raise UnsupportedError(f"has an argument '{stray[0]}' that depends on the input", "only its operands may")
        for name in () if self.reads == ALL else sorted(a.keys() - IDLE.union(self.data, self.lends, self.reads)):
            default = default_of(a["target"], name)
            if a[name] != default:
                raise UnsupportedError(f"has {name} {a[name]!r}", f"supported is {name} {default!r}")
        return self.handler(site, a)


class Refusal(Row):
    """Whatever its arguments are."""

    def __call__(self, site: Site, a: Args) -> Any:
        return self.handler(site, a)


def default_of(target: Any, name: str) -> Any:
    """Of an attribute; one without default is neutral when it is false."""
    [parameter] = [parameter for parameter in parameters_of(target) if parameter.name == name]
    return parameter.default_value if parameter.has_default_value() else False


Rows = dict[str, Row]


def rows(
    handler: Handler, names: str, data: str, lends: str = "", reads: str | tuple[str, ...] = "", library: str = "aten"
) -> Rows:
    """A row for each of the operations; arguments as in `Row`, over all overloads."""
    heeded = reads if isinstance(reads, tuple) else tuple(reads.split())
    row = Row(handler, tuple(data.split()), tuple(lends.split()), heeded)
    return {f"{library}.{name}": row for name in names.split()}


def refused(names: str, hint: str, library: str = "aten") -> Rows:
    """Rows of operations that have no meaning here, with what to do instead."""
    return {f"{library}.{name}": refusal(hint) for name in names.split()}


def refusal(hint: str) -> Row:
    def handler(_: Site, __: Args) -> Any:
        raise UnsupportedError("is not supported", hint)

    return Refusal(handler, data=(), reads=ALL)
