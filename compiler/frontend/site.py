"""What a handler of an operation gets, and how a family's rows are written.

A handler gets the place in the user's model and the operation's arguments by name, of which those that depend
on the inputs are views. It returns a view, or a list of them, or raises `UnsupportedError`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from patchloom.compiler.frontend.explain import Layer
from patchloom.compiler.origin import Origin
from patchloom.compiler.primitive import Fixed, View, float32, whole
from patchloom.compiler.problems import UnsupportedError

Args = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """Where an operation stands, and the recognised mixtures of experts of its model."""

    origin: Origin
    layers: Sequence[Layer]

    def view(self, value: View | Tensor) -> View:
        if isinstance(value, View):
            return value
        return whole(Fixed(origin=self.origin, value=float32(value.detach())))


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
Rows = dict[str, Handler]


def rows(handler: Handler, names: str, library: str = "aten") -> Rows:
    """A row for each of the operations."""
    return {f"{library}.{name}": handler for name in names.split()}


def refused(names: str, hint: str, library: str = "aten") -> Rows:
    """Rows of operations that have no meaning here, with what to do instead."""
    return rows(refusal(hint), names, library)


def refusal(hint: str) -> Handler:
    def handler(_: Site, __: Args) -> Any:
        raise UnsupportedError("is not supported", hint)

    return handler
