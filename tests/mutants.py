"""Do the tests notice? Changes one place of the RTL or the reference at a time and runs the tests that must then fail.

    python -m tests.mutants

Works on a copy of the tree; prints a table and writes tests/mutants.json. A mutant that no test kills is an error.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "mutants.json"

# file, what stands there once, what stands there instead, the test file that must fail
FIXED, TEST_FIXED = "compiler/machine/fixed.py", "compiler/machine/test_fixed.py"
MUTANTS = (
    (FIXED, "(np.int64(1) << shift) >> 1)", "(np.int64(1) << shift) >> 2)", TEST_FIXED),
    (FIXED, "magnitude < 8 << GELU_FRACTION", "magnitude < 4 << GELU_FRACTION", TEST_FIXED),
    ("sim/interpret.py", "first[token] == expert", "first[token] != expert", "hw/test_router.py"),
    ("sim/interpret.py", "<< MEAN_GUARD) - mean[:, None]", "<< MEAN_GUARD) + mean[:, None]", "sim/test_interpret.py"),
    ("hw/tables.py", "magnitude[GELU_FRACTION + 3 :]", "magnitude[GELU_FRACTION + 4 :]", "hw/test_tables.py"),
    ("hw/operand.py", "late > i", "late >= i", "hw/test_operand.py"),
    ("hw/operand.py", "self.config.lanes + lane, 8", "lane, 8", "hw/test_operand.py"),
    ("hw/epilogue.py", "packed.word_select(before,", "packed.word_select(early,", "hw/test_epilogue.py"),
    ("hw/array.py", "old = Mux(later.first, 0, found)", "old = Mux(beat.first, 0, found)", "hw/test_array.py"),
    ("hw/epilogue.py", "(later.group == 0) | (highest", "(highest", "hw/test_epilogue.py"),
    ("hw/scratchpad.py", "wraps = [i < address", "wraps = [i <= address", "hw/test_scratchpad.py"),
    ("hw/scratchpad.py", "== number", "!= number", "hw/test_scratchpad.py"),
    ("hw/issuer.py", "odd & adds", "odd & ~odd & adds", "sim/test_machine.py"),
    ("hw/datapath.py", "~epilogue.write.valid if", "1 if", "sim/test_machine.py"),
    ("hw/statistics.py", "above - below + c.epsilon", "above - below", "hw/test_statistics.py"),
    ("hw/loader.py", "feature + config.inputs >= c.depth", "feature + config.inputs > c.depth", "hw/test_loader.py"),
    ("hw/router.py", "(found[i] >= logit)", "(found[i] > logit)", "hw/test_router.py"),
    ("hw/storer.py", "& (level != self.BUFFER)", "", "hw/test_storer.py"),
    ("hw/issuer.py", "settle.eq(Datapath.latency(config))", "settle.eq(1)", "test_tiny.py"),
)  # fmt: skip


def killed(file: str, old: str, new: str, test: str) -> bool:
    """Whether the test fails on a copy of the tree with that change."""
    with tempfile.TemporaryDirectory(prefix="patchloom-mutant-") as directory:
        copy = Path(directory) / "tree"
        shutil.copytree(
            ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(".venv", "build", ".git", "__pycache__")
        )
        text = (copy / file).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{file} must contain {old!r} once, not {text.count(old)} times")
        (copy / file).write_text(text.replace(old, new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1):
            raise SystemExit(f"tests/{test} did not run with {new!r}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 1


def main() -> None:
    table = Table("file", "instead of", "stands", "test", "killed")
    rows = []
    for file, old, new, test in track(MUTANTS, "mutants"):
        dead = killed(file, old, new, test)
        table.add_row(file, old, new, f"tests/{test}", "yes" if dead else "[red]no")
        rows.append({"file": file, "old": old, "new": new, "test": f"tests/{test}", "killed": dead})
    Console().print(table)
    date = datetime.now(UTC).date().isoformat()
    RESULTS.write_text(
        json.dumps({"command": "python -m tests.mutants", "date": date, "mutants": rows}, indent=1) + "\n"
    )
    if not all(row["killed"] for row in rows):
        raise SystemExit("a mutant survived")


if __name__ == "__main__":
    main()
