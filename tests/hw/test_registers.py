"""The register map and its AXI4-Lite slave; the bench is bench_registers.py."""

from pathlib import Path

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import REGISTERS, Access, markdown
from patchloom.hw.registers import Registers
from patchloom.sim.cosim import simulate


def test_registers():
    simulate(Registers(Config()), Path(__file__).with_name("bench_registers.py"), case={"seed": 1})


def test_map_is_dense_and_small_enough():
    assert [r.offset for r in REGISTERS.values()] == [4 * i for i in range(len(REGISTERS))]
    assert len(REGISTERS) * 4 <= 4096
    assert all(r.width <= 32 for r in REGISTERS.values())


def test_offsets_do_not_move():
    """Drivers in the field know these; a change of any is a new major version."""
    known = {"magic": 0x00, "version": 0x04, "fingerprint": 0x08, "control": 0x0C, "status": 0x10, "irq_status": 0x14}
    known |= {"error_code": 0x18, "task": 0x20, "program_base_lo": 0x28, "output_base_hi": 0x3C, "output_bytes": 0x48}
    known |= {
        "epoch": 0x5C,
        "frames": 0x60,
        "cycles_lo": 0x68,
        "command_index": 0x84,
        "digest_0": 0x8C,
        "digest_3": 0x98,
    }
    assert {name: REGISTERS[name].offset for name in known} == known


def test_markdown_tells_all():
    text = markdown()
    for register in REGISTERS.values():
        assert f"| {register.offset:#04x} | {register.name} | {register.access.value} |" in text
    assert "Status: BUSY = 1, DONE = 2, ERROR = 4, RESETTING = 8" in text
    assert Access.CLEAR.value in text
