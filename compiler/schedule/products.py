"""Products with weights from memory."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.commands import FIELDS, Kind, Prologue, Residual
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import NORMALISED_FEATURES, Ints
from patchloom.compiler.machine.layout import stream_beats
from patchloom.compiler.node import Node
from patchloom.compiler.quantise.linear import Linear, identity
from patchloom.compiler.schedule.bands import COMMAND, spans
from patchloom.compiler.schedule.columns import extent
from patchloom.compiler.schedule.drafting import Drafting, Tensor, blocks, line_blocks
from patchloom.compiler.walk import Walk


@dataclass(frozen=True, eq=False)
class Side:
    """What a command multiplies of each row of a tensor: where its first chunk is, and each feature in its depth."""

    features: Ints  # of the product's
    positions: Ints
    chunk: int
    fields: dict[str, int]

    @property
    def depth(self) -> int:
        return extent(self.positions)

    def slices(self, config: Config) -> int:
        return -(-self.depth // config.inputs)


def products(
    d: Drafting, note: str, linear: Linear, a: Tensor, out: Tensor, *, first: int = 0, second: Tensor | None = None,
    residual: Residual = Residual.NONE,
) -> None:  # fmt: skip
    """Rows from `first` of a to all of out, by as many commands as it takes."""
    parts = list(blocks(out.rows, d.config.max_rows))
    for begin, rows in parts:
        part = note if len(parts) == 1 else f"{note}: rows {begin} to {begin + rows - 1}"
        product(
            d, part, linear, a, out, rows=rows, first=first + begin, o_first=begin, second=second, residual=residual
        )


def patches(
    d: Drafting, note: str, walk: Walk, linear: Linear, x: Tensor, out: Tensor, *,
    second: Tensor | None = None, residual: Residual = Residual.NONE,
) -> None:  # fmt: skip
    """Rows of x, each with its taps, to all of out."""
    at = walk.rows
    for first, rows, line in line_blocks(at.line, at.lines, d.config.max_rows):
        begin = walk.first + first // at.line * at.outer + first % at.line * at.step
        fields: dict[str, Any] = {"line": line, "a_stride": at.step * x.stride, "residual": residual}
        if line:
            fields |= {"a_outer": at.outer * x.stride, "o_outer": line * out.stride}
        if line and second is not None:
            fields["r_outer"] = line * second.stride
        part = f"{note}: rows {first} to {first + rows - 1}"
        product(d, part, linear, x, out, rows=rows, first=begin, o_first=first, second=second, walk=walk, **fields)


def product(
    d: Drafting, note: str, linear: Linear, a: Tensor, out: Tensor, *,
    rows: int, first: int = 0, o_first: int = 0, second: Tensor | None = None, walk: Walk | None = None, **fields: Any,
) -> None:  # fmt: skip
    """MATMULs with weights from memory: rows from `first` of a, or patches that begin there, to some of out.

    One, or one for each block of channels where the weights are zero outside of blocks.
    """
    _prove(d, note, linear)
    d.load_table(linear.table)
    by_row = linear.operand.normalise is not None or out.statistics is not None  # of all of its columns at once
    whole = by_row or bool(fields.get("row_maximum"))
    for channels, side in sides(linear, a, out, walk, d.config, rows, whole=whole):
        part = note if len(channels) == len(out.positions) else f"{note}: channels {channels[0]} to {channels[-1]}"
        begin, column = a.at(first), int(channels[0])
        places = {"a_address": (begin[0], begin[1] + side.chunk), "o_address": out.at(o_first, column)}
        if second is not None:
            places["r_address"] = second.at(o_first, column)
        if linear.operand.normalise is not None:
            assert a.statistics is not None
            places["a_statistics"] = a.statistics, first
        if out.statistics is not None:
            places["o_statistics"] = out.statistics, o_first
        block, here = linear.block(side.features, channels), out.positions[channels] - out.positions[column]
        d.draft(
            Kind.MATMUL, part, places, weights=(block, side.positions, here), rows=rows,
            **_fields(d.config, linear, a, out, second) | _sizes(d.config, linear, side, here) | side.fields | fields,
        )  # fmt: skip


def _fields(config: Config, linear: Linear, a: Tensor, out: Tensor, second: Tensor | None) -> dict[str, Any]:
    """Of every command of a product."""
    fields = {
        "a_stride": a.stride, "a_wide": int(linear.operand.format.width == ELEMENT_WIDTH), "a_packed": int(a.packed),
        "o_stride": out.stride, "o_wide": out.wide, "o_packed": int(out.packed),
        "post": linear.post, "post_shift": linear.post_shift, "b_digits": bounds.digits(config, linear.bits),
    }  # fmt: skip
    if second is not None:
        fields["r_stride"] = second.stride
    if linear.operand.normalise is not None:
        prologue = Prologue.NORMALISE if linear.operand.centred else Prologue.RMS
        fields |= {"prologue": prologue, **asdict(linear.operand.normalise)}
    return fields | {"statistics": int(out.statistics is not None)}


def _sizes(config: Config, linear: Linear, side: Side, here: Ints) -> dict[str, int]:
    depth, columns = side.depth, extent(here)
    beats = stream_beats(config, depth, columns, bounds.digits(config, linear.bits))
    return {"depth": depth, "columns": columns, "dma_beats": beats}


# --- Blocks of channels, each with the features that it needs ---


def sides(
    linear: Linear, a: Tensor, out: Tensor, walk: Walk | None, config: Config, rows: int, *, whole: bool
) -> Iterator[tuple[Ints, Side]]:
    """What takes the fewest cycles: all at once, if `whole`, or blocks of channels."""
    features = len(linear.matrix) // (1 if walk is None else len(walk.taps.places))
    edges = [0, *_chunk_starts(out, config), len(out.positions)] if not whole else [0, len(out.positions)]
    used = np.ones((features, len(out.positions)), np.bool_) if whole else _used(linear, features)
    cheapest: list[tuple[float, int]] = [(0.0, 0)]
    found: dict[bytes, Side] = {}

    def side_of(first: int, last: int) -> Side:
        needed = np.asarray(used[:, first:last].any(axis=1))
        key = needed.tobytes()
        if key not in found:
            found[key] = _side(a, walk, needed, config)
        return found[key]

    for j, last in enumerate(edges[1:], 1):
        best = np.inf, 0
        for i in range(j):
            columns = int(out.positions[last - 1] - out.positions[edges[i]]) + 1
            passes = side_of(edges[i], last).slices(config) * -(-columns // config.outputs)
            cost = cheapest[i][0] + passes * max(rows, config.inputs) + COMMAND * config.inputs
            best = min(best, (cost, i))
        cheapest.append(best)
    for i, j in spans([begin for _, begin in cheapest]):
        yield np.arange(edges[i], edges[j]), side_of(edges[i], edges[j])


def _chunk_starts(out: Tensor, config: Config) -> list[int]:
    """Channels, but for the first, with which a chunk of the result and a group of the array may begin together."""
    unit = np.lcm(out.chunk, config.outputs)
    return (np.flatnonzero(out.positions[1:] % unit == 0) + 1).tolist()


def _used(linear: Linear, features: int) -> NDArray[np.bool_]:
    """[features, channels] with a weight that is not zero for any tap."""
    nonzero = linear.matrix.reshape(-1, features, linear.matrix.shape[1]) != 0
    return np.asarray(nonzero.any(axis=0))


def _side(a: Tensor, walk: Walk | None, needed: NDArray[np.bool_], config: Config) -> Side:
    """The needed columns of each row, or of each tap, with what lies between them; one at least."""
    some = np.flatnonzero(needed) if needed.any() else np.zeros(1, np.int64)
    low, high = int(some[0]), int(some[-1]) + 1
    start = 0 if walk is None else walk.low
    here = a.positions[start + low : start + high]
    chunk = int(here[0]) // a.chunk
    here = here - chunk * a.chunk
    if walk is None:
        whole = Side(np.arange(low, high), here, chunk, {})
        combed = _combed(a, some, config)
        return whole if combed is None else min(whole, combed, key=lambda side: side.depth)
    taps, features = walk.taps, len(needed)
    which = (np.arange(taps.lines * taps.line)[:, None] * features + np.arange(low, high)).reshape(-1)
    ways = [Side(which, *way) for way in _ways(a, walk, here, chunk, config)]
    return min(ways, key=lambda side: side.depth)


def _combed(a: Tensor, some: Ints, config: Config) -> Side | None:
    """Columns in runs of chunks that are equally far apart."""
    chunks = a.positions[some] // a.chunk
    there = np.unique(chunks)
    size = int(np.argmax(np.diff(there, append=there[-1] + 2) != 1)) + 1
    starts = there[::size]
    jump = int(starts[1] - starts[0]) if len(starts) > 1 else 0
    expected = (starts[0] + jump * np.arange(len(starts))[:, None] + np.arange(size)).reshape(-1)
    run = -(-size * a.chunk // config.inputs)
    if not jump or not np.array_equal(there, expected) or run > FIELDS["a_run"].high or jump > FIELDS["a_jump"].high:
        return None
    which, place = np.divmod(a.positions[some] - starts[0] * a.chunk, jump * a.chunk)
    if int(starts[-2]) * a.chunk + run * config.inputs > a.stride * a.chunk:
        return None  # a run that is not the last would reach beyond the row
    return Side(some, which * run * config.inputs + place, int(starts[0]), {"a_run": run, "a_jump": jump})


def _ways(a: Tensor, walk: Walk, here: Ints, chunk: int, config: Config) -> Iterator[tuple[Ints, int, dict[str, int]]]:
    """All taps in one run; those of a line in one; or each tap a slice, or a run of its own."""
    taps, pitch = walk.taps, a.stride * a.chunk
    yield (taps.places[:, None] * pitch + here).reshape(-1), chunk, {}  # with all that lies between
    across = (np.arange(taps.line)[:, None] * taps.step * pitch + here).reshape(-1)
    run = -(-extent(across) // config.inputs)
    lines = np.arange(taps.lines)[:, None]
    most = {name: FIELDS[name].high for name in ("a_run", "a_jump", "a_step")}
    if taps.lines > 1 and run <= most["a_run"]:
        places = (lines * run * config.inputs + across).reshape(-1)
        yield places, chunk, {"a_run": run, "a_jump": taps.outer * a.stride}
    size = -(-extent(here) // config.inputs)
    places = (np.arange(taps.lines * taps.line)[:, None] * size * config.inputs + here).reshape(-1)
    inside = chunk * a.chunk + config.inputs <= pitch  # no slice but the last one reads beyond its token
    if size == 1 and inside and taps.line <= most["a_run"] and taps.step * a.stride <= most["a_step"]:
        yield places, chunk, {"a_run": taps.line, "a_step": taps.step * a.stride, "a_jump": taps.outer * a.stride}
    if taps.lines == 1 and size <= most["a_run"]:
        yield places, chunk, {"a_run": size, "a_jump": taps.step * a.stride}


def _prove(d: Drafting, note: str, linear: Linear) -> None:
    """No operand can make a channel's sum leave the accumulator."""
    sums = bounds.sums(bounds.streamed(linear.operand.format.width), linear.matrix, linear.bias)
    channel = int(sums.argmax())
    bits = bounds.signed_bits(int(sums[channel]))
    d.demand_accumulator(f"'{note}', channel {channel},", bits, "fewer bits for this layer")
    if linear.operand.normalise is not None:
        d.demand(f"'{note}': normalised features", len(linear.matrix), NORMALISED_FEATURES, "fewer features")


def make_normalisable(d: Drafting, node: Node) -> None:
    """Pass it through the array unchanged if its statistics are needed but not known, or its columns have gaps."""
    if node not in d.normalised or node in d.normalisable:
        return
    before, features = d.tensors[node], node.shape[1]
    after = d.buffer(f"{node.name} again", before.rows, np.arange(features), before.width)
    d.gather(node, after)
    products(d, f"{node.name}: statistics", identity(d.quantised.formats[node], features), before, after)
    if len(before.positions) == extent(before.positions):
        d.tensors[node] = after
