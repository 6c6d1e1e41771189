"""The user's module while it is looked at: in evaluation mode, of 32-bit floats, and afterwards as it was."""

import copy
import dataclasses
import functools
import inspect
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from patchloom.compiler.problems import CaptureError


def plain_module(module: nn.Module | ExportedProgram) -> nn.Module:
    """The module, that of an exported program, or a copy in 32-bit floats if its own are others."""
    if isinstance(module, ExportedProgram):
        module = module.module()
    if isinstance(module, torch.jit.ScriptModule):
        raise CaptureError(
            f"{type(module).__name__}: module must be the nn.Module that the model was made from, not TorchScript, "
            "which keeps no forward that could be exported"
        )
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point()):
        return module
    return copy.deepcopy(module).float()


@contextmanager
def ready_for_export(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, attention as the operations it consists of, plain results; all is restored whatever happens."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.enter_context(unchanged(module))
        for part in module.modules():
            part.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        module.__dict__["forward"] = _returning_plainly(module.forward)
        with torch.no_grad():
            yield


def _returning_plainly(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return _plain(forward(*args, **kwargs))

    return wrapped


def _plain(value: Any) -> Any:
    """Records, e.g. dataclasses, as dictionaries of the fields that they have."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items() if part is not None and not _is_state(name, part)}
    if dataclasses.is_dataclass(value):
        return _plain({part.name: getattr(value, part.name) for part in dataclasses.fields(value)})
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _is_state(name: str, part: Any) -> bool:
    """An object beside results, e.g. a cache of keys and values: it is for the next call, which a Program has not."""
    state = not (
        dataclasses.is_dataclass(part) or isinstance(part, Tensor | Mapping | list | tuple | str | float | int)
    )
    if state:
        warnings.warn(f"'{name}' is left out of the outputs: {type(part).__name__} is no tensor", stacklevel=2)
    return state


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Whatever forward stores meanwhile in the module, or in what it holds, is gone afterwards."""
    saved: dict[int, tuple[Any, Any]] = {}
    pending: list[Any] = [module]
    while pending:
        value = pending.pop()
        if id(value) not in saved and _may_change(value):
            content = _content(value)
            saved[id(value)] = value, content
            pending += content.values() if isinstance(content, dict) else () if isinstance(content, Tensor) else content
    try:
        yield
    finally:
        with torch.no_grad():
            for value, content in saved.values():
                _restore(value, content)


def _may_change(value: Any) -> bool:
    """Tensors, containers, and objects, but neither code nor modules of Python."""
    if isinstance(value, Tensor | dict | list | tuple | set | deque):
        return True
    return hasattr(value, "__dict__") and not (isinstance(value, type | ModuleType) or inspect.isroutine(value))


def _content(value: Any) -> Any:
    """A copy of a tensor's elements, of a container, or of an object's attributes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    return copy.copy(value if isinstance(value, dict | list | tuple | set | deque) else vars(value))


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, Tensor):
        if not torch.equal(value, content):
            value.copy_(content)
        return
    holder: Any = value if isinstance(value, dict | list | tuple | set | deque) else vars(value)
    if _identities(holder) == _identities(content):
        return
    holder.clear()
    if isinstance(holder, list | deque):
        holder.extend(content)
    else:
        holder.update(content)


def _identities(content: Any) -> list[Any]:
    return [(key, id(part)) for key, part in content.items()] if isinstance(content, dict) else [*map(id, content)]
