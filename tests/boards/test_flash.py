"""A bitstream into a board, with a stand-in for openFPGALoader, which writes down what it is asked."""

import stat
import sys

import pytest
from typer.testing import CliRunner

from patchloom.boards.flash import LOADER
from patchloom.boards.sources import MACHINE
from patchloom.cli import app, main
from patchloom.hw.folder import write_project

STAND_IN = """#!{python}
import sys
from pathlib import Path
Path("{asked}").write_text("\\n".join(sys.argv[1:]))
print("loading [bold]50 %")
sys.exit({code})
"""


@pytest.fixture
def loader(tmp_path, monkeypatch):
    """Puts it on PATH, ending with `code`; returns what it was asked."""

    def install(code=0):
        tools = tmp_path / "tools"
        tools.mkdir()
        path = tools / LOADER
        path.write_text(STAND_IN.format(python=sys.executable, asked=tmp_path / "asked", code=code))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tools))
        return lambda: (tmp_path / "asked").read_text().splitlines()

    return install


def project(tmp_path, board="ulx3s_85f", **files):
    write_project(tmp_path / "project", {"README.md": "words", **files}, {"board": board})
    return tmp_path / "project"


@pytest.mark.parametrize(("options", "where"), [([], []), (["--persistent"], ["--write-flash"])])
def test_what_the_loader_is_asked(tmp_path, loader, options, where):
    asked, at = loader(), project(tmp_path, **{f"{MACHINE}.bit": b"bits"})
    told = CliRunner().invoke(app, ["flash", str(at), *options], catch_exceptions=False)
    assert asked() == ["--board", "ulx3s", *where, str(at / f"{MACHINE}.bit")]
    assert told.stdout == f"{at}: loaded into ulx3s\n"
    assert "loading [bold]50 %" in told.stderr


def refused(capsys, at):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["patchloom", "flash", str(at)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_loader_that_fails(tmp_path, loader, capsys):
    loader(code=3)
    assert f"{LOADER} failed in" in refused(capsys, project(tmp_path, **{f"{MACHINE}.bit": b"bits"}))


def test_no_loader(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    told = refused(capsys, project(tmp_path, **{f"{MACHINE}.bit": b"bits"}))
    assert f"needs {LOADER}, which is not on PATH: most package managers have it" in told


def test_a_changed_bitstream_is_not_loaded(tmp_path, loader, capsys):
    loader()
    at = project(tmp_path, **{f"{MACHINE}.bit": b"bits"})
    (at / f"{MACHINE}.bit").write_bytes(b"bite")
    assert "must be a project as `patchloom build` wrote it, unaltered" in refused(capsys, at)
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("board", "how"), [("ulx3s_85f", "build it without --sources-only"), ("kv260", "README.md there says how")]
)
def test_a_project_without_a_bitstream(tmp_path, loader, capsys, board, how):
    loader()
    assert f"holds no {MACHINE}.bit: {how}" in " ".join(refused(capsys, project(tmp_path, board)).split())
