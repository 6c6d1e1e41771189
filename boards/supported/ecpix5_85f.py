"""ECPIX-5 with an LFE5UM5G-85F: open tools to the bitstream."""

from patchloom.boards.description import Board, Device, Litex, Memory

BOARD = Board(
    name="ecpix5_85f",
    title="LambdaConcept ECPIX-5-85F",
    device=Device(
        family="ecp5",
        part="LFE5UM5G-85F-8BG554I",
        luts=83640,
        ffs=83640,
        dsps=156,
        brams=208,
        source="utilisation report of nextpnr-ecp5",
    ),
    clock_hz=75_000_000,
    clock_source="LiteX's own target for this board",
    memory=Memory(
        kind="DDR3 SDRAM, 16 bits at 300 MT/s",
        bytes=512 << 20,
        base=0x4000_0000,
        bus_width=128,
        latency=11,
        latency_source="fitted to the simulated SoC with LiteDRAM",
        cycles_per_beat=2,
        cycles_per_beat_source=(
            "a burst of 8 is 2 cycles of LiteDRAM's 1:2 controller; within 1 % of the simulated SoC "
            "(benchmarks/results/soc.json)"
        ),
        refresh_period=585,
        refresh_cycles=20,
        refresh_source="7.8 us; cycles fitted to the simulated SoC with LiteDRAM, changes of row included",
    ),
    registers=0x9000_0000,
    link="uart",
    baud=3_000_000,
    tools="open",
    litex=Litex(
        platform="lambdaconcept_ecpix5",
        arguments=(("device", "85F"), ("toolchain", "trellis")),
        phy="ECP5DDRPHY",
        dram="MT41K256M16",
        simulated_dram="MT41K64M16",
        rate="1:2",
        loader="ecpix5",
        ethernet="LiteEthPHYRGMII",
    ),
    proven="simulated with its memory; not run on silicon, and no model can test how the host levels the DDR3",
)
