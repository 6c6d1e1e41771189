"""What several kinds of nodes compute in floats."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.node import Floats

Real = TypeVar("Real", np.float32, np.float64)


def normalise(x: Floats, epsilon: float | None, *, centred: bool = True) -> Floats:
    """Each row by its deviation, or by its root mean square if not `centred`; x itself without `epsilon`."""
    if epsilon is None:
        return x
    distance = x - x.mean(axis=1, keepdims=True) if centred else x
    power = np.square(distance).mean(axis=1, keepdims=True)
    normal: Floats = distance / np.sqrt(power + np.float32(epsilon))
    return normal


def softmax(x: NDArray[Real]) -> NDArray[Real]:
    """Along the last axis."""
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    shares: NDArray[Real] = exponents / exponents.sum(axis=-1, keepdims=True)
    return shares
