"""Writes the tables of docs/boards.md: `python -m docs.boards`."""

import json
from collections.abc import Iterator
from typing import Any

from benchmarks import vendor
from benchmarks.bitstreams import RESULTS
from docs.page import DOCS, replaced
from patchloom.boards.board import BOARDS

PAGE = DOCS / "boards.md"


def board_table() -> Iterator[str]:
    yield "| board | device | LUT, FF, DSP, BRAM | clock | memory, as the machine sees it | link | tools |"
    yield "|---|---|---|--:|---|---|---|"
    for found in BOARDS.values():
        device, memory = found.device, found.memory
        sizes = f"{device.luts:,}, {device.ffs:,}, {device.dsps:,}, {device.brams:,}"
        port = (
            f"{memory.kind}; {memory.bus_width} bits, {memory.cycles_per_beat} cycles a beat, latency {memory.latency}"
        )
        yield (
            f"| {found.title} (`{found.name}`) | {device.part} | {sizes} | {found.clock_hz / 1e6:.4g} MHz | {port} "
            f"| {found.link} | {found.tools} |"
        )


def source_table() -> Iterator[str]:
    yield "| board | device's numbers | clock | latency | cycles a beat | what was run |"
    yield "|---|---|---|---|---|---|"
    for found in BOARDS.values():
        memory = found.memory
        told = (
            found.device.source,
            found.clock_source,
            memory.latency_source,
            memory.cycles_per_beat_source,
            found.proven,
        )
        yield f"| `{found.name}` | {' | '.join(told)} |"


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


TABLES = {
    "boards": board_table,
    "sources": source_table,
    "bitstreams": bitstream_table,
    "vendor": vendor_table,
}


def written(page: str) -> str:
    for name, table in TABLES.items():
        page = replaced(page, f"docs.boards: {name}", "\n".join(table()) + "\n")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
