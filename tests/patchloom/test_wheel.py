"""The wheel, installed as a user has it: read-only, with the packages it asks for and no others.

The user's folder holds a `sim/`, a `host.py` and a `compiler.py` of their own. Nothing is fetched: an environment gets
links to the distributions that the wheel's metadata names, out of the environment that the tests run in.
"""

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path
from zipfile import Path as ZipPath
from zipfile import ZipFile

import numpy as np
import pytest
from packaging.requirements import Requirement

import patchloom
from patchloom.boards.deploy import PROJECT
from patchloom.hw.folder import write_project

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
GENERATED = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis")
# Root may write anywhere; without this capability it is a user like others.
LIKE_A_USER = () if os.geteuid() else ("setpriv", "--inh-caps=-dac_override", "--bounding-set=-dac_override")


def run(*command: str | Path, **options) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the tree that holds no generated file."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=GENERATED)
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "tree")
    (built,) = folder.glob("*.whl")
    return built


def metadata(wheel: Path) -> Distribution:
    (info,) = (entry for entry in ZipPath(wheel).iterdir() if entry.name.endswith(".dist-info"))
    return PathDistribution(info)


def needed(found: Distribution, extras: set[str]) -> Iterator[Distribution]:
    """The installed distributions that this one asks for, and those that they ask for."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(found, frozenset(extras))]
    while waiting:
        found, wanted = waiting.pop()
        for requirement in map(Requirement, found.requires or ()):
            applies = [requirement.marker is None or requirement.marker.evaluate({"extra": e}) for e in wanted | {""}]
            key = requirement.name, frozenset(requirement.extras)
            if not any(applies) or key in seen:
                continue
            seen.add(key)
            other = found if requirement.name == "patchloom" else distribution(requirement.name)
            assert requirement.name == "patchloom" or requirement.specifier.contains(other.version, prereleases=True)
            waiting.append((other, key[1]))
            yield other


@pytest.fixture
def user(tmp_path, samples) -> Path:
    """A folder with scripts, a model, its data, and names that are Patchloom's folders', too."""
    folder = tmp_path / "user"
    shutil.copytree(HERE / "wheel", folder)
    shutil.copy(HERE / "models.py", folder)
    (folder / "design.yaml").write_text("module: models.py:Mlp\ncalibration: {file: samples.npy}\n")
    np.save(folder / "samples.npy", samples)
    (folder / "sim").mkdir()
    for name in ("sim/__init__.py", "host.py", "compiler.py"):
        (folder / name).write_text(f"raise ImportError('{name} of somebody else')\n")
    return folder


def install(wheel: Path, extras: set[str], folder: Path) -> Path:
    """Commands of an environment that holds the wheel and what it needs with these extras, and cannot be written."""
    venv.create(folder, symlinks=True)
    run(*PIP, "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = (folder / "lib").glob("*/site-packages")
    for found in needed(metadata(wheel), extras):
        for name in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(Path(found.locate_file(name)))
    run("chmod", "-R", "a-w", folder)
    return folder / "bin"


@pytest.fixture
def call(tmp_path, user):
    """Runs a command of an environment in the user's folder; returns what it prints."""

    def called(commands: Path, *command: str) -> str:
        kept = {key: os.environ[key] for key in os.environ if not key.startswith(("PATCHLOOM", "PYTHON", "XDG"))}
        path = os.pathsep.join((str(commands), os.environ["PATH"]))
        environment = kept | {"HOME": str(tmp_path / "home"), "PATH": path}
        return run(*LIKE_A_USER, commands / command[0], *command[1:], cwd=user, env=environment)

    return called


def test_wheel_holds_the_package_alone(wheel):
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    version = metadata(wheel).version
    assert {name.partition("/")[0] for name in names} == {"patchloom", f"patchloom-{version}.dist-info"}
    tracked = {path.as_posix() for path in sources()}
    assert {name for name in names if name.startswith("patchloom/")} == tracked


def sources() -> Iterator[Path]:
    """Every file under patchloom/ and the folders that it links to."""
    for folder, folders, files in os.walk(ROOT / "patchloom", followlinks=True):
        folders[:] = set(folders) - {"__pycache__"}
        yield from (Path(folder, file).relative_to(ROOT) for file in files)


def test_everything_works(wheel, user, call, tmp_path, samples):
    commands = install(wheel, {"hls4ml"}, tmp_path / "venv")
    with pytest.raises(AssertionError, match="Permission denied"):
        call(commands, "python", "-c", "import patchloom; open(patchloom.__file__, 'a')")
    assert call(commands, "python", "everything.py").splitlines()[-1].startswith(str(tmp_path / "venv"))
    assert {path.name for path in (tmp_path / "home/.cache/patchloom").iterdir()} >= {"hls", "verilog"}

    call(commands, "patchloom", "compile", "design.yaml", "-o", "designed")
    call(commands, "patchloom", "run", "designed", "samples.npy", "--output", "out.npz")
    call(commands, "patchloom", "hls", "designed", "designed-hls")
    with np.load(user / "out.npz") as results:
        expected = patchloom.run(patchloom.load(user / "designed"), samples)
        np.testing.assert_array_equal(results["raw/main"], expected.raw["main"])


def of_pictures(program: patchloom.Program) -> patchloom.Program:
    """Its only input keeps a preprocessing."""
    [task] = program.tasks
    [port] = task.inputs
    kept = patchloom.Preprocessing(
        size=port.shape, mean=(0.5,), std=(0.25,), layout="HW", resize="squash", interpolation="box"
    )
    return replace(program, tasks=(replace(task, inputs=(replace(port, preprocessing=kept),)),))


def test_base_alone_loads_and_runs(wheel, user, call, tmp_path, program, samples):
    commands = install(wheel, set(), tmp_path / "venv")
    patchloom.save(program, user / "program")
    patchloom.save(of_pictures(program), user / "grey")
    np.save(user / "expected.npy", patchloom.run(program, samples[0]).raw["main"])
    told = call(commands, "python", "base.py")
    print(told)
    assert told.splitlines()[-1].startswith(str(tmp_path / "venv"))
    assert call(commands, "patchloom", "--version").strip() == patchloom.__version__
    assert "compile" in call(commands, "patchloom", "--help")
    assert "main" in call(commands, "patchloom", "inspect", "program")
    call(commands, "patchloom", "run", "program", "samples.npy", "--output", "out.npz")
    with pytest.raises(AssertionError, match=r"patchloom compile needs .*patchloom\[compile\]"):
        call(commands, "patchloom", "compile", "design.yaml", "-o", "designed")
    with pytest.raises(AssertionError, match=r"patchloom report needs .*patchloom\[report\]"):
        call(commands, "patchloom", "report", "program", "--design", "design.yaml", "--data", "samples.npy")


def test_the_drivers_wheel_needs_numpy_alone(wheel, user, call, tmp_path, program):
    """A folder for a board, made by an installed wheel; in it the driver's, which is installed beside NumPy."""
    facts = {
        "format": PROJECT,
        "board": "kv260",
        "digest": "0" * 32,
        "fingerprint": f"{program.config.fingerprint:08x}",
    }
    write_project(user / "project", {"README.md": "how to build"}, facts)
    patchloom.save(program, user / "program")
    deploy = ("patchloom", "deploy", "program", "--project", "project", "-o", "deployed")
    call(install(wheel, set(), tmp_path / "venv"), *deploy)
    (user / "tests" / "host").mkdir(parents=True)
    for name in ("fake.py", "interpreted.py"):
        shutil.copy(ROOT / "tests" / "host" / name, user / "tests" / "host")
    [driver] = (user / "deployed" / "driver").iterdir()
    told = call(install(driver, set(), tmp_path / "driver"), "python", "driver.py").splitlines()
    assert told[0].startswith("main: pass, ")
    assert told[1:3] == [
        "a Session on 'sim' needs patchloom.sim.device: pip install 'patchloom[sim]'",
        "patchloom.compile needs patchloom.compiling: pip install 'patchloom[compile]'",
    ]
    assert told[-1].startswith(str(tmp_path / "driver"))
