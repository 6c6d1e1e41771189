"""The area model of `boards.estimate` beside Yosys: `python -m benchmarks.area_model`.

`measure [NAMES]` measures the machines of `POINTS` that the results do not have of today's RTL, a minute or more each;
`soc` what is around the machine on boards that LiteX builds for.
"""

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from patchloom.boards.area import measure, measure_soc, parts
from patchloom.boards.board import BOARDS, board
from patchloom.boards.description import Family
from patchloom.boards.estimate import FACTORS, SOC, UNITS, Factors, estimate, features
from patchloom.compiler.machine.config import Config
from patchloom.hw.cache import RTL, digest, sources

RESULTS = Path(__file__).parent / "results" / "area_points.json"
Floats = NDArray[np.floating[Any]]
Errors = tuple[str, str, list[float]]  # name, family, and by how much the model is wrong: LUT, FF, DSP, BRAM
KINDS = {"lut": 2, "ff": 3}  # and where they stand in an Area
SOC_COMMAND = "python -m benchmarks.area_model soc"
COMMAND = "python -m benchmarks.area_model measure"

_TINY = Config(
    inputs=4, outputs=4, lanes=4, bus_width=32, scratchpad_chunks=4096, scratchpad_copies=1, max_rows=64,
    statistics_rows=128, max_experts=4, max_top_k=2, command_depth=128,
)  # fmt: skip
POINTS: dict[str, dict[str, Config]] = {
    "4x4": {"ecp5": _TINY, "xc7": _TINY, "xcup": _TINY},
}
for name, sizes in {
    "8x8": {"inputs": 8, "outputs": 8, "bus_width": 64, "scratchpad_chunks": 24592, "max_experts": 16, "max_top_k": 4,
            "command_depth": 384, "max_rows": 129, "statistics_rows": 258},
    "12x4": {"inputs": 12, "max_experts": 8, "scratchpad_copies": 2, "scratchpad_chunks": 16384, "max_rows": 256},
    "8x16": {"inputs": 8, "outputs": 16, "lanes": 8, "bus_width": 128, "max_experts": 16, "scratchpad_chunks": 8192,
             "fifo_beats": 1024, "statistics_rows": 512},
    "16x8": {"inputs": 16, "outputs": 8, "lanes": 8, "bus_width": 128, "max_top_k": 4, "scratchpad_copies": 2,
             "command_depth": 512, "scratchpad_chunks": 24576},
    "4x12": {"outputs": 12, "max_rows": 200, "max_top_k": 1, "bus_width": 64, "scratchpad_chunks": 8192},
    "16x16": {"inputs": 16, "outputs": 16, "lanes": 16, "bus_width": 128, "scratchpad_chunks": 8192, "max_experts": 8,
              "max_rows": 128, "word_beats": 2},
    "8x12 by 4": {"inputs": 8, "outputs": 12, "epilogue_lanes": 4, "max_rows": 129, "statistics_rows": 258,
                  "max_experts": 16, "max_top_k": 4, "command_depth": 384, "scratchpad_chunks": 16384},
    "8x12 by 2": {"inputs": 8, "outputs": 12, "epilogue_lanes": 2, "max_rows": 129, "statistics_rows": 258,
                  "max_experts": 16, "max_top_k": 4, "command_depth": 384, "scratchpad_chunks": 20480,
                  "word_beats": 2, "fifo_beats": 4096},
    "8x8 by 4": {"inputs": 8, "outputs": 8, "epilogue_lanes": 4, "max_rows": 200, "statistics_rows": 400,
                 "bus_width": 128, "max_experts": 8, "scratchpad_chunks": 8192},
    "16x4": {"inputs": 16, "bus_width": 64, "max_experts": 8, "max_rows": 100, "scratchpad_chunks": 8192},
    "4x8 wide": {"outputs": 8, "weight_width": 16, "activation_width": 16, "max_rows": 256, "accumulator_width": 38},
}.items():  # fmt: skip
    POINTS[name] = {family: replace(_TINY, **sizes) for family in ("ecp5", "xc7", "xcup")}
POINTS["8x8 packed"] = {
    "xcup": replace(_TINY, inputs=8, outputs=8, lanes=8, bus_width=128, multipliers_packed=True, scratchpad_chunks=8192)
}


FAMILIES: tuple[Family, ...] = ("ecp5", "xc7", "xcup")
# Units of ECP5, where no hierarchy is kept, are in proportion to those of the others, by group.
GROUPS = {
    "operand": 0,
    "epilogue": 1,
    "accumulators": 1,
    "statistics": 1,
    "parameters": 1,
    "multipliers": 2,
    "tile": 2,
    "scratchpad": 3,
}
RIDGE = 3e-3  # of a factor whose size explains a whole unit by itself, against errors as shares of the unit


def points() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text())["points"] if RESULTS.exists() else []


# --- Measuring ---


def run(names: Sequence[str], families: Sequence[Family]) -> None:
    """Measure the machines that are not in the results, or were measured on another RTL."""
    rtl = digest(*sources(*RTL))
    for name, family in itertools.product(names, families):
        if family not in POINTS[name] or any(_place(p) == (name, family) and p["rtl"] == rtl for p in points()):
            continue
        begin, config = time.monotonic(), POINTS[name][family]
        point = {"name": name, "family": family, "date": datetime.now(UTC).date().isoformat(), "rtl": rtl}
        point |= {"config": asdict(config), "area": asdict(measure(config, family))}
        if family != "ecp5":
            point["parts"] = {part: list(asdict(area).values()) for part, area in parts(config, family).items()}
        point["seconds"] = round(time.monotonic() - begin)
        print(name, family, point["area"], point["seconds"], flush=True)
        kept = sorted([*(p for p in points() if _place(p) != (name, family)), point], key=_place)
        RESULTS.write_text(json.dumps({"command": COMMAND, "points": kept}, indent=1) + "\n")


def _place(point: Mapping[str, Any]) -> tuple[str, str]:
    return point["name"], point["family"]


def run_soc(names: Sequence[str]) -> None:
    """What is around the machine; on the other boards the processing system is, and the rest is an assumption."""
    document = json.loads(SOC.read_text())
    for name in names:
        found = asdict(measure_soc(board(name)))
        when = datetime.now(UTC).date().isoformat()
        document["boards"][name] = {**found, "source": f"Yosys, {SOC_COMMAND}, {when}"}
        print(name, found, flush=True)
        SOC.write_text(json.dumps(document, indent=1) + "\n")


# --- Fitting ---


def fitted(chosen: list[dict[str, Any]]) -> Factors:
    """Factors by family, kind, unit."""
    made = {family: _by_unit([p for p in chosen if p["family"] == family]) for family in FAMILIES if family != "ecp5"}
    ecp5 = [p for p in chosen if p["family"] == "ecp5"]
    return {"ecp5": {kind: _in_proportion(ecp5, kind, made["xcup"][kind]) for kind in KINDS}, **made}


def _by_unit(chosen: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Of a family whose hierarchy is kept."""
    rows = [features(Config(**p["config"]), p["family"]) for p in chosen]
    made: dict[str, dict[str, list[float]]] = {}
    for kind, column in KINDS.items():
        found = [_units(p["parts"], column) for p in chosen]
        made[kind] = {
            unit: _least_squares(
                np.array([row[unit] for row in rows], float), np.array([f[unit] for f in found], float)
            )
            for unit in UNITS
        }
    return made


def _units(parts: Mapping[str, Sequence[float]], column: int) -> dict[str, float]:
    """Of a measured hierarchy, by the names of `features`."""
    total: Counter[str] = Counter()
    for path, area in parts.items():
        names = [name for name in path.split(".")[1:] if name in UNITS]
        total[names[-1] if names else "rest"] += area[column]
    return total


def _in_proportion(chosen: list[dict[str, Any]], kind: str, like: dict[str, list[float]]) -> dict[str, list[float]]:
    """Another family's factors, those of each group scaled alike, near to the scale of the whole."""
    rows = []
    for p in chosen:
        row = [0.0] * 5
        for unit, sizes in features(Config(**p["config"]), p["family"]).items():
            row[GROUPS.get(unit, 4)] += float(np.dot(sizes, like[unit]))
        rows.append(row)
    matrix, found = np.array(rows), np.array([p["area"][kind] for p in chosen], float)
    whole = float(np.mean(found / matrix.sum(axis=1)))
    scales = whole + _ridge(matrix / found[:, None], 1 - matrix.sum(axis=1) * whole / found, 2e-3)
    return {
        unit: [factor * max(scales[GROUPS.get(unit, 4)], 0) for factor in factors] for unit, factors in like.items()
    }


def _ridge(matrix: Floats, target: Floats, weight: float) -> Floats:
    return np.linalg.solve(matrix.T @ matrix + weight * np.eye(matrix.shape[1]), matrix.T @ target)


def _least_squares(matrix: Floats, found: Floats) -> list[float]:
    """Factors, none negative, of least squared error as a share; small ones where the data leave a choice."""
    weights = 1 / np.maximum(found, found.max() / 10 + 1)
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-9) / (found.max() + 1)
    a, b = matrix / scale * weights[:, None], found * weights
    size = a.shape[1]
    x, _ = nnls(np.vstack([a, np.sqrt(RIDGE) * np.eye(size)]), np.concatenate([b, np.zeros(size)]))
    return [float(value) for value in x / scale]


# --- Telling ---


def errors(factors: Factors, chosen: list[dict[str, Any]]) -> list[Errors]:
    """As shares of what was measured."""
    out = []
    for p in chosen:
        made = estimate(Config(**p["config"]), p["family"], factors)
        out.append(
            (p["name"], p["family"], [getattr(made, k) / p["area"][k] - 1 for k in ("lut", "ff", "dsp", "bram")])
        )
    return out


def left_out() -> list[Errors]:
    """Each point by the factors that all others give, where its family has others."""
    every = points()
    several = [p for p in every if sum(q["family"] == p["family"] for q in every) > 1]
    return [e for p in several for e in errors(fitted([q for q in every if q is not p]), [p])]


def tell(title: str, rows: list[Errors]) -> None:
    print(title)
    for name, family, shares in sorted(rows, key=lambda row: row[1]):
        print(f"{family:6}{name:14}" + "".join(f"{share:+9.1%}" for share in shares))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", nargs="?", default="fit", choices=("fit", "measure", "soc"))
    parser.add_argument("names", nargs="*", help="of points, or of boards")
    parser.add_argument("--family", action="append", choices=FAMILIES, help="to measure; all if none is named")
    asked = parser.parse_args()
    if asked.verb == "measure":
        run(asked.names or list(POINTS), asked.family or FAMILIES)
    elif asked.verb == "soc":
        run_soc(asked.names or [name for name, found in BOARDS.items() if found.litex])
    factors = fitted(points())
    FACTORS.write_text(json.dumps({"command": "python -m benchmarks.area_model", "families": factors}, indent=1) + "\n")
    tell("fitted:       LUT, FF, DSP, BRAM", errors(factors, points()))
    tell("left one out: LUT, FF, DSP, BRAM", left_out())
