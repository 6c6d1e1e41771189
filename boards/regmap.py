"""The register map in the forms that other tools read: C header, with a driver; Verilog header, JSON, CMSIS-SVD."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from pathlib import Path

from patchloom.compiler.machine.registers import (
    DIGEST_BITS,
    MAGIC,
    REGISTERS,
    VERSION,
    Access,
    Control,
    ErrorCode,
    Interrupt,
    Register,
    Status,
    parts,
)

DRIVER = Path(__file__).parent / "templates" / "driver"
PREFIX = "PATCHLOOM"
WINDOW = 4096  # bytes of the slave's addresses
BITS: dict[str, type[IntFlag]] = {"control": Control, "status": Status, "irq_status": Interrupt}
CODES: dict[str, type[IntEnum]] = {"error_code": ErrorCode}
Known = Mapping[str, int]  # register -> value, of those whose reset value depends on the build


def known(fingerprint: int, digest: int) -> dict[str, int]:
    """What a build's own registers hold."""
    words = {name: digest >> 32 * i & 0xFFFF_FFFF for i, name in enumerate(parts("digest", DIGEST_BITS))}
    return {"fingerprint": fingerprint, **words}


def reset_value(register: Register, values: Known) -> int | None:
    return values.get(register.name, register.reset)


def constants(values: Known) -> Iterator[tuple[str, int, str]]:
    """(name, value, meaning) of all that a driver in C or Verilog must know, grouped by empty names."""
    for register in REGISTERS.values():
        yield f"REG_{register.name}", register.offset, f"{register.access.value}: {register.meaning}"
    yield "", 0, "Values of registers that never change"
    yield "MAGIC", MAGIC, ""
    yield "VERSION", VERSION, "major in the upper half, minor in the lower"
    for name, value in values.items():
        yield name, value, ""
    for name, members in (BITS | CODES).items():
        yield "", 0, f"Of register {name}"
        for member in members:
            yield f"{name}_{member.name}", int(member), ""


def c_header(values: Known) -> str:
    """C99 and C++: byte offsets, bits, codes as unsigned constants."""
    return _defines(values, "#", "0x{:x}u", f"{PREFIX}_REGS_H")


def verilog_header(values: Known) -> str:
    return _defines(values, "`", "32'h{:x}", f"{PREFIX}_REGS_VH")


def _defines(values: Known, mark: str, number: str, guard: str) -> str:
    lines = [
        "/* Generated: the register map, byte offsets within the AXI4-Lite window. */",
        *(f"{mark}ifndef {guard}", f"{mark}define {guard}", ""),
    ]
    for name, value, meaning in constants(values):
        if name:
            comment = f"  /* {meaning} */" if meaning and mark == "#" else ""
            lines.append(f"{mark}define {PREFIX}_{name.upper()} {number.format(value)}{comment}")
        else:
            lines += ["", f"/* {meaning}. */"]
    return "\n".join([*lines, "", f"{mark}endif", ""])


def json_text(values: Known) -> str:
    """One object a register, in the order of their offsets."""
    rows = []
    for r in REGISTERS.values():
        row = {"name": r.name, "offset": r.offset, "access": r.access.name.lower(), "bits": r.width}
        row |= {"reset": reset_value(r, values), "meaning": r.meaning}
        for key, table in (("flags", BITS), ("codes", CODES)):
            if r.name in table:
                row[key] = {member.name: int(member) for member in table[r.name]}
        rows.append(row)
    return json.dumps({"magic": MAGIC, "version": VERSION, "window": WINDOW, "registers": rows}, indent=1) + "\n"


def for_host(values: Known, base: int = 0) -> dict[str, str]:
    """Files for whoever drives the machine at an address: the map, and a driver in C with an example."""
    return {
        "patchloom_regs.h": c_header(values),
        "patchloom_regs.json": json_text(values),
        "patchloom_regs.svd": svd(values, base),
        **{file.name: file.read_text() for file in sorted(DRIVER.glob("*.[ch]"))},
    }


# --- CMSIS-SVD 1.3 ---

SVD_ACCESS = {access: "read-only" if access == Access.READ else "read-write" for access in Access}


def svd(values: Known, base: int = 0) -> str:
    """The machine as the only peripheral, at `base`, of a device; debuggers and code generators read it."""
    device = ET.Element("device", schemaVersion="1.3")
    _children(
        device, name="PATCHLOOM", version=f"{VERSION >> 16}.{VERSION & 0xFFFF}", description="Patchloom",
        addressUnitBits="8", width="32",
    )  # fmt: skip
    peripheral = ET.SubElement(ET.SubElement(device, "peripherals"), "peripheral")
    _children(peripheral, name="PATCHLOOM", description="The machine's registers", baseAddress=f"{base:#x}")
    block = ET.SubElement(peripheral, "addressBlock")
    _children(block, offset="0x0", size=f"{WINDOW:#x}", usage="registers")
    registers = ET.SubElement(peripheral, "registers")
    for register in REGISTERS.values():
        _svd_register(ET.SubElement(registers, "register"), register, values)
    ET.indent(device, " ")
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(device, encoding="unicode") + "\n"


def _svd_register(element: ET.Element, register: Register, values: Known) -> None:
    reset = reset_value(register, values)
    _children(
        element, name=register.name, description=register.meaning, addressOffset=f"{register.offset:#x}", size="32",
        access=SVD_ACCESS[register.access], resetValue=f"{reset or 0:#x}",
        resetMask=f"{0 if reset is None else 0xFFFF_FFFF:#x}",
    )  # fmt: skip
    if register.access == Access.CLEAR:
        _children(element, modifiedWriteValues="oneToClear")
    fields = ET.SubElement(element, "fields")
    for flag in BITS.get(register.name, ()):
        place = {"bitOffset": str(int(flag).bit_length() - 1), "bitWidth": "1"}
        _children(ET.SubElement(fields, "field"), name=str(flag.name), **place)
    if register.name not in BITS:
        field = ET.SubElement(fields, "field")
        _children(field, name=register.name, bitOffset="0", bitWidth=str(register.width))
        if register.name in CODES:
            _svd_codes(field, CODES[register.name])


def _svd_codes(field: ET.Element, codes: type[IntEnum]) -> None:
    values = ET.SubElement(field, "enumeratedValues")
    for code in codes:
        _children(ET.SubElement(values, "enumeratedValue"), name=code.name, value=str(int(code)))


def _children(element: ET.Element, **texts: str) -> None:
    for name, text in texts.items():
        ET.SubElement(element, name).text = text
