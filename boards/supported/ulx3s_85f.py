"""ULX3S with an LFE5U-85F: open tools to the bitstream."""

from patchloom.boards.description import Board, Device, Litex, Memory

BOARD = Board(
    name="ulx3s_85f",
    title="Radiona ULX3S-85F",
    device=Device(
        family="ecp5",
        part="LFE5U-85F-6BG381C",
        luts=83640,
        ffs=83640,
        dsps=156,
        brams=208,
        source="utilisation report of nextpnr-ecp5",
    ),
    clock_hz=50_000_000,
    clock_source="LiteX's own target for this board; 60 MHz was asked for in a trial and did not route",
    memory=Memory(
        kind="SDR SDRAM, 16 bits at 100 MHz",
        bytes=32 << 20,
        base=0x4000_0000,
        bus_width=32,
        latency=11,
        latency_source="fitted to the simulated SoC with LiteDRAM",
        cycles_per_beat=1,
        cycles_per_beat_source=(
            "LiteDRAM's half-rate controller has 32 bits a cycle; within 1 % of the simulated SoC "
            "(benchmarks/results/soc.json)"
        ),
        refresh_period=390,
        refresh_cycles=20,
        refresh_source="7.8 us; cycles fitted to the simulated SoC with LiteDRAM, changes of row included",
    ),
    registers=0x9000_0000,
    link="uart",
    baud=3_000_000,
    tools="open",
    litex=Litex(
        platform="radiona_ulx3s",
        arguments=(("device", "LFE5U-85F"), ("revision", "2.0"), ("toolchain", "trellis")),
        clocks=(("sdram_rate", "1:2"),),
        phy="HalfRateGENSDRPHY",
        dram="MT48LC16M16",
        simulated_dram="MT48LC16M16",
        rate="1:2",
        loader="ulx3s",
    ),
    proven="simulated with its memory; not run on silicon",
)
