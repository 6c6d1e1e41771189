"""Layer normalisation, and what is no layer normalisation."""

import numpy as np
import torch
from torch import Tensor

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


ROWS: Rows = {
    **rows(layer_norm, "layer_norm", data="input weight bias", reads="normalized_shape eps"),
    **refused(
        "batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "_batch_norm_no_update group_norm native_group_norm instance_norm",
        "use LayerNorm, or fold the trained normalisation into the layer before",
    ),
    **refused(
        "rms_norm _fused_rms_norm rsqrt sqrt pow var std var_mean std_mean norm linalg_vector_norm",
        "supported normalisation is torch.nn.LayerNorm over the last dimension",
    ),
}
