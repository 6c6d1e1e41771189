"""Whether what was read from traces of a block computes what the block does, on such tokens as no picture has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.frontend.functions import Doubles
from patchloom.compiler.frontend.gates import Flags, ties
from patchloom.compiler.graph import in_order
from patchloom.compiler.node import Evaluation, Floats, Node, View
from patchloom.compiler.nodes import Moe
from patchloom.compiler.nodes.captured import Activate, Add, Normalise, Product, Scale, Softmax
from patchloom.compiler.nodes.float32 import normalise, softmax

Gate = tuple[Doubles, Doubles]  # weight and bias, of a block's own tokens


@dataclass(eq=False)
class Unsettled(Evaluation):
    """Operations as they were captured, on views of several."""

    def read(self, view: View) -> Floats:
        parts = [self.values[base].reshape(-1) * np.float32(factor) for base, factor in view.terms]
        flat: Floats = np.concatenate([*parts, np.zeros(1, np.float32)])[view.index]
        return flat

    def run(self, view: View) -> Floats:
        for node in in_order(base for base, _ in view.terms):
            self.values[node] = self._value(node)
        return self.read(view)

    def _value(self, node: Node) -> Floats:
        meaning = MEANINGS.get(type(node))
        return meaning(self, node) if meaning else node.evaluate(self)


MEANINGS: Mapping[type[Node], Callable[[Unsettled, Any], Floats]] = {
    Normalise: lambda at, node: normalise(at.read(node.x), node.epsilon, centred=node.centred) * node.gamma + node.beta,
    Activate: lambda at, node: ACTIVATIONS[node.activation](at.read(node.x)),
    Scale: lambda at, node: at.read(node.x) * node.factor,
    Add: lambda at, node: at.read(node.a) + at.read(node.b),
    Product: lambda at, node: at.read(node.a) @ at.read(node.b),
    Softmax: lambda at, node: softmax(at.read(node.x)),
}


def evaluated(view: View, inputs: dict[str, Floats]) -> tuple[Floats, Flags]:
    """The result, and whether each of its rows is sure."""
    sure: dict[str, Flags] = {}

    def observe(node: Node, quantity: str, array: Floats) -> None:
        if isinstance(node, Moe) and quantity == "logits":
            sure["rows"] = ~ties(array.astype(np.float64), node.top_k)

    at = Unsettled(inputs, observe)
    result = at.run(view)
    rows = result.reshape(-1, result.shape[-1])
    known = sure.get("rows", np.ones(len(rows), bool))
    return result, known if len(known) == len(rows) else np.full(len(rows), bool(known.all()))


def misfit(view: View, inputs: dict[str, Floats], expected: Floats) -> float:
    """Largest error relative to the largest element; tokens whose choice of experts is a tie do not count."""
    result, sure = evaluated(view, inputs)
    error = np.abs(result.astype(np.float64) - expected.reshape(result.shape)).reshape(len(sure), -1).max(axis=1)
    if not np.isfinite(error).all():
        return np.inf
    return float((error * sure).max() / max(float(np.abs(expected).max()), 1e-12))


def probes(x: Tensor, gate: Gate | None) -> Iterator[tuple[str, Tensor]]:
    """Tokens in the shape of x."""
    random = torch.Generator().manual_seed(0)
    spread = x.std() + 1e-3
    for number in (1, 2):
        yield f"random tokens {number}", torch.randn(x.shape, generator=random) * spread + x.mean()
    flat = x.reshape(-1, x.shape[-1])
    yield "tokens in another order", flat[torch.randperm(len(flat), generator=random)].reshape(x.shape)
    yield "tokens a thousand times smaller", x * 1e-3
    yield "tokens a thousand times larger", x * 1e3
    yield "tokens of zeros", torch.zeros_like(x)
    yield "tokens that are all alike", flat[:1].expand_as(flat).reshape(x.shape)
    for expert in range(0 if gate is None else len(gate[0])):
        yield f"tokens that all want expert {expert}", directed(x, gate, [expert], random)


def directed(x: Tensor, gate: Gate | None, experts: Sequence[int], random: torch.Generator) -> Tensor:
    """Tokens of about the length of x's, each of which wants one of the experts most, as far as the gate is of them."""
    noise = torch.randn(x.shape, generator=random) * (x.std() + 1e-3)
    if gate is None:
        return noise
    weight, bias = (torch.from_numpy(part) for part in gate)
    back = torch.linalg.pinv(weight)
    flat = noise.reshape(-1, x.shape[-1]).double()
    logits = flat @ weight.T
    wanted = torch.arange(len(flat)) % len(experts)
    most = (logits + bias).amax(1) + logits.std() + 1e-3
    rows = torch.arange(len(flat)), torch.as_tensor(experts)[wanted]
    change = torch.zeros_like(logits)
    change[rows] = most - (logits + bias)[rows]
    tokens: Tensor = flat + change @ back.T
    return tokens.float().reshape(x.shape)


def batches(x: Tensor) -> Tensor:
    """Eight samples that share a batch."""
    return torch.cat([x.roll(shift, dims=1) for shift in range(8)])
