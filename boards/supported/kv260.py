"""Kria KV260: a Zynq UltraScale+ with its memory at the processing system, built by Vivado."""

from patchloom.boards.description import Board, Device, Memory, Zynq

BOARD = Board(
    name="kv260",
    title="AMD Kria KV260",
    device=Device(
        family="xcup",
        part="xck26-sfvc784-2LV-c",
        luts=117120,
        ffs=234240,
        dsps=1248,
        brams=144,
        source="AMD DS987, K26",
    ),
    clock_hz=100_000_000,
    clock_source="assumed: below the 120 MHz that static timing of the netlist gives; never built by Vivado",
    memory=Memory(
        kind="DDR4 SDRAM of the processing system, 64 bits at 2400 MT/s",
        bytes=2 << 30,
        base=0,
        bus_width=128,
        latency=40,
        latency_source="assumed, not measured",
        cycles_per_beat=1,
        cycles_per_beat_source="one HP port is 128 bits a cycle, a twelfth of the memory's peak; not measured",
    ),
    registers=0xA000_0000,
    link="zynq",
    tools="vivado",
    zynq=Zynq(
        system="zynq_ultra_ps_e",
        board_part="xilinx.com:kv260_som:part0:1.4",
        memory_port="S_AXI_HP0_FPD",
        register_port="M_AXI_HPM0_FPD",
    ),
    proven="never built by Vivado, never run on silicon",
)
