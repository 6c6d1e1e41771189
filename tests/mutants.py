"""Do the tests notice? Changes one place at a time and runs the test that must then fail.

    python -m tests.mutants            # all
    python -m tests.mutants sim host   # those of files that begin so

Works on a copy of the tree; prints a table and keeps tests/mutants.json: what came of each mutant, and when it ran.
A mutant that no test kills is an error.
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
KEYS = ("file", "old", "new", "test")

# file, what stands there once, what stands there instead, the test that must fail
FIXED, TEST_FIXED = "compiler/machine/fixed.py", "compiler/machine/test_fixed.py"
INTERPRET, TEST_INTERPRET = "sim/interpret.py", "sim/test_interpret.py"
STORE, TEST_STORE = "compiler/machine/store.py", "compiler/machine/test_program.py"
FIT, HLS = "compiler/schedule/test_fit.py", "hw/test_hls.py"
GOLDEN, MACHINE = "sim/test_cycles.py::test_golden", "sim/test_hls.py"
PASSES = "compiler/passes/test_passes.py"
EXPERTS, SOURCES, DEPLOY = (f"patchloom/test_{name}.py" for name in ("experts", "sources", "deploy"))
BUDGET, REPORT = "patchloom/reporting/test_budget.py", "patchloom/reporting/test_report.py"
MUTANTS = (
    (FIXED, "(np.int64(1) << shift) >> 1)", "(np.int64(1) << shift) >> 2)", TEST_FIXED),
    ("compiler/machine/tables.py", "else word + MIDDLE", "else word", TEST_INTERPRET),
    ("compiler/machine/verify.py", "held >= 0", "held >= -9", TEST_STORE),
    ("compiler/machine/bounds.py", "min(ELEMENT_WIDTH, count * config.weight_width)", "8", FIT),
    ("compiler/machine/bounds.py", "return magnitude.bit_length() + 1", "return magnitude.bit_length()", FIT),
    ("compiler/machine/encoding.py", "(value ^ sign) - sign", "value", "compiler/machine/test_commands.py"),
    ("compiler/machine/commands.py", "depth: Annotated[int, Bits(16)]", "depth: Annotated[int, Bits(15)]",
     "compiler/machine/test_commands.py"),
    ("compiler/machine/config.py", "self.bus_width // 8", "self.bus_width // 4", "compiler/machine/test_config.py"),
    ("compiler/machine/layout.py", "transpose(3, 1, 0, 4, 2)", "transpose(3, 0, 1, 4, 2)",
     "compiler/machine/test_layout.py"),
    ("compiler/machine/verify.py", "return last < size", "return last <= size + 9999", TEST_STORE),
    ("compiler/machine/verify.py", "bits <= w.config.accumulator_width", "True", TEST_STORE),
    (STORE, "if segment.offset > end:", "if segment.offset < end:", TEST_STORE),
    ("compiler/machine/program.py", "np.clip(flat, -limit, limit - 1)", "np.clip(flat, -limit, limit)", TEST_STORE),
    ("compiler/nodes/matmul.py", "result + at.read(self.residual)", "result - at.read(self.residual)",
     "compiler/nodes/test_matmul.py"),
    ("compiler/nodes/attention.py", "bounds.digits(d.config, operand)", "1", FIT),
    ("compiler/quantise/scores.py", "apart * after.scale >= far", "True", "compiler/nodes/test_attention.py"),
    ("compiler/nodes/mix.py", "band.low // d.config.lanes", "0", "compiler/nodes/test_mix.py"),
    ("compiler/nodes/products.py", "a.scale * b.scale", "a.scale", "compiler/nodes/test_products.py"),
    ("compiler/nodes/moe.py", '"max_rows": rows', '"max_rows": rows - 1', FIT),
    ("compiler/quantise/linear.py", "multiplier_of(2**MEAN_GUARD / features)", "multiplier_of(1 / features)",
     "compiler/quantise/test_linear.py"),
    ("compiler/quantise/formats.py", "2.0 ** math.ceil(math.log2(scale))", "2.0 ** math.floor(math.log2(scale))",
     "compiler/quantise"),
    ("compiler/schedule/buffers.py", "self.first <= other.last", "self.first < other.last",
     "compiler/schedule/test_buffers.py"),
    ("compiler/schedule/columns.py", "free = aligned(free + last - first, chunk)", "free = free + last - first",
     "compiler/schedule/test_columns.py"),
    ("compiler/schedule/driver.py", "aligned(needed, config.banks)", "needed - 1", FIT),
    ("compiler/frontend/movement.py", 'a["pad"], -1)', 'a["pad"], 0)', "compiler/frontend/test_layers.py"),
    ("compiler/passes/selection.py", "used = self.columns >= 0", "used = self.columns > 0", PASSES),
    ("compiler/passes/residuals.py", "residual=second", "residual=first", PASSES),
    (INTERPRET, "first[t] == expert", "first[t] != expert", TEST_INTERPRET),
    (INTERPRET, "<< MEAN_GUARD) - mean)", "<< MEAN_GUARD) + mean)", TEST_INTERPRET),
    (INTERPRET, "added if c.residual == Residual.CHAIN else 0, before", "before, added", TEST_INTERPRET),
    (INTERPRET, "operand != a", "operand == a", TEST_INTERPRET),
    (INTERPRET, "return limited.T if", "return limited if", TEST_INTERPRET),
    (INTERPRET, "[:, : c.top_k]", "[:, : c.top_k + 1]", TEST_INTERPRET),
    ("sim/cycles.py", "next(iter(queue.push), -1)", "next(iter(queue.push), -1) + 40", GOLDEN),
    ("sim/native/cycles/storer.hpp", "read.out(m.read_latency)", "read.out(m.read_latency + 1)", GOLDEN),
    ("sim/native/memory.hpp", "cycle + settings.latency +", "cycle + settings.latency + 1 +", GOLDEN),
    ("host/session.py", 'found["cycles_hi"] << 32', 'found["cycles_hi"] << 31', "host/test_session.py"),
    ("host/session.py", 'if found["status"] & Status.ERROR and found["frames"] == before:', "if False:",
     "host/test_session.py"),
    ("host/session.py", 'if found["frames"] != job.number:', "if False:", "host/test_session.py"),
    ("host/session.py", 'if found["epoch"] != job.registers["epoch"]:', "if False:", "host/test_session.py"),
    ("host/session.py", "& Interrupt.DONE and device.read", "& Interrupt.ERROR and device.read",
     "host/test_uartbone.py"),
    ("hw/registers.py", "is_told = ~irq_status[DONE_BIT]", "is_told = 1", "hw/test_registers.py"),
    ("hw/dma.py", "| (window_page > self.window.last)", "", "hw/test_dma.py"),
    ("hw/boot.py", "ends_within = ~high & ", "ends_within = ", "sim/test_machine.py::test_scenario[regions]"),
    ("hw/issuer.py", "with m.If(~self.reader_empty):", "with m.If(0):", "sim/test_machine.py::test_scenario[unread]"),
    ("host/contents.py", "if not self.doubtful:", "if True:", "host/test_uartbone.py"),
    ("host/transports/bus.py", "self.doubts += 1", "self.doubts += 0", "host/test_uartbone.py"),
    ("host/transports/bus.py", "return MORE if self._wary else 0", "return 0", "host/test_uartbone.py"),
    ("host/transports/etherbone.py", 'number.to_bytes(4, "big")', "packet[head : head + 4]", "host/test_etherbone.py"),
    ("patchloom/arrays.py", "astype(np.uint32) << 16", "astype(np.uint32) << 15", "patchloom/test_arrays.py"),
    ("hw/hls/kernels/router.hpp", "carried > best.logit[k]", "carried >= best.logit[k]", MACHINE),
    ("hw/hls/kernels/epilogue.hpp", "&& !entry.first", "&& entry.first", MACHINE),
    ("hw/hls/kernels/normaliser.hpp", "scaled - squared + c.epsilon", "scaled - squared", MACHINE),
    ("hw/tables.py", "place[CODE_BITS:].any()", "place[CODE_BITS + 1 :].any()", "hw/test_tables.py"),
    ("hw/hls/kernels/activation.hpp", "place < 0 ? 0", "place < 1 ? 1", MACHINE),
    ("hw/operand.py", "late > i", "late >= i", "hw/test_operand.py"),
    ("hw/operand.py", "self.config.lanes + lane, 8", "lane, 8", "hw/test_operand.py"),
    ("hw/epilogue.py", "packed.word_select(before,", "packed.word_select(early,", "hw/test_epilogue.py"),
    ("hw/array.py", "old = Mux(later.first, 0, found)", "old = Mux(beat.first, 0, found)", "hw/test_array.py"),
    ("hw/epilogue.py", "(later.group == 0) | (highest", "(highest", "hw/test_epilogue.py"),
    ("hw/epilogue.py", "with m.If(number == 0)", "with m.If(number != 0)",
     "hw/test_epilogue.py::test_packed"),
    ("hw/serialiser.py", "init=self.SETS - 1", "init=0", "hw/test_serialiser.py"),
    ("hw/serialiser.py", "| port | soon", "| soon", "hw/test_serialiser.py"),
    ("hw/serialiser.py", "| port | soon", "| port", "hw/test_serialiser.py"),
    ("hw/statistics.py", "self.first, latency + 2", "self.first, latency + 1", "hw/test_statistics.py"),
    ("hw/scratchpad.py", "wraps = [i < address", "wraps = [i <= address", "hw/test_scratchpad.py"),
    ("hw/scratchpad.py", "== number", "!= number", "hw/test_scratchpad.py"),
    ("hw/issuer.py", "odd & adds", "odd & ~odd & adds", "sim/test_machine.py"),
    ("hw/datapath.py", "(epilogue.write.valid & Scratchpad.shares_port(self.config))", "0", "sim/test_machine.py"),
    ("hw/datapath.py", "~(epilogue.reads | ", "~(", "sim/test_machine.py"),
    ("hw/epilogue.py", "Mux(self.multiplies, early, late))", "late)", "hw/test_epilogue.py"),
    ("hw/serialiser.py", "Mux(self.residual == Residual.MULTIPLY, early, late)", "late", "hw/test_serialiser.py"),
    ("hw/issuer.py", "(self.stager_index >= walker.index) & ", "", "sim/test_cycles.py"),
    ("hw/hls/kernels/epilogue.hpp", "if (multiplies) factor = residual;", "", "sim/test_hls.py"),
    ("compiler/passes/gates.py", "replace(before, factor=other)", "replace(before, factor=view)", PASSES),
    ("compiler/passes/key_biases.py", "(keys != keys[:, :1]).any()", "False", PASSES),
    ("compiler/schedule/columns.py", "x.user_input is None or x.name not in ports", "True",
     "compiler/schedule/test_columns.py"),
    ("hw/statistics.py", "above - below + c.epsilon", "above - below", "hw/test_statistics.py"),
    ("hw/loader.py", "feature + config.inputs >= c.depth", "feature + config.inputs > c.depth", "hw/test_loader.py"),
    ("hw/router.py", "(found[i] >= logit)", "(found[i] > logit)", "hw/test_router.py"),
    ("hw/storer.py", "& (level != self.BUFFER)", "", "hw/test_storer.py"),
    ("hw/issuer.py", "settle.eq(Datapath.latency(config))", "settle.eq(1)", "test_tiny.py"),
    ("patchloom/experts.py", "self.tokens[:, None] if c.queue == Queue.SCATTER else NOWHERE", "NOWHERE", EXPERTS),
    ("patchloom/experts.py", "sets[queue, expert] = True", "sets[queue, expert - 1] = True", EXPERTS),
    ("patchloom/drawing.py", "axis = 2 if last and not first else 0", "axis = 0", "patchloom/test_drawing.py"),
    ("patchloom/sources.py", "if now - since >= SETTLED", "", SOURCES),
    ("patchloom/sources.py", "if _version(path) != version:", "if False:", SOURCES),
    ("patchloom/sources.py", "more = not stop()", "more = True", SOURCES),
    ("patchloom/showing.py", "output.resolve() == folder.resolve()", "output == folder", "patchloom/test_showing.py"),
    ("patchloom/showing.py", "if not np.array_equal(raw, result.raw[name])", "if False", "patchloom/test_showing.py"),
    ("boards/deploy.py", 'if facts["fingerprint"] != f"{program.config.fingerprint:08x}":', "if False:", DEPLOY),
    ("boards/deploy.py", '{**facts, "format": FORMAT}', "facts", DEPLOY),
    ("boards/wheel.py", "waiting += [*_imported(text), ", "waiting += [", DEPLOY),
    ("compiler/schedule/layers.py", 'written[draft.node, draft.places["o_address"][0]] = position',
     'written.setdefault((draft.node, draft.places["o_address"][0]), position)', BUDGET),
    ("compiler/schedule/layers.py", "| (np.diff(positions) != 1)", "", BUDGET),
    ("compiler/schedule/drafting.py", "self.parts.append(Part(node, self.tensors[node], first,",
     "self.parts.append(Part(node, self.tensors[node], 0,", BUDGET),
    ("compiler/quantise/calibration.py", "math.log(RARE / count)", "math.log(RARE)",
     "compiler/quantise/test_formats.py"),
    ("patchloom/reporting/machine.py", "zip(next(self.orders), state", "zip(range(99), state", BUDGET),
    ("patchloom/reporting/machine.py", "+= state.saturations - self.saturations", "+= state.saturations", REPORT),
    ("patchloom/reporting/budget.py", "ranked[:, top - 1] - ranked[:, top]", "ranked[:, 0] - ranked[:, top]", BUDGET),
    ("patchloom/reporting/budget.py", "if not changed.isdisjoint(later.inputs):", "if node in later.inputs:", BUDGET),
    ("patchloom/reporting/timing.py", "ends[position - 1] if position else 0", "0", REPORT),
    ("patchloom/reporting/overrides.py", "(*self.precision.overrides, *overrides)", "tuple(overrides)", REPORT),
    ("sim/native/cycles.cpp", "ahead[2 * w.stager_index] = cycle + 1", "ahead[2 * w.stager_index] = cycle + 900",
     "sim/test_cycles.py::test_where_cycles_go"),
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


def main(beginnings: list[str]) -> None:
    table = Table("file", "instead of", "stands", "test", "killed")
    rows = {_key(row): row for row in json.loads(RESULTS.read_text())["mutants"] if _key(row) in MUTANTS}
    for mutant in track([mutant for mutant in MUTANTS if mutant[0].startswith(tuple(beginnings))], "mutants"):
        dead = killed(*mutant)
        table.add_row(*mutant, "yes" if dead else "[red]no")
        date = datetime.now(UTC).date().isoformat()
        rows[mutant] = dict(zip(KEYS, mutant, strict=True)) | {"date": date, "killed": dead}
        kept = [rows[known] for known in MUTANTS if known in rows]
        RESULTS.write_text(json.dumps({"command": "python -m tests.mutants", "mutants": kept}, indent=1) + "\n")
    Console().print(table)
    if not all(row["killed"] for row in rows.values()):
        raise SystemExit("a mutant survived")


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEYS)


if __name__ == "__main__":
    main(sys.argv[1:] or [""])
