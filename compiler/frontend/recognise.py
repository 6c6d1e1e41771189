"""Mixtures of experts, recognised by what they compute, and what stands in for them while the rest is exported."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from patchloom.compiler.frontend.blocks import find_blocks
from patchloom.compiler.frontend.explain import Layer, explain, mixture_in, recorded_calls, tensors_of
from patchloom.compiler.frontend.module import unchanged
from patchloom.compiler.frontend.origin import user_line
from patchloom.compiler.origin import Origin
from patchloom.compiler.problems import CaptureError, Problem


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


def recognise(model: nn.Module, args: tuple[Any, ...]) -> tuple["Swap", Any, list[Problem]]:
    """Run the model once and explain each block it calls; what it returned is for comparison.

    Also, what forward caches outside of the module, e.g. in functions, is real by the time of export.
    """
    blocks = find_blocks(model)
    with recorded_calls(blocks) as calls, unchanged(model):
        returned = run_once(model, args)
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
    return swap, returned, problems


def run_once(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """On copies: forward may write into its arguments."""
    try:
        return model(*tree_map_only(Tensor, Tensor.clone, args))
    except Exception as error:
        origin = Origin(op="forward", where=user_line(traceback.extract_tb(error.__traceback__)))
        text = f"raises {type(error).__name__} on the example inputs: {str(error).strip() or 'without a message'}"
        raise CaptureError(f"{type(model).__name__} cannot be run:", [Problem(origin, text)]) from error


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
            [x] = tensors_of(args, kwargs)
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
