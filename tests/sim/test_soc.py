"""Where the words of a memory lie in LiteDRAM's model of it; the rest is in tests/boards/test_simulated.py."""

import pytest

from patchloom.compiler.machine.errors import InputError
from patchloom.sim.soc import Banks

MIB = 1 << 20


def verilog(banks, width, depth):
    names = ["mem", *(f"mem_{i}" for i in range(1, banks))]
    others = "reg [38:0] storage_7[0:63];\nreg [31:0] mem_adr0;\n"
    return others + "".join(f"reg [{width - 1}:0] {name}[0:{depth - 1}];\n" for name in names)


def test_words_of_an_sdr_memory():
    """The ULX3S's: rows of 512 columns of 16 bits, two to a word."""
    banks = Banks.of(verilog(4, 32, 2 * MIB), 1024, 32 * MIB)
    assert banks == Banks(("mem", "mem_1", "mem_2", "mem_3"), 2 * MIB, 4, 256, 1)
    bank, place = banks.places(255, 3)
    assert (bank.tolist(), place.tolist()) == ([0, 1, 1], [255, 0, 1])
    bank, place = banks.places(4 * 256 * 7 - 1, 2)
    assert (bank.tolist(), place.tolist()) == ([3, 0], [6 * 256 + 255, 7 * 256])


def test_words_of_a_ddr_memory():
    """Of the model's words every other one is used."""
    banks = Banks.of(verilog(8, 128, 2 * MIB), 2048, 128 * MIB)
    assert (banks.row_words, banks.spacing) == (128, 2)
    bank, place = banks.places(127, 2)
    assert (bank.tolist(), place.tolist()) == ([0, 1], [254, 0])
    assert [part.tolist() for part in banks.places(8 * 128 + 3, 1)] == [[0], [(128 + 3) * 2]]


def test_no_memory():
    with pytest.raises(InputError, match=r"banks of one size, not of \[\]"):
        Banks.of("module soc; endmodule\n", 1024, MIB)
    with pytest.raises(InputError, match=r"not of \[\(8, 4\), \(16, 4\)\]"):
        Banks.of(verilog(2, 32, 8) + verilog(1, 32, 16), 1024, MIB)
