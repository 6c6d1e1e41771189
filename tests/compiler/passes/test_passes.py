"""What each pass makes of a small graph: as golden files, and with the same meaning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchloom.compiler.node import View
from patchloom.compiler.nodes import Input
from patchloom.compiler.nodes.captured import Opaque
from patchloom.compiler.passes import PIPELINE, attention
from patchloom.compiler.passes.engine import Pass, in_order
from patchloom.compiler.problems import Problem
from tests.compiler.golden import matches
from tests.compiler.passes.describing import describe, meaning
from tests.compiler.passes.examples import EXAMPLES

GOLDEN = Path(__file__).parent / "golden"
PASSES = {each.name: each for each in (attention.PASS, *PIPELINE)}


def after(each: Pass, results: dict[str, View]) -> tuple[dict[str, View], list[Problem]]:
    problems: list[Problem] = []
    return dict(zip(results, each(list(results.values()), problems), strict=True)), problems


def inputs_of(results: dict[str, View]) -> dict[str, Any]:
    sources = [base for base in in_order(results.values()) if isinstance(base, Input)]
    return {base.name: np.random.default_rng(0).normal(size=base.user_shape) for base in sources}


def test_every_pass_has_an_example():
    assert set(EXAMPLES) == set(PASSES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_pass_makes(name: str):
    before = EXAMPLES[name]()
    made, problems = after(PASSES[name], before)
    assert matches(describe(before), GOLDEN / f"{name}_before.txt")
    assert matches(describe(made) + "".join(f"{problem}\n" for problem in problems), GOLDEN / f"{name}_after.txt")


@pytest.mark.parametrize("name", EXAMPLES)
def test_pass_keeps_the_meaning(name: str):
    """Of all that it does not refuse."""
    before = EXAMPLES[name]()
    made, _ = after(PASSES[name], before)
    kept = [n for n, view in made.items() if not any(isinstance(base, Opaque) for base in in_order([view]))]
    expected, actual = (meaning({n: results[n] for n in kept}, inputs_of(before)) for results in (before, made))
    for n in kept:
        np.testing.assert_allclose(actual[n], expected[n], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_pass_has_nothing_left_to_do(name: str):
    """Run again, it changes nothing."""
    made, _ = after(PASSES[name], EXAMPLES[name]())
    assert describe(after(PASSES[name], made)[0]) == describe(made)
