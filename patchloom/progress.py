"""How long steps are followed on a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from patchloom.compiler.machine.frames import Tell

error_console = Console(stderr=True)


@contextmanager
def progress_bar() -> Iterator[Tell]:
    """A bar per step, on the error stream and only on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console, disable=not error_console.is_terminal) as progress:
        bars: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=total)

        yield tell


@contextmanager
def stages() -> Iterator[Callable[[str, str], None]]:
    """For the stages of a build and what is new of each, on the error stream: a line a stage, which on a terminal says
    the latest and how long it takes; elsewhere a line for whatever is new, after the time since the beginning.
    """
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    begin = time.monotonic()
    with Progress(*columns, console=error_console, disable=not error_console.is_terminal) as progress:
        lines: dict[str, TaskID] = {}

        def watch(stage: str, news: str) -> None:
            text = f"{stage}: {news}" if news else stage
            if not error_console.is_terminal:
                minutes, seconds = divmod(int(time.monotonic() - begin), 60)
                error_console.print(f"{minutes:3}:{seconds:02} {text}", markup=False, highlight=False, soft_wrap=True)
                return
            if stage not in lines:
                for other in lines.values():
                    progress.stop_task(other)
                lines[stage] = progress.add_task(text)
            progress.update(lines[stage], description=text)

        yield watch
