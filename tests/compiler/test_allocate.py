"""No two spans that live together overlap, and little is wasted."""

from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.allocate import Span, allocate

spans = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 20), st.integers(0, 10)).map(
        lambda t: Span("s", t[0], t[1], t[1] + t[2])
    ),
    max_size=30,
)


@settings(deadline=None)
@given(spans)
def test_never_overlaps(several):
    needed = allocate(several)
    assert needed == max((s.address + s.size for s in several), default=0)
    for i, a in enumerate(several):
        assert a.address >= 0
        for b in several[:i]:
            apart = a.address + a.size <= b.address or b.address + b.size <= a.address
            assert apart or not a.meets(b)


@settings(deadline=None)
@given(spans)
def test_never_worse_than_no_reuse_nor_better_than_what_lives(several):
    needed = allocate(several)
    alive = [sum(s.size for s in several if s.first <= t <= s.last) for t in range(31)]
    assert max(alive) <= needed <= sum(s.size for s in several)


def test_reuses_what_is_dead():
    several = [Span("a", 10, 0, 1), Span("b", 10, 2, 3), Span("c", 4, 1, 2)]
    assert allocate(several) == 14


def test_use_widens_the_life():
    span = Span("a", 1)
    for position in (7, 3, 5):
        span.use(position)
    assert (span.first, span.last) == (3, 7)
