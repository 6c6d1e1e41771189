"""A Program in words: what is in it, what each command does, what lies where and how long."""

from collections.abc import Callable, Iterator, Sequence

from patchloom.compiler.machine.commands import Command, Kind, Post, Prologue, Queue, Residual, RowScale, Stationary
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.preprocessing import Preprocessing
from patchloom.compiler.machine.program import Buffer, Layer, Port, Program, Task


def describe(program: Program) -> str:
    """Plain text, for people."""
    lines = [*_overview(program)]
    for task in program.tasks:
        lines += ["", *_task(program, task)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Columns aligned, the last one as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _overview(program: Program) -> Iterator[str]:
    c, tasks = program.config, ", ".join(task.name for task in program.tasks)
    yield f"Program {program.precision} of tasks {tasks}: {len(program.image):,} bytes"
    yield f"for an array of {c.inputs} x {c.outputs}, {c.weight_width}-bit weights, {c.activation_width}-bit operands,"
    yield f"{c.scratchpad_chunks} chunks of {c.lanes} elements, Config {c.fingerprint:08x}"
    if program.board:
        yield f"made for board {program.board}"
    yield ""
    yield "Memory image"
    yield from _table(
        [("byte", "bytes", "content"), *((str(s.offset), str(s.length), s.name) for s in program.segments)]
    )  # fmt: skip


def _task(program: Program, task: Task) -> Iterator[str]:
    config = program.config
    yield f"Task '{task.name}': {task.macs:,} multiply-accumulates, {len(task.commands)} commands"
    streamed, distinct = _weight_bytes(config, task)
    yield f"weights: {distinct:,} bytes, {streamed:,} streamed a frame if every expert has tokens"
    for ports, what in ((task.inputs, "input"), (task.outputs, "output")):
        for port in ports:
            yield f"{what} {_port(port)}"
            if port.preprocessing is not None:
                yield f"  of pictures: {_preprocessing(port.preprocessing)}"
    if task.layers:
        yield ""
        yield "Layers"
        yield from _table([("", "kind", "format", "calibrated", "of", "where"), *map(_layer, task.layers)])
    yield ""
    yield "Commands"
    notes = task.notes or ("",) * len(task.commands)
    rows = [("", "kind", "what", "shape", "how", "where")]
    for i, (command, note) in enumerate(zip(task.commands, notes, strict=True)):
        shape, how, where = _WORDS[command.kind](command)
        rows.append((str(i), command.kind.name, note, shape, how, where))
    yield from _table(rows)
    yield ""
    yield "Scratchpad"
    buffers = sorted(task.buffers, key=lambda b: (b.first, b.address))
    yield from _table([("chunks", "commands", "content"), *map(_buffer, buffers)])


def _weight_bytes(config: Config, task: Task) -> tuple[int, int]:
    """(streamed, distinct) of a frame."""
    streams = [
        (c.dma_address, c.dma_beats * config.beat_bytes)
        for c in task.commands
        if c.kind == Kind.MATMUL and c.b_source == Stationary.MEMORY
    ]
    return sum(size for _, size in streams), sum(size for _, size in set(streams))


def _port(port: Port) -> str:
    return (
        f"'{port.name}' {list(port.shape)}: {port.width} bits, {port.fraction} fractional, "
        f"{port.elements} elements{' of a byte' if port.packed else ''} from byte {port.offset}"
    )


def _preprocessing(p: Preprocessing) -> str:
    """How bytes become the model's units."""
    cut = f"{p.resize} to {p.crop_pct:g} ({p.interpolation})" if p.resize else "no resize"
    mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (p.mean, p.std))
    colours = "grey" if p.channels == 1 else "red, green, blue"
    return f"{p.size[0]} x {p.size[1]} {colours}, {cut}, (bytes / {p.divide:g} - ({mean})) / ({std}), {p.layout}"


def _layer(layer: Layer) -> tuple[str, ...]:
    reach = layer.scale * 2 ** (layer.width - 1)
    form = f"{layer.width} bits to {reach:.4g}, step {layer.scale:.3g}"
    return layer.name, layer.kind, form, f"{layer.low:.4g} to {layer.high:.4g}", layer.precision, layer.where


def _buffer(b: Buffer) -> tuple[str, str, str]:
    return f"{b.address} to {b.address + b.chunks - 1}", f"{b.first} to {b.last}", b.name


# --- Commands: shape, how, where ---

Words = tuple[str, str, str]
POSTS: dict[int, str] = {
    Post.RELU: "relu",
    Post.EVEN: "relu - table of |x|",
    Post.SIDED: "relu - table",
    Post.ALONE: "- table",
}


def _nothing(c: Command) -> Words:
    return "", "", ""


def _transfer(c: Command) -> Words:
    memory, chunks = f"{c.dma_space.name} byte {c.dma_address}", f"chunk {c.a_address}"
    return (
        f"{c.rows} chunks",
        f"{c.dma_beats} beats",
        " -> ".join((memory, chunks) if c.kind == Kind.LOAD else (chunks, memory)),
    )


def _entries(c: Command) -> Words:
    return f"{c.rows} entries", f"{c.dma_beats} beats", f"{c.dma_space.name} byte {c.dma_address}"


def _route(c: Command) -> Words:
    over = "all" if c.score_all else "the selected"
    return f"{c.rows} x {c.columns}", f"top {c.top_k}, softmax over {over}", f"a {c.a_address}"


def _matmul(c: Command) -> Words:
    bits = "16" if c.a_wide else "8"
    parts = [
        *_part(
            c.queue, {Queue.GATHER: f"tokens of expert {c.expert}", Queue.SCATTER: f"to tokens of expert {c.expert}"}
        ),
        *_part(c.prologue, {Prologue.NORMALISE: "normalise", Prologue.EXP: "exp", Prologue.RMS: "divide by the RMS"}),
        f"{bits}-bit{' packed' * c.a_packed} a x {c.b_digits}-digit b",
        *_part(c.post, POSTS),
        *_part(c.row_scale, {RowScale.SOFTMAX: "/ row sum", RowScale.GATE: "* gate score"}),
        *_part(
            c.residual,
            {
                Residual.ADD: "+ r",
                Residual.CHAIN: "+ r, then itself",
                Residual.CHAIN_ZERO: "+ itself",
                Residual.MULTIPLY: "* r",
                Residual.MAXIMUM: "no less than r",
            },
        ),
        f"to {16 if c.o_wide else 8}{' packed' * c.o_packed} bits",
        *(["statistics"] if c.statistics else []),
        *(["maxima"] if c.row_maximum else []),
    ]
    return f"{c.rows} x {c.depth} x {c.columns}", ", ".join(parts), ", ".join(_places(c))


def _part(value: int, words: dict[int, str]) -> list[str]:
    return [words[value]] if value in words else []


def _places(c: Command) -> Iterator[str]:
    yield _rows(c, "a")
    stored = c.b_source == Stationary.MEMORY
    yield f"b byte {c.dma_address}" if stored else f"b {c.b_address}+{c.b_stride} as {c.b_source.name.lower()}"
    if c.residual not in (Residual.NONE, Residual.CHAIN_ZERO):
        yield _rows(c, "r")
    yield _rows(c, "o")
    if c.normalises:
        yield f"statistics {c.a_statistics}"
    if c.statistics:
        yield f"to statistics {c.o_statistics}"


def _rows(c: Command, operand: str) -> str:
    """First chunk, chunks from row to row, and those from line to line."""
    address, stride, outer = (getattr(c, f"{operand}_{part}") for part in ("address", "stride", "outer"))
    return f"{operand} {address}+{stride}" + (f"+{outer} of {c.line}" if c.line else "")


_WORDS: dict[Kind, Callable[[Command], Words]] = {
    Kind.BEGIN: _nothing,
    Kind.END: _nothing,
    Kind.LOAD: _transfer,
    Kind.STORE: _transfer,
    Kind.ROUTE: _route,
    Kind.TABLE: _entries,
    Kind.MATMUL: _matmul,
}
