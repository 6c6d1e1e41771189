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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves, tree_unflatten

from compiler import moe
from compiler.ir import Graph, Indices
from compiler.primitive import (
    NOWHERE,
    Activate,
    Add,
    Attend,
    CaptureError,
    Fixed,
    Linear,
    Mixture,
    Normalise,
    Opaque,
    Origin,
    Primitive,
    Problem,
    Product,
    Scale,
    Softmax,
    Source,
    UnsupportedError,
    View,
    common_terms,
    float32,
    whole,
)
from compiler.rewrite import ATTENTION_FORMS, Lowering, Pool, attended, rewrite, without_factor

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
            program = torch.export.export(module, inputs, strict=False)
            return cast(ExportedProgram, program.run_decompositions({}))
    except Exception as error:
        where = user_line(traceback.extract_tb(error.__traceback__))
        text, hint = f"torch.export failed: {str(error).strip().splitlines()[0]}", ""
        if "data-dependent" in str(error).lower() or "DataDependent" in type(error).__name__:
            text = "what it does here depends on values, but it must run the same operations for every input"
            hint = (
                "" if mixtures else f"keep such decisions outside; if this routes tokens to experts, {moe.HOW_TO_WRITE}"
            )
        problem = Problem(Origin(op="the code", where=where), text, hint)
        raise CaptureError(f"{type(module).__name__} cannot be exported:", [*mixtures, problem]) from error


OTHERS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))
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

Args = dict[str, Any]


@dataclass(eq=False)
class Walk:
    """The value of every operation of one exported program: a `View`, or a tensor if no input matters to it."""

    program: ExportedProgram
    inputs: Sequence[str]
    layers: Sequence[moe.Layer]
    values: dict[torch.fx.Node, Any] = field(default_factory=dict)
    parameters: dict[torch.fx.Node, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    origin: Origin = NOWHERE

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
        self.origin = origin_of(node, operation_name(node.target), {})
        return without_batch(plain(self.as_view(self.values[node])))

    def _place_inputs(self) -> None:
        placeholders = [node for node in self.program.graph.nodes if node.op == "placeholder"]
        names = iter(self.inputs)
        for node, spec in zip(placeholders, self.program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                if isinstance(node.meta.get("val"), Tensor):
                    shape = tuple(node.meta["val"].shape)
                    source = Source(name=next(names), user_shape=shape[1:])
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
        self.origin = origin_of(node, name, self.parameters)
        try:
            return OPERATIONS.get(name, refuse)(self, arguments_of(target, args, kwargs))
        except UnsupportedError as refusal:
            shapes = tuple(leaf.shape for leaf in leaves if isinstance(leaf, View))
            self.problems.append(Problem(self.origin, refusal.text, refusal.hint, shapes))
            return opaque(self.origin, node.meta["val"])

    def as_view(self, value: View | Tensor) -> View:
        if isinstance(value, View):
            return value
        return whole(Fixed(origin=self.origin, value=float32(value.detach())))


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


def operation_name(target: Any) -> str:
    """Without the overload, e.g. aten.add."""
    return str(target).rpartition(".")[0] if isinstance(target, OpOverload) else str(target)


def parameters_of(target: Any) -> list[Any]:
    return list(target._schema.arguments) if isinstance(target, OpOverload) else []


def arguments_of(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Args:
    """By the names of the operation's schema, with its defaults."""
    parameters = parameters_of(target)
    bound = {parameter.name: parameter.default_value for parameter in parameters}
    bound.update(zip((parameter.name for parameter in parameters), args, strict=False))
    bound.update(kwargs)
    return {**bound, "target": target}


def refuse(_: Walk, a: Args) -> Any:
    raise UnsupportedError("is not supported", hint_for(operation_name(a["target"])))


HINTS = (
    (
        r"silu|sigmoid|tanh|elu|mish|softplus|hardswish|hardsigmoid|relu6|prelu|hardtanh|erf",
        "supported activations are GELU and ReLU",
    ),
    (r"batch_norm|group_norm|instance_norm", "use LayerNorm, or fold the trained normalisation into the layer before"),
    (r"rms_norm|rsqrt|var|std|pow|sqrt", "supported normalisation is torch.nn.LayerNorm over the last dimension"),
    (r"upsample|interpolate|grid_sampl", "return the map as it is and interpolate it after the accelerator"),
    (r"pool|sum|amax|amin", "take a class token, or the mean over all tokens"),
    (r"masked_fill|tril|triu", f"attention has no masks: {ATTENTION_FORMS}"),
    (r"topk|sort|index_put|nonzero|scatter|gather|one_hot|where|masked|eq|ne|any|unbind_int", moe.HOW_TO_WRITE),
    (r"auxiliary", "a mixture-of-experts block's other results, e.g. a balancing loss, must stay unused"),
    (r"argmax|argmin", "return the scores and take the maximum after the accelerator"),
    (r"lstm|gru|rnn|fft|cumsum", "only feed-forward layers are supported"),
)


def hint_for(op: str) -> str:
    hints = (hint for pattern, hint in HINTS if re.search(pattern, op.rpartition(".")[2]))
    return next(hints, "see the list of supported operations in compiler/capture.py, OPERATIONS")


# --- Operations that only move elements ---


def keep(_: Walk, a: Args) -> View:
    dtype = a.get("dtype")
    if dtype is not None and not dtype.is_floating_point:
        raise UnsupportedError(f"makes {dtype} of a float", "everything that depends on the inputs must stay float")
    return next(value for value in a.values() if isinstance(value, View))


def move(walk: Walk, a: Args) -> Any:
    """Run the same operation on the element numbers; constants that are joined take part as numbered ones."""
    target = a.pop("target")
    joins = isinstance(a.get("tensors"), list | tuple)
    if joins:
        a["tensors"] = [walk.as_view(part) for part in a["tensors"]]
    views = a["tensors"] if joins else [value for value in a.values() if isinstance(value, View)]
    if len(views) < sum(isinstance(leaf, View) for leaf in tree_leaves(a)):
        raise UnsupportedError("selects elements by what depends on the input", "select by position")
    terms, indices = common_terms(views)
    numbers = iter(torch.from_numpy(np.ascontiguousarray(index)) for index in indices)
    if joins:
        a["tensors"] = list(numbers)
    a = {name: next(numbers) if isinstance(value, View) else value for name, value in a.items()}
    result = call_by_schema(target, a)

    def view(part: Tensor) -> View:
        return View(terms, part.numpy()).pick(part.numpy().copy())

    return view(result) if isinstance(result, Tensor) else [view(part) for part in result]


def call_by_schema(target: Any, a: Args) -> Any:
    parameters = parameters_of(target)
    positional = [a[part.name] for part in parameters if not part.kwarg_only]
    return target(*positional, **{part.name: a[part.name] for part in parameters if part.kwarg_only})


def pad(_: Walk, a: Args) -> View:
    """Zeros around: their element number is -1."""
    if a.get("value") not in (None, 0, 0.0) or a.get("mode", "constant") != "constant":
        raise UnsupportedError("pads with something other than zero", "pad with zeros")
    view: View = a["self"] if "self" in a else a["input"]
    padded = torch.constant_pad_nd(torch.from_numpy(np.ascontiguousarray(view.index)), a["pad"], -1)
    return view.pick(padded.numpy())


def enlarge(_: Walk, a: Args) -> View:
    """Nearest-neighbour interpolation repeats elements."""
    target = a.pop("target")
    name, view = next((name, value) for name, value in a.items() if isinstance(value, View))
    a[name] = torch.from_numpy(view.index.astype(np.float64))  # exact: element numbers stay far below 2**53
    return view.pick(call_by_schema(target, a).numpy().astype(np.int64))


# --- Elementwise operations ---


def same_layout(views: Sequence[View]) -> tuple[list[View], Callable[[Primitive], View]]:
    """Operands of one shape as matrices, laid out as the rows and columns that one of them is of its operation."""
    shape = views[0].shape
    for view in views:
        order = grid(view)
        if order is not None:
            matrices = [part.pick(part.index.reshape(-1)[order]) for part in views]
            place = np.empty(order.size, np.int64)
            place[order.reshape(-1)] = np.arange(order.size)
            return matrices, partial(_seen_through, place.reshape(shape))
    matrices = [view.reshape(-1, shape[-1] if shape else 1) for view in views]
    return matrices, lambda made: whole(made).reshape(*shape)


def grid(view: View) -> Indices | None:
    """Which element of the view is where in the rows and columns of the operation, if it is each of them once."""
    base = view.base
    if base is None or isinstance(base, Source | Fixed) or len(base.shape) != 2:
        return None
    order = np.argsort(view.index, axis=None, kind="stable")
    rows, columns = np.divmod(view.index.reshape(-1)[order], base.shape[1])
    height = len(np.unique(rows))
    if rows[0] < 0 or order.size % height:
        return None
    rows, columns = rows.reshape(height, -1), columns.reshape(height, -1)
    regular = (rows == rows[:, :1]).all() and (columns == columns[:1]).all() and (np.diff(columns[0]) > 0).all()
    return order.reshape(height, -1) if regular else None


def _seen_through(index: Indices, made: Primitive) -> View:
    return View(((made, 1.0),), index)


def without_factors(view: View) -> tuple[View, float]:
    """The view without the factor of its terms; factors that differ are multiplied in first."""
    uniform = without_factor(view)
    if uniform:
        return uniform
    scaled = {base: multiplied(base, factor) for base, factor in view.terms if factor != 1.0}
    return View(tuple((base, 1.0) for base, _ in view.terms), view.index).substitute(scaled), 1.0


def multiplied(base: Primitive, factor: float) -> View:
    if isinstance(base, Fixed):
        return whole(Fixed(origin=base.origin, value=float32(base.value * factor)))
    return whole(Scale(origin=base.origin, x=whole(base), factor=np.full(base.shape, factor, np.float32)))


def plain(view: View) -> View:
    view, factor = without_factors(view)
    if factor == 1.0:
        return view
    return view.substitute({base: multiplied(base, factor) for base, _ in view.terms})


def add(walk: Walk, a: Args) -> View:
    return _sum(walk, a["self"], a["other"], 1.0, float(a.get("alpha", 1)))


def subtract(walk: Walk, a: Args) -> View:
    return _sum(walk, a["self"], a["other"], 1.0, -float(a.get("alpha", 1)))


def subtract_from(walk: Walk, a: Args) -> View:
    return _sum(walk, a["self"], a["other"], -float(a.get("alpha", 1)), 1.0)


def _sum(walk: Walk, first: Any, second: Any, times: float, second_times: float) -> View:
    views = [walk.as_view(part if isinstance(part, View) else torch.as_tensor(part)) for part in (first, second)]
    shape = np.broadcast_shapes(*(view.shape for view in views))
    views = [plain(view.scaled(by)) for view, by in zip(views, (times, second_times), strict=True)]
    (x, y), arrange = same_layout([view.pick(np.broadcast_to(view.index, shape)) for view in views])
    return arrange(Add(origin=walk.origin, a=x, b=y))


def multiply(walk: Walk, a: Args) -> View:
    first, second = a["self"], a["other"]
    if isinstance(first, View) and isinstance(second, View):
        raise UnsupportedError("multiplies two tensors that depend on the input", "this is supported in attention only")
    view, factor = (first, second) if isinstance(first, View) else (second, first)
    return _times(walk, view, torch.as_tensor(factor))


def divide(walk: Walk, a: Args) -> View:
    if isinstance(a["other"], View) or a.get("rounding_mode"):
        raise UnsupportedError("divides by a tensor that depends on the input, or rounds", "multiply by constants only")
    return _times(walk, a["self"], torch.as_tensor(a["other"]).double().reciprocal())


def negate(_: Walk, a: Args) -> View:
    view: View = a["self"]
    return view.scaled(-1.0)


def _times(walk: Walk, view: View, factor: Tensor) -> View:
    if factor.numel() == 1:
        shape = np.broadcast_shapes(view.shape, tuple(factor.shape))
        return view.pick(np.broadcast_to(view.index, shape)).scaled(float(factor))
    constant = walk.as_view(factor)
    shape = np.broadcast_shapes(view.shape, constant.shape)
    view, by = without_factors(view)
    operands = [part.pick(np.broadcast_to(part.index, shape)) for part in (view, constant)]
    (x, y), arrange = same_layout(operands)
    [(fixed, _)] = y.terms
    assert isinstance(fixed, Fixed)
    return arrange(Scale(origin=walk.origin, x=x, factor=fixed.value.reshape(-1)[y.index])).scaled(by)


def activation(walk: Walk, a: Args) -> View:
    name: Any = operation_name(a["target"]).rpartition(".")[2]
    if a.get("approximate") == "tanh":
        warnings.warn(
            f"{walk.origin}: GELU with the tanh approximation is compiled as exact GELU (they differ by up to 5e-4)",
            stacklevel=2,
        )
    view = plain(a["self"])
    base = view.base
    if base is not None and len(base.shape) == 2 and not isinstance(base, Source | Fixed):
        made = Activate(origin=walk.origin, x=whole(base), activation=name)  # elementwise: of all, then viewed
        return View(((made, 1.0),), view.index)
    (x,), arrange = same_layout([view])
    return arrange(Activate(origin=walk.origin, x=x, activation=name))


# --- Layers ---


def apply_linear(walk: Walk, x: View, weight: Tensor, bias: Tensor | None) -> View:
    """Along the last dimension of x; weight is outputs x inputs."""
    x, factor = without_factors(x)
    made = Linear(
        origin=walk.origin,
        x=x.reshape(-1, x.shape[-1]),
        weight=float32(weight.double() * factor),
        bias=np.zeros(len(weight), np.float32) if bias is None else float32(bias),
    )
    return whole(made).reshape(*x.shape[:-1], len(weight))


def need_constants(*values: Any) -> None:
    if any(isinstance(value, View) for value in values):
        raise UnsupportedError("has weights that depend on the input", "weights and biases must be learned constants")


def linear(walk: Walk, a: Args) -> View:
    need_constants(a["weight"], a["bias"])
    return apply_linear(walk, a["input"], a["weight"], a["bias"])


def matmul(walk: Walk, a: Args) -> View:
    first, second = (a[name] for name in ("self", "mat2" if "mat2" in a else "other"))
    return product(walk, first, second)


def product(walk: Walk, first: View | Tensor, second: View | Tensor) -> View:
    if isinstance(first, View) and isinstance(second, View):
        return batched_product(walk, first, second)
    if isinstance(first, View) and isinstance(second, Tensor):
        while second.dim() > 2 and second.shape[0] == 1:
            second = second[0]
        if second.dim() == 2:
            return apply_linear(walk, first, second.T, None)
    if isinstance(second, View) and isinstance(first, Tensor) and first.dim() == 2 and len(second.shape) >= 2:
        result = apply_linear(walk, second.pick(second.index.swapaxes(-1, -2)), first, None)
        return result.pick(result.index.swapaxes(-1, -2))
    raise UnsupportedError("multiplies by a constant that is not a matrix", "use one weight matrix for all tokens")


def batched_product(walk: Walk, first: View, second: View) -> View:
    if len(first.shape) < 2 or len(second.shape) < 2:
        raise UnsupportedError("multiplies vectors that depend on the input", "this is supported in attention only")
    batch = np.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    count = int(np.prod(batch))
    a, b = (
        view.pick(np.broadcast_to(view.index, (*batch, *view.shape[-2:])).reshape(count, *view.shape[-2:]))
        for view in (first, second)
    )
    made = Product(origin=walk.origin, a=a, b=b)
    return whole(made).reshape(*batch, *made.shape[1:])


def addmm(walk: Walk, a: Args) -> View:
    if a["beta"] != 1 or a["alpha"] != 1:
        raise UnsupportedError("has beta or alpha", "write the factors as multiplications")
    first, second = (a[name] for name in (("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")))
    result = product(walk, first, second)
    bias = a["self"]
    made = result.base
    if isinstance(made, Linear) and isinstance(bias, Tensor) and bias.numel() == made.shape[1]:
        return View(((_with_bias(made, bias), 1.0),), result.index)
    return _sum(walk, result, bias, 1.0, 1.0)


def _with_bias(made: Linear, bias: Tensor) -> Linear:
    return Linear(origin=made.origin, x=made.x, weight=made.weight, bias=float32(bias).reshape(-1))


def einsum(walk: Walk, a: Args) -> View:
    """Of two operands without repeated letters: a matmul of rearranged operands."""
    equation, operands = a["equation"].replace(" ", ""), a["tensors"]
    inputs, _, output = equation.partition("->")
    letters = inputs.split(",")
    if len(letters) != 2 or "." in equation or not output or any(len(set(part)) < len(part) for part in letters):
        raise UnsupportedError(
            f"has the form '{equation}'", "name two operands, each letter once in an operand, and a result"
        )
    left, right = letters
    batch = [c for c in left if c in right and c in output]
    summed = [c for c in left if c in right and c not in output]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    sizes = {c: n for part, x in zip(letters, operands, strict=True) for c, n in zip(part, x.shape, strict=True)}
    x = _arranged(operands[0], left, batch, rows, summed)
    y = _arranged(operands[1], right, batch, summed, columns)
    if isinstance(y, Tensor) and y.dim() == 3 and y.shape[0] == 1:
        y = y[0]
    result = product(walk, x, y)
    order = [*batch, *rows, *columns]
    shaped = result.reshape(*(sizes[c] for c in order))
    return shaped.pick(shaped.index.transpose([order.index(c) for c in output]))


def _arranged(x: View | Tensor, letters: str, *groups: list[str]) -> Any:
    index = x.index if isinstance(x, View) else x.detach().numpy()
    flat = index.transpose([letters.index(c) for group in groups for c in group])
    sizes = [int(np.prod([index.shape[letters.index(c)] for c in group])) for group in groups]
    return x.pick(flat.reshape(sizes)) if isinstance(x, View) else torch.from_numpy(flat.reshape(sizes).copy())


def convolution(walk: Walk, a: Args) -> View:
    """Each output position is a token: the patch under the kernel times the weights."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    space = weight.dim() - 2
    stride, padding, dilation = (_per_axis(a[name], space) for name in ("stride", "padding", "dilation"))
    if a["groups"] != 1 or set(dilation) != {1} or a.get("transposed"):
        raise UnsupportedError(
            f"is a convolution with groups {a['groups']}, dilation {dilation}",
            "supported is the patch embedding: groups 1, dilation 1, on the model's input",
        )
    batched = x if len(x.shape) == space + 2 else x.reshape(1, *x.shape)
    edges = [(0, 0), (0, 0), *((int(p), int(p)) for p in padding)]
    padded = np.pad(batched.index, edges, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=tuple(range(2, 2 + space)))
    windows = windows[(slice(None), slice(None), *(slice(None, None, step) for step in stride))]
    positions = windows.shape[2 : 2 + space]  # windows: batch, channels, positions, kernel
    patches = np.moveaxis(windows, 1, 1 + space).reshape(len(padded), *positions, -1)
    result = apply_linear(walk, batched.pick(patches), weight.reshape(len(weight), -1), bias)
    moved = result.pick(np.moveaxis(result.index, -1, 1))
    return moved if batched is x else moved.reshape(*moved.shape[1:])


def _per_axis(value: Any, space: int) -> tuple[int, ...]:
    if isinstance(value, str):
        if value != "valid":
            raise UnsupportedError(f"pads '{value}'", "give the padding as numbers")
        value = 0
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * space if len(values) == 1 else values


def transposed_convolution(walk: Walk, a: Args) -> View:
    """With kernel == stride, each token becomes one patch: a matmul whose result is rearranged."""
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    kernel = tuple(weight.shape[2:])
    space = len(kernel)
    others = [*_per_axis(a["padding"], space), *_per_axis(a["output_padding"], space)]
    if _per_axis(a["stride"], space) != kernel or any(others) or a["groups"] != 1 or len(x.shape) != space + 2:
        raise UnsupportedError(
            "is a transposed convolution whose patches overlap or are padded",
            "supported are kernel == stride, padding 0, groups 1",
        )
    flat = weight.reshape(len(weight), -1).T
    wide = None if bias is None else bias.repeat_interleave(int(np.prod(kernel)))
    result = apply_linear(walk, x.pick(np.moveaxis(x.index, 1, -1)), flat, wide)
    batch, *positions, _ = result.shape
    parts = result.index.reshape(batch, *positions, weight.shape[1], *kernel)
    axes = [0, 1 + space, *(axis for i in range(space) for axis in (1 + i, 2 + space + i))]
    sizes = [n * k for n, k in zip(positions, kernel, strict=True)]
    return result.pick(parts.transpose(axes).reshape(batch, weight.shape[1], *sizes))


def layer_norm(walk: Walk, a: Args) -> View:
    x, weight, bias = a["input"], a["weight"], a["bias"]
    need_constants(weight, bias)
    features = x.shape[-1]
    if list(a["normalized_shape"]) != [features]:
        raise UnsupportedError(f"normalises over {a['normalized_shape']}", "normalise over the last dimension only")
    x, factor = without_factors(x)
    made = Normalise(
        origin=walk.origin,
        x=x.reshape(-1, features),
        gamma=float32(torch.ones(features) if weight is None else weight) * np.float32(np.sign(factor)),
        beta=float32(torch.zeros(features) if bias is None else bias),
        epsilon=float(a["eps"]) / factor**2,  # normalising f * x
    )
    return whole(made).reshape(*x.shape)


def softmax(walk: Walk, a: Args) -> View:
    view: View = a["self"]
    last = view.pick(np.moveaxis(view.index, a["dim"], -1))
    result = whole(Softmax(origin=walk.origin, x=last))
    return result.pick(np.moveaxis(result.index, -1, a["dim"]))


def attention(walk: Walk, a: Args) -> View:
    query, key, value = (a[name] for name in ("query", "key", "value"))
    if a["attn_mask"] is not None or a["is_causal"] or a["dropout_p"]:
        raise UnsupportedError(
            "has a mask, is causal or has dropout", "supported is attention of every token to every token"
        )
    need = [part for part in (query, key, value) if not isinstance(part, View)]
    if need or a.get("enable_gqa") or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        raise UnsupportedError(
            "has keys or values of other heads than its queries", "give each head its own keys and values"
        )
    (q, by_q), (k, by_k), (v, by_v) = (without_factors(view) for view in (query, key, value))
    q, k, v = (view.reshape(-1, *view.shape[-2:]) for view in (q, k, v))
    scale = query.shape[-1] ** -0.5 if a["scale"] is None else float(a["scale"])
    made = Attend(origin=walk.origin, q=q, k=k, v=v, scale=scale * by_q * by_k)
    return attended(made).scaled(by_v).reshape(*query.shape[:-1], value.shape[-1])


def mean(walk: Walk, a: Args) -> View:
    """Over tokens: attention with a query of zeros, which weighs all tokens alike."""
    view, factor = without_factors(a["self"])
    rank = len(view.shape)
    axes = sorted(axis % rank for axis in (a.get("dim") or range(rank)))
    if a["target"] is torch.ops.aten.adaptive_avg_pool2d.default:
        axes = [rank - 2, rank - 1]
        if list(a["output_size"]) != [1, 1]:
            raise UnsupportedError("pools to more than one position", "pool to 1, or take a linear layer")
    kept = [axis for axis in range(rank) if axis not in axes]
    features = int(np.prod([view.shape[axis] for axis in kept]))
    tokens = view.pick(view.index.transpose([*axes, *kept]).reshape(-1, features))
    width = next(width for width in range(min(features, WIDEST_HEAD), 0, -1) if features % width == 0)
    heads = features // width
    zeros = np.zeros((width, features), np.float32)
    origin = replace(walk.origin, name=f"{walk.origin.name}.query")
    query = Linear(origin=origin, x=tokens.pick(tokens.index[:1]), weight=zeros, bias=zeros[:, 0])
    values = tokens.pick(tokens.index.reshape(-1, heads, width).transpose(1, 0, 2))
    keys = tokens.pick(np.broadcast_to(values.index[:1], values.shape))
    q = whole(query).pick(np.broadcast_to(np.arange(width), (heads, 1, width)))
    pooled = whole(Attend(origin=walk.origin, q=q, k=keys, v=values, scale=1.0)).scaled(factor)
    shape = [view.shape[axis] for axis in kept]
    keep = a.get("keepdim") or a["target"] is torch.ops.aten.adaptive_avg_pool2d.default
    return pooled.reshape(*([1 if axis in axes else n for axis, n in enumerate(view.shape)] if keep else shape))


def mixture(walk: Walk, a: Args) -> View:
    layer = walk.layers[a["layer"]]
    x = plain(a["x"])
    made = Mixture(
        origin=walk.origin,
        x=x.reshape(-1, x.shape[-1]),
        gate_weight=layer.gate_weight,
        gate_bias=layer.gate_bias,
        experts=layer.experts,
        activation=layer.activation,
        top_k=layer.top_k,
        scoring=layer.scoring,
    )
    return whole(made).reshape(*x.shape[:-1], a["features"])


WIDEST_HEAD = 64  # of the attention that a mean becomes
Handler = Callable[[Walk, Args], Any]


def table(handler: Handler, names: str, prefix: str = "aten.") -> dict[str, Handler]:
    return {prefix + name: handler for name in names.split()}


# Every supported operation.
OPERATIONS: dict[str, Handler] = {
    **table(keep, "clone contiguous detach alias lift_fresh_copy dropout feature_dropout _to_copy to type_as positive"),
    **table(
        move,
        "view _unsafe_view reshape view_as reshape_as flatten unflatten permute transpose t numpy_T mT swapaxes "
        "movedim moveaxis slice select narrow unsqueeze squeeze expand expand_as broadcast_to repeat tile "
        "split split_with_sizes chunk tensor_split unbind cat concat stack hstack vstack flip roll rot90 "
        "index_select index repeat_interleave unfold pixel_shuffle pixel_unshuffle channel_shuffle diagonal take_along_dim atleast_2d",
    ),
    **table(pad, "constant_pad_nd pad"),
    **table(enlarge, "upsample_nearest1d upsample_nearest2d upsample_nearest3d"),
    **table(add, "add"),
    **table(subtract, "sub subtract"),
    **table(subtract_from, "rsub"),
    **table(multiply, "mul multiply"),
    **table(divide, "div divide true_divide"),
    **table(negate, "neg negative"),
    **table(activation, "relu gelu"),
    **table(linear, "linear"),
    **table(matmul, "matmul mm bmm"),
    **table(addmm, "addmm baddbmm"),
    **table(einsum, "einsum"),
    **table(convolution, "conv1d conv2d conv3d"),
    **table(transposed_convolution, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    **table(layer_norm, "layer_norm"),
    **table(softmax, "softmax _softmax"),
    **table(attention, "scaled_dot_product_attention"),
    **table(mean, "mean adaptive_avg_pool2d"),
    **table(mixture, "moe", prefix="patchloom."),
}
