"""Attention of every token to every token, by one operation or as a softmax between two products."""

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.frontend.site import Args, Rows, Site, refused, rows
from patchloom.compiler.node import View, whole
from patchloom.compiler.nodes import Attention
from patchloom.compiler.nodes.captured import Softmax
from patchloom.compiler.passes.attention import ATTENTION_FORMS, attended
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.problems import UnsupportedError


def softmax(site: Site, a: Args) -> View:
    view: View = a["self"]
    last = view.pick(np.moveaxis(view.index, a["dim"], -1))
    result = whole(Softmax(origin=site.origin, x=last))
    return result.pick(np.moveaxis(result.index, -1, a["dim"]))


def attention(site: Site, a: Args) -> View:
    query, key, value = (site.view(a[name]) for name in ("query", "key", "value"))
    if not masks_nothing(a["attn_mask"]) or a["is_causal"] or a["dropout_p"]:
        raise UnsupportedError(
            "has a mask, is causal or has dropout", "supported is attention of every token to every token"
        )
    if a.get("enable_gqa") or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise UnsupportedError(
            "has keys or values of other heads than its queries", "give each head its own keys and values"
        )
    (q, by_q), (k, by_k), (v, by_v) = (without_factors(view) for view in (query, key, value))
    q, k, v = (view.reshape(-1, *view.shape[-2:]) for view in (q, k, v))
    scale = query.shape[-1] ** -0.5 if a["scale"] is None else float(a["scale"])
    made = Attention(origin=site.origin, q=q, k=k, v=v, scale=scale * by_q * by_k)
    return attended(made).scaled(by_v).reshape(*query.shape[:-1], value.shape[-1])


def masks_nothing(mask: View | Tensor | None) -> bool:
    """A softmax does not see what all keys of a query have in common."""
    if mask is None:
        return True
    if isinstance(mask, View):
        return False
    return bool(mask.all() if mask.dtype == torch.bool else (mask == mask[..., :1]).all())


def masked(_: Site, a: Args) -> View:
    if isinstance(a["mask"], View) or a["mask"].any():
        raise UnsupportedError("is not supported", f"attention has no masks: {ATTENTION_FORMS}")
    view: View = a["self"]
    return view.pick(np.broadcast_to(view.index, np.broadcast_shapes(view.shape, tuple(a["mask"].shape))))


ROWS: Rows = {
    **rows(softmax, "softmax _softmax", data="self", reads="dim dtype"),
    **rows(
        attention,
        "scaled_dot_product_attention",
        data="query key value attn_mask",
        reads="dropout_p is_causal scale enable_gqa",
    ),
    **rows(masked, "masked_fill", data="self mask value"),
    **refused("tril triu", f"attention has no masks: {ATTENTION_FORMS}"),
}
