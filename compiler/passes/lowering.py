"""The last pass, of one task's settled nodes: unique names, one array for equal contents, inputs gathered as read."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from patchloom.compiler.graph import Graph
from patchloom.compiler.node import Node, View, float32, whole
from patchloom.compiler.nodes import Expert, Input, Output
from patchloom.compiler.passes.engine import in_order


class Pool:
    """One array for equal contents, so that what tasks share stays shared after folding."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[bytes, tuple[int, ...], str], np.ndarray[Any, Any]] = {}

    def __call__(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array = np.asarray(array, order="C")  # a scalar stays one
        digest = blake2b(array.data, digest_size=16).digest()
        return self.arrays.setdefault((digest, array.shape, array.dtype.str), array)


class Lowering:
    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.done: dict[object, Node] = {}
        self.names: Counter[str] = Counter()

    def graph(self, task: str, results: Mapping[str, View]) -> Graph:
        for node in in_order(results.values()):
            if not isinstance(node, Input):
                changes = {part.name: self._shared(getattr(node, part.name)) for part in fields(node)}
                self.done[node] = replace(node, **changes | {"name": self._name(node)})
        return Graph(task, tuple(Output(name=name, x=self._result(view)) for name, view in results.items()))

    def _shared(self, value: Any) -> Any:
        """What a node holds, with the operands that are done and the arrays that others have."""
        if isinstance(value, View):
            return self._view(value)
        if isinstance(value, np.ndarray):
            return self.pool(float32(value))
        if isinstance(value, tuple):
            return tuple(self._shared(part) for part in value)
        if isinstance(value, Expert):
            return Expert(*(self._shared(getattr(value, part.name)) for part in fields(value)))
        return value

    def _view(self, view: View) -> View:
        base = view.node
        if not isinstance(base, Input):
            return View(((self.done[base], view.terms[0][1]),), self.pool(view.index))
        key = base, view.shape, view.index.tobytes()
        if key not in self.done:
            self.done[key] = base.gathered(view.index)
        return whole(self.done[key]).scaled(view.terms[0][1])

    def _result(self, view: View) -> View:
        """An input is gathered into the rows that are returned."""
        if not isinstance(view.base, Input):
            return self._view(view)
        return self._view(view.reshape(-1, view.shape[-1] if view.shape else 1)).reshape(*view.shape)

    def _name(self, node: Node) -> str:
        """Inputs and outputs have names of their own."""
        name = node.origin.name or node.origin.op or node.kind
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}_{self.names[name] - 1}"
