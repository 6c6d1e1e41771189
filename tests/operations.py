"""Random calls of every operation of the table against torch: what is captured computes the same, or is refused.

    python -m tests.operations --count 200

Arguments follow the operation's schema: each tensor among them depends on the input, or is a constant of floats or
integers; sizes and attributes are small and random. Calls that torch itself refuses do not count.
"""

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from patchloom.compiler.frontend.capture import capture
from patchloom.compiler.frontend.operations import OPERATIONS
from patchloom.compiler.frontend.site import Refusal
from patchloom.compiler.graph import Graph, evaluate
from patchloom.compiler.machine.errors import Error

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
            elif argument.has_default_value() and self.rng.random() < 0.4:
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
        n, i, o, k = (int(self.rng.integers(1, 4)) for _ in range(4))
        space = int(name[-2]) if name[-1] == "d" and name[-2].isdigit() else 0
        size = [int(self.one(2, 3, 4, 6)) if space == 1 else int(self.one(2, 3)) for _ in range(space)]
        kernel = [int(self.rng.integers(1, s + 1)) for s in size]
        if "conv_transpose" in name:
            stride = kernel if self.rng.random() < 0.7 else [1] * space
            return {"input": self.place(1, i, *size), "weight": self.weight(i, o, *kernel), "stride": stride,
                    "bias": self.maybe(o)}  # fmt: skip
        if "conv" in name:
            return {"input": self.place(1, i, *size), "weight": self.weight(o, i, *kernel), "bias": self.maybe(o)}
        if name.startswith("upsample"):
            x = self.place(1, i, *size)
            return {"self": x, "input": x, "output_size": [s * self.one(1, 2, 3) for s in size]}
        if name == "linear":
            return {"input": self.place(1, n, i), "weight": self.weight(o, i), "bias": self.maybe(o)}
        if name in ("mm", "addmm"):
            return {"self": self.one(self.place(n, o), self.weight(o), self.weight(1, o)) if name == "addmm" else self.place(n, i),
                    "mat1": self.place(n, i), "mat2": self.one(self.weight(i, o), self.place(i, o))}  # fmt: skip
        if name in ("bmm", "baddbmm"):
            return {"self": self.place(k, n, o) if name == "baddbmm" else self.place(k, n, i), "batch1": self.place(k, n, i),
                    "batch2": self.place(k, i, o), "mat2": self.one(self.weight(k, i, o), self.place(k, i, o))}  # fmt: skip
        if name == "layer_norm":
            return {"input": self.place(1, n, i + 1), "normalized_shape": self.one([i + 1], [n, i + 1]),
                    "weight": self.maybe(i + 1), "bias": self.maybe(i + 1)}  # fmt: skip
        if name == "scaled_dot_product_attention":
            return {"query": self.place(1, k, n, i), "key": self.place(1, k, o, i), "value": self.place(1, k, o, i)}
        if name == "adaptive_avg_pool2d":
            return {"self": self.place(1, i, n, o), "output_size": self.one([1, 1], [1, o], 1)}
        if name == "narrow":
            return {"dim": 0, "start": 0, "length": 1}
        if name == "repeat_interleave":
            return {"repeats": self.one(1, 2, 3)}
        if name == "einsum":
            sizes = {"b": k, "i": n, "j": i, "k": o}
            equation = self.one(*EQUATIONS)
            parts = equation.partition("->")[0].split(",")
            return {
                "path": None,
                "equation": equation,
                "tensors": [self.place(*(sizes[c] for c in part)) for part in parts],
            }
        return {}

    def place(self, *shape: int) -> Place:
        return Place(shape, self.one("layer", "layer", "layer", "input", "input", "floats"))

    def weight(self, *shape: int) -> Place:
        return Place(shape, self.one("floats", "floats", "floats", "layer"))

    def maybe(self, *shape: int) -> Place | None:
        return self.one(None, self.weight(*shape))

    def argument(self, kind: str, name: str, number: int) -> Any:
        if name in ("dtype", "memory_format", "layout", "device", "pin_memory", "out_dtype"):
            return self.one(None, torch.float32, torch.float64, torch.int64, torch.bool) if name == "dtype" else None
        if kind.startswith("Optional["):
            return None if self.rng.random() < 0.4 else self.argument(kind[9:-1], name, number)
        if kind == "Tensor":
            return self.tensor(number)
        if kind.startswith("List[") and "Tensor" in kind:
            count = int(self.rng.integers(1, 4))
            indices = name == "indices"
            return [self.indices() if indices else self.tensor(i) for i in range(count)]
        if kind == "List[int]":
            sizes = list(self.base) if self.rng.random() < 0.4 else []
            return sizes or [self.number(name) for _ in range(self.rng.integers(0, 5))]
        if kind == "List[float]":
            return [self.one(1.0, 2.0, 3.0, 1.5) for _ in range(self.rng.integers(1, 4))]
        if kind == "int":
            return self.number(name)
        if kind in ("float", "number"):
            return self.one(0.0, 1.0, -1.0, 0.5, 2.0, 1e-5, -3.0, 2, 0)
        if kind == "bool":
            return bool(self.rng.integers(2))
        if kind == "str":
            return self.one(
                "none", "tanh", "valid", "same", "constant", "reflect", "replicate", "floor", "trunc", *EQUATIONS
            )
        return None

    def number(self, name: str) -> int:
        if name in ("pad", "padding"):
            return int(self.rng.integers(0, 3))
        return int(self.one(0, 1, 2, 3, 4, 6, 8, -1, -2, -3))

    def indices(self) -> Place | None:
        shape = self.one((2,), (3,), (1, 2), (2, 1))
        return self.one(None, Place(shape, "indices"), Place(shape, "indices"), Place(self.base[:1], "flags"))

    def tensor(self, number: int) -> Place:
        base = self.base
        related = (base, base, base, base[-1:], base[:-2] + base[:-3:-1], (1,) * len(base), (), base[1:],
                   (*base[:-1], 1), (base[-1], base[-1]), (4, *base[1:]), (4, base[-1]),
                   (3, base[1] if len(base) > 1 else 1, 2, 2), (base[1] if len(base) > 1 else 1, 3, 2, 2), (4,), (3,))  # fmt: skip
        shape = base if number == 0 and self.rng.random() < 0.8 else self.one(*related)
        views = 4 if number == 0 else 2
        kinds = [*["layer"] * views, *["input"] * views, "floats", "floats", "integers", "indices"]
        return Place(shape, self.one(*kinds))


def overloads(name: str) -> list[Any]:
    """Those of an operation that a traced model shows."""
    packet = getattr(torch.ops.aten, name.removeprefix("aten."), None)
    found = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return [target for target in found if _is_traced(target)]


def _is_traced(target: Any) -> bool:
    schema = target._schema
    text = str(schema)
    if target._overloadname.startswith("prim_"):
        return False  # of TorchScript; wrong arguments crash it
    dynamic = any(word in text for word in ("t[]", "t(a)[]", "Dimname", "str self", "str string", "->()", "Generator"))
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
                results = tensors(call(torch.randn(SHAPE)))
        except Exception:  # noqa: BLE001 - torch refuses in many ways
            continue
        if results and all(0 < result.numel() < 4096 for result in results):
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
        difference = np.abs(ours - theirs.double().numpy())
        if not (difference <= TOLERANCE * max(float(theirs.double().abs().max()), 1)).all():
            return f"off by {difference.max():.3g}"
    return "equal"


def check(
    names: Sequence[str], count: int, seed: int = 0, *, show: bool = False
) -> tuple[dict[str, Counter[str]], list[str]]:
    """Outcomes by operation, and every call that is neither equal nor refused."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    failures = []
    for name in track(names, "operations", disable=not show):
        rng, targets = np.random.default_rng([seed, *name.encode()]), overloads(name)
        for number in range(count if targets else 0):
            call = valid_call(targets[number % len(targets)], rng, number)
            if call is None:
                outcomes[name]["no call"] += 1
                continue
            result = outcome(call)
            kind = result if result in ("equal", "refused") else "wrong"
            outcomes[name][kind] += 1
            if kind == "wrong":
                failures.append(f"{call.target}{tuple(call.args)} {call.kwargs}: {result}")
    return outcomes, failures


def supported() -> list[str]:
    return [name for name, row in OPERATIONS.items() if name.startswith("aten.") and not isinstance(row, Refusal)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="calls of each operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", help="operations; all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.names or supported()
    outcomes, failures = check(names, options.count, options.seed, show=True)
    for name, counts in outcomes.items():
        sys.stdout.write(f"{name:32} {' '.join(f'{kind} {number}' for kind, number in sorted(counts.items()))}\n")
    sys.stdout.write("\n".join([*failures, f"{len(failures)} failures\n"]))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
