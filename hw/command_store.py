"""The commands of the task that runs."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from patchloom.compiler.machine.config import Config
from patchloom.hw.bundles import CommandRead, CommandWrite
from patchloom.hw.command import CommandLayout
from patchloom.hw.pipeline import block_ram, look_up


class CommandStore(wiring.Component):
    """A command is read each cycle by one of several readers, one written."""

    READERS = 3

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "reads": In(CommandRead(config)).array(self.READERS),
                "write": In(CommandWrite(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.store = store = block_ram(CommandLayout, self.config.command_depth)
        write, address = store.write_port(), Signal(range(self.config.command_depth))
        command = look_up(m, store, address, name="command")
        m.d.comb += [
            write.en.eq(self.write.valid),
            write.addr.eq(self.write.index),
            write.data.eq(self.write.command),
            *(read.command.eq(command) for read in self.reads),
        ]
        for read in reversed(self.reads):
            with m.If(read.ask):
                m.d.comb += address.eq(read.index)
                m.d.comb += [other.grant.eq(other is read) for other in self.reads]
        return m
