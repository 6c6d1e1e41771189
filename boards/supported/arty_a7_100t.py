"""Arty A7-100T: the same SoC as the ECP5 boards, built by Vivado."""

from patchloom.boards.description import Board, Device, Litex, Memory

BOARD = Board(
    name="arty_a7_100t",
    title="Digilent Arty A7-100T",
    device=Device(
        family="xc7",
        part="xc7a100tcsg324-1",
        luts=63400,
        ffs=126800,
        dsps=240,
        brams=135,
        source="AMD DS180, XC7A100T",
    ),
    clock_hz=80_000_000,
    clock_source="no less than 76 MHz, where the DDR3's DLL ends; no timing analysis was run",
    memory=Memory(
        kind="DDR3 SDRAM, 16 bits at 640 MT/s",
        bytes=256 << 20,
        base=0x4000_0000,
        bus_width=128,
        latency=20,
        latency_source="assumed: twice what LiteDRAM's 1:2 controller shows on ECP5, not measured",
        cycles_per_beat=1,
        cycles_per_beat_source="a burst of 8 is 1 cycle of LiteDRAM's 1:4 controller; not measured",
        refresh_period=624,
        refresh_cycles=20,
        refresh_source="7.8 us; cycles assumed as on the ECPIX-5",
    ),
    registers=0x9000_0000,
    link="etherbone",
    baud=3_000_000,
    tools="vivado",
    litex=Litex(
        platform="digilent_arty",
        arguments=(("variant", "a7-100"), ("toolchain", "vivado")),
        phy="A7DDRPHY",
        dram="MT41K128M16",
        simulated_dram="MT41K64M16",
        rate="1:4",
        loader="arty_a7_100t",
        ethernet="LiteEthPHYMII",
    ),
    proven="never built by Vivado, never run on silicon",
)
