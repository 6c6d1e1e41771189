"""What random checks have in common: outcomes, failures, and a command line of a count and a seed."""

import argparse
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from rich.progress import track

T = TypeVar("T")


@dataclass
class Found:
    """How often what came out, and every case that must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{count:7} {outcome}" for outcome, count in sorted(self.outcomes.items())]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return "\n".join([*lines, *self.failures, f"{len(self.failures)} failures; peak memory {peak:.0f} MiB"])


def shown(cases: Iterable[T]) -> Iterable[T]:
    """The cases, with a bar of progress on a terminal."""
    return track([*cases], "cases", disable=not sys.stdout.isatty())


def command_line(check: Callable[..., Found], *, count: int, names: Iterable[str] = ()) -> None:
    """`python -m` of a module of checks: `check(count, seed)`, where there are names also of which."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    if names:
        parser.add_argument("names", nargs="*", help="all")
    options = vars(parser.parse_args())
    if names:
        options["names"] = options["names"] or [*names]
    found = check(**options)
    sys.stdout.write(f"{found}\n")
    sys.exit(bool(found.failures))
