"""The folder for a board: what is in it, that its parts work, and what it never touches."""

import ast
import io
import json
import os
import sys
import zipfile
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import patchloom
from patchloom import cli
from patchloom.boards import deploy as deployment
from patchloom.boards import flash
from patchloom.boards.deploy import BITSTREAM, deploy, notebook
from patchloom.boards.wheel import wheel
from patchloom.compiler.machine.frames import input_frames, input_region, input_samples
from patchloom.hw.folder import ProjectError, files_under, write_project
from tests.host.interpreted import Interpreted

BIT = b"a bitstream"


def project(program, path="project", *, board="pynq_z2", files=(), **facts) -> Path:
    """As `patchloom build` writes one, of other contents."""
    stated = {"format": deployment.PROJECT, "board": board, "digest": "0" * 32}
    stated |= {"fingerprint": f"{program.config.fingerprint:08x}"}
    write_project(Path(path), {"README.md": "how to build", "patchloom.h": "/* C */", **dict(files)}, stated | facts)
    return Path(path)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def contents(path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files_under(Path(path))}


def test_what_is_in_it(seeing):
    deployed = deploy(seeing, project(seeing), Path("out"))
    found = contents("out")
    assert (deployed.board.name, deployed.bitstream) == ("pynq_z2", False)
    name, _ = wheel()
    assert {path for path in found if not path.startswith("program/")} == {
        "README.md", "manifest.json", "validate.py", "patchloom.ipynb", f"driver/{name}", "c/patchloom.h",
    }  # fmt: skip
    assert patchloom.load(Path("out/program")).image == seeing.image
    stated = json.loads(found.pop("manifest.json"))
    assert stated["sha256"] == {path: sha256(content).hexdigest() for path, content in found.items()}
    assert "There is no bitstream here" in found["README.md"].decode()
    assert "$" not in found["README.md"].decode()


def test_the_same_inputs_give_the_same_bytes(seeing):
    for out in ("one", "two"):
        deploy(seeing, project(seeing), Path(out))
    assert contents("one") == contents("two")
    deploy(seeing, Path("project"), Path("one"))  # its own work is replaced
    assert contents("one") == contents("two")


@pytest.mark.parametrize(
    ("board", "place"),
    [("ulx3s_85f", BITSTREAM), ("kv260", "build/patchloom.bit"), ("arty_a7_100t", "build/soc.bit"), ("ecpix5_85f", "")],
)
def test_the_bitstream_is_where_the_tools_leave_it(seeing, board, place):
    inside = {place: BIT} if place == BITSTREAM else {}
    made = project(seeing, board=board, files={**inside, "soc.json": "{}"})
    if place not in ("", BITSTREAM):
        (made / "build").mkdir()
        (made / place).write_bytes(BIT)
    assert deploy(seeing, made, Path("out")).bitstream == bool(place)
    found = contents("out")
    assert found.get(BITSTREAM) == (BIT if place else None)
    text = found["README.md"].decode()
    assert ("There is no bitstream here" in text) == (not place)
    assert ("patchloom.ipynb" in found) == (board == "kv260")
    if place == BITSTREAM:
        assert "openFPGALoader -b ulx3s patchloom.bit" in text
        assert flash._project(Path("out")) == ("ulx3s", Path("out") / BITSTREAM)


# What stands at the output or the project before -> what is said.
REFUSED = {
    "foreign": "out exists and holds something else than an unaltered project",
    "altered": "out exists and holds something else than an unaltered project",
    "file": "out exists and holds something else than an unaltered project",
    "project": "must be outside of the project",
    "within": "must be outside of the project",
    "other project": "out exists and is a 'patchloom project'",
    "program": "out exists and holds something else",
    "no project": "nowhere must be a project as `patchloom build` wrote it, unaltered, and is none",
    "touched project": "project must be a project as `patchloom build` wrote it, unaltered, and is none",
    "a core": "project must be a project of a board, and its manifest says 'patchloom core'",
    "other Config": "project must be a project of the Program's Config, which it is not",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_not_touched(what, seeing, tmp_path):
    facts = {"a core": {"format": "patchloom core"}, "other Config": {"fingerprint": "00000000"}}
    made, out = project(seeing, **facts.get(what, {})), Path("out")
    if what == "foreign":
        out.mkdir()
        (out / "mine").write_text("mine")
    elif what == "altered":
        deploy(seeing, made, out)
        (out / "result.npz").write_text("mine")
    elif what == "file":
        out.write_text("mine")
    elif what in ("project", "within"):
        out = made if what == "project" else made / "new"
    elif what == "other project":
        project(seeing, "out")
    elif what == "program":
        patchloom.save(seeing, out)
    elif what == "no project":
        made = Path("nowhere")
    elif what == "touched project":
        (made / "README.md").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ProjectError) as caught:
        deploy(seeing, made, out)
    assert REFUSED[what] in str(caught.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
def test_a_kill_leaves_the_old_folder_or_none(seeing, program, there):
    """Killed at the first file that is written, in the middle, at the last."""
    made = project(seeing)
    deploy(seeing, made, Path("whole"))
    if there:
        deploy(program, project(program, "before"), Path("out"))
    old, count = (contents("out") if there else None), len(contents("whole"))
    for files in (0, count // 2, count - 1):
        child = os.fork()
        if not child:
            written, write = [], Path.write_bytes

            def dying(path, data, written=written, write=write, last=files):
                if len(written) == last:
                    write(path, data[: len(data) // 2])
                    os._exit(9)
                written.append(path)
                return write(path, data)

            Path.write_bytes = dying
            deploy(seeing, made, Path("out"))
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert (contents("out") if Path("out").exists() else None) == old
    deploy(seeing, made, Path("out"))
    assert contents("out") == contents("whole")


def test_the_command_line(seeing, monkeypatch, capsys):
    patchloom.save(seeing, Path("program"))
    project(seeing)
    monkeypatch.setattr(sys, "argv", ["patchloom", "deploy", "program", "--project", "project", "-o", "out"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    said = "out: for TUL PYNQ-Z2, without a bitstream yet; README.md there says how to go on\n"
    assert capsys.readouterr().out == said


# --- What is in it works ---


def test_the_wheel_is_of_python_3_10():
    """As far as can be seen without one: grammar, and names that are imported at once."""
    newer = {
        "Self",
        "StrEnum",
        "UTC",
        "tomllib",
        "assert_never",
        "LiteralString",
        "Never",
        "ExceptionGroup",
        "override",
    }
    name, content = wheel()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert (
            "Requires-Python: >=3.10"
            in archive.read(f"{name.removesuffix('-py3-none-any.whl')}.dist-info/METADATA").decode()
        )
        for path in (path for path in archive.namelist() if path.endswith(".py")):
            tree = ast.parse(archive.read(path), path, feature_version=(3, 10))
            checked = [node for node in tree.body if "TYPE_CHECKING" in ast.dump(node) and isinstance(node, ast.If)]
            later = {id(inner) for node in checked for inner in ast.walk(node)}
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            found = {alias.name for node in imports if id(node) not in later for alias in node.names}
            assert not found & newer, path


def test_the_wheel_is_whole():
    name, content = wheel()
    Path(name).write_bytes(content)
    with zipfile.ZipFile(name) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        [info] = {path.split("/")[0] for path in names if ".dist-info/" in path}
        lines = archive.read(f"{info}/METADATA").decode().splitlines()
        recorded = [line.split(",")[0] for line in archive.read(f"{info}/RECORD").decode().splitlines()]
        assert archive.read(f"{info}/licenses/LICENSE").lstrip().startswith(b"Apache License")
    assert sorted(recorded) == sorted(names)
    needed = [line for line in lines if line.startswith("Requires-Dist") and "extra" not in line]
    assert len(needed) == 1
    assert needed[0].startswith("Requires-Dist: numpy")
    assert {"patchloom/__init__.py", "patchloom/host/session.py", "patchloom/sim/interpret.py"} <= set(names)
    assert not any("amaranth" in path or path.startswith(("patchloom/hw/", "patchloom/cli")) for path in names)


def test_a_sample_from_its_region(program, seeing, samples, scenes):
    for made, given in ((program, samples), (seeing, scenes)):
        for task in made.tasks:
            frames, _ = input_frames(task, given[0])
            region, _ = input_region(task, frames[0])
            sample = input_samples(task, region)
            again, clipped = input_region(task, sample)
            np.testing.assert_array_equal(again, region)
            assert clipped == 0
            [port] = task.inputs
            limits = (np.array([-1, 1 - 2.0 ** (1 - port.width)]) * 2.0 ** (port.width - 1 - port.fraction)).tolist()
            inside = np.clip(given[0], *limits)
            assert abs(sample[port.name] - inside).max() <= 2.0 ** -(port.fraction + 1)


def test_the_notebooks_cells_run(seeing, monkeypatch, capsys):
    deploy(seeing, project(seeing), Path("out"))
    monkeypatch.chdir("out")
    made = json.loads(Path("patchloom.ipynb").read_text())
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    shown = []
    images = SimpleNamespace(Image=lambda data: data, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython.display", images)
    space = {}
    for cell in made["cells"]:
        text = "".join(cell["source"])
        assert set(cell) >= {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile(text.replace('"pynq:patchloom.bit"', '"sim"'), cell["id"], "exec"), space)
        else:
            assert text
            assert not text.startswith("#") or text.startswith("# A vision")
    out = capsys.readouterr().out
    assert out.count(": pass, ") == 2
    assert out.count("['classes']") == out.count("['number']") == 10
    assert shown[0].startswith(b"\x89PNG")


def test_what_stands_before_the_first_cell_is_no_cell():
    made = json.loads(notebook('"""Mine."""\n\n# %% [markdown]\n# # Title\n#\n# text\n\n# %%\na = 1\n\n\nb = 2\n'))
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in made["cells"]] == [
        ("markdown", "# Title\n\ntext"), ("code", "a = 1\n\n\nb = 2"),
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [False, True])
def test_the_script_validates(seeing, monkeypatch, capsys, wrong):
    deploy(seeing, project(seeing, board="kv260", files={BITSTREAM: BIT}), Path("out"))
    asked = []

    def opened(bitstream, registers, clock_hz):
        asked.append(bitstream.read_bytes())
        return Interpreted(seeing, wrong=wrong)

    monkeypatch.setattr("patchloom.session.pynq_device", opened)
    space = {"__name__": "validate", "__file__": "out/validate.py"}
    exec(compile(Path("out/validate.py").read_text(), "validate.py", "exec"), space)
    assert space["main"]([]) is not wrong
    assert asked == [BIT]
    out = capsys.readouterr().out
    assert out.count(": pass, ") == (0 if wrong else 2)
    assert out.count(" elements are wrong") == (2 if wrong else 0)
    with pytest.raises(SystemExit, match="uart:PORT of a board"):
        space["main"](["a", "b"])
