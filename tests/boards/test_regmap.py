"""The register map in other languages is the map."""

import json
import re
import subprocess
import xml.etree.ElementTree as ET

import pytest

from patchloom.boards import regmap
from patchloom.compiler.machine.registers import REGISTERS, VERSION, Access, Control, ErrorCode, Interrupt, Status

VALUES = regmap.known(0x1234_5678, 0x4444_4444_3333_3333_2222_2222_1111_1111)
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-c")


@pytest.mark.parametrize("language", [("-x", "c", "-std=c99"), ("-x", "c++", "-std=c++11")], ids=lambda words: words[1])
def test_c_header_is_the_map(language, tmp_path):
    """As compilers read it, without a warning; one that is not equal is an error."""
    (tmp_path / "regs.h").write_text(regmap.c_header(VALUES))
    expected = {f"REG_{name}": register.offset for name, register in REGISTERS.items()}
    for prefix, members in (("CONTROL", Control), ("STATUS", Status), ("IRQ_STATUS", Interrupt)):
        expected |= {f"{prefix}_{member.name}": int(member) for member in members}
    expected |= {f"ERROR_CODE_{code.name}": int(code) for code in ErrorCode}
    expected |= {"VERSION": VERSION, "FINGERPRINT": 0x1234_5678, "DIGEST_0": 0x1111_1111, "DIGEST_3": 0x4444_4444}
    checks = [
        f"typedef char check{i}[PATCHLOOM_{name.upper()} == {value}u ? 1 : -1];"
        for i, (name, value) in enumerate(expected.items())
    ]
    source = tmp_path / "check.c"
    for text, result in (("\n".join(checks), 0), (checks[3].replace("== ", "== 1 + "), 1)):
        source.write_text(f'#include "regs.h"\n#include "regs.h"\n{text}\n')
        done = subprocess.run(["gcc", *language, *STRICT, source], cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == result, done.stderr.decode()


def test_verilog_header_says_what_the_c_header_says():
    found = [
        re.findall(pattern, text, re.MULTILINE)
        for pattern, text in (
            (r"^#define (\w+) 0x([0-9a-f]+)u", regmap.c_header(VALUES)),
            (r"^`define (\w+) 32'h([0-9a-f]+)$", regmap.verilog_header(VALUES)),
        )
    ]
    assert found[0] == found[1]
    assert len(found[0]) > len(REGISTERS)


def test_json_is_the_map():
    text = json.loads(regmap.json_text(VALUES))
    rows = {row["name"]: row for row in text["registers"]}
    assert {name: row["offset"] for name, row in rows.items()} == {name: r.offset for name, r in REGISTERS.items()}
    assert rows["status"]["flags"] == {flag.name: int(flag) for flag in Status}
    assert rows["error_code"]["codes"]["WATCHDOG"] == ErrorCode.WATCHDOG
    assert rows["digest_1"]["reset"] == 0x2222_2222


# CMSIS-SVD 1.3: elements in the order that its schema demands, those that must be there with a mark.
ORDER = {
    "device": "name! series version! description! licenseText cpu addressUnitBits! width! size access resetValue "
    "resetMask peripherals!",
    "peripheral": "name! version description groupName baseAddress! size access addressBlock interrupt registers",
    "addressBlock": "offset! size! usage!",
    "register": "name! displayName description addressOffset! size access protection resetValue resetMask dataType "
    "modifiedWriteValues writeConstraint readAction fields",
    "field": "name! description bitOffset! bitWidth access modifiedWriteValues writeConstraint readAction "
    "enumeratedValues",
    "enumeratedValue": "name! description value!",
}


def test_svd_keeps_the_schemas_order():
    root = ET.fromstring(regmap.svd(VALUES, 0xA000_0000))
    seen = set()
    for element in root.iter():
        if element.tag in ORDER:
            seen.add(element.tag)
            names = [child.tag for child in element]
            allowed = [word.rstrip("!") for word in ORDER[element.tag].split()]
            assert names == [name for name in allowed if name in names], element.tag
            assert {word[:-1] for word in ORDER[element.tag].split() if word.endswith("!")} <= set(names)
    assert seen == set(ORDER)


def test_svd_is_the_map():
    root = ET.fromstring(regmap.svd(VALUES, 0xA000_0000))
    assert int(root.findtext(".//baseAddress"), 16) == 0xA000_0000
    found = {element.findtext("name"): element for element in root.iter("register")}
    assert list(found) == list(REGISTERS)
    for name, register in REGISTERS.items():
        element = found[name]
        assert int(element.findtext("addressOffset"), 16) == register.offset
        assert (element.findtext("access") == "read-only") == (register.access == Access.READ)
        assert (element.findtext("modifiedWriteValues") == "oneToClear") == (register.access == Access.CLEAR)
        bits = [(int(f.findtext("bitOffset")), int(f.findtext("bitWidth"))) for f in element.iter("field")]
        assert all(first + width <= register.width for first, width in bits)
    assert int(found["fingerprint"].findtext("resetValue"), 16) == 0x1234_5678
