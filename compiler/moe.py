"""Mixtures of experts, recognised by what they compute.

However a user writes the routing (a loop over experts, gathered tokens, everything computed and masked),
the block is one function of its tokens. It is run on its own inputs and on random ones and compared with
each explanation (gate, top_k, scoring) that its parameters allow; the first that reproduces it is taken.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from patchloom.compiler.activations import ACTIVATIONS, Function
from patchloom.compiler.graph import Floats
from patchloom.compiler.nodes import Expert, Scoring
from patchloom.compiler.primitive import Origin, Problem, float32

TOLERANCE = 1e-4  # of the largest output
ROUNDING = 10  # misfits that differ by no more than this factor are equal
HOW_TO_WRITE = (
    "write the block as a module whose forward takes the tokens (and the task) and returns the sum over the top_k "
    "experts of score * expert(token), with score = softmax of the selected gate logits, or the selected entries of "
    "the softmax of all gate logits; keep norms, residuals and shared layers outside it"
)
# What may stand between an expert's two layers.
BETWEEN: tuple[tuple[str, Function], ...] = tuple(
    (row.name, function) for row in ACTIVATIONS.values() if row.forms for function in row.functions
)


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
        return _tensors(self.args, self.kwargs)


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    return [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]


def shown_path(path: str) -> str:
    """Relative to the working directory when inside it."""
    inside = os.path.relpath(path)
    return path if inside.startswith("..") else inside


def defined_at(module: nn.Module) -> str:
    code = inspect.unwrap(type(module).forward).__code__
    return f"{shown_path(code.co_filename)}:{code.co_firstlineno}"


# --- Finding blocks by structure ---


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
        probe = torch.randn(16, first.in_features, generator=torch.Generator().manual_seed(0))
        try:
            actual = function(probe)
        except (TypeError, ValueError, RuntimeError, LookupError, AssertionError):  # no function of tokens alone
            return None
        for name, activation in BETWEEN:
            if isinstance(actual, Tensor) and _alike(second(activation(first(probe))), actual):
                return _expert(first, second), name
    return None


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


# --- Explaining a block by behaviour ---


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
    tokens, actual = _samples(block, call, features)
    outputs = torch.stack([function(tokens) for function in block.functions], dim=1)  # [tokens, experts, features]
    candidates = [
        (gate, top_k, scoring)
        for top_k in range(1, len(block.experts) + 1)
        for gate in block.gates
        for scoring in get_args(Scoring)
    ]
    errors = [_misfit(gate, top_k, scoring, tokens, outputs, actual) for gate, top_k, scoring in candidates]
    least = min(errors)
    if least <= TOLERANCE:
        # A last score near zero hardly shows: what fits as well as the best does, with the fewest experts.
        equal = (i for i, error in enumerate(errors) if error <= ROUNDING * least + np.finfo(np.float32).eps)
        gate, top_k, scoring = candidates[next(equal)]
        return _layer(block, gate, top_k, scoring)
    gate, top_k, scoring = candidates[errors.index(least)]
    best = (least, f"gate '{gate.name}', top_k={top_k}, {scoring}")
    return Problem(block.origin, _diagnosis(block, best, outputs, actual), HOW_TO_WRITE)


def mixture_in(result: Any, x: Tensor, features: int) -> Tensor | None:
    """The mixture among what a block returns: gate logits and auxiliary losses have other shapes."""
    for part in tree_leaves(result):
        if not isinstance(part, Tensor) or part.dim() < 2 or part.shape[-1] != features:
            continue
        if part.numel() * x.shape[-1] == x.numel() * features:
            return part
    return None


def _samples(block: Block, call: Call, features: int) -> tuple[Tensor, Tensor]:
    """Tokens and the block's own answer to them: the model's, then random ones of the same spread."""
    [x] = call.tensors
    random = torch.Generator().manual_seed(0)
    spread = x.std() + 1e-3
    inputs = [x, *(torch.randn(x.shape, generator=random) * spread + x.mean() for _ in range(2))]
    answers = []
    for value in inputs:
        args, kwargs = tree_map_only(Tensor, _always(value), (call.args, call.kwargs))
        answer = mixture_in(block.module(*args, **kwargs), value, features)
        assert answer is not None, "shapes do not depend on values here"
        answers.append(answer.reshape(-1, features))
    return torch.cat(inputs).reshape(-1, x.shape[-1]), torch.cat(answers)


def _always(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: value


def _misfit(gate: Gate, top_k: int, scoring: Scoring, tokens: Tensor, outputs: Tensor, actual: Tensor) -> float:
    """Largest error relative to the largest output; tokens whose choice of experts is a tie do not count."""
    logits = F.linear(tokens, gate.weight, gate.bias)
    ranked, chosen = logits.sort(dim=1, descending=True)
    scores = ranked[:, :top_k].softmax(1) if scoring == "softmax_of_selected" else ranked.softmax(1)[:, :top_k]
    weights = torch.zeros_like(logits).scatter_(1, chosen[:, :top_k], scores)
    error = ((weights[:, None] @ outputs)[:, 0] - actual).abs().amax(1) / actual.abs().max().clamp_min(1e-12)
    if top_k < logits.shape[1]:
        tie = ranked[:, top_k - 1] - ranked[:, top_k] < 1e-5 * ranked.abs().max()
        error = torch.where(tie, torch.zeros_like(error), error)
    return float(error.max())


def _layer(block: Block, gate: Gate, top_k: int, scoring: Scoring) -> Layer:
    bias = np.zeros(len(block.experts)) if gate.bias is None else gate.bias.detach()
    weight = float32(gate.weight.detach())
    return Layer(block.origin, weight, float32(bias), block.experts, block.activation, top_k, scoring)


def _diagnosis(block: Block, best: tuple[float, str], outputs: Tensor, actual: Tensor) -> str:
    """Which rule failed: is the output any mixture of the experts at all?"""
    fit = torch.linalg.lstsq(outputs.transpose(1, 2).double(), actual[..., None].double(), driver="gelsd")
    rest = (outputs.transpose(1, 2).double() @ fit.solution)[..., 0] - actual
    if float(rest.abs().max()) > TOLERANCE * float(actual.abs().max()):
        return f"its output must be a weighted sum of its {len(block.experts)} experts' outputs, and is not"
    return (
        "it is a weighted sum of its experts, but the weights must be the softmax of the selected gate logits or the "
        f"selected entries of the softmax of all, and no gate and top_k give them (closest: {best[1]}, error "
        f"{best[0]:.1g} of the largest output)"
    )


# --- Standing in for a block during export ---


@torch.library.custom_op("patchloom::moe", mutates_args=())
def moe_op(x: Tensor, layer: int, features: int) -> Tensor:
    """A recognised block; only its shape is ever asked for."""
    raise NotImplementedError


@moe_op.register_fake
def _(x: Tensor, _layer: int, features: int) -> Tensor:
    return x.new_empty([*x.shape[:-1], features])


@torch.library.custom_op("patchloom::auxiliary", mutates_args=())
def auxiliary_op(x: Tensor, shape: Sequence[int]) -> Tensor:
    """What a recognised block returns besides the mixture, e.g. a balancing loss: must stay unused."""
    raise NotImplementedError


@auxiliary_op.register_fake
def _(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.new_empty(list(shape))


def recognise(model: nn.Module, args: tuple[Any, ...]) -> tuple["Swap", list[Problem]]:
    """Run the model once and explain each block it calls."""
    blocks = find_blocks(model)
    with recorded_calls(blocks) as calls:
        if blocks:
            model(*args)
    swap = Swap()
    problems = []
    for block in blocks:
        for call in calls[block.name]:
            key = _static_key(block.module, call.args, call.kwargs)
            if key in swap.numbers:
                continue
            layer = explain(block, call)
            if isinstance(layer, Problem):
                problems.append(layer)
            else:
                swap.add(block.module, key, layer, call.result)
    return swap, problems


def _static_key(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[int, str]:
    """The block and its arguments other than the tokens, e.g. the task."""
    return id(module), repr(tree_map_only(Tensor, lambda _: "tokens", (args, kwargs)))


class Swap:
    """The recognised blocks of one run, and how to put a custom operation in their place."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.numbers: dict[tuple[int, str], int] = {}
        self.results: list[Any] = []
        self.modules: dict[int, nn.Module] = {}

    def add(self, module: nn.Module, key: tuple[int, str], layer: Layer, result: Any) -> None:
        self.modules[id(module)] = module
        self.numbers[key] = len(self.layers)
        self.layers.append(layer)
        self.results.append(result)

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.modules.values():
                before = module.__dict__.get("forward")
                module.__dict__["forward"] = self._stand_in(module)
                stack.callback(_restore, module, before)
            yield

    def _stand_in(self, module: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            number = self.numbers[_static_key(module, args, kwargs)]
            [x] = _tensors(args, kwargs)
            mixture = mixture_in(self.results[number], x, self.layers[number].experts[0].w2.shape[0])

            def part(value: Tensor) -> Tensor:
                if value is not mixture:
                    return cast(Tensor, auxiliary_op(x, list(value.shape)))
                return cast(Tensor, moe_op(x, number, value.shape[-1])).reshape(value.shape)

            return tree_map_only(Tensor, part, self.results[number])

        return forward


def _restore(module: nn.Module, before: Any) -> None:
    if before is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = before
