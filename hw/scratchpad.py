"""On-chip activation memory, addressed in chunks of `Config.lanes` elements of 16 bits."""

from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from patchloom.compiler.machine.config import Config
from patchloom.hw.bundles import ScratchpadRead, ScratchpadWrite, chunk_width
from patchloom.hw.pipeline import block_ram, delay, look_up, register


class Scratchpad(wiring.Component):
    """Two read ports and one write port, each of consecutive chunks from any chunk on; addresses wrap.

    Chunk c lives in bank c % banks, so an access of up to `banks` chunks touches each bank once. Data leave
    `READ_LATENCY` cycles after the address; a write lands `WRITE_LATENCY` cycles after it is given. Nothing
    stalls. A read of a chunk being written gives anything: the sequencer keeps them apart. With one copy of the
    memory, port b reads nothing in a cycle with a `write.valid`.
    """

    BLOCK = 4096  # rows of one memory: of block RAMs side by side, with nothing to choose between
    BLOCK_BITS = exact_log2(BLOCK)
    READ_LATENCY = 5
    WRITE_LATENCY = 2

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {name: In(ScratchpadRead(config, chunks)) for name, chunks in self.readers(config).items()}
            | {"write": In(ScratchpadWrite(config, config.output_chunks))}
        )

    @staticmethod
    def shares_port(config: Config) -> bool:
        """Whether reads by port b and writes take turns."""
        return config.scratchpad_copies == 1

    @staticmethod
    def readers(config: Config) -> dict[str, int]:
        """Chunks that each read port takes at once: streamed operand; stationary operand or residual."""
        return {"a": config.input_chunks, "b": config.banks}

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        width, bits = chunk_width(c), (c.banks - 1).bit_length()
        depth = c.scratchpad_chunks // c.banks
        depths = [min(self.BLOCK, depth - first) for first in range(0, depth, self.BLOCK)]
        banks = [[block_ram(unsigned(width), size) for size in depths] for _ in range(c.banks)]
        for bank in banks:
            m.submodules += bank

        # Cycle 1: bank addresses.
        addresses = {name: getattr(self, name).address for name in self.readers(c)}
        if self.shares_port(c):  # the second port of a block RAM reads and writes
            addresses["b"] = Mux(self.write.valid, self.write.address, self.b.address)
        at = {name: self._rows(m, address) for name, address in addresses.items()}
        for name, chunks in self.readers(c).items():
            first = delay(m, addresses[name][:bits], 4, name=f"{name}_first")
            read = Array(self._read(m, bank, row, name) for bank, row in zip(banks, at[name], strict=True))
            # Cycle 5: rotate the first chunk to the front.
            data = [read[(first + i)[:bits]] for i in range(chunks)] if bits else [read[0]]
            m.d.comb += getattr(self, name).data.eq(register(m, Cat(data), name=f"{name}_data"))

        self._write(m, banks, at["b"] if self.shares_port(c) else self._rows(m, self.write.address))
        return m

    def _write(self, m: Module, banks: list[list[memory.Memory]], rows: list[Signal]) -> None:
        """Cycle 1: rotate chunks to their banks. Cycle 2: write."""
        c = self.config
        width, bits = chunk_width(c), (c.banks - 1).bit_length()
        offset = self.write.address[:bits]
        for i, (bank, row) in enumerate(zip(banks, rows, strict=True)):
            source = (i - offset)[:bits] if bits else 0  # which of the chunks goes to this bank
            words = [self.write.data.word_select(j, width) for j in range(c.output_chunks)]
            enables = [Mux(source == j, self.write.enable.word_select(j, 2), 0) for j in range(c.output_chunks)]
            data = words[-1]
            for word, enable in zip(reversed(words[:-1]), reversed(enables[:-1]), strict=True):
                data = Mux(enable.any(), word, data)
            data = register(m, data, name=f"write_data_{i}")
            enable = Signal(2, name=f"write_enable_{i}")
            m.d.sync += enable.eq(reduce(or_, enables))
            for number, block in enumerate(bank):
                port = block.write_port(granularity=width // 2)
                chosen = row[self.BLOCK_BITS :] == number
                m.d.comb += [port.addr.eq(row), port.data.eq(data), port.en.eq(Mux(chosen, enable, 0))]

    def _rows(self, m: Module, address: Value) -> list[Signal]:
        """In each bank, the row of the one chunk of address .. address + banks - 1 that lives there, a cycle later."""
        bits = (self.config.banks - 1).bit_length()
        wraps = [i < address[:bits] if bits else 0 for i in range(self.config.banks)]
        width = len(address) - bits
        return [register(m, ((address >> bits) + wrap)[:width], name=f"row_{i}") for i, wrap in enumerate(wraps)]

    def _read(self, m: Module, bank: list[memory.Memory], row: Value, name: str) -> Signal:
        """A bank's word three cycles later: looked up in each block, registered, one chosen."""
        found = [register(m, look_up(m, block, row, name=f"{name}_read"), name=f"{name}_found") for block in bank]
        chosen = delay(m, row[self.BLOCK_BITS :], 2, name=f"{name}_block")
        return register(m, Array(found)[chosen] if len(bank) > 1 else found[0], name=f"{name}_word")
