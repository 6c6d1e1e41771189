"""A torch module together with its Program, which hls4ml takes as one layer."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from hls4ml.utils.torch import HLS4MLModule
from torch import Tensor, nn

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.program import Port, Program
from patchloom.compiling import compile_module


class Leaf(HLS4MLModule):
    """In torch still the module; hls4ml's tracer does not look inside.

    `calibration` [n, ...] are inputs of the whole model; the converted model is compared with torch on them.
    """

    def __init__(self, module: nn.Module, program: Program, calibration: Tensor, precision: str) -> None:
        super().__init__()
        self.module, self.program, self.calibration, self.precision = module, program, calibration, precision

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x)
        return y

    @property
    def input(self) -> Port:
        return self.program.tasks[0].inputs[0]

    @property
    def output(self) -> Port:
        return self.program.tasks[0].outputs[0]


def wrap(
    model: nn.Module, part: str = "", *, calibration: Any, precision: str = "w8a8", config: Config | None = None
) -> nn.Module:
    """A copy of `model` whose submodule `part` ("" for all of it) is compiled and has become a `Leaf`.

    `calibration` [n, ...] are inputs of `model`, which takes one tensor, as the part does. Raises what
    `patchloom.compile` raises, and `InputError`.
    """
    model, samples = copy.deepcopy(model).eval(), torch.as_tensor(calibration)
    if part not in dict(model.named_modules()):
        names = ", ".join(repr(name) for name, _ in model.named_modules() if name)
        raise InputError(f"part must be a submodule of the model, one of {names}, not {part!r}")
    module = model.get_submodule(part)
    inputs = inputs_of(module, model, samples)
    program = compile_module(module, inputs[:1], calibration=inputs, precision=precision, config=config)
    if len(program.tasks[0].outputs) != 1:
        raise InputError(f"'{part}' must return one tensor, not {len(program.tasks[0].outputs)}")
    leaf = Leaf(module, program, samples, precision)
    if not part:
        return nn.Sequential(OrderedDict(patchloom=leaf)).eval()
    parent, _, name = part.rpartition(".")
    setattr(model.get_submodule(parent), name, leaf)
    return model


def inputs_of(module: nn.Module, model: nn.Module, samples: Tensor) -> Tensor:
    """What `module` is given while `model` sees `samples`."""
    seen: list[tuple[Any, ...]] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    with hook, torch.no_grad():
        model(samples)
    if len(seen) != 1 or len(seen[0]) != 1 or not isinstance(seen[0][0], Tensor):
        raise InputError("the part must be called once, with one tensor")
    tensor: Tensor = seen[0][0]
    return tensor
