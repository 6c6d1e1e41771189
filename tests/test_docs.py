"""The documentation's tables are the code's, its links lead somewhere."""

import re
from pathlib import Path

import pytest

from docs import boards, core, models, tables
from docs.page import replaced

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])


@pytest.mark.parametrize("writer", [tables, boards, core, models], ids=lambda writer: writer.PAGE.name)
def test_pages_are_the_codes(writer):
    page = writer.PAGE.read_text()
    assert writer.written(page) == page, f"{writer.PAGE.name} is stale: make docs"


def test_every_command_and_register_has_its_row():
    rows = {line.split("|")[2].strip() for line in tables.PAGE.read_text().splitlines() if line.startswith("|")}
    assert rows >= {"MATMUL", "ROUTE", "o_stride", "score_all", "magic", "command_index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["", "<!-- written by x -->\n<!-- end -->\n" * 2])
def test_a_part_has_one_place(page):
    with pytest.raises(ValueError, match="must hold one part that 'x' writes, not"):
        replaced(page, "x", "text")
