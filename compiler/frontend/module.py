"""The user's module while it is looked at: in evaluation mode, of 32-bit floats, and afterwards as it was."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
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
    """Evaluation mode, and attention as the operations it consists of; all is restored whatever happens."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        for part in module.modules():
            stack.callback(_Snapshot(part).restore)
        for part in module.modules():
            part.training = False
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield


class _Snapshot:
    """The attributes of one module: what forward stores in them while it is exported are no real tensors."""

    def __init__(self, part: nn.Module) -> None:
        self.part, self.attributes = part, dict(part.__dict__)
        self.contents = {id(value): copy.copy(value) for value in self.attributes.values() if _is_container(value)}
        self.buffers = {name: buffer.clone() for name, buffer in part.named_buffers(recurse=False)}

    def restore(self) -> None:
        self.part.__dict__.clear()
        self.part.__dict__.update(self.attributes)
        for value in self.attributes.values():
            if id(value) in self.contents:
                _refill(value, self.contents[id(value)])
        for name, buffer in self.part.named_buffers(recurse=False):
            if not torch.equal(buffer, self.buffers[name]):
                buffer.copy_(self.buffers[name])


def _is_container(value: Any) -> bool:
    return isinstance(value, dict | list | set)


def _refill(container: Any, content: Any) -> None:
    """The same container with the content that it had."""
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
