"""ZCU102: a Zynq UltraScale+ with its memory at the processing system, built by Vivado."""

from patchloom.boards.description import Board, Device, Memory, Zynq

BOARD = Board(
    name="zcu102",
    title="AMD ZCU102",
    device=Device(
        family="xcup",
        part="xczu9eg-ffvb1156-2-e",
        luts=274080,
        ffs=548160,
        dsps=2520,
        brams=912,
        source="AMD DS891, XCZU9EG",
    ),
    clock_hz=100_000_000,
    clock_source="assumed: below the 120 MHz that static timing of the netlist gives; never built by Vivado",
    memory=Memory(
        kind="DDR4 SDRAM of the processing system, 64 bits at 2133 MT/s",
        bytes=2 << 30,
        base=0,
        bus_width=128,
        latency=40,
        latency_source="assumed, not measured",
        cycles_per_beat=1,
        cycles_per_beat_source="one HP port is 128 bits a cycle, a tenth of the memory's peak; not measured",
    ),
    registers=0xA000_0000,
    link="zynq",
    tools="vivado",
    zynq=Zynq(
        system="zynq_ultra_ps_e",
        board_part="xilinx.com:zcu102:part0:3.4",
        memory_port="S_AXI_HP0_FPD",
        register_port="M_AXI_HPM0_FPD",
    ),
    proven="never built by Vivado, never run on silicon",
)
