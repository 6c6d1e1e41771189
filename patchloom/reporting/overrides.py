"""What would mend the largest losses: overrides of precision, each of them tried on the same frames."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b

from patchloom.compiler.graph import Graph, evaluate
from patchloom.compiler.machine.frames import Samples, input_region, result_of
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.node import Floats, Node
from patchloom.compiler.quantise import Precision, QuantiseError
from patchloom.compiler.quantise.calibration import Calibration
from patchloom.compiler.quantise.driver import quantise_by
from patchloom.compiler.schedule import FitError, schedule
from patchloom.reporting.budget import Noise
from patchloom.reporting.report import Change, Override, TaskReport
from patchloom.reporting.timing import Timing
from patchloom.sim.interpret import execute

WIDER = {4: 8, 8: 16, 16: 16}


@dataclass(frozen=True, eq=False)
class Trials:
    """Of one Program, on the frames of each task."""

    program: Program
    calibration: Calibration
    graphs: Mapping[str, Graph]
    samples: Mapping[str, Sequence[Samples]]
    memory: Mapping[str, int]
    known: set[bytes] = field(default_factory=set)  # digests of images

    def __post_init__(self) -> None:
        self.known.add(blake2b(self.program.image).digest())

    @property
    def precision(self) -> Precision:
        return Precision.stated(self.program.precision)

    @cached_property
    def exact(self) -> dict[str, list[dict[str, Floats]]]:
        """Outputs in float, by task and frame."""
        return {task: [evaluate(self.graphs[task], one) for one in several] for task, several in self.samples.items()}

    def compiled(self, layers: Mapping[str, str]) -> Program:
        """For the same machine, with overrides behind those that it has."""
        more = ((name, Precision.parse(text)) for name, text in layers.items())
        overrides = ((name, bits.weights, bits.activations) for name, bits in more)
        precision = replace(self.precision, overrides=(*self.precision.overrides, *overrides))
        return schedule(quantise_by([*self.graphs.values()], self.calibration, precision), self.program.config)

    def tried(self, layers: dict[str, str], now: Sequence[TaskReport]) -> Override | None:
        """In comparison to what the tasks are now; None if it makes no other Program than was tried already."""
        try:
            program = self.compiled(layers)
        except (FitError, QuantiseError) as error:
            return Override(layers, (), 0, str(error).splitlines()[0])
        digest = blake2b(program.image).digest()
        if digest in self.known:
            return None
        self.known.add(digest)
        changes = tuple(self._change(program, task, before) for task, before in zip(program.tasks, now, strict=True))
        return Override(layers, changes, len(program.image) - len(self.program.image), "")

    def _change(self, program: Program, task: Task, before: TaskReport) -> Change:
        noise, samples = Noise(), self.samples[task.name]
        for sample, exact in zip(samples, self.exact[task.name], strict=True):
            output, saturations = execute(program, task.name, input_region(task, sample)[0])
            found = result_of(task, [(output, None, saturations)], False, 0).outputs
            noise.add(exact.values(), [found[name] for name in exact])
        after, then = noise.quality.median, before.output.median
        gain = None if after is None or then is None else round(after - then, 2)
        return Change(task.name, noise.quality, gain, Timing.of(program, task, samples[0], self.memory).cycles)


def candidates(graph: Graph, node: Node, precision: Precision) -> Iterator[dict[str, str]]:
    """Wider weights, wider operands, both; and wider operands of what reads the node, which its own bits follow."""
    if node.is_layer:
        weights, activations = precision.of(node.name)
        for wider in (
            (WIDER[weights], activations),
            (weights, WIDER[activations]),
            (WIDER[weights], WIDER[activations]),
        ):
            if wider != (weights, activations):
                yield {node.name: _named(*wider)}
    readers = [reader for reader in graph.nodes() if reader.is_layer and node in reader.inputs]
    bits = {reader.name: precision.of(reader.name) for reader in readers}
    wider_readers = {name: _named(weights, 16) for name, (weights, activations) in bits.items() if activations < 16}
    if wider_readers:
        yield wider_readers


def _named(weights: int, activations: int) -> str:
    return f"w{weights}a{activations}"


def distinct(several: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    return [dict(items) for items in dict.fromkeys(tuple(sorted(one.items())) for one in several)]


def merged(overrides: Iterable[Override]) -> dict[str, str]:
    """Those of no layer that one before them has."""
    made: dict[str, str] = {}
    for override in overrides:
        if made.keys().isdisjoint(override.layers):
            made |= override.layers
    return made
