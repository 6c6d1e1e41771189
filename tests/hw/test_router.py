"""Router and Queues against the interpreter's ROUTE: every top-k, both scorings, ties, any number of experts."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring

from patchloom.compiler.machine.commands import Command, Kind
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.fixed import SCORE_FRACTION
from patchloom.hw.router import Queues, Router
from patchloom.sim.cosim import simulate
from patchloom.sim.interpret import State, route
from tests.hw.pipelines import as_case

SMALL = {"inputs": 8, "outputs": 4, "bus_width": 32, "scratchpad_chunks": 256}
CONFIGS = {
    "8 experts, 4 lanes": Config(lanes=4, max_rows=20, max_experts=8, max_top_k=4, **SMALL),
    "5 experts, 1 at most": Config(lanes=4, max_rows=16, max_experts=5, max_top_k=1, **SMALL),
    "19 experts, 3 at most": Config(
        inputs=8, outputs=8, lanes=8, bus_width=64, scratchpad_chunks=256, max_rows=33, max_experts=19, max_top_k=3
    ),
}


class Routing(wiring.Component):
    """Router and Queues, wired as in the machine."""

    def __init__(self, config: Config):
        self.router, self.queues = Router(config), Queues(config)
        self.inner = dict.fromkeys(("expert", "source", "target", "lengths"), self.queues)
        self.inner |= dict.fromkeys(("order", "read"), self.router)
        super().__init__({name: unit.signature.members[name] for name, unit in self.inner.items()})

    def elaborate(self, platform):
        m = Module()
        m.submodules.router, m.submodules.queues = self.router, self.queues
        for name in ("order", "source", "target"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(self.inner[name], name))
        wiring.connect(m, self.router.read, wiring.flipped(self.read))
        wiring.connect(m, self.router.push, self.queues.push)
        m.d.comb += [
            self.queues.clear.eq(self.order.start),
            self.queues.expert.eq(self.expert),
            self.lengths.eq(self.queues.lengths),
        ]
        return m


@dataclass
class Case:
    config: Config
    seed: int = 0
    commands: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        c = self.config
        shape = (c.scratchpad_chunks, c.lanes)
        spread = 2.0 ** rng.integers(0, 16, (c.scratchpad_chunks // 4, 1)).repeat(4, 0)
        logits = np.clip(np.rint(rng.normal(0, spread, shape)), -(1 << 15), (1 << 15) - 1)
        logits[:32] = rng.integers(-1, 2, (32, c.lanes))  # ties
        logits[32:40] = rng.choice([-(1 << 15), (1 << 15) - 1], (8, c.lanes))
        self.scratchpad = logits.astype(np.int16)
        for top_k in range(1, c.max_top_k + 1):
            for score_all in (0, 1):
                for columns in {max(top_k, 2), top_k + 3, c.lanes, c.max_experts - 1, c.max_experts}:
                    if not top_k <= columns <= c.max_experts:
                        continue
                    stride = -(-columns // c.lanes) + int(rng.integers(2))
                    rows = int(rng.choice([1, 2, 7, min(c.max_rows, c.scratchpad_chunks // stride)]))
                    at = int(rng.integers(c.scratchpad_chunks - rows * stride + 1))
                    fields = {"rows": rows, "columns": columns, "a_address": at, "a_stride": stride, "top_k": top_k}
                    shift = int(rng.integers(SCORE_FRACTION + 1))
                    self.commands.append(Command(kind=Kind.ROUTE, score_all=score_all, exp_shift=shift, **fields))


def rtl(case: Case) -> list[list[int]]:
    raw = np.frombuffer(b"".join(command.encode() for command in case.commands), np.uint8)
    given = {"scratchpad": case.scratchpad, "commands": raw}
    bench = Path(__file__).with_name("bench_router.py")
    return simulate(Routing(case.config), bench, case=given | as_case(case.config))["entries"].tolist()


def reference(case: Case) -> list[list[int]]:
    """(command, expert, token, score, first) of every queue entry, as the interpreter makes them."""
    state, entries = State(case.config, {}), []
    state.scratchpad[:] = case.scratchpad
    for number, c in enumerate(case.commands):
        logits = state.read(c.places("a", np.arange(c.rows)), c.columns)
        for expert, queue in enumerate(route(c, logits)):
            fields = zip(queue.token.tolist(), queue.score.tolist(), queue.first.tolist(), strict=True)
            entries += [[number, expert, token, score, int(first)] for token, score, first in fields]
    return entries


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_router(config):
    case = Case(config)
    assert rtl(case) == reference(case)
