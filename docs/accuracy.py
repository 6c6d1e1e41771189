"""Writes what docs/accuracy.md shows: `python -m docs.accuracy`.

report.schema.json: a report as JSON. accuracy.svg and the tables: the report of fashion scenes, on those held back.
"""

import json
from collections.abc import Iterator

import numpy as np

import patchloom
from docs.page import DOCS, write
from examples.fashion_scenes.evaluate import HERE, load_scenes
from patchloom.design import compile_design, load_design
from patchloom.progress import progress_bar
from patchloom.reporting import words
from patchloom.reporting.page import picture
from patchloom.reporting.report import Report, TaskReport, schema

PAGE, COMMAND = DOCS / "accuracy.md", "python -m docs.accuracy"
SHOWN = 6


def tables(report: Report) -> Iterator[str]:
    for task in report.tasks:
        yield from _task(task)
    yield from ("| override | what it changes | bytes of weights |", "|---|---|---|")
    together = [report.together] if report.together else []
    for override in (*report.useful, *together):
        lines = "together" if override is report.together else ", ".join(f"`{x}`" for x in words.lines(override))
        changes = zip(override.changes, report.tasks, strict=True)
        yield f"| {lines} | {'; '.join(words.change(*pair) for pair in changes)} | {override.bytes:+,} |"


def _task(task: TaskReport) -> Iterator[str]:
    head = "; ".join(f"{name} {value}" for name, value in words.head(task))
    yield from (f"**{task.name}**: {head}", "")
    yield "| layer | noise | alone | accumulated | format | bits used | saturated | routed elsewhere | cycles | busy |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for layer in task.losses[:SHOWN]:
        cells = (
            layer.name,
            words.share(layer.share),
            words.decibels(layer.alone.median),
            words.decibels(layer.accumulated.median),
            words.form(layer),
            words.used(layer),
            f"{layer.saturations:,}",
            words.routed(layer),
            f"{layer.cycles:,}",
            words.share(layer.utilisation),
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def main() -> None:
    (DOCS / "report.schema.json").write_text(json.dumps(schema(), indent=1) + "\n")
    images: np.ndarray = load_scenes().images[:, None]
    with progress_bar() as tell:
        program = compile_design(load_design(HERE / "design.yaml"), tell)
        report = patchloom.report(program, HERE / "design.yaml", images, frames=len(images), progress=tell)
    (DOCS / "accuracy.svg").write_text(picture(report.tasks[0]))
    write(PAGE, COMMAND, "\n".join(tables(report)) + "\n")


if __name__ == "__main__":
    main()
