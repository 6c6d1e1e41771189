"""`compile` over an existing Program, killed at random moments while a reader looks: nothing is ever lost.

python -m tests.kill --count 500 --seed 0
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import patchloom
from patchloom.design import compile_design, load_design

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


def kill_compiles(count: int, seed: int, folder: Path, *, show: bool = False) -> Counter[str]:
    """What the reader found, and what was left in the folder beyond a Program's three files."""
    torch.set_num_threads(1)
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
    for number in range(count):  # a progress bar's thread would hold its locks in the forked process for ever
        if show and number % 50 == 0:
            sys.stdout.write(f"{number} kills\n")
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
    found["files left over"] = len(list((folder / "program").iterdir())) - 3
    return found


def look(path: Path) -> str:
    try:
        return patchloom.load(path).precision
    except patchloom.Error as error:
        return f"LOST: {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = kill_compiles(options.count, options.seed, Path(folder), show=True)
    for outcome, count in sorted(found.items()):
        sys.stdout.write(f"{count:7} {outcome}\n")
    sys.exit(any("LOST" in outcome for outcome in found) or found["files left over"] > 0)


if __name__ == "__main__":
    main()
