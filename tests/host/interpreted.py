"""A machine of registers and memory that runs whatever Program lies in its memory, on the interpreter."""

from dataclasses import replace

import numpy as np

from patchloom.compiler.machine.commands import COMMAND_BYTES, Command, Kind
from patchloom.compiler.machine.program import Program
from patchloom.sim.interpret import execute
from tests.host.fake import BASE, FakeDevice


class Interpreted(FakeDevice):
    """For Programs of one Config; `wrong` flips a bit of every element that it stores."""

    def __init__(self, program: Program, *, wrong: bool = False):
        super().__init__(program.config, 0)
        self.memory, self.program, self.wrong = bytearray(1 << 21), program, wrong
        self.fate = Interpreted.run

    def run(self):
        image, source, target = (self.registers[f"{name}_base_lo"] - BASE for name in ("program", "input", "output"))
        number, config = self.registers["task"], self.program.config
        raw = bytes(self.memory[image : image + len(self.program.image)])
        first = number * config.command_depth
        count = Command.decode(raw[first * COMMAND_BYTES :][:COMMAND_BYTES]).rows
        commands = tuple(
            Command.decode(raw[at * COMMAND_BYTES :][:COMMAND_BYTES]) for at in range(first, first + count)
        )
        size = max(c.dma_address + 2 * c.rows * config.lanes for c in commands if c.kind == Kind.STORE)
        task = replace(self.program.tasks[number], commands=commands, output_bytes=size)
        region = np.frombuffer(self.memory, "<i2", task.input_bytes // 2, source)
        output, saturations = execute(replace(self.program, tasks=(task,), image=raw), task.name, region.copy())
        self.memory[target : target + size] = (output ^ self.wrong).astype("<i2").tobytes()
        self.registers["saturations"] = saturations
