"""cocotb tests of hw.registers.Registers, run by test_registers.py."""

import random

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import (
    DIGEST_BITS,
    MAGIC,
    REGISTERS,
    RESET_CYCLES,
    RESET_LIMIT,
    VERSION,
    Access,
    Control,
    ErrorCode,
    Interrupt,
    Status,
    parts,
)
from patchloom.sim.bench import case, cycles, stalls, start, until, within

TIMEOUT = {"timeout_time": 1, "timeout_unit": "ms"}  # 100 000 cycles
SEED = int(case()["seed"])
INPUTS = ["reset_done", "busy", "done", "error_valid", "error_code", "error_detail", "stall_weights", "stall_writes"]
INPUTS += ["saturation_increment", "command_index", "summing", "checksum", "beat_read", "beat_written"]
LATCHED = [name for name, register in REGISTERS.items() if register.access == Access.LATCHED]
ACCESS_CYCLES = 200
DIGEST = 0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210
CLOCK = 50_000_000


class Bench:
    """The registers with a driver on one side; the core's side is the test."""

    def __init__(self, dut, *, lively=False):
        self.dut = dut
        self.master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        sides = (self.master.write_if, ("aw", "w", "b")), (self.master.read_if, ("ar", "r"))
        channels = [getattr(side, f"{name}_channel") for side, names in sides for name in names]
        for number, channel in enumerate(channels if lively else []):
            channel.set_pause_generator(stalls(SEED + number, 0.5))

    async def start(self):
        await start(self.dut, **dict.fromkeys(INPUTS, 0))

    async def read(self, name):
        answer = await within(ACCESS_CYCLES, self.master.read(REGISTERS[name].offset, 4), f"read of {name}")
        assert answer.resp == AxiResp.OKAY, name
        return int.from_bytes(answer.data, "little")

    async def write(self, name, value, expect=AxiResp.OKAY):
        raw = value.to_bytes(4, "little")
        answer = await within(ACCESS_CYCLES, self.master.write(REGISTERS[name].offset, raw), f"write of {name}")
        assert answer.resp == expect, name

    async def pulse(self, **values):
        """Core-side inputs for one cycle."""
        for name, value in values.items():
            getattr(self.dut, name).value = value
        await RisingEdge(self.dut.clk)
        for name in values:
            getattr(self.dut, name).value = 0
        await RisingEdge(self.dut.clk)

    async def set(self, number):
        """Values of all registers that a start takes, by name, the task's the number."""
        values = {name: number << 8 * position % 24 for position, name in enumerate(LATCHED)}
        for name, value in values.items():
            await self.write(name, value)
        return values

    async def start_two(self):
        """A task that runs and one that waits."""
        for _ in range(2):
            await self.write("control", Control.START)
            self.dut.busy.value = 1

    def check_latched(self, values):
        """The core sees these."""
        assert self.dut.task_.value == values["task"]
        for space in ("program", "input", "output"):
            base = values[f"{space}_base_lo"] | values[f"{space}_base_hi"] << 32
            assert getattr(self.dut, f"bases_{space}").value == base
            assert getattr(self.dut, f"sizes_{space}").value == values[f"{space}_bytes"]

    def count_starts(self):
        """A list that grows by the task in every cycle in which `start` is high."""
        return self._count("start")

    def count_sums(self):
        return self._count("sum")

    def _count(self, name):
        seen = []

        async def watch():
            while True:
                await RisingEdge(self.dut.clk)
                if getattr(self.dut, name).value:
                    seen.append(int(self.dut.task_.value))

        cocotb.start_soon(watch())
        return seen


@cocotb.test(**TIMEOUT)
async def every_register_after_reset(dut):
    bench = Bench(dut, lively=True)
    dut.digest.value, dut.clock_hz.value = DIGEST, CLOCK
    await bench.start()
    stated = {name: DIGEST >> 32 * i & 0xFFFF_FFFF for i, name in enumerate(parts("digest", DIGEST_BITS))}
    stated |= {"fingerprint": Config().fingerprint, "clock_hz": CLOCK}
    for name, register in REGISTERS.items():
        assert await bench.read(name) == stated.get(name, register.reset), name
    assert await bench.read("magic") == MAGIC
    assert await bench.read("version") == VERSION


@cocotb.test(**TIMEOUT)
async def settings_keep_what_is_written(dut):
    """In any order, byte by byte too, each at its own place, and the core sees them."""
    bench, rng = Bench(dut, lively=True), random.Random(SEED)
    await bench.start()
    names = [n for n, r in REGISTERS.items() if r.access in (Access.WRITE, Access.LATCHED) and n != "control"]
    value = {name: REGISTERS[name].reset for name in names}
    for _ in range(150):
        name = rng.choice(names)
        mask = (1 << REGISTERS[name].width) - 1
        first = rng.randrange(4)
        data = rng.randbytes(rng.randint(1, 4 - first))
        at = REGISTERS[name].offset + first
        answer = await within(ACCESS_CYCLES, bench.master.write(at, data), f"write of {name}")
        assert answer.resp == AxiResp.OKAY
        raw = bytearray(value[name].to_bytes(4, "little"))
        raw[first : first + len(data)] = data
        value[name] = int.from_bytes(raw, "little") & mask
    for name in names:
        assert await bench.read(name) == value[name], name
    for page in ("first", "last"):
        address = value[f"window_{page}_lo"] | value[f"window_{page}_hi"] << 32
        assert getattr(dut, f"window_{page}").value == address // 4096
    assert dut.watchdog_limit.value == value["watchdog"]
    assert not dut.soft_reset.value
    await bench.write("control", Control.START)
    bench.check_latched(value)


@cocotb.test(**TIMEOUT)
async def a_start_takes_settings_and_a_second_one_locks_them(dut):
    """What runs keeps its own; what waits cannot be changed; a third start is ignored."""
    bench = Bench(dut)
    await bench.start()
    starts = bench.count_starts()
    first = await bench.set(1)
    await bench.write("control", Control.START | Control.IRQ_ENABLE)
    dut.busy.value = 1
    second = await bench.set(2)
    bench.check_latched(first)
    await bench.write("control", Control.START | Control.IRQ_ENABLE)
    assert await bench.read("status") == Status.BUSY | Status.QUEUED
    for name in LATCHED:
        await bench.write(name, 0, expect=AxiResp.SLVERR)
        assert await bench.read(name) == second[name]
    await bench.write("watchdog", 99)
    await bench.write("control", Control.START | Control.IRQ_ENABLE)
    bench.check_latched(first)
    assert starts == [1]
    dut.busy.value = 0
    await bench.pulse(done=1)
    dut.busy.value = 1
    await cycles(dut, 3)
    bench.check_latched(second)
    assert starts == [1, 2]
    assert await bench.read("status") == Status.BUSY
    assert await bench.read("irq_status") == Interrupt.DONE
    assert await bench.read("frames") == 1
    assert (await bench.set(3))["task"] == 3  # no longer locked


@cocotb.test(**TIMEOUT)
async def an_end_is_told_when_the_one_before_is_known(dut):
    bench = Bench(dut)
    await bench.start()
    starts = bench.count_starts()
    await bench.start_two()
    await cycles(dut, 10)
    dut.busy.value = 0
    await bench.pulse(done=1)
    counted = await bench.read("cycles_lo")
    dut.busy.value = 1
    await cycles(dut, 1000)
    dut.busy.value = 0
    await bench.pulse(done=1)
    await bench.write("control", Control.START)  # waits behind an end
    await cycles(dut, 50)
    assert await bench.read("status") == Status.BUSY | Status.QUEUED
    assert await bench.read("frames") == 1
    assert await bench.read("cycles_lo") == counted
    assert len(starts) == 2
    await bench.write("irq_status", Interrupt.DONE)
    assert await bench.read("irq_status") == Interrupt.DONE  # the second's
    assert await bench.read("frames") == 2
    assert await bench.read("cycles_lo") == 1000
    assert len(starts) == 3
    assert await bench.read("status") == Status.BUSY


@cocotb.test(**TIMEOUT)
async def an_error_drops_what_waits(dut):
    bench = Bench(dut)
    await bench.start()
    starts = bench.count_starts()
    await bench.start_two()
    dut.busy.value = 0
    await bench.pulse(error_valid=1, error_code=ErrorCode.UNREAD, error_detail=1)
    assert await bench.read("status") == Status.ERROR
    dut.reset_done.value = 1
    await bench.write("control", Control.SOFT_RESET)
    await cycles(dut, 2 * RESET_CYCLES)
    assert await bench.read("status") == 0
    assert len(starts) == 1


@cocotb.test(**TIMEOUT)
async def a_checksum_has_the_machine_to_itself(dut):
    bench = Bench(dut)
    await bench.start()
    starts, sums = bench.count_starts(), bench.count_sums()
    values = await bench.set(5)
    await bench.write("control", Control.CHECKSUM)
    bench.check_latched(values)
    dut.summing.value = 1
    assert await bench.read("status") == Status.BUSY
    await bench.write("control", Control.CHECKSUM)
    await bench.write("control", Control.START)
    assert await bench.read("status") == Status.BUSY | Status.QUEUED
    assert not starts
    dut.checksum.value = 0x1234_5678
    dut.summing.value = 0
    await cycles(dut, 5)
    assert await bench.read("checksum") == 0x1234_5678
    assert len(starts) == 1
    await bench.write("control", Control.CHECKSUM)  # a task runs
    dut.busy.value = 1
    await bench.write("control", Control.CHECKSUM)
    assert len(sums) == 1
    assert await bench.read("irq_status") == 0


@cocotb.test(**TIMEOUT)
async def an_epoch_ends_with_a_soft_reset(dut):
    bench = Bench(dut)
    await bench.start()
    await bench.write("epoch", 0xCAFE)
    assert await bench.read("epoch") == 0xCAFE
    dut.reset_done.value = 1
    await bench.write("control", Control.SOFT_RESET)
    await cycles(dut, 2 * RESET_CYCLES)
    assert await bench.read("epoch") == 0


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def a_soft_reset_ends_though_memory_never_answers(dut):
    """The machine says so, and begins nothing until memory has."""
    bench = Bench(dut)
    await bench.start()
    starts = bench.count_starts()
    await bench.write("control", Control.SOFT_RESET)
    await cycles(dut, RESET_LIMIT - 100)
    assert await bench.read("status") == Status.RESETTING
    await cycles(dut, 200)
    assert await bench.read("status") == Status.OWED
    await bench.write("control", Control.START)
    await bench.write("control", Control.CHECKSUM)
    assert await bench.read("status") == Status.OWED
    dut.reset_done.value = 1
    await cycles(dut, 2)
    assert await bench.read("status") == 0
    await bench.write("control", Control.START)
    assert len(starts) == 1


@cocotb.test(**TIMEOUT)
async def refused_accesses(dut):
    bench = Bench(dut, lively=True)
    await bench.start()
    for name, register in REGISTERS.items():
        if register.access == Access.READ:
            before = await bench.read(name)
            await bench.write(name, 0xFFFF_FFFF, expect=AxiResp.SLVERR)
            assert await bench.read(name) == before, name
    beyond = 4 * len(REGISTERS)
    for offset in (beyond, beyond + 4, 0x800, 0xFFC):
        assert (await bench.master.read(offset, 4)).resp == AxiResp.SLVERR
        assert (await bench.master.write(offset, bytes(4))).resp == AxiResp.SLVERR


@cocotb.test(**TIMEOUT)
async def a_task_from_start_to_interrupt(dut):
    bench = Bench(dut)
    await bench.start()
    starts = bench.count_starts()
    await bench.write("task", 7)
    await bench.write("control", Control.START | Control.IRQ_ENABLE)
    assert await bench.read("control") == Control.IRQ_ENABLE
    assert await bench.read("status") == Status.BUSY  # even before the core says so
    dut.busy.value = 1
    assert starts == [7]  # once, and for one cycle
    dut.command_index.value = 321
    assert await bench.read("command_index") == 321
    assert not dut.irq.value
    dut.busy.value = 0
    await bench.pulse(done=1)
    await until(dut, lambda: bool(dut.irq.value), 5, "interrupt")
    assert await bench.read("status") == Status.DONE
    assert await bench.read("irq_status") == Interrupt.DONE
    assert await bench.read("frames") == 1
    await bench.write("irq_status", Interrupt.ERROR)  # not the one that is set
    assert dut.irq.value
    await bench.write("control", 0)
    await cycles(dut, 2)
    assert not dut.irq.value
    await bench.write("control", Control.IRQ_ENABLE)
    await cycles(dut, 2)
    assert dut.irq.value
    await bench.write("irq_status", Interrupt.DONE)
    await cycles(dut, 2)
    assert not dut.irq.value
    assert await bench.read("status") == Status.DONE
    await bench.write("control", Control.START)
    assert await bench.read("status") == Status.BUSY
    assert starts == [7, 7]


@cocotb.test(**TIMEOUT)
async def counts_are_of_the_last_task(dut):
    bench, rng = Bench(dut), random.Random(SEED)
    await bench.start()
    for _ in range(2):
        await bench.write("control", Control.START)
        counted = ("busy", "stall_weights", "stall_writes", "beat_read", "beat_written", "saturation_increment")
        want = dict.fromkeys(counted, 0)
        for _ in range(300):
            now = {name: rng.randrange(2) for name in want} | {"saturation_increment": rng.choice([0, 1, 0xFFFF])}
            for name, value in now.items():
                getattr(dut, name).value = value
                want[name] += value
            await RisingEdge(dut.clk)
        for name in want:
            getattr(dut, name).value = 0
        assert await bench.read("cycles_lo") != want["busy"]  # not yet
        await bench.pulse(done=1)
        await bench.write("irq_status", Interrupt.DONE)
        assert await bench.read("cycles_lo") == want["busy"]
        assert await bench.read("cycles_hi") == 0
        assert await bench.read("beats_read") == want["beat_read"]
        assert await bench.read("beats_written") == want["beat_written"]
        assert await bench.read("stall_weights") == want["stall_weights"]
        assert await bench.read("stall_writes") == want["stall_writes"]
        assert await bench.read("saturations") == want["saturation_increment"]


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def saturations_stay_at_the_highest_number(dut):
    bench = Bench(dut)
    await bench.start()
    dut.saturation_increment.value = 0xFFFF
    await cycles(dut, (1 << 16) + 100)
    await bench.pulse(done=1)
    assert await bench.read("saturations") == 0xFFFF_FFFF


@cocotb.test(**TIMEOUT)
async def the_first_error_is_kept(dut):
    bench = Bench(dut)
    await bench.start()
    starts = bench.count_starts()
    await bench.write("control", Control.START | Control.IRQ_ENABLE)
    await bench.pulse(error_valid=1, error_code=ErrorCode.WATCHDOG, error_detail=0xCAFE_F00D)
    await until(dut, lambda: bool(dut.irq.value), 5, "interrupt")
    await bench.write("irq_status", Interrupt.ERROR)
    await bench.pulse(error_valid=1, error_code=ErrorCode.UNREAD, error_detail=1)
    assert await bench.read("irq_status") == 0
    assert await bench.read("error_code") == ErrorCode.WATCHDOG
    assert await bench.read("error_detail") == 0xCAFE_F00D
    assert await bench.read("status") == Status.ERROR
    await bench.write("control", Control.START | Control.IRQ_ENABLE)  # not before a soft reset
    assert starts == [0]
    dut.reset_done.value = 1
    await bench.write("control", Control.SOFT_RESET | Control.START | Control.IRQ_ENABLE)
    await until(dut, lambda: not dut.soft_reset.value, 2 * RESET_CYCLES, "end of the reset")
    for name in ("status", "irq_status", "error_code", "error_detail"):
        assert await bench.read(name) == 0
    assert starts == [0]
    await bench.write("control", Control.START)
    assert starts == [0, 0]


@cocotb.test(**TIMEOUT)
async def a_soft_reset_waits_for_the_core(dut):
    bench = Bench(dut)
    await bench.start()
    starts = bench.count_starts()
    await bench.write("output_base_hi", 77)
    await bench.write("control", Control.START | Control.IRQ_ENABLE)
    dut.busy.value = 1
    await bench.write("control", Control.SOFT_RESET | Control.IRQ_ENABLE)
    dut.busy.value = 0
    for _ in range(5):
        assert await bench.read("status") & Status.RESETTING
        await bench.pulse(done=1, error_valid=1, error_code=3)  # last words of the core
        await bench.write("control", Control.START | Control.IRQ_ENABLE)
    assert dut.soft_reset.value
    dut.reset_done.value = 1
    await cycles(dut, 2)
    assert not dut.soft_reset.value
    assert await bench.read("status") == 0
    assert await bench.read("irq_status") == 0
    assert await bench.read("output_base_hi") == 77
    assert await bench.read("control") == Control.IRQ_ENABLE
    assert len(starts) == 1


@cocotb.test(**TIMEOUT)
async def a_soft_reset_has_its_least_length(dut):
    bench = Bench(dut)
    await bench.start()
    dut.reset_done.value = 1
    cocotb.start_soon(bench.write("control", Control.SOFT_RESET))
    await until(dut, lambda: bool(dut.soft_reset.value), 50, "soft reset")
    took = await until(dut, lambda: not dut.soft_reset.value, 50, "its end")
    assert took + 1 >= RESET_CYCLES
