"""Activation functions, a row each: what torch calls it, what it computes, what the machine needs for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patchloom.compiler.machine.commands import Post
from patchloom.compiler.machine.fixed import GELU_FRACTION

Function = Callable[[Tensor], Tensor]


def tried(function: Function, x: NDArray[Any]) -> NDArray[Any]:
    """What a function of torch's is of an array."""
    result: NDArray[Any] = function(torch.from_numpy(np.ascontiguousarray(x))).numpy()
    return result


@dataclass(frozen=True)
class Form:
    """An operation that torch.export shows for a function, and the arguments by which it is that function."""

    operation: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    approximation: Function | None = None  # what it computes, where that is not quite the row's function
    warning: str = ""

    def of(self, x: NDArray[Any]) -> NDArray[Any]:
        """What it computes, where that is not quite the row's function."""
        assert self.approximation
        return tried(self.approximation, x)

    def fits(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the operation with these arguments is the function; those given as tensors never are."""
        given = ((arguments.get(name), value) for name, value in self.arguments.items())
        return all(not isinstance(argument, Tensor) and argument == value for argument, value in given)


@dataclass(frozen=True, eq=False, kw_only=True)
class Activation:
    """`fraction` and `limit` bind the number formats around the function: see `quantise`.

    `fraction`: fractional bits that the epilogue's word must have when it enters the function, because a table
    is read by it; the result is then shifted right to a scale that is a power of two. None: any scale will do.
    `limit`: the largest value, which the function clips to by saturating there; hence no residual joins it.
    """

    name: str
    title: str = ""  # as users know it
    function: Function
    post: Post
    forms: tuple[Form, ...] = ()
    fraction: int | None = None
    limit: float | None = None

    def __call__(self, x: NDArray[Any]) -> NDArray[Any]:
        return tried(self.function, x)

    @property
    def any_scale(self) -> bool:
        """Of the epilogue's word."""
        return self.fraction is None and self.limit is None

    @property
    def functions(self) -> tuple[Function, ...]:
        """All that is compiled as this function, itself first."""
        return self.function, *(form.approximation for form in self.forms if form.approximation)


ROWS = (
    Activation(name="none", function=lambda x: x, post=Post.NONE),
    Activation(
        name="gelu",
        title="GELU",
        function=F.gelu,
        post=Post.GELU,
        fraction=GELU_FRACTION,
        forms=(
            Form("aten.gelu", {"approximate": "none"}),
            Form(
                "aten.gelu",
                {"approximate": "tanh"},
                lambda x: F.gelu(x, approximate="tanh"),
                "GELU with the tanh approximation is compiled as exact GELU (they differ by up to 5e-4)",
            ),
        ),
    ),
    Activation(name="relu", title="ReLU", function=torch.relu, post=Post.RELU, forms=(Form("aten.relu"),)),
    Activation(
        name="relu6",
        title="ReLU6",
        function=F.relu6,
        post=Post.RELU,
        limit=6.0,
        forms=(
            Form("aten.relu6"),
            Form("aten.hardtanh", {"min_val": 0, "max_val": 6}),
            Form("aten.clamp", {"min": 0, "max": 6}),
        ),
    ),
)

ACTIVATIONS: Mapping[str, Activation] = {row.name: row for row in ROWS}
