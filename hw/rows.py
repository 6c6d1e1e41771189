"""Where the rows of a command, and slices of a row, lie in the scratchpad."""

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Signal, Value

from patchloom.hw.pipeline import delay


def walk(
    m: Module, valid: Value, row: Value, line: Value, steps: Sequence[tuple[Value, Value]], bits: int, *,
    late: int, name: str,
) -> list[Signal]:  # fmt: skip
    """How far the row of a beat lies from the first one of some tensors, `late` cycles after the beat.

    Rows of valid beats are the same as before, the next one, or the first again; `line` of them make one line, or all
    if it is 0. Of each tensor `steps` are those from row to row and from line to line. `bits` are kept.
    """
    before = Signal(name=f"{name}_before", reset_less=True)  # the last row's lowest bit
    with m.If(valid):
        m.d.sync += before.eq(row[0])
    begins = delay(m, valid & (row == 0), late - 1, name=f"{name}_begins")
    moves = delay(m, valid & (row[0] != before), late - 1, name=f"{name}_moves")
    left = Signal(len(line), name=f"{name}_left", reset_less=True)  # rows of the line behind this one
    ends = Signal(name=f"{name}_ends")
    following = Mux(begins | ends, line - 1, left - 1)[: len(left)]
    with m.If(begins | moves):
        m.d.sync += [left.eq(following), ends.eq((following == 0) & (line != 0))]
    offsets = []
    for number, (stride, outer) in enumerate(steps):
        offset = Signal(bits, name=f"{name}_offset_{number}", reset_less=True)
        start = Signal(bits, name=f"{name}_start_{number}", reset_less=True)  # of the line
        beyond = (start + outer)[:bits]
        with m.If(begins):
            m.d.sync += [offset.eq(0), start.eq(0)]
        with m.Elif(moves & ends):
            m.d.sync += [offset.eq(beyond), start.eq(beyond)]
        with m.Elif(moves):
            m.d.sync += offset.eq(offset + stride)
        offsets.append(offset)
    return offsets
