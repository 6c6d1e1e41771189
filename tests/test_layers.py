"""Imports point one way, and no package escapes the rule."""

import tomllib
from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

ROOT = Path(__file__).parents[1]


def test_every_module_is_in_the_contract():
    """The layers name each module of the front door, and each folder that it links to."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {name for layer in contracts[0]["layers"] for name in layer.split(" : ")}
    here = {f"patchloom.{path.stem}" for path in (ROOT / "patchloom").iterdir() if path.suffix in ("", ".py")}
    assert named - {"patchloom.compiler.machine"} == here - {
        "patchloom.__init__",
        "patchloom.compiler",
        "patchloom.__pycache__",
    }


def test_imports_point_one_way(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(no_logo=True) == EXIT_STATUS_SUCCESS
