"""Pieces that every fixed-latency pipeline here is made of."""

from collections.abc import Callable

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data

# Of a memory where what a read of a word gives while it is written does not matter: no logic need settle it.
UNCHECKED = {"no_rw_check": 1}


def delay(m: Module, value: Value, cycles: int, *, name: str) -> Value:
    """`value` as it was `cycles` ago."""
    if isinstance(value, data.View):
        layout = value.shape()
        return data.View(layout, Cat(delay(m, value[key], cycles, name=f"{name}_{key}") for key, _ in layout))
    for age in range(1, cycles + 1):
        value = register(m, value, name=f"{name}_{age}")
    return value


def register(m: Module, value: Value, *, name: str) -> Signal:
    """`value` one cycle later, as wide as its expression.

    A reset clears flags, one bit wide, so that nothing on its way has an effect; data it leaves alone, which saves a
    net to most of the machine's registers.
    """
    value = Value.cast(value)
    later = Signal(value.shape(), name=name, reset_less=len(value) > 1)
    m.d.sync += later.eq(value)
    return later


def shift_round(value: Value, shift: Value | int) -> Value:
    """Add half, shift right arithmetically (`compiler.fixed.shift_round`); `shift` may be 0."""
    return rounded(shifted(value, shift))


def shifted(value: Value, shift: Value | int) -> Value:
    """The first half of `shift_round`, for a register in between: one bit more than is wanted."""
    doubled = Cat(Const(0, 1), value)
    doubled = doubled.as_signed() if value.shape().signed else doubled
    return doubled >> shift


def shifted_in_two(m: Module, value: Value, shift: Value, *, name: str) -> Signal:
    """`shifted`, two cycles later: by eights, then by the rest."""
    eights = register(m, shifted(value, Cat(Const(0, 3), shift[3:])), name=f"{name}_eights")
    return register(m, eights >> register(m, shift[:3], name=f"{name}_rest"), name=name)


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


def multiply_by_constant(m: Module, value: Value, factor: Value, *, name: str) -> Signal:
    """`multiply` from adders, four bits of the factor at a time: for a factor that seldom changes."""
    parts = [
        register(m, product_of_logic(value, factor[low : low + 4]), name=f"{name}_{low}") << low
        for low in range(0, len(factor), 4)
    ]
    while len(parts) > 1:
        parts = [sum(parts[i + 1 : i + 2], parts[i]) for i in range(0, len(parts), 2)]
    return register(m, parts[0], name=name)


def square(m: Module, value: Value, *, name: str) -> Signal:
    """`value * value` two cycles later, from three multipliers of half its width."""
    half = len(value) // 2
    low, high = value[:half], value[half:].as_signed()
    squares = register(m, low * low, name=f"{name}_low"), register(m, high * high, name=f"{name}_high")
    mixed = register(m, high * low, name=f"{name}_mixed")
    total = squares[0] + (mixed << (half + 1)) + (squares[1] << (2 * half))
    return register(m, total, name=name)


def product_of_logic(value: Value, factor: Value) -> Value:
    """`value * factor` for a short unsigned `factor`, from adders: such products are not worth a multiplier."""
    terms: list[Value] = [Mux(bit, value << i, 0) for i, bit in enumerate(factor)]
    terms = [term.as_signed() for term in terms] if value.shape().signed else terms
    while len(terms) > 1:
        terms = [sum(terms[i + 1 : i + 2], terms[i]) for i in range(0, len(terms), 2)]
    return terms[0]


def add(a: Value, b: Value) -> Value:
    return a + b


def maximum(a: Value, b: Value) -> Value:
    return Mux(a > b, a, b)


def popcount(m: Module, bits: list[Value], *, name: str) -> tuple[Value, int]:
    return tree(m, [Value.cast(bit) for bit in bits], add, name=name)
