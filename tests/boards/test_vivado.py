"""Vivado's scripts in a Tcl whose vendor commands are replaced: whole, and with one thing wrong at a time."""

import re
from dataclasses import replace

import pytest

from patchloom.boards import regmap, sources, vivado
from patchloom.boards.board import BOARDS, board
from patchloom.boards.build import build
from patchloom.boards.core import wrapper
from patchloom.boards.sources import MACHINE
from patchloom.compiler.machine.config import Config
from tests.host.programs import copying

TclError = pytest.importorskip(
    "tkinter", reason="no Tcl interpreter in this Python: Vivado's scripts are not run"
).TclError
from tests.boards.vivado import Batch, Vivado  # noqa: E402

MODULE = f"module {MACHINE}(clk);\nendmodule\n"
ZYNQ = [name for name, found in BOARDS.items() if found.zynq]
CONFIG = Config(
    inputs=4, outputs=4, lanes=4, scratchpad_chunks=256, max_rows=16, command_depth=16, bus_width=32, fifo_beats=32
)  # fmt: skip


def config_of(name):
    return replace(CONFIG, bus_width=board(name).memory.bus_width)


@pytest.fixture(params=ZYNQ)
def project(request, tmp_path):
    """Board and folder; the machine's own Verilog stands for itself by its first line."""
    found = board(request.param)
    config = config_of(request.param)
    files = {
        vivado.SCRIPT: vivado.script(found, config),
        vivado.CONSTRAINTS: (vivado.TEMPLATES / vivado.CONSTRAINTS).read_text(),
        f"{MACHINE}.v": MODULE,
        f"{MACHINE}_axi.v": wrapper(config, 0),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return found, tmp_path


def run(folder, change=lambda text: text):
    made = Vivado(folder)
    made.run(change((folder / vivado.SCRIPT).read_text()))
    return made


def test_script_runs_whole(project):
    found, folder = project
    made = run(folder)
    assert made.part == found.device.part
    assert made.properties["project"] == {"board_part": found.zynq.board_part}
    assert {file.name for file in made.files} == {f"{MACHINE}.v", f"{MACHINE}_axi.v", vivado.CONSTRAINTS}
    assert made.made == [
        f"build/{name}" for name in ("utilization.rpt", "timing.rpt", "patchloom.bit", "patchloom.xsa")
    ]
    assert made.addresses["ps/Data"] == ("machine/s_axil/reg0", found.registers, regmap.WINDOW)
    assert made.addresses["machine/m_axi"][1:] == (found.memory.base, found.memory.bytes)
    assert made._through(f"ps/{found.zynq.register_port}") == "machine/s_axil"
    assert made._through("machine/m_axi") == f"ps/{found.zynq.memory_port}"
    rate = next(value for name, value in made.properties["ps"].items() if name.endswith("FREQMHZ"))
    assert float(rate) * 1e6 == pytest.approx(found.clock_hz, rel=1e-4)
    clocks = {pin for pin, number in made.nets.items() if number == made.nets["machine/clk"]}
    assert {"machine/clk", "resets/slowest_sync_clk", "to_memory/aclk", "to_registers/aclk"} < clocks
    assert len(clocks) == 7


# What is changed in the script (a pattern, what stands there instead), and what is said of it.
WRONG = {
    "pin": ("machine/irq", "machine/irqq", "no pin machine/irqq"),
    "vendor's pin": (r"resets/peripheral_reset\]", "resets/peripheral_rst]", "no pin resets/peripheral_rst"),
    "vendor's property": (r"CONFIG.NUM_SI", "CONFIG.NUM_SLAVES", "has no property CONFIG.NUM_SLAVES"),
    "vendor's cell": ("ip:smartconnect", "ip:smartconect", "no IP xilinx.com:ip:smartconect"),
    "interface": ("machine/m_axi\\]", "machine/m_axi0]", "no interface machine/m_axi0"),
    "segment": ("machine/s_axil/reg0", "machine/s_axil/Reg", "no address segment machine/s_axil/Reg"),
    "space": ("get_bd_addr_spaces ps/Data", "get_bd_addr_spaces ps/data", "no address space ps/data"),
    "open clock": (r"\[get_bd_pins machine/clk\] ", "", "machine/clk is open (clock)"),
    "open reset": (r"connect_bd_net [^\n]*machine/rst\]\n", "", "machine/rst is open (reset)"),
    "open interrupt": (r"connect_bd_net [^\n]*machine/irq[^\n]*\n", "", "is open (interrupt)"),
    "open bus": (r"connect_bd_intf_net [^\n]*machine/m_axi[^\n]*\n", "", "machine/m_axi is open"),
    "polarity": ("resets/peripheral_reset\\]", "resets/peripheral_aresetn]", "of kind resetn on a net of"),
    "two drivers": (r"(get_bd_pins machine/rst\])", r"\1 [get_bd_pins resets/peripheral_aresetn]", "has 2 drivers"),
    "connected twice": (r"(connect_bd_intf_net [^\n]*machine/s_axil\]\n)", r"\1\1", "is connected twice"),
    "two masters": (r"to_memory/S00_AXI\]", "to_memory/M00_AXI]", "must be a master and a slave"),
    "missing file": (rf"{MACHINE}\.v", f"{MACHINE}2.v", "no file "),
    "missing module": (rf"\[file join \$here {MACHINE}\.v\] ", "", f"no module {MACHINE} in the sources"),
    "wrong module": (r"-reference \w+", "-reference patchloom_axis", "no module patchloom_axis"),
    "closed port": (r"CONFIG\.\w*USE_\w*S_AXI_\w+ \{1\}", "CONFIG.{closed} {{0}}", "is closed"),
    "width": (r"(DATA_WIDTH) \{\d+\}", r"\1 {32}", "has 32 bits, machine/m_axi"),
    "registers' address": (r"-offset 0x[0-9a-f]{8} ", "-offset 0x10000000 ", "0x10000000 is not an address of"),
    "alignment": (r"-range 4096", "-range 5000", "are not aligned"),
    "too much memory": (r"-range (\d{9,})", r"-range 4294967296", "are not in ps/"),
    "no address": (
        r"assign_bd_address (?:.*\\\n)? *[^\n]*machine/m_axi[^\n]*\n[^\n]*\n",
        "",
        "has no address assigned",
    ),
    "no preset": (r"apply_board_preset \"1\"", "", "no board preset"),
    "not validated": (r"validate_bd_design\n", "", "saved before validated"),
    "top": (r"set_property top \w+ ", "set_property top soc ", "top is not the design's wrapper"),
    "no such command": (r"save_bd_design\n", "save_design\n", 'invalid command name "save_design"'),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_noticed(fault, project):
    found, folder = project
    pattern, instead, told = WRONG[fault]
    before = (folder / vivado.SCRIPT).read_text()
    if fault == "closed port":
        name = next(iter(vivado.SYSTEMS[found.zynq.system].enable[found.zynq.memory_port]))
        pattern, instead = rf"CONFIG\.{name} \{{1\}}", f"CONFIG.{name} {{0}}"
    after = re.sub(pattern, instead, before)
    assert after != before
    with pytest.raises(TclError, match=re.escape(told)):
        run(folder, lambda _: after)


def test_a_missed_clock_is_an_error(project):
    _, folder = project
    made = Vivado(folder, properties={"path": {"SLACK": "-0.1"}})
    with pytest.raises(TclError, match="timing is missed"):
        made.run((folder / vivado.SCRIPT).read_text())
    assert "build/patchloom.bit" not in made.made


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("POLARITY ACTIVE_HIGH", "POLARITY ACTIVE_LOW", "of kind reset on a net of"),
        ("ASSOCIATED_BUSIF m_axi:s_axil", "ASSOCIATED_BUSIF m_axi", "machine/s_axil has no clock"),
        ("DATA_WIDTH 128", "DATA_WIDTH 64", "has 128 bits, machine/m_axi 64"),
        ("  input wire rst,\n", "  input wire reset,\n", "no pin machine/rst"),
    ],
)
def test_a_wrapper_that_does_not_fit_is_noticed(old, new, told, tmp_path):
    found, config = board("zcu102"), config_of("zcu102")
    text = wrapper(config, 0)
    assert old in text
    (tmp_path / f"{MACHINE}.v").write_text(MODULE)
    (tmp_path / vivado.CONSTRAINTS).write_text("")
    (tmp_path / f"{MACHINE}_axi.v").write_text(text.replace(old, new))
    with pytest.raises(TclError, match=re.escape(told)):
        Vivado(tmp_path).run(vivado.script(found, config))


def test_build_writes_the_project(tmp_path, monkeypatch):
    """`patchloom build`; the script runs where the folder lies. A line stands for the machine."""
    monkeypatch.setattr(vivado, "machine_verilog", lambda config: MODULE)
    found = build(copying(config_of("pynq_z2"), "first"), tmp_path / "out", board_name="pynq_z2")
    assert found.routed is None
    folder = tmp_path / "out"
    assert {file.name for file in folder.iterdir()} == {
        *("build.tcl", "patchloom.xdc", "patchloom.v", "patchloom_axi.v", "README.md", "manifest.json"),
        *("patchloom_regs.h", "patchloom_regs.json", "patchloom_regs.svd"),
        *("patchloom.h", "patchloom.c", "example.c"),
    }
    assert run(folder).made[-1] == "build/patchloom.xsa"
    assert f"{found.project.digest:032x}" in (folder / "patchloom_axi.v").read_text()
    for text in (file.read_text() for file in folder.iterdir()):
        assert str(tmp_path) not in text
    readme = (folder / "README.md").read_text()
    assert "No Vivado has seen the script" in readme
    assert "$" not in re.sub(r"`[^`]*`", "", readme)


# --- The Arty, as LiteX gives it ---


@pytest.fixture(scope="module")
def arty():
    """Files of the project; a line stands for the machine."""
    soc = sources.soc(board("arty_a7_100t"), config_of("arty_a7_100t"))
    return {
        "soc.tcl": soc.script, "soc.xdc": soc.constraints, "soc.v": soc.verilog, f"{MACHINE}.v": MODULE,
        "build_digest.v": sources.digest_verilog(0),
    }  # fmt: skip


def test_artys_script_runs_whole(arty):
    made = Batch(arty)
    made.run(arty["soc.tcl"])
    assert made.parts == {board("arty_a7_100t").device.part}
    assert made.stages == list(Batch.ORDER)
    assert set(made.pins) == made.ports == made.standards


@pytest.mark.parametrize(
    ("file", "pattern", "instead", "told"),
    [
        ("soc.tcl", r"read_verilog \{../build_digest.v\}\n", "", "no module build_digest in the sources"),
        ("soc.tcl", r"read_xdc ../soc\.xdc", "read_xdc ../top.xdc", "no file ../top.xdc"),
        ("soc.tcl", r"-top soc", "-top top", "no module top in the sources"),
        ("soc.tcl", r"place_design[^\n]*\n", "", "route_design after"),
        ("soc.tcl", r"opt_design", "optimise_design", "invalid command name"),
        ("soc.xdc", r"\[get_ports \{clk100\}\]", "[get_ports {clk}]", "no port clk"),
        ("soc.xdc", r"LOC C2 ", "LOC E3 ", "pin E3 is used twice"),
    ],
)
def test_what_is_wrong_with_artys_is_noticed(arty, file, pattern, instead, told):
    after = re.sub(pattern, instead, arty[file])
    assert after != arty[file]
    files = arty | {file: after}
    with pytest.raises(TclError, match=re.escape(told)):
        Batch(files).run(files["soc.tcl"])
