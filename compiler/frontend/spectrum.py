"""Fourier transforms as products with constant matrices, and what becomes of their complex numbers: pairs of views.

A transform is linear in real and in imaginary parts: what torch makes of an identity, and of i times it, are matrices.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.frontend import movement
from patchloom.compiler.frontend.elementwise import function_of, multiplied, summed
from patchloom.compiler.frontend.linear import apply_linear
from patchloom.compiler.frontend.site import ALL, Args, Pair, Row, Rows, Site, operation_name, rows
from patchloom.compiler.node import View, common_terms, float32, whole
from patchloom.compiler.nodes import Mix
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.problems import UnsupportedError

HINT = "take real and imaginary parts, by torch.view_as_real, or the absolute value"


def transformed(site: Site, a: Args) -> View | Pair:
    """One dimension after the other: what is real before or behind is so along the last one."""
    kind = operation_name(a["target"]).removeprefix("aten.fft_").rstrip("2n")
    x: View | Pair = a["self"]
    dims, sizes = _dims(a)
    usual = "ifft" if "ifft" in kind or "irfft" in kind else "fft"
    steps = [
        (dims[-1], sizes[-1], kind),
        *((dim, size, usual) for dim, size in zip(dims[:-1], sizes[:-1], strict=True)),
    ]
    for dim, size, each in reversed(steps) if kind == "irfft" else steps:
        x = _along(site, x, dim, (getattr(torch.fft, each), size, a["norm"]))
    return x


def _dims(a: Args) -> tuple[list[int], list[int | None]]:
    """And the sizes to which they are cut or filled with zeros."""
    if "n" in a:
        return [a["dim"]], [a["n"]]
    rank, sizes = len(a["self"].shape), a["s"]
    dims = list(range(rank) if a["dim"] is None else a["dim"])
    if not dims:
        raise UnsupportedError("transforms no dimension", "name those that it runs along")
    dims = dims[-len(sizes) :] if sizes is not None and a["dim"] is None else dims
    return dims, [None] * len(dims) if sizes is None else [None if size == -1 else size for size in sizes]


def _along(site: Site, x: View | Pair, dim: int, transform: tuple[Any, int | None, str | None]) -> View | Pair:
    """Real results stand before imaginary ones."""
    apply, size, norm = transform
    dim %= len(x.shape)
    views = [x] if isinstance(x, View) else [x.real, x.imag]
    one = torch.eye(x.shape[dim], dtype=torch.float64)
    ones = [one] if isinstance(x, View) else [one + 0j, one * 1j]
    found = [apply(each, n=size, norm=norm) for each in ones]
    real = not found[0].is_complex()
    matrices = [each.T if real else torch.cat([each.real, each.imag], -1).T for each in found]
    parts = [_product(site, view, matrix, dim) for view, matrix in zip(views, matrices, strict=True)]
    total = parts[0] if len(parts) == 1 else summed(site, parts[0], parts[1], 1.0, 1.0)
    return total if real else Pair(*(total.pick(half) for half in np.split(total.index, 2, axis=dim)))


def _product(site: Site, view: View, matrix: Tensor, dim: int) -> View:
    """Along the last dimension by a layer; along others of rows, which lie as they are."""
    inner = int(np.prod(view.shape[dim:][1:]))
    if inner == 1:
        return apply_linear(site, view.reshape(*view.shape[:dim], -1), matrix, None).reshape(*_sized(view, dim, matrix))
    view, factor = without_factors(view)
    blocks = view.index.reshape(-1, view.shape[dim], inner)
    made = Mix(
        origin=site.origin,
        x=tuple(view.pick(block) for block in blocks),
        matrices=(float32(matrix),) * len(blocks),
        places=tuple((number * len(matrix), 0) for number in range(len(blocks))),
    )
    return whole(made).reshape(*_sized(view, dim, matrix)).scaled(factor)


def _sized(view: View, dim: int, matrix: Tensor) -> tuple[int, ...]:
    return (*view.shape[:dim], len(matrix), *view.shape[dim:][1:])


def real_part(_: Site, a: Args) -> View:
    return a["self"].real if isinstance(a["self"], Pair) else a["self"]


def imaginary(_: Site, a: Args) -> View:
    found: View = a["self"].imag
    return found


def as_real(_: Site, a: Args) -> View:
    terms, indices = common_terms([a["self"].real, a["self"].imag])
    return View(terms, np.stack(indices, axis=-1))


def as_complex(_: Site, a: Args) -> Pair:
    view: View = a["self"]
    return Pair(*(view.pick(view.index[..., part]) for part in (0, 1)))


def absolute(site: Site, a: Args) -> View:
    one, other = (multiplied(site, part, part) for part in (a["self"].real, a["self"].imag))
    told = "is not supported", "return real and imaginary parts"
    return function_of(site, summed(site, one, other, 1.0, 1.0), torch.sqrt, *told)


def product(site: Site, a: Args) -> Pair:
    (x, y), (u, v) = (_parts(a[name]) for name in ("self", "other"))
    crosswise = [multiplied(site, one, other) for one, other in ((x, u), (y, v), (x, v), (y, u))]
    return Pair(summed(site, crosswise[0], crosswise[1], 1.0, -1.0), summed(site, crosswise[2], crosswise[3], 1.0, 1.0))


def _parts(value: Any) -> tuple[Any, Any]:
    if isinstance(value, Pair):
        return value.real, value.imag
    if isinstance(value, View):
        return value, torch.zeros(value.shape)
    value = torch.as_tensor(value)
    return (value.real, value.imag) if value.is_complex() else (value, torch.zeros_like(value))


def moved(site: Site, a: Args) -> Any:
    """Both parts alike."""
    return Pair(*(movement.move(site, {**a, "self": part}) for part in _parts(a["self"])))


TRANSFORMS = "fft ifft rfft irfft fft2 ifft2 rfft2 irfft2 fftn ifftn rfftn irfftn"
ROWS: Rows = {
    **rows(transformed, " ".join(f"fft_{name}" for name in TRANSFORMS.split()), data="self", reads="n s dim norm"),
    **rows(as_complex, "view_as_complex", data="self"),
    **rows(real_part, "real", data="self"),
}

# Of operands some of which are complex.
COMPLEX: Mapping[str, Row] = {
    **ROWS,
    **rows(imaginary, "imag", data="self"),
    **rows(as_real, "view_as_real", data="self"),
    **rows(absolute, "abs", data="self"),
    **rows(product, "mul multiply", data="self other"),
    **rows(
        moved,
        "view _unsafe_view reshape flatten unflatten permute transpose slice select narrow unsqueeze squeeze expand "
        "roll",
        data="self",
        reads=ALL,
    ),
}
