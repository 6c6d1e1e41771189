"""cocotb tests of hw.dma.Writer, run by test_dma.py."""

import random

import cocotb
from axi_memory import WriteMemory, content
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiRamWrite, AxiWriteBus

from patchloom.hw.axi import Response
from patchloom.hw.bundles import Request
from patchloom.sim.bench import Rules, Source, case, check_equal, cycles, flowing, pack, stalls, start, until

EVERYWHERE = {"window_first": 0, "window_last": (1 << 52) - 1}  # pages
TIMEOUT = {"timeout_time": 2, "timeout_unit": "ms"}  # 200 000 cycles
CASE = case()
BYTES, SEED = (int(CASE[name]) for name in ("beat_bytes", "seed"))


def packed(asked) -> list[int]:
    return [pack(Request, address=address, beats=beats) for address, beats in asked]


def addresses(asked) -> list[int]:
    return [address + i * BYTES for address, beats in asked for i in range(beats)]


class Bench:
    def __init__(self, dut, *, latency=20, lively=False, response=lambda address: 0, wait=False):
        pattern = [stalls(SEED + i, 0.4) if lively else flowing() for i in range(4)]
        self.dut = dut
        self.memory = WriteMemory(dut, latency, pattern[0], pattern[1], response, wait=wait)
        self.request = Source(dut, "request", pattern[2])
        self.data = Source(dut, "data", pattern[3])
        self.taken = Rules.stream(dut, "data", lambda: True)  # only to count transfers

    def begin(self, asked) -> list[int]:
        """Hand over requests and their data; returns the addresses."""
        self.request.queue.extend(packed(asked))
        self.data.queue.extend(content(address, 8 * BYTES) for address in addresses(asked))
        return addresses(asked)

    async def idle(self, deadline=3000):
        """Nothing left to hand over, and the engine idle."""
        dut = self.dut

        def done() -> bool:
            return not self.request.queue and not dut.request_valid.value and bool(dut.idle.value)

        await until(dut, done, deadline, "idle")

    async def write(self, asked, deadline=100_000):
        before = len(self.memory.order)
        want = self.begin(asked)
        await cycles(self.dut, 2)
        await self.idle(deadline)
        check_equal(self.memory.order[before:], want, "addresses")
        check_equal([self.memory.written[at] for at in want], [content(at, 8 * BYTES) for at in want], "data")
        self.finish()

    def finish(self):
        assert not self.memory.busy
        for rules in self.memory.rules:
            rules.check()


@cocotb.test(**TIMEOUT)
async def random_requests(dut):
    rng = random.Random(SEED)
    bench = Bench(dut, lively=True)
    await start(dut, flush=0, **EVERYWHERE)
    pages = [0, 0x1000, 0x7FFF_F000, 0xFFFF_F000, 0x1_0000_0000, 0xFFFF_FFFF_FFF0_0000]
    for latency in (0, 1, 60):
        bench.memory.latency = latency
        sizes = [0, 1, 1, 2, 7, 4096 // BYTES, rng.randint(1, 700), rng.randint(1, 40)]
        asked = [(rng.choice(pages) + rng.randrange(4096 // BYTES) * BYTES, rng.choice(sizes)) for _ in range(25)]
        await bench.write(asked)
    assert dut.error.value == 0
    assert bench.memory.blank == 0


@cocotb.test(**TIMEOUT)
async def one_beat_a_cycle(dut):
    bench = Bench(dut, latency=40)
    await start(dut, flush=0, **EVERYWHERE)
    asked = [(BYTES * 3, 900), (0x10000, 500)] + [(0x20000 + 64 * i, 2) for i in range(300)]
    total = sum(beats for _, beats in asked)
    await bench.write(asked, deadline=total + 60)


@cocotb.test(**TIMEOUT)
async def many_answers_outstanding(dut):
    """Addresses stop while too many bursts are unanswered, and nothing is lost."""
    bench = Bench(dut, latency=400)
    await start(dut, flush=0, **EVERYWHERE)
    await bench.write([(0x20000 + 64 * i, 1) for i in range(200)], deadline=3000)


@cocotb.test(**TIMEOUT)
async def slave_that_waits_for_data(dut):
    """A slave may hold AWREADY until it sees WVALID."""
    bench = Bench(dut, lively=True, wait=True)
    await start(dut, flush=0, **EVERYWHERE)
    await bench.write([(0, 40), (0x1000 - BYTES, 2), (0x3000, 1), (0x4000, 300)])


@cocotb.test(**TIMEOUT)
async def errors_are_kept_until_flush(dut):
    bad = {0x1000: Response.SLVERR, 0x2000: Response.DECERR}
    bench = Bench(dut, response=lambda address: bad.get(address, Response.OKAY))
    await start(dut, flush=0, **EVERYWHERE)
    await bench.write([(0, 4)])
    assert dut.error.value == 0
    for asked, code in (((0x1000, 4), Response.SLVERR), ((0x2000, 1), Response.DECERR)):
        await bench.write([asked])
        assert dut.error.value == code
        await bench.write([(0x2000, 1), (0x5000, 4)])
        assert dut.error.value == code
        dut.flush.value = 1
        await cycles(dut, 2)
        dut.flush.value = 0
        await cycles(dut, 2)
        assert dut.error.value == 0


@cocotb.test(**TIMEOUT)
async def nothing_outside_the_window_is_written(dut):
    bench = Bench(dut, lively=True)
    await start(dut, flush=0, window_first=0x10, window_last=0x12)
    await bench.write([(0x1_0000, 7), (0x1_2000, 4096 // BYTES)])
    assert not dut.outside.value
    before = len(bench.memory.order)
    bench.begin([(0x1_3000, 1)])
    await until(dut, lambda: bool(dut.outside.value), 1000, "outside")
    await cycles(dut, 300)
    assert len(bench.memory.order) == before
    dut.flush.value = 1
    bench.request.stop()
    bench.data.stop()
    await cycles(dut, 3)
    dut.flush.value = 0
    await cycles(dut, 3)
    assert not dut.outside.value
    assert dut.idle.value


@cocotb.test(**TIMEOUT)
async def flush_in_every_phase(dut):
    """What was taken from the stream is written, the rest of begun bursts is blank, and life goes on."""
    rng = random.Random(SEED)
    bench = Bench(dut, lively=True, response=lambda address: Response.SLVERR if address < 0x8000 else 0)
    await start(dut, flush=0, **EVERYWHERE)
    for moment in range(120):
        bench.memory.latency = rng.choice([0, 3, 40])
        before, taken = len(bench.memory.order), bench.taken.transfers
        want = bench.begin([(BYTES * 7, 30), (0x2000, 3), (0x4000, 1), (0x5000, 100)])
        await cycles(dut, moment)
        dut.flush.value = 1
        bench.request.stop()
        bench.data.stop()
        await cycles(dut, rng.choice([1, 2, 200]))
        dut.flush.value = 0
        await until(dut, lambda: bool(dut.idle.value), 2000, "idle")
        await RisingEdge(dut.clk)
        count = bench.taken.transfers - taken
        check_equal(bench.memory.order[before:], want[:count], f"flush after {moment} cycles")
        bench.request.restart()
        bench.data.restart()
        await bench.write([(0x9000 + BYTES * moment, 1 + moment % 20)])
        assert dut.error.value == 0
    assert bench.memory.blank > 100, "the flush never met a begun burst"


@cocotb.test(**TIMEOUT)
async def request_right_after_flush(dut):
    """A request that waits at the door while the engine still completes is served afterwards, with its own data."""
    bench, blocked = Bench(dut, latency=50), False
    bench.memory.data_stalls = iter(lambda: blocked, None)
    await start(dut, flush=0, **EVERYWHERE)
    bench.begin([(0, 8)])
    for _ in range(3):  # the burst hangs for want of its last beats
        bench.data.queue.pop()
    await cycles(dut, 30)
    assert not dut.idle.value
    blocked = True
    dut.flush.value = 1
    await cycles(dut, 1)
    dut.flush.value = 0
    writing = cocotb.start_soon(bench.write([(0x3000, 8)]))
    await cycles(dut, 20)
    blocked = False
    await writing
    assert bench.memory.blank == 3


@cocotb.test(**TIMEOUT)
async def flush_holds_a_raised_address(dut):
    bench = Bench(dut)
    blocked = True
    bench.memory.address_stalls = iter(lambda: blocked, None)
    await start(dut, flush=0, **EVERYWHERE)
    bench.request.queue.extend(packed([(0, 8)]))
    await until(dut, lambda: bool(dut.m_axi_awvalid.value), 20, "AWVALID")
    dut.flush.value = 1
    await cycles(dut, 50)
    assert dut.m_axi_awvalid.value
    assert not dut.idle.value
    dut.flush.value = 0
    blocked = False
    await bench.write([(0x3000, 8)])
    assert bench.memory.blank == 8


@cocotb.test(**TIMEOUT)
async def against_cocotbext_axi(dut):
    ram = AxiRamWrite(AxiWriteBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=1 << 16)
    ram.aw_channel.set_pause_generator(stalls(SEED, 0.3))
    ram.w_channel.set_pause_generator(stalls(SEED + 1, 0.3))
    ram.b_channel.set_pause_generator(stalls(SEED + 2, 0.3))
    request, data = Source(dut, "request"), Source(dut, "data", stalls(SEED + 3, 0.3))
    await start(dut, flush=0, **EVERYWHERE)
    asked = [(BYTES * 11, 300), (0x5000 - BYTES, 2), (0x7F00, 1)]
    request.queue.extend(packed(asked))
    await data.send([content(at, 8 * BYTES) for at in addresses(asked)], 3000)
    await until(dut, lambda: bool(dut.idle.value), 500, "idle")
    got = [int.from_bytes(ram.read(at, BYTES), "little") for at in addresses(asked)]
    check_equal(got, [content(at, 8 * BYTES) for at in addresses(asked)], "memory")
