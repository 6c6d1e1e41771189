"""Operations as users write them, that no machine runs as they are: the passes turn them into the other kinds."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from patchloom.compiler.node import Floats, Node, View
from patchloom.compiler.origin import Origin


class Captured(Node):
    """Has no place in a `Graph`."""

    @property
    def settled(self) -> bool:
        return False


@dataclass(frozen=True, eq=False, kw_only=True)
class Opaque(Captured):
    """Stands for an operation that is reported as a problem, so that the rest can still be examined."""

    out_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.out_shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Normalise(Captured):
    """Layer normalisation of each row of x; that by the root mean square does not take away the mean."""

    x: View
    gamma: Floats = field(repr=False)  # a factor per feature
    beta: Floats = field(repr=False)
    epsilon: float
    centred: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Activate(Captured):
    x: View
    activation: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Function(Captured):
    """Of every element of x. If nothing becomes of it, it is refused with these words."""

    x: View
    apply: Callable[[Tensor], Tensor] = field(repr=False)
    text: str = "is not supported"
    hint: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Multiply(Captured):
    """a * b, element by element."""

    a: View
    b: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Scale(Captured):
    """x times a constant of the same shape."""

    x: View
    factor: Floats = field(repr=False)

    @classmethod
    def by(cls, factor: float, x: View, origin: Origin) -> "Scale":
        """Of one factor for all elements of a matrix."""
        return cls(origin=origin, x=x, factor=np.full(x.shape, factor, np.float32))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Captured):
    a: View
    b: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape


@dataclass(frozen=True, eq=False, kw_only=True)
class Product(Captured):
    """a @ b, both of rank 3 and both dependent on the inputs."""

    a: View
    b: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.a.shape[0], self.a.shape[1], self.b.shape[2]


@dataclass(frozen=True, eq=False, kw_only=True)
class Softmax(Captured):
    """Along the last dimension."""

    x: View

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape
