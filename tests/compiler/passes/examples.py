"""A small graph for each pass, with all that it must tell apart."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchloom.compiler.node import View, common_terms, whole
from patchloom.compiler.nodes import Attention, Constant, Expert, Input, Matmul, Maximum, Moe
from patchloom.compiler.nodes.captured import Activate, Add, Function, Multiply, Normalise, Product, Scale, Softmax
from patchloom.compiler.origin import Origin

TOKENS, FEATURES = 3, 2


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    """Small integers, no two neighbours alike: exact in float32, and short in a golden file."""
    return (np.arange(np.prod(shape)) * 5 % 7 - 2).reshape(shape).astype(np.float32)


def source() -> View:
    made = Input.flat("x", (TOKENS, FEATURES), Origin(name="x"))
    return View(((made, 1.0),), np.arange(made.size).reshape(TOKENS, FEATURES))


X = source()
BIAS = np.array([[[0, -1, -2], [-3, 0, -4], [-5, -6, 0]]] * FEATURES, np.float32)


def linear(name: str, x: View, outputs: int = FEATURES, **options: Any) -> View:
    weight, bias = numbers(outputs, x.shape[1]), np.arange(outputs).astype(np.float32)
    return whole(Matmul(origin=Origin(op="linear", name=name), x=x, weight=weight, bias=bias, **options))


def mixture(name: str, x: View) -> View:
    weight, bias = numbers(FEATURES, FEATURES), np.ones(FEATURES, np.float32)
    experts = (Expert(weight, bias, weight, bias), Expert(weight + 1, bias, weight - 1, bias))
    return whole(
        Moe(
            origin=Origin(name=name), x=x, gate_weight=weight, gate_bias=bias, experts=experts,
            activation="relu", top_k=2, scoring="softmax_of_all",
        )
    )  # fmt: skip


def norm(x: View) -> View:
    gamma, beta = np.array([2, 3], np.float32), np.array([1, -1], np.float32)
    return whole(Normalise(origin=Origin(name="norm"), x=x, gamma=gamma, beta=beta, epsilon=0.5))


def add(a: View, b: View, name: str = "add") -> View:
    return whole(Add(origin=Origin(name=name), a=a, b=b))


def fixed(*shape: int, alike: bool = False) -> View:
    value = np.broadcast_to(numbers(1, shape[1]), shape) if alike else numbers(*shape)
    return whole(Constant(origin=Origin(name="constant"), value=np.ascontiguousarray(value)))


def scale(x: View, factor: Sequence[Any]) -> View:
    value = np.broadcast_to(np.array(factor, np.float32), x.shape)
    return whole(Scale(origin=Origin(name="scale"), x=x, factor=value))


def scale_by(x: View, factor: np.ndarray[Any, Any]) -> View:
    return whole(Scale(origin=Origin(name="factors"), x=x, factor=factor))


def activate(x: View, activation: str = "relu") -> View:
    return whole(Activate(origin=Origin(name=activation), x=x, activation=activation))


def joined(*views: View, axis: int = 0) -> View:
    terms, indices = common_terms(views)
    return View(terms, np.concatenate(indices, axis))


def heads(x: View) -> View:
    """One column a head: heads x tokens x 1."""
    return x.pick(x.index.T[:, :, None])


def product(a: View, b: View) -> View:
    return whole(Product(origin=Origin(op="matmul", name="block.product"), a=a, b=b))


def softmax(x: View) -> View:
    return whole(Softmax(origin=Origin(op="softmax", name="softmax"), x=x))


def function(x: View, apply: Callable[[Tensor], Tensor]) -> View:
    return whole(Function(origin=Origin(op="function", name=apply.__name__), x=x, apply=apply, hint="is a hint"))


def multiply(a: View, b: View) -> View:
    return whole(Multiply(origin=Origin(op="mul", name="mul"), a=a, b=b))


def written() -> dict[str, View]:
    """GELU by erf, ReLU by a maximum, layer normalisation, one by the root mean square, and none of them."""
    x = linear("a", X)
    one = whole(Constant(origin=Origin(name="one"), value=np.ones((TOKENS, FEATURES), np.float32)))
    gelu = multiply(x, add(function(x.scaled(0.5**0.5), torch.erf), one)).scaled(0.5)
    return {
        "gelu": linear("gelu", gelu),
        "relu": add(x, function(x, torch.abs)).scaled(0.5),
        "norm": divided(centred(x), x, 0.5),
        "rms": divided(x, x, 0.0, of=x),
        "square": multiply(x, x),
        "swish": multiply(x, function(x, torch.sigmoid)),
    }


def mean(x: View) -> View:
    made = Matmul(
        origin=Origin(name="mean"),
        x=x,
        weight=np.full((1, FEATURES), 1 / FEATURES, np.float32),
        bias=np.zeros(1, np.float32),
    )
    return whole(made).pick(np.broadcast_to(np.arange(TOKENS)[:, None], x.shape))


def centred(x: View) -> View:
    return add(x, mean(x).scaled(-1.0))


def divided(x: View, by: View, epsilon: float, of: View | None = None) -> View:
    """By the root of the mean square of what `by` is once centred, or of what it is."""
    squares = mean(function(centred(by) if of is None else of, torch.square))
    shifted = add(squares, whole(Constant(origin=Origin(name="eps"), value=np.full(x.shape, epsilon, np.float32))))
    return multiply(x, function(shifted, torch.rsqrt))


def attention() -> dict[str, View]:
    """Two heads; factors on the queries, the scores and the values; what is added to scores and written over one; one
    whose scores are a layer's.
    """
    q, k, v = (heads(linear(name, X)) for name in "qkv")
    scores = product(q.scaled(2.0), k.pick(k.index.transpose(0, 2, 1))).scaled(0.25)
    matrix = scale(add(scores.reshape(-1, TOKENS), fixed(FEATURES * TOKENS, TOKENS)), [2] * TOKENS)
    low = whole(Constant(origin=Origin(name="low"), value=np.full((1, TOKENS), -np.inf, np.float32)))
    both = joined(matrix, low)
    over = np.where(np.tile(np.eye(TOKENS, k=1), (FEATURES, 1)), both.index[-1], both.index[:-1])
    biased = both.pick(over.astype(np.int64).reshape(FEATURES, TOKENS, TOKENS))
    x, weigh = linear("x", X), linear("weigh", X, 1)
    pooled = product(softmax(weigh.pick(weigh.index.T)).reshape(1, 1, TOKENS), x.reshape(1, TOKENS, FEATURES))
    return {"y": product(softmax(scores), v.scaled(3.0)), "biased": product(softmax(biased), v), "pooled": pooled}


def affine() -> dict[str, View]:
    """An input, padded and not; a sum that a layer and a mixture read; positions in front of a sum and the input."""
    normal = scale(add(X, fixed(TOKENS, FEATURES, alike=True)), [2, 3])
    both = add(scale(add(linear("a", X), X), [2, 3]), fixed(TOKENS, FEATURES, alike=True))
    return {
        "alike": linear("alike", normal),
        "padded": linear("padded", normal.pick(np.where(normal.index < FEATURES, -1, normal.index))),
        "input": linear("input", add(X, fixed(TOKENS, FEATURES))),
        "layer": linear("layer", both),
        "mixture": mixture("mixture", both),
        "positions": linear("positions", add(add(linear("b", X), X), fixed(TOKENS, FEATURES))),
    }


def order() -> dict[str, View]:
    """Tokens backwards: through a norm, a layer and sums with the same, with positions, a part; twice; with gaps."""
    x, y = linear("a", X), linear("b", X)
    back = x.pick(x.index[::-1])
    layer = linear("layer", norm(scale(back, [2, 3])))
    v = heads(linear("v", back))
    return {
        "sum": add(layer, back),
        "positions": add(back, fixed(TOKENS, FEATURES)),
        "otherwise": add(back, y),
        "part": mixture("part", back.pick(back.index[:2])),
        "twice": linear("twice", joined(back, x)),
        "gap": linear("gap", x.pick(x.index[[2, 0]])),
        "attention": whole(Attention(origin=Origin(name="heads"), q=v, k=v, v=v, scale=1)),
        "biased": whole(Attention(origin=Origin(name="biased"), q=v, k=v, v=v, scale=1, bias=BIAS)),
    }


def scales() -> dict[str, View]:
    """Behind a layer, a mixture, a norm, a layer that is also read without, another; an input; around a sum."""
    used, fused = linear("used", X), linear("fused", X, activation="relu")
    return {
        "layer": scale(linear("layer", X), [2, 3]),
        "mixture": scale(mixture("mixture", X), [2, 3]),
        "norm": scale(norm(X), [2, 3]),
        "scaled": scale(used, [2, 3]),
        "unscaled": used,
        "behind activation": scale(fused, [2, 3]),
        "input": scale(X, [2, 3]),
        "one": scale(scale(used, [2, -4]), [0.5, -0.25]),
        "between": scale(add(scale(linear("between", X), [2, 3]), fixed(TOKENS, FEATURES, alike=True)), [-1, 2]),
    }


def lone_scales() -> dict[str, View]:
    """One factor a feature, with a shift behind it, and one a token."""
    by_token = scale_by(linear("a", X), numbers(TOKENS, FEATURES))
    factor = scale(linear("b", X, activation="relu"), [2, 3])
    return {"y": add(factor, fixed(TOKENS, FEATURES, alike=True)), "by token": by_token}


def parts() -> dict[str, View]:
    """Over halves of tokens, which are heads that lie one after another; over columns that no two tokens share."""
    wide = linear("wide", X, 2 * FEATURES)
    halves = wide.index.reshape(TOKENS, 2, FEATURES)
    return {
        "halves": linear("halves", wide.pick(halves.reshape(-1, FEATURES))),
        "heads": linear("heads", wide.pick(halves[1:].transpose(1, 0, 2).reshape(-1, FEATURES))),
        "mixed": linear("mixed", wide.pick(halves.transpose(2, 0, 1).reshape(-1, 2))),
        "whole": linear("whole", wide),
    }


def columns() -> dict[str, View]:
    """Of a wider layer: some columns of all tokens, all columns of some tokens."""
    wide = linear("wide", X, 2 * FEATURES)
    return {
        "columns": linear("columns", wide.pick(wide.index[:, [3, 1]])),
        "experts": mixture("experts", wide.pick(wide.index[:, 1:3])),
        "rows": linear("rows", wide.pick(wide.index[1:])),
    }


def part_norms() -> dict[str, View]:
    """Of halves of a layer's tokens, with and without an activation; with a factor for each half."""
    wide, active = linear("wide", X, 2 * FEATURES), linear("active", X, 2 * FEATURES, activation="relu")
    parts = wide.index.reshape(TOKENS, 2, FEATURES)
    return {
        "heads": norm(wide.pick(parts.transpose(1, 0, 2).reshape(-1, FEATURES))),
        "activation": norm(active.reshape(-1, FEATURES)),
        "factors": scale_by(norm(wide.reshape(-1, FEATURES)), np.tile(numbers(2, FEATURES), (TOKENS, 1))),
        "whole": norm(linear("a", X)),
    }


def norms() -> dict[str, View]:
    """Read by a layer, by a mixture, and as it is; with and without the mean."""
    normal = norm(linear("first", X))
    rms = whole(replace(normal.node, centred=False))
    return {
        "layer": linear("layer", normal),
        "mixture": mixture("mixture", normal),
        "itself": normal,
        "rms": linear("rms", rms),
        "mixture by rms": mixture("mixture by rms", rms),
    }


def lone_norms() -> dict[str, View]:
    return {"y": norm(linear("first", X))}


def activations() -> dict[str, View]:
    """Of a layer, of a layer that is also read without it, of a layer that has one."""
    used = linear("used", X)
    return {
        "layer": activate(linear("layer", X)),
        "with": activate(used),
        "without": used,
        "second": activate(linear("first", X, activation="relu"), "gelu"),
    }


def constants() -> dict[str, View]:
    """Alike for all tokens and not; behind a norm, behind activations; onto a layer that is also read without."""
    used = linear("used", X)
    return {
        "alike": add(linear("a", X), fixed(TOKENS, FEATURES, alike=True)),
        "differs": add(fixed(TOKENS, FEATURES), linear("b", X)),
        "norm": add(norm(X), fixed(TOKENS, FEATURES, alike=True)),
        "behind activation": add(linear("c", X, activation="relu"), fixed(TOKENS, FEATURES, alike=True)),
        "clipped": add(linear("d", X, activation="relu6"), fixed(TOKENS, FEATURES)),
        "with": add(used, fixed(TOKENS, FEATURES)),
        "without": used,
    }


def tokens() -> dict[str, View]:
    """A class token before patches, the input itself, what is no layer over the input; another before positions."""
    patches = linear("patches", X)
    deep = linear("deep", linear("middle", X, activation="relu"))
    return {
        "patches": linear("a", joined(fixed(1, FEATURES), patches)),
        "input": linear("b", joined(X, fixed(1, FEATURES))),
        "deep": linear("c", joined(fixed(1, FEATURES), deep)),
        "again": linear(
            "d", joined(fixed(1, FEATURES), add(joined(fixed(1, FEATURES), patches), fixed(TOKENS + 1, FEATURES)))
        ),
    }


def gates() -> dict[str, View]:
    """Two layers; behind a ReLU and a GELU; of layers that are read elsewhere; the input's square; by a constant."""
    used, other, gelu = linear("used", X), linear("other", X), linear("gelu", X, activation="gelu")

    def times(a: View, b: View) -> View:
        return whole(Multiply(origin=Origin(name="times"), a=a, b=b))

    return {
        "layers": times(linear("a", X), linear("b", X)),
        "relu": times(linear("c", X, activation="relu"), X),
        "gelu": times(gelu, linear("d", X)),
        "neither": times(used, other),
        "square": times(X, X),
        "constant": times(fixed(TOKENS, FEATURES), X),
        "used": used,
        "other": other,
    }


def residuals() -> dict[str, View]:
    """Two layers; a layer and the input; layers that are read elsewhere too; one that clips."""
    used, other = linear("used", X), linear("other", X)
    return {
        "layers": add(linear("a", X), linear("b", X)),
        "input": add(X, linear("c", X)),
        "mixture": add(mixture("d", X), used),
        "neither": add(used, other),
        "clipped": add(linear("e", X, activation="relu6"), X),
        "used": used,
        "other": other,
    }


def key_biases() -> dict[str, View]:
    """Keys beside queries and values, by themselves, of two layers, read elsewhere, and that are values too."""
    qkv, k, read = linear("qkv", X, 3 * FEATURES), linear("k", X), linear("read", X)
    several = joined(linear("first", X).pick(X.index[:1]), linear("others", X).pick(X.index[1:]))
    parts = [heads(qkv.pick(qkv.index[:, first : first + FEATURES])) for first in (0, 2, 4)]

    def attended(name: str, q: View, k: View, v: View) -> View:
        return whole(Attention(origin=Origin(name=name), q=q, k=k, v=v, scale=1))

    return {
        "fused": attended("fused", *parts),
        "alone": attended("alone", heads(X), heads(k), heads(X)),
        "several": attended("several", heads(X), heads(several), heads(X)),
        "read elsewhere": attended("read elsewhere", heads(X), heads(read), heads(X)),
        "read": read,
        "values": attended("values", heads(X), *[heads(linear("kv", X))] * 2),
    }


def leftovers() -> dict[str, View]:
    """A function that is no activation, and what reads it."""
    x = linear("first", X)
    return {"function": multiply(x, function(x, torch.sin))}


def products() -> dict[str, View]:
    """A product and a softmax that are no attention, and what reads them."""
    x = linear("first", X)
    scores = product(heads(x), heads(x).pick(heads(x).index.transpose(0, 2, 1)))
    weights = softmax(x)
    fixed_product = product(heads(x), fixed(FEATURES, 1).reshape(FEATURES, 1, 1))
    return {
        "product": scores,
        "constant": fixed_product,
        "softmax": weights,
        "reader": linear("reader", weights),
    }


def before(x: View) -> View:
    """The token before each: nothing before the first."""
    return x.pick(np.concatenate([np.full((1, FEATURES), -1), x.index[:-1]]))


def patches(x: View) -> View:
    """Each token beside the one before it."""
    return x.pick(np.concatenate([before(x).index, x.index], axis=1))


def operands() -> dict[str, View]:
    """Columns of two layers, columns reversed, rows of two layers and of one, tokens in another order, beside one
    another, as features, as patches, heads of layers and of the input.
    """
    x, y = linear("a", X), linear("b", X)
    some = x.pick(x.index[1:])
    k, v = heads(joined(x, y, axis=1)), heads(linear("v", X, 2 * FEATURES))
    return {
        "joined": linear("joined", joined(x, y, axis=1)),
        "residual": linear("residual", x, residual=y.pick(y.index[:, ::-1])),
        "pieces": linear("pieces", joined(x.pick(x.index[:1]), y.pick(y.index[:2]))),
        "rows": linear("rows", some),
        "order": linear("order", x.pick(x.index[[2, 0, 2]]), residual=x.pick(x.index[::-1])),
        "beside": linear("beside", x.pick(x.index[[0, 1]].reshape(1, -1))),
        "transposed": linear("transposed", x.pick(x.index.T)),
        "patches": linear("patches", patches(x)),
        "maximum": whole(Maximum(origin=Origin(name="maximum"), x=(x, before(x)), pooled=True)),
        "mixture": mixture("mixture", some),
        "heads": whole(Attention(origin=Origin(name="heads"), q=heads(joined(X, X, axis=1)), k=k, v=v, scale=1)),
    }  # fmt: skip


EXAMPLES: dict[str, Callable[[], dict[str, View]]] = {
    example.__name__: example
    for example in (
        written, attention, products, order, scales, affine, parts, columns, part_norms, norms, lone_norms,
        lone_scales, activations, constants, tokens, gates, residuals, key_biases, leftovers, operands,
    )
}  # fmt: skip
