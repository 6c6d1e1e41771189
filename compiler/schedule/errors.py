"""What keeps a graph from being scheduled."""

from collections.abc import Mapping
from dataclasses import replace

from patchloom.compiler.machine.config import Config, ConfigError
from patchloom.compiler.machine.errors import Error


class ScheduleError(Error, ValueError):
    """A graph that the machine has no commands for."""


class FitError(Error, ValueError):
    """Everything that does not fit the Config, one per line.

    `sizes` are what fields of the Config would have to be at the least; none where no Config would do.
    """

    def __init__(self, problems: Mapping[str, Mapping[str, int]]) -> None:
        """Each problem by its text, with such sizes."""
        super().__init__("\n".join(problems))
        self.sizes: dict[str, int] = {}
        if all(problems.values()):
            for sizes in problems.values():
                self.sizes |= {name: max(size, self.sizes.get(name, 0)) for name, size in sizes.items()}


def does_not_fit(what: str, need: int, have: int, remedy: str) -> str:
    return f"does not fit: {what} needs {need}, has {have}; try {remedy}"


def possible(config: Config, *sizes: dict[str, int]) -> str:
    """Those that the Config could have, as one would write them."""
    return " or ".join(
        f"Config({', '.join(f'{name}={value}' for name, value in some.items())})"
        for some in sizes
        if _can_have(config, some)
    )


def _can_have(config: Config, sizes: dict[str, int]) -> bool:
    try:
        replace(config, **sizes)  # type: ignore[arg-type]
    except ConfigError:
        return False
    return True
