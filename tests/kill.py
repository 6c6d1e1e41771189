"""`compile` over an existing Program, killed at random moments while a reader looks: nothing is ever lost.

python -m tests.kill --count 500 --seed 0
"""

import os
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

import patchloom
from patchloom.design import compile_design, load_design
from tests.campaign import Found, command_line

LEFT = "files left over"
DESIGN = "module: models.py:Mlp\ncalibration: {file: samples.npy}\nprecision: %s\n"


def forked(job: Callable[[], None]) -> int:
    """A process that does the job and ends."""
    child = os.fork()
    if child == 0:
        try:
            job()
        except BaseException:  # noqa: BLE001 - the process ends here
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def kill(count: int, seed: int) -> Found:
    """What the reader found, and what was left in the folder beyond a Program's three files."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = kill_compiles(count, seed, Path(folder))
    wrong = [outcome for outcome in outcomes if "LOST" in outcome or outcome == LEFT]
    return Found(outcomes, [f"{outcomes[outcome]} times {outcome}" for outcome in wrong if outcomes[outcome]])


def kill_compiles(count: int, seed: int, folder: Path) -> Counter[str]:
    rng = np.random.default_rng(seed)
    shutil.copy(Path(__file__).parent / "patchloom" / "models.py", folder)
    np.save(folder / "samples.npy", rng.normal(size=(4, 5, 16)).astype(np.float32))
    for precision in ("w8a8", "w16a16"):
        (folder / f"{precision}.yaml").write_text(DESIGN % precision)

    def compile_(precision: str) -> None:
        patchloom.save(compile_design(load_design(folder / f"{precision}.yaml")), folder / "program")

    compile_("w8a8")
    began = time.monotonic()
    os.waitpid(forked(lambda: compile_("w16a16")), 0)
    assert look(folder / "program") == "w16a16"
    whole = time.monotonic() - began
    found: Counter[str] = Counter()
    for number in range(count):  # no bar: its thread would hold its locks in the forked process for ever
        child = forked(lambda number=number: compile_(("w8a8", "w16a16")[number % 2]))
        end = time.monotonic() + rng.uniform(0, 1.3 * whole)
        while time.monotonic() < end:
            found[look(folder / "program")] += 1
        os.kill(child, signal.SIGKILL)
        killed = os.waitpid(child, 0)[1] == signal.SIGKILL
        whole *= 1.05 if killed else 0.9  # most are killed, late as well as early, however busy the machine is
        found["killed" if killed else "done before"] += 1
        found[f"after a kill: {look(folder / 'program')}"] += 1
    compile_("w8a8")
    found[LEFT] = len(list((folder / "program").iterdir())) - 4
    return found


def look(path: Path) -> str:
    try:
        return patchloom.load(path).precision
    except patchloom.Error as error:
        return f"LOST: {error}"


if __name__ == "__main__":
    command_line(kill, count=500)
