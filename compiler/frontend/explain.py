"""What a block that may be a mixture of experts computes.

However a user writes the routing (a loop over experts, gathered tokens, everything computed and masked), the block
is one function of its tokens. It is run on its own inputs and on random ones and compared with each explanation
(gate, top_k, scoring) that its parameters allow; the first that reproduces it is taken.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from patchloom.compiler.frontend.blocks import Block, Gate
from patchloom.compiler.node import Floats, float32
from patchloom.compiler.nodes import Expert, Scoring
from patchloom.compiler.origin import Origin
from patchloom.compiler.problems import Problem

TOLERANCE = 1e-4  # of the largest output
ROUNDING = 10  # misfits that differ by no more than this factor are equal
HOW_TO_WRITE = (
    "write the block as a module whose forward takes the tokens (and the task) and returns the sum over the top_k "
    "experts of score * expert(token), with score = softmax of the selected gate logits, or the selected entries of "
    "the softmax of all gate logits; keep norms, residuals and shared layers outside it"
)


@dataclass(frozen=True, eq=False)
class Layer:
    """A block with its explanation: what `nodes.Moe` needs besides the tokens."""

    origin: Origin
    gate_weight: Floats = field(repr=False)
    gate_bias: Floats = field(repr=False)
    experts: tuple[Expert, ...] = field(repr=False)
    activation: str
    top_k: int
    scoring: Scoring


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a block: its tokens, its other arguments, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def tensors(self) -> list[Tensor]:
        return tensors_of(self.args, self.kwargs)


def tensors_of(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    return [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]


@contextmanager
def recorded_calls(blocks: Sequence[Block]) -> Iterator[dict[str, list[Call]]]:
    calls: dict[str, list[Call]] = {block.name: [] for block in blocks}
    with ExitStack() as stack:
        for block in blocks:

            def record(_: nn.Module, args: Any, kwargs: Any, result: Any, name: str = block.name) -> None:
                calls[name].append(Call(args, kwargs, result))

            handle = block.module.register_forward_hook(record, with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


def explain(block: Block, call: Call) -> Layer | Problem:
    """The gate, top_k and scoring that reproduce the block, or why there are none."""
    inputs, features = block.experts[0].w1.shape[1], block.experts[0].w2.shape[0]
    if len(call.tensors) != 1 or call.tensors[0].shape[-1] != inputs:
        shapes = [list(tensor.shape) for tensor in call.tensors]
        return Problem(block.origin, f"must take one tensor, of {inputs} features, not {shapes}", HOW_TO_WRITE)
    if mixture_in(call.result, call.tensors[0], features) is None:
        text = f"must return {features} features for each of its tokens, as its experts do"
        return Problem(block.origin, text, HOW_TO_WRITE)
    probes = _probes(block, call, features)
    if isinstance(probes, Problem):
        return probes
    candidates = [
        (gate, top_k, scoring)
        for top_k in range(1, len(block.experts) + 1)
        for gate in block.gates
        for scoring in get_args(Scoring)
    ]
    usual = [probe for probe in probes if probe.usual]
    errors = [max(probe.misfit(*candidate) for probe in usual) for candidate in candidates]
    least = min(errors)
    if least > TOLERANCE:
        gate, top_k, scoring = candidates[errors.index(least)]
        best = (least, f"gate '{gate.name}', top_k={top_k}, {scoring}")
        return Problem(block.origin, _diagnosis(block, best, usual), HOW_TO_WRITE)
    # A last score near zero hardly shows: what fits as well as the best does, with the fewest experts.
    equal = (i for i, error in enumerate(errors) if error <= ROUNDING * least + np.finfo(np.float32).eps)
    return _proven(block, probes, *candidates[next(equal)])


def _proven(block: Block, probes: Sequence["Probe"], gate: Gate, top_k: int, scoring: Scoring) -> Layer | Problem:
    """What holds on usual tokens must hold on all, and a choice must not be a tie on all."""
    for probe in probes:
        if (error := probe.misfit(gate, top_k, scoring)) > TOLERANCE:
            return Problem(block.origin, _limited(probe, error), HOW_TO_WRITE)
    alike = _alike(gate) if top_k < len(block.experts) else None
    if alike:
        text = f"gate '{gate.name}' has the same weights for experts {alike[0]} and {alike[1]}: all tokens are a tie"
        return Problem(block.origin, text, "train the gate; which of two such experts a token takes is chance")
    return _layer(block, gate, top_k, scoring)


def _alike(gate: Gate) -> tuple[int, int] | None:
    """Two experts that have the same logit for every token."""
    rows = gate.weight if gate.bias is None else torch.cat([gate.weight, gate.bias[:, None]], dim=1)
    return next(((i, j) for j in range(len(rows)) for i in range(j) if torch.equal(rows[i], rows[j])), None)


@dataclass(frozen=True, eq=False)
class Probe:
    """Tokens, what each expert makes of them, and the block's own answer."""

    name: str
    usual: bool  # like those of the model; the others look for limits
    tokens: Tensor = field(repr=False)
    outputs: Tensor = field(repr=False)  # [tokens, experts, features]
    actual: Tensor = field(repr=False)

    def misfit(self, gate: Gate, top_k: int, scoring: Scoring) -> float:
        """Largest error relative to the largest output; tokens whose choice of experts is a tie do not count."""
        logits = F.linear(self.tokens, gate.weight, gate.bias)
        ranked, chosen = logits.sort(dim=1, descending=True)
        scores = ranked[:, :top_k].softmax(1) if scoring == "softmax_of_selected" else ranked.softmax(1)[:, :top_k]
        weights = torch.zeros_like(logits).scatter_(1, chosen[:, :top_k], scores)
        largest = self.actual.abs().max().clamp_min(1e-12)
        error = ((weights[:, None] @ self.outputs)[:, 0] - self.actual).abs().amax(1) / largest
        if top_k < logits.shape[1]:
            tie = ranked[:, top_k - 1] - ranked[:, top_k] <= 1e-5 * ranked.abs().max()
            error = torch.where(tie, torch.zeros_like(error), error)
        return float(error.max())


def _limited(probe: Probe, error: float) -> str:
    return (
        f"on {probe.name} it does not compute what it does on usual tokens (error {error:.1g} of the largest output): "
        "how many tokens an expert takes must have no limit, and no token may depend on another"
    )


def mixture_in(result: Any, x: Tensor, features: int) -> Tensor | None:
    """The mixture among what a block returns: gate logits and auxiliary losses have other shapes."""
    for part in tree_leaves(result):
        if not isinstance(part, Tensor) or part.dim() < 2 or part.shape[-1] != features:
            continue
        if part.numel() * x.shape[-1] == x.numel() * features:
            return part
    return None


def _probes(block: Block, call: Call, features: int) -> list[Probe] | Problem:
    """The model's own tokens, random ones of the same spread, and such as no usual picture has."""
    [x] = call.tensors
    probes = []
    for name, usual, value in _inputs(block, x):
        args, kwargs = tree_map_only(Tensor, _always(value), (call.args, call.kwargs))
        try:
            answer = mixture_in(block.module(*args, **kwargs), value, features)
        except Exception as error:  # noqa: BLE001 - the user's code may raise anything
            if value.shape != x.shape:
                continue  # it is made for one size
            return Problem(block.origin, f"on {name} it fails: {type(error).__name__}: {error}", HOW_TO_WRITE)
        if answer is None:
            text = f"on {name} it must return {features} features for each of its tokens, as its experts do"
            return Problem(block.origin, text, HOW_TO_WRITE)
        tokens = value.reshape(-1, x.shape[-1])
        outputs = torch.stack([function(tokens) for function in block.functions], dim=1)
        probes.append(Probe(name, usual, tokens, outputs, answer.reshape(-1, features)))
    return probes


def _inputs(block: Block, x: Tensor) -> Iterator[tuple[str, bool, Tensor]]:
    """(name, usual, tokens in the shape of x)."""
    random = torch.Generator().manual_seed(0)
    spread = x.std() + 1e-3
    yield "the model's own tokens", True, x
    for number in (1, 2):
        yield f"random tokens {number}", True, torch.randn(x.shape, generator=random) * spread + x.mean()
    flat = x.reshape(-1, x.shape[-1])
    if x.dim() > 2:
        yield "a batch of eight", False, torch.cat([x.roll(shift, dims=1) for shift in range(8)])
    yield "tokens in another order", False, flat[torch.randperm(len(flat), generator=random)].reshape(x.shape)
    yield "tokens a thousand times smaller", False, x * 1e-3
    yield "tokens a thousand times larger", False, x * 1e3
    yield "tokens of zeros", False, torch.zeros_like(x)
    yield "tokens that are all alike", False, flat[:1].expand_as(flat).reshape(x.shape)
    for gate in block.gates:
        for expert, row in enumerate(gate.weight.detach()):
            towards = row / row.norm().clamp_min(1e-6) * spread * x.shape[-1] ** 0.5
            near = torch.randn(flat.shape, generator=random) * spread * 0.01 + towards
            yield f"tokens that all want expert {expert}", False, near.reshape(x.shape)


def _always(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: value


def _layer(block: Block, gate: Gate, top_k: int, scoring: Scoring) -> Layer:
    bias = np.zeros(len(block.experts)) if gate.bias is None else gate.bias.detach()
    weight = float32(gate.weight.detach())
    return Layer(block.origin, weight, float32(bias), block.experts, block.activation, top_k, scoring)


def _diagnosis(block: Block, best: tuple[float, str], probes: Sequence[Probe]) -> str:
    """Which rule failed: is the output any mixture of the experts at all?"""
    outputs, actual = (torch.cat([getattr(probe, name) for probe in probes]) for name in ("outputs", "actual"))
    fit = torch.linalg.lstsq(outputs.transpose(1, 2).double(), actual[..., None].double(), driver="gelsd")
    rest = (outputs.transpose(1, 2).double() @ fit.solution)[..., 0] - actual
    if float(rest.abs().max()) > TOLERANCE * float(actual.abs().max()):
        return f"its output must be a weighted sum of its {len(block.experts)} experts' outputs, and is not"
    return (
        "it is a weighted sum of its experts, but the weights must be the softmax of the selected gate logits or the "
        f"selected entries of the softmax of all, and no gate and top_k give them (closest: {best[1]}, error "
        f"{best[0]:.1g} of the largest output)"
    )
