"""A report on a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from patchloom.reporting import words
from patchloom.reporting.report import WORTH, Override, Report, TaskReport


def renderable(report: Report) -> RenderableType:
    """The worst layer of each task first, then what would mend it."""
    return Group(*_parts(report))


def _parts(report: Report) -> Iterator[RenderableType]:
    for task in report.tasks:
        yield Text(f"\n{task.name}: {'; '.join(f'{name} {value}' for name, value in words.head(task))}")
        yield _layers(task)
        if (rest := len(task.layers) - words.SHOWN) > 0:
            yield Text(f"and {rest} layers that lose less")
    if report.overrides:
        yield from _overrides(report)


def _layers(task: TaskReport) -> Table:
    """As wide as the narrowest terminal; figures in dB are medians."""
    table = Table(Column("layer", no_wrap=True), box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("noise", "alone", "so far", "bits", "clipped", "rerouted", "cycles", "busy"):
        table.add_column(title, justify="right", no_wrap=True)
    for layer in task.losses[: words.SHOWN]:
        table.add_row(
            Text(words.short(layer.name)),
            words.share(layer.share),
            *(words.decibels(quality.median).removesuffix(" dB") for quality in (layer.alone, layer.accumulated)),
            words.used(layer),
            f"{layer.saturations:,}",
            words.rerouted(layer),
            f"{layer.cycles:,}",
            f"{layer.utilisation:.0%}",
        )
    return table


def _overrides(report: Report) -> Iterator[RenderableType]:
    table = Table("override that was tried", "what it changes", "bytes", box=None, pad_edge=False)
    together = [report.together] if report.together else []
    for override in (*report.useful, *together):
        names = words.lines(override) if override is not report.together else ["together, the best of each"]
        table.add_row(Text("\n".join(names)), Text(_changes(report, override)), f"{override.bytes:+,}")
    if report.useful:
        yield Text()
        yield table
    if rest := len(report.overrides) - len(report.useful):
        yield Text(f"{rest} overrides gain less than {WORTH} dB or do not fit")


def _changes(report: Report, override: Override) -> str:
    changes = zip(override.changes, report.tasks, strict=True)
    return "\n".join(words.change(one, before) for one, before in changes)
