"""What HLS and RTL share, as a C++ header; and a project for Vitis HLS, with the kernels, a Program and its goldens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine import fixed, tables
from patchloom.compiler.machine.commands import (
    COMMAND_BITS,
    FIELDS,
    Kind,
    Post,
    Prologue,
    Queue,
    Residual,
    RowScale,
    Space,
    Stationary,
)
from patchloom.compiler.machine.config import BIAS_WIDTH, ELEMENT_WIDTH, PARAMETER_BITS, Config
from patchloom.compiler.machine.fixed import TABLES, Table, operand_limits
from patchloom.compiler.machine.program import Program
from patchloom.compiler.machine.registers import ErrorCode
from patchloom.hw.bundles import FACTOR_WIDTH
from patchloom.hw.folder import files_under, write_folder
from patchloom.hw.statistics import MEAN_WIDTH, SQUARES_WIDTH, TOTAL_WIDTH
from patchloom.hw.tables import DIFFERENCE_WIDTH

KERNELS = Path(__file__).parent / "kernels"
ENUMS: tuple[type[IntEnum], ...] = (
    Kind, Space, Prologue, Stationary, Queue, RowScale, Residual, Post, ErrorCode,
)  # fmt: skip
DERIVED = ("banks", "beat_bytes", "tile_beats", "parameter_beats")
FIXED = (
    "EPILOGUE_WIDTH", "EXP2_GUARD", "ROW_ONE", "SCORE_FRACTION", "SUM_WIDTH", "VARIANCE_WIDTH", "MAX_SHIFT",
    "MEAN_GUARD",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Golden:
    """A frame of one task, and what the machine makes of it."""

    task: int
    input: NDArray[np.int16] = field(repr=False)
    output: NDArray[np.int16] = field(repr=False)
    saturations: int


def sources() -> dict[str, str]:
    """The hand-written files by name."""
    return {file.name: file.read_text() for file in sorted(KERNELS.iterdir()) if file.is_file()}


# --- Project ---


def write_project(program: Program, goldens: Sequence[Golden], ap_types: Path, path: Path) -> None:
    """A directory that `vitis_hls -f vitis_hls.tcl` and `make` build, whole or not at all.

    `ap_types` holds the headers for `make`, which are copied. Raises `ProjectError` if `path` holds anything.
    """
    headers = {f"ap_types/{f.relative_to(ap_types).as_posix()}": f.read_bytes() for f in files_under(ap_types)}
    write_folder(path, _files(program, goldens) | headers)


def _files(program: Program, goldens: Sequence[Golden]) -> dict[str, str | bytes]:
    files: dict[str, str | bytes] = {name: text for name, text in sources().items() if name != "library.cpp"}
    files |= {"facts.hpp": facts(program.config), "program.bin": program.image}
    lines = []
    for number, golden in enumerate(goldens):
        names = f"input{number}.bin", f"output{number}.bin"
        files |= {names[0]: golden.input.astype("<i2").tobytes(), names[1]: golden.output.astype("<i2").tobytes()}
        lines.append(f'    {{{golden.task}, "{names[0]}", "{names[1]}", {golden.saturations}}},')
    return files | {"project.hpp": _sizes(program), "goldens.hpp": GOLDENS.format("\n".join(lines))}


def _sizes(program: Program) -> str:
    """Depths of the memory ports, for co-simulation."""
    sizes = {
        "PROGRAM": len(program.image),
        "INPUT": max(task.input_bytes for task in program.tasks),
        "OUTPUT": max(task.output_bytes for task in program.tasks),
    }
    lines = [f"constexpr int {name}_WORDS = {-(-size // program.config.beat_bytes)};" for name, size in sizes.items()]
    return "\n".join(["// Generated: what the Program needs of memory, in bus words.", "#pragma once", "", *lines, ""])


GOLDENS = """\
// Generated: frames, and what the reference interpreter makes of them.
#pragma once

namespace patchloom {{

struct Golden {{
    int task;
    const char *input, *output;
    unsigned saturations;
}};

const Golden GOLDENS[] = {{
{}
}};

}}  // namespace patchloom
"""


# --- What the kernels share with the RTL ---


def facts(config: Config) -> str:
    """`facts.hpp`: sizes, formats, enumerations, the command encoding, the tables."""
    parts = (_constants(config), _enums(), _command(), *map(_table, TABLES))
    body = "\n\n".join("\n".join(part) for part in parts)
    head = "// Generated: sizes, formats, command encoding and tables, as the RTL has them.\n#pragma once\n"
    return f'{head}\n#include "words.hpp"\n\nnamespace patchloom {{\n\n{body}\n\n}}  // namespace patchloom\n'


def constants(config: Config) -> dict[str, int]:
    """Every number that a kernel may name."""
    sizes = {f.name: int(getattr(config, f.name)) for f in fields(config)}
    sizes |= {name: getattr(config, name) for name in DERIVED}
    products = config.weight_width + config.activation_width + (config.inputs - 1).bit_length()
    limits = {
        f"OPERAND_{side}_{width}": value
        for width in (8, ELEMENT_WIDTH)
        for side, value in zip(("LOW", "HIGH"), operand_limits(width), strict=True)
    }
    return (
        {name.upper(): value for name, value in sizes.items()}
        | {name: getattr(fixed, name) for name in FIXED}
        | limits
        | {
            "PARTIAL_WIDTH": products,
            "ELEMENT_WIDTH": ELEMENT_WIDTH,
            "PARAMETER_BITS": PARAMETER_BITS,
            "BIAS_WIDTH": BIAS_WIDTH,
            "MULTIPLIER_WIDTH": FIELDS["multiplier"][0],
            "COMMAND_BITS": COMMAND_BITS,
            "DEPTH_MAX": (1 << FIELDS["depth"][0]) - 1,
            "COLUMNS_MAX": (1 << FIELDS["columns"][0]) - 1,
            "FACTOR_WIDTH": FACTOR_WIDTH,
            "ROW_FRACTION": fixed.ROW_ONE.bit_length() - 1,
            "TOTAL_WIDTH": TOTAL_WIDTH,
            "SQUARES_WIDTH": SQUARES_WIDTH,
            "MEAN_WIDTH": MEAN_WIDTH,
            "DIFFERENCE_WIDTH": DIFFERENCE_WIDTH,
            "TABLE_ENTRIES": tables.ENTRIES,
            "TABLE_ENTRY_BITS": tables.ENTRY_BITS,
            "TABLE_FRACTION_BITS": tables.FRACTION_BITS,
            "TABLE_MIDDLE": tables.MIDDLE,
            "TABLE_LAST": tables.LAST,
            "TABLE_BASE_WIDTH": tables.ENTRY["base"].width,
            "TABLE_SLOPE_WIDTH": tables.ENTRY["slope"].width,
        }
    )


def _constants(config: Config) -> Iterator[str]:
    for name, value in constants(config).items():
        yield f"constexpr int {name} = {value};"
    yield f"constexpr uint32_t FINGERPRINT = {config.fingerprint:#x};"


def _enums() -> Iterator[str]:
    for enum in ENUMS:
        for value in enum:
            yield f"constexpr int {enum.__name__.upper()}_{value.name} = {int(value)};"


def _command() -> Iterator[str]:
    yield "struct Command {"
    for name, (bits, signed) in FIELDS.items():
        yield f"    ap_{'' if signed else 'u'}int<{bits}> {name};"
    yield "};"
    yield ""
    yield "typedef ap_uint<COMMAND_BITS> CommandBits;"
    yield ""
    yield "inline Command decode(const CommandBits &bits) {"
    yield "    Command c;"
    position = 0
    for name, (bits, _) in FIELDS.items():
        yield f"    c.{name} = bits.range({position + bits - 1}, {position});"
        position += bits
    yield "    return c;"
    yield "}"


def _table(table: Table) -> Iterator[str]:
    """Base and slope of each interval between knots."""
    name, size = table.name.upper(), len(table.base)
    yield f"constexpr int {name}_INDEX_BITS = {(size - 1).bit_length()};"
    yield f"constexpr int {name}_FRACTION_BITS = {table.fraction_bits};"
    yield f"constexpr int {name}_BASE_WIDTH = {table.base_width};"
    for part, kind, values in (
        ("BASE", f"ap_uint<{table.base_width}>", table.base),
        ("SLOPE", f"ap_int<{table.slope_width}>", table.slope),
    ):
        yield f"static const {kind} {name}_{part}[{size}] = {{"
        for i in range(0, size, 16):
            yield f"    {', '.join(map(str, values[i : i + 16]))},"
        yield "};"
