"""The operations of one exported program, each turned into a view or a constant by its row of `OPERATIONS`."""

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves, tree_unflatten

from patchloom.compiler.frontend.movement import NOT_RANDOM
from patchloom.compiler.frontend.operations import meaning_of
from patchloom.compiler.frontend.origin import origin_of
from patchloom.compiler.frontend.site import Block, Pair, Site, arguments_of, operation_name
from patchloom.compiler.frontend.spectrum import HINT
from patchloom.compiler.node import View, whole
from patchloom.compiler.nodes import Input
from patchloom.compiler.nodes.captured import Opaque, Product, Softmax
from patchloom.compiler.origin import Origin
from patchloom.compiler.passes.factors import plain
from patchloom.compiler.passes.trying import sources
from patchloom.compiler.passes.views import is_opaque
from patchloom.compiler.problems import CaptureError, Problem, UnsupportedError


@dataclass(eq=False)
class Walk:
    """The value of every operation of one exported program: a `View`, or a tensor if no input matters to it."""

    program: ExportedProgram
    inputs: Sequence[str]
    blocks: Sequence[Block]
    values: dict[torch.fx.Node, Any] = field(default_factory=dict)
    parameters: dict[torch.fx.Node, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lost: list[View] = field(default_factory=list)  # operands of what is refused: they may be refused, too

    def results(self, task: str) -> dict[str, View]:
        """What forward returns, by name."""
        self._place_inputs()
        [output] = [node for node in self.program.graph.nodes if node.op == "output"]
        kinds = [spec.kind for spec in self.program.graph_signature.output_specs]
        returned = [node for node, kind in zip(output.args[0], kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
        nodes = needed(self.program.graph, returned)
        last = {used: node for node in nodes for used in node.all_input_nodes}
        for node in nodes:
            self.values[node] = self._value(node)
            for used in node.all_input_nodes:
                if last[used] is node and used not in returned:
                    self.values.pop(used, None)  # attention maps are large
        structure = self.program.call_spec.out_spec
        named = result_names(tree_unflatten(list(range(len(returned))), structure), task)
        return {name: self._result(returned[i]) for name, i in named if isinstance(returned[i], torch.fx.Node)}

    def _need_known_sizes(self, node: torch.fx.Node, origin: Origin) -> None:
        """Of what is refused: sizes that follow from constants are known where it is not."""
        sizes = [leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, torch.SymInt | torch.SymFloat)]
        tensors = [leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
        if sizes or any(not isinstance(size, int) for tensor in tensors for size in tensor.shape):
            text = "makes a tensor whose size depends on values, but sizes must be the same for every input"
            problem = Problem(origin, text, "keep all tokens, and let weights of zero stand for those left out")
            raise CaptureError("the model cannot be compiled:", [problem])

    def _result(self, node: torch.fx.Node) -> View:
        site = Site(origin_of(node, operation_name(node.target), {}), self.blocks)
        value = self.values[node]
        if isinstance(value, Pair):
            self.problems.append(Problem(site.origin, "is returned, but complex", HINT))
            value = value.real
        return without_batch(plain(site.view(value)))

    def _place_inputs(self) -> None:
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        names = iter(self.inputs)
        for node, spec in zip(placeholders, self.program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                if isinstance(node.meta.get("val"), Tensor):
                    shape = tuple(node.meta["val"].shape)
                    name = next(names)
                    source = Input.flat(name, shape[1:], Origin(op=f"input '{name}'"))
                    self.values[node] = View(((source, 1.0),), np.arange(source.size).reshape(shape))
            else:
                stored = {**self.program.constants, **self.program.state_dict}
                self.values[node] = stored[str(spec.target)].detach()
                self.parameters[node] = str(spec.target)

    def _value(self, node: torch.fx.Node) -> Any:
        args, kwargs = cast(Any, torch.fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__))
        leaves = tree_leaves((args, kwargs))
        target: Any = node.target
        if node.op == "get_attr":
            return getattr(self.program.graph_module, str(target))
        if target is operator.getitem:
            return args[0][args[1]]
        name = operation_name(target)
        site = Site(origin_of(node, name, self.parameters), self.blocks)
        operands = [view for leaf in leaves for view in views_of(leaf)]
        try:
            if not operands:
                return fixed(target, args, kwargs)
            meaning = meaning_of(name, of_complex=any(isinstance(leaf, Pair) for leaf in leaves))
            return floats(meaning(site, arguments_of(target, args, kwargs)), node.meta["val"])
        except UnsupportedError as refusal:
            self._need_known_sizes(node, site.origin)
            self.lost += [view for view in operands if not is_of_scores(view)]
            shapes = tuple(view.shape for view in operands)
            self.problems.append(Problem(site.origin, refusal.text, refusal.hint, shapes))
            return opaque(site.origin, node.meta["val"])


def views_of(value: Any) -> list[View]:
    return [value.real, value.imag] if isinstance(value, Pair) else [value] if isinstance(value, View) else []


def is_of_scores(view: View) -> bool:
    """What an operation between a product and its softmax is refused for is told of the operation alone."""
    found = {source for base, _ in view.terms for source in (base, *sources(base))}
    return any(isinstance(source, Product | Softmax) for source in found)


def fixed(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What no input matters to, computed by torch."""
    value = target(*args, **kwargs)
    if isinstance(target, OpOverload) and torch.Tag.nondeterministic_seeded in target.tags:
        pairs = zip(tree_leaves(value), tree_leaves(target(*args, **kwargs)), strict=True)
        if not all(torch.equal(first, second) for first, second in pairs if isinstance(first, Tensor)):
            raise UnsupportedError("draws random numbers", NOT_RANDOM)
    return widened(value)


def widened(value: Any) -> Any:
    """What autocast computed in 16 bits is kept in 32."""
    narrow = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if narrow else value


def floats(result: Any, value: Any) -> Any:
    """The result, if what torch returns is of floats or no input matters to it."""
    for ours, part in zip(tree_leaves(result), tree_leaves(value), strict=True):
        if isinstance(ours, View) and not part.is_floating_point() and not is_opaque(ours):
            raise UnsupportedError(
                f"makes {part.dtype} of a float", "everything that depends on the inputs must stay float"
            )
    return result


def without_batch(view: View) -> View:
    return view.reshape(*view.shape[1:]) if view.shape[:1] == (1,) else view


def needed(graph: torch.fx.Graph, returned: Iterable[Any]) -> list[torch.fx.Node]:
    """What the results depend on, in order; the rest, e.g. unused attention weights, is of no interest."""
    live: set[torch.fx.Node] = {node for node in returned if isinstance(node, torch.fx.Node)}
    for node in reversed(graph.nodes):
        if node in live:
            live.update(node.all_input_nodes)
    return [node for node in graph.nodes if node in live and node.op in ("call_function", "get_attr")]


def result_names(structure: Any, task: str) -> Iterator[tuple[str, int]]:
    """One tensor is named after the task, others by dictionary key or position."""
    if isinstance(structure, int):
        yield task, structure
        return
    items = structure.items() if isinstance(structure, Mapping) else ((f"out{i}", v) for i, v in enumerate(structure))
    for name, value in items:
        if isinstance(value, int):
            yield str(name), value
        elif value is not None:
            yield from ((f"{name}.{inner}", number) for inner, number in result_names(value, str(name)))


def opaque(origin: Origin, value: Any) -> Any:
    """Views of the shapes that an unsupported operation returns."""
    if isinstance(value, tuple | list):
        return [opaque(origin, part) for part in value]
    if not isinstance(value, Tensor):
        return value
    made = whole(Opaque(origin=origin, out_shape=tuple(value.shape)))
    return Pair(made, made) if value.is_complex() else made
