"""Recognised mixtures of experts, and the operations that routing is written with none is recognised."""

from patchloom.compiler.frontend.explain import HOW_TO_WRITE
from patchloom.compiler.frontend.site import Args, Rows, Site, refused, rows
from patchloom.compiler.node import View, whole
from patchloom.compiler.nodes import Moe
from patchloom.compiler.passes.factors import plain


def mixture(site: Site, a: Args) -> View:
    layer = site.layers[a["layer"]]
    x = plain(a["x"])
    made = Moe(
        origin=site.origin,
        x=x.reshape(-1, x.shape[-1]),
        gate_weight=layer.gate_weight,
        gate_bias=layer.gate_bias,
        experts=layer.experts,
        activation=layer.activation,
        top_k=layer.top_k,
        scoring=layer.scoring,
    )
    return whole(made).reshape(*x.shape[:-1], a["features"])


ROWS: Rows = {
    **rows(mixture, "moe", data="x", reads="layer features", library="patchloom"),
    **refused(
        "auxiliary",
        "a mixture-of-experts block's other results, e.g. a balancing loss, must stay unused",
        library="patchloom",
    ),
    **refused(
        "topk sort argsort msort gather scatter scatter_add scatter_reduce index_add index_copy "
        "_unsafe_index_put masked_select masked_scatter nonzero nonzero_numpy one_hot any all bincount "
        "eq ne lt le gt ge logical_and logical_or logical_not",
        HOW_TO_WRITE,
    ),
}
