"""Attention of every token to every token, by one operation or as a softmax between two products."""

import numpy as np
import torch

from patchloom.compiler.frontend.elementwise import function_of, summed
from patchloom.compiler.frontend.linear import product
from patchloom.compiler.frontend.reduction import largest, total
from patchloom.compiler.frontend.site import Args, Rows, Site, refused, rows
from patchloom.compiler.node import Floats, View, float32, whole
from patchloom.compiler.nodes.captured import Softmax
from patchloom.compiler.passes.attention import attended
from patchloom.compiler.passes.attention import attention as attend
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.problems import UnsupportedError

UNKNOWN = "is not supported", "return the scores and take the logarithm of their softmax after the accelerator"


def softmax(site: Site, a: Args) -> View:
    view: View = a["self"]
    last = view.pick(np.moveaxis(view.index, a["dim"], -1))
    result = whole(Softmax(origin=site.origin, x=last))
    return result.pick(np.moveaxis(result.index, -1, a["dim"]))


def log_softmax(site: Site, a: Args) -> View:
    """Less the row's largest, and less the logarithm of the sum of exponentials: small shares lose no bits."""
    along: Args = {"dim": [a["dim"]], "keepdim": True}
    apart = summed(site, a["self"], largest(site, {**along, "self": a["self"]}), 1.0, -1.0)
    sums = total(site, {**along, "self": function_of(site, apart, torch.exp, *UNKNOWN)})
    return summed(site, apart, function_of(site, sums, torch.log, *UNKNOWN), 1.0, -1.0)


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
    scale = query.shape[-1] ** -0.5 if a["scale"] is None else float(a["scale"])
    if isinstance(a["attn_mask"], View):
        scores = product(site, query, key.pick(key.index.swapaxes(-1, -2))).scaled(scale)
        weights = softmax(site, {"self": summed(site, scores, a["attn_mask"], 1.0, 1.0), "dim": -1})
        return product(site, weights, value)
    bias = _bias(a, (*query.shape[:-1], key.shape[-2]))
    (q, by_q), (k, by_k), (v, by_v) = (without_factors(view) for view in (query, key, value))
    q, k, v = (view.reshape(-1, *view.shape[-2:]) for view in (q, k, v))
    made = attend(site.origin, q, k, v, scale * by_q * by_k, bias)
    return attended(made).scaled(by_v).reshape(*query.shape[:-1], value.shape[-1])


def _repeated(view: View, heads: int) -> View:
    """Each head for as many queries in a row as share it."""
    return view.pick(np.repeat(view.index, heads // view.shape[-3], axis=-3))


def _bias(a: Args, shape: tuple[int, ...]) -> Floats | None:
    """What is added to the scores, of this shape: heads x queries x keys."""
    mask = a["attn_mask"]
    if a["is_causal"]:
        mask = torch.ones(shape[-2:], dtype=torch.bool).tril()
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    return float32(mask.detach().expand(shape).reshape(-1, *shape[-2:]))


ROWS: Rows = {
    **rows(softmax, "softmax _softmax", data="self", reads="dim dtype"),
    **rows(log_softmax, "log_softmax _log_softmax", data="self", reads="dim dtype"),
    **rows(
        attention,
        "scaled_dot_product_attention",
        data="query key value attn_mask",
        reads="dropout_p is_causal scale enable_gqa",
    ),
    **refused("tril triu", "multiply by a constant, or hide keys with masked_fill or an attn_mask"),
}
