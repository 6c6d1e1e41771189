"""Layer normalisation, and what is no layer normalisation."""

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.frontend.elementwise import summed, times
from patchloom.compiler.frontend.linear import need_constants
from patchloom.compiler.frontend.site import Args, Rows, Site, refused, rows
from patchloom.compiler.node import View, float32, whole
from patchloom.compiler.nodes.captured import Normalise
from patchloom.compiler.passes.factors import without_factors
from patchloom.compiler.problems import UnsupportedError


def layer_norm(site: Site, a: Args) -> View | Tensor:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    features = x.shape[-1]
    if list(a["normalized_shape"]) != [features]:
        raise UnsupportedError(f"normalises over {a['normalized_shape']}", "normalise over the last dimension only")
    if a["eps"] < 0:
        raise UnsupportedError(f"has eps {a['eps']:g}", "it must not be negative: it is added to a variance")
    x, factor = without_factors(x)
    if factor == 0:
        return (torch.zeros(features) if bias is None else bias).expand(x.shape)
    made = Normalise(
        origin=site.origin,
        x=x.reshape(-1, features),
        gamma=float32(torch.ones(features) if weight is None else weight) * np.float32(np.sign(factor)),
        beta=float32(torch.zeros(features) if bias is None else bias),
        epsilon=float(a["eps"]) / factor**2,  # normalising f * x
    )
    return whole(made).reshape(*x.shape)


def batch_norm(site: Site, a: Args) -> View:
    """By stored statistics: a factor and a shift for each channel."""
    x, weight, bias, mean, variance = (a[name] for name in ("input", "weight", "bias", "running_mean", "running_var"))
    need_constants(weight, bias, mean, variance)
    if a.get("training") or mean is None or variance is None:
        raise UnsupportedError("normalises by the statistics of its batch", "keep running statistics: see BatchNorm")
    factor = (variance.double() + a["eps"]).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * factor
    by_channel = (-1, *(1 for _ in x.shape[2:]))
    return summed(site, times(site, x, factor.reshape(by_channel)), shift.reshape(by_channel), 1.0, 1.0)


def batch_norm_with_statistics(site: Site, a: Args) -> list[View | Tensor]:
    return [batch_norm(site, a), torch.empty(0), torch.empty(0)]


BATCH_NORM = "input weight bias running_mean running_var"

ROWS: Rows = {
    **rows(layer_norm, "layer_norm", data="input weight bias", reads="normalized_shape eps"),
    **rows(batch_norm, "batch_norm", data=BATCH_NORM, reads="training momentum eps"),
    **rows(
        batch_norm_with_statistics,
        "_native_batch_norm_legit_no_training",
        data=BATCH_NORM,
        reads="momentum eps",
    ),
    **refused(
        "native_batch_norm _native_batch_norm_legit _batch_norm_no_update group_norm native_group_norm instance_norm",
        "use LayerNorm, or fold the trained normalisation into the layer before",
    ),
    **refused(
        "rms_norm _fused_rms_norm rsqrt sqrt pow var std var_mean std_mean norm linalg_vector_norm",
        "supported normalisation is torch.nn.LayerNorm over the last dimension",
    ),
}
