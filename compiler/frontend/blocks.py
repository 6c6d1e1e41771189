"""Modules that may be mixtures, found by structure: they own experts, and gates as wide as there are experts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from patchloom.compiler.activations import FUNCTIONS, Function
from patchloom.compiler.frontend.origin import defined_at
from patchloom.compiler.node import Floats, float32
from patchloom.compiler.nodes import Expert
from patchloom.compiler.origin import Origin

# What may stand between an expert's two layers.
BETWEEN: tuple[tuple[str, Function], ...] = tuple((row.name, row.function) for row in FUNCTIONS)


@dataclass(frozen=True, eq=False)
class Gate:
    name: str
    weight: Tensor  # [experts, inputs]
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Block:
    """A module that may be a mixture: it owns experts, and gates as wide as there are experts."""

    name: str
    module: nn.Module
    experts: tuple[Expert, ...]
    functions: tuple[nn.Module, ...]
    activation: str
    gates: tuple[Gate, ...]

    @property
    def origin(self) -> Origin:
        return Origin(op=f"{type(self.module).__name__}.forward", name=self.name, where=defined_at(self.module))


def find_blocks(model: nn.Module) -> list[Block]:
    """Every module that owns a list of at least two alike experts and a gate for them."""
    modules = dict(model.named_modules())
    found = {}
    for path, module in modules.items():
        if not isinstance(module, nn.ModuleList | nn.ModuleDict) or len(module) < 2:
            continue
        functions = tuple(module.children())
        known = _as_experts(functions)
        owner = known and _owner(modules, path, functions)
        if known and owner:
            name, gates = owner
            found[name] = Block(name, modules[name], known[0], functions, known[1], gates)
    return list(found.values())


def _as_experts(functions: Sequence[nn.Module]) -> tuple[tuple[Expert, ...], str] | None:
    experts = [_as_expert(function) for function in functions]
    known = [expert for expert in experts if expert is not None]
    if len(known) < len(experts) or len({(e.w1.shape, e.w2.shape, activation) for e, activation in known}) != 1:
        return None
    return tuple(expert for expert, _ in known), known[0][1]


def _as_expert(function: nn.Module) -> tuple[Expert, str] | None:
    """Two Linears and the activation between them, whatever it is called: whichever formula fits."""
    linears = [part for part in function.modules() if isinstance(part, nn.Linear)]
    own = {id(parameter) for linear in linears for parameter in linear.parameters()}
    if len(linears) != 2 or any(id(parameter) not in own for parameter in function.parameters()):
        return None
    for first, second in (linears, linears[::-1]):
        if first.out_features != second.in_features:
            continue
        probes = _probes(first.in_features)
        try:
            actual = [function(probe) for probe in probes]
        except (TypeError, ValueError, RuntimeError, LookupError, AssertionError):  # no function of tokens alone
            return None
        for name, activation in BETWEEN:
            expected = [second(activation(first(probe))) for probe in probes]
            if all(isinstance(a, Tensor) and _alike(e, a) for e, a in zip(expected, actual, strict=True)):
                return _expert(first, second), name
    return None


def _probes(features: int) -> tuple[Tensor, Tensor]:
    """Tokens that tell functions apart near zero, and far from it."""
    tokens = torch.randn(16, features, generator=torch.Generator().manual_seed(0))
    return tokens, 1000 * tokens


def _expert(first: nn.Linear, second: nn.Linear) -> Expert:
    (w1, b1), (w2, b2) = ((float32(part.weight.detach()), _bias(part)) for part in (first, second))
    return Expert(w1, b1, w2, b2)


def _bias(linear: nn.Linear) -> Floats:
    return float32(np.zeros(linear.out_features) if linear.bias is None else linear.bias.detach())


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-12)


def _owner(
    modules: dict[str, nn.Module], path: str, functions: Sequence[nn.Module]
) -> tuple[str, tuple[Gate, ...]] | None:
    """The nearest module around the experts that also has a gate."""
    while path:
        path = path.rpartition(".")[0]
        gates = tuple(_gates(modules[path], functions))
        if gates:
            return path, gates
    return None


def _gates(module: nn.Module, functions: Sequence[nn.Module]) -> Iterator[Gate]:
    """Every parameter that could be a gate: it has as many outputs as there are experts."""
    count = len(functions)
    inputs = next(part for part in functions[0].modules() if isinstance(part, nn.Linear)).in_features
    inside = {id(part) for function in functions for part in function.modules()}
    for name, part in module.named_modules():
        if id(part) in inside:
            continue
        if isinstance(part, nn.Linear):
            if (part.out_features, part.in_features) == (count, inputs):
                yield Gate(name, part.weight, part.bias)
            continue
        for own, parameter in part.named_parameters(recurse=False):
            for matrix in parameter if parameter.dim() == 3 else (parameter,):
                if matrix.shape == (count, inputs):
                    yield Gate(f"{name}.{own}".lstrip("."), matrix, None)
                if matrix.shape == (inputs, count):
                    yield Gate(f"{name}.{own}".lstrip("."), matrix.T, None)
