"""Layer normalisation, and what is no layer normalisation."""

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.activations import Function
from patchloom.compiler.frontend.elementwise import function, function_of, multiplied, summed, times
from patchloom.compiler.frontend.linear import apply_linear, need_constants
from patchloom.compiler.frontend.reduction import reduced
from patchloom.compiler.frontend.site import ALL, Args, Rows, Site, refused, rows
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
        centred=a.get("centred", True),
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


def rms_norm(site: Site, a: Args) -> View | Tensor:
    """Without `eps` the smallest that torch can add."""
    eps = torch.finfo(torch.float32).eps if a["eps"] is None else a["eps"]
    return layer_norm(site, {**a, "bias": None, "eps": eps, "centred": False})


def group_norm(site: Site, a: Args) -> View:
    """Of one token alone, a norm over each group of its features; of several, by their moments."""
    x, weight, bias = (a[name] for name in ("input", "weight", "bias"))
    need_constants(weight, bias)
    if int(np.prod(x.shape[2:])) != 1:
        return over_tokens(site, x, a["num_groups"], weight, bias, a["eps"])
    grouped = x.reshape(x.shape[0], a["num_groups"], -1)
    alone = {"input": grouped, "normalized_shape": [grouped.shape[-1]], "weight": None, "bias": None, "eps": a["eps"]}
    normal = site.view(layer_norm(site, alone)).reshape(*x.shape)
    by_channel = (-1, *(1 for _ in x.shape[2:]))
    scaled = normal if weight is None else times(site, normal, weight.reshape(by_channel))
    return scaled if bias is None else summed(site, scaled, bias.reshape(by_channel), 1.0, 1.0)


def instance_norm(site: Site, a: Args) -> View:
    """Each channel over all tokens."""
    x, weight, bias = (a[name] for name in ("input", "weight", "bias"))
    need_constants(weight, bias)
    if not a["use_input_stats"]:
        return batch_norm(site, {**a, "training": False})
    return over_tokens(site, x, x.shape[1], weight, bias, a["eps"])


def over_tokens(site: Site, x: View, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> View:
    """Mean and variance of each group of channels over all tokens are products with a constant matrix."""
    channels, space = x.shape[1], tuple(range(2, len(x.shape)))
    size, by_channel = channels // groups, (-1, *(1 for _ in space))
    average = torch.kron(torch.eye(groups), torch.full((size, size), 1 / size))

    def mean(view: View) -> View:
        of_channels = reduced(site, {"self": view, "dim": list(space), "keepdim": False}, average=True)
        grouped = of_channels if size == 1 else apply_linear(site, of_channels, average, None)
        return grouped.reshape(*grouped.shape, *(1 for _ in space))

    centred = summed(site, x, mean(x), 1.0, -1.0)
    spread = mean(multiplied(site, centred, centred))
    root = function_of(site, spread, lambda v: (v + eps).rsqrt(), "is not supported", NORMS)
    normal = multiplied(site, centred, root)
    scaled = normal if weight is None else times(site, normal, weight.reshape(by_channel))
    return scaled if bias is None else summed(site, scaled, bias.reshape(by_channel), 1.0, 1.0)


def variance(site: Site, a: Args) -> View:
    return moments(site, a)[0]


def variance_and_mean(site: Site, a: Args) -> list[View]:
    return [*moments(site, a)]


def deviation(site: Site, a: Args) -> View:
    return part(site, moments(site, a)[0], torch.sqrt)


def moments(site: Site, a: Args) -> tuple[View, View]:
    """Variance and mean over some dimensions."""
    x: View = a["self"]
    over = {"dim": a.get("dim"), "keepdim": a.get("keepdim", False)}
    mean = reduced(site, {"self": x, **over, "keepdim": True}, average=True)
    squares = part(site, summed(site, x, mean, 1.0, -1.0), torch.square)
    spread = reduced(site, {"self": squares, **over}, average=True)
    count, correction = x.index.size // mean.index.size, a.get("correction", a.get("unbiased"))
    degrees = count - (1 if correction is None else correction)
    if degrees <= 0:
        raise UnsupportedError("leaves no degree of freedom", NORMS)
    return spread.scaled(count / degrees), mean.reshape(*spread.shape)


def length(site: Site, a: Args) -> View:
    if a["ord"] != 2:
        raise UnsupportedError("is not supported", NORMS)
    total = reduced(site, {**a, "self": part(site, a["self"], torch.square)}, average=False)
    return part(site, total, torch.sqrt)


def part(site: Site, view: View, apply: Function) -> View:
    """Of what a norm is written with."""
    return function_of(site, view, apply, "is not supported", NORMS)


NORMS = "supported normalisation is torch.nn.LayerNorm over the last dimension"
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
    **rows(instance_norm, "instance_norm", data=BATCH_NORM, reads="use_input_stats momentum eps"),
    **refused(
        "native_batch_norm _native_batch_norm_legit _batch_norm_no_update native_group_norm",
        "use LayerNorm, or fold the trained normalisation into the layer before",
    ),
    **rows(rms_norm, "rms_norm", data="input weight", reads="normalized_shape eps"),
    **rows(group_norm, "group_norm", data="input weight bias", reads="num_groups eps"),
    **rows(function(NORMS), "rsqrt sqrt", data="self", reads=ALL),
    **rows(variance, "var", data="self", reads="dim correction unbiased keepdim"),
    **rows(deviation, "std", data="self", reads="dim correction unbiased keepdim"),
    **rows(variance_and_mean, "var_mean", data="self", reads="dim correction unbiased keepdim"),
    **rows(length, "linalg_vector_norm", data="self", reads="ord dim keepdim"),
    **refused("_fused_rms_norm std_mean norm", NORMS),
}
