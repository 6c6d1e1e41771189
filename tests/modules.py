"""Random modules as users write them: what compiles computes what torch computes, all else is an `Error`.

    python -m tests.modules --count 500 --seed 0

Each is a source file of pieces of `modules.txt`: a way to begin, some that map tokens x [1, N, D] to others, a few of
them in modules of their own, and a way to return. It is compiled for a small machine at 16 bits and run on the
interpreter, the first sample also on the HLS kernels and the RTL; every element is compared. Afterwards the module
must be what it was, and still compute the same.
"""

import linecache
import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import patchloom
from tests.campaign import Found, command_line, shown
from tests.machine import MACHINE, agreed

SAMPLES = 3
TOLERANCE = 0.005  # of an output's largest element: 16 bits stay far below, another element's value seldom does
SHARES = {"strange": 0.03, "tokens": 0.04, "maps": 0.2}  # of the pieces; all others are usual
SIZES = (4, 8, 12, 16)  # of features
MOST = (24, 48)  # tokens, features
HEAD = """import functools, math
from collections import OrderedDict, deque, namedtuple
from types import SimpleNamespace
import torch
import torch.nn.functional as F
from torch import Tensor, nn
Pair = namedtuple("Pair", "tokens pooled")
SHARED = {}
"""
CLASS = """
class {name}(nn.Module):
    def __init__(self):
        super().__init__()
        {init}
    {methods}
    def forward(self, {arguments}):
        {run}
"""


@dataclass(frozen=True)
class Piece:
    """Lines of forward, __init__, the class, the file; and what goes out of what comes in."""

    run: str
    init: str
    methods: str
    file: str
    size: str


def read_pieces(text: str) -> dict[str, list[Piece]]:
    """By the first word of their section."""
    found: dict[str, list[Piece]] = {}
    for paragraph in text.split("\n\n")[1:]:
        if paragraph.startswith("["):
            section = found[re.split(r"\W", paragraph)[1]] = []
            continue
        parts: dict[str, list[str]] = {" ": [], "^": [], "%": [], "#": [], ">": []}
        for line in paragraph.strip("\n").split("\n"):
            marked = line[0] in parts and line[0] != " "
            parts[line[0] if marked else " "].append(line[2:] if marked else line)
        section.append(Piece(*("\n".join(lines) for lines in parts.values())))
    return found


PIECES = read_pieces(Path(__file__).with_suffix(".txt").read_text())


@dataclass
class Part:
    """One class under way, and x where it stands: `tokens` of `features`."""

    name: str
    tokens: int
    features: int
    lines: dict[str, list[str]] = field(default_factory=lambda: {"init": [], "methods": [], "run": []})

    def source(self, arguments: str) -> str:
        here = {name: "\n".join(lines) for name, lines in self.lines.items()}
        indented = {
            name: text.replace("\n", "\n" + " " * (4 if name == "methods" else 8)) for name, text in here.items()
        }
        return CLASS.format(name=self.name, arguments=arguments, **indented)


class Writer:
    """One source file."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.number, self.file = rng, 0, [HEAD]
        self.inputs: dict[str, tuple[int, ...]] = {}
        part = Part("Model", int(rng.integers(2, 7)), int(rng.choice(SIZES)))
        self.begin(part)
        for _ in range(int(rng.integers(1, 6))):
            if rng.random() < 0.2:
                self.nest(part)
            else:
                self.grow(part)
        self.add(part, self.one(PIECES["endings"]))
        self.file.append(part.source(", ".join([*self.inputs, *["scale=1.0, mask=None"][: int(rng.integers(2))]])))

    def one(self, options: list[Any]) -> Any:
        return options[self.rng.integers(len(options))]

    def grow(self, part: Part) -> None:
        """By a piece that fits what stands before."""
        kind = self.rng.choice([*SHARES, "usual"], p=[*SHARES.values(), 1 - sum(SHARES.values())])
        while not self.add(part, self.one(PIECES[kind])):
            pass

    def begin(self, part: Part) -> None:
        piece = self.one(PIECES["beginnings"])
        sizes = self.sizes(part)
        inputs, _, out = piece.size.partition(" -> ")
        for given in inputs.split("; "):
            name, _, shape = given.partition(": ")
            self.inputs[name] = value(f"({shape},)", sizes)
        self.put(part, piece, sizes)
        part.tokens, part.features = value(out, sizes)

    def sizes(self, part: Part) -> dict[str, int]:
        """What the capital letters of a piece stand for: any features E, a number of heads H, a token K."""
        return {"N": part.tokens, "D": part.features, "E": int(self.rng.choice(SIZES)), "H": self.one([1, 2, 4]),
                "K": int(self.rng.integers(part.tokens))}  # fmt: skip

    def add(self, part: Part, piece: Piece) -> bool:
        """Whether it fits."""
        sizes = self.sizes(part)
        tokens, features = value(piece.size or "N, D", sizes)
        if not (1 < tokens <= MOST[0] and 1 < features <= MOST[1]) or features % 4:
            return False
        self.put(part, piece, sizes)
        part.tokens, part.features = tokens, features
        return True

    def put(self, part: Part, piece: Piece, sizes: Mapping[str, int]) -> None:
        self.number += 1
        known = {**sizes, **{letter: f"{letter.lower()}{self.number}" for letter in "PQR"}}

        def filled(text: str) -> list[str]:
            """Each lone capital letter that is known is put in."""
            named = re.sub(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", lambda m: str(known.get(m[0], m[0])), text)
            return named.split("\n") if named else []

        for name, lines in part.lines.items():
            lines.extend(filled(getattr(piece, name)))
        self.file += filled(piece.file)

    def nest(self, part: Part) -> None:
        """A module of its own that is called once, twice, or is one of several in a list."""
        inner = Part(f"Part{self.number}", part.tokens, part.features)
        for _ in range(int(self.rng.integers(1, 4))):
            self.grow(inner)
        inner.lines["run"].append("return x")
        self.file.append(inner.source("x"))
        name, again = inner.name.lower(), (inner.tokens, inner.features) == (part.tokens, part.features)
        made = f"self.{name} = {inner.name}()"
        uses = [(made, [f"x = self.{name}(x)"])]
        if again:
            uses += [(made, [f"x = self.{name}(self.{name}(x))"]),
                     (f"self.{name} = nn.Sequential({inner.name}(), {inner.name}())", [f"x = self.{name}(x)"]),
                     (f"self.{name} = nn.ModuleList({inner.name}() for _ in range(2))",
                      [f"for part in self.{name}:", "    x = part(x)"])]  # fmt: skip
        init, run = self.one(uses)
        part.lines["init"].append(init)
        part.lines["run"] += run
        part.tokens, part.features = inner.tokens, inner.features


def value(expression: str, sizes: Mapping[str, int]) -> Any:
    return eval(expression, {"min": min}, dict(sizes))


@dataclass(eq=False)
class Case:
    """A source file, and samples of its inputs; a warm model has run before it is compiled."""

    source: str
    samples: dict[str, Tensor]
    file: str
    warm: bool

    def model(self) -> nn.Module:
        """A new one, of a new execution of the file; the same weights each time."""
        linecache.cache[self.file] = len(self.source), None, self.source.splitlines(keepends=True), self.file
        names: dict[str, Any] = {"__name__": "users"}
        exec(compile(self.source, self.file, "exec"), names)
        torch.manual_seed(0)
        model: nn.Module = names["Model"]().eval()
        if self.warm:
            self.results(model, 0)
        return model

    def sample(self, number: int) -> tuple[Tensor, ...]:
        return tuple(samples[number : number + 1].clone() for samples in self.samples.values())

    def results(self, model: nn.Module, number: int) -> dict[str, Tensor]:
        """Of a sample; random numbers are others for other samples."""
        torch.manual_seed(number)
        with torch.no_grad():
            return dict(named(model(*self.sample(number)), "main"))


def named(result: Any, name: str, before: str = "") -> Iterator[tuple[str, Tensor]]:
    """Tensors by key or position; one alone is named after the task."""
    if isinstance(result, Tensor):
        yield name, result.clone()
    elif isinstance(result, Mapping | list | tuple):
        result = result._asdict() if hasattr(result, "_asdict") else result
        parts = result.items() if isinstance(result, Mapping) else ((f"out{i}", part) for i, part in enumerate(result))
        for key, part in parts:
            full = f"{before}{key}"
            yield from named(part, full, f"{full}.")


def make_case(seed: int, number: int) -> Case:
    """One that torch runs."""
    rng = np.random.default_rng([seed, number])
    while True:
        writer = Writer(rng)
        samples = {
            name: torch.tensor(rng.normal(size=(SAMPLES, *shape)), dtype=torch.float32)
            for name, shape in writer.inputs.items()
        }
        case = Case("\n".join(writer.file), samples, f"module{number}.py", bool(rng.integers(2)))
        try:
            if all(tensor.isfinite().all() for tensor in case.results(case.model(), 0).values()):
                return case
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
            continue


def frozen(content: Any) -> Any:
    """What can be compared later with whatever a module holds."""
    if type(content) in (Tensor, nn.Parameter):  # a tensor of another type is a fake one that was left there
        return type(content), content.dtype, content.requires_grad, content.detach().numpy().tobytes()
    if isinstance(content, Mapping):
        return {key: frozen(part) for key, part in content.items()}
    if isinstance(content, list | tuple | set | deque):
        return type(content), [frozen(part) for part in content]
    if isinstance(content, SimpleNamespace):
        return frozen(vars(content))
    return content


def state_of(model: nn.Module) -> Any:
    return {name: frozen(vars(part)) for name, part in model.named_modules()}


def outcome(case: Case) -> str:
    """The word "equal" or "refused: ", or what is wrong."""
    model = case.model()
    before = state_of(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = patchloom.compile(
                model, case.sample(0), calibration=tuple(case.samples.values()), config=MACHINE, precision="w16a16"
            )
            found = compared(case, program)
    except patchloom.Error as error:
        found = f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        found = f"{type(error).__name__}: {str(error)[:300]}"
    return found if state_of(model) == before and is_well(case, model) else f"the module is another one; {found}"


def is_well(case: Case, model: nn.Module) -> bool:
    """It returns what a model that was never compiled does."""
    expected = case.results(case.model(), 1)
    try:
        actual = case.results(model, 1)
    except Exception:  # noqa: BLE001 - e.g. of a fake tensor that was left
        return False
    return all(torch.equal(actual[name], tensor) for name, tensor in expected.items())


def compared(case: Case, program: patchloom.Program) -> str:
    for number in range(SAMPLES):
        sample = {name: samples[number].numpy() for name, samples in case.samples.items()}
        read = {port.name for port in program.tasks[0].inputs}
        engines = () if number else ("hls", "rtl")
        ours = agreed(program, {name: array for name, array in sample.items() if name in read}, *engines).outputs
        theirs = case.results(case.model(), number)
        if list(ours) != list(theirs):
            return f"outputs {list(ours)}, not {list(theirs)}"
        for name, tensor in theirs.items():
            expected = tensor[0].numpy() if tensor.shape[:1] == (1,) else tensor.numpy()
            if ours[name].shape != expected.shape:
                return f"'{name}' is {list(ours[name].shape)}, not {list(expected.shape)}"
            off = float(np.abs(ours[name] - expected).max()) / max(float(np.abs(expected).max()), 1e-6)
            if off > TOLERANCE:
                return f"'{name}' is off by {off:.3g} of its largest element"
    return "equal"


def check(count: int, seed: int) -> Found:
    """A module that neither computes the same nor is refused is a failure, whole."""
    found = Found()
    for number in shown(range(count)):
        case = make_case(seed, number)
        result = outcome(case)
        kind = "compiled, equal" if result == "equal" else "refused" if result.startswith("refused: ") else "wrong"
        found.outcomes[kind] += 1
        if kind == "wrong":
            found.failures.append(f"{case.source}\n# {case.file}, warm {case.warm}: {result}\n")
    return found


if __name__ == "__main__":
    command_line(check, count=500)
