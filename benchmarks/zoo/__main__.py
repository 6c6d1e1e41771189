"""Measures the zoo: `python -m benchmarks.zoo [--rtl] [family or row ...]`, results/zoo.json.

Its packages: `make zoo`, or `pip install '.[zoo]'`.
"""

import argparse
import json
import multiprocessing
import os
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.zoo.families import rows
from benchmarks.zoo.measure import Result, measure

RESULTS = Path(__file__).parents[1] / "results" / "zoo.json"


def main(names: list[str], *, rtl: bool, jobs: int) -> None:
    chosen = {row.name: (family, row) for family, row in rows(*names)}
    verdicts: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        made = {pool.submit(measured, family, name, rtl=rtl): name for name, (family, _) in chosen.items()}
        for done in as_completed(made):
            found, (family, row) = done.result(), chosen[made[done]]
            verdicts[found.verdict] += 1
            print(
                f"{row.name}: {found.verdict} {found.decibels or found.reasons[:1]} {found.rtl} {found.seconds} s",
                flush=True,
            )
            keep(row.name, {"family": family, "stands_for": row.stands_for, "heart": row.heart} | asdict(found))
    print(dict(verdicts))


def measured(family: str, name: str, *, rtl: bool) -> Result:
    """In a process of its own; modules do not travel."""
    warnings.simplefilter("ignore")
    [(_, row)] = [found for found in rows(family) if found[1].name == name]
    return measure(row, rtl=rtl)


def keep(name: str, found: dict[str, Any]) -> None:
    """With the results of rows measured before; readers never see half a file."""
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    known[name] = found | {"date": datetime.now(UTC).date().isoformat()}
    beside = RESULTS.with_suffix(".new")
    beside.write_text(
        json.dumps({"command": "python -m benchmarks.zoo", "rows": dict(sorted(known.items()))}, indent=1) + "\n"
    )
    beside.replace(RESULTS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtl", action="store_true", help="run what compiles on the RTL, too")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="rows at once")
    parser.add_argument("names", nargs="*", help="families or rows; all, if none is named")
    arguments = parser.parse_args()
    main(arguments.names, rtl=arguments.rtl, jobs=arguments.jobs)
