"""The command line: compile, run, validate, inspect, report, hls, rtl, build, deploy, flash."""

import json
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from patchloom import __version__, running, session, showing, sources, validating
from patchloom.boards.board import BOARDS
from patchloom.boards.deploy import deploy
from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.machine.frames import ClippedWarning, Result, Tell, input_frames, input_region, task_of
from patchloom.compiler.machine.program import Program, Task
from patchloom.compiler.machine.store import load, save
from patchloom.drawing import Sight, need_matplotlib
from patchloom.extras import needed_by
from patchloom.inspect import describe
from patchloom.pictures import PictureWarning, inputs_with_pictures
from patchloom.presets import config_of
from patchloom.progress import error_console as err
from patchloom.progress import progress_bar, stages
from patchloom.showing import Seen

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
def run(  # noqa: PLR0913, PLR0917 - one each option
    program: Directory,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="FILE.npz: outputs by name. Or a folder: a picture and arrays a frame."),
    ],
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(help=f"{ARRAYS} Or pictures, one each: .png, .jpg, .jpeg; or a folder of them."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Needed for FILE.npz where there are several; else all.")] = None,
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
    watch: Annotated[
        Path | None, typer.Option(help="A folder: pictures as they arrive there, until Ctrl-C.", metavar="FOLDER")
    ] = None,
    camera: Annotated[
        int | None, typer.Option(min=0, help="Of this number, by OpenCV, until Ctrl-C.", metavar="N")
    ] = None,
    experts: Annotated[
        bool,
        typer.Option("--experts", help="Draw experts of a machine's frames, too: the interpreter runs them beside it."),
    ] = False,
    pictures: Annotated[bool, typer.Option(help="Of every frame, into the folder.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Inputs that do not fit or were converted are an error.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report as JSON: an object, or one a line and frame.")
    ] = False,
) -> None:
    """Run a Program on inputs from files, on pictures as they come; on an engine, or on a machine.

    Into a folder, frame by frame: NAME.png shows what each task sees beside the input, and, where the interpreter ran
    the frame, the experts that each part of it went to; NAME.npz holds the outputs. Pictures, and arrays of bytes
    (uint8), go through the preprocessing that the Program keeps; floats are in the model's own units.
    """
    if device and engine:
        raise InputError(f"--engine must be left out with --device: '{device}' is what runs the Program")
    if project and not device:
        raise InputError("--project must be left out without --device: no engine asks for a board's project")
    if (inputs is not None) + (watch is not None) + (camera is not None) != 1:
        raise InputError("a run must have either inputs, or --watch, or --camera")
    loaded, chosen = load(program), engine or "interpreter"
    if output.suffix == ".npz":
        if inputs is None or experts or not pictures:
            options = "--watch, --camera, --experts and --no-pictures"
            raise InputError(f"--output must be a folder with {options}, not '{output}'")
        run_whole(loaded, inputs, output, task, chosen, device, project, strict=strict, as_json=as_json)
        return
    tasks = loaded.tasks if task is None else (task_of(loaded, task),)
    showing.check_folder(output, [program, *([watch] if watch else inputs or [])])
    showing.check_names(tasks)
    if pictures:
        need_matplotlib()
    with warnings_told(strict=strict) as tell, until_asked(forever=inputs is None) as stop:
        bursts = bursts_of(tasks, inputs, watch, camera, stop, strict=strict)
        with showing.eyes(loaded, tasks, engine=chosen, device=device, project=project, experts=experts) as eyes:
            for number, seen in enumerate(eyes.seen(bursts), 1):
                tell()
                files = showing.keep(loaded, seen, output, pictures=pictures)
                (frame_json if as_json else frame_line)(number, seen, files)


def bursts_of(
    tasks: Sequence[Task],
    inputs: list[Path] | None,
    watch: Path | None,
    camera: int | None,
    stop: sources.Stop,
    *,
    strict: bool,
) -> sources.Bursts:
    """Frames from where they were asked for."""
    if watch is not None:
        return sources.watched(sources.Folder(watch, tasks, partial(refused, strict=strict)), stop)
    if camera is not None:
        return sources.camera(camera, tasks, stop)
    return sources.files(tasks, inputs or [])


def run_whole(
    program: Program,
    paths: list[Path],
    output: Path,
    task: str | None,
    engine: running.Engine,
    device: str | None,
    project: Path | None,
    *,
    strict: bool,
    as_json: bool,
) -> None:
    """All inputs at once, all outputs into one file."""
    inputs = sources.inputs_for(task_of(program, task), paths)
    with progress_bar() as tell, warnings_told(strict=strict):
        if device:
            result = on_device(program, inputs, task, device, project, tell)
        else:
            result = running.run(program, inputs, task=task, engine=engine, progress=tell)
    raw = {f"raw/{name}": array for name, array in result.raw.items()}
    if clash := sorted(raw.keys() & result.outputs.keys()):
        raise InputError(f"{output} cannot hold {clash[0]!r} twice: as an output, and as the integers of one")
    showing.write_arrays(output, result.outputs | raw)
    (report_json if as_json else report)(result, output)


@contextmanager
def until_asked(*, forever: bool) -> Iterator[sources.Stop]:
    """Of what would go on for ever: Ctrl-C, or a service's end, asks it to stop; a second time it is as ever."""
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {
        number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM) if forever
    }
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refused(error: InputError, *, strict: bool) -> None:
    """A picture that cannot be read, among others that can."""
    if strict:
        raise error
    warned(error)


def frame_line(number: int, seen: Seen, files: Sequence[Path]) -> None:
    told = "; ".join(_sight_told(sight) for sight in seen.sights)
    text = f"{number} {seen.name}: {told}; {seen.rate:.3g} frames a second; {files[-1]}"
    out.print(text.encode(errors="backslashreplace").decode(), soft_wrap=True)


def _sight_told(sight: Sight) -> str:
    result = sight.result
    cycles = f"{result.cycles[0]:,} cycles, " if result.cycles else ""
    return f"{sight.task.name} {cycles}{result.saturations} saturations"


def frame_json(number: int, seen: Seen, files: Sequence[Path]) -> None:
    """The same for other programs, one object a line."""
    tasks = {sight.task.name: _facts(sight.result) for sight in seen.sights}
    facts = {"number": number, "frame": seen.name, "tasks": tasks, "frames_per_second": seen.rate}
    sys.stdout.write(json.dumps(facts | {"written": list(map(str, files))}) + "\n")
    sys.stdout.flush()


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
def warnings_told(*, strict: bool) -> Iterator[Callable[[], None]]:
    """Of inputs that are clipped or converted: in one line, when it is called and at the end, or as an error."""
    with warnings.catch_warnings(record=not strict) as caught:
        for kind in (ClippedWarning, PictureWarning):
            warnings.simplefilter("error" if strict else "always", kind)

        def tell() -> None:
            while caught:
                warned(caught.pop(0).message)

        yield tell
    tell()


def warned(what: Warning | Error | str) -> None:
    err.print(f"warning: {what}", markup=False, highlight=False, soft_wrap=True)


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
    out.print_json(data=_facts(result) | {"written": str(output)})


def _facts(result: Result) -> dict[str, Any]:
    return {
        "outputs": {name: list(array.shape) for name, array in result.outputs.items()},
        "cycles": result.cycles,
        "saturations": result.saturations,
        "clipped": result.clipped,
    }


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
    inputs = {name: value for task in loaded.tasks for name, value in sources.inputs_for(task, data).items()}
    with progress_bar() as tell, warnings_told(strict=False):
        made = making.report(loaded, design, inputs, frames=frames, tries=tries, progress=tell)
    for path, text in ((output, page.page(made)), (trace, trace_of(made))):
        if path is not None:
            with showing.replaced(path) as temporary:
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


@app.command("deploy")
def deploy_command(
    program: Directory,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory to copy; it must not hold others.")],
    project: Annotated[Path, typer.Option(help="The folder that `patchloom build` wrote for the board.")],
) -> None:
    """Write a directory to copy to a board: bitstream, Program, driver, a script that validates, a notebook.

    The driver there needs Python and NumPy alone. Where Vivado has made the bitstream, it is taken from the project.
    """
    deployed = deploy(load(program), project, output)
    bitstream = "with its bitstream" if deployed.bitstream else "without a bitstream yet"
    out.print(f"{output}: for {deployed.board.title}, {bitstream}; README.md there says how to go on", soft_wrap=True)


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
        inputs = inputs_with_pictures(task, sources.inputs_for(task, paths))
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
