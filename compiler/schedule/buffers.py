"""Where buffers lie in one memory, such that no two that live at the same time overlap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate


def aligned(size: int, unit: int) -> int:
    """The next multiple of the unit."""
    return -(-size // unit) * unit


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


def alive(spans: Sequence[Span]) -> list[int]:
    """Units that live at each command."""
    change = [0] * (max((span.last for span in spans), default=-1) + 2)
    for span in spans:
        change[span.first] += span.size
        change[span.last + 1] -= span.size
    return list(accumulate(change))


def allocate(spans: Sequence[Span], room: int = 0) -> int:
    """Give each span its address by the best of a few greedy orders. Returns the units needed.

    Spans that do not begin at 0 end at the end: of what lives, first, then of `room`.
    """
    least = max(alive(spans))
    needed, addresses = min((_plan(sorted(spans, key=order)) for order in ORDERS), key=lambda plan: plan[0])
    for end in (least, room):
        for order in ORDERS if least <= end < needed else ():
            plan = _plan(sorted(spans, key=order), end)
            needed, addresses = min((needed, addresses), plan, key=lambda plan: plan[0])
    for span, address in addresses.items():
        span.address = address
    return needed


def _plan(spans: Sequence[Span], end: int = 0) -> tuple[int, dict[Span, int]]:
    """Each in turn into the tightest gap between those that live with it, the one before `end` included."""
    addresses: dict[Span, int] = {}
    for span in spans:
        taken = sorted((address, address + other.size) for other, address in addresses.items() if span.meets(other))
        addresses[span] = _tightest(taken, span.size, end)
    return max((address + span.size for span, address in addresses.items()), default=0), addresses


def _tightest(taken: list[tuple[int, int]], size: int, end: int) -> int:
    """Start of the smallest gap of at least `size`, but the end of the last one; else the end of all."""
    best, free = None, 0
    for start, after in taken:
        gap = start - free
        if gap >= size and (best is None or gap < best[0]):
            best = gap, free
        free = max(free, after)
    gap = end - free
    if gap >= size and (best is None or gap < best[0]):
        best = gap, end - size if free else 0
    return free if best is None else best[1]
