"""Products of matrices."""

from string import ascii_letters
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.frontend.elementwise import summed
from patchloom.compiler.frontend.site import Args, Rows, Site, refused, rows
from patchloom.compiler.node import View, float32, whole
from patchloom.compiler.nodes import Matmul
from patchloom.compiler.nodes.captured import Product
from patchloom.compiler.passes.attention import find_attention
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.problems import UnsupportedError


def apply_linear(site: Site, x: View, weight: Tensor, bias: Tensor | None) -> View:
    """Along the last dimension of x; weight is outputs x inputs."""
    x, factor = without_factors(x)
    made = Matmul(
        origin=site.origin,
        x=x.reshape(-1, x.shape[-1]),
        weight=float32(weight.double() * factor),
        bias=np.zeros(len(weight), np.float32) if bias is None else float32(bias),
    )
    return whole(made).reshape(*x.shape[:-1], len(weight))


def need_constants(*values: Any) -> None:
    if any(isinstance(value, View) for value in values):
        raise UnsupportedError("has weights that depend on the input", "weights and biases must be learned constants")


def linear(site: Site, a: Args) -> View:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    if weight.dim() == 2:
        return apply_linear(site, x, weight, bias)
    if bias is not None:
        raise UnsupportedError("has a bias and a weight that is a vector", "make the weight a matrix of one row")
    return apply_linear(site, x, weight[None], None).reshape(*x.shape[:-1])


def matmul(site: Site, a: Args) -> View:
    first, second = (a[name] for name in ("self", "mat2" if "mat2" in a else "other"))
    return product(site, first, second)


def product(site: Site, first: View | Tensor, second: View | Tensor) -> View:
    if isinstance(first, View) and isinstance(second, View):
        return batched_product(site, first, second)
    if isinstance(first, View) and isinstance(second, Tensor):
        shape, matrices = _shape(first, second), second if second.dim() > 1 else second[:, None]
        while matrices.dim() > 2 and matrices.shape[0] == 1:
            matrices = matrices[0]
        if matrices.dim() == 2:
            return apply_linear(site, first, matrices.T, None).reshape(*shape)
    if isinstance(second, View) and isinstance(first, Tensor) and first.dim() == 2 and len(second.shape) >= 2:
        result = apply_linear(site, second.pick(second.index.swapaxes(-1, -2)), first, None)
        return result.pick(result.index.swapaxes(-1, -2))
    return batched_product(site, site.view(first), site.view(second))


def _shape(first: View | Tensor, second: View | Tensor) -> tuple[int, ...]:
    """Of the product, as torch has it."""
    one, other = (torch.empty(tuple(x.shape), device="meta") for x in (first, second))
    return tuple((one @ other).shape)


def batched_product(site: Site, first: View, second: View) -> View:
    if len(first.shape) < 2 or len(second.shape) < 2:
        raise UnsupportedError("multiplies vectors that depend on the input", "this is supported in attention only")
    batch = np.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    count = int(np.prod(batch))
    a, b = (
        view.pick(np.broadcast_to(view.index, (*batch, *view.shape[-2:])).reshape(count, *view.shape[-2:]))
        for view in (first, second)
    )
    made = Product(origin=site.origin, a=a, b=b)
    return (find_attention(made) or whole(made)).reshape(*batch, *made.shape[1:])


def addmm(site: Site, a: Args) -> View:
    if a["beta"] != 1 or a["alpha"] != 1:
        raise UnsupportedError("has beta or alpha", "write the factors as multiplications")
    first, second = (a[name] for name in (("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")))
    result = product(site, first, second)
    bias = a["self"]
    made = result.base
    if (
        isinstance(made, Matmul)
        and isinstance(bias, Tensor)
        and tuple(bias.shape[-1:]) == (bias.numel(),) == made.shape[1:]
    ):
        return View(((_with_bias(made, bias), 1.0),), result.index)
    return summed(site, result, bias, 1.0, 1.0)


def _with_bias(made: Matmul, bias: Tensor) -> Matmul:
    return Matmul(origin=made.origin, x=made.x, weight=made.weight, bias=float32(bias).reshape(-1))


def einsum(site: Site, a: Args) -> View:
    """Of two operands without repeated letters: a matmul of rearranged operands."""
    operands = a["tensors"]
    equation = _spelt_out(a["equation"].replace(" ", ""), [len(x.shape) for x in operands])
    inputs, _, output = equation.partition("->")
    letters = inputs.split(",")
    if len(letters) != 2 or "." in equation or not output or any(len(set(part)) < len(part) for part in letters):
        raise UnsupportedError(
            f"has the form '{equation}'", "name two operands, each letter once in an operand, and a result"
        )
    left, right = letters
    batch = [c for c in left if c in right and c in output]
    summed = [c for c in left if c in right and c not in output]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    sizes = {c: n for part, x in zip(letters, operands, strict=True) for c, n in zip(part, x.shape, strict=True)}
    x = _arranged(operands[0], left, batch, rows, summed)
    y = _arranged(operands[1], right, batch, summed, columns)
    if isinstance(y, Tensor) and y.dim() == 3 and y.shape[0] == 1:
        y = y[0]
    result = product(site, x, y)
    order = [*batch, *rows, *columns]
    shaped = result.reshape(*(sizes[c] for c in order))
    return shaped.pick(shaped.index.transpose([order.index(c) for c in output]))


def _spelt_out(equation: str, ranks: list[int]) -> str:
    """With letters for "...", which must stand for as many dimensions of each operand that has it."""
    letters = equation.partition("->")[0].split(",")
    counts = {rank - len(part) + 3 for part, rank in zip(letters, ranks, strict=False) if "..." in part}
    if len(counts) != 1:
        return equation
    free = [letter for letter in ascii_letters if letter not in equation]
    return equation.replace("...", "".join(free[: counts.pop()]))


def _arranged(x: View | Tensor, letters: str, *groups: list[str]) -> Any:
    index = x.index if isinstance(x, View) else x.detach().numpy()
    flat = index.transpose([letters.index(c) for group in groups for c in group])
    sizes = [int(np.prod([index.shape[letters.index(c)] for c in group])) for group in groups]
    return x.pick(flat.reshape(sizes)) if isinstance(x, View) else torch.from_numpy(flat.reshape(sizes).copy())


ROWS: Rows = {
    **rows(linear, "linear", data="input weight bias"),
    **rows(matmul, "matmul mm bmm", data="self other mat2"),
    **rows(addmm, "addmm baddbmm", data="self mat1 mat2 batch1 batch2", reads="beta alpha"),
    **rows(einsum, "einsum", data="tensors", reads="equation"),
    **refused(
        "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
        "only feed-forward layers are supported",
    ),
}
