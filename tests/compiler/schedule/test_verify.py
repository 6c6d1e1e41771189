"""What the scheduler accepts the verifier accepts, for any machine; what does not fit, does as it is told to."""

import re
from contextlib import suppress
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from patchloom.compiler.machine.config import Config
from patchloom.compiler.quantise import Precision, Quantised, quantise
from patchloom.compiler.schedule import FitError, ScheduleError, schedule
from tests.compiler.graphs import random_graph, samples


@st.composite
def configs(draw: st.DrawFn) -> Config:
    lanes, words = draw(st.sampled_from([4, 8, 16])), draw(st.sampled_from([1, 2, 4]))
    sizes = {
        "inputs": lanes * draw(st.sampled_from([1, 2, 4])),
        "outputs": lanes * draw(st.sampled_from([1, 2, 3, 4])),
        "weight_width": draw(st.sampled_from([8, 16])),
        "activation_width": draw(st.sampled_from([8, 16])),
        "accumulator_width": draw(st.integers(24, 40)),
        "max_rows": draw(st.sampled_from([16, 23, 256])),
        "scratchpad_chunks": draw(st.sampled_from([64, 256, 1024, 1 << 14])),
        "statistics_rows": draw(st.sampled_from([16, 100, 512])),
        "max_experts": draw(st.integers(4, 16)),
        "max_top_k": draw(st.integers(1, 4)),
        "command_depth": draw(st.sampled_from([16, 64, 256])),
        "bus_width": draw(st.sampled_from([32, 64, 128, 256, 512])),
    }
    return Config(lanes=lanes, word_beats=words, **sizes)


PRECISIONS = ("w4a8", "w8a8", "w8a16", "w16a16")


@settings(max_examples=60, deadline=None)
@given(config=configs(), seed=st.integers(0, 1 << 30), precision=st.sampled_from(PRECISIONS))
def test_what_is_scheduled_verifies(config, seed, precision):
    """`schedule` verifies what it returns: a `ProgramError` would be the two disagreeing."""
    graph = random_graph(seed)
    quantised = quantise([graph], samples(graph, 2), Precision.parse(precision))
    with suppress(FitError, ScheduleError):
        schedule(quantised, config)


def problems(quantised: Quantised, config: Config) -> dict[str, list[dict[str, int]]]:
    """What does not fit, and the sizes of a Config that are told to try for it."""
    try:
        schedule(quantised, config)
    except FitError as error:
        lines = [
            re.fullmatch(r"does not fit: (.*) needs \d+, has \d+; try (.*)", line) for line in str(error).splitlines()
        ]
        return {
            line[1]: [sizes(remedy) for remedy in re.findall(r"Config\((.*?)\)", line[2])] for line in lines if line
        }
    return {}


def sizes(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (size.split("=") for size in text.split(", "))}


@settings(max_examples=60, deadline=None)
@given(config=configs(), seed=st.integers(0, 1 << 30), precision=st.sampled_from(PRECISIONS))
def test_each_remedy_is_one(config, seed, precision):
    graph = random_graph(seed)
    quantised = quantise([graph], samples(graph, 2), Precision.parse(precision))
    with suppress(ScheduleError):
        for what, remedies in problems(quantised, config).items():
            for remedy in remedies:
                assert what not in problems(quantised, replace(config, **remedy)), remedy
