"""Writes the tables of docs/machine.md: `python -m docs.tables`.

Names, widths and numbers are the objects' own; what each means is the comment behind it in its source.
"""

import inspect
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from enum import IntEnum
from types import ModuleType
from typing import get_type_hints

from docs.page import DOCS, replaced
from patchloom.compiler.machine import commands
from patchloom.compiler.machine.commands import FIELDS, Command, Kind
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.registers import markdown

PAGE = DOCS / "machine.md"


def comments(source: ModuleType | type) -> dict[str, str]:
    """First name or string of a line -> the comment at its end."""
    found, first = {}, ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(source)).readline):
        if token.type in (tokenize.NEWLINE, tokenize.NL):
            first = ""
        elif token.type in (tokenize.NAME, tokenize.STRING) and not first:
            first = token.string.strip("\"'")
        elif token.type == tokenize.COMMENT and first:
            found[first] = token.string.lstrip("# ")
    return found


def config_table() -> Iterator[str]:
    meaning, rules = comments(Config), defaultdict(list)
    for name, rule, _ in Config().rules():
        rules[name].append(rule)
    yield from ("| field | default | must be | meaning |", "|---|--:|---|---|")
    for field in fields(Config):
        must_be = "; ".join(rules[field.name])
        yield f"| {field.name} | {field.default} | {must_be} | {meaning.get(field.name, '')} |"


def command_table() -> Iterator[str]:
    meaning = comments(Kind)
    yield from ("| number | command | does |", "|--:|---|---|")
    for kind in Kind:
        yield f"| {kind.value} | {kind.name} | {meaning[kind.name]} |"


def field_table() -> Iterator[str]:
    meaning, position, types = comments(commands), 0, get_type_hints(Command)
    yield from ("| bit | field | bits | meaning |", "|--:|---|--:|---|")
    for name, (bits, signed) in FIELDS.items():
        told = meaning.get(name) or numbers(types[name])
        yield f"| {position} | {name} | {bits}{' signed' * signed} | {told} |"
        position += bits


def numbers(kind: type) -> str:
    return ", ".join(f"{member.value} {member.name}" for member in kind) if issubclass(kind, IntEnum) else ""


TABLES = {"Config": config_table, "commands": command_table, "fields": field_table, "registers": markdown}


def written(page: str) -> str:
    for name, table in TABLES.items():
        text = table()
        page = replaced(page, f"docs.tables: {name}", text if isinstance(text, str) else "\n".join(text) + "\n")
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
