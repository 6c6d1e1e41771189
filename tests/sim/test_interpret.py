"""Every command by hand: what goes in, what must come out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchloom.compiler.activations import ACTIVATIONS
from patchloom.compiler.machine.commands import (
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
from patchloom.compiler.machine.fixed import EXP_ONE, ROW_ONE, multiplier_of
from patchloom.compiler.machine.layout import Weights, pack
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.tables import ENTRIES, Table
from patchloom.compiler.quantise.linear import normalise_constants
from patchloom.sim.interpret import execute

CONFIG = Config(inputs=4, outputs=4, lanes=4, scratchpad_chunks=256, max_rows=16)
OUT = 128  # chunk from which results are stored


def tensor(*rows):
    return np.array(rows, np.int64)


class Bench:
    """Tensors into the scratchpad, commands, one tensor out."""

    def __init__(self) -> None:
        self.region, self.commands, self.image = np.zeros(0, np.int16), [], b""

    def put(self, address: int, value) -> "Bench":
        """Load `value` [rows, columns] with the least stride."""
        chunks = -(-value.shape[1] // CONFIG.lanes)
        padded = np.zeros((len(value), chunks * CONFIG.lanes), np.int16)
        padded[:, : value.shape[1]] = value
        self.commands.append(Command(
            kind=Kind.LOAD, rows=len(value) * chunks, a_address=address,
            dma_space=Space.INPUT, dma_address=2 * self.region.size,
        ))  # fmt: skip
        self.region = np.concatenate([self.region, padded.reshape(-1)])
        return self

    def do(self, kind: Kind, **fields) -> "Bench":
        self.commands.append(Command(kind=kind, **fields))
        return self

    def matmul(self, weights: Weights | None = None, **fields) -> "Bench":
        """Weights from memory, 16-bit output at `OUT`, unless `fields` say otherwise."""
        if weights is not None:
            raw = pack(CONFIG, weights, 2)
            depth, columns = weights.matrix.shape
            memory = {"depth": depth, "columns": columns, "b_digits": 2, "dma_address": len(self.image)}
            fields = memory | {"dma_beats": len(raw) // CONFIG.beat_bytes} | fields
            self.image += raw
        defaults = {"a_stride": 1, "o_address": OUT, "o_stride": 1, "o_wide": 1}
        return self.do(Kind.MATMUL, **(defaults | fields))

    def table(self, table: Table) -> "Bench":
        self.image += table.data
        return self.do(Kind.TABLE, rows=ENTRIES, dma_address=len(self.image) - len(table.data))

    def run(self, rows: int, columns: int, address: int = OUT, observe=None):
        """(rows x columns from `address`, saturations)."""
        chunks = -(-columns // CONFIG.lanes)
        store = Command(kind=Kind.STORE, rows=rows * chunks, a_address=address, dma_space=Space.OUTPUT)
        size = 2 * rows * chunks * CONFIG.lanes
        task = Task("main", (*self.commands, store), (), (), 2 * self.region.size, size, 0)
        out, saturations = execute(Program(CONFIG, "", (task,), self.image), None, self.region, observe)
        return out.reshape(rows, -1)[:, :columns].astype(np.int64), saturations


def linear(matrix, bias=0, multiplier=1 << 15, shift=15) -> Weights:
    columns = matrix.shape[1]
    return Weights(matrix, *(np.broadcast_to(np.int64(x), columns) for x in (bias, multiplier, shift)))


def test_load_and_store():
    value = tensor([1, 2, 3, 4, 5], [-1, -2, -3, -4, -32768])
    out, saturations = Bench().put(OUT, value).run(2, 5)
    assert np.array_equal(out, value)
    assert saturations == 0


def test_matmul_with_bias_and_rounding():
    a, w = tensor([1, 2, 3], [-4, 5, 6]), tensor([1, -1, 7, 0, 2], [3, 0, 1, 1, 1], [0, 2, 5, 9, 3])
    bias, multiplier, shift = tensor([10, 0, -3, 4, 5], [32768, 40000, 65535, 1, 3], [15, 17, 16, 1, 2])
    out, _ = Bench().put(0, a).matmul(Weights(w, bias, multiplier, shift), rows=2, o_stride=2).run(2, 5)
    assert np.array_equal(out, np.floor((a @ w + bias) * multiplier / 2.0**shift + 0.5))


def test_lanes_beyond_the_columns_become_zero():
    bench = Bench().put(OUT, tensor([7] * 8)).put(0, tensor([1, 1]))
    out, _ = bench.matmul(linear(tensor([1] * 5, [1] * 5)), rows=1, o_stride=2).run(1, 8)
    assert out.tolist() == [[2, 2, 2, 2, 2, 0, 0, 0]]


def test_operands_and_results_saturate():
    a = tensor([200, -200], [32767, -32768])
    identity = linear(np.eye(2, dtype=np.int64))
    out, saturations = Bench().put(0, a).matmul(identity, rows=2).run(2, 2)
    assert (out.tolist(), saturations) == ([[127, -128], [127, -128]], 4)
    out, saturations = Bench().put(0, a).matmul(identity, rows=2, a_wide=1).run(2, 2)
    assert (out.tolist(), saturations) == ([[200, -200], [127 * 257, -32768]], 1)
    out, saturations = Bench().put(0, a).matmul(identity, rows=2, a_wide=1, o_wide=0).run(2, 2)
    assert (out.tolist(), saturations) == ([[127, -128], [127, -128]], 5)


def test_epilogue_word_saturates():
    big = linear(tensor([30000]), multiplier=1 << 15, shift=10)
    out, saturations = Bench().put(0, tensor([20000])).matmul(big, rows=1, a_wide=1, post_shift=8).run(1, 1)
    assert (out.tolist(), saturations) == ([[32767]], 2)  # 2**23 - 1, then rounded to 2**15


def test_relu_and_gelu():
    a = tensor([-300, -1, 0, 1, 300])
    out, _ = Bench().put(0, a).matmul(linear(np.eye(5, dtype=np.int64)), rows=1, a_wide=1, a_stride=2, o_stride=2,
                                      post=Post.RELU).run(1, 5)  # fmt: skip
    assert out.tolist() == [[0, 0, 0, 1, 300]]
    gelu = ACTIVATIONS["gelu"]
    values = np.linspace(-6, 6, 16)
    a = np.rint(values * 256).astype(np.int64)[:, None]
    scaled = linear(tensor([1]), multiplier=1 << 15, shift=15 - (gelu.fraction - 8))
    bench = Bench().put(0, a).table(gelu.table)
    out, _ = bench.matmul(scaled, rows=16, a_wide=1, post=Post.EVEN, post_shift=gelu.fraction - 12).run(16, 1)
    exact = torch.nn.functional.gelu(torch.from_numpy(a[:, 0] / 256)).numpy()
    assert np.abs(out[:, 0] / 4096 - exact).max() < 2.0**-12


WORDS = [-(1 << 22), -2048, -1536, -1024, 0, 1023, 2048, 300_000]


@pytest.mark.parametrize(
    ("post", "results"),
    [
        (Post.EVEN, [-512, -2, -2, -1, 0, 1022, 2046, 300_000 - 293]),
        (Post.SIDED, [0, -254, -255, -255, -256, 1023 - 257, 2048 - 258, 300_000 - 512]),
        (Post.ALONE, [0, -254, -255, -255, -256, -257, -258, -512]),
    ],
)
def test_table(post, results):
    """Of each entry's number: by magnitude, or from the middle; half of a step rounds up, beyond are the ends."""
    numbers = Table.through("numbers", np.arange(ENTRIES + 1.0))
    bench = Bench().put(0, tensor([0, 0, 0, 0])).table(numbers)
    weights = linear(tensor(*[[0] * 8] * 4), bias=tensor(*WORDS), multiplier=1, shift=0)
    out, _ = bench.matmul(weights, rows=1, post=post, o_stride=2).run(1, 8)
    assert out[0].tolist() == np.clip(results, -(1 << 15), (1 << 15) - 1).tolist()


@given(st.integers(1, 5), st.integers(1, 27), st.integers(1, 21), st.integers(0, 2), st.randoms())
def test_packed(rows, columns, outputs, gap, random):
    """Half a chunk holds as many elements as a chunk does of 16 bits; the other half stays as it is."""
    value = np.array([[random.randint(-128, 127) for _ in range(columns)] for _ in range(rows)])
    second = np.array([[random.randint(-2, 2) for _ in range(outputs)] for _ in range(columns)])
    stride, before = -(-columns // (2 * CONFIG.lanes)) + gap, tensor([-1] * CONFIG.lanes) * np.ones((60, 1), np.int64)
    identity, wide = linear(np.eye(columns, dtype=np.int64)), -(-columns // CONFIG.lanes)
    bench = Bench().put(0, value).put(60, before)
    bench.matmul(identity, rows=rows, a_stride=wide, a_wide=1, o_address=60, o_stride=stride, o_wide=0, o_packed=1)
    fields = {"a_address": 60, "a_stride": stride, "a_packed": 1, "a_wide": 1, "o_stride": -(-outputs // CONFIG.lanes)}
    seen = []
    got, _ = bench.matmul(linear(second), rows=rows, **fields).run(
        rows, outputs, observe=lambda position, command, state: seen.append(state.scratchpad[60:120].copy())
    )
    assert np.array_equal(got, value @ second)
    octets = seen[-1].view(np.int8).reshape(-1)
    for row in range(rows):
        begin, end = row * stride * 2 * CONFIG.lanes, (row + 1) * stride * 2 * CONFIG.lanes
        padded = np.full(end - begin, -1)
        padded[: -(-columns // CONFIG.lanes) * CONFIG.lanes] = 0
        padded[:columns] = value[row]
        assert octets[begin:end].tolist() == padded.tolist()


def test_residual_in_place():
    value, other, identity = tensor([100, -100], [30000, 7]), tensor([3, 4], [-5, -6]), linear(tensor([1, 0], [0, 1]))
    bench = Bench().put(0, value).put(OUT, other)
    out, _ = bench.matmul(identity, rows=2, a_wide=1, residual=Residual.ADD, r_address=OUT, r_stride=1).run(2, 2)
    assert np.array_equal(out, value + other)


def test_residual():
    bench = Bench().put(0, tensor([1, 2], [3, 4])).put(8, tensor([100, 32767], [-5, 6]))
    identity = linear(np.eye(2, dtype=np.int64))
    out, saturations = bench.matmul(identity, rows=2, residual=Residual.ADD, r_address=8, r_stride=1).run(2, 2)
    assert (out.tolist(), saturations) == ([[101, 32767], [-2, 10]], 1)


def test_a_second_tensor_multiplies():
    """In units of 2**-16, as a row scale does; rounded half up, then limited."""
    bench = Bench().put(0, tensor([1000, -3], [30000, 30000])).put(8, tensor([16384, -32768], [32767, -32768]))
    identity = linear(np.eye(2, dtype=np.int64))
    fields = {"a_wide": 1, "residual": Residual.MULTIPLY, "r_address": 8, "r_stride": 1}
    out, saturations = bench.matmul(identity, rows=2, **fields).run(2, 2)
    assert (out.tolist(), saturations) == ([[250, 2], [15000, -15000]], 0)


@pytest.mark.parametrize("residual", [Residual.ADD, Residual.MULTIPLY])
def test_a_second_tensor_beside_a_stationary_one(residual):
    q, k, second = tensor([3, 4], [-5, 6]), tensor([10, 20], [7, 8]), tensor([10, -20], [30, 2])
    bench = Bench().put(0, q).put(4, k).put(8, second)
    fields = {"b_source": Stationary.COLUMNS, "b_address": 4, "b_stride": 1, "b_digits": 2, "multiplier": 1 << 15}
    fields |= {"residual": residual, "r_address": 8, "r_stride": 1, "shift": 15 if residual == Residual.ADD else 0}
    out, _ = bench.matmul(None, rows=2, depth=2, columns=2, a_wide=1, **fields).run(2, 2)
    scores = q @ k.T
    assert np.array_equal(out, scores + second if residual == Residual.ADD else np.floor(scores * second / 2 + 0.5))


def test_normalise_by_gathered_statistics():
    rng = np.random.default_rng(0)
    features, scale = 24, 2.0**-12
    a = rng.integers(-3000, 3000, (5, features)) + 500
    a[4] = 700  # no variance
    identity = linear(np.eye(features, dtype=np.int64))
    _, constants = normalise_constants(features, 1e-5, 1 / 256, scale)
    bench = Bench().put(0, a).matmul(identity, rows=5, a_wide=1, a_stride=6, o_address=40, o_stride=6,
                                     statistics=1, o_statistics=3)  # fmt: skip
    bench.matmul(identity, rows=5, a_wide=1, a_address=40, a_stride=6, o_stride=6, a_statistics=3,
                 prologue=Prologue.NORMALISE, **vars(constants))  # fmt: skip
    out, saturations = bench.run(5, features)
    x = a / 256
    expected = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    assert np.abs(out * scale - expected).max() < 6e-4
    assert saturations == 0


@pytest.mark.parametrize("wide", [0, 1])
def test_attention(wide):
    rng = np.random.default_rng(1)
    tokens, keys, dim, scale = 6, 11, 8, 5e-5
    q, k, v = (rng.integers(-100, 100, (n, dim)) for n in (tokens, keys, keys))
    multiplier, shift = multiplier_of(scale * np.log2(np.e) * 2**9)  # nine fractional bits, three short of twelve
    bench = Bench().put(0, q).put(20, k).put(50, v)
    bench.matmul(
        rows=tokens, depth=dim, columns=keys, a_stride=2, b_source=Stationary.COLUMNS, b_address=20, b_stride=2,
        b_digits=1, multiplier=multiplier, shift=shift, o_address=80, o_stride=3, row_maximum=1,
    )  # fmt: skip
    bench.matmul(
        rows=tokens, depth=keys, columns=dim, a_address=80, a_stride=3, a_wide=wide, b_source=Stationary.ROWS,
        b_address=50, b_stride=2, b_digits=1, prologue=Prologue.EXP, exp_shift=3, row_scale=RowScale.SOFTMAX,
        multiplier=1 << 15, shift=15 - 8, post_shift=0, o_stride=2,
    )  # fmt: skip
    out, saturations = bench.run(tokens, dim)
    scores = q @ k.T * scale
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = p / p.sum(axis=1, keepdims=True) @ v
    assert np.abs(out / 256 - expected).max() < (0.06 if wide else 0.4)
    assert saturations == 0


def test_stationary_operand_is_two_signed_bytes():
    bench = Bench().put(0, tensor([1])).put(8, tensor([32767, -32768]))
    bench.matmul(rows=1, depth=1, columns=2, b_source=Stationary.ROWS, b_address=8, b_stride=1, b_digits=2,
                 multiplier=1 << 15, shift=15)  # fmt: skip
    assert bench.run(1, 2)[0].tolist() == [[127 * 257, -32768]]
    bench = Bench().put(0, tensor([1])).put(8, tensor([32767, -32768]))
    bench.matmul(rows=1, depth=1, columns=2, b_source=Stationary.ROWS, b_address=8, b_stride=1, b_digits=1,
                 multiplier=1 << 15, shift=15)  # fmt: skip
    assert bench.run(1, 2)[0].tolist() == [[127, -128]]


def routed(logits, top_k, score_all=0, exp_shift=0):
    """The queues: per expert a list of (token, score, first)."""
    queues = []

    def observe(position, command, state):
        if command.kind == Kind.ROUTE:
            queues.extend(
                list(zip(*(x.tolist() for x in (q.token, q.score, q.first)), strict=True)) for q in state.queues
            )

    stride = -(-logits.shape[1] // CONFIG.lanes)
    bench = Bench().put(OUT, logits)
    bench.do(
        Kind.ROUTE, rows=len(logits), columns=logits.shape[1], a_address=OUT, a_stride=stride,
        top_k=top_k, score_all=score_all, exp_shift=exp_shift,
    )  # fmt: skip
    bench.run(1, 1, observe=observe)
    return queues


def test_route_two_of_four():
    queues = routed(tensor([0, 4096, 0, -9000], [8192, 0, 4096, -4096]), 2)
    third, two_thirds = pytest.approx(ROW_ONE / 3, abs=4), pytest.approx(ROW_ONE * 2 / 3, abs=4)
    assert queues == [
        [(0, third, True), (1, two_thirds, True)],  # of equal logits the lower expert is chosen
        [(0, two_thirds, False)],
        [(1, third, False)],
        [],
    ]


def test_route_over_all():
    queues = routed(tensor([0, 4096, 0, 0]), 1, score_all=1)
    assert queues == [[], [(0, pytest.approx(ROW_ONE * 2 / 5, abs=4), True)], [], []]


def test_route_shifts_scores():
    queues = routed(tensor([0, 1024]), 2, exp_shift=2)
    assert queues[1][0][1] == pytest.approx(ROW_ONE * 2 / 3, abs=4)


@pytest.mark.parametrize("chain", [Residual.CHAIN, Residual.CHAIN_ZERO])
def test_experts_gather_and_scatter(chain):
    """The sum of x and score * expert, two experts of opposite sign, one without tokens."""
    x = tensor([100, 10], [200, 20], [300, 30])
    logits = tensor([4096, 0, -30000], [0, 4096, -30000], [0, 0, -30000])
    bench = Bench().put(0, x).put(8, logits).do(Kind.ROUTE, rows=3, columns=3, a_address=8, a_stride=1, top_k=2)
    word = {"multiplier": 1 << 15, "shift": 15 - 6}
    stride = 1 if chain == Residual.CHAIN else 255  # nobody reads there, so it may be beyond the scratchpad
    for e, factor in enumerate((1, -1, 5)):
        bench.matmul(linear(factor * np.eye(2, dtype=np.int64)), rows=3, a_wide=1, o_address=16,
                     queue=Queue.GATHER, expert=e)  # fmt: skip
        bench.matmul(linear(np.eye(2, dtype=np.int64), **word), rows=3, a_address=16, a_wide=1, queue=Queue.SCATTER,
                     expert=e, row_scale=RowScale.GATE, post_shift=6, residual=chain, r_address=0, r_stride=stride,
                     statistics=1)  # fmt: skip
    totals = []
    out, _ = bench.run(3, 2, observe=lambda i, c, s: totals.append((s.total[:3].copy(), s.squares[:3].copy())))
    difference = np.array([1, -1, 0])[:, None] / 3
    expected = x * difference + (x if chain == Residual.CHAIN else 0)
    assert np.abs(out - expected).max() <= 1
    assert np.array_equal(totals[-1][0], out.sum(axis=1))
    assert np.array_equal(totals[-1][1], (out * out).sum(axis=1))


def test_exponential_of_the_maximum_is_one():
    """Row maxima belong to the last command that gathered them."""
    bench = Bench().put(0, tensor([5], [9])).put(8, tensor([1]))
    bench.matmul(rows=2, depth=1, columns=1, b_source=Stationary.COLUMNS, b_address=8, b_stride=1, b_digits=1,
                 multiplier=1 << 15, shift=15, o_address=16, row_maximum=1)  # fmt: skip
    bench.matmul(rows=2, depth=1, columns=1, a_address=16, a_wide=1, prologue=Prologue.EXP, b_source=Stationary.ROWS,
                 b_address=8, b_stride=1, b_digits=1, multiplier=1 << 15, shift=15)  # fmt: skip
    assert bench.run(2, 1)[0].tolist() == [[EXP_ONE], [EXP_ONE]]
