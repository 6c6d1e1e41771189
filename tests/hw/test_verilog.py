"""Verilog is the same for the same design, carries no paths, and starts memories as Amaranth does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from amaranth.hdl import Module, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from patchloom.compiler.machine.config import Config
from patchloom.hw.dma import Reader, Writer
from patchloom.hw.registers import Registers
from patchloom.hw.verilog import digest, emit, emit_cached
from patchloom.sim.cosim import simulate

PACKAGE = Path(__file__).parents[2] / "patchloom"


class Recall(wiring.Component):
    """A memory that begins with a run of one word, some others, a gap, and a run of another word."""

    WORDS = (*[7] * 100, 1, 2, 3, *[0] * 30, *[9] * 70, *[0] * 53)

    address: In(8)
    data: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = words = memory.Memory(shape=unsigned(8), depth=256, init=self.WORDS)
        port = words.read_port()
        m.d.comb += [port.addr.eq(self.address), self.data.eq(port.data)]
        return m


def test_same_text_every_time(tmp_path, monkeypatch):
    first = {kind: emit(kind(Config())) for kind in (Reader, Writer, Registers)}
    monkeypatch.setenv("PATCHLOOM_BUILD", str(tmp_path))  # nothing remembered
    for kind, text in first.items():
        assert emit(kind(Config())) == text
        assert str(Path.cwd()) not in text
        assert ".py" not in text
    assert re.search(r"output \[63:0\] m_axi_araddr;", first[Reader])
    assert re.search(r"input \[11:0\] s_axil_awaddr;", first[Registers])


def test_sources_unchanged_means_nothing_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHLOOM_BUILD", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return Recall()

    source = tmp_path / "source.py"
    for text in ("a", "a", "b"):
        source.write_text(text)
        emit_cached(make, "key", sources=(source,))
    assert len(made) == 2


STATED = """
from patchloom.compiler.machine.config import Config
from patchloom.hw import registers, verilog
print(registers.__file__, verilog.digest(verilog.emit(registers.Registers(Config(max_rows=64)))))
"""


def copied(path: Path) -> Path:
    """The sources of the RTL in another folder."""
    (path / "patchloom").mkdir(parents=True)
    shutil.copy(PACKAGE / "__init__.py", path / "patchloom")
    shutil.copy(PACKAGE / "extras.py", path / "patchloom")
    for folder in ("hw", "compiler"):
        shutil.copytree(PACKAGE / folder, path / "patchloom" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return path


def stated(path: Path) -> str:
    """The digest that the sources in this folder make."""
    env = os.environ | {"PATCHLOOM_BUILD": str(path / "build"), "PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", STATED], cwd=path, env=env, capture_output=True, text=True, check=True)
    file, value = done.stdout.split()
    assert Path(file).is_relative_to(path)
    return value


def test_digest_is_of_the_hardware(tmp_path):
    """The same in any folder and whatever comments say; another one for other sources and other Configs."""
    here, there = (copied(tmp_path / name) for name in ("here", "there"))
    expected = str(digest(emit(Registers(Config(max_rows=64)))))
    assert stated(here) == stated(there) == expected != str(digest(emit(Registers(Config()))))
    source = there / "patchloom" / "hw" / "registers.py"
    source.write_text(source.read_text() + "# the end\n")
    assert stated(there) == expected
    changed = source.read_text().replace("cycles + self.busy", "cycles - self.busy")
    assert changed != source.read_text()
    source.write_text(changed)
    assert stated(there) != expected


def test_memories_begin_as_they_should():
    text = emit(Recall())
    assert text.count("for (i = ") == 2
    assert "for (i = 0; i <= 99; i = i + 1)" in text
    assert "[133] = 8'h09" not in text
    words = simulate(Recall(), Path(__file__).with_name("bench_verilog.py"))["words"]
    assert words.tolist() == list(Recall.WORDS)
