"""Where buffers lie in one memory, such that no two that live at the same time overlap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Span:
    """`size` units that are needed from command `first` to command `last`, both included."""

    name: str
    size: int
    first: int = -1
    last: int = -1
    address: int = -1

    def use(self, position: int) -> None:
        """Live at this command too."""
        self.first = position if self.first < 0 else min(self.first, position)
        self.last = max(self.last, position)

    def meets(self, other: "Span") -> bool:
        """Live at the same time at some command."""
        return self.first <= other.last and other.first <= self.last


Order = Callable[[Span], tuple[int, ...]]
ORDERS: tuple[Order, ...] = (
    lambda span: (-span.size, span.first),  # large first: small ones fill the gaps
    lambda span: (span.first - span.last, -span.size),  # long-lived first
    lambda span: (span.first, -span.size),  # as the commands come
)


def allocate(spans: Sequence[Span]) -> int:
    """Give each span its address by the best of a few greedy orders. Returns the units needed."""
    plans = [_plan(sorted(spans, key=order)) for order in ORDERS]
    needed, addresses = min(plans, key=lambda plan: plan[0])
    for span, address in addresses.items():
        span.address = address
    return needed


def _plan(spans: Sequence[Span]) -> tuple[int, dict[Span, int]]:
    """Each in turn into the tightest gap between those that live with it."""
    addresses: dict[Span, int] = {}
    for span in spans:
        taken = sorted((address, address + other.size) for other, address in addresses.items() if span.meets(other))
        addresses[span] = _tightest(taken, span.size)
    return max((address + span.size for span, address in addresses.items()), default=0), addresses


def _tightest(taken: list[tuple[int, int]], size: int) -> int:
    """Start of the smallest gap of at least `size`, else the end of all."""
    best, free = None, 0
    for start, end in taken:
        gap = start - free
        if gap >= size and (best is None or gap < best[0]):
            best = gap, free
        free = max(free, end)
    return free if best is None else best[1]
