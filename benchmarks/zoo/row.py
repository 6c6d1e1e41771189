"""One row of the zoo: a module, what it stands for, and the lively weights and inputs that it is measured with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGE = (3, 32, 32)
CALIBRATION, TRIED = 16, 4  # samples that formats are chosen by, and other ones that results are compared on
TIMID = 0.1  # constants below it were put there to be trained


@dataclass(frozen=True)
class Row:
    """`make` builds the module, as its users do; the samples of each input have one of `shapes`.

    `tasks` are told to forward by number, after the tensors. `heart`: what of a larger system the module is.
    """

    name: str
    stands_for: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = (IMAGE,)
    tasks: tuple[str, ...] = ()
    heart: str = ""

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        made = self.make().eval()
        enliven(made)
        settle(made, self.inputs(8, seed=3), self.tasks)
        return made

    def inputs(self, count: int, *, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(count, *shape, generator=generator) for shape in self.shapes)


def enliven(module: nn.Module) -> None:
    """As training leaves them: no layer scale near zero, no norm that is the identity, scores that differ."""
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if parameter.is_floating_point() and parameter.numel():
                    _enliven(parameter, product=isinstance(owner, _PRODUCTS) and name.endswith("weight"))


_PRODUCTS = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def _enliven(parameter: Tensor, *, product: bool) -> None:
    spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
    noise = torch.randn_like(parameter)
    if product or (spread == 0 and parameter.abs().max() == 0 and min(parameter.shape[-2:], default=0) > 4):
        fan_in = max(parameter[0].numel(), 1)
        if spread < 0.5 * fan_in**-0.5:
            parameter.copy_(noise * fan_in**-0.5)
    elif spread == 0 and (value := float(parameter.flatten()[0])):
        parameter.copy_((value if abs(value) > TIMID else 0.5) * (1 + 0.2 * noise))
    elif spread == 0:
        parameter.copy_(0.1 * noise)
    elif parameter.ndim > 1 and spread < TIMID:
        parameter.mul_(2 * TIMID / spread)


def settle(module: nn.Module, inputs: tuple[Tensor, ...], tasks: tuple[str, ...]) -> None:
    """Running statistics are those of some inputs, and then a little off."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = 0.8
    with torch.no_grad():
        for _ in range(2):
            outputs(module, inputs, 0 if tasks else None)
        for norm in norms:
            norm.eval().running_mean.add_(0.1 * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(1 + 0.3 * torch.rand_like(norm.running_var)).add_(1e-3)


def outputs(module: nn.Module, inputs: tuple[Tensor, ...], task: int | None) -> list[Tensor]:
    with torch.no_grad():
        returned = module(*inputs, *(() if task is None else (task,)))
    return list(tensors(returned))


def tensors(value: Any) -> list[Tensor]:
    """Those of nested containers, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [leaf for part in parts for leaf in tensors(part)]
