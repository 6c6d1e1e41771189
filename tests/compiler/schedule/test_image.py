"""What the memory image holds."""

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.config import Config
from patchloom.compiler.quantise import Precision, quantise
from patchloom.compiler.schedule import schedule
from tests.compiler.graphs import Builder, run, samples


def test_tasks_share_weights():
    def graph(task: str) -> Graph:
        shared, own = Builder(0), Builder(1 + len(task))
        x = shared.matmul("embed", shared.input(20, 24), 64)
        x = shared.block("layer", x, 2)
        return Graph(task, (own.output(f"{task}_out", own.matmul(f"head.{task}", x, 10, epsilon=1e-6)),))

    graphs = [graph("depth"), graph("segmentation")]
    config = Config()
    images = []
    for several in (graphs[:1], graphs):
        quantised = quantise(several, samples(several[0], 4), Precision.parse("w8a8"))
        images.append(schedule(quantised, config))
    names = [segment.name for segment in images[1].segments]
    assert len(names) == len(set(names))
    one_task, both = (sum(s.length for s in p.segments if not s.name.startswith("commands")) for p in images)
    assert both - one_task < 2000  # a head
    for graph_ in graphs:
        inputs = {name: array[0] for name, array in samples(graph_, 1).items()}
        assert run(images[1], inputs, graph_.task)[f"{graph_.task}_out"].shape == (20, 10)
