"""Random calls of every operation of the table against torch: what is captured computes the same, or is refused.

    python -m tests.operations --count 200

Arguments follow the operation's schema: each tensor among them depends on the input, or is a constant of floats or
integers; sizes and attributes are small and random. Calls that torch itself refuses do not count.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.frontend.operations import OPERATIONS
from patchloom.compiler.frontend.site import Refusal
from patchloom.compiler.graph import Graph, evaluate
from patchloom.compiler.machine.errors import Error
from tests.campaign import Found, command_line, shown

SHAPE = (1, 6, 8)  # of the input
TRIES = 400  # until torch takes a call
TOLERANCE = 1e-3  # of the largest element, or of 1; GELU's tanh form differs by half of it
EQUATIONS = [
    "bij,jk->bik",
    "ij,jk->ik",
    "bij,bjk->bik",
    "bij,bkj->bik",
    "bij,kj->bki",
    "ij,kj->ki",
    "bij,ij->bij",
    "bi,bj->bij",
]


@dataclass(frozen=True)
class Place:
    """A tensor among the arguments."""

    shape: tuple[int, ...]
    kind: str  # "layer" or "input": depends on the input; "floats", "integers", "indices", "flags": a constant


class Call(nn.Module):
    """An operation of tensors that depend on x and of constants."""

    def __init__(self, target: Any, args: Sequence[Any], kwargs: dict[str, Any], seed: int) -> None:
        super().__init__()
        self.target, self.args, self.kwargs = target, args, kwargs
        torch.manual_seed(seed)
        for number, place in enumerate(places((args, kwargs))):
            if place.kind == "layer":
                setattr(self, f"layer{number}", nn.Linear(SHAPE[-1], place.shape[-1] if place.shape else 1))
            elif place.kind != "input":
                self.register_buffer(f"constant{number}", constant(place))

    def forward(self, x: Tensor) -> Any:
        numbers = iter(range(99))

        def value(part: Any) -> Any:
            if isinstance(part, Place):
                return self.tensor(part, next(numbers), x)
            if isinstance(part, list):
                return [value(inner) for inner in part]
            return part

        args = [value(part) for part in self.args]
        return self.target(*args, **{name: value(part) for name, part in self.kwargs.items()})

    def tensor(self, place: Place, number: int, x: Tensor) -> Tensor:
        """Whole tokens of a layer where there are as many, or elements one after another."""
        if place.kind not in ("layer", "input"):
            return getattr(self, f"constant{number}")
        source = getattr(self, f"layer{number}")(x) if place.kind == "layer" else x
        elements, rows = int(np.prod(place.shape)), int(np.prod(place.shape[:-1]))
        if place.kind == "layer" and rows <= SHAPE[1]:
            return source[:, :rows].reshape(place.shape)
        return source.reshape(-1).repeat(-(-elements // source.numel()))[:elements].reshape(place.shape)


def places(value: Any) -> Iterator[Place]:
    if isinstance(value, Place):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from places(part)
    elif isinstance(value, dict):
        yield from places(list(value.values()))


def constant(place: Place) -> Tensor:
    if place.kind == "integers":
        return torch.randint(-3, 4, place.shape)
    if place.kind == "indices":
        return torch.randint(0, 2, place.shape)
    if place.kind == "flags":
        return torch.rand(place.shape) < 0.5
    return torch.randn(place.shape)


class Maker:
    """Random arguments for a schema."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def one(self, *options: Any) -> Any:
        return options[self.rng.integers(len(options))]

    def call(self, target: Any) -> tuple[list[Any], dict[str, Any]]:
        self.base = self.one(
            (1, 6, 8), (6, 8), (1, 2, 3, 4), (2, 3, 4), (1, 3, 4, 4), (8,), (1, 6, 1), (1, 1, 8), (4, 4)
        )
        args, kwargs = [], {}
        fixed = self.operands(target._schema.name.partition("::")[2]) if self.rng.random() < 0.9 else {}
        for number, argument in enumerate(target._schema.arguments):
            if argument.name in fixed and str(argument.type) != "bool":
                value = fixed[argument.name]
            elif argument.has_default_value() and self.rng.random() < (0.85 if fixed else 0.4):
                value = argument.default_value
            else:
                value = self.argument(str(argument.type), argument.name, number)
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        return args, kwargs

    def operands(self, name: str) -> dict[str, Any]:
        """Arguments that only fit together, of operations whose random ones would hardly ever."""
        made = next((make for start, make in FITTING.items() if name.startswith(start)), None)
        return made(self, name) if made else {}

    def sizes(self, count: int, most: int = 3) -> list[int]:
        return self.rng.integers(1, most + 1, count).tolist()

    def convolution(self, name: str) -> dict[str, Any]:
        space, (i, o) = int(name[-2]), self.sizes(2)
        size = [self.one(2, 3, 4, 6) if space == 1 else self.one(2, 3) for _ in range(space)]
        kernel = [int(self.rng.integers(1, s + 1)) for s in size]
        if "transpose" in name:
            stride = kernel if self.rng.random() < 0.7 else [1] * space
            weight = self.weight(i, o, *kernel)
            return {"input": self.place(1, i, *size), "weight": weight, "stride": stride, "bias": self.maybe(o)}
        return {"input": self.place(1, i, *size), "weight": self.weight(o, i, *kernel), "bias": self.maybe(o)}

    def upsample(self, name: str) -> dict[str, Any]:
        size = self.sizes(int(name[-2]))
        x = self.place(1, 2, *size)
        return {"self": x, "input": x, "output_size": [s * self.one(1, 2, 3) for s in size]}

    def linear(self, _: str) -> dict[str, Any]:
        n, i, o = self.sizes(3)
        return {"input": self.place(1, n, i), "weight": self.weight(o, i), "bias": self.maybe(o)}

    def matrices(self, name: str) -> dict[str, Any]:
        n, i, o = self.sizes(3)
        second = self.weight(i, o)
        added = self.one(self.place(n, o), self.weight(o), self.weight(1, o))
        first = self.place(n, i)
        return {"self": added if name == "addmm" else first, "mat1": first, "mat2": second}

    def batches(self, name: str) -> dict[str, Any]:
        k, n, i, o = self.sizes(4)
        first, second = self.place(k, n, i), self.weight(k, i, o)
        added = self.place(k, n, o) if name == "baddbmm" else first
        return {"self": added, "batch1": first, "batch2": second, "mat2": second}

    def norm(self, _: str) -> dict[str, Any]:
        n, i = self.sizes(2)
        shape = self.one([i + 1], [n, i + 1])
        weights = {"weight": self.maybe(i + 1), "bias": self.maybe(i + 1)}
        return {"input": self.place(1, n, i + 1), "normalized_shape": shape, **weights}

    def attention(self, _: str) -> dict[str, Any]:
        h, n, m, d = self.sizes(4)
        return {"query": self.place(1, h, n, d), "key": self.place(1, h, m, d), "value": self.place(1, h, m, d)}

    def pooling(self, _: str) -> dict[str, Any]:
        c, h, w = self.sizes(3)
        return {"self": self.place(1, c, h, w), "output_size": self.one([1, 1], [1, w])}

    def einsum(self, _: str) -> dict[str, Any]:
        sizes = dict(zip("bijk", self.sizes(4), strict=True))
        equation = self.one(*EQUATIONS)
        tensors = [self.place(*(sizes[c] for c in part)) for part in equation.partition("->")[0].split(",")]
        return {"path": None, "equation": equation, "tensors": tensors}

    def piece(self, _: str) -> dict[str, Any]:
        return {"dim": 0, "start": 0, "length": 1}

    def repeats(self, _: str) -> dict[str, Any]:
        return {"repeats": self.one(1, 2, 3)}

    def place(self, *shape: int) -> Place:
        return Place(shape, self.one("layer", "layer", "layer", "input", "input", "floats"))

    def weight(self, *shape: int) -> Place:
        return Place(shape, self.one("floats", "floats", "floats", "layer"))

    def maybe(self, *shape: int) -> Place | None:
        return self.one(None, self.weight(*shape))

    def argument(self, kind: str, name: str, number: int) -> Any:
        if name == "dtype":
            return self.one(None, torch.float32, torch.float64, torch.int64, torch.bool)
        if name in ("memory_format", "layout", "device", "pin_memory", "out_dtype"):
            return None
        if kind.startswith("Optional["):
            return None if self.rng.random() < 0.4 else self.argument(kind[9:-1], name, number)
        if kind.startswith("List[") and "Tensor" in kind:
            return [self.indices() if name == "indices" else self.tensor(i) for i in range(self.rng.integers(1, 4))]
        made = OF_TYPE.get(kind)
        return made(self, name, number) if made else None

    def integers(self, name: str) -> list[int]:
        sizes = list(self.base) if self.rng.random() < 0.4 else []
        return sizes or [self.number(name) for _ in range(self.rng.integers(0, 5))]

    def number(self, name: str) -> int:
        if name in ("pad", "padding"):
            return int(self.rng.integers(0, 3))
        return int(self.one(0, 1, 2, 3, 4, 6, 8, -1, -2, -3))

    def indices(self) -> Place | None:
        shape = self.one((2,), (3,), (1, 2), (2, 1))
        return self.one(None, Place(shape, "indices"), Place(shape, "indices"), Place(self.base[:1], "flags"))

    def tensor(self, number: int) -> Place:
        base = self.base
        channels = base[1] if len(base) > 1 else 1
        related = (base, base, base, base[-1:], base[:-2] + base[:-3:-1], (1,) * len(base), (), base[1:],
                   (*base[:-1], 1), (base[-1], base[-1]), (4, *base[1:]), (4, base[-1]),
                   (3, channels, 2, 2), (channels, 3, 2, 2), (4,), (3,))  # fmt: skip
        shape = base if number == 0 and self.rng.random() < 0.8 else self.one(*related)
        views = 4 if number == 0 else 2
        kinds = [*["layer"] * views, *["input"] * views, "floats", "floats", "integers", "indices"]
        return Place(shape, self.one(*kinds))


WORDS = ("none", "tanh", "valid", "same", "constant", "reflect", "replicate", "floor", "trunc", *EQUATIONS)
# Random values of an argument by its type in the schema.
OF_TYPE: dict[str, Callable[[Maker, str, int], Any]] = {
    "Tensor": lambda maker, _, number: maker.tensor(number),
    "List[int]": lambda maker, name, _: maker.integers(name),
    "List[float]": lambda maker, *_: [maker.one(1.0, 2.0, 3.0, 1.5) for _ in range(maker.rng.integers(1, 4))],
    "int": lambda maker, name, _: maker.number(name),
    "float": lambda maker, *_: maker.one(0.0, 1.0, -1.0, 0.5, 2.0, 1e-5, -3.0),
    "number": lambda maker, *_: maker.one(0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 2, 0),
    "bool": lambda maker, *_: bool(maker.rng.integers(2)),
    "str": lambda maker, *_: maker.one(*WORDS),
}
# Arguments that fit together, by how an operation's name begins.
FITTING: dict[str, Callable[[Maker, str], dict[str, Any]]] = {
    "conv": Maker.convolution,
    "upsample": Maker.upsample,
    "linear": Maker.linear,
    "mm": Maker.matrices,
    "addmm": Maker.matrices,
    "bmm": Maker.batches,
    "baddbmm": Maker.batches,
    "layer_norm": Maker.norm,
    "scaled_dot_product": Maker.attention,
    "adaptive_avg_pool2d": Maker.pooling,
    "einsum": Maker.einsum,
    "narrow": Maker.piece,
    "repeat_interleave": Maker.repeats,
}


def overloads(name: str) -> list[Any]:
    """Those of an operation that a traced model shows."""
    packet = getattr(torch.ops.aten, name.removeprefix("aten."), None)
    found = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return [target for target in found if _is_traced(target)]


def _is_traced(target: Any) -> bool:
    schema = target._schema
    text = str(schema)
    if target._overloadname.startswith(("prim_", "list_")):
        return False  # of TorchScript; wrong arguments crash it
    dynamic = re.search(r"\.\.\.|\bt(\(a\))?\[\]|Dimname|str self|Generator", text)
    takes = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return takes and not dynamic and not schema.is_mutable and not any(a.is_out for a in schema.arguments)


def valid_call(target: Any, rng: np.random.Generator, seed: int) -> Call | None:
    """One that torch takes and in which something depends on the input."""
    maker = Maker(rng)
    for _ in range(TRIES):
        args, kwargs = maker.call(target)
        found = list(places((args, kwargs)))
        if not any(place.kind in ("layer", "input") for place in found):
            continue
        if any(int(np.prod(place.shape)) > np.prod(SHAPE) for place in found):
            continue
        call = Call(target, args, kwargs, seed).eval()
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = torch.randn(SHAPE)
                results, again = tensors(call(x)), tensors(call(x))
        except Exception:  # noqa: BLE001 - torch refuses in many ways
            continue
        repeats = all(map(torch.equal, results, again))  # else torch itself has read beyond its memory
        if results and repeats and all(0 < result.numel() < 4096 for result in results):
            return call
    return None


def tensors(result: Any) -> list[Tensor]:
    parts = result if isinstance(result, list | tuple) else [result]
    return [part for part in parts if isinstance(part, Tensor)]


def outcome(call: Call) -> str:
    """The word "equal" or "refused", or what is wrong."""
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = [part[0] if part.shape[:1] == (1,) else part for part in tensors(call(x))]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [graph] = capture(call, (x,))
        return compared(list(evaluate(graph, inputs(graph, x)).values()), expected)
    except Error:
        return "refused"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return f"{type(error).__name__}: {str(error)[:150]}"


def inputs(graph: Graph, x: Tensor) -> dict[str, Any]:
    return {node.name: x[0].numpy() for node in graph.nodes() if node.kind == "input"}


def compared(actual: Sequence[np.ndarray[Any, Any]], expected: Sequence[Tensor]) -> str:
    if len(actual) != len(expected):
        return f"{len(actual)} results, not {len(expected)}"
    for ours, theirs in zip(actual, expected, strict=True):
        if ours.shape != tuple(theirs.shape):
            return f"shape {ours.shape}, not {tuple(theirs.shape)}"
        wanted = theirs.double().numpy()
        there = np.isfinite(wanted)
        if not np.array_equal(there, np.isfinite(ours)):
            return "not finite elsewhere"
        difference = np.abs(np.where(there, ours, 0) - np.where(there, wanted, 0))
        if not (difference <= TOLERANCE * max(float(np.abs(wanted[there]).max(initial=0)), 1)).all():
            return f"off by {difference.max():.3g}"
    return "equal"


def check(names: Sequence[str], count: int, seed: int = 0) -> Found:
    """Outcomes by operation; a call that is neither equal nor refused is a failure."""
    found = Found()
    for name in shown(names):
        rng, targets = np.random.default_rng([seed, *name.encode()]), overloads(name)
        for number in range(count if targets else 0):
            call = valid_call(targets[number % len(targets)], rng, number)
            result = outcome(call) if call else "no call"
            right = result in ("equal", "refused", "no call")
            found.outcomes[f"{name} {result if right else 'wrong'}"] += 1
            if call and not right:
                found.failures.append(f"{call.target}{tuple(call.args)} {call.kwargs}: {result}")
    return found


def supported() -> list[str]:
    return [name for name, row in OPERATIONS.items() if name.startswith("aten.") and not isinstance(row, Refusal)]


if __name__ == "__main__":
    command_line(check, count=200, names=supported())
