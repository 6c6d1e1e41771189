"""Small random models of canonical nodes: attention and a mixture of experts between an input and two tasks."""

import numpy as np

from patchloom.compiler.graph import Graph
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Program, to_region
from patchloom.compiler.node import View, heads_of, rows_of, whole
from patchloom.compiler.nodes import Attention, Constant, Expert, Input, Matmul, Moe, Output
from patchloom.compiler.quantise import Precision, quantise
from patchloom.compiler.schedule import schedule

TASKS = ("first", "second")


class Model:
    """All sizes follow from the seed. The tasks share everything but gates and heads."""

    def __init__(self, seed: int):
        self.rng = rng = np.random.default_rng(seed)
        self.tokens, self.heads = int(rng.integers(3, 10)), int(rng.integers(1, 4))
        self.dim, self.features = 8 * self.heads, int(rng.integers(5, 30))
        self.head_dim = int(rng.choice([5, 8]))
        self.experts, self.hidden = int(rng.integers(2, 6)), int(rng.integers(6, 20))
        self.top_k = int(rng.integers(1, min(self.experts, 3) + 1))
        self.scoring = str(rng.choice(["softmax_of_selected", "softmax_of_all"]))
        self.activation = str(rng.choice(["gelu", "gelu", "relu"]))
        self.graphs = [self._graph(task, shared) for shared in [self._shared()] for task in TASKS]
        self.calibration = {"image": rng.normal(size=(4, self.tokens, self.features)).astype(np.float32)}

    def _weight(self, outputs: int, inputs: int) -> np.ndarray:
        return (self.rng.normal(size=(outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)

    def _bias(self, outputs: int) -> np.ndarray:
        return (self.rng.normal(size=outputs) * 0.1).astype(np.float32)

    def _matmul(self, name: str, x: View, outputs: int, **options) -> Matmul:
        return Matmul(name=name, x=x, weight=self._weight(outputs, x.shape[1]), bias=self._bias(outputs), **options)

    def _shared(self) -> tuple[View, tuple[Expert, ...]]:
        """The stream in front of the experts, and the experts."""
        tokens, dim, count, size = self.tokens, self.dim, self.heads, self.head_dim
        image = np.arange(tokens * self.features).reshape(tokens, self.features)
        x = Input(name="image", index=image, user_shape=image.shape)
        position = Constant(name="position", value=self.rng.normal(size=(tokens, dim)).astype(np.float32))
        h = whole(self._matmul("embed", whole(x), dim, residual=whole(position)))
        qkv = self._matmul("qkv", h, 3 * count * size, epsilon=1e-5)
        first = [[(part * count + head) * size for head in range(count)] for part in range(3)]
        q, k, v = (heads_of(qkv, columns, size) for columns in first)
        attention = Attention(name="attention", q=q, k=k, v=v, scale=size**-0.5)
        h = whole(self._matmul("project", whole(attention), dim, residual=h))
        wide = self._matmul("mlp.0", h, 2 * dim + 3, epsilon=1e-5, activation=self.activation)
        h = whole(self._matmul("mlp.1", whole(wide), dim, residual=h))
        experts = tuple(
            Expert(
                self._weight(self.hidden, dim), self._bias(self.hidden), self._weight(dim, self.hidden), self._bias(dim)
            )
            for _ in range(self.experts)
        )
        return h, experts

    def _graph(self, task: str, shared: tuple[View, tuple[Expert, ...]]) -> Graph:
        h, experts = shared
        moe = Moe(
            name=f"moe.{task}", x=h, gate_weight=3 * self._weight(self.experts, self.dim),
            gate_bias=self._bias(self.experts), experts=experts, activation=self.activation, top_k=self.top_k,
            scoring=self.scoring, epsilon=1e-5, residual=h if self.rng.random() < 0.7 else None,
        )  # fmt: skip
        outputs = int(self.rng.integers(1, 12))
        head = self._matmul(f"head.{task}", rows_of(moe, 1, self.tokens), outputs, epsilon=1e-5)
        return Graph(task, (Output(name=task, x=whole(head)),))

    def compiled(self, config: Config, precision: str) -> Program:
        return schedule(quantise(self.graphs, self.calibration, Precision.parse(precision)), config)

    def region(self, program: Program, task: int, sample: int) -> np.ndarray:
        """The input region of a task; samples beyond the calibrated ones are twice as large."""
        made = program.tasks[task]
        region = np.zeros(made.input_bytes // 2, np.int16)
        image = self.calibration["image"][sample % 4] * (1 + sample // 4)
        for port in made.inputs:
            port.part(region)[:] = to_region(port, image)[0]
        return region
