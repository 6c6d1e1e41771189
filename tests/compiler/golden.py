"""Files that hold what a text must be."""

import os
from pathlib import Path


def matches(text: str, path: Path) -> bool:
    """`UPDATE_GOLDEN=1 pytest` writes the files anew."""
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
    return True
