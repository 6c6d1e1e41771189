"""Random Programs: every field of every command, far beyond what the compiler makes, within what `verify` admits."""

import math
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from patchloom.compiler.machine.commands import (
    FIELDS,
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
from patchloom.compiler.machine.fixed import (
    EXP_ONE,
    SCORE_FRACTION,
    SUM_WIDTH,
    Ints,
    multiplier_of,
    operand_limits,
)
from patchloom.compiler.machine.layout import Weights, pack
from patchloom.compiler.machine.program import Program, Task, command_table
from patchloom.compiler.machine.tables import CODE_BITS, ENTRIES, ENTRY, LAST, TABLE_BYTES, WITH_TABLE, Table
from patchloom.compiler.machine.verify import verify
from patchloom.compiler.quantise.linear import normalise_constants
from patchloom.compiler.schedule.image import Image
from patchloom.sim.interpret import State, execute

Region = np.ndarray


@dataclass(eq=False)
class Tensor:
    """A tensor in the scratchpad. `whole`: its chunks are one block, all written."""

    address: int
    stride: int
    rows: int
    columns: int
    wide: bool
    whole: bool = True
    packed: bool = False
    statistics: int | None = None

    def fields(self, name: str, row: int = 0) -> dict[str, int]:
        packed = {f"{name}_packed": int(self.packed)} if name in "ao" else {}
        return {f"{name}_address": self.address + row * self.stride, f"{name}_stride": self.stride} | packed


@dataclass
class Maker:
    """Drafts one task. Scales follow from what the interpreter says of the commands so far."""

    config: Config
    rng: np.random.Generator
    image: Image
    commands: list[Command] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    region: Region = field(default_factory=lambda: np.zeros(0, np.int16))
    free: int = 0  # chunk
    free_statistics: int = 0
    output_bytes: int = 0
    table: Table | None = None  # the epilogue's

    def __post_init__(self) -> None:
        self.rows = int(self.rng.choice([1, 2, 3, 5, 8, 13, self.config.max_rows]))

    # --- Places and numbers ---

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def size(self) -> int:
        """Features: one, about a tile, some tiles."""
        c = self.config
        return int(self.rng.choice([1, c.lanes, c.inputs, c.outputs + 1, int(self.rng.integers(1, 2 * c.inputs + 3))]))

    def whole_words(self, chunks: int) -> int:
        unit = max(self.config.word_width // (16 * self.config.lanes), 1)
        return -(-chunks // unit) * unit

    def place(self, rows: int, columns: int, *, wide: bool, gap: bool = False, packs: bool = True) -> Tensor:
        """`packs`: it may be packed if it has 8 bits."""
        packed = packs and not wide and self.chance(0.5)
        pieces = -(-columns // self.config.lanes)
        stride = (-(-pieces // 2) if packed else pieces) + gap
        tensor = Tensor(self.free, stride, rows, columns, wide, not gap and not (packed and pieces % 2), packed)
        self.free += self.whole_words(rows * stride)
        if self.free > self.config.scratchpad_chunks:
            raise MemoryError("scratchpad")
        return tensor

    def values(self, tensor: Tensor) -> Ints:
        """What the tensor holds after the commands so far."""
        seen: list[Ints] = []

        def observe(position: int, command: Command, state: State) -> None:
            if position == len(self.commands) - 1:
                places = tensor.address + tensor.stride * np.arange(tensor.rows)
                seen.append(state.read(places, tensor.columns, int(tensor.packed)))

        execute(self.program(tuple(self.commands)), None, self.region, observe)
        return seen[0]

    def program(self, commands: tuple[Command, ...]) -> Program:
        head = bytes(self.image.base)
        task = Task("main", commands, (), (), self.region.nbytes, self.output_bytes, 0)
        return Program(self.config, "", (task,), head + b"".join(self.image.parts))

    def spread(self, tensor: Tensor) -> float:
        return float(np.sqrt(np.mean(self.values(tensor).astype(np.float64) ** 2))) + 1

    def pick(self, rows: int = 1, columns: int = 1, *, packed: bool = False) -> Tensor | None:
        """`packed`: it may be."""
        fitting = [t for t in self.tensors if t.rows >= rows and t.columns >= columns and packed >= t.packed]
        return fitting[self.rng.integers(len(fitting))] if fitting else None

    # --- Commands ---

    def load(self) -> None:
        wide, columns = self.chance(0.5), self.size()
        tensor = self.place(self.rows, columns, wide=wide, packs=False)
        padded = np.zeros((self.rows, tensor.stride * self.config.lanes), np.int16)
        padded[:, :columns] = self.random(wide, (self.rows, columns))
        chunks = self.whole_words(self.rows * tensor.stride)
        raw = padded.tobytes().ljust(chunks * self.config.lanes * 2, b"\0")
        if self.chance(0.3):
            space, address = Space.PROGRAM, self.image.add("constant", raw)
        else:
            space, address = Space.INPUT, self.region.nbytes
            self.region = np.concatenate([self.region, np.frombuffer(raw, np.int16)])
        self.transfer(Kind.LOAD, tensor, chunks, space, address)
        self.tensors.append(tensor)

    def random(self, wide: bool, shape: tuple[int, ...]) -> Ints:
        limit = 1 << (15 if wide else 7)
        value = np.rint(self.rng.normal(0, limit * self.rng.choice([0.02, 0.3, 2]), shape))
        return np.clip(value, -limit, limit - 1).astype(np.int64)

    def transfer(self, kind: Kind, tensor: Tensor, chunks: int, space: Space, address: int) -> None:
        beats = chunks * self.config.lanes * 2 // self.config.beat_bytes
        fields = {"dma_space": space, "dma_address": address, "dma_beats": beats}
        self.commands.append(Command(kind=kind, rows=chunks, a_address=tensor.address, **fields))

    def store_all(self) -> None:
        for tensor in self.tensors:
            if tensor.whole:
                chunks = self.whole_words(tensor.rows * tensor.stride)
                self.transfer(Kind.STORE, tensor, chunks, Space.OUTPUT, self.output_bytes)
                self.output_bytes += chunks * self.config.lanes * 2

    def matmul(self, a: Tensor, source: Stationary, **fields: int) -> Tensor | None:
        """A product of (the first columns of) `a` with weights or another tensor; None if none fits."""
        c, depth = (
            self.config,
            int(fields.pop("depth", a.columns if self.chance(0.7) else 0)) or int(self.rng.integers(1, a.columns + 1)),
        )
        a_wide = int(fields.pop("a_wide", a.wide if self.chance(0.8) else not a.wide))
        largest = (
            EXP_ONE >> (0 if a_wide else 8) if fields.get("prologue") == Prologue.EXP else 1 << (15 if a_wide else 7)
        )
        if fields.get("prologue") == Prologue.EXP and depth * largest >= 1 << SUM_WIDTH:
            return None
        spread = {
            Prologue.NORMALISE: 1 << (11 if a_wide else 5),
            Prologue.RMS: 1 << (11 if a_wide else 5),
            Prologue.EXP: largest / 3,
        }.get(Prologue(fields.get("prologue", 0)), min(self.spread(a), largest))
        if source == Stationary.MEMORY:
            columns = int(fields.pop("columns", 0)) or self.size()
            stationary, total = self.weights(depth, columns, largest, spread, fields)
        else:
            b = self.pick(1 if source == Stationary.COLUMNS else depth, depth if source == Stationary.COLUMNS else 1)
            if b is None:
                return None
            columns = b.rows if source == Stationary.COLUMNS else b.columns
            columns = columns if self.chance(0.7) else int(self.rng.integers(1, columns + 1))
            width = 16 if b.wide or c.weight_width == 16 else 8
            if ((depth * largest << (width - 1)).bit_length() + 1) > c.accumulator_width:
                return None
            total = math.sqrt(depth) * spread * self.spread(b)
            stationary = {"b_source": source, "b_digits": width // c.weight_width, **b.fields("b")}
        rows = int(fields.pop("rows", a.rows))
        out = fields.pop("out", None) or self.place(
            rows,
            columns,
            wide=self.chance(0.5),
            gap=not fields.get("queue") and self.chance(0.15),
            packs=not fields.get("row_maximum"),
        )
        epilogue = self.epilogue(out, columns, total, stationary, fields)
        command = Command(
            kind=Kind.MATMUL, rows=rows, depth=depth, columns=columns, a_wide=a_wide,
            **(a.fields("a") | stationary | epilogue | out.fields("o") | {"o_wide": out.wide} | fields),
        )  # fmt: skip
        self.commands.append(command)
        return out

    def load_table(self, post: Post) -> None:
        """One that `post` may use, unless the one that is there does; now and then another one."""
        fits = self.table and (post == Post.ALONE or self.table(np.array([LAST]))[0] >= 0)
        if post not in WITH_TABLE or (fits and self.chance(0.7)):
            return
        steps = self.rng.integers(-1, 2, ENTRIES) * self.rng.integers(0, ENTRY["slope"].high + 1, ENTRIES)
        steps[0] = abs(steps[0])  # the last one: no less than nothing is taken from the largest words
        knots = np.clip(np.cumsum(steps), ENTRY["base"].low, ENTRY["base"].high)[::-1]
        self.table = Table.through("random", [*knots, knots[-1]])
        beats = TABLE_BYTES // self.config.beat_bytes
        address = self.image.add("table", self.table.data)
        self.commands.append(Command(kind=Kind.TABLE, rows=ENTRIES, dma_address=address, dma_beats=beats))

    def weights(self, depth: int, columns: int, largest: int, spread: float, fields: dict) -> tuple[dict, float]:
        """Random weights that the accumulator holds, as fields of the command; the spread of the sums."""
        c = self.config
        digits = int(self.rng.integers(1, 16 // c.weight_width + 1))
        low, high = operand_limits(digits * c.weight_width)
        matrix = self.rng.integers(low, high + 1, (depth, columns))
        if self.chance(0.2):
            matrix[self.rng.random(matrix.shape) < 0.7] = 0
        while int(np.abs(matrix).sum(axis=0).max()) * largest >= 1 << (c.accumulator_width - 2):
            matrix >>= 1
        total = math.sqrt(depth) * spread * (float(np.std(matrix)) + 1)
        bias = np.rint(self.rng.normal(0, min(total, 2.0 ** (c.accumulator_width - 5)), columns)).astype(np.int64)
        bias = np.clip(bias, -(1 << (c.accumulator_width - 3)), 1 << (c.accumulator_width - 3))
        return {"matrix": matrix, "bias": bias, "b_digits": digits}, total

    def epilogue(self, out: Tensor, columns: int, total: float, stationary: dict, fields: dict) -> dict:
        """Scales that fill the output's width, now and then too much; weights go to the image."""
        post = Post(int(fields.pop("post", self.rng.choice(list(Post)))))
        self.load_table(post)
        target = (1 << (15 if out.wide else 7)) * float(self.rng.choice([0.1, 0.3, 1]))
        if post in WITH_TABLE:
            word = 2.0 ** (CODE_BITS + self.rng.uniform(-4, 0))
            late = int(np.clip(round(math.log2(word / target)), 0, 31))
        else:
            late = int(self.rng.integers(0, 8))
            word = target * 2.0**late
        if fields.get("row_scale") == RowScale.SOFTMAX:
            total /= EXP_ONE / 3 * 8
        result = {"post": post, "post_shift": late}
        if "matrix" not in stationary:
            multiplier, shift = self.multiplier(word / total)
            return result | {"multiplier": multiplier, "shift": shift}
        matrix, bias = stationary.pop("matrix"), stationary.pop("bias")
        factors = np.array([self.multiplier(word / total * 2.0 ** self.rng.uniform(-1, 1)) for _ in range(columns)])
        data = pack(self.config, Weights(matrix, bias, factors[:, 0], factors[:, 1]), stationary["b_digits"])
        stationary["dma_address"] = self.image.add("weights", data)
        stationary["dma_beats"] = len(data) // self.config.beat_bytes
        return result

    def multiplier(self, factor: float) -> tuple[int, int]:
        return multiplier_of(min(max(factor, 2.0**-55), 65535.0))

    # --- Steps: one or some commands ---

    def plain(self) -> None:
        """A product with options at random."""
        a = self.pick(packed=True)
        assert a is not None
        fields: dict = {}
        if a.statistics is not None and self.chance(0.7):
            fields |= {"prologue": self.norm(), "a_statistics": a.statistics, "depth": a.columns}
            fields |= self.normalise(a)
        elif self.chance(0.3) and a.rows > 1:
            first = int(self.rng.integers(a.rows))  # some rows
            a = replace(a, address=a.address + first * a.stride, rows=a.rows - first)
        lines = self.lines(a) if self.chance(0.4) else {}
        if "prologue" in fields and lines.get("rows", 0) > a.rows:
            lines = {}  # there are no statistics of so many
        if "prologue" not in fields and self.chance(0.3):
            fields |= self.runs(a, lines)
        source = Stationary(int(self.rng.choice([0, 0, 1, 2])))
        before = self.free
        out = self.matmul(a, source, **fields, **lines)
        if out is None:
            return
        added = self.second(out)
        if lines:
            self.arrange(out, added)
        elif added is not None:
            last = self.commands[-1]
            read = [last.a_address] + [last.b_address] * (source != Stationary.MEMORY)
            apart = not any(added.address <= x < added.address + added.rows * added.stride for x in read)
            if apart and self.chance(0.4):  # in its place
                out, added.statistics = added, None
                self.amend(o_wide=int(out.wide), **out.fields("o"))
                self.tensors.remove(out)
        self.gather(out)
        if not out.packed and self.chance(0.3):
            self.amend(row_maximum=1)
        assert self.free >= before
        self.tensors.append(out)

    def lines(self, a: Tensor) -> dict[str, int]:
        """Rows of a tensor as lines: some rows, again, apart, backwards through the columns of a map."""
        line = int(self.rng.integers(1, min(a.rows, FIELDS["line"].high) + 1))
        lines = int(self.rng.integers(1, self.config.max_rows // line + 1))
        step, outer = int(self.rng.integers(3)), int(self.rng.choice([0, 1, 2, line]))
        if (line - 1) * step >= a.rows:
            step = 1
        if outer:
            lines = min(lines, (a.rows - 1 - (line - 1) * step) // outer + 1)
        return {"rows": line * lines, "line": line, "a_stride": step * a.stride, "a_outer": outer * a.stride}

    def runs(self, a: Tensor, lines: dict[str, int]) -> dict[str, int]:
        """A row's slices as runs of what lies at several rows of the tensor; nothing if it has too few."""
        places = Command(kind=Kind.MATMUL, **a.fields("a") | lines).places("a", np.arange(lines.get("rows", a.rows)))
        end, packed = a.address + a.rows * a.stride, int(a.packed)
        run, step, jump = int(self.rng.integers(1, 4)), int(self.rng.integers(3)), int(self.rng.integers(4))
        depth = int(self.rng.integers(1, 6)) * self.config.inputs - int(self.rng.integers(3))
        made = {"a_run": run, "a_step": step * a.stride, "a_jump": jump * a.stride, "depth": depth}
        walk = Command(kind=Kind.MATMUL, a_packed=packed, **made).pieces(self.config.inputs, self.config.lanes)
        fits = a.whole and int(places.max()) + (int(walk.max()) >> packed) < end
        return made if fits else {}

    def arrange(self, out: Tensor, added: Tensor | None) -> None:
        """Lines of the last command's results: one behind the other, or side by side as columns of a map."""
        line, lines = self.commands[-1].line, out.rows // self.commands[-1].line
        turned = self.chance(0.5)
        self.amend(o_stride=out.stride * (lines if turned else 1), o_outer=out.stride * (1 if turned else line))
        if added is not None:
            again = self.chance(0.3)  # one row for each line
            self.amend(r_stride=0 if again else added.stride, r_outer=added.stride * (1 if again else line))

    def second(self, out: Tensor) -> Tensor | None:
        """Another tensor for the last command, whose results it is added to or multiplies."""
        second = self.pick(out.rows, out.columns) if self.chance(0.4) else None
        if second is not None and self.chance(0.3):
            self.amend(residual=Residual.MAXIMUM, **second.fields("r"))
        elif second is not None and self.chance(0.5):
            late = 16 - math.log2(self.spread(second))  # bits that the product has too few
            shift = max(round(self.commands[-1].post_shift - late), 0)
            self.amend(residual=Residual.MULTIPLY, post_shift=shift, **second.fields("r"))
        elif second is not None:
            self.amend(residual=Residual.ADD, **second.fields("r"))
        return second

    def norm(self) -> Prologue:
        return Prologue.NORMALISE if self.chance(0.7) else Prologue.RMS

    def normalise(self, a: Tensor) -> dict[str, int]:
        wide = self.chance(0.5)
        _, constants = normalise_constants(a.columns, 1e-3, 2.0**-6, 2.0 ** (-11 if wide else -5))
        return asdict(constants) | {"a_wide": int(wide)}

    def amend(self, **fields: int) -> None:
        """More fields of the last command."""
        self.commands[-1] = replace(self.commands[-1], **fields)

    def gather(self, out: Tensor) -> None:
        whole = (self.commands[-1].rows, self.commands[-1].columns) == (out.rows, out.columns)
        if whole and self.chance(0.4) and self.free_statistics + out.rows <= self.config.statistics_rows:
            out.statistics = self.free_statistics
            self.amend(statistics=1, o_statistics=out.statistics)
            self.free_statistics += out.rows

    def attention(self) -> None:
        """Scores with their maxima, then exponentials times values."""
        q = self.pick(packed=True)
        assert q is not None
        scores = self.matmul(q, Stationary.COLUMNS, post=Post.NONE, row_maximum=1)
        if scores is None:
            return
        self.second(scores)
        self.tensors.append(scores)
        shift = int(np.clip(round(math.log2(2 << SCORE_FRACTION) - math.log2(self.spread(scores))), 0, SCORE_FRACTION))
        scale = RowScale.SOFTMAX if self.chance(0.8) else RowScale.NONE
        fields = {"prologue": Prologue.EXP, "exp_shift": shift, "row_scale": scale, "depth": scores.columns}
        out = self.matmul(scores, Stationary(int(self.rng.choice([0, 2, 2]))), **fields)
        if out is not None:
            self.gather(out)
            self.tensors.append(out)

    def mixture(self) -> None:
        """ROUTE, then two products for each expert."""
        logits, c = self.pick(columns=2), self.config
        if logits is None:
            return
        experts = int(min(logits.columns, c.max_experts, self.rng.integers(2, 7)))
        top_k = int(self.rng.integers(1, min(experts, c.max_top_k) + 1))
        shift = int(np.clip(round(math.log2(1 << SCORE_FRACTION) - math.log2(self.spread(logits))), 0, SCORE_FRACTION))
        tokens, score_all = logits.rows, int(self.chance(0.5))
        self.commands.append(
            Command(
                kind=Kind.ROUTE, rows=tokens, columns=experts, top_k=top_k, score_all=score_all, exp_shift=shift,
                **logits.fields("a"),
            )
        )  # fmt: skip
        x, added = self.pick(tokens, packed=True), self.pick(tokens)
        assert x is not None
        assert added is not None
        hidden, columns = self.size(), added.columns
        out = self.place(tokens, columns, wide=self.chance(0.7), packs=False)
        buffers = [self.place(tokens, hidden, wide=self.chance(0.5)) for _ in range(2)]
        if self.chance(0.5):
            chain = {"residual": Residual.CHAIN, **added.fields("r")}
        else:
            chain = {"residual": Residual.CHAIN_ZERO}
        if self.chance(0.5) and self.free_statistics + tokens <= c.statistics_rows:
            out.statistics = self.free_statistics
            chain |= {"statistics": 1, "o_statistics": out.statistics}
            self.free_statistics += tokens
        normalised = {}
        if x.statistics is not None:
            normalised = {"prologue": self.norm(), "a_statistics": x.statistics, "depth": x.columns}
            normalised |= self.normalise(x)
        for expert in range(experts):
            expected = {"expected": int(self.rng.integers(2))}
            queue, buffer = {"rows": tokens, "expert": expert} | expected, buffers[expert % 2]
            gather = queue | {"queue": Queue.GATHER, "out": buffer, "columns": hidden}
            self.matmul(x, Stationary.MEMORY, **gather, **normalised)
            scatter = queue | {"queue": Queue.SCATTER, "out": out, "columns": columns, "depth": hidden}
            scale = {"row_scale": RowScale.GATE, "post": Post.NONE}
            self.matmul(buffer, Stationary.MEMORY, **scatter, **scale, **chain)
        self.tensors.append(out)

    def run(self, steps: int) -> None:
        self.commands.append(Command(kind=Kind.BEGIN, epsilon=self.config.fingerprint))
        self.load()
        self.load()
        room = self.config.command_depth - 16
        try:
            for _ in range(steps):
                step = [self.plain, self.plain, self.plain, self.attention, self.mixture, self.load]
                step[self.rng.integers(len(step))]()
                if len(self.commands) > room - len(self.tensors):
                    break
        except MemoryError:
            pass
        self.store_all()
        self.commands.append(Command(kind=Kind.END))
        self.amend_first(rows=len(self.commands))

    def amend_first(self, **fields: int) -> None:
        self.commands[0] = replace(self.commands[0], **fields)


def random_program(config: Config, seed: int, *, tasks: int = 1, steps: int = 10) -> tuple[Program, list[Region]]:
    """A Program that `verify` admits, and an input region for each of its tasks."""
    image = Image(config, tasks)
    makers = [Maker(config, np.random.default_rng([seed, number]), image) for number in range(tasks)]
    for maker in makers:
        maker.run(steps)
    table = command_table(config, [tuple(maker.commands) for maker in makers]).ljust(image.base, b"\0")
    made = tuple(
        Task(f"task {i}", tuple(m.commands), (), (), m.region.nbytes, m.output_bytes, 0) for i, m in enumerate(makers)
    )
    program = Program(config, "random", made, table + b"".join(image.parts), tuple(image.segments))
    verify(program)
    return program, [maker.region for maker in makers]
