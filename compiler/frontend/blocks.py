"""Calls of modules inside which something is chosen by its values, or weighed by a softmax of a layer's own result."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from patchloom.compiler.frontend.origin import defined_at
from patchloom.compiler.frontend.site import operation_name
from patchloom.compiler.origin import Origin

RANKS = {f"aten.{name}" for name in ("topk", "sort", "argsort", "argmax", "argmin", "max", "min", "kthvalue")}
CHOICES = RANKS | {f"aten.{name}" for name in ("nonzero", "ge", "gt", "le", "lt")}
WEIGHTS = {"aten._softmax", "aten.sigmoid"}
LAYERS = {"aten.addmm", "aten.mm"}
MANY = 256  # of what is weighed: more are no experts
THROUGH = {f"aten.{name}" for name in ["add", "sub", "mul", "div"]}  # of a layer's result and something fixed


@dataclass(eq=False)
class Call:
    """One call of a module: its tensors by name, those that the model's inputs matter to, and what it returned."""

    name: str
    module: nn.Module
    number: int  # of the module's calls
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outer: "Call | None"
    live: list[bool] = field(default_factory=list)
    decides: bool = False
    result: Any = None

    @property
    def origin(self) -> Origin:
        return Origin(op=f"{type(self.module).__name__}.forward", name=self.name, where=defined_at(self.module))

    @property
    def tensors(self) -> list[Tensor]:
        return tensors_of(self.args, self.kwargs)


def tensors_of(args: Any, kwargs: Any) -> list[Tensor]:
    return [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which tensors depend on the model's inputs, and in which calls something is decided by them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = WeakIdKeyDictionary()
        self.layers = WeakIdKeyDictionary()
        self.calls: list[Call] = []  # that decide something, in the order in which they ended
        self.open: list[Call] = []
        self.counts: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = tensors_of(args, kwargs or {})
        if not any(tensor in self.live for tensor in tensors):
            return result
        name = operation_name(func)
        of_layer = name in LAYERS or ((func.is_view or name in THROUGH) and self._is_layers(tensors))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.live[leaf] = True
                if of_layer:
                    self.layers[leaf] = True
        if self.open and (name in CHOICES or self._weighs(name, tensors)):
            self.open[-1].decides = True
        return result

    def _is_layers(self, tensors: list[Tensor]) -> bool:
        return all(tensor in self.layers for tensor in tensors if tensor in self.live)

    def _weighs(self, name: str, tensors: list[Tensor]) -> bool:
        return name in WEIGHTS and tensors[0] in self.layers and tensors[0].shape[-1] <= MANY

    @contextmanager
    def over(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in model.named_modules():

                def begin(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                    self._begin(name, module, args, kwargs)

                stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                hook = module.register_forward_hook(lambda _, __, result: self._end(result), always_call=False)
                stack.callback(hook.remove)
            stack.enter_context(self)
            yield

    def _begin(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        number = self.counts.get(id(module), 0)
        self.counts[id(module)] = number + 1
        call = Call(name, module, number, args, kwargs, self.open[-1] if self.open else None)
        if not self.open:
            self.live.update((tensor, True) for tensor in call.tensors)
        call.live = [tensor in self.live for tensor in call.tensors]
        self.open.append(call)

    def _end(self, result: Any) -> None:
        call = self.open.pop()
        if call.decides:
            call.result = result
            self.calls.append(call)
            if call.outer:
                call.outer.decides = True


def watched(model: nn.Module, run: Any) -> tuple[Any, list[Call]]:
    """What `run` returned, and the calls that decide something, inner ones first."""
    watch = Watch()
    with watch.over(model), torch.no_grad():
        returned = run()
    return returned, watch.calls
