"""The HLS sources: what they may contain, that compilers are content, and that a project builds and runs."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from patchloom.compiler.machine.commands import FIELDS
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.fixed import TABLES
from patchloom.hw.folder import ProjectError
from patchloom.hw.hls import emit
from patchloom.sim.hls import WARNINGS, ap_types, write_project
from tests.sim.models import TASKS, Model

CONFIG = Config(
    inputs=8, outputs=8, lanes=4, scratchpad_chunks=1024, max_rows=16, statistics_rows=128, max_experts=6, max_top_k=3
)
KERNELS = {name: text for name, text in emit.sources().items() if name.endswith((".hpp", "top.cpp"))}
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Its C++ library and the headers' std::complex do not fit; the kernels have no complex numbers.
CLANG_DEFINES = ("-D__AP_INT_SPECIAL_H__", "-D__AP_FIXED_SPECIAL_H__")
FORBIDDEN = (
    r"\b(new|delete|malloc|free|std::vector|std::exp|std::map|while|goto|double|float|thread_local)\b|std::deque"
)

every_kernel = pytest.mark.parametrize("name", KERNELS)


def clang():
    return ["clang++"] if shutil.which("clang++") else [sys.executable, "-m", "ziglang", "c++"]


def code(name):
    """A kernel without its comments."""
    return re.sub(r"//.*", "", KERNELS[name])


def functions(text):
    """Name and body of each function: from a line that begins a declaration to the brace at a line's beginning."""
    for match in re.finditer(
        r"^(?:inline |template|int |ap_)[^{};]*?(\w+)\([^{};]*\) \{(.*?)^\}", text, re.MULTILINE | re.DOTALL
    ):
        yield match[1], match[2]


# --- Sources ---


@every_kernel
def test_no_dynamic_memory_and_no_floats(name):
    assert re.findall(FORBIDDEN, code(name)) == []


@every_kernel
def test_no_mutable_globals(name):
    """The only static object is the machine of a synthesised frame."""
    found = re.findall(r"^.*\bstatic\b.*$", code(name), re.MULTILINE)
    assert [line.strip() for line in found] == (["static Machine machine;"] if name == "frame.hpp" else [])


@every_kernel
def test_loops_end_at_constants(name):
    """Or break early. DATAFLOW takes only loops without break; the bound of those is an argument."""
    for bound, body in re.findall(r"for \(int \w+ = 0; \w+ < ([^;]+); \+\+\w+\) ((?:.*\n){3})", code(name)):
        assert re.fullmatch(r"[A-Z_]+( / [A-Z_]+)?", bound) or "HLS DATAFLOW" in body, f"{bound}:\n{body}"
    assert len(re.findall(r"\bfor \(", code(name))) == len(re.findall(r"for \(int \w+ = 0; \w+ < ", code(name)))


@every_kernel
def test_loops_that_break_state_their_trip_count_or_interval(name):
    text = code(name)
    for head, body in re.findall(r"(for \([^{]*\{)(.*?) break;", text, re.DOTALL):
        assert "#pragma HLS" in body or "A_DIGITS" in head, head


def test_no_recursion():
    """Every function calls only those defined before it."""
    bodies = {name: body for text in map(code, KERNELS) for name, body in functions(text)}
    assert len(bodies) > 30
    calls = {name: {other for other in bodies if re.search(rf"\b{other}[<(]", bodies[name])} for name in bodies}
    done = set()
    while ready := {name for name in calls if name not in done and calls[name] <= done}:
        done |= ready
    assert set(calls) == done


def test_no_number_is_written_twice():
    """Kernels name sizes, codes and formats; they do not repeat them."""
    for name in KERNELS:
        numbers = {int(n) for n in re.findall(r"(?<![\w.\"=])\d+\b", re.sub(r"#pragma.*", "", code(name)))}
        assert numbers <= {0, 1, 2, 3, 8, 16, 31, 32, 63}, f"{name}: {numbers}"


# --- Facts ---


def test_facts_hold_the_encoding_and_the_tables():
    text = emit.facts(CONFIG)
    position = 0
    for name, (bits, signed) in FIELDS.items():
        assert f"ap_{'' if signed else 'u'}int<{bits}> {name};" in text
        assert f"c.{name} = bits.range({position + bits - 1}, {position});" in text
        position += bits
    for table in TABLES:
        for part, values in (("BASE", table.base), ("SLOPE", table.slope)):
            body = re.search(rf"{table.name.upper()}_{part}\[\d+\] = {{(.*?)}};", text, re.DOTALL)[1]
            assert [int(v) for v in body.split(",") if v.strip()] == list(values)


def test_every_constant_is_used():
    """Those that only the RTL, the driver or the cycle model reads are named here."""
    text = "\n".join(KERNELS.values())
    unused = {name for name in emit.constants(CONFIG) if not re.search(rf"\b{name}\b", text)}
    assert unused <= {"EPILOGUE_LANES", "FIFO_BEATS", "MULTIPLIERS_PACKED", "SCRATCHPAD_COPIES", "WORD_BEATS"}


# --- Projects ---


def project(path, config=CONFIG):
    model = Model(1)
    program = model.compiled(config, "w8a16")
    write_project(program, {task: model.region(program, i, 4) for i, task in enumerate(TASKS)}, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return project(tmp_path_factory.mktemp("hls") / "project")


def compiled(directory, command):
    """The test bench's output; nothing may be said while it is built."""
    done = subprocess.run(
        [*command, *WARNINGS, "-isystem", "ap_types", "-o", "bench", "testbench.cpp", "top.cpp"],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return subprocess.run(["./bench"], cwd=directory, capture_output=True, text=True, check=False)


def test_make_simulates_the_project(made):
    done = subprocess.run(["make", "--no-print-directory"], cwd=made, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "identical"


def test_sanitizers_find_nothing(made):
    """C++20, where a left shift of a negative number is defined: the vendor's headers are full of them."""
    done = compiled(made, ["g++", "-std=c++20", "-O0", *SANITIZE])
    assert (done.returncode, done.stderr) == (0, "")


def test_clang_is_content(made):
    """Of the sources: linking would build a C++ library first, for a minute."""
    for source in ("testbench.cpp", "top.cpp"):
        done = subprocess.run(
            [*clang(), "-std=c++17", "-c", *CLANG_DEFINES, *WARNINGS, "-isystem", "ap_types", "-o", "object", source],
            cwd=made, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("broken", ["output1.bin", "input0.bin", "goldens.hpp", "program.bin"])
def test_test_bench_notices(broken, made, tmp_path):
    copy = shutil.copytree(made, tmp_path / "copy")
    file = copy / broken
    data = bytearray(file.read_bytes())
    if broken == "goldens.hpp":
        data = re.sub(rb"(\d+)\}", lambda match: str(int(match[1]) + 1).encode() + b"}", bytes(data))
    else:
        data[:] = bytes(byte ^ 0x15 for byte in data)
    file.write_bytes(data)
    if broken == "goldens.hpp":
        (copy / "testbench").unlink(missing_ok=True)
    done = subprocess.run(["make"], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DIFFERENT" in done.stdout


def test_project_is_whole(made):
    """Every include is there, and every word of the Program."""
    for file in [*made.glob("*.hpp"), *made.glob("*.cpp")]:
        for name in re.findall(r'#include "(.*)"', file.read_text()):
            assert (made / name).exists()
    assert (made / "ap_types" / "ap_int.h").exists()
    assert not list(made.parent.glob(".*"))


def test_tcl_steps(made):
    """The script's commands, in a Tcl without the vendor's."""
    tcl = pytest.importorskip("tkinter").Tcl()
    calls = []
    tcl.createcommand("record", lambda *words: calls.append(words))
    for command in ("open_project", "set_top", "add_files", "open_solution", "set_part", "create_clock",
                    "csim_design", "csynth_design", "cosim_design", "export_design", "exit"):  # fmt: skip
        tcl.eval(f"proc {command} args {{ record {command} {{*}}$args }}")
    tcl.eval(f"cd {made}\nset ::env(STEPS) {{csim csynth cosim export}}\nset ::env(PART) xck26\nsource vitis_hls.tcl")
    names = [words[0] for words in calls]
    assert names[-5:] == ["csim_design", "csynth_design", "cosim_design", "export_design", "exit"]
    assert ("set_part", "xck26") in calls
    assert {words[-1] for words in calls if words[:2] == ("add_files", "-tb") and words[2].endswith(".bin")} == {
        file.name for file in made.glob("*.bin")
    }
    top = next(words[1] for words in calls if words[0] == "set_top")
    assert f"int {top}(" in (made / "top.cpp").read_text()


def test_a_directory_in_use_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ProjectError, match="exists and is not an empty directory"):
        project(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "project").mkdir()
    assert (project(tmp_path / "project") / "vitis_hls.tcl").exists()
    assert np.fromfile(tmp_path / "project" / "output0.bin", "<i2").any()


def test_headers_are_where_hls4ml_has_them():
    assert (ap_types() / "ap_int.h").exists()
