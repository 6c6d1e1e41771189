"""From a torch module to canonical graphs, one per task.

`torch.export` gives the operations that one task's forward runs, on tensors of any rank. Here each becomes a
node or, if it only moves elements, vanishes into a view: the same operation is run on the tensor of
element numbers. What does not depend on the inputs is computed by torch. `rewrite` does the rest.
"""

import inspect
import operator
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

from patchloom.compiler.frontend.explain import HOW_TO_WRITE
from patchloom.compiler.frontend.module import ready_for_export
from patchloom.compiler.frontend.origin import user_line
from patchloom.compiler.frontend.recognise import recognise
from patchloom.compiler.frontend.walk import Walk
from patchloom.compiler.graph import Graph
from patchloom.compiler.origin import Origin
from patchloom.compiler.passes import rewrite
from patchloom.compiler.passes.lowering import Lowering, Pool
from patchloom.compiler.problems import CaptureError, Problem


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
    swap, mixtures = recognise(module, inputs)
    with swap.installed():
        program = export(module, inputs, mixtures)
    names = input_names(module, inputs)
    walk = Walk(program, names, swap.layers)
    results, problems = rewrite(walk.results(task))
    problems = without_consequences([*walk.problems, *problems], mixtures)
    if problems or mixtures:
        title = f"{type(module).__name__} cannot be compiled for task '{task}':"
        raise CaptureError(title, [*mixtures, *problems])
    return replace(Lowering(pool).graph(task, results), arguments=tuple(names))


def without_consequences(problems: Sequence[Problem], mixtures: Sequence[Problem]) -> list[Problem]:
    """Those that are not the inside of a mixture that is told already."""
    blocks = tuple(f"{mixture.origin.name}." for mixture in mixtures)
    return [problem for problem in problems if not f"{problem.origin.name}.".startswith(blocks)]


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


def export(module: nn.Module, inputs: tuple[Any, ...], mixtures: Sequence[Problem]) -> ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return without_mutation(torch.export.export(module, inputs, strict=False))
    except Exception as error:
        where = user_line(traceback.extract_tb(error.__traceback__))
        said = str(error).strip() or type(error).__name__
        text, hint = f"torch.export failed: {said.splitlines()[0]}", ""
        if "data-dependent" in said.lower() or "DataDependent" in type(error).__name__:
            text = "what it does here depends on values, but it must run the same operations for every input"
            if mixtures:  # whose inside it is
                raise CaptureError(f"{type(module).__name__} cannot be exported:", mixtures) from error
            hint = f"keep such decisions outside; if this routes tokens to experts, {HOW_TO_WRITE}"
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
