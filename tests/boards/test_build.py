"""Projects and bitstreams: what is written, what is refused, what comes of tools that fail."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from patchloom import cli
from patchloom.boards import build as building
from patchloom.boards import place, sources, tools
from patchloom.boards.board import BoardError, board
from patchloom.boards.project import Project, makefile
from patchloom.boards.tools import BuildError
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import MissingExtraError
from patchloom.host.device import Region
from patchloom.host.transports.soc import SocMap
from patchloom.hw.folder import ProjectError, is_unaltered
from tests.host.programs import copying

CONFIG = Config(
    inputs=4, outputs=4, lanes=4, scratchpad_chunks=256, max_rows=16, command_depth=16, bus_width=32, fifo_beats=32
)  # fmt: skip
PROGRAM = copying(CONFIG, "first")
ULX3S = board("ulx3s_85f")

NEXTPNR = """#!{python}
import json, sys, time
from pathlib import Path
if "--version" in sys.argv:
    sys.exit(print("nextpnr-ecp5 for tests"))
given = dict(zip(sys.argv, sys.argv[1:]))
seed = int(given["--seed"])
with open("{folder}/seeds", "a") as log:
    log.write(f"{{seed}} ")
assert '"settings": {{"router2/' in Path(given["--json"]).read_text() and Path(given["--lpf"]).exists()
while Path("{folder}/hold").exists():
    time.sleep(0.01)
placed, routed = {mhz}[seed]
print(f"Info: Max frequency for clock '$glbnet$sys_clk': {{placed}} MHz (PASS at 50.00 MHz)", flush=True)
print("Info: Routing..", flush=True)
print("Info:     iter=1 wires=9 overused=3 overuse=4 archfail=NA", flush=True)
clock = {{"achieved": routed, "constraint": 50.0}}
cells = {{"DP16KD": {{"used": 7, "available": 208}}, "DCCA": {{"used": 0, "available": 56}}}}
Path(given["--report"]).write_text(json.dumps({{"fmax": {{"$glbnet$sys_clk": clock}}, "utilization": cells}}))
Path(given["--textcfg"]).write_text(f"routed with seed {{seed}}")
"""
NETLIST = '{\n  "modules": {\n    "cell": {\n    },\n    "soc": {\n      "attributes": {}\n    }\n  }\n}\n'
ECPPACK = """#!{python}
import sys
from pathlib import Path
if "--version" in sys.argv:
    sys.exit(print("ecppack for tests"))
Path(sys.argv[sys.argv.index("--bit") + 1]).write_bytes(Path(sys.argv[2]).read_bytes()[::-1])
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """Tools are looked for once a process."""
    tools.ecp5.cache_clear()
    yield
    tools.ecp5.cache_clear()


@pytest.fixture
def with_tools(tmp_path, monkeypatch):
    """Stands for all three tools; each seed has its MHz, placed and routed. Returns the seeds that were run."""

    def install(mhz):
        folder = tmp_path / "tools"
        folder.mkdir()
        for name, text in (("nextpnr-ecp5", NEXTPNR), ("ecppack", ECPPACK)):
            path = folder / name
            path.write_text(text.format(python=sys.executable, folder=folder, mhz=mhz))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder), prepend=":")
        monkeypatch.setenv("PATCHLOOM_BUILD", str(tmp_path / "cache"))

        def yosys(passes, at, log):
            (at / "netlist.json").write_text(NETLIST)
            (at / "stat.json").write_text("{}")

        monkeypatch.setattr(tools, "yosys", yosys)
        return lambda: [int(seed) for seed in (folder / "seeds").read_text().split()]

    return install


PROJECT = Project(ULX3S, CONFIG, 5, {"soc.lpf": "constraints", "soc.v": "// text"}, ("soc.lpf", "soc.v"))


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- Sources ---


def test_the_same_project_in_another_folder(tmp_path, monkeypatch):
    built = building.build(PROGRAM, tmp_path / "one", board_name="ulx3s_85f", sources_only=True)
    assert built.routed is None
    monkeypatch.chdir(tmp_path)
    other = copying(CONFIG, "another", "third")  # a Program that shares the Config
    building.build(other, Path("another/place"), board_name="ulx3s_85f", sources_only=True)
    files = everything(tmp_path / "one")
    assert files == everything(tmp_path / "another" / "place")
    names = {str(name) for name in files}
    assert names >= {"README.md", "Makefile", "patchloom.v", "patchloom.il", "soc.v", "soc.lpf", "soc.json", "synth.ys"}
    assert names >= {"patchloom_regs.h", "patchloom_regs.json", "patchloom_regs.svd", "patchloom.h", "patchloom.c"}
    manifest = json.loads(files[Path("manifest.json")])
    assert manifest["digest"] in files[Path("build_digest.v")].decode()
    assert set(manifest["sources"]) <= names
    assert not any(str(tmp_path).encode() in content for content in files.values())
    for name in ("patchloom.v", "soc.v", "build_digest.v"):
        head = files[Path(name)].decode().partition("\n\n")[0]
        assert "Patchloom" in head
        assert "inputs 4" in head
        assert "Apache-2.0" in head


@pytest.fixture
def _quick_sources(monkeypatch):
    """Texts that depend on the Config alone, at no cost."""
    soc = sources.SocSources("module soc; endmodule\n", "constraints", "", SocMap("", 0, 0, Region(0, 0), ()), {}, 0)
    monkeypatch.setattr(sources, "soc", lambda found, config: soc)
    monkeypatch.setattr(sources, "machine_verilog", repr)
    monkeypatch.setattr(sources, "machine_rtlil", repr)


@pytest.mark.usefixtures("_quick_sources")
def test_a_digest_tells_boards_and_configs_apart():
    made = [
        building.project(found, config).digest
        for found, config in ((ULX3S, CONFIG), (ULX3S, CONFIG), (ULX3S, replace(CONFIG, max_rows=32)))
    ]
    other = building.project(board("ecpix5_85f"), CONFIG).digest
    assert made[0] == made[1]
    assert len({*made, other}) == 3


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ProjectError, match="holds something else"):
        building.build(PROGRAM, tmp_path, board_name="ulx3s_85f", sources_only=True)
    assert everything(tmp_path) == {Path("notes.txt"): b"mine"}


def test_boards_that_cannot_run_the_program(tmp_path, monkeypatch):
    def told(program, name):
        with pytest.raises(BoardError) as caught:
            building.build(program, tmp_path / "out", board_name=name)
        return str(caught.value)

    assert "board must be ulx3s_85f, not 'ulx3s'" in told(PROGRAM, "ulx3s")
    assert "Config.bus_width must be 128, not 32" in told(PROGRAM, "ecpix5_85f")
    large = replace(PROGRAM, image=bytes(32 << 20))
    assert "has 33554432 bytes of memory, and the Program needs 33555072" in told(large, "ulx3s_85f")
    other = replace(PROGRAM, board="ecpix5_85f")
    assert "board must be ecpix5_85f, which the Program's machine was sized for, not ulx3s_85f" in told(
        other, "ulx3s_85f"
    )
    packed = replace(PROGRAM, config=replace(CONFIG, multipliers_packed=True))
    assert "Config.multipliers_packed must be False" in told(packed, "ulx3s_85f")
    assert not (tmp_path / "out").exists()


def test_missing_tools_are_told_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(tools.shutil, "which", lambda name, path=None: None)
    with pytest.raises(BuildError, match=r"needs nextpnr-ecp5 and ecppack, .* pip install 'patchloom\[boards\]'"):
        building.build(PROGRAM, tmp_path / "out", board_name="ulx3s_85f")
    monkeypatch.setattr(tools, "find_spec", lambda name: None if name == "litex" else name)
    with pytest.raises(MissingExtraError, match=r"patchloom build needs litex: pip install 'patchloom\[boards\]'"):
        building.build(PROGRAM, tmp_path / "out", board_name="ulx3s_85f", sources_only=True)
    assert not (tmp_path / "out").exists()


# --- Bitstreams ---


def test_the_first_seed_that_meets_the_timing(with_tools):
    seeds = with_tools({1: (42.0, 60.0), 2: (47.0, 49.9), 3: (51.0, 50.0)})
    news = []
    routed, files = building.bitstream(PROJECT, 1, lambda *told: news.append(told))
    assert routed.seed == 3
    assert routed.clocks == (place.Clock("sys_clk", 50.0, 50.0),)
    assert routed.used == {"DP16KD": (7, 208)}
    assert files["patchloom.bit"] == b"routed with seed 3"[::-1]
    assert ("route", "iteration 1, 3 wires overused") in news
    assert ("route", "timing missed by seed 1, placed: sys_clk 42.0 MHz of 50 asked") in news
    assert ("route", "timing missed by seed 2, routed: sys_clk 49.9 MHz of 50 asked") in news
    assert building.bitstream(PROJECT, 1, lambda *told: None)[0] == routed
    assert seeds() == [1, 2, 3], "what is known is not routed again"


def test_no_seed_meets_the_timing(with_tools):
    with_tools(dict.fromkeys(range(1, 10), (51.0, 40.0)))
    with pytest.raises(BuildError, match=r"(?s)no seed tried.*seed 4, routed.*seed 5, routed.*seed 6, routed"):
        building.bitstream(PROJECT, 4, lambda *told: None)


def test_a_tool_that_fails_and_a_build_that_is_stopped_leave_nothing(with_tools):
    seeds = with_tools({2: (51.0, 51.0)})
    with pytest.raises(BuildError, match=r"(?s)nextpnr-ecp5 failed.*KeyError: 1"):
        building.bitstream(PROJECT, 1, lambda *told: None)

    def stop(stage, news):
        if stage == "route":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        building.bitstream(PROJECT, 2, stop)
    assert building.bitstream(PROJECT, 2, lambda *told: None)[0].seed == 2
    assert seeds() == [1, 2, 2]


@pytest.mark.usefixtures("_quick_sources")
def test_from_the_command_line(with_tools, tmp_path, monkeypatch, capsys):
    seeds = with_tools({4: (51.0, 52.0)})
    monkeypatch.setattr(cli, "load", lambda path: PROGRAM)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["patchloom", "build", "program", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code or 0, *capsys.readouterr())

    code, out, err = call("-o", tmp_path / "one", "--board", "ulx3s_85f", "--seed", "4")
    assert code == 0, err
    assert "seed 4\nsys_clk 52.0 MHz of 50 asked\nDP16KD 7 of 208" in out
    assert "route: iteration 1, 3 wires overused" in err
    assert call("-o", tmp_path / "two", "--board", "ulx3s_85f", "--seed", "4")[0] == 0
    files = everything(tmp_path / "one")
    assert files == everything(tmp_path / "two")
    assert files[Path("patchloom.bit")] == b"routed with seed 4"[::-1]
    assert json.loads(files[Path("manifest.json")])["bitstream"]["tools"]["ecppack"] == "ecppack for tests"
    assert seeds() == [4], "Programs that share a Config share a bitstream"

    assert call("-o", tmp_path / "one", "--board", "ulx3")[::2] == (1, "error: board must be ulx3s_85f, not 'ulx3'\n")
    product = tmp_path / "one" / "build" / "netlist.json"  # of the folder's own Makefile
    product.parent.mkdir()
    product.write_text("made")
    assert call("-o", tmp_path / "one", "--board", "ulx3s_85f", "--seed", "4")[0] == 0
    assert everything(tmp_path / "one") == files | {Path("build/netlist.json"): b"made"}

    (tmp_path / "one" / "soc.v").write_text("changed")
    assert "holds something else" in call("-o", tmp_path / "one", "--board", "ulx3s_85f")[2]
    assert (tmp_path / "one" / "soc.v").read_text() == "changed"


@pytest.mark.usefixtures("_quick_sources")
def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_whole(with_tools, tmp_path):
    seeds = with_tools({1: (51.0, 52.0)})
    hold, output = tmp_path / "tools" / "hold", tmp_path / "out"
    hold.touch()
    child = os.fork()
    if not child:
        building.build(PROGRAM, output, board_name="ulx3s_85f")
        os._exit(0)
    deadline = time.monotonic() + 60
    while not (tmp_path / "tools" / "seeds").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert not output.exists()
    hold.unlink()  # its router still runs, and ends while the next build is at work
    built = building.build(PROGRAM, output, board_name="ulx3s_85f")
    assert seeds() == [1, 1]
    assert is_unaltered(output)
    assert built.routed
    assert not list((tmp_path / "cache" / "bitstreams").glob("*/work-*"))


# Of a real run, shortened.
LOG = """\
Info: Packing IOs..
Info: \t        MULT18X18D:       1/    156     0%
Info: Running Static placer...
Info: iter=0 steplen=1.531398 a=1.000000 penalty=[0.04, 0.04, 0.04, 0.04]
Info: Running simulated annealing placer for refinement.
{level}: Max frequency for clock         '$glbnet$sys_clk': {mhz} MHz ({verdict} at 50.00 MHz)
Info: Max frequency for clock '$glbnet$sys2x_clk': 160.98 MHz (PASS at 100.00 MHz)
Info: Routing globals...
Info: Running router2...
Info:     iter=1 wires=807 overused=37 overuse=49 archfail=NA
Info: Running router1 to check that route is legal...
Info: Routing complete.
Info: Max frequency for clock '$glbnet$sys_clk': 53.85 MHz (PASS at 50.00 MHz)
"""


def follow(watch, **placed):
    progress = place._Progress(1, watch)
    for line in LOG.format(**placed).splitlines():
        progress(line)


def test_progress_of_a_router():
    news = []
    follow(lambda *told: news.append(told), level="Info", mhz="50.10", verdict="PASS")
    assert news == [
        ("pack", "MULT18X18D 1 of 156"),
        ("place", ""),
        ("place", "sys_clk 50.1 MHz of 50 asked"),
        ("place", "sys2x_clk 161.0 MHz of 100 asked"),
        ("route", ""),
        ("route", "iteration 1, 37 wires overused"),
        ("route", "sys_clk 53.9 MHz of 50 asked"),
    ]
    with pytest.raises(place.Missed, match=r"seed 1, placed: sys_clk 42\.2 MHz of 50 asked$"):
        follow(lambda *told: None, level="Warning", mhz="42.20", verdict="FAIL")


def test_settings_of_the_router(tmp_path):
    """As the Makefile of a project writes them; nextpnr takes what consists of 0 and 1 alone for another number."""
    (command,) = re.findall(r"sed '(.*)' netlist", makefile(ULX3S))
    done = subprocess.run(
        ["sed", command.replace("$$", "$")], input=NETLIST, capture_output=True, text=True, check=True
    )
    made = place.with_settings(NETLIST, "soc")
    assert done.stdout == made
    assert json.loads(made)["modules"]["soc"] == {"attributes": {}, "settings": place.SETTINGS}
    assert not any(set(value) <= set("01") for value in place.SETTINGS.values())
    with pytest.raises(BuildError, match="the netlist must have one module top, as Yosys writes it, not 0"):
        place.with_settings(NETLIST, "top")


def test_a_router_that_is_stuck():
    progress = place._Progress(1, lambda *told: None)
    progress("Info: Max frequency for clock '$glbnet$sys_clk': 51.10 MHz (PASS at 50.00 MHz)")
    end = 5 + place.STUCK
    for iteration, overused in enumerate([40, 7, 9, 7, *[8] * place.STUCK], 1):
        progress(f"Info:     iter={iteration} wires=9 overused={overused} overuse=49 archfail=NA")
    with pytest.raises(
        place.Missed, match=rf"^seed 1, router stuck in iteration {end}, no fewer than 7 wires overused$"
    ):
        progress(f"Info:     iter={end} wires=9 overused=10 overuse=49 archfail=NA")


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("LFE5U-85F-6BG381C", "--85k --package CABGA381 --speed 6"),
        ("LFE5UM5G-85F-8BG554I", "--um5g-85k --package CABGA554 --speed 8"),
    ],
)
def test_options_of_a_part(part, options):
    assert " ".join(place.device_options(part)) == options
    with pytest.raises(BoardError, match="part must be an ECP5"):
        place.device_options(part.replace("BG", "XX"))
