"""Writes parts of docs/core.md: `python -m docs.core`. How to connect the core is the text of every core's README."""

import json
from collections.abc import Iterator

from benchmarks.core import RESULTS
from docs.page import DOCS, replaced
from patchloom.boards.core import connect
from patchloom.presets import PRESETS

PAGE = DOCS / "core.md"


def connected() -> str:
    return connect(PRESETS["small"])


def simulated() -> str:
    """What `benchmarks.core` found."""
    return "".join(f"{row}\n" for row in _rows())


def _rows() -> Iterator[str]:
    yield "| machine | simulator | output elements, all equal | cycles | version | date |"
    yield "|---|---|--:|--:|---|---|"
    for name, simulators in json.loads(RESULTS.read_text()).items():
        for simulator, made in simulators.items():
            counts = f"{made['elements']} | {made['cycles']:,}"
            yield f"| {name} | `make {simulator}` | {counts} | {made['version']} | {made['date']} |"


PARTS = {"simulated": simulated, "connect": connected}


def written(page: str) -> str:
    for name, part in PARTS.items():
        page = replaced(page, f"docs.core: {name}", part())
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
