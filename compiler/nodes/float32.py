"""What several kinds of nodes compute in floats."""

import numpy as np

from patchloom.compiler.node import Floats


def normalise(x: Floats, epsilon: float | None) -> Floats:
    """Layer normalisation of each row, without scale and shift; x itself without `epsilon`."""
    if epsilon is None:
        return x
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    normal: Floats = centred / np.sqrt(variance + np.float32(epsilon))
    return normal


def softmax(x: Floats) -> Floats:
    """Along the last axis."""
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: Floats = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares
