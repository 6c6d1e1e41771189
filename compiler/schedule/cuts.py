"""How often something is cut so that a task fits the scratchpad."""

from collections.abc import Mapping

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.commands import Kind
from patchloom.compiler.machine.config import Config
from patchloom.compiler.node import Node
from patchloom.compiler.quantise import Quantised
from patchloom.compiler.schedule.buffers import alive, allocate
from patchloom.compiler.schedule.drafting import Drafting
from patchloom.compiler.schedule.image import Image
from patchloom.compiler.schedule.products import make_normalisable


def plan(quantised: Quantised, graph: Graph, config: Config, image: Image) -> tuple[Drafting, int, int, int]:
    """Commands with the fewest cuts such that all fits; the chunks and the commands needed, and 0.

    Where nothing fits: the fewest chunks that do with as many commands as there can be, the fewest commands, and
    the number of commands that would do, if they are all that is missing.
    """

    def drafted(cuts: Mapping[Node, int]) -> tuple[Drafting, int]:
        d = Drafting(quantised, graph, config, image, cuts)
        _run(d)
        return d, allocate(d.spans, config.scratchpad_chunks)

    d, needed = best = drafted({})
    fewest = len(d.drafts)
    while needed > config.scratchpad_chunks:
        more = {node: d.cuts.get(node, 0) + 1 for node in _divisible(d)}
        if not more:
            return *best, fewest, 0
        d, needed = drafted({**d.cuts, **more})
        if len(d.drafts) > max(config.command_depth, fewest):
            return *best, fewest, len(d.drafts) if needed <= config.scratchpad_chunks else 0
        best = min(best, (d, needed), key=lambda made: made[1])
    return d, needed, len(d.drafts), 0


def _run(d: Drafting) -> None:
    """Draft every node but those that others compute head by head."""
    d.draft(Kind.BEGIN, f"task {d.graph.task}", epsilon=d.config.fingerprint)
    for node in d.graph.nodes():
        if node in d.late:
            continue
        d.unread.subtract(node.inputs)
        for x in d.late.intersection(node.inputs):
            d.unread.subtract(x.inputs)
        with d.drafting(node):
            node.draft(d)
            make_normalisable(d, node)
    d.draft(Kind.END, "done")
    d.drafts[0].fields["rows"] = len(d.drafts)


def _divisible(d: Drafting) -> set[Node]:
    """What lives when the scratchpad is too small, or lies beyond it, and can be cut."""
    size = d.config.scratchpad_chunks
    full = {position for position, units in enumerate(alive(d.spans)) if units > size}
    beyond = [span for span in d.spans if span.address + span.size > size]
    return {
        node
        for span, node in d.divisible.items()
        if (not full.isdisjoint(range(span.first, span.last + 1)) if full else any(map(span.meets, beyond)))
    }
