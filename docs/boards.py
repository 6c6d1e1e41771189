"""Writes the tables of docs/boards.md: `python -m docs.boards`."""

import json
from collections.abc import Iterator
from typing import Any

from benchmarks import vendor
from benchmarks.bitstreams import RESULTS
from benchmarks.boards import RESULTS as SIZED
from benchmarks.soc import RESULTS as SIMULATED
from docs.page import DOCS, replaced
from patchloom.boards.board import BOARDS

PAGE = DOCS / "boards.md"


def board_table() -> Iterator[str]:
    yield "| board | device | LUT, FF, DSP, BRAM | clock | memory, as the machine sees it | link | tools |"
    yield "|---|---|---|--:|---|---|---|"
    for found in BOARDS.values():
        device, memory = found.device, found.memory
        sizes = f"{device.luts:,}, {device.ffs:,}, {device.dsps:,}, {device.brams:,}"
        port = f"{memory.kind}; {memory.bus_width} bits, {memory}"
        yield (
            f"| {found.title} (`{found.name}`) | {device.part} | {sizes} | {found.clock_hz / 1e6:.4g} MHz | {port} "
            f"| {found.link} | {found.tools} |"
        )


def source_table() -> Iterator[str]:
    yield "| board | device's numbers | clock | memory | what was run |"
    yield "|---|---|---|---|---|"
    for found in BOARDS.values():
        told = found.device.source, found.clock_source, found.memory.source, found.proven
        yield f"| `{found.name}` | {' | '.join(told)} |"


def simulated_table() -> Iterator[str]:
    document = json.loads(SIMULATED.read_text())
    yield "| board | model | task | cycles | predicted | off by | elements | as the interpreter |"
    yield "|---|---|---|--:|--:|--:|--:|---|"
    for row in document["rows"]:
        cells = f"{row['cycles']:,} | {row['predicted_cycles']:,} | {row['cycles_beyond_prediction_percent']:.2f} %"
        same = "every element" if row["identical"] else "**different**"
        yield f"| `{row['board']}` | {row['workload']} | {row['task']} | {cells} | {row['elements']:,} | {same} |"


def bitstream_table() -> Iterator[str]:
    if not RESULTS.exists():
        yield "None is committed yet."
        return
    known = json.loads(RESULTS.read_text())
    yield "| board | seed | clocks, MHz (asked) | LUT | FF | MULT18X18D | DP16KD | size | synthesis, routing | date |"
    yield "|---|--:|---|--:|--:|--:|--:|--:|--:|---|"
    for name, seeds in known.items():
        for seed, result in seeds.items():
            yield f"| `{name}` | {seed} | {_result(result)} | {result['date']} |"


def _result(result: dict[str, Any]) -> str:
    if "missed" in result:
        return f"missed: {result['missed']} | | | | | |"
    clocks = ", ".join(f"{c['name']} {c['mhz']:.1f} ({c['asked']:g})" for c in result["clocks"])
    used = [f"{result['used'][kind][0]:,}" for kind in ("TRELLIS_COMB", "TRELLIS_FF", "MULT18X18D", "DP16KD")]
    seconds = f"{result['synthesis_seconds']} s, {result['seconds']} s"
    return " | ".join([clocks, *used, f"{result['bytes']:,} B", seconds])


def vendor_table() -> Iterator[str]:
    if not vendor.RESULTS.exists():
        yield "No count is committed yet."
        return
    yield "| board | top | LUT | FF | DSP48 | RAMB36 | pyosys | date |"
    yield "|---|---|--:|--:|--:|--:|---|---|"
    for name, made in json.loads(vendor.RESULTS.read_text()).items():
        used = " | ".join(f"{made['used'][kind]:,} of {limit:,}" for kind, limit in made["limits"].items())
        yield f"| `{name}` | `{made['top']}` | {used} | {made['pyosys']} | {made['date']} |"


def frames_table() -> Iterator[str]:
    """Frames a second; the memory's figures are those of the table of sources."""
    models: dict[str, Any] = json.loads(SIZED.read_text())["models"]
    yield "| board | memory, and where its figures are from | " + " | ".join(models) + " |"
    yield "|---|---|" + "---|" * len(models)
    for name, found in BOARDS.items():
        figures = f"{found.memory} ({found.memory.source})"
        yield f"| `{name}` | {figures} | " + " | ".join(_frames(boards.get(name)) for boards in models.values()) + " |"


def _frames(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not measured"
    if "refused" in result:
        return result["refused"].partition("; try")[0]
    config, rates = result["config"], result["frames_per_second"]
    each = ", ".join(f"{rate:.3g}" + (f" {task}" if len(rates) > 1 else "") for task, rate in rates.items())
    array = f"{config.get('inputs', 16)} x {config.get('outputs', 16)}"
    return f"**{each}** ({array}; {result['limit'].partition(':')[0]}{_mapped(result)})"


def _mapped(result: dict[str, Any]) -> str:
    """LUT, FF, DSP, BRAM of machine and SoC as Yosys mapped them."""
    if "mapped" not in result:
        return "; not mapped"
    took = [result["mapped"]["machine"][kind] + result["mapped"]["soc"][kind] for kind in ("lut", "ff", "dsp", "bram")]
    return "; " + ", ".join(f"{count:,.10g}" for count in took)


TABLES = {
    "boards": board_table,
    "sources": source_table,
    "simulated": simulated_table,
    "bitstreams": bitstream_table,
    "vendor": vendor_table,
    "frames": frames_table,
}


def written(page: str) -> str:
    for name, table in TABLES.items():
        page = replaced(page, f"docs.boards: {name}", "\n".join(table()) + "\n")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
