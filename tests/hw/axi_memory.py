"""A strict AXI4 memory for the benches: one read side, one write side, each checks the master's manners."""

from collections import deque
from collections.abc import Callable, Iterator

import cocotb
from cocotb.triggers import RisingEdge

from patchloom.sim.bench import Rules

AR = ["m_axi_araddr", "m_axi_arlen", "m_axi_arsize", "m_axi_arburst", "m_axi_arid", "m_axi_arcache", "m_axi_arprot"]
AW = [name.replace("_ar", "_aw") for name in AR]
W = ["m_axi_wdata", "m_axi_wstrb", "m_axi_wlast"]


def okay(address: int) -> int:
    return 0


def content(address: int, width: int) -> int:
    """What an unwritten memory holds: different in every beat."""
    return sum(((address + 8 * i) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) << 64 * i for i in range(8)) % (1 << width)


class _Side:
    def __init__(
        self, dut, latency: int, address_stalls: Iterator[bool], data_stalls: Iterator[bool], response: Callable
    ):
        self.dut, self.latency, self.response = dut, latency, response
        self.address_stalls, self.data_stalls = address_stalls, data_stalls
        self.bursts: list[tuple[int, int]] = []  # (address, beats) in the order of their arrival
        self.cycle = 0

    def burst(self, prefix: str) -> tuple[int, int]:
        """The burst on an address channel, if it is a legal one."""
        value = {n: int(getattr(self.dut, f"m_axi_{prefix}{n}").value) for n in ("addr", "len", "size", "burst")}
        beats, self.bytes = value["len"] + 1, 1 << value["size"]
        assert value["burst"] == 1, "not an INCR burst"
        assert value["addr"] % self.bytes == 0, f"burst at {value['addr']:#x} is not aligned"
        assert value["addr"] // 4096 == (value["addr"] + beats * self.bytes - 1) // 4096, f"{value} crosses 4 KiB"
        self.bursts.append((value["addr"], beats))
        return value["addr"], beats


class ReadMemory(_Side):
    """Answers bursts in order, each `latency` cycles after it came or later."""

    def __init__(self, dut, latency, address_stalls, data_stalls, response=okay, read=content):
        super().__init__(dut, latency, address_stalls, data_stalls, response)
        self.read = read  # (address, bits) to data
        self.rules = Rules(dut, "m_axi_arvalid", "m_axi_arready", AR)
        self.width = len(dut.m_axi_rdata)
        self.outstanding = 0  # beats
        self.most_outstanding = 0
        self.pending: deque[tuple[int, int, bool]] = deque()  # (cycle it is ready, address, last)
        dut.m_axi_arready.value = dut.m_axi_rvalid.value = dut.m_axi_rid.value = 0
        cocotb.start_soon(self._run())

    async def _run(self):
        dut, offered = self.dut, False
        while True:
            ready = not next(self.address_stalls)
            dut.m_axi_arready.value = ready
            if not offered and self.pending and self.pending[0][0] <= self.cycle and not next(self.data_stalls):
                _, address, last = self.pending[0]
                dut.m_axi_rdata.value = self.read(address, self.width)
                dut.m_axi_rresp.value, dut.m_axi_rlast.value = self.response(address), last
                offered = True
            dut.m_axi_rvalid.value = offered
            await RisingEdge(dut.clk)
            self.cycle += 1
            if offered:
                assert dut.m_axi_rready.value, "RREADY must always be high"
                self.pending.popleft()
                self.outstanding -= 1
                offered = False
            if ready and dut.m_axi_arvalid.value:
                address, beats = self.burst("ar")
                for i in range(beats):
                    self.pending.append((self.cycle + self.latency, address + i * self.bytes, i == beats - 1))
                self.outstanding += beats
                self.most_outstanding = max(self.most_outstanding, self.outstanding)


class WriteMemory(_Side):
    """Answers bursts in order, `latency` cycles after their last beat. `wait` holds AWREADY until WVALID."""

    def __init__(self, dut, latency, address_stalls, data_stalls, response=okay, *, wait=False):
        super().__init__(dut, latency, address_stalls, data_stalls, response)
        self.rules = [
            Rules(dut, "m_axi_awvalid", "m_axi_awready", AW),
            Rules(dut, "m_axi_wvalid", "m_axi_wready", W),
        ]
        self.wait = wait
        self.written: dict[int, int] = {}  # address -> beat
        self.order: list[int] = []  # addresses as written
        self.blank = 0  # beats with no strobe
        self.beats: deque[tuple[int, int, int]] = deque()  # data, strobe, last
        self.begun: deque[tuple[int, int, int]] = deque()  # address, beats, index
        self.answers: deque[tuple[int, int]] = deque()  # (cycle, response)
        dut.m_axi_awready.value = dut.m_axi_wready.value = dut.m_axi_bvalid.value = dut.m_axi_bid.value = 0
        cocotb.start_soon(self._run())

    @property
    def busy(self) -> bool:
        return bool(self.beats or self.begun or self.answers)

    def _store(self):
        while self.beats and self.begun:
            (data, strobe, last), (address, beats, index) = self.beats.popleft(), self.begun.popleft()
            assert last == (index == beats - 1), f"WLAST is {last} in beat {index} of {beats}"
            at = address + index * self.bytes
            assert strobe in (0, (1 << self.bytes) - 1), f"partial strobe {strobe:#x}"
            if strobe:
                self.written[at] = data
                self.order.append(at)
            self.blank += not strobe
            if not last:
                self.begun.appendleft((address, beats, index + 1))
            else:
                self.answers.append((self.cycle + self.latency, self.response(address)))

    async def _run(self):
        dut, offered = self.dut, False
        while True:
            address_ready = not next(self.address_stalls) and (not self.wait or bool(dut.m_axi_wvalid.value))
            data_ready = not next(self.data_stalls)
            dut.m_axi_awready.value, dut.m_axi_wready.value = address_ready, data_ready
            if not offered and self.answers and self.answers[0][0] <= self.cycle:
                dut.m_axi_bresp.value = self.answers[0][1]
                offered = True
            dut.m_axi_bvalid.value = offered
            await RisingEdge(dut.clk)
            self.cycle += 1
            if offered:
                assert dut.m_axi_bready.value, "BREADY must always be high"
                self.answers.popleft()
                offered = False
            if data_ready and dut.m_axi_wvalid.value:
                beat = (int(dut.m_axi_wdata.value), int(dut.m_axi_wstrb.value), int(dut.m_axi_wlast.value))
                self.beats.append(beat)
            if address_ready and dut.m_axi_awvalid.value:
                self.begun.append((*self.burst("aw"), 0))
            self._store()
