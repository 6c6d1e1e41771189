"""A Program small enough for slow simulators, for any Config: one frame through memory, array, epilogue and router."""

from dataclasses import replace
from typing import Any

import numpy as np

from patchloom.compiler.machine.bounds import digits
from patchloom.compiler.machine.commands import (
    COMMAND_BYTES,
    Command,
    Kind,
    Post,
    Prologue,
    Queue,
    Residual,
    RowScale,
    Space,
    Stationary,
)
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.fixed import multiplier_of
from patchloom.compiler.machine.frames import Elements
from patchloom.compiler.machine.layout import Weights, pack
from patchloom.compiler.machine.program import Program, ProgramError, Task, command_table
from patchloom.compiler.machine.tables import ENTRIES, Table
from patchloom.compiler.machine.verify import verify

TASK = "selftest"
ALIGNMENT = 64  # bytes: a whole beat of the widest bus
WEIGHT = 20  # largest magnitude
SPREAD = 40.0  # of 8-bit elements, so that a few saturate
BUMP = Table.through("bump", (1 << 17) * np.exp(-np.arange(ENTRIES + 1) / 100))
EXP_SHIFT = 5  # differences of scores of that spread come to some powers of two


class _Draft:
    """Commands, image and places of the one task. Tensors are whole rows of chunks, one after another."""

    def __init__(self, config: Config, rows: int) -> None:
        self.config, self.rows, self.rng = config, rows, np.random.default_rng(0)
        self.commands = [Command(kind=Kind.BEGIN, epsilon=config.fingerprint)]
        self.image = b""
        self.base = _aligned(config.command_depth * COMMAND_BYTES, ALIGNMENT)
        self.free = 0
        self.input = np.zeros(0, np.int16)
        self.output_bytes = 0

    def chunks(self, columns: int) -> int:
        return -(-columns // self.config.lanes)

    def place(self, name: str, columns: int) -> dict[str, Any]:
        """Room for a tensor of `rows`, as fields of a command."""
        stride = self.chunks(columns)
        address, self.free = self.free, self.free + self.rows * stride
        return {f"{name}_address": address, f"{name}_stride": stride}

    def load(self, columns: int) -> dict[str, Any]:
        """Random elements of 8 bits in the rows of a new tensor. Others may lie on the last word's padding."""
        c, place = self.config, self.place("a", columns)
        elements = np.zeros((self.rows, place["a_stride"] * c.lanes), np.int16)
        elements[:, :columns] = self.rng.integers(-128, 128, (self.rows, columns))
        whole = max(c.word_width // (16 * c.lanes), 1)  # chunks of a word of the bus
        count = _aligned(self.rows * place["a_stride"], whole)
        self.input = np.zeros(count * c.lanes, np.int16)
        self.input[: elements.size] = elements.reshape(-1)
        self.transfer(Kind.LOAD, Space.INPUT, place["a_address"], count)
        return place

    def store(self, place: dict[str, Any]) -> None:
        c = self.config
        count = _aligned(self.rows * place["a_stride"], max(c.bus_width // (16 * c.lanes), 1))
        self.output_bytes = count * c.lanes * 2
        self.transfer(Kind.STORE, Space.OUTPUT, place["a_address"], count)

    def transfer(self, kind: Kind, space: Space, address: int, chunks: int) -> None:
        beats = chunks * self.config.lanes * 2 // self.config.beat_bytes
        self.commands.append(Command(kind=kind, rows=chunks, a_address=address, dma_space=space, dma_beats=beats))

    def product(self, a: dict[str, Any], depth: int, columns: int, **fields: int) -> dict[str, Any]:
        """Of a tensor with random weights; the output's place, new unless `fields` hold it."""
        matrix = self.rng.integers(-WEIGHT, WEIGHT + 1, (depth, columns))
        scale = 1 / (np.sqrt(depth) * WEIGHT / np.sqrt(3))  # of sums of uniform weights
        scale *= 2.0 ** fields.get("post_shift", 0)
        factors = np.array([multiplier_of(scale * 2.0**-i) for i in np.arange(columns) % 3], np.int64)
        bias = self.rng.integers(-1000, 1001, columns)
        weights = Weights(matrix, bias, factors[:, 0], factors[:, 1])
        count = digits(self.config, 8)
        place = self.add(pack(self.config, weights, count))
        return self.matmul(a, depth, columns, b_digits=count, **place, **self.output(columns, fields))

    def add(self, data: bytes) -> dict[str, Any]:
        """To the image; where it lies, as fields of a command."""
        address, self.image = (
            self.base + len(self.image),
            self.image + data.ljust(_aligned(len(data), ALIGNMENT), b"\0"),
        )
        return {"dma_address": address, "dma_beats": len(data) // self.config.beat_bytes}

    def table(self, table: Table) -> None:
        self.commands.append(Command(kind=Kind.TABLE, rows=ENTRIES, **self.add(table.data)))

    def output(self, columns: int, fields: dict[str, Any]) -> dict[str, Any]:
        return fields if "o_address" in fields else fields | self.place("o", columns)

    def matmul(self, a: dict[str, Any], depth: int, columns: int, **fields: Any) -> dict[str, Any]:
        self.commands.append(Command(kind=Kind.MATMUL, rows=self.rows, depth=depth, columns=columns, **{**fields, **a}))
        return {"a_address": fields["o_address"], "a_stride": fields["o_stride"]}

    def attention(self, x: dict[str, Any], columns: int) -> dict[str, Any]:
        """Of a tensor to itself: scores with their maxima, exponentials times values by their sum."""
        count = digits(self.config, 8)
        multiplier, shift = multiplier_of(SPREAD / (np.sqrt(columns) * SPREAD**2))
        scores = self.matmul(
            x, columns, self.rows, b_source=Stationary.COLUMNS, b_digits=count, multiplier=multiplier, shift=shift,
            row_maximum=1, **_renamed(x, "b"), **self.place("o", self.rows),
        )  # fmt: skip
        multiplier, shift = multiplier_of(1.0)
        return self.matmul(
            scores, self.rows, columns, prologue=Prologue.EXP, exp_shift=EXP_SHIFT, row_scale=RowScale.SOFTMAX,
            b_source=Stationary.ROWS, b_digits=count, multiplier=multiplier, shift=shift, **_renamed(x, "b"),
            **self.place("o", columns),
        )  # fmt: skip

    def mixture(self, x: dict[str, Any], columns: int) -> dict[str, Any]:
        """Two experts of two products each; each token goes to one of them, whose score scales what is added to x."""
        logits = self.product(x, columns, 2)
        self.commands.append(
            Command(kind=Kind.ROUTE, rows=self.rows, columns=2, top_k=1, exp_shift=EXP_SHIFT, **logits)
        )
        buffers, out = (self.place("o", columns) for _ in range(2)), self.place("o", columns)
        for expert, buffer in enumerate(buffers):
            queue = {"expert": expert, "queue": Queue.GATHER, "post": Post.RELU}
            hidden = self.product(x, columns, columns, **queue, **buffer)
            queue |= {"queue": Queue.SCATTER, "post": Post.NONE, "row_scale": RowScale.GATE, "residual": Residual.CHAIN}
            self.product(hidden, columns, columns, **queue, **_renamed(x, "r"), **out)
        return {"a_address": out["o_address"], "a_stride": out["o_stride"]}

    def program(self) -> Program:
        commands = (*self.commands, Command(kind=Kind.END))
        commands = (replace(commands[0], rows=len(commands)), *commands[1:])
        table = command_table(self.config, [commands]).ljust(self.base, b"\0")
        task = Task(TASK, commands, (), (), self.input.nbytes, self.output_bytes, 0)
        return Program(self.config, "w8a8", (task,), table + self.image)


def _aligned(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _renamed(place: dict[str, Any], name: str) -> dict[str, Any]:
    return {field.replace("a_", f"{name}_", 1): value for field, value in place.items()}


def _drafted(config: Config, rows: int, columns: int, *, attention: bool, mixture: bool) -> _Draft:
    draft = _Draft(config, rows)
    x = draft.product(draft.load(columns), columns, columns)
    if attention:
        x = draft.attention(x, columns)
    if mixture:
        x = draft.mixture(x, columns)
    draft.table(BUMP)
    y = draft.product(x, columns, columns, post=Post.EVEN, post_shift=12, residual=Residual.ADD, **_renamed(x, "r"))
    draft.store(y)
    return draft


def selftest(config: Config) -> tuple[Program, Elements]:
    """The richest Program that the Config holds, and its input region.

    Rows of more than one tile if they fit; attention and a mixture of two experts where there are commands and
    accumulator bits for them.
    """
    for columns in (config.inputs + 1, config.lanes):
        for parts in ((True, True), (False, True), (True, False), (False, False)):
            for rows in (5, 1):
                draft = _drafted(config, rows, columns, attention=parts[0], mixture=parts[1])
                program = draft.program()
                try:
                    verify(program)
                except ProgramError:
                    continue
                return program, draft.input
    raise ProgramError(f"no Program is small enough for {config}")
