"""cocotb tests of hw.dma.Reader, run by test_dma.py."""

import random

import cocotb
from axi_memory import ReadMemory, content
from cocotbext.axi import AxiRamRead, AxiReadBus

from patchloom.hw.axi import Response
from patchloom.hw.bundles import Request
from patchloom.sim.bench import Rules, Sink, Source, case, check_equal, cycles, flowing, pack, stalls, start, until

TIMEOUT = {"timeout_time": 2, "timeout_unit": "ms"}  # 200 000 cycles
CASE = case()
EVERYWHERE = {"window_first": 0, "window_last": (1 << 52) - 1}  # pages
BYTES, FIFO, SEED = (int(CASE[name]) for name in ("beat_bytes", "fifo_beats", "seed"))


def requests(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """(address, beats) of all sorts: none, one, up to and across pages, at the top of the address space."""
    pages = [0, 0x1000, 0x7FFF_F000, 0xFFFF_F000, 0x1_0000_0000, 0xFFFF_FFFF_FFF0_0000]
    sizes = [0, 1, 1, 2, 7, 4096 // BYTES, rng.randint(1, 3 * FIFO), rng.randint(1, 40)]
    return [(rng.choice(pages) + rng.randrange(4096 // BYTES) * BYTES, rng.choice(sizes)) for _ in range(count)]


def packed(asked) -> list[int]:
    return [pack(Request, address=address, beats=beats) for address, beats in asked]


def expected(asked) -> list[int]:
    return [content(address + i * BYTES, 8 * BYTES) for address, beats in asked for i in range(beats)]


class Bench:
    def __init__(self, dut, *, latency=20, lively=False, seed=SEED, response=lambda address: 0):
        pattern = [stalls(seed + i, 0.4) if lively else flowing() for i in range(4)]
        self.dut = dut
        self.memory = ReadMemory(dut, latency, pattern[0], pattern[1], response)
        self.source = Source(dut, "request", pattern[2])
        self.sink = Sink(dut, "data", pattern[3])
        self.rules = Rules.stream(dut, "data", lambda: bool(dut.flush.value))

    async def read(self, asked, deadline=100_000):
        self.source.queue.extend(packed(asked))
        want = expected(asked)
        check_equal(await self.sink.receive(len(want), deadline), want, f"data of {asked[:4]}...")

    async def finish(self):
        await until(self.dut, lambda: bool(self.dut.idle.value), 2000, "idle")
        await cycles(self.dut, 20)
        assert not self.sink.received, "more data than asked for"
        self.memory.rules.check()
        self.rules.check()


@cocotb.test(**TIMEOUT)
async def random_requests(dut):
    for latency in (0, 1, 90):
        await start(dut, flush=0, **EVERYWHERE) if latency == 0 else None
        bench = Bench(dut, latency=latency, lively=True) if latency == 0 else bench  # noqa: F821
        bench.memory.latency = latency
        await bench.read(requests(random.Random(SEED + latency), 25))
        await bench.finish()
    assert dut.error.value == 0
    assert max(beats for _, beats in bench.memory.bursts) <= FIFO // 4


@cocotb.test(**TIMEOUT)
async def one_beat_a_cycle(dut):
    """Across bursts, long requests and requests of two beats, once the first latency has passed."""
    latency = FIFO // 2
    bench = Bench(dut, latency=latency)
    await start(dut, flush=0, **EVERYWHERE)
    asked = [(BYTES * 3, 3 * FIFO), (0x10000, 2 * FIFO)] + [(0x20000 + 64 * i, 2) for i in range(3 * FIFO)]
    total = sum(beats for _, beats in asked)
    await bench.read(asked, deadline=latency + total + 30)
    await bench.finish()


@cocotb.test(**TIMEOUT)
async def never_asks_for_more_than_fits(dut):
    bench = Bench(dut, latency=2)
    bench.sink.pause = True
    await start(dut, flush=0, **EVERYWHERE)
    asked = [(0, 10 * FIFO)]
    bench.source.queue.extend(packed(asked))
    await cycles(dut, 4 * FIFO)
    assert sum(beats for _, beats in bench.memory.bursts) == FIFO, bench.memory.bursts
    assert not dut.idle.value
    bench.sink.pause = False
    check_equal(await bench.sink.receive(10 * FIFO, 20 * FIFO), expected(asked), "data after a long stall")
    await bench.finish()


@cocotb.test(**TIMEOUT)
async def errors_are_kept_until_flush(dut):
    bad = {BYTES * 5: Response.SLVERR, BYTES * 9: Response.DECERR}
    bench = Bench(dut, lively=True, response=lambda address: bad.get(address, Response.OKAY))
    await start(dut, flush=0, **EVERYWHERE)
    await bench.read([(0, 5)])
    assert dut.error.value == 0
    for first, code in ((0, Response.SLVERR), (BYTES * 6, Response.DECERR)):
        await bench.read([(first, 16)])  # all beats arrive, the bad ones too
        assert dut.error.value == code
        await bench.read([(BYTES * 100, 16)])
        assert dut.error.value == code
        dut.flush.value = 1
        await cycles(dut, 2)
        dut.flush.value = 0
        await cycles(dut, 1)
        assert dut.error.value == 0
    await bench.finish()


@cocotb.test(**TIMEOUT)
async def flush_in_every_phase(dut):
    """Flush at each cycle of a transfer, for one cycle or long; what follows is as if nothing had been."""
    rng = random.Random(SEED)
    bench = Bench(dut, latency=12, lively=True, response=lambda address: Response.SLVERR if address < 0x8000 else 0)
    await start(dut, flush=0, **EVERYWHERE)
    for moment in range(90):
        bench.memory.latency = rng.choice([0, 3, 40])
        bench.source.queue.extend(packed([(BYTES * 7, FIFO), (0x2000, 3), (0x4000, 1)]))
        await cycles(dut, moment)
        dut.flush.value = 1
        bench.source.stop()
        await cycles(dut, rng.choice([1, 2, 60]))
        assert not dut.data_valid.value
        dut.flush.value = 0
        bench.source.restart()
        bench.sink.received.clear()
        await bench.read([(0x9000 + BYTES * moment, 1 + moment)], 2000)
        assert dut.error.value == 0
    await bench.finish()


@cocotb.test(**TIMEOUT)
async def flush_holds_a_raised_address(dut):
    bench = Bench(dut)
    blocked = True
    bench.memory.address_stalls = iter(lambda: blocked, None)
    await start(dut, flush=0, **EVERYWHERE)
    bench.source.queue.extend(packed([(0, 8)]))
    await until(dut, lambda: bool(dut.m_axi_arvalid.value), 20, "ARVALID")
    dut.flush.value = 1
    await cycles(dut, 50)
    assert dut.m_axi_arvalid.value
    assert not dut.idle.value
    dut.flush.value = 0
    await cycles(dut, 50)
    assert dut.m_axi_arvalid.value
    assert not dut.idle.value
    blocked = False
    await bench.read([(0x3000, 8)])
    assert next(address for address, _ in bench.memory.bursts) == 0
    await bench.finish()


@cocotb.test(**TIMEOUT)
async def idle_tells_of_work(dut):
    bench = Bench(dut, latency=30)
    await start(dut, flush=0, **EVERYWHERE)
    assert dut.idle.value
    bench.source.queue.extend(packed([(0, 0)]))
    await cycles(dut, 10)
    assert dut.idle.value
    assert not bench.memory.bursts
    await bench.source.send(packed([(0, 4)]), 10)
    await cycles(dut, 1)
    for _ in range(25):
        assert not dut.idle.value
        await cycles(dut, 1)
    await bench.sink.receive(4, 100)
    await bench.finish()


@cocotb.test(**TIMEOUT)
async def nothing_outside_the_window_is_read(dut):
    """What lies before is, whole; then the engine waits, and a flush is all it takes."""
    bench = Bench(dut, lively=True)
    await start(dut, flush=0, window_first=0x10, window_last=0x12)
    inside = 0x2000 // BYTES  # beats, of two pages
    for outside in ((0xFFF8 // BYTES * BYTES, 1), (0x1_3000, 4), (0x7_0000_0000_1000, 1)):
        await bench.read([(0x1_0000, 7), (0x1_1000, inside)])
        assert not dut.outside.value
        bench.source.queue.extend(packed([outside, (0x1_0000, 1)]))
        await until(dut, lambda: bool(dut.outside.value), 1000, "outside")
        await cycles(dut, 300)
        assert not bench.sink.received
        bench.source.stop()
        dut.flush.value = 1
        await cycles(dut, 3)
        dut.flush.value = 0
        bench.source.restart()
    bench.source.queue.extend(packed([(0x1_2000, 2 * 4096 // BYTES)]))  # begins inside
    await until(dut, lambda: bool(dut.outside.value), 4000, "outside")
    assert all(0x1_0000 <= address <= 0x1_2FFF for address, _ in bench.memory.bursts)
    dut.flush.value = 1
    await cycles(dut, 200)
    assert dut.idle.value


@cocotb.test(**TIMEOUT)
async def empty_tells_of_what_was_not_taken(dut):
    bench = Bench(dut)
    await start(dut, flush=0, **EVERYWHERE)
    assert dut.empty.value
    bench.sink.pause = True
    await bench.source.send(packed([(0, 3)]), 10)
    await cycles(dut, 100)
    assert dut.idle.value
    assert not dut.empty.value
    bench.sink.pause = False
    await bench.sink.receive(3, 100)
    await cycles(dut, 2)
    assert dut.empty.value


@cocotb.test(**TIMEOUT)
async def against_cocotbext_axi(dut):
    """An independent slave agrees with the memory of these benches."""
    ram = AxiRamRead(AxiReadBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=1 << 16)
    ram.write(0, random.Random(SEED).randbytes(1 << 16))
    ram.ar_channel.set_pause_generator(stalls(SEED, 0.3))
    ram.r_channel.set_pause_generator(stalls(SEED + 1, 0.3))
    source, sink = Source(dut, "request"), Sink(dut, "data", stalls(SEED + 2, 0.3))
    await start(dut, flush=0, **EVERYWHERE)
    asked = [(BYTES * 11, 300), (0x5000 - BYTES, 2), (0x7F00, 1)]
    source.queue.extend(packed(asked))
    want = [int.from_bytes(ram.read(a + i * BYTES, BYTES), "little") for a, beats in asked for i in range(beats)]
    check_equal(await sink.receive(len(want), 3000), want, "data")
