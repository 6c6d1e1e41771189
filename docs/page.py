"""Pages that hold what a program has written, each part between two marks."""

import re
from pathlib import Path

DOCS = Path(__file__).parent


def replaced(page: str, command: str, text: str) -> str:
    """The page with `text` as the part that `command` writes."""
    part = re.compile(rf"(<!-- written by {re.escape(command)} -->\n).*?(<!-- end -->)", re.DOTALL)
    made, count = part.subn(lambda marks: marks[1] + text + marks[2], page)
    if count != 1:
        raise ValueError(f"a page must hold one part that {command!r} writes, not {count}")
    return made


def write(path: Path, command: str, text: str) -> None:
    path.write_text(replaced(path.read_text(), command, text))
