"""Activation functions, a row each: what torch calls it, what it computes, what the machine needs for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from patchloom.compiler.machine.commands import Post
from patchloom.compiler.machine.tables import ENTRIES, FRACTION_BITS, MIDDLE, WITH_TABLE, Table

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

    def fits(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the operation with these arguments is the function; those given as tensors never are."""
        given = ((arguments.get(name), value) for name, value in self.arguments.items())
        return all(not isinstance(argument, Tensor) and argument == value for argument, value in given)


@dataclass(frozen=True, eq=False, kw_only=True)
class Activation:
    """`fraction` and `limit` bind the number formats around the function: see `quantise`.

    `fraction`: fractional bits that the epilogue's word must have when it enters the function, because its table
    is read by it; the result is then shifted right to a scale that is a power of two. None: any scale will do.
    `limit`: the largest value, which the function clips to by saturating there; hence no residual joins it.
    One without `forms` is known by what is computed, operation by operation.
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

    @cached_property
    def table(self) -> Table | None:
        """What the function is less than the base that `post` says, at the words where the table has its entries."""
        if self.post not in WITH_TABLE:
            return None
        assert self.fraction is not None
        words = np.arange(ENTRIES + 1) * (1 << FRACTION_BITS) - (0 if self.post == Post.EVEN else MIDDLE)
        x = torch.from_numpy(words * 2.0**-self.fraction)
        base = torch.zeros_like(x) if self.post == Post.ALONE else torch.relu(x)
        return Table.through(self.name, ((base - self.function(x)) * 2.0**self.fraction).numpy())


ROWS = (
    Activation(name="none", function=lambda x: x, post=Post.NONE),
    Activation(
        name="gelu",
        title="GELU",
        function=F.gelu,
        post=Post.EVEN,
        fraction=16,
        forms=(Form("aten.gelu", {"approximate": "none"}),),
    ),
    Activation(
        name="gelu_tanh",
        title="GELU's tanh form",
        function=lambda x: F.gelu(x, approximate="tanh"),
        post=Post.EVEN,
        fraction=16,
        forms=(Form("aten.gelu", {"approximate": "tanh"}),),
    ),
    Activation(
        name="quick_gelu",
        title="QuickGELU",
        function=lambda x: x * torch.sigmoid(1.702 * x),
        post=Post.EVEN,
        fraction=16,
    ),
    Activation(name="silu", title="SiLU", function=F.silu, post=Post.EVEN, fraction=15, forms=(Form("aten.silu"),)),
    Activation(
        name="hard_swish",
        title="hard-swish",
        function=F.hardswish,
        post=Post.EVEN,
        fraction=16,
        forms=(Form("aten.hardswish"),),
    ),
    Activation(
        name="softplus",
        title="softplus",
        function=F.softplus,
        post=Post.EVEN,
        fraction=15,
        forms=(Form("aten.softplus", {"beta": 1, "threshold": 20}),),
    ),
    Activation(name="mish", title="Mish", function=F.mish, post=Post.SIDED, fraction=14, forms=(Form("aten.mish"),)),
    Activation(
        name="elu",
        title="ELU",
        function=F.elu,
        post=Post.SIDED,
        fraction=15,
        forms=(Form("aten.elu", {"alpha": 1, "scale": 1, "input_scale": 1}),),
    ),
    Activation(
        name="sigmoid",
        title="sigmoid",
        function=torch.sigmoid,
        post=Post.ALONE,
        fraction=14,
        forms=(Form("aten.sigmoid"),),
    ),
    Activation(
        name="tanh", title="tanh", function=torch.tanh, post=Post.ALONE, fraction=15, forms=(Form("aten.tanh"),)
    ),
    Activation(
        name="hard_sigmoid",
        title="hard-sigmoid",
        function=F.hardsigmoid,
        post=Post.ALONE,
        fraction=16,
        forms=(Form("aten.hardsigmoid"),),
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
FUNCTIONS = tuple(row for row in ROWS if row.title)  # what users may write
