"""Writes how the core is connected into docs/core.md: `python -m docs.core`. It is the text of every core's README."""

from docs.page import DOCS, replaced
from patchloom.boards.core import connect
from patchloom.presets import PRESETS

PAGE = DOCS / "core.md"


def written(page: str) -> str:
    return replaced(page, "docs.core", connect(PRESETS["small"]))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
