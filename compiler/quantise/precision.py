"""How many bits the user gives each layer."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from patchloom.compiler.quantise.errors import QuantiseError


@dataclass(frozen=True)
class Precision:
    """Bits of weights (4, 8, 16) and activations (8, 16); `overrides` are (name pattern, weights, activations)."""

    weights: int
    activations: int
    overrides: tuple[tuple[str, int, int], ...] = ()

    @staticmethod
    def parse(text: str, overrides: Mapping[str, str] | None = None) -> "Precision":
        """'w8a16', and per layer {fnmatch pattern of the node's name: 'w4a8'}; the last match counts."""
        layers = tuple((pattern, *_bits(layer)) for pattern, layer in (overrides or {}).items())
        return Precision(*_bits(text), layers)

    @staticmethod
    def stated(text: str) -> "Precision":
        """What `str` has made of one, as Programs keep it."""
        bits, _, layers = text.partition(", ")
        return Precision.parse(bits, dict(re.findall(r"(.+?): (w\d+a\d+)(?:, |$)", layers)))

    def of(self, name: str) -> tuple[int, int]:
        """(weight bits, activation bits) of the node `name`."""
        matches = [bits for pattern, *bits in self.overrides if fnmatchcase(name, pattern)]
        weights, activations = matches[-1] if matches else (self.weights, self.activations)
        return weights, activations

    def name_of(self, name: str) -> str:
        """Such as w8a16."""
        weights, activations = self.of(name)
        return f"w{weights}a{activations}"

    def __str__(self) -> str:
        layers = [f"{pattern}: w{weights}a{activations}" for pattern, weights, activations in self.overrides]
        return ", ".join([f"w{self.weights}a{self.activations}", *layers])

    def check(self, names: Iterable[str]) -> None:
        """Every pattern must match a name."""
        known = list(names)
        idle = [pattern for pattern, *_ in self.overrides if not any(fnmatchcase(name, pattern) for name in known)]
        if idle:
            patterns = ", ".join(f"'{pattern}'" for pattern in idle)
            raise QuantiseError(f"precision override {patterns} matches no layer; layers are {', '.join(known)}")


def _bits(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"w(4|8|16)a(8|16)", text)
    if not match:
        raise QuantiseError(f"precision must be w4, w8 or w16 with a8 or a16, e.g. w8a8, not {text!r}")
    return int(match[1]), int(match[2])
