"""Operations that only move elements: they leave no operation behind, only a view."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from patchloom.compiler.frontend.mixture import HOW_TO_WRITE
from patchloom.compiler.frontend.site import ALL, Args, Rows, Site, call_by_schema, refused, rows
from patchloom.compiler.node import Node, View, common_terms, whole
from patchloom.compiler.nodes import Constant, Matmul
from patchloom.compiler.nodes.captured import Product
from patchloom.compiler.problems import UnsupportedError

NOT_RANDOM = "random numbers have no place in inference: leave them to training"


def keep(_: Site, a: Args) -> View:
    view: View = a["self"] if "self" in a else a["input"]
    return view


def dropout(_: Site, a: Args) -> View:
    """Nothing in evaluation, unless it is told to drop all the same."""
    if a["train"] and a["p"] > 0:
        raise UnsupportedError(
            f"drops {a['p']:g} of its elements in evaluation too",
            "pass training=self.training, or use torch.nn.Dropout",
        )
    view: View = a["input"]
    return view


def viewed(site: Site, a: Args) -> Any:
    """Another shape; another type only of the same width."""
    if a.get("dtype", torch.float32) != torch.float32:
        raise UnsupportedError(f"reads floats as {a['dtype']}", "everything that depends on the inputs must stay float")
    return a["self"] if "dtype" in a else move(site, a)


def move(site: Site, a: Args) -> Any:
    """Run the same operation on the element numbers; constants that are joined take part as numbered ones."""
    target = a.pop("target")
    joins = isinstance(a.get("tensors"), list | tuple)
    if joins:
        a["tensors"] = [site.view(part) for part in a["tensors"]]
    views = a["tensors"] if joins else [value for value in a.values() if isinstance(value, View)]
    if len(views) < sum(isinstance(leaf, View) for leaf in tree_leaves(a)):
        raise UnsupportedError("selects elements by what depends on the input", "select by position")
    terms, indices = common_terms(views)
    numbers = iter(torch.from_numpy(np.array(index, order="C")) for index in indices)
    if joins:
        a["tensors"] = list(numbers)
    a = {name: next(numbers) if isinstance(value, View) else value for name, value in a.items()}
    result = call_by_schema(target, a)

    def view(part: Tensor) -> View:
        return View(terms, part.numpy()).pick(part.numpy().copy())

    return view(result) if isinstance(result, Tensor) else [view(part) for part in result]


def chosen(site: Site, a: Args) -> View:
    """Of two tensors, by a constant."""
    if isinstance(a["condition"], View):
        raise UnsupportedError("chooses by what depends on the input", HOW_TO_WRITE)
    parts = (a[name] for name in ("self", "other"))
    views = [site.view(part if isinstance(part, View) else torch.as_tensor(part)) for part in parts]
    terms, indices = common_terms(views)
    index = np.where(a["condition"].numpy(), *indices)
    return View(terms, index).pick(index)


def overwritten(site: Site, a: Args) -> View:
    return chosen(site, {"condition": a["mask"], "self": a["value"], "other": a["self"]})


def pad(site: Site, a: Args) -> View:
    """Zeros around, whose element number is -1, or elements of a constant."""
    if a.get("mode", "constant") != "constant":
        raise UnsupportedError("pads with something other than a constant", "pad with zeros")
    view: View = a["self"] if "self" in a else a["input"]
    padded = view.pick(torch.constant_pad_nd(torch.from_numpy(np.array(view.index)), a["pad"], -1).numpy())
    if not a.get("value"):
        return padded
    inside = torch.constant_pad_nd(torch.ones(view.shape, dtype=torch.bool), a["pad"], value=False)
    return chosen(site, {"condition": inside, "self": padded, "other": torch.full(padded.shape, float(a["value"]))})


def gathered(site: Site, a: Args) -> Any:
    """By constant places. Of each row of a product others: a product of each row alone, by what they are made of."""
    if isinstance(a["index"], View):
        raise UnsupportedError("selects elements by what depends on the input", HOW_TO_WRITE)
    view: View = move(site, a)
    base, factor = view.terms[0]
    operands = _operands(site, base) if len(view.terms) == 1 and view.index.min(initial=0) >= 0 else None
    if operands is None:
        return view
    one, other = operands
    rows, columns = np.divmod(view.index.reshape(-1, view.shape[-1]), base.shape[-1])
    if (rows != rows[:, :1]).any():
        return view
    maps, rows = np.divmod(rows, one.shape[1])
    a_rows = one.pick(one.index[maps[:, :1], rows[:, :1]])
    b_columns = other.pick(other.index.swapaxes(1, 2)[maps, columns].swapaxes(1, 2))
    return whole(Product(origin=site.origin, a=a_rows, b=b_columns)).reshape(*view.shape).scaled(factor)


def _operands(site: Site, base: Node) -> tuple[View, View] | None:
    """Of a product, also with what is fixed."""
    if isinstance(base, Product):
        return base.a, base.b
    if not isinstance(base, Matmul) or base.bias.any():
        return None
    weight = whole(Constant(origin=site.origin, value=base.weight))
    return base.x.reshape(1, *base.x.shape), weight.pick(weight.index.T[None])


def enlarge(_: Site, a: Args) -> View:
    """Nearest-neighbour interpolation repeats elements."""
    target = a.pop("target")
    name, view = next((name, value) for name, value in a.items() if isinstance(value, View))
    a[name] = torch.from_numpy(view.index.astype(np.float64))  # exact: element numbers stay far below 2**53
    return view.pick(call_by_schema(target, a).numpy().astype(np.int64))


def filled(_: Site, a: Args) -> View:
    """What is written over all of a tensor, whose shape alone counts."""
    view: View = a["src"] if "src" in a else a["value"]
    return view.pick(np.broadcast_to(view.index, tuple(a["self"].shape)))


def written(site: Site, a: Args) -> Any:
    """Over a part of a tensor: either may be a constant."""
    return move(site, {**a, "self": site.view(a["self"]), "src": site.view(a["src"])})


def placed(site: Site, a: Args) -> Any:
    """Over elements chosen by position."""
    if any(isinstance(index, View) for index in a["indices"]):
        raise UnsupportedError("writes to elements chosen by what depends on the input", HOW_TO_WRITE)
    return move(site, {**a, "self": site.view(a["self"]), "values": site.view(a["values"])})


def lent(_: Site, __: Args) -> Any:
    raise AssertionError("what has only a shape of the inputs does not depend on them")


ROWS: Rows = {
    **rows(
        keep,
        "clone contiguous detach alias lift_fresh_copy _to_copy to type_as positive",
        data="self",
        lends="other",
        reads="dtype",  # what is no float is refused of every operation
    ),
    **rows(dropout, "dropout feature_dropout", data="input", reads="p train"),
    **rows(viewed, "view", data="self", reads=ALL),
    **rows(
        move,
        "_unsafe_view reshape view_as reshape_as flatten unflatten permute transpose t numpy_T mT swapaxes "
        "movedim moveaxis slice select narrow unsqueeze squeeze expand expand_as broadcast_to repeat tile "
        "split split_with_sizes chunk tensor_split unbind cat concat stack hstack vstack flip roll rot90 index_select "
        "index repeat_interleave unfold pixel_shuffle pixel_unshuffle channel_shuffle diagonal atleast_2d",
        data="self tensors indices index start repeats tensor_indices_or_sections",
        lends="other",
        reads=ALL,
    ),
    **rows(chosen, "where", data="self other condition"),
    **rows(gathered, "gather", data="self index", reads="dim sparse_grad"),
    **rows(overwritten, "masked_fill", data="self mask value"),
    **rows(pad, "constant_pad_nd pad", data="self input", reads="pad mode value"),
    **refused(
        "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
        "_pad_circular",
        "pad with zeros",
    ),
    **rows(enlarge, "upsample_nearest1d upsample_nearest2d upsample_nearest3d", data="self input", reads=ALL),
    **refused(
        "grid_sampler grid_sampler_2d grid_sampler_3d",
        "return the map as it is and interpolate it after the accelerator",
    ),
    # What writing in place becomes.
    **rows(filled, "copy fill", data="src value", lends="self"),
    **rows(written, "slice_scatter select_scatter diagonal_scatter", data="self src", reads=ALL),
    **rows(placed, "index_put", data="self indices values"),
    **rows(
        lent,
        "zero zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided",
        data="",
        lends="self",
        reads=ALL,
    ),
    **refused(
        "rand_like randn_like randint_like bernoulli normal native_dropout multinomial uniform exponential",
        NOT_RANDOM,
    ),
}
