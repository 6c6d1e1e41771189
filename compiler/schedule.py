"""From a quantised graph to a Program: commands in order, addresses, memory image.

Every node type has one function that drafts its commands (`_DRAFTS`). Drafts name buffers, not addresses: once
all commands of a task are known, so are the buffers' lifetimes, and `allocate` places them.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

from compiler.allocate import Span, allocate
from compiler.commands import COMMAND_BYTES, Command, Kind, Post, Prologue, Queue, Residual, RowScale, Space, Stationary
from compiler.config import Config
from compiler.fixed import EXP_ONE, NORMALISED_FEATURES, SUM_WIDTH, Ints, operand_limits
from compiler.ir import Attention, Constant, Graph, Input, Matmul, Moe, Node, Output
from compiler.layout import Weights, pack
from compiler.program import Buffer, Port, Program, Segment, Task, command_table
from compiler.quantise import AttentionNumbers, Format, Linear, MoeNumbers, Operand, Quantised
from compiler.verify import verify

ALIGNMENT = 64  # bytes: a whole beat of the widest bus
POST = {"none": Post.NONE, "relu": Post.RELU, "gelu": Post.GELU}


class ScheduleError(ValueError):
    """A graph that the machine has no commands for."""


class FitError(ValueError):
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
        self.packed: dict[object, tuple[Linear, int, int]] = {}

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

    def linear(self, name: str, linear: Linear, rows: Ints, columns: Ints) -> tuple[int, int]:
        """(address, bus beats) of a product's weights, whose features and channels lie at `rows` and `columns`."""
        key = id(linear), rows.tobytes(), columns.tobytes()
        if key not in self.packed:
            data = pack(self.config, _laid_out(linear, rows, columns), digits(self.config, linear.bits))
            self.packed[key] = linear, self.add(name, data), len(data) // self.config.beat_bytes
        return self.packed[key][1:]


def _laid_out(linear: Linear, rows: Ints, columns: Ints) -> Weights:
    """Zeros wherever the layout has no feature or channel."""
    matrix = np.zeros((extent(rows), extent(columns)), np.int64)
    matrix[np.ix_(rows, columns)] = linear.matrix
    channels = np.zeros((3, extent(columns)), np.int64)
    channels[:, columns] = linear.bias, linear.multiplier, linear.shift
    return Weights(matrix, *channels)


def digits(config: Config, bits: int) -> int:
    """Digits of the array's width that a stationary operand of `bits` takes."""
    return -(-bits // config.weight_width)


# --- Where columns lie ---


def extent(positions: Ints) -> int:
    """Columns of a stored row, gaps included."""
    return int(positions.max()) + 1


def layouts(graph: Graph, lanes: int) -> dict[Node, Ints]:
    """Position of every column of every tensor, such that each attention head starts a chunk."""
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
    out = {node: _positions(chains[node], starts, lanes) for node in nodes}
    for node in nodes:
        _check_heads(node, out)
    return out


def _heads(node: Node) -> Iterator[tuple[Node, tuple[int, ...], int]]:
    """(tensor, first column of each head, columns of a head) that a node reads."""
    if isinstance(node, Attention):
        yield node.q, node.q_columns, node.head_dim
        yield node.k, node.k_columns, node.head_dim
        yield node.v, node.v_columns, node.value_dim


def _positions(chain: list[Node], starts: dict[Node, set[int]], lanes: int) -> Ints:
    features = chain[0].shape[1]
    cuts = {0}.union(*(starts[node] for node in chain))
    for node in chain:
        if isinstance(node, Attention):  # its heads are written chunk by chunk
            cuts.update(range(0, features, node.value_dim))
    positions, free = np.zeros(features, np.int64), 0
    edges = [*sorted(cuts), features]
    for first, last in pairwise(edges):
        positions[first:last] = free + np.arange(last - first)
        free = _aligned(free + last - first, lanes)
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
    """A command whose addresses are still places: (span, units from its start)."""

    kind: Kind
    note: str
    fields: dict[str, Any]
    places: dict[str, tuple[Span, int]]

    def command(self) -> Command:
        addresses: dict[str, Any] = {name: span.address + offset for name, (span, offset) in self.places.items()}
        return Command(kind=self.kind, **self.fields, **addresses)


@dataclass(eq=False)
class Tensor:
    """A node's result in the scratchpad, and its rows' statistics if a reader normalises it."""

    span: Span
    rows: int
    positions: Ints
    stride: int
    width: int
    statistics: Span | None = None

    def at(self, row: int = 0, chunk: int = 0) -> tuple[Span, int]:
        return self.span, row * self.stride + chunk


def _blocks(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the fewest equal blocks."""
    size = -(-rows // -(-rows // most))
    for first in range(0, rows, size):
        yield first, min(size, rows - first)


@dataclass(eq=False)
class Drafting:
    """Drafts the commands of one task. `query_blocks` is how many parts an attention's queries are cut into."""

    quantised: Quantised
    graph: Graph
    config: Config
    image: Image
    query_blocks: dict[Node, int]
    drafts: list[Draft] = field(default_factory=list)
    tensors: dict[Node, Tensor] = field(default_factory=dict)
    normalisable: dict[Node, Tensor] = field(default_factory=dict)  # with statistics and without gaps
    spans: list[Span] = field(default_factory=list)
    statistics: list[Span] = field(default_factory=list)
    score_spans: dict[Span, Node] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    stored: dict[tuple[Node, int, int], int] = field(default_factory=dict)
    input_bytes: int = 0
    output_bytes: int = 0
    experts: list[tuple[int, ...]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def run(self) -> None:
        self.layouts = layouts(self.graph, self.config.lanes)
        self.normalised = {
            n.x for n in self.graph.nodes() if isinstance(n, Matmul | Moe) and n.epsilon is not None
        }  # fmt: skip
        self.draft(Kind.BEGIN, f"task {self.graph.task}", epsilon=self.config.fingerprint)
        for node in self.graph.nodes():
            _DRAFTS[type(node)](self, node)
            self.make_normalisable(node)
        self.draft(Kind.END, "done")
        self.drafts[0].fields["rows"] = len(self.drafts)

    def draft(self, kind: Kind, note: str, places: dict[str, tuple[Span, int]] | None = None, **fields: Any) -> None:
        for span, _ in (places or {}).values():
            span.use(len(self.drafts))
        self.drafts.append(Draft(kind, note, fields, places or {}))

    def demand(self, what: str, need: int, have: int, remedy: str) -> None:
        if need > have:
            self.problems.append(does_not_fit(what, need, have, remedy))

    # Buffers

    def buffer(self, name: str, rows: int, positions: Ints, width: int) -> Tensor:
        stride = -(-extent(positions) // self.config.lanes)
        self.spans.append(Span(name, self.whole_beats(rows * stride)))
        return Tensor(self.spans[-1], rows, positions, stride, width)

    def tensor(self, node: Node, *, gathers: bool) -> Tensor:
        """A node's buffer. `gathers`: its commands see whole rows and so can gather their statistics."""
        out = self.buffer(node.name, node.shape[0], self.layouts[node], self.quantised.formats[node].width)
        if gathers and node in self.normalised and extent(out.positions) == node.shape[1]:
            self.gather(node, out)
        self.tensors[node] = out
        return out

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
        identity = Linear(
            Operand(Format(before.width, 1.0)), np.eye(features, dtype=np.int16), 8, np.zeros(features, np.int64),
            np.full(features, 1 << 15), np.full(features, 15), "none", 0,
        )  # fmt: skip
        for first, rows in _blocks(before.rows, self.config.max_rows):
            self.product(f"{node.name}: statistics", identity, before, after, rows=rows, first=first, o_first=first)
        if len(before.positions) == extent(before.positions):
            self.tensors[node] = after

    def operand(self, node: Matmul | Moe) -> Tensor:
        return self.tensors[node.x] if node.epsilon is None else self.normalisable[node.x]

    def elements(self, tensor: Tensor, rows: int) -> int:
        return self.whole_beats(rows * tensor.stride) * self.config.lanes

    # Products

    def product(
        self, note: str, linear: Linear, a: Tensor, out: Tensor, *,
        rows: int, first: int = 0, o_first: int = 0, added: Tensor | None = None, **fields: Any,
    ) -> None:  # fmt: skip
        """One MATMUL with weights from memory: rows from `first` of a to rows from `o_first` of out."""
        fields = {"residual": Residual.NONE if added is None else Residual.ADD} | fields
        self.prove(note, linear)
        address, beats = self.image.linear(note, linear, a.positions, out.positions)
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
        self.draft(
            Kind.MATMUL, note, places, rows=rows, depth=extent(a.positions), columns=extent(out.positions),
            a_stride=a.stride, a_wide=int(linear.operand.format.width == 16), b_digits=digits(self.config, linear.bits),
            dma_address=address, dma_beats=beats, post=POST[linear.activation], post_shift=linear.post_shift,
            o_stride=out.stride, o_wide=int(out.width == 16), **fields,
        )  # fmt: skip

    def prove(self, note: str, linear: Linear) -> None:
        """No operand can make a channel's sum leave the accumulator."""
        bounds = accumulator_bounds(linear.matrix, linear.bias, linear.operand.format.width)
        channel = int(bounds.argmax())
        self.demand(
            f"accumulator of '{note}', channel {channel},", int(bounds[channel]).bit_length() + 1,
            self.config.accumulator_width, "Config(accumulator_width) up to 40, or fewer bits for this layer",
        )  # fmt: skip
        if linear.operand.normalise is not None:
            self.demand(f"'{note}': normalised features", len(linear.matrix), NORMALISED_FEATURES, "fewer features")


def accumulator_bounds(matrix: Ints | np.ndarray[Any, Any], bias: Ints, width: int) -> Ints:
    """Largest magnitude that each channel's sum can have, whatever the operand of `width` bits."""
    return np.abs(matrix.astype(np.int64)).sum(axis=0) * -operand_limits(width)[0] + np.abs(bias)  # type: ignore[no-any-return]


# --- One function per node type ---


def _input(d: Drafting, node: Input) -> None:
    size = d.loaded(node, Space.INPUT, d.input_bytes)
    tensor = d.tensors[node]
    index = np.full((tensor.rows, tensor.stride * d.config.lanes), -1, np.int64)
    index[:, tensor.positions] = node.index
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
    x, out = d.operand(node), d.tensor(node, gathers=True)
    added = None if node.residual is None else d.tensors[node.residual]
    blocks = list(_blocks(out.rows, d.config.max_rows))
    for first, rows in blocks:
        note = node.name if len(blocks) == 1 else f"{node.name}: rows {first} to {first + rows - 1}"
        d.product(note, linear, x, out, rows=rows, first=node.rows[0] + first, o_first=first, added=added)


def _attention(d: Drafting, node: Attention) -> None:
    numbers = d.quantised.numbers[node]
    assert isinstance(numbers, AttentionNumbers)
    out = d.tensor(node, gathers=False)
    _prove_attention(d, node, numbers)
    most = min(-(-out.rows // d.query_blocks.get(node, 1)), d.config.max_rows)
    for head in range(len(node.q_columns)):
        for first, rows in _blocks(out.rows, most):
            note = f"{node.name}: head {head}" + (f" rows {first} to {first + rows - 1}" if rows < out.rows else "")
            _head(d, node, numbers, head, note, first, rows)


def _head(d: Drafting, node: Attention, n: AttentionNumbers, head: int, note: str, first: int, rows: int) -> None:
    q, k, v, out = (d.tensors[x] for x in (node.q, node.k, node.v, node))
    q_chunk, k_chunk, v_chunk, o_chunk = (
        int(tensor.positions[column]) // d.config.lanes
        for tensor, column in (
            (q, node.q_columns[head]),
            (k, node.k_columns[head]),
            (v, node.v_columns[head]),
            (out, head * node.value_dim),
        )
    )
    scores = d.buffer(f"{note} scores", rows, np.arange(k.rows), 16)
    d.score_spans[scores.span] = node
    d.draft(
        Kind.MATMUL, f"{note} scores",
        {"a_address": q.at(first, q_chunk), "b_address": k.at(0, k_chunk), "o_address": scores.at()},
        rows=rows, depth=node.head_dim, columns=k.rows, a_stride=q.stride, a_wide=int(q.width == 16),
        b_source=Stationary.COLUMNS, b_stride=k.stride, b_digits=digits(d.config, k.width),
        multiplier=n.score_multiplier, shift=n.score_shift, o_stride=scores.stride, o_wide=1, row_maximum=1,
    )  # fmt: skip
    d.draft(
        Kind.MATMUL, f"{note} values",
        {"a_address": scores.at(), "b_address": v.at(0, v_chunk), "o_address": out.at(first, o_chunk)},
        rows=rows, depth=k.rows, columns=node.value_dim, a_stride=scores.stride, a_wide=int(n.width == 16),
        b_source=Stationary.ROWS, b_stride=v.stride, b_digits=digits(d.config, v.width), prologue=Prologue.EXP,
        exp_shift=n.exp_shift, multiplier=n.multiplier, shift=n.shift, row_scale=RowScale.SOFTMAX,
        post_shift=n.post_shift, o_stride=out.stride, o_wide=int(out.width == 16),
    )  # fmt: skip


def _prove_attention(d: Drafting, node: Attention, n: AttentionNumbers) -> None:
    q, k, v = (d.tensors[x].width for x in node.inputs)
    exp_one = EXP_ONE >> (16 - n.width)
    keys = node.k.shape[0]
    remedy = "Config(accumulator_width) up to 40, or 8-bit activations for this layer"
    width = d.config.accumulator_width
    for what, bound in (
        ("scores", node.head_dim << (q + k - 2)),
        ("values", keys * exp_one << (v - 1)),
    ):
        d.demand(f"accumulator of '{node.name}' {what}, every channel,", bound.bit_length() + 1, width, remedy)
    d.demand(
        f"softmax sum of '{node.name}'", (keys * exp_one).bit_length(), SUM_WIDTH, "8-bit activations for this layer"
    )


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
        note, fields = f"{node.name}: expert {e.number}", {"expert": queue, "expected": int(e.expected)}
        hidden = d.buffer(f"{note} hidden", rows, np.arange(e.first.matrix.shape[1]), numbers.hidden.width)
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
    query_blocks: dict[Node, int] = {}
    while True:
        d = Drafting(quantised, graph, config, image, query_blocks)
        d.run()
        needed = allocate(d.spans)
        shrinkable = _shrinkable(d) if needed > config.scratchpad_chunks else set()
        if not shrinkable:
            break
        query_blocks |= {node: 2 * query_blocks.get(node, 1) for node in shrinkable}
    name = f"task '{graph.task}'"
    d.demand(f"{name}: scratchpad (chunks)", needed, config.scratchpad_chunks, f"Config(scratchpad_chunks={needed})")
    rows = allocate(d.statistics)
    d.demand(f"{name}: row statistics (rows)", rows, config.statistics_rows, f"Config(statistics_rows={rows})")
    count = len(d.drafts)
    d.demand(f"{name}: commands", count, config.command_depth, f"Config(command_depth={_aligned(count)})")
    commands = tuple(_encodable(draft, d.problems) for draft in d.drafts)
    problems |= dict.fromkeys(d.problems)
    return Task(
        graph.task, commands, tuple(d.inputs), tuple(d.outputs), d.input_bytes, d.output_bytes,
        sum(macs(node) for node in graph.nodes()), tuple(draft.note for draft in d.drafts),
        tuple(Buffer(s.name, s.address, s.size, s.first, s.last) for s in d.spans), tuple(d.experts),
    )  # fmt: skip


def _shrinkable(d: Drafting) -> set[Node]:
    """Attentions whose scores live when the scratchpad is too small, and whose queries can be cut further."""
    over = [span for span in d.spans if span.address + span.size > d.config.scratchpad_chunks]
    return {
        node
        for span, node in d.score_spans.items()
        if any(span.meets(other) for other in over) and d.query_blocks.get(node, 1) < node.shape[0]
    }


def _encodable(draft: Draft, problems: list[str]) -> Command:
    command = draft.command()
    try:
        command.encode()
    except ValueError as error:
        problems.append(f"does not fit: '{draft.note}': {error}; try a smaller layer")
    return command


def macs(node: Node) -> int:
    """Multiply-accumulates of one frame, as the model counts them."""
    if isinstance(node, Matmul):
        return node.shape[0] * node.weight.size
    if isinstance(node, Attention):
        return len(node.q_columns) * node.shape[0] * node.k.shape[0] * (node.head_dim + node.value_dim)
    if isinstance(node, Moe):
        expert = node.experts[0]
        return node.shape[0] * (node.gate_weight.size + node.top_k * (expert.w1.size + expert.w2.size))
    return 0
