"""Activations and norms that are written out, known by what they compute.

First, while the operations that they consist of stand as users wrote them.
"""

import numpy as np
import torch

from patchloom.compiler.activations import FUNCTIONS
from patchloom.compiler.node import Floats, Node, View, float32, whole
from patchloom.compiler.nodes import Input, Matmul
from patchloom.compiler.nodes.captured import Activate, Add, Function, Multiply, Normalise
from patchloom.compiler.passes.engine import Pass, Run
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.passes.trying import Probes, places, run, sources

LEAST = 4096  # numbers that an activation is tried on
FEWEST = 512  # tokens that a norm is tried on
SPREAD = (-7, 5)  # their size, as powers of ten
TOLERANCE = 1e-5  # of the largest result, or of 1
NO_EPSILON = 1e-24  # in its place where none shows


def find_written(top: Add | Function | Multiply, _: Run) -> View | None:
    for source in sources(top):
        where = places(top, source)
        if where is None:
            continue
        x = View(((source, 1.0),), where)
        found = _as_activation(top, source, x)
        if found is None and isinstance(top, Multiply) and isinstance(source.shape, tuple):
            found = _as_norm(top, source, x)
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
    if actual is None or not np.isfinite(actual).all():
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
        if actual is None or not np.isfinite(actual).all():
            return None
        for centred in (True, False):
            fitted = _fitted(operand - operand.mean(axis=1, keepdims=True) if centred else operand, actual)
            if fitted is not None:
                gamma, epsilon = fitted
                made = Normalise(
                    origin=top.origin, x=rows, gamma=gamma, beta=np.zeros_like(gamma), epsilon=epsilon, centred=centred
                )
                return whole(made).reshape(*top.shape)
    return None


def _widths(top: Node) -> list[int]:
    """Of how many features means are taken: these may be what is normalised over."""
    means = {node.x.shape[1]: None for node in sources(top) if isinstance(node, Matmul) and node.shape[1] == 1}
    return [width for width in means if top.size % width == 0]


def _tokens(top: Node, source: Node, rows: View) -> tuple[Probes, Probes | None]:
    """Tokens of all sizes, and what becomes of them."""
    rng = np.random.default_rng(0)
    count, width = rows.shape
    times = -(-FEWEST // count)
    size = 10 ** rng.uniform(*SPREAD, (times, count, 1))
    tokens = size * (rng.standard_normal((times, count, width)) + rng.standard_normal((times, count, 1)))
    probes = np.ones((times, source.size))
    probes[:, rows.index.reshape(-1)] = tokens.reshape(times, -1)
    actual = run(top, source, probes)
    return tokens.reshape(-1, width), None if actual is None else actual.reshape(-1, width)


def _fitted(x: Probes, actual: Probes) -> tuple[Floats, float] | None:
    """Gamma and epsilon by which gamma * x / sqrt(mean(x**2) + epsilon) is what it is; large tokens show the one."""
    power = np.square(x).mean(axis=1, keepdims=True)
    normal = x / np.sqrt(power)
    large = power[:, 0] > np.quantile(power, 0.9)
    gamma = (actual * normal)[large].sum(axis=0) / np.square(normal[large]).sum(axis=0)
    expected = gamma * normal
    share = np.square((actual * expected).sum(axis=1) / np.square(expected).sum(axis=1))
    small = (share > 0.1) & (share < 0.9)
    epsilon = float(np.median(power[small, 0] * (1 / share[small] - 1))) if small.any() else NO_EPSILON
    expected = gamma * x / np.sqrt(power + epsilon)
    fits = np.abs(actual - expected) <= TOLERANCE * np.abs(gamma) * (1 + np.abs(normal))
    return (float32(gamma), float(f"{epsilon:.6g}")) if fits.all() and gamma.any() else None


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
