"""Pieces that every fixed-latency pipeline here is made of."""

from collections.abc import Callable

from amaranth.hdl import Array, Cat, Const, Module, Mux, ShapeLike, Signal, Value
from amaranth.lib import data, memory

RING_CYCLES, RING_BITS = 6, 8  # from here on a memory is smaller than registers


def delay(m: Module, value: Value, cycles: int, *, name: str) -> Value:
    """`value` as it was `cycles` ago. Flags wait in registers, which a reset clears; much data in a memory."""
    if isinstance(value, data.View):
        return _delay_fields(m, value, cycles, name=name)
    if cycles >= RING_CYCLES and len(value) >= RING_BITS:
        return _ring(m, value, cycles, name=name)
    for age in range(1, cycles + 1):
        value = register(m, value, name=f"{name}_{age}")
    return value


def _delay_fields(m: Module, value: data.View, cycles: int, *, name: str) -> data.View:
    """Flags one by one, the others together."""
    fields = {key: Value.cast(value[key]) for key, _ in value.shape()}
    rest = delay(m, Cat(field for field in fields.values() if len(field) > 1), cycles, name=name)
    later, at = [], 0
    for key, field in fields.items():
        if len(field) == 1:
            later.append(delay(m, field, cycles, name=f"{name}_{key}"))
        else:
            later.append(rest[at : at + len(field)])
            at += len(field)
    return data.View(value.shape(), Cat(later))


def _ring(m: Module, value: Value, cycles: int, *, name: str) -> Value:
    """`delay` in a memory: a word is read in the cycle before its place is written again."""
    store = block_ram(value.shape(), cycles)
    m.submodules += store
    place = Signal(range(cycles), name=f"{name}_place")
    ahead = Signal(range(cycles), init=1, name=f"{name}_ahead")
    write = store.write_port()
    m.d.sync += [place.eq(ahead), ahead.eq(Mux(ahead == cycles - 1, 0, ahead + 1))]
    m.d.comb += [write.en.eq(1), write.addr.eq(place), write.data.eq(value)]
    return look_up(m, store, ahead, name=name)


def register(m: Module, value: Value, *, name: str) -> Signal:
    """`value` one cycle later, as wide as its expression.

    A reset clears flags, one bit wide, so that nothing on its way has an effect; data it leaves alone, which saves a
    net to most of the machine's registers.
    """
    value = Value.cast(value)
    later = Signal(value.shape(), name=name, reset_less=len(value) > 1)
    m.d.sync += later.eq(value)
    return later


def block_ram(shape: ShapeLike, depth: int) -> memory.Memory:
    """A memory for `look_up`; what a read of a word gives while it is written does not matter."""
    return memory.Memory(shape=shape, depth=depth, init=[], attrs={"no_rw_check": 1})


def look_up(m: Module, store: memory.Memory, address: Value, enable: Value | int = 1, *, name: str) -> Value:
    """The word at `address` one cycle later.

    Yosys heeds no_rw_check only where it finds a register behind an asynchronous port; beside a synchronous one it
    puts logic that gives the old word.
    """
    port = store.read_port(domain="comb")
    word = Signal(store.shape, name=name, reset_less=True)
    m.d.comb += port.addr.eq(address)
    with m.If(enable):
        m.d.sync += word.eq(port.data)
    return word


def shift_round(value: Value, shift: Value | int) -> Value:
    """Add half, shift right arithmetically (`compiler.machine.fixed.shift_round`); `shift` may be 0."""
    return rounded(shifted(value, shift))


def shifted(value: Value, shift: Value | int) -> Value:
    """The first half of `shift_round`, for a register in between: one bit more than is wanted."""
    doubled = Cat(Const(0, 1), value)
    doubled = doubled.as_signed() if value.shape().signed else doubled
    return doubled >> shift


def limited_shift(m: Module, value: Value, shift: Value, width: int, *, name: str) -> tuple[Value, Value]:
    """(`shift_round` limited to `width` bits, whether that changed it), two cycles later and before the third.

    By less than eight first, so that of the shift by eights nothing is made but the bits that can be kept, and whether
    there are more.
    """
    fine = register(m, shifted(value, shift[:3]), name=f"{name}_fine")
    eights = register(m, shift[3:], name=f"{name}_by")
    kept = width + 2  # a bit below for rounding; a bit above tells a value next to the limit from one beyond
    positive = fine.as_unsigned() ^ fine[-1].replicate(len(fine))
    beyond = Array(positive[8 * k + kept - 1 :].any() for k in range(1 << len(eights)))[eights]
    near = register(m, (fine >> Cat(Const(0, 3), eights))[:kept].as_signed(), name=f"{name}_near")
    far = register(m, Cat(beyond, fine[-1]), name=f"{name}_far")
    high = (1 << width - 1) - 1
    limited, changed = clip(rounded(near), -high - 1, high)
    return Mux(far[0], Mux(far[1], -high - 1, high), limited)[:width].as_signed(), changed | far[0]


def rounded(value: Value) -> Value:
    """The second half of `shift_round`."""
    return (value + 1) >> 1


def clip(value: Value, low: int, high: int) -> tuple[Value, Value]:
    """(`value` limited to low..high, whether that changed it)."""
    over, under = value > high, value < low
    limited = Mux(over, high, Mux(under, low, value))
    width = max(high.bit_length(), (-low - 1).bit_length()) + 1
    return limited[:width].as_signed(), over | under


def tree(m: Module, terms: list[Value], combine: Callable[[Value, Value], Value], *, name: str) -> tuple[Value, int]:
    """Combine all terms, two by two, a register after each level. Returns (result, latency)."""
    latency = 0
    while len(terms) > 1:
        pairs = [combine(*terms[i : i + 2]) if i + 1 < len(terms) else terms[i] for i in range(0, len(terms), 2)]
        terms = [register(m, pair, name=f"{name}_{latency}_{i}") for i, pair in enumerate(pairs)]
        latency += 1
    return terms[0], latency


def tree_latency(terms: int) -> int:
    """Cycles that `tree` takes."""
    return (terms - 1).bit_length()


def multiply(m: Module, value: Value, factor: Value, limb: int, *, name: str) -> Signal:
    """`value * factor` two cycles later: `limb` bits of the value in each multiplier, then their sum."""
    parts: list[Value] = []
    for low in range(0, len(value), limb):
        part = value[low : low + limb]
        top = low + limb >= len(value) and value.shape().signed
        parts.append(register(m, (part.as_signed() if top else part) * factor, name=f"{name}_{low}") << low)
    return register(m, sum(parts[1:], parts[0]), name=name)


def square(m: Module, value: Value, *, name: str) -> Signal:
    """`value * value` two cycles later, from three multipliers of half its width."""
    half = len(value) // 2
    low, high = value[:half], value[half:].as_signed()
    squares = register(m, low * low, name=f"{name}_low"), register(m, high * high, name=f"{name}_high")
    mixed = register(m, high * low, name=f"{name}_mixed")
    total = squares[0] + (mixed << (half + 1)) + (squares[1] << (2 * half))
    return register(m, total, name=name)


def running(
    m: Module, value: Value, first: Value, combine: Callable[[Value, Value], Value], shape: ShapeLike, *, name: str
) -> Signal:
    """All values from the last `first` on combined, a cycle later."""
    total = Signal(shape, name=name, reset_less=True)
    m.d.sync += total.eq(Mux(first, value, combine(total, value)))
    return total


def add(a: Value, b: Value) -> Value:
    return a + b


def maximum(a: Value, b: Value) -> Value:
    return Mux(a > b, a, b)


def popcount(m: Module, bits: list[Value], *, name: str) -> tuple[Value, int]:
    return tree(m, [Value.cast(bit) for bit in bits], add, name=name)
