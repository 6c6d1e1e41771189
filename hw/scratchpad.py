"""On-chip activation memory, addressed in chunks of `Config.lanes` elements of 16 bits."""

from functools import reduce
from operator import or_

from amaranth.hdl import Array, Cat, Module, Mux, Signal, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from compiler.config import ELEMENT_WIDTH, Config
from hw.pipeline import UNCHECKED, delay, register


class Scratchpad(wiring.Component):
    """Two read ports and one write port, each of consecutive chunks from any chunk on; addresses wrap.

    Chunk c lives in bank c % banks, so an access of up to `banks` chunks touches each bank once. Data leave
    `READ_LATENCY` cycles after the address; a write lands `WRITE_LATENCY` cycles after it is given. Nothing
    stalls. A read of a chunk being written gives the old or the new one: the sequencer keeps them apart.
    """

    READ_LATENCY = 4
    WRITE_LATENCY = 2

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
        rows = c.scratchpad_chunks // c.banks
        banks = [memory.Memory(shape=unsigned(width), depth=rows, init=[], attrs=UNCHECKED) for _ in range(c.banks)]
        m.submodules += banks

        def row(address: Signal, bank: int) -> Signal:
            """Row of the one chunk of address .. address + banks - 1 that lives in `bank`."""
            wraps = bank < address[:bits] if bits else 0
            return register(m, (address >> bits) + wraps, name=f"row_{bank}")

        for name, chunks in self.readers(c).items():
            address = getattr(self, f"{name}_address")
            ports = [bank.read_port() for bank in banks]
            # Cycle 1: bank addresses. Cycles 2 and 3: read. Cycle 4: rotate the first chunk to the front.
            m.d.comb += [port.addr.eq(row(address, i)) for i, port in enumerate(ports)]
            first = delay(m, address[:bits], 3, name=f"{name}_first")
            read = Array(register(m, port.data, name=f"{name}_{i}") for i, port in enumerate(ports))
            data = [read[(first + i)[:bits]] for i in range(chunks)] if bits else [read[0]]
            m.d.comb += getattr(self, f"{name}_data").eq(register(m, Cat(data), name=f"{name}_data"))

        # Cycle 1: rotate chunks to their banks. Cycle 2: write.
        offset = self.write_address[:bits]
        for i, bank in enumerate(banks):
            port = bank.write_port(granularity=width // 2)
            source = (i - offset)[:bits] if bits else 0  # which of the chunks goes to this bank
            words = [self.write_data.word_select(j, width) for j in range(c.output_chunks)]
            enables = [Mux(source == j, self.write_enable.word_select(j, 2), 0) for j in range(c.output_chunks)]
            data = words[-1]
            for word, enable in zip(reversed(words[:-1]), reversed(enables[:-1]), strict=True):
                data = Mux(enable.any(), word, data)
            m.d.comb += port.addr.eq(row(self.write_address, i))
            m.d.sync += [port.data.eq(data), port.en.eq(reduce(or_, enables))]
        return m
