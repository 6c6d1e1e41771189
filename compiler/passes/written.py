"""Activations and norms that are written out, known by what they compute.

First, while the operations that they consist of stand as users wrote them.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from patchloom.compiler.activations import FUNCTIONS
from patchloom.compiler.node import Floats, Node, View, float32, whole
from patchloom.compiler.nodes import Input, Matmul
from patchloom.compiler.nodes.captured import Activate, Add, Function, Multiply, Normalise
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.passes.trying import Probes, depends_alone, is_tried, places, run, sources

LEAST = 4096  # numbers that an activation is tried on
FEWEST = 512  # tokens that a norm is tried on
SPREAD = (-7, 5)  # their size, as powers of ten
TOLERANCE = 1e-5  # of the largest result, or of 1
NO_EPSILON = 1e-24  # in its place where none shows
MOST_BESIDE = 1e-5  # the root, that the square of it below the root can stand for
BESIDE = (
    "a norm that adds {0:.1g} to the deviation is compiled as one that adds its square to the variance (tokens of "
    "deviation d differ by {0:.1g} / d)"
)


def find_written(top: Add | Function | Multiply, _: Run) -> View | None:
    before = [*sources(top)]
    if not any(isinstance(node, Function | Multiply) for node in (top, *before)):
        return None
    for source in before:
        where = places(top, source) if depends_alone(top, source) else None
        if where is not None:
            x = View(((source, 1.0),), where)
            found = _as_activation(top, source, x) or (_as_norm(top, source, x) if isinstance(top, Multiply) else None)
            if found is not None:
                return found
    return None


# --- Activations ---


def _as_activation(top: Node, source: Node, x: View) -> View | None:
    rng = np.random.default_rng(0)
    probes = rng.uniform(-8, 8, (-(-LEAST // source.size), source.size))
    far = rng.random(probes.shape) < 0.1
    probes[far] *= 10.0 ** rng.integers(0, 6, int(far.sum()))
    actual = run(top, source, probes)
    if not np.isfinite(actual).all():
        return None
    operand = probes[:, x.index.reshape(-1)]
    for row in FUNCTIONS:
        expected = row(operand)
        factor = float((actual * expected).sum() / np.square(expected).sum())
        if factor and (np.abs(actual - factor * expected) <= TOLERANCE * abs(factor) * (1 + np.abs(expected))).all():
            return plain(_activated(top, source, x, row.name).scaled(float(f"{factor:.8g}")))
    return None


def _activated(top: Node, source: Node, x: View, activation: str) -> View:
    """Of all elements, where they have rows, then viewed."""
    if len(source.shape) == 2 and not isinstance(source, Input):
        return View(((Activate(origin=top.origin, x=whole(source), activation=activation), 1.0),), x.index)
    return whole(Activate(origin=top.origin, x=x, activation=activation))


# --- Norms ---


def _as_norm(top: Node, source: Node, x: View) -> View | None:
    for width in _widths(top):
        rows = x.reshape(-1, width)
        operand, actual = _tokens(top, source, rows)
        if not np.isfinite(actual).all():
            return None
        for centred in (True, False):
            fitted = _fitted(operand - operand.mean(axis=1, keepdims=True) if centred else operand, actual)
            if fitted is not None:
                gamma, epsilon, beside = fitted
                if beside:
                    warnings.warn(f"{top.origin}: {BESIDE.format(beside)}", stacklevel=2)
                made = Normalise(
                    origin=top.origin, x=rows, gamma=gamma, beta=np.zeros_like(gamma), epsilon=epsilon, centred=centred
                )
                return whole(made).reshape(*top.shape)
    return None


def _widths(top: Node) -> list[int]:
    """Of how many features means are taken: these may be what is normalised over."""
    layers = [node for node in sources(top) if isinstance(node, Matmul) and is_tried(node)]
    means = {node.x.shape[1] // node.shape[1]: None for node in layers}
    return [width for width in means if top.size % width == 0]


def _tokens(top: Node, source: Node, rows: View) -> tuple[Probes, Probes]:
    """Tokens of all sizes, and what becomes of them."""
    rng = np.random.default_rng(0)
    count, width = rows.shape
    times = -(-FEWEST // count)
    size = 10 ** rng.uniform(*SPREAD, (times, count, 1))
    tokens = size * (rng.standard_normal((times, count, width)) + rng.standard_normal((times, count, 1)))
    probes = np.ones((times, source.size))
    probes[:, rows.index.reshape(-1)] = tokens.reshape(times, -1)
    return tokens.reshape(-1, width), run(top, source, probes).reshape(-1, width)


def _fitted(x: Probes, actual: Probes) -> tuple[Floats, float, float] | None:
    """Gamma and epsilon by which gamma * x / sqrt(mean(x**2) + epsilon) is what it is; large tokens show the one.

    Also what is added beside the root instead, where it is so little that epsilon can stand for it.
    """
    power = np.square(x).mean(axis=1, keepdims=True)
    normal = x / np.sqrt(power)
    large = power[:, 0] > np.quantile(power, 0.9)
    gamma = (actual * normal)[large].sum(axis=0) / np.square(normal[large]).sum(axis=0)
    expected = gamma * normal
    share = (actual * expected).sum(axis=1, keepdims=True) / np.square(expected).sum(axis=1, keepdims=True)
    small = (share > 0.3) & (share < 0.95)
    epsilon = _typical(power * (share**-2 - 1), small)
    beside = _typical(np.sqrt(power) * (1 / share - 1), small)
    for root, apart in ((np.sqrt(power + epsilon), 0.0), (np.sqrt(power) + beside, beside)):
        fits = np.abs(actual - gamma * x / root) <= TOLERANCE * np.abs(gamma) * (1 + np.abs(normal))
        if fits.all() and gamma.any() and apart <= MOST_BESIDE:
            return float32(gamma), apart**2 or epsilon, apart
    return None


def _typical(values: Probes, where: NDArray[np.bool_]) -> float:
    return float(f"{np.median(values[where]):.6g}") if where.any() else NO_EPSILON


# --- Squares ---


def find_function(top: Function, at: Run) -> Node | View | None:
    """A square that is part of nothing else is the product of x with itself."""
    probes = torch.linspace(-9, 9, 1025, dtype=torch.float64)
    found = find_written(top, at)
    if found is None and torch.allclose(top.apply(probes), probes.square()):
        x = plain(top.x)
        return Multiply(origin=top.origin, a=x, b=x)
    return found


PASS = Pass("written", {Add: find_written, Multiply: find_written, Function: find_function})
