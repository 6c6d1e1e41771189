"""From a torch module to canonical graphs, one per task.

`torch.export` gives the operations that one task's forward runs, on tensors of any rank. Here each becomes a
node or, if it only moves elements, vanishes into a view: the same operation is run on the tensor of
element numbers. What does not depend on the inputs is computed by torch. `rewrite` does the rest.
"""

import inspect
import io
import logging
import operator
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from keyword import iskeyword
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.utils._pytree import tree_flatten, tree_unflatten

from patchloom.compiler.frontend.mixture import HOW_TO_WRITE
from patchloom.compiler.frontend.module import ready_for_export
from patchloom.compiler.frontend.origin import defined_at, user_line
from patchloom.compiler.frontend.recognise import recognise
from patchloom.compiler.frontend.walk import Walk, result_names
from patchloom.compiler.graph import Graph, evaluate
from patchloom.compiler.node import Floats
from patchloom.compiler.nodes import Moe
from patchloom.compiler.origin import Origin
from patchloom.compiler.passes import rewrite
from patchloom.compiler.passes.lowering import Lowering, Pool
from patchloom.compiler.problems import CaptureError, Problem

ROUGHLY = 0.1  # of an output's largest element: autocast computes in 8 bits what is captured in 24
LEAST = 1e-3  # that is looked at: what is left of zero is rounding


def capture(module: nn.Module, example_inputs: tuple[Any, ...], *, tasks: Sequence[str] | None = None) -> list[Graph]:
    """One canonical graph per task; `example_inputs` are forward's arguments, the task its number or name."""
    check_arguments(module, example_inputs, tasks)
    pool = Pool()
    with ready_for_export(module):
        check_finite(module)
        return [
            capture_task(module, task_inputs(example_inputs, number, task), task, pool)
            for number, task in enumerate(tasks or ("main",))
        ]


def capture_task(module: nn.Module, inputs: tuple[Any, ...], task: str, pool: Pool) -> Graph:
    swap, returned, mixtures = recognise(module, inputs)
    with swap.installed():
        program = export(module, inputs, mixtures)
    names = input_names(module, inputs)
    walk = Walk(program, names, swap.blocks)
    results, problems = rewrite(walk.results(task), walk.lost)
    problems = without_consequences([*walk.problems, *problems], mixtures)
    if problems or mixtures:
        title = f"{type(module).__name__} cannot be compiled for task '{task}':"
        raise CaptureError(title, [*mixtures, *problems])
    graph = replace(Lowering(pool).graph(task, results), arguments=tuple(names))
    compare(graph, dict(zip(names, (value for value in inputs if isinstance(value, Tensor)), strict=True)), returned)
    return graph


def compare(graph: Graph, inputs: Mapping[str, Tensor], returned: Any) -> None:
    """Raises `CaptureError` if the graph computes anything else than forward has returned.

    Not after mixtures of experts: each is proven by itself, and a tie between two experts may be broken either way.
    """
    if any(isinstance(node, Moe) for node in graph.nodes()):
        return
    leaves, structure = tree_flatten(returned)
    expected = {name: leaves[i] for name, i in result_names(tree_unflatten(range(len(leaves)), structure), graph.task)}
    values = evaluate(graph, {name: tensor[0].numpy() for name, tensor in inputs.items()})
    problems = [
        f"output '{name}' {wrong}" for name in values if (wrong := difference(values[name], expected.get(name)))
    ]
    if problems:
        title = f"the graph of task '{graph.task}' does not compute what forward returns; does that depend on more than"
        raise CaptureError(f"{title} the inputs, or read their values as Python numbers?", problems)


def difference(ours: Floats, theirs: Any) -> str:
    """Of an output; empty if it is none that rounding could not explain, or torch's own is not finite."""
    if not isinstance(theirs, Tensor) or theirs.numel() != ours.size:
        return "is not returned in that form outside of export"
    expected = theirs.detach().float().numpy().reshape(ours.shape)
    off, largest = float(np.abs(ours - expected).max()), float(np.abs(expected).max())
    wrong = off > max(ROUGHLY * largest, LEAST) and np.isfinite(off)
    return f"differs by {off:.2g}, where its largest element is {largest:.2g}" if wrong else ""


def without_consequences(problems: Sequence[Problem], mixtures: Sequence[Problem]) -> list[Problem]:
    """Those that are not the inside of a mixture that is told already."""
    blocks = tuple(f"{mixture.origin.name}." for mixture in mixtures)
    return [problem for problem in problems if not f"{problem.origin.name}.".startswith(blocks)]


# --- Before export ---


def check_arguments(module: nn.Module, inputs: tuple[Any, ...], tasks: Sequence[str] | None) -> None:
    name = type(module).__name__
    given = [value for value in inputs if is_task(value)]
    if len(given) > 1:
        raise CaptureError(f"{name}: example_inputs must hold at most one int or str, the task, not {len(given)}")
    if given and tasks is None:
        raise CaptureError(f"{name}: forward takes a task: pass tasks=('name of task 0', 'name of task 1', ...)")
    if tasks is not None and not given:
        text = "need forward to take the task as an int or a str in example_inputs"
        raise CaptureError(f"{name}: tasks {tuple(tasks)} {text}")
    if tasks is not None and (not tasks or len(set(tasks)) < len(tasks)):
        raise CaptureError(f"{name}: tasks must be different names, at least one, not {tuple(tasks)}")
    for i, value in enumerate(inputs):
        if is_task(value):
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
            kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise CaptureError(f"{name}: example input {i} must be a float tensor with a batch dimension, not {kind}")


def is_task(value: Any) -> bool:
    """An argument that stands for the task: its number, or its name."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def task_inputs(inputs: tuple[Any, ...], number: int, task: str) -> tuple[Any, ...]:
    def of_task(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[:1].detach().float()
        return task if isinstance(value, str) else number

    return tuple(map(of_task, inputs))


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
    """Buffers may hold minus infinity, as masks do."""
    masks = {name: torch.where(buffer.isneginf(), 0, buffer) for name, buffer in module.named_buffers()}
    tensors = [*module.named_parameters(), *masks.items()]
    bad = [name for name, tensor in tensors if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise CaptureError(f"{type(module).__name__}: parameters must be finite, these hold NaN or infinity:", bad)


def export(module: nn.Module, inputs: tuple[Any, ...], mixtures: Sequence[Problem]) -> ExportedProgram:
    try:
        with quiet():
            return without_mutation(torch.export.export(module, inputs, strict=False))
    except Exception as error:
        where = user_line(traceback.extract_tb(error.__traceback__)) or defined_at(module)
        said = str(error).strip() or type(error).__name__
        if "data-dependent" in said.lower() or "DataDependent" in type(error).__name__:
            text = "what it does here depends on values, but it must run the same operations for every input"
            hint = f"keep such decisions outside; if this routes tokens to experts, {HOW_TO_WRITE}"
            problems = [*mixtures] or [Problem(Origin(op="the code", where=where), text, hint)]  # whose inside it is
        else:
            problems = [*mixtures, Problem(Origin(op="the code", where=where), export_failed(module, said))]
        raise CaptureError(f"{type(module).__name__} cannot be exported:", problems) from error


def export_failed(module: nn.Module, said: str) -> str:
    """What torch says in its own terms of what users do."""
    words = sorted(name for name, _ in module.named_modules() if any(map(iskeyword, name.split("."))))
    if "invalid syntax" in said and words:
        return f"modules must not be called by words of Python, as '{words[0]}' is"
    if found := re.match(r"Found <class '(.+?)'> in (?:output|input)", said):
        return f"forward must return tensors, or dictionaries, lists and tuples of them, not {found[1]}"
    if "fake tensor in the exported program constant" in said:
        return "forward must not change weights through .data, nor take tensors that an earlier call left somewhere"
    return f"torch.export failed: {said.splitlines()[0]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Torch tells on the error stream, graphs included, what an `Error` says in a line."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = logger.disabled
    logger.disabled = True
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def without_mutation(program: ExportedProgram) -> ExportedProgram:
    """In-place operations become new tensors; most models have none and are spared what takes torch longest."""
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    pure = all(
        target is operator.getitem or (isinstance(target, OpOverload) and not is_mutable(target)) for target in targets
    )
    return program if pure else cast(ExportedProgram, program.run_decompositions({}))


def is_mutable(target: OpOverload) -> bool:
    return bool(target._schema.is_mutable)
