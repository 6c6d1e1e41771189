"""The command line: compile, run, validate, inspect, report, hls, rtl, build, flash."""

import os
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from patchloom import __version__, arrays, pictures, running, session, validating
from patchloom.boards.board import BOARDS
from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.machine.frames import ClippedWarning, Result, Tell, input_frames, input_region, task_of
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.store import load, save
from patchloom.extras import needed_by
from patchloom.inspect import describe
from patchloom.pictures import PictureWarning, inputs_with_pictures, is_picture, pictures_in
from patchloom.presets import config_of
from patchloom.progress import error_console as err
from patchloom.progress import progress_bar, stages

if TYPE_CHECKING:
    from patchloom.sizing import Budget

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
out = Console(markup=False, highlight=False)
ARRAYS = "Inputs by name, one sample or a batch: .npz, .safetensors, .npy."
Directory = Annotated[Path, typer.Argument(help="A compiled Program.")]


def print_version(asked: bool) -> None:
    if asked:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=print_version)
    ] = False,
) -> None:
    """Patchloom compiles trained multi-task Vision Transformers to fixed-point FPGA programs."""


@app.command("compile")
def compile_command(
    design: Annotated[Path, typer.Argument(help="The design file: model, checkpoint, data, precision, machine.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the Program.")],
    board: Annotated[
        str | None, typer.Option(help="Size the machine for this board and the model, whatever the design says of it.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Yosys says what the machine takes of the board, in minutes.")
    ] = False,
) -> None:
    """Compile the model of a design file to a Program.

    A design file runs the code of the Python module that it names. Compile only designs that you trust.
    """
    with needed_by("patchloom compile", "compile"):
        from patchloom.design import compile_design, load_design  # noqa: PLC0415 - an extra
    with progress_bar() as tell:
        program = compile_design(load_design(design, board), tell, tell_budget, measure=measure)
    save(program, output)
    out.print(f"{output}: {len(program.image)} bytes, tasks {', '.join(task.name for task in program.tasks)}")


def tell_budget(budget: "Budget") -> None:
    """What the machine takes of its board, and what the model gets."""
    table = Table("of the device", "machine", "SoC", "there are", "used", title=budget.board.title)
    for kind, name in (("lut", "LUT"), ("ff", "FF"), ("dsp", "DSP"), ("bram", "BRAM")):
        numbers = (f"{getattr(area, kind):g}" for area in (budget.machine, budget.soc, budget.device))
        table.add_row(name, *numbers, f"{budget.share(kind):.0%}")
    out.print(table)
    c = budget.config
    out.print(
        f"array {c.inputs} x {c.outputs}, {c.lanes} lanes, scratchpad {c.scratchpad_chunks * c.lanes * 2 >> 10} KiB; "
        f"{budget.board.clock_hz / 1e6:g} MHz, memory {budget.bandwidth / 1e6:,.0f} MB/s; area by "
        f"{'Yosys' if budget.measured else 'the area model'}",
        soft_wrap=True,
    )
    for line in budget_lines(budget):
        out.print(line, soft_wrap=True)


def budget_lines(budget: "Budget") -> Iterator[str]:
    """Cycles and frames a second; what limits; what the next larger device gives."""
    for task, frames in budget.frames_per_second.items():
        yield f"{task}: {budget.cycles[task]:,} cycles, {frames:.4g} frames a second"
    yield f"limited by {budget.limit}"
    if budget.larger:
        rates = ", ".join(f"{rate:.4g}" for rate in budget.larger.frames_per_second.values())
        yield f"on the next larger device, {budget.larger.board.name}: {rates} frames a second"


@app.command()
def boards() -> None:
    """List the boards that machines are built for."""
    names = "board", "device", "kLUT", "DSP", "BRAM", "MiB", "MB/s", "MHz", "tools"
    table = Table(*names, box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name, board in BOARDS.items():
        device, memory, mega = board.device, board.memory, board.clock_hz / 1e6
        rate = memory.bus_width / 8 * memory.beats_per_cycle * mega
        numbers = device.luts / 1e3, device.dsps, device.brams, memory.bytes >> 20, rate, mega
        table.add_row(name, device.part, *(f"{number:.0f}" for number in numbers), board.tools)
    for column in table.columns:
        column.no_wrap = True
    out.print(table)


@app.command()
def run(
    program: Directory,
    input_: Annotated[
        list[Path],
        typer.Option("--input", help=f"{ARRAYS} Or pictures, one each: .png, .jpg, .jpeg; or a folder of them."),
    ],
    output: Annotated[Path, typer.Option("--output", help="Outputs by name, and their integers under raw/: .npz.")],
    task: Annotated[str | None, typer.Option(help="Needed where the Program has several.")] = None,
    engine: Annotated[
        running.Engine | None,
        typer.Option(help="The reference interpreter, the HLS kernels under g++, or the RTL in simulation."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help=f"In the place of an engine, a machine: {', '.join(session.HOMES)}.")
    ] = None,
    project: Annotated[
        Path | None, typer.Option(help="The folder that `patchloom build` wrote for the board on the other end.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Inputs that do not fit or were converted are an error.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
) -> None:
    """Run a Program on inputs from a file, or on pictures; on an engine, or on a machine.

    Pictures, and arrays of bytes (uint8), go through the preprocessing that the Program keeps; floats are in the
    model's own units.
    """
    if output.suffix != ".npz":
        raise InputError(f"--output must end in .npz, not '{output.name}'")
    if device and engine:
        raise InputError(f"--engine must be left out with --device: '{device}' is what runs the Program")
    if project and not device:
        raise InputError("--project must be left out without --device: no engine asks for a board's project")
    loaded = load(program)
    inputs = inputs_for(task_of(loaded, task), input_)
    with progress_bar() as tell, warnings_told(strict=strict):
        if device:
            result = on_device(loaded, inputs, task, device, project, tell)
        else:
            result = running.run(loaded, inputs, task=task, engine=engine or "interpreter", progress=tell)
    raw = {f"raw/{name}": array for name, array in result.raw.items()}
    if clash := sorted(raw.keys() & result.outputs.keys()):
        raise InputError(f"{output} cannot hold {clash[0]!r} twice: as an output, and as the integers of one")
    write_arrays(output, result.outputs | raw)
    (report_json if as_json else report)(result, output)


def on_device(
    program: Program, inputs: dict[str, Any], task: str | None, device: str, project: Path | None, tell: Tell
) -> Result:
    """Uploads, runs, and says how fast that was."""
    begin = time.monotonic()
    with session.Session(device, program, project=project) as opened:
        uploaded = time.monotonic()
        result = opened.run(inputs, task=task, progress=tell)
    seconds = time.monotonic() - uploaded
    size, frames = len(program.image), len(result.cycles or ())
    err.print(
        f"{size:,} bytes uploaded in {uploaded - begin:.1f} s; {frames} frames in {seconds:.1f} s, input and result "
        "included"
    )
    return result


@app.command()
def validate(
    program: Directory,
    device: Annotated[str, typer.Option(help=f"A machine: {', '.join(session.HOMES)}.")] = "sim",
    project: Annotated[
        Path | None, typer.Option(help="The folder that `patchloom build` wrote for the board on the other end.")
    ] = None,
) -> None:
    """Run the golden of every task on a machine: pass, or the layer and the element that go wrong first.

    A golden is a sample of the calibration and what the reference interpreter makes of it; it travels with the Program.
    Where a result is wrong, the scratchpad is looked at in the middle of the frame, again and again.
    """
    table = Table("task", "elements compared", "cycles", "")
    passed = True
    with session.Session(device, load(program), project=project) as opened:
        for verdict in validating.validate(opened):
            passed &= verdict.passed
            table.add_row(
                Text(verdict.task), f"{verdict.elements:,}", f"{verdict.cycles:,}", "pass" if verdict.passed else "FAIL"
            )
            if not verdict.passed:
                err.print(str(verdict), markup=False, highlight=False, soft_wrap=True)
    out.print(table)
    if not passed:
        raise typer.Exit(1)


@contextmanager
def warnings_told(*, strict: bool) -> Iterator[None]:
    """Of inputs that are clipped or converted: in one line, or as an error."""
    with warnings.catch_warnings(record=not strict) as caught:
        for kind in (ClippedWarning, PictureWarning):
            warnings.simplefilter("error" if strict else "always", kind)
        yield
    for warning in caught or ():
        err.print(f"warning: {warning.message}", markup=False, highlight=False, soft_wrap=True)


def inputs_for(task: Task, paths: Sequence[Path], option: str = "--input") -> dict[str, Any]:
    """The task's inputs: pictures, one or a batch, or all of a folder; or a file's arrays.

    Other arrays of the file are ignored, and a lone array needs no name.
    """
    names = [port.name for port in task.inputs]
    paths = [path for given in paths for path in (pictures_in(given) if given.is_dir() else [given])]
    path = paths[0]
    if any(map(is_picture, paths)):
        if not all(map(is_picture, paths)) or len(names) != 1:
            raise InputError(
                f"{option} must be pictures, and the task's only input, or one file of arrays, not {_listed(paths)} "
                f"for {_listed(names)}"
            )
        return {names[0]: path if len(paths) == 1 else paths}
    if len(paths) > 1:
        raise InputError(f"{option} must be pictures, or one file of arrays, not {_listed(paths)}")
    if path.suffix not in arrays.SUFFIXES:
        raise InputError(f"{path} must be a file that ends in {', '.join((*arrays.SUFFIXES, *pictures.SUFFIXES))}")
    found = arrays.read_arrays(path)
    if len(names) == len(found) == 1:
        return dict(zip(names, found.values(), strict=True))
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{path} must hold {_listed(missing)}; it holds {_listed(found)}")
    return {name: found[name] for name in names}


def _listed(things: Iterable[Any]) -> str:
    return ", ".join(f"'{thing}'" for thing in things)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Where to write it: all of the file takes its place, or nothing of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_arrays(path: Path, results: dict[str, Any]) -> None:
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in results.items():  # as np.savez does, which takes no array named 'file'
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def report(result: Result, output: Path) -> None:
    table = Table("output", "shape")
    for name, array in result.outputs.items():
        table.add_row(Text(name), " x ".join(map(str, array.shape)))
    out.print(table)
    if result.cycles:
        out.print(f"cycles a frame: {', '.join(map(str, sorted(set(result.cycles))))}")
    out.print(f"saturations: {result.saturations}; inputs out of range: {result.clipped}; written to {output}")


def report_json(result: Result, output: Path) -> None:
    """The same for other programs."""
    facts = {
        "outputs": {name: list(array.shape) for name, array in result.outputs.items()},
        "cycles": result.cycles,
        "saturations": result.saturations,
        "clipped": result.clipped,
        "written": str(output),
    }
    out.print_json(data=facts)


@app.command("report")
def report_command(
    program: Directory,
    design: Annotated[Path, typer.Option(help="The design file that the Program was compiled of.")],
    data: Annotated[
        list[Path],
        typer.Option(help=f"None of the calibration's. {ARRAYS} Or pictures: .png, .jpg, .jpeg; or a folder of them."),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A page: .html.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="The units over time, for ui.perfetto.dev or chrome://tracing: .json.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="Of the data, the first ones.")] = 16,
    tries: Annotated[int, typer.Option(min=0, help="Losses of each task that overrides are tried for.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Say where a Program loses accuracy and time, layer by layer, and try what would mend it.

    A layer's noise is told alone, with its input exact, and accumulated, against the float model of the design file,
    whose code this runs. Overrides of precision are compiled and run on the same data.
    """
    with needed_by("patchloom report", "report"):
        from patchloom.reporting import making, page, table  # noqa: PLC0415 - an extra
        from patchloom.reporting.trace import trace as trace_of  # noqa: PLC0415
    for option, path, suffix in (("--output", output, ".html"), ("--trace", trace, ".json")):
        if path is not None and path.suffix != suffix:
            raise InputError(f"{option} must end in {suffix}, not '{path.name}'")
    loaded = load(program)
    inputs = {name: value for task in loaded.tasks for name, value in inputs_for(task, data, "--data").items()}
    with progress_bar() as tell, warnings_told(strict=False):
        made = making.report(loaded, design, inputs, frames=frames, tries=tries, progress=tell)
    for path, text in ((output, page.page(made)), (trace, trace_of(made))):
        if path is not None:
            with whole_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(made.to_json(), nl=False)
    else:
        out.print(table.renderable(made))


@app.command()
def hls(
    program: Directory,
    output: Annotated[Path, typer.Argument(help="Directory of the project; it must be empty, or not exist.")],
    input_: Annotated[
        list[Path] | None, typer.Option("--input", help=f"{ARRAYS} Or a picture: .png, .jpg, .jpeg.")
    ] = None,
) -> None:
    """Write a Program's machine as a project for Vitis HLS, with a test bench.

    The test bench runs every task on the first sample of --input, or on random numbers, and compares with the
    reference interpreter.
    """
    with needed_by("patchloom hls", "hls4ml"):
        from patchloom.sim.hls import write_project  # noqa: PLC0415 - an extra
    loaded = load(program)
    frames = {task.name: golden_input(task, input_) for task in loaded.tasks}
    write_project(loaded, frames, output)
    out.print(f"{output}: `vitis_hls -f vitis_hls.tcl` builds it, `make` simulates it with g++")


@app.command()
def rtl(
    machine: Annotated[
        str, typer.Argument(help="A compiled Program, or a Config: a preset's name or a file of fields.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the core; it must not hold others.")],
    input_: Annotated[
        list[Path] | None, typer.Option("--input", help=f"Of a Program's frames. {ARRAYS} Or a picture: .png, .jpg.")
    ] = None,
) -> None:
    """Write the bare machine as Verilog for a SoC of your own, with a test bench.

    The test bench runs a small frame of its own; of a Program also every task on the first sample of --input, or on
    random numbers. It compares with the reference interpreter.
    """
    with needed_by("patchloom rtl", "sim"):
        from patchloom.boards import core  # noqa: PLC0415 - an extra
    if Path(machine).is_dir():
        program = load(Path(machine))
        config, frames = program.config, core.frames(program, [golden_input(task, input_) for task in program.tasks])
    else:
        config, frames = config_of(machine), []
        if input_:
            raise InputError("--input must be left out with a Config: only a Program has inputs")
    core.write_core(config, output, frames)
    listed = ", ".join(["selftest", *(frame.name for frame in frames)])
    out.print(f"{output}: `make` simulates it with Verilator, `make icarus` with Icarus; frames {listed}")


@app.command()
def build(
    program: Directory,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the project; it must not hold others.")],
    board: Annotated[str, typer.Option("--board", help="Such as ulx3s_85f; an unknown name lists the nearest.")],
    sources_only: Annotated[bool, typer.Option("--sources-only", help="Make no bitstream.")] = False,
    seed: Annotated[int, typer.Option(min=1, help="Of the placer; if timing is missed, the next two follow.")] = 1,
) -> None:
    """Write a board's project for a Program's machine, and its bitstream where open tools make it.

    A bitstream takes ten minutes and more. Programs that share a Config share it: it is made once.
    """
    with needed_by("patchloom build", "boards"):
        from patchloom.boards import build as boards_build  # noqa: PLC0415 - an extra
    with stages() as watch:
        built = boards_build.build(
            load(program), output, board_name=board, sources_only=sources_only, seed=seed, watch=watch
        )
    out.print(told(built))


def plainly(line: str) -> None:
    """What a tool says, while it works."""
    err.print(line, markup=False, highlight=False)


def told(built: Any) -> str:
    """What a build came to."""
    found = built.project.board
    if built.routed is None:
        return f"{built.path}: sources for {found.title}; README.md there says how to go on"
    used = ", ".join(f"{kind} {count} of {limit}" for kind, (count, limit) in built.routed.used.items())
    clocks = ", ".join(map(str, built.routed.clocks))
    return f"{built.path}: bitstream for {found.title}, seed {built.routed.seed}\n{clocks}\n{used}"


@app.command()
def flash(
    project: Annotated[Path, typer.Argument(help="Directory of a project with its bitstream.", show_default=False)],
    persistent: Annotated[
        bool, typer.Option("--persistent", help="Into the flash memory, for every start; else until power is cut.")
    ] = False,
) -> None:
    """Load a project's bitstream into the board on this computer, by openFPGALoader."""
    with needed_by("patchloom flash", "boards"):
        from patchloom.boards import flash as boards_flash  # noqa: PLC0415 - an extra
    with tempfile.TemporaryDirectory(prefix="patchloom-") as folder:
        name = boards_flash.flash(project, persistent=persistent, folder=Path(folder), watch=plainly)
    out.print(f"{project}: loaded into {name}", soft_wrap=True)


def golden_input(task: Task, paths: Sequence[Path] | None) -> NDArray[np.int16]:
    """The input region of a test bench's frame."""
    if not paths:
        noise = np.random.default_rng(0)
        inputs: dict[str, Any] = {port.name: noise.normal(size=port.shape) for port in task.inputs}
    else:
        inputs = inputs_with_pictures(task, inputs_for(task, paths))
    frames, _ = input_frames(task, inputs)
    return input_region(task, frames[0])[0]


@app.command()
def inspect(program: Directory) -> None:
    """Print what a Program holds: tasks, inputs, outputs, commands, memory."""
    out.print(describe(load(program)), end="", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Errors of the user's making are one message and exit code 1; 2 is a wrong command line."""
    try:
        app()
    except (Error, OSError) as error:
        if "--debug" in sys.argv:
            raise
        err.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        message = f"error: {type(error).__name__}: {error}\n`patchloom --debug ...` shows where"
        err.print(message, markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
