"""No two spans that live together overlap, and little is wasted."""

from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.compiler.schedule.buffers import Span, alive, allocate

spans = st.lists(
    st.tuples(st.integers(1, 50), st.integers(0, 20), st.integers(0, 10)).map(
        lambda t: Span("s", t[0], t[1], t[1] + t[2])
    ),
    max_size=30,
)


@settings(deadline=None)
@given(spans, st.integers(0, 400))
def test_never_overlaps(several, room):
    needed = allocate(several, room)
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
    living = [sum(s.size for s in several if s.first <= t <= s.last) for t in range(31)]
    assert max(living) <= needed <= sum(s.size for s in several)
    assert max(alive(several)) == max(living)


def test_reuses_what_is_dead():
    several = [Span("a", 10, 0, 1), Span("b", 10, 2, 3), Span("c", 4, 1, 2)]
    assert allocate(several) == 14


def test_what_lives_on_goes_from_end_to_end():
    """A tensor after another, and a large one in the time of each: without holes only if they take turns."""
    several = [
        span for i in range(6) for span in (Span(f"x{i}", 6, 3 * i, 3 * i + 4), Span("t", 12, 3 * i + 2, 3 * i + 2))
    ]
    assert alive(several)[:6] == [6, 6, 18, 12, 12, 18]
    assert allocate(several) == 18


def test_use_widens_the_life():
    span = Span("a", 1)
    for position in (7, 3, 5):
        span.use(position)
    assert (span.first, span.last) == (3, 7)
