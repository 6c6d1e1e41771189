"""Writes docs/models.md from benchmarks/results/zoo.json: `python -m docs.models`."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.zoo import systems
from benchmarks.zoo.families import FAMILIES
from benchmarks.zoo.measure import FLOORS
from docs.page import DOCS, replaced

PAGE, FOLDER = DOCS / "models.md", Path(__file__).parents[1] / "benchmarks" / "results"
RESULTS, REAL = FOLDER / "zoo.json", FOLDER / "real.json"
Found = dict[str, Any]
SHOWN = 2  # reasons of a row
PLENTY = 1.3  # of the model's own MACs


def results() -> dict[str, Found]:
    """By row."""
    found: dict[str, Found] = json.loads(RESULTS.read_text())["rows"]
    return found


def summary() -> Iterator[str]:
    rows = results()
    verdicts = ("compiles", "refused", "crash", "slow", "broken")
    yield f"| family | rows | {' | '.join(verdicts)} |"
    yield f"|---|{'---|' * (len(verdicts) + 1)}"
    for family in (*FAMILIES, ""):
        counts = Counter(found["verdict"] for found in rows.values() if family in ("", found["family"]))
        cells = (counts[verdict] or "" for verdict in verdicts)
        yield f"| {family or 'all'} | {counts.total()} | {' | '.join(map(str, cells))} |"


def findings() -> Iterator[str]:
    """Rows that compile and miss a floor, and those that multiply more than their model."""
    yield "| row | below its floor |"
    yield "|---|---|"
    for name, found in results().items():
        misses = [
            f"{at} {found['decibels'][at]} dB"
            for at, floor in FLOORS.items()
            if found["decibels"].get(at, floor) < floor
        ]
        share = found["compiled_macs"] / max(found["macs"], 1)
        if share > PLENTY and found["macs"]:
            misses.append(f"{share:.2f} times the model's MACs")
        if found["rtl"] == "differs":
            misses.append("the RTL gives other values")
        if misses:
            yield f"| {name} | {'; '.join(misses)} |"


def reasons() -> Iterator[str]:
    """What stands in the way most often."""
    rows: dict[str, set[str]] = {}
    for name, found in results().items():
        for reason in found["reasons"] if found["verdict"] == "refused" else ():
            rows.setdefault(kind(reason), set()).add(name)
    yield "| reason | rows |"
    yield "|---|---|"
    for reason, names in sorted(rows.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        if len(names) > 2:
            yield f"| {cell(reason)} | {len(names)} |"


def of_systems(which: list[systems.System]) -> Iterator[str]:
    rows = results()
    yield "| system | what it needs | result | |"
    yield "|---|---|---|---|"
    for system in which:
        made = "<br>".join(f"{name.partition('/')[2]}: {result(rows[name])}" for name in system.rows) or "not measured"
        hearts = dict.fromkeys(rows[name]["heart"] for name in system.rows)
        remarks = "; ".join(filter(None, (*hearts, system.says)))
        yield f"| {system.name} | {system.needs} | {made} | {cell(remarks)} |"


def real() -> Iterator[str]:
    """At their real sizes."""
    content = json.loads(REAL.read_text())
    machine = f"array on `{content['board']}` | cycles | frames a second | MAC utilisation | limited by"
    yield f"| model | parameters | MACs | to compile | MACs compiled | commands | {machine} |"
    yield f"|---|{'--:|' * 5}---|{'--:|' * 3}---|"
    for name, found in content["models"].items():
        took = f"{found['compile_seconds']} s, {found['compile_peak_mib']:,} MiB" if "compile_seconds" in found else ""
        sizes = [name, f"{found['parameters']:,}", f"{found['macs']:,}", took]
        yield f"| {' | '.join((*sizes, *on_board(found)))} |"


def on_board(found: Found) -> list[str]:
    if "refused" in found:
        return ["", "", f"refused: {cell('; '.join(found['refused']))}", *[""] * 4]
    counts = [f"{found[key]:,}" for key in ("compiled_macs", "commands")]
    rate = [f"{found['cycles']:,}", str(found["frames_per_second"]), f"{found['utilisation']:.1%}"]
    return [*counts, found["array"], *rate, cell(found["limit"])]


def of_family(family: str) -> Iterator[str]:
    yield "| row | stands for | result | w8a8 | w16a16 | MACs | of the model's | cycles | RTL |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, found in results().items():
        if found["family"] == family:
            yield f"| {name.partition('/')[2]} | {cell(found['stands_for'])} | {' | '.join(figures(found))} |"


def figures(found: Found) -> list[str]:
    if found["verdict"] != "compiles":
        return [result(found), *[""] * 6]
    share = f"{found['compiled_macs'] / found['macs']:.2f}" if found["macs"] else ""
    decibels = [f"{found['decibels'][at]} dB" if at in found["decibels"] else "refused" for at in FLOORS]
    return ["compiles", *decibels, f"{found['compiled_macs']:,}", share, f"{found['cycles']:,}", found["rtl"]]


def result(found: Found) -> str:
    if found["verdict"] == "compiles":
        at, decibels = next(iter(found["decibels"].items()))
        return f"compiles, {decibels} dB at {at}, {found['cycles']:,} cycles"
    kinds = list(dict.fromkeys(kind(reason) for reason in found["reasons"]))
    more = f"; {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
    return cell(f"{found['verdict']}: {'; '.join(kinds[:SHOWN])}{more}")


def kind(reason: str) -> str:
    """What is refused and why, without where and of which shapes."""
    text = re.sub(
        r" in '[^']*'( and \d+ more like '[^']*')?| at [\w./-]+:\d+| of \d+x[\dx]*(, [\dx]+)*(?=:)", "", reason
    )
    return re.sub(r"\d+x[\dx]+", "..", text)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "summary": summary,
    "findings": findings,
    "reasons": reasons,
    "real": real,
    "systems": lambda: of_systems(systems.MODELS),
    "techniques": lambda: of_systems(systems.TECHNIQUES),
    **{family: lambda family=family: of_family(family) for family in FAMILIES},  # type: ignore[misc]
}


def written(page: str) -> str:
    for name, table in TABLES.items():
        page = replaced(page, f"docs.models: {name}", "\n".join(table()) + "\n")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
