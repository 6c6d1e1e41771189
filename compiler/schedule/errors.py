"""What keeps a graph from being scheduled."""

from patchloom.compiler.machine.errors import Error


class ScheduleError(Error, ValueError):
    """A graph that the machine has no commands for."""


class FitError(Error, ValueError):
    """Everything that does not fit the Config, one per line."""


def does_not_fit(what: str, need: int, have: int, remedy: str) -> str:
    return f"does not fit: {what} needs {need}, has {have}; try {remedy}"
