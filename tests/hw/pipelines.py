"""How tests reach units of fixed latency: values in, values out, one set a cycle, nothing stalls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from pathlib import Path

import numpy as np
from amaranth.hdl import Cat, Module, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from patchloom.compiler.machine.commands import Command
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.fixed import Ints
from patchloom.hw.command import CommandLayout
from patchloom.sim.bench import run
from patchloom.sim.cosim import simulate

SIZES = [field.name for field in fields(Config)]
SLOT = 64  # bits of a copy's value in a port of `Abreast`


def command_bits(command: Command) -> int:
    """As the command's port takes it."""
    return int.from_bytes(command.encode(), "little") & ((1 << CommandLayout.size) - 1)


def as_case(config: Config) -> dict[str, int]:
    """A Config on its way to a cocotb bench."""
    return asdict(config)


def config_of(case: Mapping[str, NDArray]) -> Config:
    """Inverse of `as_case`, in the bench."""
    return Config(**{name: case[name].item() for name in SIZES})


def joined(values: Sequence[int] | Ints, width: int) -> int:
    """Elements side by side, the first in the low bits."""
    mask = (1 << width) - 1
    return sum((int(value) & mask) << (width * i) for i, value in enumerate(values))


def parted(word: int, width: int, count: int, *, signed: bool = True) -> list[int]:
    """Inverse of `joined`."""
    fields = [(word >> (width * i)) & ((1 << width) - 1) for i in range(count)]
    return [f - (1 << width) if signed and f >> (width - 1) else f for f in fields]


Inputs = Mapping[str, int | Sequence[int]]  # `port` or `bundle.member`: a value in each cycle and then 0, or a constant
Seen = dict[str, list[int]]


def drive(component: wiring.Component, inputs: Inputs, outputs: Sequence[str], cycles: int) -> Seen:
    """Outputs in each cycle, in Amaranth's simulator."""
    return drive_each(component, [(inputs, cycles)], outputs)[0]


def drive_each(component: wiring.Component, runs: Sequence[tuple[Inputs, int]], outputs: Sequence[str]) -> list[Seen]:
    """The same for several runs (inputs, cycles), one after another."""
    results: list[Seen] = []

    def port(name: str) -> Value:
        return Value.cast(attrgetter(name)(component))

    async def process(ctx) -> None:
        for inputs, cycles in runs:
            results.append(seen := {name: [] for name in outputs})
            moving = [(port(name), values) for name, values in inputs.items() if not isinstance(values, int)]
            for name, value in inputs.items():
                if isinstance(value, int):
                    ctx.set(port(name), value)
            for cycle in range(cycles):
                for value, series in moving:
                    ctx.set(value, series[cycle] if cycle < len(series) else 0)
                for name, series in seen.items():
                    series.append(ctx.get(port(name)))
                await ctx.tick()

    run(component, process, deadline=sum(cycles for _, cycles in runs) + 2)
    return results


class Abreast(wiring.Component):
    """Copies of units side by side: port p of unit u is `u_p`, `SLOT` bits a copy, the first in the low bits."""

    def __init__(self, units: Mapping[str, type[wiring.Component]], copies: int):
        self.units = {name: [unit() for _ in range(copies)] for name, unit in units.items()}
        self.copies = copies
        flows = {"In": In, "Out": Out}
        super().__init__(
            {
                f"{name}_{port}": flows[member.flow.name](copies * SLOT)
                for name, unit in self.units.items()
                for port, member, _ in _ports(unit[0])
            }
        )

    def elaborate(self, platform):
        m = Module()
        for name, units in self.units.items():
            for each in zip(*map(_ports, units), strict=True):
                (port, member, _), values = each[0], [value for _, _, value in each]
                wide = getattr(self, f"{name}_{port}")
                if member.flow == In:
                    m.d.comb += [value.eq(wide.word_select(i, SLOT)) for i, value in enumerate(values)]
                else:
                    zero = [value.as_signed() if value.shape().signed else value for value in values]
                    m.d.comb += wide.eq(Cat(_widened(value) for value in zero))
            for i, unit in enumerate(units):
                m.submodules[f"{name}_{i}"] = unit
        return m


def _ports(unit: wiring.Component) -> Iterator[tuple[str, wiring.Member, Value]]:
    """Those of its bundles too, `bundle_member`."""
    for path, member, value in unit.signature.flatten(unit):
        yield "_".join(map(str, path)), member, Value.cast(value)


def _widened(value: Value) -> Value:
    fill = value[-1] if value.shape().signed else 0
    return Cat(value, Value.cast(fill).replicate(SLOT - len(value)))


def sweep(
    abreast: Abreast, unit: str, latency: int, inputs: Mapping[str, Ints | int], outputs: Mapping[str, int]
) -> dict[str, NDArray[np.int64]]:
    """Outputs for every value of the inputs, in Verilator. `outputs` names each with its latency."""
    count = max(np.size(value) for value in inputs.values())
    rows = -(-count // abreast.copies)
    case = {}
    for name, value in inputs.items():
        padded = np.zeros(rows * abreast.copies, np.int64)
        padded[:count] = value
        case[f"in_{unit}_{name}"] = padded.reshape(rows, abreast.copies).view(np.uint8)
    names = {name: f"{unit}_{name}" for name in outputs}
    bench = Path(__file__).with_name("bench_pipeline.py")
    got = simulate(abreast, bench, case=case | {"extra": latency, "outputs": np.array(list(names.values()))})
    return {
        name: np.ascontiguousarray(got[names[name]][late : late + rows]).view(np.int64).reshape(-1)[:count]
        for name, late in outputs.items()
    }
