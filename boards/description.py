"""What a board is: declarations only, so that drivers and size estimates need no tool that builds for it."""

from dataclasses import dataclass
from typing import Literal

from patchloom.compiler.machine.errors import Error

Family = Literal["ecp5", "xc7", "xcup"]  # ECP5; 7 series; UltraScale+
Link = Literal["uart", "etherbone", "zynq"]
Tools = Literal["open", "vivado"]


@dataclass(frozen=True, kw_only=True)
class Device:
    """An FPGA and what there is of each kind, counted as its tools do."""

    family: Family
    part: str  # as one orders it, with package and speed grade
    luts: int  # ecp5: LUT4; xc7, xcup: LUT6
    ffs: int
    dsps: int  # ecp5: MULT18X18D; xc7: DSP48E1; xcup: DSP48E2
    brams: int  # ecp5: DP16KD of 16 Kibit; xc7, xcup: RAMB36 of 36 Kibit
    source: str  # of the four numbers


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The machine's memory and its port to it."""

    kind: str
    bytes: int  # that the machine can address
    base: int  # address of the first of them, as the machine and the host see it
    bus_width: int  # data bits of the machine's AXI port: the memory controller's own width, never converted
    latency: int  # cycles of `clock_hz` to the first beat of a burst
    latency_source: str
    cycles_per_beat: int  # cycles of `clock_hz` that a beat takes in a long run
    cycles_per_beat_source: str
    refresh_period: int = 0  # cycles of `clock_hz` from one refresh to the next; 0 where the beats' source covers it
    refresh_cycles: int = 0  # of them, in which no beat goes
    refresh_source: str = ""

    @property
    def timing(self) -> dict[str, int]:
        """As `sim.cycles.predict` and `sim.device.SimulatedDevice` take it."""
        return {
            "latency": self.latency,
            "cycles_per_beat": self.cycles_per_beat,
            "refresh_period": self.refresh_period,
            "refresh_cycles": self.refresh_cycles,
        }

    def __str__(self) -> str:
        refresh = f", {self.refresh_cycles} of {self.refresh_period} to refresh" if self.refresh_period else ""
        return f"{self.cycles_per_beat} cycles a beat, latency {self.latency}{refresh}"

    @property
    def source(self) -> str:
        """Of all of `timing`."""
        told = {"beats": self.cycles_per_beat_source, "latency": self.latency_source, "refresh": self.refresh_source}
        return "; ".join(f"{name}: {source}" for name, source in told.items() if source)

    @property
    def beats_per_cycle(self) -> float:
        """That go in a long run."""
        refreshing = self.refresh_cycles / self.refresh_period if self.refresh_period else 0.0
        return (1 - refreshing) / self.cycles_per_beat


@dataclass(frozen=True, kw_only=True)
class Litex:
    """How LiteX builds the SoC around the machine."""

    platform: str  # module of litex_boards.platforms, for pins; that of targets, by the same name, for clocks
    arguments: tuple[tuple[str, str], ...] = ()  # of the platform's class
    clocks: tuple[tuple[str, str], ...] = ()  # arguments of the target's clocks
    phy: str  # class of litedram.phy
    dram: str  # class of litedram.modules
    simulated_dram: str  # its like in the simulated SoC, perhaps smaller: a simulator holds all of it
    rate: Literal["1:2", "1:4"]  # of the machine's clock to the memory's
    loader: str  # openFPGALoader's name of the board
    ethernet: str = ""  # class of liteeth.phy, if the board has Ethernet; used if the link is Etherbone
    ip: str = "192.168.1.50"  # of Etherbone, UDP port 1234


@dataclass(frozen=True, kw_only=True)
class Zynq:
    """The processing system that holds the memory and starts the machine."""

    system: Literal["zynq_ultra_ps_e", "processing_system7"]  # Vivado's cell
    board_part: str  # Vivado's name of the board, whose preset sets up the processing system
    memory_port: str  # of the processing system, that the machine's memory port is connected to
    register_port: str  # of the processing system, that the machine's registers are connected to


@dataclass(frozen=True, kw_only=True)
class Board:
    """One board with one device. Exactly one of `litex` and `zynq` says what is built around the machine."""

    name: str
    title: str
    device: Device
    clock_hz: int  # of the machine
    clock_source: str  # why as much
    memory: Memory
    registers: int  # address of the machine's registers, as the host sees it
    link: Link
    baud: int = 0  # of a UART link
    tools: Tools
    litex: Litex | None = None
    zynq: Zynq | None = None
    proven: str  # what was run, and what no one has run on silicon

    def __post_init__(self) -> None:
        if (self.litex is None) == (self.zynq is None):
            raise BoardError(f"board {self.name} must have either litex or zynq, and has both or none")

    def built_by_litex(self) -> Litex:
        if self.litex is None:
            raise BoardError(f"board {self.name} has a processing system, and no SoC by LiteX")
        return self.litex


class BoardError(Error, ValueError):
    """No such board, or one that cannot do what is asked."""
