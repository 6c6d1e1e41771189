"""From a quantised graph to a Program: commands in order, addresses, memory image.

Every node type has one function that drafts its commands (`_DRAFTS`). Drafts name buffers, not addresses: once
all commands of a task are known, so are the buffers' lifetimes, and `allocate` places them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

from patchloom.compiler.allocate import Span, alive, allocate
from patchloom.compiler.graph import Graph, Node
from patchloom.compiler.machine import bounds
from patchloom.compiler.machine.bounds import digits
from patchloom.compiler.machine.commands import (
    COMMAND_BYTES,
    Command,
    Kind,
    Prologue,
    Queue,
    Residual,
    RowScale,
    Space,
    Stationary,
)
from patchloom.compiler.machine.config import BIAS_WIDTH, Config
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.fixed import NORMALISED_FEATURES, SUM_WIDTH, Ints
from patchloom.compiler.machine.layout import Weights, pack, stream_beats
from patchloom.compiler.machine.program import Buffer, Port, Program, Segment, Task, command_table
from patchloom.compiler.machine.verify import verify
from patchloom.compiler.nodes import Attention, Constant, Input, Matmul, Moe, Output
from patchloom.compiler.nodes.attention import AttentionNumbers
from patchloom.compiler.nodes.moe import MoeNumbers
from patchloom.compiler.quantise import Quantised
from patchloom.compiler.quantise.formats import Format
from patchloom.compiler.quantise.linear import Linear, identity

ALIGNMENT = 64  # bytes: a whole beat of the widest bus


class ScheduleError(Error, ValueError):
    """A graph that the machine has no commands for."""


class FitError(Error, ValueError):
    """Everything that does not fit the Config, one per line."""


def schedule(quantised: Quantised, config: Config) -> Program:
    """Raises `FitError` with all that does not fit, `ScheduleError` for what no Config could run."""
    image = Image(config, len(quantised.graphs))
    problems: dict[str, None] = {}
    tasks = [_task(quantised, graph, config, image, problems) for graph in quantised.graphs]
    if problems:
        raise FitError("\n".join(problems))
    data = command_table(config, [task.commands for task in tasks]).ljust(image.base, b"\0")
    pitch = config.command_depth * COMMAND_BYTES
    tables = [Segment(f"commands of {task.name}", i * pitch, pitch) for i, task in enumerate(tasks)]
    segments = (*tables, *image.segments)
    program = Program(config, str(quantised.precision), tuple(tasks), data + b"".join(image.parts), segments)
    verify(program)
    return program


def does_not_fit(what: str, need: int, have: int, remedy: str) -> str:
    return f"does not fit: {what} needs {need}, has {have}; try {remedy}"


def _aligned(size: int, unit: int = ALIGNMENT) -> int:
    return -(-size // unit) * unit


# --- The memory image ---


class Image:
    """Weight and constant segments behind the command tables; equal contents are stored once."""

    def __init__(self, config: Config, tasks: int) -> None:
        self.config = config
        self.base = self.end = _aligned(tasks * config.command_depth * COMMAND_BYTES)
        self.parts: list[bytes] = []
        self.segments: list[Segment] = []
        self.names: Counter[str] = Counter()
        self.known: dict[bytes, int] = {}
        self.packed: dict[object, tuple[Linear, int]] = {}

    def add(self, name: str, data: bytes) -> int:
        """Its address."""
        digest = blake2b(data).digest()
        if digest not in self.known:
            padded = data.ljust(_aligned(len(data)), b"\0")
            self.known[digest] = self.end
            self.names[name] += 1
            label = name if self.names[name] == 1 else f"{name} #{self.names[name]}"  # another task's
            self.segments.append(Segment(label, self.end, len(padded)))
            self.parts.append(padded)
            self.end += len(padded)
        return self.known[digest]

    def linear(self, name: str, linear: Linear, rows: Ints, columns: Ints) -> int:
        """Address of a product's weights, whose features and channels lie at `rows` and `columns`."""
        key = id(linear), rows.tobytes(), columns.tobytes()
        if key not in self.packed:
            data = pack(self.config, _laid_out(linear, rows, columns), digits(self.config, linear.bits))
            self.packed[key] = linear, self.add(name, data)
        return self.packed[key][1]


def _laid_out(linear: Linear, rows: Ints, columns: Ints) -> Weights:
    """Zeros wherever the layout has no feature or channel."""
    matrix = np.zeros((extent(rows), extent(columns)), np.int64)
    matrix[np.ix_(rows, columns)] = linear.matrix
    channels = np.zeros((3, extent(columns)), np.int64)
    channels[:, columns] = linear.bias, linear.multiplier, linear.shift
    return Weights(matrix, *channels)


# --- Where columns lie ---


def extent(positions: Ints) -> int:
    """Columns of a stored row, gaps included."""
    return int(positions.max()) + 1


def packed(graph: Graph, formats: Mapping[Node, Format], lanes: int) -> set[Node]:
    """Tensors of 8 bits that products write, gaps included, and that nothing but products reads, as they stream."""
    nodes = list(graph.nodes())
    others = {x for node in nodes for x in node.inputs if not _streams(node, x)}
    return {
        node
        for node in nodes
        if isinstance(node, Matmul | Attention) and formats[node].width == 8 and node not in others
        if (node.residual is None if isinstance(node, Matmul) else -(-node.value_dim // lanes) % 2 == 0)
    }


def _streams(node: Node, x: Node) -> bool:
    """Whether it reads x as nothing but its streamed operand."""
    if isinstance(node, Attention):
        return x is node.q and x is not node.k and x is not node.v
    return isinstance(node, Matmul) and node.epsilon is None and x is not node.residual


def layouts(graph: Graph, lanes: int, halved: AbstractSet[Node] = frozenset()) -> dict[Node, Ints]:
    """Position of every column of every tensor, such that each attention head starts a chunk; `halved` are packed."""
    nodes = [node for node in graph.nodes() if not isinstance(node, Output)]
    starts: dict[Node, set[int]] = {node: set() for node in nodes}
    chains = {node: [node] for node in nodes}  # tensors that residual adds align column by column
    for node in nodes:
        for tensor, columns, _ in _heads(node):
            starts[tensor].update(columns)
        if isinstance(node, Matmul | Moe) and node.residual is not None and chains[node] is not chains[node.residual]:
            chains[node] += chains[node.residual]
            for member in chains[node.residual]:
                chains[member] = chains[node]
    out = {node: _positions(chains[node], starts, lanes << (node in halved)) for node in nodes}
    for node in nodes:
        _check_heads(node, out)
    return out


def _heads(node: Node) -> Iterator[tuple[Node, tuple[int, ...], int]]:
    """(tensor, first column of each head, columns of a head) that a node reads."""
    if isinstance(node, Attention):
        yield node.q, node.q_columns, node.head_dim
        yield node.k, node.k_columns, node.head_dim
        yield node.v, node.v_columns, node.value_dim


def _positions(chain: list[Node], starts: dict[Node, set[int]], chunk: int) -> Ints:
    features = chain[0].shape[1]
    cuts = {0}.union(*(starts[node] for node in chain))
    for node in chain:
        if isinstance(node, Attention):  # its heads are written chunk by chunk
            cuts.update(range(0, features, node.value_dim))
    return _spread(features, cuts, chunk)


def _spread(features: int, cuts: set[int], chunk: int) -> Ints:
    """Positions of columns; each of `cuts` begins a chunk."""
    positions, free = np.zeros(features, np.int64), 0
    edges = [*sorted(cuts), features]
    for first, last in pairwise(edges):
        positions[first:last] = free + np.arange(last - first)
        free = _aligned(free + last - first, chunk)
    return positions


def _check_heads(node: Node, positions: dict[Node, Ints]) -> None:
    for tensor, columns, width in _heads(node):
        for column in columns:
            here = positions[tensor][column : column + width]
            if len(here) < width or here[-1] - here[0] != width - 1:
                raise ScheduleError(f"attention '{node.name}' reads heads that overlap in '{tensor.name}'")


# --- Drafts ---


@dataclass(eq=False)
class Draft:
    """A command whose addresses are still places: (span, units from its start). Weights are not yet in the image."""

    kind: Kind
    note: str
    fields: dict[str, Any]
    places: dict[str, tuple[Span, int]]
    weights: tuple[Linear, Ints, Ints] | None = None  # with the positions of its features and channels

    def command(self, image: Image) -> Command:
        addresses: dict[str, Any] = {name: span.address + offset for name, (span, offset) in self.places.items()}
        if self.weights is not None:
            addresses["dma_address"] = image.linear(self.note, *self.weights)
        return Command(kind=self.kind, **self.fields, **addresses)


@dataclass(eq=False)
class Tensor:
    """A node's result in the scratchpad, and its rows' statistics if a reader normalises it."""

    span: Span
    rows: int
    positions: Ints
    chunk: int  # elements
    width: int
    packed: bool = False
    statistics: Span | None = None

    @property
    def stride(self) -> int:
        return -(-extent(self.positions) // self.chunk)

    def at(self, row: int = 0, column: int = 0) -> tuple[Span, int]:
        """The column begins a chunk."""
        return self.span, row * self.stride + int(self.positions[column]) // self.chunk


def _blocks(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the fewest equal blocks."""
    size = -(-rows // -(-rows // most))
    for first in range(0, rows, size):
        yield first, min(size, rows - first)


@dataclass(eq=False)
class Drafting:
    """Drafts the commands of one task.

    Where memory is short, `cuts` says how often something is cut: an attention into its heads if they can be
    computed one by one, then each time its queries in two; an input's rows in two.
    """

    quantised: Quantised
    graph: Graph
    config: Config
    image: Image
    cuts: Mapping[Node, int]
    drafts: list[Draft] = field(default_factory=list)
    tensors: dict[Node, Tensor] = field(default_factory=dict)
    normalisable: dict[Node, Tensor] = field(default_factory=dict)  # with statistics and without gaps
    spans: list[Span] = field(default_factory=list)
    statistics: list[Span] = field(default_factory=list)
    divisible: dict[Span, Node] = field(default_factory=dict)  # what another cut of the node makes smaller
    waiting: dict[Node, int] = field(default_factory=dict)  # inputs that are loaded part by part: their bytes
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    stored: dict[tuple[Node, int, int], int] = field(default_factory=dict)
    input_bytes: int = 0
    output_bytes: int = 0
    experts: list[tuple[int, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unread: Counter[Node] = field(default_factory=Counter)  # reads of a node that are still to come

    def run(self) -> None:
        self.packed = packed(self.graph, self.quantised.formats, self.config.lanes)
        self.layouts = layouts(self.graph, self.config.lanes, self.packed)
        self.normalised = {
            n.x for n in self.graph.nodes() if isinstance(n, Matmul | Moe) and n.epsilon is not None
        }  # fmt: skip
        self.readers = Counter(x for node in self.graph.nodes() for x in node.inputs)
        self.unread.update(self.readers)
        self.separable = {n for n in self.graph.nodes() if isinstance(n, Attention) and self.separates(n)}
        self.by_head = self.separable & self.cuts.keys()
        late = {x for node in self.by_head for x in node.inputs}  # are computed head by head
        self.draft(Kind.BEGIN, f"task {self.graph.task}", epsilon=self.config.fingerprint)
        for node in self.graph.nodes():
            if node in late:
                continue
            self.unread.subtract(node.inputs)
            for x in late.intersection(node.inputs):
                self.unread.subtract(x.inputs)
            _DRAFTS[type(node)](self, node)
            self.make_normalisable(node)
        self.draft(Kind.END, "done")
        self.drafts[0].fields["rows"] = len(self.drafts)

    def draft(
        self,
        kind: Kind,
        note: str,
        places: dict[str, tuple[Span, int]] | None = None,
        *,
        weights: tuple[Linear, Ints, Ints] | None = None,
        **fields: Any,
    ) -> None:
        for span, _ in (places or {}).values():
            span.use(len(self.drafts))
        self.drafts.append(Draft(kind, note, fields, places or {}, weights))

    def demand(self, what: str, need: int, have: int, remedy: str) -> None:
        if need > have:
            self.problems.append(does_not_fit(what, need, have, remedy))

    def demand_accumulator(self, what: str, bits: int, narrower: str) -> None:
        remedy = f"Config(accumulator_width={bits})" if bits <= BIAS_WIDTH else narrower
        self.demand(f"accumulator of {what}", bits, self.config.accumulator_width, remedy)

    # Cuts

    def separates(self, node: Attention) -> bool:
        """Its operands can be computed head by head: nothing else reads them, each column is one head's."""

        def alone(x: Node) -> bool:
            heads = [(tensor, first, width) for tensor, starts, width in _heads(node) for first in starts]
            columns = sorted(c for y, first, width in heads if y is x for c in range(first, first + width))
            unshared = self.readers[x] == node.inputs.count(x) and columns == list(range(x.shape[1]))
            return unshared and isinstance(x, Matmul) and x.residual is None

        return len(node.q_columns) > 1 and all(alone(x) for x in node.inputs)

    def most_rows(self, node: Node) -> int:
        """That one command takes of an attention's queries, or of an input."""
        cuts = self.cuts.get(node, 0) - (node in self.by_head)
        return min(-(-node.shape[0] // (1 << cuts)), self.config.max_rows if isinstance(node, Attention) else 1 << 16)

    def cuttable(self, node: Node, *tensors: Tensor) -> None:
        """Another cut of the node makes these smaller."""
        self.divisible |= {tensor.span: node for tensor in tensors}

    # Buffers

    def buffer(self, name: str, rows: int, positions: Ints, width: int, *, packed: bool = False) -> Tensor:
        span = Span(name, 0)
        self.spans.append(span)
        out = Tensor(span, rows, positions, self.config.lanes << packed, width, packed)
        span.size = self.whole_beats(rows * out.stride)
        return out

    def tensor(self, node: Node, *, gathers: bool, over: Tensor | None = None) -> Tensor:
        """A node's buffer, or `over` another one's. `gathers`: its commands see whole rows, hence their statistics."""
        if over is None:
            form, here = self.quantised.formats[node], self.layouts[node]
            out = self.buffer(node.name, node.shape[0], here, form.width, packed=node in self.packed)
        else:
            out = replace(over, statistics=None)
            out.span.name += f", {node.name}"
        if gathers and node in self.normalised and extent(out.positions) == node.shape[1]:
            self.gather(node, out)
        self.tensors[node] = out
        return out

    def free(self, residual: Node | None, x: Tensor | None) -> Tensor | None:
        """The residual of a product of x, if its sum may take its place: nothing will read it any more."""
        if residual is None or self.unread[residual] or (x and self.tensors[residual].span is x.span):
            return None
        return self.tensors[residual]

    def gather(self, node: Node, tensor: Tensor) -> None:
        tensor.statistics = Span(node.name, tensor.rows)
        self.statistics.append(tensor.statistics)
        self.normalisable[node] = tensor

    def whole_beats(self, chunks: int) -> int:
        """As many chunks as whole words of memory hold."""
        return _aligned(chunks, max(self.config.word_width // (16 * self.config.lanes), 1))

    # Transfers

    def transfer(
        self, kind: Kind, note: str, tensor: Tensor, space: Space, address: int, *, first: int, rows: int
    ) -> int:  # fmt: skip
        """Rows of a tensor from or to memory. Returns the bytes there."""
        begin, chunks = first * tensor.stride, self.whole_beats(rows * tensor.stride)
        tensor.span.size = max(tensor.span.size, begin + chunks)
        most = self.whole_beats(1 << 15)  # a command's rows have 16 bits
        chunk_bytes = 2 * self.config.lanes
        for part in range(0, chunks, most):
            count = min(most, chunks - part)
            self.draft(
                kind, note, {"a_address": (tensor.span, begin + part)}, rows=count, dma_space=space,
                dma_address=address + part * chunk_bytes, dma_beats=count * chunk_bytes // self.config.beat_bytes,
            )  # fmt: skip
        return chunks * chunk_bytes

    def loaded(self, node: Node, space: Space, address: int) -> int:
        out = self.tensor(node, gathers=False)
        return self.transfer(Kind.LOAD, f"{node.name}: load", out, space, address, first=0, rows=out.rows)

    def make_normalisable(self, node: Node) -> None:
        """Pass it through the array unchanged if its statistics are needed but not known, or its columns have gaps."""
        if node not in self.normalised or node in self.normalisable:
            return
        before, features = self.tensors[node], node.shape[1]
        after = self.buffer(f"{node.name} again", before.rows, np.arange(features), before.width)
        self.gather(node, after)
        self.products(f"{node.name}: statistics", identity(Format(before.width, 1.0), features), before, after)
        if len(before.positions) == extent(before.positions):
            self.tensors[node] = after

    def operand(self, node: Matmul | Moe) -> Tensor:
        return self.tensors[node.x] if node.epsilon is None else self.normalisable[node.x]

    def elements(self, tensor: Tensor, rows: int) -> int:
        return self.whole_beats(rows * tensor.stride) * self.config.lanes

    # Products

    def products(
        self, note: str, linear: Linear, a: Tensor, out: Tensor, *, first: int = 0, added: Tensor | None = None
    ) -> None:
        """Rows from `first` of a to all of out, by as many commands as it takes."""
        blocks = list(_blocks(out.rows, self.config.max_rows))
        for begin, rows in blocks:
            part = note if len(blocks) == 1 else f"{note}: rows {begin} to {begin + rows - 1}"
            self.product(part, linear, a, out, rows=rows, first=first + begin, o_first=begin, added=added)

    def product(
        self, note: str, linear: Linear, a: Tensor, out: Tensor, *,
        rows: int, first: int = 0, o_first: int = 0, added: Tensor | None = None, **fields: Any,
    ) -> None:  # fmt: skip
        """One MATMUL with weights from memory: rows from `first` of a to rows from `o_first` of out."""
        fields = {"residual": Residual.NONE if added is None else Residual.ADD} | fields
        self.prove(note, linear)
        places = {"a_address": a.at(first), "o_address": out.at(o_first)}
        if added is not None:
            places["r_address"] = added.at(o_first)
            fields["r_stride"] = added.stride
        if linear.operand.normalise is not None:
            assert a.statistics is not None
            places["a_statistics"] = a.statistics, first
            fields |= {"prologue": Prologue.NORMALISE, **asdict(linear.operand.normalise)}
        if out.statistics is not None:
            places["o_statistics"] = out.statistics, o_first
            fields |= {"statistics": 1}
        depth, columns, count = extent(a.positions), extent(out.positions), digits(self.config, linear.bits)
        self.draft(
            Kind.MATMUL, note, places, weights=(linear, a.positions, out.positions),
            rows=rows, depth=depth, columns=columns, a_stride=a.stride,
            a_wide=int(linear.operand.format.width == 16), a_packed=int(a.packed),
            b_digits=count, dma_beats=stream_beats(self.config, depth, columns, count),
            post=linear.post, post_shift=linear.post_shift,
            o_stride=out.stride, o_wide=int(out.width == 16), o_packed=int(out.packed), **fields,
        )  # fmt: skip

    def prove(self, note: str, linear: Linear) -> None:
        """No operand can make a channel's sum leave the accumulator."""
        sums = bounds.sums(bounds.streamed(linear.operand.format.width), linear.matrix, linear.bias)
        channel = int(sums.argmax())
        bits = bounds.signed_bits(int(sums[channel]))
        self.demand_accumulator(f"'{note}', channel {channel},", bits, "fewer bits for this layer")
        if linear.operand.normalise is not None:
            self.demand(f"'{note}': normalised features", len(linear.matrix), NORMALISED_FEATURES, "fewer features")


# --- One function per node type ---


def _input(d: Drafting, node: Input) -> None:
    """Loaded at once, or part by part for the only product that reads it."""
    positions, lanes = d.layouts[node], d.config.lanes
    stride = -(-extent(positions) // lanes)
    if node in d.cuts:
        d.waiting[node], size = d.input_bytes, 2 * lanes * d.whole_beats(node.shape[0] * stride)
    else:
        size = d.loaded(node, Space.INPUT, d.input_bytes)
        readers = {x for x in d.graph.nodes() if node in x.inputs}
        heads = {x for attention in d.separable for x in attention.inputs}
        alone = len(readers - heads) == 1 == len(readers) and all(_streams(x, node) for x in readers)
        if alone and stride == d.whole_beats(stride):
            d.cuttable(node, d.tensors[node])
    index = np.full((node.shape[0], stride * lanes), -1, np.int64)
    index[:, positions] = node.index
    flat = np.full(size // 2, -1, np.int64)
    flat[: index.size] = index.reshape(-1)
    form = d.quantised.formats[node]
    d.inputs.append(Port(node.name, node.user_shape, d.input_bytes, len(flat), form.fraction, form.width, flat))
    d.input_bytes = _aligned(d.input_bytes + size)


def _constant(d: Drafting, node: Constant) -> None:
    form, positions = d.quantised.formats[node], d.layouts[node]
    stride = -(-extent(positions) // d.config.lanes)
    low, high = -(1 << (form.width - 1)), (1 << (form.width - 1)) - 1
    value = np.zeros((node.shape[0], stride * d.config.lanes), "<i2")
    value[:, positions] = np.clip(np.floor(node.value.astype(np.float64) / form.scale + 0.5), low, high)
    size = d.whole_beats(node.shape[0] * stride) * d.config.lanes * 2
    d.loaded(node, Space.PROGRAM, d.image.add(node.name, value.tobytes().ljust(size, b"\0")))


def _matmul(d: Drafting, node: Matmul) -> None:
    linear = d.quantised.numbers[node]
    assert isinstance(linear, Linear)
    x = None if node.x in d.waiting else d.operand(node)
    added = None if node.residual is None else d.tensors[node.residual]
    out = d.tensor(node, gathers=True, over=d.free(node.residual, x))
    if x is not None:
        d.products(node.name, linear, x, out, first=node.rows[0], added=added)
        return
    for first, rows in _blocks(out.rows, min(d.most_rows(node.x), d.config.max_rows)):
        part = _input_rows(d, node.x, node.rows[0] + first, rows)
        note = f"{node.name}: rows {first} to {first + rows - 1}"
        d.product(note, linear, part, out, rows=rows, o_first=first, added=added)


def _input_rows(d: Drafting, node: Node, first: int, rows: int) -> Tensor:
    """Loaded where the input is read; each row begins at a bus beat."""
    note = f"{node.name}: rows {first} to {first + rows - 1}"
    part = d.buffer(note, rows, d.layouts[node], d.quantised.formats[node].width)
    address = d.waiting[node] + 2 * d.config.lanes * first * part.stride
    d.transfer(Kind.LOAD, f"{note}: load", part, Space.INPUT, address, first=0, rows=rows)
    if rows > 1:
        d.cuttable(node, part)
    return part


def _attention(d: Drafting, node: Attention) -> None:
    numbers = d.quantised.numbers[node]
    assert isinstance(numbers, AttentionNumbers)
    out = d.tensor(node, gathers=False)
    _prove_attention(d, node, numbers)
    if node in d.separable - d.by_head:
        d.cuttable(node, *(d.tensors[x] for x in node.inputs))
    for head in range(len(node.q_columns)):
        operands = _operands(d, node, head)
        for first, rows in _blocks(out.rows, d.most_rows(node)):
            note = f"{node.name}: head {head}" + (f" rows {first} to {first + rows - 1}" if rows < out.rows else "")
            _head(d, node, operands, (out, head * node.value_dim), note, first, rows)


Columns = tuple[Tensor, int]  # of one head: their tensor and the first one


def _operands(d: Drafting, node: Attention, head: int) -> list[Columns]:
    """q, k and v of a head: as they lie, or computed now."""
    parts = [(x, starts[head], width) for x, starts, width in _heads(node)]
    if node not in d.by_head:
        return [(d.tensors[x], first) for x, first, _ in parts]
    made: dict[Node, tuple[Tensor, Ints]] = {}
    for x in dict.fromkeys(node.inputs):
        assert isinstance(x, Matmul)
        columns = np.concatenate([np.arange(first, first + width) for y, first, width in parts if y is x])
        made[x] = _some_columns(d, x, f"{x.name}: head {head}", columns), columns
    return [(made[x][0], int(np.flatnonzero(made[x][1] == first)[0])) for x, first, _ in parts]


def _some_columns(d: Drafting, node: Matmul, note: str, columns: Ints) -> Tensor:
    """Of a product, each run of them from the start of a chunk on."""
    linear = d.quantised.numbers[node]
    assert isinstance(linear, Linear)
    per_channel = {name: getattr(linear, name)[columns] for name in ("bias", "multiplier", "shift")}
    part, halved = replace(linear, matrix=linear.matrix[:, columns], **per_channel), node in d.packed
    positions = _spread(
        len(columns), {0, *(np.flatnonzero(np.diff(columns) != 1) + 1).tolist()}, d.config.lanes << halved
    )
    out = d.buffer(note, node.shape[0], positions, d.quantised.formats[node].width, packed=halved)
    d.products(note, part, d.operand(node), out, first=node.rows[0])
    return out


def _head(
    d: Drafting, node: Attention, operands: list[Columns], out: Columns, note: str, first: int, rows: int
) -> None:  # fmt: skip
    """Some rows of a head: scores, then what they make of the values."""
    n = d.quantised.numbers[node]
    assert isinstance(n, AttentionNumbers)
    (q, q_column), (k, k_column), (v, v_column), (o, o_column) = *operands, out
    q_at, k_at, v_at, o_at = q.at(first, q_column), k.at(0, k_column), v.at(0, v_column), o.at(first, o_column)
    scores = d.buffer(f"{note} scores", rows, np.arange(k.rows), 16)
    if rows > 1:
        d.cuttable(node, scores)
    d.draft(
        Kind.MATMUL, f"{note} scores",
        {"a_address": q_at, "b_address": k_at, "o_address": scores.at()},
        rows=rows, depth=node.head_dim, columns=k.rows, a_stride=q.stride,
        a_wide=int(q.width == 16), a_packed=int(q.packed),
        b_source=Stationary.COLUMNS, b_stride=k.stride, b_digits=digits(d.config, k.width),
        multiplier=n.score_multiplier, shift=n.score_shift, o_stride=scores.stride, o_wide=1, row_maximum=1,
    )  # fmt: skip
    d.draft(
        Kind.MATMUL, f"{note} values",
        {"a_address": scores.at(), "b_address": v_at, "o_address": o_at},
        rows=rows, depth=k.rows, columns=node.value_dim, a_stride=scores.stride, a_wide=int(n.width == 16),
        b_source=Stationary.ROWS, b_stride=v.stride, b_digits=digits(d.config, v.width), prologue=Prologue.EXP,
        exp_shift=n.exp_shift, multiplier=n.multiplier, shift=n.shift, row_scale=RowScale.SOFTMAX,
        post_shift=n.post_shift, o_stride=o.stride, o_wide=int(o.width == 16), o_packed=int(o.packed),
    )  # fmt: skip


def _prove_attention(d: Drafting, node: Attention, n: AttentionNumbers) -> None:
    q, k, v = (d.quantised.formats[x].width for x in node.inputs)
    keys, one, narrower = node.k.shape[0], bounds.exponentials(n.width), "8-bit activations for this layer"
    for what, largest, depth, operand in (("scores", bounds.streamed(q), node.head_dim, k), ("values", one, keys, v)):
        width = bounds.stationary_width(d.config, digits(d.config, operand))
        bits = bounds.signed_bits(bounds.sums_on_chip(largest, depth, width))
        d.demand_accumulator(f"'{node.name}' {what}, every channel,", bits, narrower)
    d.demand(f"softmax sum of '{node.name}'", bounds.row_sum(one, keys).bit_length(), SUM_WIDTH, narrower)


def _moe(d: Drafting, node: Moe) -> None:
    numbers = d.quantised.numbers[node]
    assert isinstance(numbers, MoeNumbers)
    x, experts, rows = d.operand(node), len(node.experts), node.shape[0]
    d.demand(f"'{node.name}': tokens of a mixture of experts", rows, d.config.max_rows, f"Config(max_rows={rows})")
    d.demand(f"'{node.name}': experts", experts, d.config.max_experts, f"Config(max_experts={experts})")
    top = f"Config(max_top_k={node.top_k}) up to 8, or a smaller top_k"
    d.demand(f"'{node.name}': experts per token", node.top_k, d.config.max_top_k, top)
    logits = d.buffer(f"{node.name} logits", rows, np.arange(experts), 16)
    d.product(f"{node.name}: gate", numbers.gate, x, logits, rows=rows)
    d.draft(
        Kind.ROUTE, f"{node.name}: route", {"a_address": logits.at()}, rows=rows, columns=experts,
        a_stride=logits.stride, top_k=node.top_k, score_all=int(node.scoring == "softmax_of_all"),
        exp_shift=numbers.exp_shift,
    )  # fmt: skip
    out = d.tensor(node, gathers=True)
    added = None if node.residual is None else d.tensors[node.residual]
    chain = Residual.CHAIN_ZERO if added is None else Residual.CHAIN
    for queue, e in enumerate(numbers.experts):
        note = f"{node.name}: expert {e.number}"
        fields: dict[str, Any] = {"expert": queue, "expected": int(e.expected)}
        here, width = np.arange(e.first.matrix.shape[1]), numbers.hidden.width
        hidden = d.buffer(f"{note} hidden", rows, here, width, packed=width == 8)
        d.product(f"{note} first", e.first, x, hidden, rows=rows, queue=Queue.GATHER, **fields)
        d.product(
            f"{note} second", e.second, hidden, out, rows=rows, added=added, residual=chain,
            queue=Queue.SCATTER, row_scale=RowScale.GATE, **fields,
        )  # fmt: skip
    d.experts.append(tuple(e.number for e in numbers.experts))


def _output(d: Drafting, node: Output) -> None:
    tensor, features = d.tensors[node.x], node.x.shape[1]
    row, column = node.index // features, node.index % features
    first, last = int(row.min()), int(row.max())
    key = node.x, first, last
    if key not in d.stored:
        d.stored[key] = d.output_bytes
        size = d.transfer(
            Kind.STORE, f"{node.name}: store", tensor, Space.OUTPUT, d.output_bytes, first=first, rows=last - first + 1
        )  # fmt: skip
        d.output_bytes = _aligned(d.output_bytes + size)
    index = (row - first) * tensor.stride * d.config.lanes + tensor.positions[column]
    elements = d.elements(tensor, last - first + 1)
    form = d.quantised.formats[node.x]
    d.outputs.append(Port(node.name, node.index.shape, d.stored[key], elements, form.fraction, form.width, index))


_DRAFTS: dict[type[Node], Callable[[Drafting, Any], None]] = {
    Input: _input,
    Constant: _constant,
    Matmul: _matmul,
    Attention: _attention,
    Moe: _moe,
    Output: _output,
}


# --- A task ---


def _task(quantised: Quantised, graph: Graph, config: Config, image: Image, problems: dict[str, None]) -> Task:
    d, needed, count, enough = _plan(quantised, graph, config, image)
    name = f"task '{graph.task}'"
    remedy = f"Config(scratchpad_chunks={needed})" + (f" or Config(command_depth={_aligned(enough)})" if enough else "")
    d.demand(f"{name}: scratchpad (chunks)", needed, config.scratchpad_chunks, remedy)
    rows = allocate(d.statistics)
    d.demand(f"{name}: row statistics (rows)", rows, config.statistics_rows, f"Config(statistics_rows={rows})")
    d.demand(f"{name}: commands", count, config.command_depth, f"Config(command_depth={_aligned(count)})")
    problems |= dict.fromkeys(d.problems)
    commands = tuple(_encodable(draft, image, problems) for draft in d.drafts)
    return Task(
        graph.task, commands, tuple(d.inputs), tuple(d.outputs), d.input_bytes, d.output_bytes,
        sum(node.macs for node in graph.nodes()), tuple(draft.note for draft in d.drafts),
        tuple(Buffer(s.name, s.address, s.size, s.first, s.last) for s in d.spans), tuple(d.experts),
    )  # fmt: skip


def _plan(quantised: Quantised, graph: Graph, config: Config, image: Image) -> tuple[Drafting, int, int, int]:
    """Commands with the fewest cuts such that all fits; the chunks and the commands needed, and 0.

    Where nothing fits: the fewest chunks that do with as many commands as there can be, the fewest commands, and
    the number of commands that would do, if they are all that is missing.
    """
    d = Drafting(quantised, graph, config, image, {})
    d.run()
    fewest = len(d.drafts)
    needed = allocate(d.spans, config.scratchpad_chunks)
    best = d, needed
    while needed > config.scratchpad_chunks:
        more = {node: d.cuts.get(node, 0) + 1 for node in _divisible(d)}
        if not more:
            return *best, fewest, 0
        d = Drafting(quantised, graph, config, image, {**d.cuts, **more})
        d.run()
        needed = allocate(d.spans, config.scratchpad_chunks)
        if len(d.drafts) > max(config.command_depth, fewest):
            return *best, fewest, len(d.drafts) if needed <= config.scratchpad_chunks else 0
        best = min(best, (d, needed), key=lambda plan: plan[1])
    return d, needed, len(d.drafts), 0


def _divisible(d: Drafting) -> set[Node]:
    """What lives when the scratchpad is too small, or lies beyond it, and can be cut."""
    size = d.config.scratchpad_chunks
    full = {position for position, units in enumerate(alive(d.spans)) if units > size}
    beyond = [span for span in d.spans if span.address + span.size > size]
    return {
        node
        for span, node in d.divisible.items()
        if (not full.isdisjoint(range(span.first, span.last + 1)) if full else any(map(span.meets, beyond)))
    }


def _encodable(draft: Draft, image: Image, problems: dict[str, None]) -> Command:
    command = draft.command(image)
    try:
        command.encode()
    except ValueError as error:
        problems[f"does not fit: '{draft.note}': {error}; try a smaller layer"] = None
    return command
