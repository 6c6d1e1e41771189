"""On-chip activation memory, addressed in chunks of `Config.lanes` elements of 16 bits."""

from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from compiler.config import ELEMENT_WIDTH, Config
from hw.pipeline import UNCHECKED, delay, register


class Scratchpad(wiring.Component):
    """Two read ports and one write port, each of consecutive chunks from any chunk on.

    Chunk c lives in bank c % banks, so an access of up to `banks` chunks touches each bank once. Banks are made of
    blocks of `BLOCK_ROWS`, with a register behind each. Data leave `READ_LATENCY` cycles after the address; a write
    lands `WRITE_LATENCY` cycles after it is given. Nothing stalls. Addresses wrap if the number of chunks is a power
    of two; otherwise nothing is said of chunks beyond the last. A read of a chunk being written gives the old or the
    new one: the sequencer keeps them apart.
    """

    READ_LATENCY = 6
    WRITE_LATENCY = 3
    BLOCK_ROWS = 1024  # of a block RAM that is 16 or more bits wide, on ECP5 and Xilinx alike

    def __init__(self, config: Config):
        self.config = config
        chunk = config.lanes * ELEMENT_WIDTH
        address = range(config.scratchpad_chunks)
        ports: dict[str, wiring.Member] = {}
        for name, chunks in self.readers(config).items():
            ports |= {f"{name}_address": In(address), f"{name}_data": Out(chunks * chunk)}
        super().__init__(
            ports
            | {
                "write_address": In(address),
                "write_data": In(config.output_chunks * chunk),
                "write_enable": In(2 * config.output_chunks),  # one bit for half a chunk
            }
        )

    @staticmethod
    def readers(config: Config) -> dict[str, int]:
        """Chunks that each read port takes at once: streamed operand; stationary operand or residual."""
        return {"a": config.input_chunks, "b": config.banks}

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        width, bits = c.lanes * ELEMENT_WIDTH, (c.banks - 1).bit_length()
        rows, inside = c.scratchpad_chunks // c.banks, exact_log2(self.BLOCK_ROWS)
        banks = [
            [self._block(m, width, min(rows - i, self.BLOCK_ROWS)) for i in range(0, rows, self.BLOCK_ROWS)]
            for _ in range(c.banks)
        ]

        def row(address: Value, bank: int) -> Value:
            """Row of the one chunk of address .. address + banks - 1 that lives in `bank`."""
            return ((address >> bits) + (bank < address[:bits] if bits else 0))[: max(1, (rows - 1).bit_length())]

        for name, chunks in self.readers(c).items():
            address = getattr(self, f"{name}_address")
            # Cycle 1: bank addresses. Cycle 2: to their block. Cycles 3 and 4: read. Cycle 5: choose the block.
            read = []
            for i, blocks in enumerate(banks):
                at = register(m, row(address, i), name=f"{name}_row_{i}")
                words = []
                for number, block in enumerate(blocks):
                    port = block.read_port()
                    # Only this block's: a net from one register to all blocks would be long.
                    with m.If(at[inside:] == number):
                        m.d.sync += port.addr.eq(at)
                    words.append(register(m, port.data, name=f"{name}_word_{i}"))
                chosen = delay(m, at[inside:], 3, name=f"{name}_block_{i}")
                read.append(register(m, Array(words)[chosen] if len(words) > 1 else words[0], name=f"{name}_{i}"))
            # Cycle 6: rotate the first chunk to the front.
            first = delay(m, address[:bits], 5, name=f"{name}_first")
            data = [Array(read)[(first + i)[:bits]] for i in range(chunks)] if bits else [read[0]]
            m.d.comb += getattr(self, f"{name}_data").eq(register(m, Cat(data), name=f"{name}_data"))

        # Cycle 1: rotate chunks to their banks. Cycle 2: to their block. Cycle 3: write.
        offset = self.write_address[:bits]
        for i, blocks in enumerate(banks):
            source = (i - offset)[:bits] if bits else 0  # which of the chunks goes to this bank
            words = [self.write_data.word_select(j, width) for j in range(c.output_chunks)]
            enables = [Mux(source == j, self.write_enable.word_select(j, 2), 0) for j in range(c.output_chunks)]
            data = words[-1]
            for word, enable in zip(reversed(words[:-1]), reversed(enables[:-1]), strict=True):
                data = Mux(enable.any(), word, data)
            at = register(m, row(self.write_address, i), name=f"write_row_{i}")
            data = register(m, data, name=f"write_{i}")
            enable = Signal(2, name=f"enable_{i}")
            m.d.sync += enable.eq(reduce(or_, enables))
            for number, block in enumerate(blocks):
                port = block.write_port(granularity=width // 2)
                m.d.sync += port.en.eq(0)
                with m.If(at[inside:] == number):
                    m.d.sync += [port.en.eq(enable), port.addr.eq(at), port.data.eq(data)]
        return m

    @staticmethod
    def _block(m: Module, width: int, rows: int) -> memory.Memory:
        block = memory.Memory(shape=unsigned(width), depth=rows, init=[], attrs=UNCHECKED)
        m.submodules += block
        return block
