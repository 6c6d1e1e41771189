"""Commands of one task before addresses are known, and the buffers that they name."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import FIELDS, Command, Kind
from patchloom.compiler.machine.config import ELEMENT_WIDTH, Config
from patchloom.compiler.machine.fixed import Ints
from patchloom.compiler.machine.program import ELEMENT_BYTES, Port
from patchloom.compiler.machine.tables import ENTRIES, TABLE_BYTES, Table
from patchloom.compiler.node import Node
from patchloom.compiler.quantise import Quantised
from patchloom.compiler.quantise.linear import Linear
from patchloom.compiler.schedule.buffers import Span, aligned
from patchloom.compiler.schedule.columns import extent, layouts, packed, separable
from patchloom.compiler.schedule.errors import does_not_fit, possible
from patchloom.compiler.schedule.image import Image

Place = tuple[Span, int]  # units from its start


@dataclass(eq=False)
class Draft:
    """A command whose addresses are still places. Weights and data are not yet in the image."""

    kind: Kind
    note: str
    fields: dict[str, Any]
    places: dict[str, Place]
    weights: tuple[Linear, Ints, Ints] | None = None  # with the positions of its features and channels
    data: tuple[str, bytes] | None = None  # a name and what it loads; its address in memory is one in these
    node: Node | None = None  # whose result it helps to make

    def command(self, image: Image) -> Command:
        addresses: dict[str, Any] = {name: span.address + offset for name, (span, offset) in self.places.items()}
        if self.weights is not None:
            addresses["dma_address"] = image.linear(self.note, *self.weights)
        if self.data is not None:
            addresses["dma_address"] = image.add(*self.data) + self.fields["dma_address"]
        return Command(kind=self.kind, **self.fields | addresses)


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

    @property
    def wide(self) -> int:
        return int(self.width == ELEMENT_WIDTH)

    def at(self, row: int = 0, column: int = 0) -> Place:
        """The column begins a chunk."""
        return self.span, row * self.stride + int(self.positions[column]) // self.chunk


@dataclass(frozen=True, eq=False)
class Part:
    """Rows from `first` and columns of a node's result, and where they are made."""

    node: Node
    tensor: Tensor
    first: int
    columns: Ints


def blocks(rows: int, most: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of the fewest equal blocks."""
    size = -(-rows // -(-rows // most))
    for first in range(0, rows, size):
        yield first, min(size, rows - first)


def line_blocks(line: int, lines: int, most: int) -> Iterator[tuple[int, int, int]]:
    """(first row, rows, rows of a line) of whole lines; or of parts of one, of which 0 rows make a line."""
    together = min(most // line, lines)
    if line > FIELDS["line"].high or not together:
        for first, rows in blocks(line, most):
            yield from ((number * line + first, rows, 0) for number in range(lines))
    else:
        for first, count in blocks(lines, together):
            yield first * line, count * line, line


@dataclass(eq=False)
class Drafting:
    """Drafts the commands of one task.

    Where memory is short, `cuts` says how often something is cut: a node that reads heads into these if they can be
    computed one by one, then each time its rows in two; an input's rows in two, and those of what only an output reads.
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
    problems: dict[str, dict[str, int]] = field(default_factory=dict)  # with the first sizes that would do
    unread: Counter[Node] = field(default_factory=Counter)  # reads of a node that are still to come
    parts: list[Part] = field(default_factory=list)
    node: Node | None = None  # that is being drafted
    table: Table | None = None  # the epilogue's

    def __post_init__(self) -> None:
        nodes = list(self.graph.nodes())
        self.packed = packed(self.graph, self.quantised.formats, self.config.lanes)
        self.layouts = layouts(self.graph, self.config.lanes, self.packed)
        self.normalised = {node.normalised for node in nodes}
        self.separable = separable(self.graph)
        self.by_head = self.separable & self.cuts.keys()
        self.late = {x for node in self.by_head for x in node.inputs}  # are computed head by head
        self.unread.update(x for node in nodes for x in node.inputs)

    def draft(
        self,
        kind: Kind,
        note: str,
        places: dict[str, Place] | None = None,
        *,
        weights: tuple[Linear, Ints, Ints] | None = None,
        data: tuple[str, bytes] | None = None,
        **fields: Any,
    ) -> None:
        for span, _ in (places or {}).values():
            span.use(len(self.drafts))
        self.drafts.append(Draft(kind, note, fields, places or {}, weights, data, self.node))

    def load_table(self, table: Table | None) -> None:
        """Before a command that uses it."""
        if table is not None and table != self.table:
            self.table, beats, name = table, TABLE_BYTES // self.config.beat_bytes, f"table of {table.name}"
            assert self.node is not None, "a layer uses the table"
            note, data = f"{self.node.name}: {name}", (name, table.data)
            self.draft(Kind.TABLE, note, data=data, rows=ENTRIES, dma_address=0, dma_beats=beats)

    @contextmanager
    def drafting(self, node: Node) -> Iterator[None]:
        """What is drafted meanwhile is the node's."""
        before, self.node = self.node, node
        yield
        self.node = before

    # What must fit

    def demand(self, what: str, need: int, have: int, otherwise: str, *sizes: dict[str, int]) -> None:
        """Any of `sizes` of the Config would do; `otherwise` says what would if no Config can have them."""
        if need > have:
            text = does_not_fit(what, need, have, possible(self.config, *sizes) or otherwise)
            self.problems[text] = sizes[0] if sizes else {}

    def demand_accumulator(self, what: str, bits: int, narrower: str) -> None:
        have = self.config.accumulator_width
        self.demand(f"accumulator of {what}", bits, have, narrower, {"accumulator_width": bits})

    # Cuts

    def most_rows(self, node: Node) -> int:
        """That one command takes of the node's rows."""
        return -(-node.shape[0] // (1 << (self.cuts.get(node, 0) - (node in self.by_head))))

    def cuttable(self, node: Node, *tensors: Tensor) -> None:
        """Another cut of the node makes these smaller."""
        self.divisible |= {tensor.span: node for tensor in tensors}

    # Buffers

    @property
    def chunk_bytes(self) -> int:
        return self.config.lanes * ELEMENT_BYTES

    def whole_beats(self, chunks: int) -> int:
        """As many chunks as whole words of memory hold."""
        return aligned(chunks, max(self.config.word_width // (ELEMENT_WIDTH * self.config.lanes), 1))

    def buffer(self, name: str, rows: int, positions: Ints, width: int, *, packed: bool = False) -> Tensor:
        span = Span(name, 0)
        self.spans.append(span)
        out = Tensor(span, rows, positions, self.config.lanes << packed, width, packed)
        span.size = self.whole_beats(rows * out.stride)
        return out

    def tensor(self, node: Node, *, gathers: bool = False, over: Tensor | None = None) -> Tensor:
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
        self.parts.append(Part(node, out, 0, np.arange(node.shape[1])))
        return out

    def rows(self, node: Node, note: str, rows: int) -> Tensor:
        """A buffer of so many rows, as good as the node's for all that asks for its layout."""
        self.tensors[node] = self.buffer(note, rows, self.layouts[node], self.quantised.formats[node].width)
        first = sum(part.tensor.rows for part in self.parts if part.node is node)
        self.parts.append(Part(node, self.tensors[node], first, np.arange(node.shape[1])))
        return self.tensors[node]

    def operand(self, node: Node, x: Node) -> Tensor:
        """What the node reads of x: with statistics, if it normalises it."""
        return self.normalisable[x] if node.normalised is x else self.tensors[x]

    def free(self, residual: Node | None, x: Tensor | None) -> Tensor | None:
        """The residual of a product of x, if its sum may take its place: nothing will read it any more."""
        if residual is None or self.unread[residual] or (x and self.tensors[residual].span is x.span):
            return None
        return self.tensors[residual]

    def gather(self, node: Node, tensor: Tensor) -> None:
        """The commands that write the tensor leave its rows' statistics, for those that normalise it."""
        tensor.statistics = Span(node.name, tensor.rows)
        self.statistics.append(tensor.statistics)
        self.normalisable[node] = tensor
