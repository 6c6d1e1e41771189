"""PYNQ-Z2: a Zynq-7000 with its memory at the processing system, built by Vivado."""

from patchloom.boards.description import Board, Device, Memory, Zynq

BOARD = Board(
    name="pynq_z2",
    title="TUL PYNQ-Z2",
    device=Device(
        family="xc7",
        part="xc7z020clg400-1",
        luts=53200,
        ffs=106400,
        dsps=220,
        brams=140,
        source="AMD DS190, XC7Z020",
    ),
    clock_hz=66_666_667,
    clock_source="assumed: 1 GHz of the processing system's PLL by 15; never built by Vivado",
    memory=Memory(
        kind="DDR3 SDRAM of the processing system, 16 bits at 1050 MT/s",
        bytes=512 << 20,
        base=0,
        bus_width=64,
        latency=40,
        latency_source="assumed, not measured",
        cycles_per_beat=1,
        cycles_per_beat_source="one HP port is 64 bits a cycle, a quarter of the memory's peak; not measured",
    ),
    registers=0x43C0_0000,
    link="zynq",
    tools="vivado",
    zynq=Zynq(
        system="processing_system7",
        board_part="tul.com.tw:pynq-z2:part0:1.0",
        memory_port="S_AXI_HP0",
        register_port="M_AXI_GP0",
    ),
    proven="never built by Vivado, never run on silicon",
)
