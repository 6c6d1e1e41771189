"""cocotb tests of hw.top.Top: a driver on its registers, a memory of every temper behind its bus.

Run by test_machine. The case holds tasks: image, input region, output region and saturations that must come of it.
"""

import random
import zlib
from dataclasses import dataclass

import cocotb
import numpy as np
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from patchloom.compiler.machine.commands import COMMAND_BYTES, FIELDS, Kind
from patchloom.compiler.machine.registers import MAGIC, REGISTERS, Control, ErrorCode, Interrupt, Status
from patchloom.hw.axi import Response
from patchloom.sim.bench import case, cycles, save, stalls, start, until, within
from tests.hw.axi_memory import ReadMemory, WriteMemory
from tests.hw.pipelines import config_of

TIMEOUT = {"timeout_time": 20, "timeout_unit": "ms"}  # 2 000 000 cycles
CASE = case()
CONFIG, SEED = config_of(CASE), int(CASE["seed"])
BEAT, BASE = CONFIG.beat_bytes, 0x7_FFF0_0000
DEADLINE = 200_000  # cycles of a task
PAGE = 4096
SPACES = ("program", "input", "output")


@dataclass
class Job:
    """One task of one program, and what must come of it."""

    image: bytes
    number: int
    region: bytes
    output: bytes
    saturations: int

    @staticmethod
    def all() -> list["Job"]:
        jobs = []
        for i in range(int(CASE["jobs"])):
            part = {name: CASE[f"{name}_{i}"] for name in ("image", "number", "region", "output", "saturations")}
            raw = {name: part[name].tobytes() for name in ("image", "region", "output")}
            jobs.append(Job(number=int(part["number"]), saturations=int(part["saturations"]), **raw))
        return jobs


class Memory:
    """Both sides of the bus on the same bytes. `frozen` takes and gives nothing."""

    def __init__(self, dut, *, latency: tuple[int, int] = (0, 60), lively: bool = True):
        self.dut, self.rng, self.data = dut, random.Random(SEED), {}
        self.frozen, self.latency, self.bad = False, latency, (0, 0, Response.OKAY)
        patterns = [self.pattern(stalls(SEED + i, 0.35 if lively else 0)) for i in range(4)]
        self.reads = ReadMemory(dut, 0, patterns[0], patterns[1], self.response, self.read)
        self.writes = WriteMemory(dut, 0, patterns[2], patterns[3], self.response)
        cocotb.start_soon(self._vary())

    def pattern(self, inner):
        while True:
            yield self.frozen or next(inner)

    def response(self, address: int) -> int:
        first, last, response = self.bad
        return response if first <= address < last else Response.OKAY

    def put(self, address: int, raw: bytes) -> None:
        for i in range(0, len(raw), BEAT):
            self.data[address + i] = int.from_bytes(raw[i : i + BEAT], "little")

    def get(self, address: int, size: int) -> bytes:
        """What the machine wrote there; zeros where it wrote nothing."""
        written = self.writes.written
        assert all(address <= at < address + size for at in written), "it wrote beside its output"
        return b"".join(written.get(address + i, 0).to_bytes(BEAT, "little") for i in range(0, size, BEAT))

    def read(self, address: int, width: int) -> int:
        assert address in self.data, f"the machine reads {address:#x}, where it has no business"
        return self.data[address]

    def check(self) -> None:
        assert not self.writes.busy, "writes on the way"
        for rules in (self.reads.rules, *self.writes.rules):
            rules.check()

    async def _vary(self) -> None:
        while True:
            self.reads.latency, self.writes.latency = self.rng.randint(*self.latency), self.rng.randint(*self.latency)
            await cycles(self.dut, self.rng.randint(1, 100))


class Driver:
    """What a host does, through an AXI4-Lite master of another's make."""

    def __init__(self, dut, memory: Memory | None):
        self.dut, self.memory = dut, memory
        self.lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.lite.write_if.aw_channel.set_pause_generator(stalls(SEED + 7, 0.3))
        self.lite.read_if.r_channel.set_pause_generator(stalls(SEED + 8, 0.3))

    async def get(self, name: str) -> int:
        return await within(1000, self.lite.read_dword(REGISTERS[name].offset), f"read of {name}")

    async def set(self, name: str, value: int) -> None:
        if name in REGISTERS:
            await within(1000, self.lite.write_dword(REGISTERS[name].offset, value), f"write of {name}")
        else:
            await self.set(f"{name}_lo", value & 0xFFFFFFFF)
            await self.set(f"{name}_hi", value >> 32)

    async def begin(self, job: Job, *, watchdog: int = 20_000) -> int:
        """Start it; returns where its output will be."""
        places, at = [], BASE
        for raw in (job.image, job.region):
            self.memory.put(at, raw)
            places.append(at)
            at += -(-len(raw) // PAGE) * PAGE
        await self.settle(job, (*places, at))
        await self.set("watchdog", watchdog)
        await self.set("control", Control.START | Control.IRQ_ENABLE)
        return at

    async def settle(self, job: Job, places: tuple[int, int, int]) -> None:
        """What a start takes."""
        for space, address, raw in zip(SPACES, places, (job.image, job.region, job.output), strict=True):
            await self.set(f"{space}_base", address)
            await self.set(f"{space}_bytes", len(raw))
        await self.set("task", job.number)

    async def interrupt(self, deadline: int = DEADLINE) -> int:
        """Wait for it, acknowledge it; returns the status."""
        await until(self.dut, lambda: bool(self.dut.irq.value), deadline, "the interrupt")
        status, which = await self.get("status"), await self.get("irq_status")
        assert which == (Interrupt.ERROR if status & Status.ERROR else Interrupt.DONE)
        await self.set("irq_status", which)
        await cycles(self.dut, 2)
        assert not self.dut.irq.value
        return status

    async def measure(self, job: Job) -> tuple[bytes, int]:
        """Output region and saturations."""
        self.memory.writes.written.clear()
        at = await self.begin(job)
        assert await self.interrupt() == Status.DONE
        assert await self.get("error_code") == 0
        assert 0 < await self.get("cycles_lo") < DEADLINE
        assert await self.get("beats_written") == len(self.memory.writes.written)
        self.memory.check()
        return self.memory.get(at, len(job.output)), await self.get("saturations")

    async def run(self, job: Job) -> None:
        """All must be as the interpreter says."""
        assert await self.measure(job) == (job.output, job.saturations)

    async def ended(self, job: Job, at: int) -> None:
        """Of several that are on their way, the first."""
        await until(self.dut, lambda: bool(self.dut.irq.value), DEADLINE, "the interrupt")
        written = self.memory.writes.written
        output = b"".join(written.get(at + i, 0).to_bytes(BEAT, "little") for i in range(0, len(job.output), BEAT))
        assert (output, await self.get("saturations")) == (job.output, job.saturations)
        await self.set("irq_status", Interrupt.DONE)

    async def failed(self, code: ErrorCode, detail: int | None = None) -> None:
        assert await self.interrupt() == Status.ERROR
        assert await self.get("error_code") == code
        assert detail is None or await self.get("error_detail") == detail

    async def reset(self) -> None:
        await self.set("control", Control.SOFT_RESET)
        await self.recovered()

    async def recovered(self) -> None:
        for _ in range(1000):
            if not await self.get("status") & Status.RESETTING:
                break
        else:
            raise AssertionError("the soft reset does not end")
        assert await self.get("status") == 0
        assert await self.get("error_code") == 0


async def machine(dut, **options) -> Driver:
    driver = Driver(dut, Memory(dut, **options))
    await start(dut)
    assert await driver.get("magic") == MAGIC
    assert await driver.get("fingerprint") == CONFIG.fingerprint
    return driver


def changed(job: Job, position: int, **fields: int) -> Job:
    """The job with other fields in the command at `position` of its task."""
    at = job.number * CONFIG.command_depth * COMMAND_BYTES + position * COMMAND_BYTES
    word, low = int.from_bytes(job.image[at : at + COMMAND_BYTES], "little"), 0
    for name, (bits, _) in FIELDS.items():
        if name in fields:
            word = word & ~(((1 << bits) - 1) << low) | fields[name] << low
        low += bits
    image = job.image[:at] + word.to_bytes(COMMAND_BYTES, "little") + job.image[at + COMMAND_BYTES :]
    return Job(image, job.number, job.region, job.output, job.saturations)


@cocotb.test(**TIMEOUT)
async def frames(dut):
    """Every job, one after another without a reset."""
    driver, results = await machine(dut), {}
    for i, job in enumerate(Job.all()):
        output, saturations = await driver.measure(job)
        results |= {f"output_{i}": np.frombuffer(output, np.int16), f"saturations_{i}": saturations}
    save(**results)


@cocotb.test(**TIMEOUT)
async def against_cocotbext_axi(dut):
    """An independent memory."""
    driver = Driver(dut, None)
    ram = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.clk, dut.rst, size=1 << 20)
    for i, channel in enumerate((ram.read_if.ar_channel, ram.read_if.r_channel, ram.write_if.aw_channel)):
        channel.set_pause_generator(stalls(SEED + i, 0.3))
    for i, channel in enumerate((ram.write_if.w_channel, ram.write_if.b_channel)):
        channel.set_pause_generator(stalls(SEED + 3 + i, 0.3))
    await start(dut)
    job = Job.all()[0]
    places = (0x10000, 0x60000, 0x80000)
    await driver.settle(job, places)
    ram.write(places[0], job.image)
    ram.write(places[1], job.region)
    await driver.set("control", Control.START | Control.IRQ_ENABLE)
    assert await driver.interrupt() == Status.DONE
    assert ram.read(places[2], len(job.output)) == job.output
    assert await driver.get("saturations") == job.saturations


@cocotb.test(**TIMEOUT)
async def soft_reset_at_any_moment(dut):
    driver = await machine(dut)
    rng, jobs = random.Random(SEED), Job.all()
    for moment in (0, 3, 40, 300, *(rng.randrange(4000) for _ in range(6))):
        await driver.begin(rng.choice(jobs))
        await cycles(dut, moment)
        await driver.reset()
        await driver.run(rng.choice(jobs))


@cocotb.test(**TIMEOUT)
async def bus_errors(dut):
    """Wherever the memory refuses: the right code, the command in work, silence, and all well after a soft reset."""
    driver = await machine(dut)
    job, memory = Job.all()[0], driver.memory
    await driver.run(job)
    written, region = memory.writes.bursts[-1][0], BASE + -(-len(job.image) // PAGE) * PAGE
    weights = BASE + 2 * CONFIG.command_depth * COMMAND_BYTES
    reads = (BASE, BASE + COMMAND_BYTES, weights, region)
    for address in (*reads, written):
        for response in (Response.SLVERR, Response.DECERR):
            memory.bad = address, address + BEAT, response
            await driver.begin(job)
            first = ErrorCode.READ_SLVERR if address in reads else ErrorCode.WRITE_SLVERR
            await driver.failed(ErrorCode(first + (response == Response.DECERR)))
            assert await driver.get("error_detail") <= int(CASE["last"])
            await cycles(dut, 1000)  # bursts that were begun
            before = len(memory.reads.bursts), len(memory.writes.bursts)
            await driver.set("control", Control.START | Control.IRQ_ENABLE)  # is ignored
            await cycles(dut, 300)
            assert (await driver.get("status")) == Status.ERROR
            assert (len(memory.reads.bursts), len(memory.writes.bursts)) == before, "an error is not the end"
            memory.bad = 0, 0, Response.OKAY
            await driver.reset()
            await driver.run(job)


@cocotb.test(**TIMEOUT)
async def refusals(dut):
    """Programs of another Config, commands that are none."""
    driver = await machine(dut)
    job = Job.all()[0]
    wrong = CONFIG.fingerprint ^ 0x10
    last = int(CASE["last"])  # position of END
    for other, code, detail in (
        (changed(job, 0, epsilon=wrong), ErrorCode.WRONG_CONFIG, wrong),
        (changed(job, 0, kind=Kind.LOAD), ErrorCode.BAD_COMMAND, Kind.LOAD),
        (changed(job, 0, rows=1), ErrorCode.BAD_COMMAND, None),
        (changed(job, 0, rows=CONFIG.command_depth + 1), ErrorCode.BAD_COMMAND, None),
        (changed(job, 2, kind=9), ErrorCode.BAD_COMMAND, 9),
        (changed(job, last, kind=15), ErrorCode.BAD_COMMAND, 15),
        (changed(job, 3, kind=Kind.BEGIN), ErrorCode.BAD_COMMAND, Kind.BEGIN),
    ):
        await driver.begin(other)
        await driver.failed(code, detail)
        await driver.reset()
        await driver.run(job)


@cocotb.test(**TIMEOUT)
async def regions(dut):
    """A transfer beyond its region, or to another than its own: refused before anything of the task is done."""
    driver = await machine(dut)
    job, memory = Job.all()[0], driver.memory
    await driver.run(job)
    load, store = int(CASE["load"]), int(CASE["store"])
    beats = int(CASE["load_beats"])
    for other, where in (
        (changed(job, load, dma_beats=beats + CONFIG.word_beats), load),
        (changed(job, load, dma_beats=(1 << 28) - 1), load),
        (changed(job, load, dma_address=len(job.region)), load),
        (changed(job, load, dma_address=(1 << 40) - BEAT), load),
        (changed(job, load, dma_address=1 << 32), load),
        (changed(job, load, dma_space=2), load),
        (changed(job, store, dma_address=len(job.output)), store),
        (changed(job, store, dma_space=0), store),
        (Job(job.image, job.number, job.region[:-BEAT], job.output, job.saturations), load),
    ):
        memory.writes.written.clear()
        await driver.begin(other)
        await driver.failed(ErrorCode.BEYOND_REGION, where)
        assert not memory.writes.written
        await driver.reset()
        await driver.run(job)


@cocotb.test(**TIMEOUT)
async def windows(dut):
    """Neither read nor written outside, whatever bases say."""
    driver = await machine(dut)
    job, memory = Job.all()[0], driver.memory
    await driver.run(job)
    at = max(memory.writes.written)
    await driver.set("window_first", BASE)
    await driver.set("window_last", at)
    await driver.run(job)
    output = BASE + sum(-(-len(raw) // PAGE) * PAGE for raw in (job.image, job.region))
    for first, last, code in (
        (BASE + PAGE, at, ErrorCode.READ_OUTSIDE),
        (BASE, output - 1, ErrorCode.WRITE_OUTSIDE),
        (at + PAGE, at, ErrorCode.READ_OUTSIDE),
    ):
        await driver.set("window_first", first)
        await driver.set("window_last", last)
        memory.writes.written.clear()
        reads = len(memory.reads.bursts)
        await driver.begin(job)
        await driver.failed(code)
        assert all(address >= first for address, _ in memory.reads.bursts[reads:])
        assert not memory.writes.written
        await driver.reset()
        await driver.set("window_first", BASE)
        await driver.set("window_last", at)
        await driver.run(job)


@cocotb.test(**TIMEOUT)
async def unread(dut):
    """A command that reads more than it needs: the task ends with an error, not the next one with its commands."""
    driver = await machine(dut)
    job = Job.all()[0]
    load, beats = int(CASE["weights"]), int(CASE["weights_beats"])
    await driver.begin(changed(job, load, dma_beats=beats + CONFIG.word_beats))
    await driver.failed(ErrorCode.UNREAD, int(CASE["last"]))
    await driver.reset()
    await driver.run(job)


@cocotb.test(**TIMEOUT)
async def checksums(dut):
    """Of any region; tasks before and behind are as ever."""
    driver = await machine(dut)
    job, rng = Job.all()[0], random.Random(SEED)
    await driver.run(job)
    data = rng.randbytes(4096)
    driver.memory.put(BASE, data)
    for size in (0, 3, 4, BEAT - 4, BEAT, BEAT + 4, 1000, 4096, *(rng.randrange(4096) for _ in range(6))):
        start = rng.randrange((4096 - size) // BEAT + 1) * BEAT
        await driver.set("program_base", BASE + start)
        await driver.set("program_bytes", size)
        await driver.set("control", Control.CHECKSUM | Control.IRQ_ENABLE)
        for _ in range(6000):
            if not await driver.get("status") & Status.BUSY:
                break
        assert await driver.get("checksum") == zlib.crc32(data[start : start + size])
    assert not await driver.get("irq_status")
    await driver.run(job)
    await driver.set("window_first", BASE + PAGE)
    await driver.set("control", Control.CHECKSUM)
    await cycles(dut, 100)
    assert await driver.get("status") == Status.ERROR
    await driver.reset()
    await driver.set("window_first", 0)
    await driver.run(job)


@cocotb.test(**TIMEOUT)
async def queue(dut):
    """The next frame is given while one runs, and begins when it has ended; each end is told by itself."""
    driver = await machine(dut)
    jobs, rng = Job.all(), random.Random(SEED)
    size = 1 << 20
    waiting, begun = [], 0
    for number in range(12):
        job = rng.choice(jobs)
        start = BASE + number % 3 * size
        places = tuple(start + part * size // 4 for part in range(3))
        if number > 1:
            await driver.ended(*waiting.pop(0))
            await cycles(dut, rng.choice([0, 0, 30_000]))
        for _ in range(100_000):
            if not await driver.get("status") & Status.QUEUED:
                break
        for raw, place in zip((job.image, job.region), places, strict=False):
            driver.memory.put(place, raw)
        for address in range(places[2], places[2] + len(job.output), BEAT):
            driver.memory.writes.written.pop(address, None)
        await driver.settle(job, places)
        await driver.set("control", Control.START | Control.IRQ_ENABLE)
        waiting.append((job, places[2]))
        begun += 1
        assert await driver.get("frames") <= begun
    while waiting:
        await driver.ended(*waiting.pop(0))
    assert await driver.get("frames") == begun
    assert await driver.get("status") == Status.DONE
    driver.memory.check()


@cocotb.test(**TIMEOUT)
async def watchdog(dut):
    """Memory stops answering; once it answers again, a soft reset is all it takes."""
    driver = await machine(dut)
    jobs, rng = Job.all(), random.Random(SEED)
    await driver.run(jobs[0])
    most = await driver.get("cycles_lo") // 2
    for moment in (0, 50, *(rng.randrange(most) for _ in range(5))):
        await driver.begin(jobs[0], watchdog=700)
        await cycles(dut, moment)
        driver.memory.frozen = True
        await driver.failed(ErrorCode.WATCHDOG, 700)
        await cycles(dut, 100)
        await driver.set("control", Control.SOFT_RESET)
        await cycles(dut, 200)
        assert await driver.get("status") == Status.RESETTING or not driver.memory.reads.pending
        driver.memory.frozen = False
        await driver.recovered()
        await driver.run(rng.choice(jobs))


@cocotb.test(**TIMEOUT)
async def watchdog_off(dut):
    """Limit 0 waits for ever."""
    driver = await machine(dut)
    job = Job.all()[0]
    at = await driver.begin(job, watchdog=0)
    await cycles(dut, 200)
    driver.memory.frozen = True
    await cycles(dut, 3000)
    assert await driver.get("status") == Status.BUSY
    driver.memory.frozen = False
    assert await driver.interrupt() == Status.DONE
    assert driver.memory.get(at, len(job.output)) == job.output
