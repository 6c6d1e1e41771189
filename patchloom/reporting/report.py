"""What a report says: one versioned object, as JSON and back. Noise is told as a ratio to it, in dB."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

FORMAT, VERSION = "patchloom report", 1
WORTH = 0.5  # dB of a task's outputs: what gains less is no help
Range = tuple[float, float]
Spans = dict[str, tuple[int, int]]  # of each unit: first cycle and end


@dataclass(frozen=True)
class Quality:
    """Signal to quantisation noise in dB, over frames; none where there is no noise at all."""

    median: float | None
    worst: float | None


@dataclass(frozen=True)
class Routing:
    """Tokens of a mixture that go to another set of experts than in float.

    A gap is what lies between the last logit that is chosen and the first that is not, in float.
    """

    tokens: int
    otherwise: int
    alone: int  # of tokens, otherwise than in float on the very values that the machine's gate read
    gap: float | None  # of those otherwise, median
    widest: float | None  # of those otherwise
    usual: float | None  # of all, median; none where every expert is chosen


@dataclass(frozen=True)
class LayerReport:
    """A layer of one task. `alone`: its input exact. `accumulated`: after all before it, too.

    `at_output`: the task's outputs, were all else in float; `share`: of the noise there that layers make one by one.
    """

    name: str
    kind: str
    where: str
    precision: str
    bits: int
    step: float  # of its result's format
    reach: Range  # of its result's format
    calibrated: Range
    seen: Range  # in float, on this data
    saturations: int
    alone: Quality
    accumulated: Quality
    at_output: Quality
    share: float
    routing: Routing | None
    cycles: int
    waits: dict[str, int]  # cycles that the issuer waits for something: see `patchloom.sim.cycles.WAITS`
    bytes: int  # that its commands move between memory and machine, if every expert has tokens
    macs: int
    utilisation: float  # of the multipliers, while it runs

    @property
    def used(self) -> float:
        """Bits of its format that its values need: fewer than it has, where it shares a scale with larger ones."""
        largest = max(-self.seen[0], self.seen[1])
        return self.bits - max(math.log2(-self.reach[0] / largest), 0) if largest else 0


@dataclass(frozen=True)
class CommandReport:
    """Of the first frame: when each unit is at the command, and what it waits for meanwhile."""

    note: str
    kind: str
    layer: str
    units: Spans
    waits: dict[str, int]


@dataclass(frozen=True)
class TaskReport:
    name: str
    frames: int
    output: Quality
    routed: float | None  # share of tokens, over all mixtures, that go where they go in float; none without a mixture
    saturations: int
    cycles: int  # of the first frame
    bytes: int  # read and written, of the first frame
    macs: int
    utilisation: float
    layers: tuple[LayerReport, ...]  # as they are computed
    commands: tuple[CommandReport, ...]

    @property
    def losses(self) -> list[LayerReport]:
        """The worst first."""
        return sorted(self.layers, key=lambda layer: -layer.share)


@dataclass(frozen=True)
class Change:
    """Of one task by an override, in comparison to the Program."""

    task: str
    output: Quality
    gain: float | None  # of the outputs' median, in dB; none where there is no noise any more
    cycles: int


@dataclass(frozen=True)
class Override:
    """A line of `overrides:` in a design file that was tried; all of them `together` is one, too."""

    layers: dict[str, str]  # precision by layer
    changes: tuple[Change, ...]
    bytes: int  # of the image, more than now
    refused: str  # why it cannot be compiled for this machine; else empty

    @property
    def gain(self) -> float:
        """Of the task that gains the most."""
        return max((change.gain or 0 for change in self.changes), default=0)


@dataclass(frozen=True)
class Report:
    """Of a Program on some data."""

    precision: str
    board: str
    machine: str  # in words
    memory: dict[str, int]  # settings that cycles are of
    tasks: tuple[TaskReport, ...]
    overrides: tuple[Override, ...]  # the most useful first
    together: Override | None  # the best of each layer that gains

    @property
    def useful(self) -> list[Override]:
        """Those that are worth it."""
        return [override for override in self.overrides if override.gain >= WORTH]

    def to_json(self) -> str:
        """Of the schema `schema()`."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> "Report":
        """Raises `ValueError` for what is none of this version."""
        document = json.loads(text)
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise ValueError(f"a report must have the format {FORMAT!r}")
        if (version := document.pop("version", None)) != VERSION:
            raise ValueError(f"a report must be of version {VERSION}, not {version!r}")
        made: Report = _made(Report, document)
        return made

    def _repr_html_(self) -> str:
        from patchloom.reporting.page import body  # noqa: PLC0415 - a renderer, which knows this module

        return body(self)


# --- Types as JSON ---


def schema() -> dict[str, Any]:
    """JSON Schema of a report."""
    defined: dict[str, Any] = {}
    _reference(Report, defined)
    report = defined.pop(Report.__name__)
    report["properties"] |= {"format": {"const": FORMAT}, "version": {"const": VERSION}}
    report["required"] = ["format", "version", *report["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **report, "$defs": defined}


BASIC = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def _schema(kind: Any, defined: dict[str, Any]) -> dict[str, Any]:
    arguments = get_args(kind)
    if is_dataclass(kind):
        return _reference(kind, defined)
    if get_origin(kind) in (Union, UnionType):
        return {"anyOf": [_schema(part, defined) for part in arguments]}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _schema(arguments[1], defined)}
    if get_origin(kind) is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], defined)}
    if get_origin(kind) is tuple:
        parts = [_schema(part, defined) for part in arguments]
        return {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    return {"type": BASIC[kind]}


def _reference(kind: Any, defined: dict[str, Any]) -> dict[str, Any]:
    name = kind.__name__
    if name not in defined:
        properties = {name: _schema(part, defined) for name, part in _types(kind).items()}
        required = list(properties)
        defined[name] = {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    return {"$ref": f"#/$defs/{name}"}


def _types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _object(kind: Any, value: Any) -> Any:
    types = _types(kind)
    if not isinstance(value, Mapping) or types.keys() != value.keys():
        raise ValueError(f"{kind.__name__} must have {', '.join(types)}")
    return kind(**{name: _made(part, value[name]) for name, part in types.items()})


def _made(kind: Any, value: Any) -> Any:
    """The value of a JSON document as the type has it."""
    arguments = get_args(kind)
    if is_dataclass(kind):
        return _object(kind, value)
    if get_origin(kind) in (Union, UnionType):
        return None if value is None else _made(arguments[0], value)
    if get_origin(kind) is dict:
        return {name: _made(arguments[1], part) for name, part in value.items()}
    if get_origin(kind) is tuple:
        parts = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_made(part, item) for part, item in zip(parts, value, strict=True))
    return value
