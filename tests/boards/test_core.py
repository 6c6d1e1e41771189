"""The bare core: a folder that simulators run, that notices what is wrong, and that Vivado can read interfaces from."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from patchloom import cli
from patchloom.boards import core
from patchloom.boards.selftest import selftest
from patchloom.compiler.machine.commands import Kind
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Port
from patchloom.compiler.machine.store import save
from patchloom.hw.folder import ProjectError
from patchloom.sim import toolchain
from patchloom.sim.interpret import execute

SIZES = {
    "inputs": 4, "outputs": 4, "lanes": 4, "bus_width": 32, "scratchpad_chunks": 256, "scratchpad_copies": 1,
    "max_rows": 16, "statistics_rows": 16, "max_experts": 2, "max_top_k": 1, "command_depth": 16, "fifo_beats": 32,
    "accumulator_width": 32,
}  # fmt: skip
CONFIG = Config(**SIZES)
QUICK = "VERILATOR_FLAGS=--output-split 0 -CFLAGS -O0"  # one C++ file: no header is compiled ahead


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("core") / "core"
    core.write_core(CONFIG, folder)
    return folder


def simulated(folder, simulator):
    """As a user does."""
    command = ["make", simulator, *([QUICK] if simulator == "verilator" else [])]
    environment = os.environ | toolchain.environment()
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=["verilator", "icarus"])
def bench(request, made, tmp_path_factory):
    """A folder with the simulator built, and how to run it."""
    if request.param == "icarus" and not shutil.which("iverilog"):
        pytest.skip("Icarus Verilog is not installed: the core runs in Verilator alone here")
    folder = shutil.copytree(made, tmp_path_factory.mktemp(request.param) / "core")
    first = simulated(folder, request.param)
    assert first.returncode == 0, (first.stdout + first.stderr)[-3000:]
    assert re.search(r"^PASS: frame selftest, 40 elements, \d+ cycles$", first.stdout, re.MULTILINE)
    return folder, request.param


def changed(text, line):
    lines = text.splitlines()
    lines[line] = f"{int(lines[line], 16) ^ 1 << 6 * (len(lines[line]) == 8):x}"  # a weight by much
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("output.hex", 17, "output element 17"),
        ("facts.hex", 6, "FAIL: saturations"),
        ("facts.hex", 5, "FAIL: status"),  # there is no task 1
        ("program.hex", 264, "FAIL: the output differs"),  # weights of the first tile
        ("input.hex", 0, "FAIL: the output differs"),
    ],
)
def test_bench_notices(bench, file, line, told):
    folder, simulator = bench
    path = folder / "frames" / "selftest" / file
    before = path.read_text()
    try:
        path.write_text(changed(before, line))
        done = simulated(folder, simulator)
    finally:
        path.write_text(before)
    assert done.returncode != 0
    assert told in done.stdout + done.stderr
    assert "PASS" not in done.stdout


def test_bench_needs_its_files(bench):
    folder, simulator = bench
    (folder / "frames" / "selftest").rename(folder / "frames" / "other")
    try:
        done = simulated(folder, simulator)
    finally:
        (folder / "frames" / "other").rename(folder / "frames" / "selftest")
    assert done.returncode != 0
    assert "PASS" not in done.stdout


# --- Verilog ---

PORT = re.compile(
    r'\(\* X_INTERFACE_INFO = "(?P<info>[^"]+)" \*\)\n'
    r'(?:  \(\* X_INTERFACE_PARAMETER = "(?P<parameter>[^"]+)" \*\)\n)?'
    r"  (?P<way>input|output) wire(?: \[(?P<high>\d+):0\])? (?P<name>\w+)"
)


def test_no_block_waits_for_a_change(made):
    """Which 4-state simulators would leave unknown."""
    assert not re.search(r"always\s*@\s*\(?\s*\*|always_comb", (made / "patchloom.v").read_text())


def test_wrapper_has_the_machines_ports(made):
    """As the machine's own Verilog declares them, all but what the build states: the manifest's digest, the clock."""
    machine, wrapper = ((made / name).read_text() for name in ("patchloom.v", "patchloom_axi.v"))
    top = machine[machine.index("module patchloom(") :]
    top = top[: top.index("endmodule")]
    inner = {
        name: (way, int(high or 0))
        for way, high, name in re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(\w+);$", top, re.MULTILINE)
    }
    outer = {found["name"]: (found["way"], int(found["high"] or 0)) for found in PORT.finditer(wrapper)}
    assert (inner.pop("digest"), inner.pop("clock_hz")) == (("input", 127), ("input", 31))
    assert outer == inner
    assert set(re.findall(r"\.(\w+)\(", wrapper)) == {*inner, "digest", "clock_hz"}
    assert "parameter [31:0] CLOCK_HZ = 0" in wrapper
    assert ".clock_hz(CLOCK_HZ)" in wrapper
    assert f"128'h{json.loads((made / 'manifest.json').read_text())['digest']}" in wrapper


def test_attributes_name_whole_interfaces(made):
    found = {match["name"]: match for match in PORT.finditer((made / "patchloom_axi.v").read_text())}
    assert found["clk"]["parameter"] == "ASSOCIATED_BUSIF m_axi:s_axil, ASSOCIATED_RESET rst"
    assert found["rst"]["parameter"] == "POLARITY ACTIVE_HIGH"
    assert found["irq"]["parameter"] == "SENSITIVITY LEVEL_HIGH"
    for bus, protocol in (("m_axi", "AXI4"), ("s_axil", "AXI4LITE")):
        members = [match for name, match in found.items() if name.startswith(f"{bus}_")]
        for match in members:
            member = match["name"].removeprefix(f"{bus}_").upper()
            assert match["info"] == f"xilinx.com:interface:aximm:1.0 {bus} {member}"
        (parameters,) = [match["parameter"] for match in members if match["parameter"]]
        assert f"XIL_INTERFACENAME {bus}, PROTOCOL {protocol}, DATA_WIDTH 32, " in parameters


# --- Self-tests ---


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (CONFIG, {"LOAD", "MATMUL", "ROUTE", "STORE"}),
        (Config(), {"LOAD", "MATMUL", "ROUTE", "STORE"}),
        (Config(inputs=8, outputs=16, lanes=8, weight_width=16, activation_width=16), {"ROUTE"}),
        (Config(inputs=256, outputs=64, lanes=4, scratchpad_chunks=512, command_depth=8), {"STORE"}),
        (
            Config(
                **SIZES
                | {"scratchpad_chunks": 64, "command_depth": 8, "bus_width": 512, "word_beats": 8}
                | {"accumulator_width": 24}
            ),
            {"STORE"},
        ),
    ],
    ids=["tiny", "small", "16 bits", "wide", "least"],
)
def test_every_config_has_a_self_test(config, parts):
    program, region = selftest(config)
    assert {Kind[name] for name in parts} <= {command.kind for command in program.tasks[0].commands}
    output, _ = execute(program, None, region)
    assert len(np.unique(output)) > 5
    other, _ = execute(program, None, -region)
    assert not np.array_equal(output, other)


# --- Folders ---


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_bytes_in_any_folder_and_again(made, tmp_path):
    core.write_core(CONFIG, tmp_path / "deep" / "er")
    assert everything(tmp_path / "deep" / "er") == everything(made)
    core.write_core(CONFIG, tmp_path / "deep" / "er")
    assert everything(tmp_path / "deep" / "er") == everything(made)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]


@pytest.mark.parametrize("theirs", ["notes.txt", "patchloom.v"])
def test_what_is_the_users_is_refused(made, tmp_path, theirs):
    folder = shutil.copytree(made, tmp_path / "core")
    (folder / theirs).write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(ProjectError, match="holds something else"):
        core.write_core(CONFIG, folder)
    assert everything(tmp_path) == before


# --- The command line ---


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["patchloom", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code or 0, *capsys.readouterr())

    return run


def test_of_a_config(call, made, tmp_path):
    for name, text in (("c.json", json.dumps(SIZES)), ("c.yaml", "".join(f"{k}: {v}\n" for k, v in SIZES.items()))):
        (tmp_path / name).write_text(text)
        code, _, err = call("rtl", name, "-o", f"core-{name}")
        assert (code, err) == (0, "")
        assert everything(tmp_path / f"core-{name}") == everything(made)


def test_of_a_program(call, tmp_path):
    """Its own frames are beside the self-test."""
    program, _ = selftest(CONFIG)
    port = Port("x", (40,), 0, 40, 0, 8, np.arange(40))
    program = replace(program, tasks=(replace(program.tasks[0], inputs=(port,), outputs=(port,)),))
    save(program, tmp_path / "program")
    code, out, err = call("rtl", "program", "-o", "core")
    assert (code, err) == (0, "")
    assert "frames selftest, task0" in " ".join(out.split())
    assert json.loads((tmp_path / "core" / "manifest.json").read_text())["frames"]["task0"] == "selftest"
    assert len((tmp_path / "core" / "frames" / "task0" / "output.hex").read_text().split()) == 40


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("rtl smal -o c", "a machine must be a Program, a file or one of small, wide, not 'smal'"),
        ("rtl typo.yaml -o c", "typo.yaml: 'inputz' is not a field of Config; did you mean 'inputs'?"),
        ("rtl rule.yaml -o c", "rule.yaml: Config.lanes must be a power of two, 4 to 64, not 3"),
        ("rtl list.json -o c", "list.json must hold fields of Config, not [1]"),
        ("rtl torn.json -o c", "torn.json cannot be read: "),
        ("rtl torn.yaml -o c", "torn.yaml cannot be read: "),
        ("rtl preset.yaml -o c", "preset must be one of small, wide, not 'large'"),
        ("rtl twice.yaml -o c", "twice.yaml cannot be read: 'inputs' stands twice"),
        ("rtl twice.json -o c", "twice.json cannot be read: 'lanes' stands twice"),
        ("rtl design.yaml -o c", "design.yaml is a design, whose machine follows from its precision and board, too"),
        ("rtl small -o c --input x.npy", "--input must be left out with a Config"),
    ],
)
def test_failure(call, tmp_path, line, told):
    (tmp_path / "typo.yaml").write_text("inputz: 8\n")
    (tmp_path / "rule.yaml").write_text("{lanes: 3}")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "torn.json").write_text('{"inputs": ')
    (tmp_path / "torn.yaml").write_text("inputs: [8")
    (tmp_path / "design.yaml").write_text("module: models.py:Mlp\nconfig: {inputs: 32}\n")
    (tmp_path / "twice.yaml").write_text("inputs: 8\ninputs: 16\n")
    (tmp_path / "twice.json").write_text('{"lanes": 4, "lanes": 8}')
    (tmp_path / "preset.yaml").write_text("preset: large\n")
    code, _, err = call(*line.split())
    assert code == 1
    assert told in err
    assert not (tmp_path / "c").exists()
