"""Measures the zoo: `python -m benchmarks.zoo [--rtl] [family or row ...]`, results/zoo.json.

Its packages: `make zoo`, or `pip install '.[zoo]'`.
"""

import argparse
import json
import warnings
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.zoo.families import rows
from benchmarks.zoo.measure import measure

RESULTS = Path(__file__).parents[1] / "results" / "zoo.json"


def main(names: list[str], *, rtl: bool) -> None:
    verdicts: Counter[str] = Counter()
    for family, row in rows(*names):
        found = measure(row, rtl=rtl)
        verdicts[found.verdict] += 1
        print(
            f"{row.name}: {found.verdict} {found.decibels or found.reasons[:1]} {found.rtl} {found.seconds} s",
            flush=True,
        )
        keep(row.name, {"family": family, "stands_for": row.stands_for, "heart": row.heart} | asdict(found))
    print(dict(verdicts))


def keep(name: str, found: dict[str, Any]) -> None:
    """With the results of rows measured before; readers never see half a file."""
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else {}
    if not found["rtl"] and found["verdict"] == "compiles":
        found["rtl"] = known.get(name, {}).get("rtl", "")
    known[name] = found | {"date": datetime.now(UTC).date().isoformat()}
    beside = RESULTS.with_suffix(".new")
    beside.write_text(json.dumps({"command": "python -m benchmarks.zoo", "rows": known}, indent=1) + "\n")
    beside.replace(RESULTS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtl", action="store_true", help="run what compiles on the RTL, too")
    parser.add_argument("names", nargs="*", help="families or rows; all, if none is named")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    main(arguments.names, rtl=arguments.rtl)
