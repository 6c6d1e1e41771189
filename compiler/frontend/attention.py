"""Attention of every token to every token, by one operation or as a softmax between two products."""

import numpy as np
import torch

from patchloom.compiler.frontend.site import Args, Rows, Site, refused, rows
from patchloom.compiler.node import Floats, View, float32, whole
from patchloom.compiler.nodes.captured import Softmax
from patchloom.compiler.passes.attention import attended
from patchloom.compiler.passes.attention import attention as attend
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.problems import UnsupportedError


def softmax(site: Site, a: Args) -> View:
    view: View = a["self"]
    last = view.pick(np.moveaxis(view.index, a["dim"], -1))
    result = whole(Softmax(origin=site.origin, x=last))
    return result.pick(np.moveaxis(result.index, -1, a["dim"]))


def attention(site: Site, a: Args) -> View:
    query, key, value = (site.view(a[name]) for name in ("query", "key", "value"))
    if a["dropout_p"]:
        raise UnsupportedError("has dropout", "pass dropout_p=self.dropout if self.training else 0.0")
    if a.get("enable_gqa"):
        key, value = (_repeated(view, query.shape[-3]) for view in (key, value))
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise UnsupportedError(
            "has keys or values of other heads than its queries", "give each head its own keys and values"
        )
    bias = _bias(a, (*query.shape[:-1], key.shape[-2]))
    (q, by_q), (k, by_k), (v, by_v) = (without_factors(view) for view in (query, key, value))
    q, k, v = (view.reshape(-1, *view.shape[-2:]) for view in (q, k, v))
    scale = query.shape[-1] ** -0.5 if a["scale"] is None else float(a["scale"])
    made = attend(site.origin, q, k, v, scale * by_q * by_k, bias)
    return attended(made).scaled(by_v).reshape(*query.shape[:-1], value.shape[-1])


def _repeated(view: View, heads: int) -> View:
    """Each head for as many queries in a row as share it."""
    return view.pick(np.repeat(view.index, heads // view.shape[-3], axis=-3))


def _bias(a: Args, shape: tuple[int, ...]) -> Floats | None:
    """What is added to the scores, of this shape: heads x queries x keys."""
    mask = a["attn_mask"]
    if isinstance(mask, View):
        raise UnsupportedError("has a mask that depends on the input", "masks and biases of scores must be constants")
    if a["is_causal"]:
        mask = torch.ones(shape[-2:], dtype=torch.bool).tril()
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return float32(mask.detach().expand(shape).reshape(-1, *shape[-2:]))


ROWS: Rows = {
    **rows(softmax, "softmax _softmax", data="self", reads="dim dtype"),
    **rows(
        attention,
        "scaled_dot_product_attention",
        data="query key value attn_mask",
        reads="dropout_p is_causal scale enable_gqa",
    ),
    **refused("tril triu", "multiply by a constant, or hide keys with masked_fill or an attn_mask"),
}
