"""What several kinds of nodes compute in floats."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.node import Floats

Real = TypeVar("Real", np.float32, np.float64)


def normalise(x: Floats, epsilon: float | None) -> Floats:
    """Layer normalisation of each row, without scale and shift; x itself without `epsilon`."""
    if epsilon is None:
        return x
    centred = x - x.mean(axis=1, keepdims=True)
    variance = np.square(centred).mean(axis=1, keepdims=True)
    normal: Floats = centred / np.sqrt(variance + np.float32(epsilon))
    return normal


def softmax(x: NDArray[Real]) -> NDArray[Real]:
    """Along the last axis."""
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: NDArray[Real] = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares
