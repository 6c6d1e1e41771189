"""Commands with other fields: what verify admits, interpreter, HLS kernels and RTL read alike, or verify refuses it.

    python -m tests.sim.command_mutants --count 2000 --seed 0

`--count` is of mutants that verify admits.
"""

from dataclasses import replace

import numpy as np

from patchloom.compiler.machine.commands import COMMAND_BYTES, FIELDS, Command
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.program import Program, ProgramError
from patchloom.compiler.machine.verify import verify
from patchloom.host.session import Session
from patchloom.sim.device import SimulatedDevice
from patchloom.sim.hls import HlsMachine
from patchloom.sim.interpret import execute
from tests.campaign import Found, command_line
from tests.sim.models import Model
from tests.sim.test_machine import PRECISIONS, SQUARE

MODELS = 6


def mutant(program: Program, rng: np.random.Generator) -> tuple[Program, int, str]:
    """Another Program, the number of the task that differs, and what differs there."""
    number = int(rng.integers(len(program.tasks)))
    task = program.tasks[number]
    commands, changes = list(task.commands), []
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(1, len(commands) - 1))
        name = str(rng.choice([name for name in FIELDS if name != "kind"]))
        changed = other(commands[at], name, rng, commands)
        if changed is not None:
            was, now = (int(getattr(command, name)) for command in (commands[at], changed))
            changes.append(f"{at} {commands[at].kind.name} {name} {was} -> {now}")
            commands[at] = changed
    tasks = list(program.tasks)
    tasks[number] = replace(task, commands=tuple(commands))
    image, first = bytearray(program.image), number * program.config.command_depth * COMMAND_BYTES
    encoded = b"".join(command.encode() for command in commands)
    image[first : first + len(encoded)] = encoded
    return replace(program, tasks=tuple(tasks), image=bytes(image)), number, "; ".join(changes)


def other(command: Command, name: str, rng: np.random.Generator, commands: list[Command]) -> Command | None:
    """The command with another value of a field: near, one bit off, another command's, or any."""
    old, bits = int(getattr(command, name)), FIELDS[name]
    choices = [old + 1, old - 1, old ^ 1 << int(rng.integers(bits.width)), int(getattr(rng.choice(commands), name)),
               int(rng.integers(bits.low, bits.high + 1))]  # fmt: skip
    value = choices[rng.integers(len(choices))]
    try:
        changed = replace(command, **{name: type(getattr(command, name))(value)})
        changed.encode()
    except ValueError:  # not encodable
        return None
    return None if value == old else changed


def engines(program: Program, number: int, region: np.ndarray, device: SimulatedDevice) -> dict[str, tuple[bytes, int]]:
    """Output region and saturations of each."""
    name = program.tasks[number].name
    output, saturations = execute(program, name, region)
    native, native_saturations = HlsMachine(program).run(region, name)
    simulated, _, simulated_saturations = Session(device, program, watchdog=20_000).frame(region, name)
    return {
        "interpreter": (output.tobytes(), saturations),
        "hls": (native.tobytes(), native_saturations),
        "rtl": (simulated.tobytes(), simulated_saturations),
    }


def check(count: int, seed: int) -> Found:
    rng, found = np.random.default_rng(seed), Found()
    models = [Model(i) for i in range(MODELS)]
    programs = [(m, m.compiled(SQUARE, p)) for m, p in zip(models, PRECISIONS * MODELS, strict=False)]
    device = SimulatedDevice(SQUARE, memory_bytes=1 << 32, latency=10)
    while found.outcomes["alike"] + len(found.failures) < count:
        model, program = programs[rng.integers(MODELS)]
        changed, number, what = mutant(program, rng)
        try:
            verify(changed)
        except ProgramError:
            found.outcomes["refused"] += 1
            continue
        region = model.region(program, number, int(rng.integers(4)))
        try:
            results = engines(changed, number, region, device)
            alike = len(set(results.values())) == 1
            trouble = "" if alike else " ".join(e for e, r in results.items() if r != results["interpreter"])
        except (Error, ArithmeticError, ValueError, AssertionError) as error:
            alike, trouble = False, f"{type(error).__name__}: {error}"
            device = SimulatedDevice(SQUARE, memory_bytes=1 << 32, latency=10)
        found.outcomes["alike"] += alike
        if not alike:
            found.failures.append(f"{what}: {trouble}")
    return found


if __name__ == "__main__":
    command_line(check, count=2000)
