"""From a torch module to canonical graphs, one per task.

`torch.export` gives the operations that one task's forward runs, on tensors of any rank. Here each becomes a
primitive or, if it only moves elements, vanishes into a view: the same operation is run on the tensor of
element numbers. What does not depend on the inputs is computed by torch. `rewrite` does the rest.
"""

import inspect
import operator
import os
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves, tree_unflatten

from patchloom.compiler import moe
from patchloom.compiler.graph import Graph
from patchloom.compiler.operations import OPERATIONS, Site, arguments_of, operation_name, plain, refuse
from patchloom.compiler.primitive import CaptureError, Opaque, Origin, Problem, Source, UnsupportedError, View, whole
from patchloom.compiler.rewrite import Lowering, Pool, rewrite

__all__ = ["CaptureError", "capture"]


def capture(module: nn.Module, example_inputs: tuple[Any, ...], *, tasks: Sequence[str] | None = None) -> list[Graph]:
    """One canonical graph per task; `example_inputs` are forward's arguments, the task a plain int."""
    check_arguments(module, example_inputs, tasks)
    pool = Pool()
    with ready_for_export(module):
        check_finite(module)
        return [
            capture_task(module, task_inputs(example_inputs, number), task, pool)
            for number, task in enumerate(tasks or ("main",))
        ]


def capture_task(module: nn.Module, inputs: tuple[Any, ...], task: str, pool: Pool) -> Graph:
    swap, mixtures = moe.recognise(module, inputs)
    with swap.installed():
        program = export(module, inputs, mixtures)
    walk = Walk(program, input_names(module, inputs), swap.layers)
    results, problems = rewrite(walk.results(task))
    problems = [*walk.problems, *problems]
    if problems:
        title = f"{type(module).__name__} cannot be compiled for task '{task}':"
        raise CaptureError(title, [*mixtures, *problems])
    return Lowering(pool).graph(task, results)


# --- Before export ---


def check_arguments(module: nn.Module, inputs: tuple[Any, ...], tasks: Sequence[str] | None) -> None:
    name = type(module).__name__
    numbers = [value for value in inputs if isinstance(value, int) and not isinstance(value, bool)]
    if len(numbers) > 1:
        raise CaptureError(f"{name}: example_inputs must hold at most one int, the task, not {len(numbers)}")
    if numbers and tasks is None:
        raise CaptureError(f"{name}: forward takes a task number: pass tasks=('name of task 0', 'name of task 1', ...)")
    if tasks is not None and not numbers:
        raise CaptureError(f"{name}: tasks {tuple(tasks)} need forward to take the task as an int in example_inputs")
    if tasks is not None and (not tasks or len(set(tasks)) < len(tasks)):
        raise CaptureError(f"{name}: tasks must be different names, at least one, not {tuple(tasks)}")
    for i, value in enumerate(inputs):
        if isinstance(value, int) and not isinstance(value, bool):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
            kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise CaptureError(f"{name}: example input {i} must be a float tensor with a batch dimension, not {kind}")


def task_inputs(inputs: tuple[Any, ...], task: int) -> tuple[Any, ...]:
    return tuple(value[:1].detach().float() if isinstance(value, Tensor) else task for value in inputs)


def input_names(module: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    """The names of forward's parameters that are tensors."""
    positional = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names = [*positional, *(f"input{i}" for i in range(len(positional), len(inputs)))]
    return [name for name, value in zip(names, inputs, strict=False) if isinstance(value, Tensor)]


def check_finite(module: nn.Module) -> None:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    bad = [name for name, tensor in tensors if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise CaptureError(f"{type(module).__name__}: parameters must be finite, these hold NaN or infinity:", bad)


@contextmanager
def ready_for_export(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and attention as the operations it consists of; restored whatever happens."""
    training = {part: part.training for part in module.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        module.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for part, flag in training.items():
            part.training = flag


def export(module: nn.Module, inputs: tuple[Any, ...], mixtures: Sequence[Problem]) -> ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return without_mutation(torch.export.export(module, inputs, strict=False))
    except Exception as error:
        where = user_line(traceback.extract_tb(error.__traceback__))
        text, hint = f"torch.export failed: {str(error).strip().splitlines()[0]}", ""
        if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__:
            text = "what it does here depends on values, but it must run the same operations for every input"
            if not mixtures:
                hint = f"keep such decisions outside; if this routes tokens to experts, {moe.HOW_TO_WRITE}"
        problem = Problem(Origin(op="the code", where=where), text, hint)
        raise CaptureError(f"{type(module).__name__} cannot be exported:", [*mixtures, problem]) from error


def without_mutation(program: ExportedProgram) -> ExportedProgram:
    """In-place operations become new tensors; most models have none and are spared what takes torch longest."""
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    pure = all(
        target is operator.getitem or (isinstance(target, OpOverload) and not is_mutable(target)) for target in targets
    )
    return program if pure else cast(ExportedProgram, program.run_decompositions({}))


def is_mutable(target: OpOverload) -> bool:
    return bool(target._schema.is_mutable)


OTHERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}")
LIBRARY = f"{Path(os.__file__).parent}{os.sep}"


def is_users(file: str) -> bool:
    """Neither torch's, nor ours, nor Python's."""
    standard = file.startswith(LIBRARY) and "-packages" not in file
    return not (standard or file.startswith((*OTHERS, "<")))


def user_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """file:line of the innermost frame of the user's."""
    lines = [frame for frame in frames if is_users(frame.filename)]
    return f"{moe.shown_path(lines[-1].filename)}:{lines[-1].lineno}" if lines else ""


# --- Walking the exported operations ---


@dataclass(eq=False)
class Walk:
    """The value of every operation of one exported program: a `View`, or a tensor if no input matters to it."""

    program: ExportedProgram
    inputs: Sequence[str]
    layers: Sequence[moe.Layer]
    values: dict[torch.fx.Node, Any] = field(default_factory=dict)
    parameters: dict[torch.fx.Node, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def results(self, task: str) -> dict[str, View]:
        """What forward returns, by name."""
        self._place_inputs()
        [output] = [node for node in self.program.graph.nodes if node.op == "output"]
        kinds = [spec.kind for spec in self.program.graph_signature.output_specs]
        returned = [node for node, kind in zip(output.args[0], kinds, strict=True) if kind == OutputKind.USER_OUTPUT]
        for node in needed(self.program.graph, returned):
            self.values[node] = self._value(node)
        structure = self.program.call_spec.out_spec
        named = result_names(tree_unflatten(list(range(len(returned))), structure), task)
        return {name: self._result(returned[i]) for name, i in named if isinstance(returned[i], torch.fx.Node)}

    def _result(self, node: torch.fx.Node) -> View:
        site = Site(origin_of(node, operation_name(node.target), {}), self.layers)
        return without_batch(plain(site.view(self.values[node])))

    def _place_inputs(self) -> None:
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        names = iter(self.inputs)
        for node, spec in zip(placeholders, self.program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                if isinstance(node.meta.get("val"), Tensor):
                    shape = tuple(node.meta["val"].shape)
                    name = next(names)
                    source = Source(origin=Origin(op=f"input '{name}'"), name=name, user_shape=shape[1:])
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
        if not any(isinstance(leaf, View) for leaf in leaves):
            return target(*args, **kwargs)
        if target is operator.getitem:
            return args[0][args[1]]
        name = operation_name(target)
        site = Site(origin_of(node, name, self.parameters), self.layers)
        try:
            return OPERATIONS.get(name, refuse)(site, arguments_of(target, args, kwargs))
        except UnsupportedError as refusal:
            shapes = tuple(leaf.shape for leaf in leaves if isinstance(leaf, View))
            self.problems.append(Problem(site.origin, refusal.text, refusal.hint, shapes))
            return opaque(site.origin, node.meta["val"])


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


LEAVES = re.compile(r"^torch\.nn\.modules\.(linear|conv|normalization|batchnorm|activation)\.(?!MultiheadAttention)")


def origin_of(node: torch.fx.Node, op: str, parameters: Mapping[torch.fx.Node, str]) -> Origin:
    """Named after the module whose weight it uses, else after the module it runs in."""
    found = re.findall(r'File "(.+?)", line (\d+), in (\w+)', node.meta.get("stack_trace") or "")
    frames = [traceback.FrameSummary(file, int(line), function, lookup_line=False) for file, line, function in found]
    modules = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
    path, kind = modules[-1][0], str(modules[-1][1])
    short = op.rpartition(".")[2].strip("_").replace("scaled_dot_product_attention", "attention")
    name = path if LEAVES.match(kind) or short == "moe" else f"{path}.{short}".lstrip(".")
    owners = (re.fullmatch(r"(.+)[._]weight", parameters.get(part, "")) for part in node.all_input_nodes)
    name = next((owner[1] for owner in owners if owner), name)
    return Origin(op=op, name=name, where=user_line(frames))


def opaque(origin: Origin, value: Any) -> Any:
    """Views of the shapes that an unsupported operation returns."""
    if isinstance(value, tuple | list):
        return [opaque(origin, part) for part in value]
    return whole(Opaque(origin=origin, out_shape=tuple(value.shape))) if isinstance(value, Tensor) else value
