"""A Program in words: golden text of a small one."""

import re
from pathlib import Path

from patchloom.compiler.graph import Graph
from patchloom.inspect import describe
from tests.compiler.graphs import Builder, compiled, transformer

GOLDEN = Path(__file__).parent / "golden" / "program.txt"


def test_golden():
    b = Builder()
    x = b.matmul("embed", b.input(6, 20), 16, residual=b.constant(6, 16))
    x = b.block("layer", x, 1, experts=2)
    program = compiled(Graph("main", (b.output("y", x),)), "w8a16")
    assert re.sub("Config [0-9a-f]{8}", "Config ........", describe(program)) == GOLDEN.read_text()


def test_every_kind_of_part_has_words():
    program = compiled(transformer(layers=2, experts=2), "w8a8")
    text = describe(program)
    for note in program.tasks[0].notes:
        assert note in text
    for words in (
        "normalise",
        "exp",
        "/ row sum",
        "* gate score",
        "+ r, then itself",
        "table of |x|",
        "maxima",
        "statistics",
    ):
        assert words in text
