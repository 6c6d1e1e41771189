"""What cannot be compiled, as users are told: all of it at once, each with their own file and line."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from patchloom.compiler.machine.errors import Error
from patchloom.compiler.origin import Origin


@dataclass(frozen=True)
class Problem:
    """One thing that cannot be compiled, where it is, and how to go on."""

    origin: Origin
    text: str
    hint: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def kind(self) -> tuple[object, ...]:
        """The same for one line of the user's that many modules run."""
        return self.origin.op, self.origin.where, self.shapes, self.text, self.hint

    def __str__(self) -> str:
        shapes = f" of {', '.join('x'.join(map(str, shape)) for shape in self.shapes)}" if self.shapes else ""
        return f"{self.origin}{shapes}: {self.text}" + (f"\n     {self.hint}" if self.hint else "")


class CaptureError(Error, ValueError):
    """Everything about a model that cannot be compiled, all at once."""

    def __init__(self, title: str, problems: Iterable[Problem | str] = ()) -> None:
        found: dict[object, list[Problem | str]] = {}
        for problem in problems:
            found.setdefault(problem.kind if isinstance(problem, Problem) else problem, []).append(problem)
        self.problems = tuple(_with_count(alike) for alike in found.values())
        super().__init__("\n".join([title, *(f"{i:3}. {text}" for i, text in enumerate(self.problems, 1))]))


def _with_count(alike: Sequence[Problem | str]) -> str:
    first = alike[0]
    names = {problem.origin.name for problem in alike if isinstance(problem, Problem)}
    if isinstance(first, str) or len(names) == 1:
        return str(first)
    more = replace(first.origin, name=f"{first.origin.name}' and {len(names) - 1} more like '{max(names)}")
    return str(replace(first, origin=more))


class UnsupportedError(Exception):
    """Raised where an operation is met that has no meaning here; becomes a `Problem` of that operation."""

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.text, self.hint = text, hint
