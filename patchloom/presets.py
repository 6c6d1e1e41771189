"""Machines to begin with, and a machine as a file states it."""

import difflib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from patchloom.compiler.machine.config import Config, ConfigError
from patchloom.compiler.machine.errors import InputError
from patchloom.extras import needed_by

# `small` fits the smallest boards; `wide` multiplies four times as much a cycle.
PRESETS = {
    "small": Config(),
    "wide": Config(inputs=32, outputs=32, lanes=32, bus_width=256, scratchpad_chunks=8192),
}


def config_of(source: str) -> Config:
    """A preset by name, or a file of fields: `inputs: 8` ..., and perhaps `preset: small`, in YAML or JSON.

    Raises `InputError` for what is neither, `ConfigError` for what a Config cannot be.
    """
    if source in PRESETS:
        return PRESETS[source]
    path = Path(source)
    if not path.is_file():
        raise InputError(f"a machine must be a Program, a file or one of {', '.join(PRESETS)}, not '{source}'")
    values = _read(path)
    known = ["preset", *(field.name for field in fields(Config))]
    if problems := [f"{path}: {_unknown(str(name), known)}" for name in values if name not in known]:
        raise InputError("\n".join(problems))
    preset = values.pop("preset", "small")
    if preset not in PRESETS:
        raise InputError(f"{path}: preset must be one of {', '.join(PRESETS)}, not {preset!r}")
    try:
        return replace(PRESETS[preset], **values)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"'{name}' is not a field of Config" + (f"; did you mean '{close[0]}'?" if close else "")


def _read(path: Path) -> dict[str, Any]:
    """The file's one mapping; a lone text is a preset's name."""
    try:
        text = path.read_text()
        values = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else _yaml(path, text)
    except ValueError as error:  # json's and Unicode's errors
        raise InputError(f"{path} cannot be read: {error}") from error
    if isinstance(values, dict) and "module" in values:
        raise InputError(
            f"{path} is a design, whose machine follows from its precision and board, too: compile it, and give the "
            "Program"
        )
    if isinstance(values, str):
        values = {"preset": values}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold fields of Config, not {values!r:.60}")
    return values


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """Raises ValueError for a name that stands twice: the last one would count without a word."""
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"'{twice}' stands twice")
    return dict(pairs)


def _yaml(path: Path, text: str) -> Any:
    with needed_by(f"{path}, as it is no .json,", "compile"):
        import yaml  # noqa: PLC0415 - an extra
    try:
        if isinstance(root := yaml.compose(text, yaml.SafeLoader), yaml.MappingNode):
            _once([(key.value, value) for key, value in root.value if isinstance(key, yaml.ScalarNode)])
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
