"""Pieces of test benches: streams with random stalls on both sides, rules watched, and a deadline on every wait.

The first half is for cocotb (started by `sim.cosim.simulate`), the second for Amaranth's own simulator, which needs
no build and suits small units.
"""

import os
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import cocotb
import numpy as np
from amaranth.hdl import Value
from amaranth.sim import Simulator as AmaranthSimulator
from amaranth.sim import SimulatorContext
from cocotb.clock import Clock
from cocotb.handle import LogicArrayObject, LogicObject
from cocotb.triggers import Event, RisingEdge, SimTimeoutError, with_timeout
from numpy.typing import NDArray

PERIOD_NS = 10
CASE, RESULT = "PATCHLOOM_CASE", "PATCHLOOM_RESULT"  # environment: files that a test reads and leaves

Stalls = Iterator[bool]


def stalls(seed: int, probability: float = 0.5, longest: int = 8) -> Stalls:
    """Endless random stalls in runs of up to `longest` cycles, that fraction of the time on average; 0 never stalls."""
    rng = random.Random(seed)
    while True:
        yield from [False] * rng.randint(1, longest)
        if probability > 0:
            mean = (longest + 1) / 2 * probability / (1 - probability)
            yield from [True] * round(rng.uniform(0, 2 * mean))


def flowing() -> Stalls:
    return stalls(0, 0.0)


def pack(shape: Any, **values: int) -> int:
    """The bits of a structure: `pack(bundles.Request, address=64, beats=8)`."""
    return int(Value.cast(shape.const(values)).value)


def check_equal(actual: Sequence[Any], expected: Sequence[Any], what: str) -> None:
    """Two sequences are the same; if not, say where they part."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=False)):
        if a != e:
            raise AssertionError(f"{what}: item {i} of {len(expected)} is {_text(a)}, not {_text(e)}")
    if len(actual) != len(expected):
        raise AssertionError(f"{what}: {len(actual)} items, not {len(expected)}")


def _text(value: Any) -> str:
    return f"{value:#x}" if isinstance(value, int) else repr(value)


# cocotb ---------------------------------------------------------------------------------------------------------------


def case() -> dict[str, NDArray[Any]]:
    """What the caller of `simulate` passed as `case`; numbers are arrays of no dimension."""
    return dict(np.load(os.environ[CASE]))


def save(**arrays: Any) -> None:
    """What `simulate` returns."""
    np.savez(os.environ[RESULT], **arrays)


async def start(dut: Any, **inputs: int) -> None:
    """Clock and reset; all named inputs, and every input that is not driven yet, hold still meanwhile."""
    for name, value in inputs.items():
        getattr(dut, name).value = value
    dut.rst.value = 1
    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    await cycles(dut, 3)
    dut.rst.value = 0
    await cycles(dut, 1)


async def cycles(dut: Any, count: int) -> None:
    for _ in range(count):
        await RisingEdge(dut.clk)


async def within(count: int, awaitable: Awaitable[Any], what: str) -> Any:
    """The result of `awaitable`, which has `count` clock cycles to come."""
    try:
        return await with_timeout(awaitable, count * PERIOD_NS, "ns")
    except SimTimeoutError:
        raise AssertionError(f"{what}: not within {count} cycles") from None


async def until(dut: Any, condition: Callable[[], bool], deadline: int, what: str) -> int:
    """Wait for a condition that is looked at before each clock edge; returns the cycles it took."""
    for cycle in range(deadline):
        await RisingEdge(dut.clk)
        if condition():
            return cycle
    raise AssertionError(f"{what}: not within {deadline} cycles")


class Source:
    """Sends payloads into the stream `name`: `name`_payload, _valid, _ready."""

    def __init__(self, dut: Any, name: str, pattern: Stalls | None = None) -> None:
        self._clk: LogicObject = dut.clk
        self._payload: LogicArrayObject = getattr(dut, f"{name}_payload")
        self._valid: LogicObject = getattr(dut, f"{name}_valid")
        self._ready: LogicObject = getattr(dut, f"{name}_ready")
        self._name, self._stalls, self._sent = name, pattern or flowing(), Event()
        self.queue: deque[int] = deque()
        self.sent = 0  # payloads taken so far
        self._valid.value = 0
        self._task = cocotb.start_soon(self._run())

    async def send(self, payloads: Iterable[int], deadline: int) -> None:
        """Returns when all have been taken."""
        self.queue.extend(payloads)
        goal = self.sent + len(self.queue)

        async def wait() -> None:
            while self.sent < goal:
                self._sent.clear()
                await self._sent.wait()

        await within(deadline, wait(), f"{self._name} takes {goal} payloads")

    def stop(self) -> None:
        """Withdraw at once what was not taken; for resets."""
        self._task.cancel()
        self.queue.clear()
        self._valid.value = 0

    def restart(self) -> None:
        self._task = cocotb.start_soon(self._run())

    async def _run(self) -> None:
        while True:
            if not self.queue or next(self._stalls):
                self._valid.value = 0
                await RisingEdge(self._clk)
                continue
            self._payload.value, self._valid.value = self.queue[0], 1
            await RisingEdge(self._clk)
            while not self._ready.value:
                await RisingEdge(self._clk)
            self.queue.popleft()
            self.sent += 1
            self._sent.set()


class Sink:
    """Takes payloads from the stream `name` into `received`."""

    def __init__(self, dut: Any, name: str, pattern: Stalls | None = None) -> None:
        self._clk: LogicObject = dut.clk
        self._payload: LogicArrayObject = getattr(dut, f"{name}_payload")
        self._valid: LogicObject = getattr(dut, f"{name}_valid")
        self._ready: LogicObject = getattr(dut, f"{name}_ready")
        self._name, self._stalls, self._came = name, pattern or flowing(), Event()
        self.received: list[int] = []
        self.pause = False  # takes nothing while set
        cocotb.start_soon(self._run())

    async def receive(self, count: int, deadline: int) -> list[int]:
        """Wait until `count` payloads are there, and take them out of `received`."""

        async def wait() -> None:
            while len(self.received) < count:
                self._came.clear()
                await self._came.wait()

        await within(deadline, wait(), f"{self._name} gives {count} payloads")
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    async def _run(self) -> None:
        while True:
            ready = not self.pause and not next(self._stalls)
            self._ready.value = ready
            await RisingEdge(self._clk)
            if ready and self._valid.value:
                self.received.append(int(self._payload.value))
                self._came.set()


class Rules:
    """Watches a handshake: VALID is not withdrawn, and the payload holds, until READY.

    `broken` lists violations and `check()` raises them. `excused()` tells of cycles (a flush, say) in which VALID may
    be withdrawn.
    """

    def __init__(
        self, dut: Any, valid: str, ready: str, payload: Sequence[str], excused: Callable[[], bool] = lambda: False
    ) -> None:
        self._clk, self._name, self._excused = dut.clk, valid, excused
        self._valid, self._ready = getattr(dut, valid), getattr(dut, ready)
        self._payload = {name: getattr(dut, name) for name in payload}
        self.broken: list[str] = []
        self.transfers = 0
        cocotb.start_soon(self._run())

    @staticmethod
    def stream(dut: Any, name: str, excused: Callable[[], bool] = lambda: False) -> "Rules":
        return Rules(dut, f"{name}_valid", f"{name}_ready", [f"{name}_payload"], excused)

    def check(self) -> None:
        if self.broken:
            raise AssertionError("\n".join(self.broken))

    async def _run(self) -> None:
        held: dict[str, int] | None = None
        cycle = 0
        while True:
            await RisingEdge(self._clk)
            cycle += 1
            valid = bool(self._valid.value)
            now = {name: int(signal.value) for name, signal in self._payload.items()} if valid else {}
            if held is not None and not self._excused():
                if not valid:
                    self.broken.append(f"cycle {cycle}: {self._name} was withdrawn")
                for name, value in now.items():
                    if value != held[name]:
                        self.broken.append(f"cycle {cycle}: {name} changed from {held[name]:#x} to {value:#x}")
            self.transfers += bool(valid and self._ready.value)
            held = now if valid and not self._ready.value else None


# Amaranth's simulator -------------------------------------------------------------------------------------------------

Process = Callable[[SimulatorContext], Awaitable[None]]


def run(component: Any, *processes: Process, deadline: int, trace: str | None = None) -> None:
    """Run test processes side by side until all have ended, within `deadline` cycles. `trace` names a VCD file."""
    simulator = AmaranthSimulator(component)
    simulator.add_clock(PERIOD_NS * 1e-9)
    running = len(processes)

    def watched(process: Process) -> Process:
        async def testbench(ctx: SimulatorContext) -> None:
            nonlocal running
            await process(ctx)
            running -= 1

        return testbench

    async def watchdog(ctx: SimulatorContext) -> None:
        for _ in range(deadline):  # not `repeat`: its generator complains when the simulation ends before it
            await ctx.tick()
        if running:
            raise AssertionError(f"{running} of {len(processes)} processes still ran after {deadline} cycles")

    for process in processes:
        simulator.add_testbench(watched(process))
    simulator.add_testbench(watchdog, background=True)
    if trace is None:
        simulator.run()
        return
    with simulator.write_vcd(trace):
        simulator.run()


async def send(ctx: SimulatorContext, stream: Any, payloads: Iterable[Any], pattern: Stalls | None = None) -> None:
    """Drive an input stream of the component under `run`."""
    pattern = pattern or flowing()
    for payload in payloads:
        while next(pattern):
            await ctx.tick()
        ctx.set(stream.payload, payload)
        ctx.set(stream.valid, 1)
        ready = False
        while not ready:  # not `until`: its generator complains when the simulation ends before it
            *_, ready = await ctx.tick().sample(stream.ready)
        ctx.set(stream.valid, 0)


async def receive(ctx: SimulatorContext, stream: Any, count: int, pattern: Stalls | None = None) -> list[Any]:
    """Take `count` payloads from an output stream of the component under `run`."""
    pattern = pattern or flowing()
    taken: list[Any] = []
    while len(taken) < count:
        while next(pattern):
            await ctx.tick()
        ctx.set(stream.ready, 1)
        valid = False
        while not valid:
            *_, payload, valid = await ctx.tick().sample(stream.payload, stream.valid)
        taken.append(payload)
        ctx.set(stream.ready, 0)
    return taken
