"""A report as one page that needs nothing else: no script, no font, no network."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from patchloom import __version__
from patchloom.reporting import words
from patchloom.reporting.report import Report, TaskReport


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("patchloom.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.globals |= {"words": words, "version": __version__}
    return made


def page(report: Report) -> str:
    """HTML."""
    return _environment().get_template("page.html").render(report=report)


def body(report: Report) -> str:
    """What a notebook shows."""
    return _environment().get_template("body.html").render(report=report)


def picture(task: TaskReport) -> str:
    """SVG of where one task loses, the worst layer first, for a page of its own."""
    return _environment().get_template("losses.svg").render(task=task, alone=True)
