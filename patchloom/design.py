"""The design file: which model, checkpoint, data, precision and machine make a Program.

    module: model.py:FashionSceneViT     # a path relative to this file, or package.module:name, or timm:NAME of a model
    arguments: {depth: 4}                # of the class or function
    checkpoint: checkpoint.safetensors   # or {file: checkpoint.safetensors, prefix: module.}
    tasks: [segmentation, depth]         # names of the task numbers that forward takes
    calibration:                         # one entry, or one per input by its name
      file: scenes.safetensors           # .npy, .npz or .safetensors
      key: calibration
      divide: 2                          # samples / 2 ...
      shape: [1, 64, 128]                # ... each brought into this shape
                                         # or {pictures: folder}: every .png, .jpg and .jpeg in it
    preprocessing:                       # of pictures and of samples that are bytes; or one per input by its name
      size: [64, 128]                    # fields of patchloom.Preprocessing, or timm's data config
      mean: [0.5]
      std: [0.25]
    precision: w8a8
    overrides: {heads.*: w8a16}          # by pattern of the layer's name
    config: {preset: small, inputs: 32}  # or just the preset's name
    board: ulx3s_85f                     # in the place of config: the machine is sized for board and model

Every problem of a file is found at once and told with its line.
"""

import difflib
import importlib
import importlib.util
import inspect
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from patchloom.arrays import SUFFIXES, read_array
from patchloom.boards.board import BOARDS, BoardError
from patchloom.boards.board import board as board_of
from patchloom.compiler.machine.config import Config, ConfigError
from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.machine.frames import Tell, as_floats
from patchloom.compiler.machine.preprocessing import NAMES, TIMM, Preprocessing, PreprocessingError, stated
from patchloom.compiler.machine.program import Program
from patchloom.compiler.quantise import Precision, QuantiseError
from patchloom.compiling import Model, compile_module, preset_for, read_model, samples_of
from patchloom.pictures import pictures_in
from patchloom.presets import PRESETS

if TYPE_CHECKING:
    from patchloom.sizing import Budget


class DesignError(Error, ValueError):
    """Every problem of a design file, one a line, each with its place in the file."""


@dataclass(frozen=True)
class Data:
    """Where the samples of one input are: a file, or a folder of pictures."""

    file: Path
    where: str  # file:line of the design
    key: str | None = None
    divide: float | None = None
    shape: tuple[int, ...] | None = None

    def load(self, preprocessing: Preprocessing | None) -> NDArray[np.floating[Any]]:
        if self.file.is_dir():
            return samples_of(str(self.file), pictures_in(self.file), preprocessing)
        array = read_array(self.file, self.key)
        if self.divide is not None:
            array = as_floats(str(self.file), array)
            array = array / np.asarray(self.divide, array.dtype)
        if self.shape is not None:
            if array.ndim == 0 or not len(array) or array[0].size != np.prod(self.shape):
                raise InputError(
                    f"{self.file} cannot be brought into shape {list(self.shape)} from {list(array.shape)}"
                )
            array = array.reshape(-1, *self.shape)
        return samples_of(str(self.file), array, preprocessing)


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights; `prefix` is what every name in the file begins with and no name in the model."""

    file: Path
    prefix: str = ""


@dataclass(frozen=True)
class Design:
    """A design file without problems."""

    path: Path
    module: str
    where_module: str
    calibration: dict[str, Data]  # the name '' stands for the only input
    config: Config | None  # None: sized for the board
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    where_checkpoint: str = ""
    tasks: tuple[str, ...] | None = None
    precision: str = "w8a8"
    overrides: dict[str, str] = field(default_factory=dict)
    board: str | None = None
    preprocessing: dict[str, Preprocessing] = field(default_factory=dict)  # by the names of `calibration`


# --- Reading the file ---


# A few levels of a value: aliases can make its whole text longer than any memory.
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 200

Pairs = dict[str, tuple[yaml.Node, yaml.Node]]  # key -> its own place, its value


class Reader:
    """The nodes of one YAML file, and every problem found in them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []

    def where(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"

    def complain(self, node: yaml.Node, text: str) -> None:
        self.problems.append((node.start_mark.line + 1, text))

    def finish(self) -> None:
        if self.problems:
            raise DesignError("\n".join(f"{self.path}:{line}: {text}" for line, text in sorted(set(self.problems))))

    def value(self, node: yaml.Node) -> Any:
        return yaml.SafeLoader("").construct_object(node, deep=True)

    def pairs(self, node: yaml.Node, what: str) -> Pairs:
        if not isinstance(node, yaml.MappingNode):
            self.complain(node, f"{what} must be key: value pairs, not {self.shown(node)}")
            return {}
        found: Pairs = {}
        for key, value in node.value:
            name = self.value(key) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                self.complain(key, f"a key of {what} must be text, not {self.shown(key)}")
            elif name in found:
                first = found[name][0].start_mark.line + 1
                self.complain(key, f"'{name}' must be given once, and is already in line {first}")
            else:
                found[name] = key, value
        return found

    def known(self, node: yaml.Node, what: str, keys: list[str], required: tuple[str, ...] = ()) -> Pairs:
        """As `pairs`, without unknown keys."""
        found = self.pairs(node, what)
        for name, (key, _) in found.items():
            if name not in keys:
                close = difflib.get_close_matches(name, keys, 1)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                self.complain(key, f"'{name}' is not a key of {what}{hint}")
        if isinstance(node, yaml.MappingNode):
            for name in required:
                if name not in found:
                    self.complain(node, f"{what} must have the key '{name}'")
        return {name: pair for name, pair in found.items() if name in keys}

    def of_type(self, node: yaml.Node, what: str, kinds: tuple[type, ...], rule: str) -> Any:
        """The node's value, or None if it is of another type."""
        value = self.value(node)
        if type(value) in kinds and (not isinstance(value, list) or value):
            return value
        self.complain(node, f"{what} must be {rule}, not {self.shown(node)}")
        return None

    def shown(self, node: yaml.Node) -> str:
        text = SHORT.repr(self.value(node))
        return text if len(text) <= 60 else f"{text[:57]}..."

    def text(self, node: yaml.Node, what: str) -> str | None:
        value: str | None = self.of_type(node, what, (str,), "text")
        return value

    def file(self, node: yaml.Node, what: str, suffixes: tuple[str, ...]) -> Path | None:
        name = self.text(node, what)
        if name is None:
            return None
        path = self.path.parent / name
        if path.suffix not in suffixes:
            self.complain(node, f"{what} must be a file that ends in {', '.join(suffixes)}, not '{name}'")
        elif "\0" in name or not path.is_file():
            self.complain(node, f"{what} must be a file, and there is none at {str(path)!r}")
        return path


def load_design(path: Path, board: str | None = None) -> Design:
    """Raises `DesignError` with all problems of the file; a machine for `board` takes the place of what it says."""
    reader = Reader(path)
    root = _parse(path)
    values: dict[str, Any] = {}
    pairs = reader.known(root, "a design", list(KEYS), required=("module", "calibration"))
    for name, (_, node) in pairs.items():
        values[name] = KEYS[name](reader, node)
    _check_preprocessing(reader, pairs, values)
    values["board"] = board or values.get("board")
    precision = Precision.parse(values.get("precision") or "w8a8")
    config = _config(reader, pairs.get("config"), precision, values["board"])
    reader.finish()
    if board:
        config = None
    for name in ("module", "checkpoint"):
        if name in pairs:
            values[f"where_{name}"] = reader.where(pairs[name][1])
    return Design(path=path, **values | {"config": config})


def _parse(path: Path) -> yaml.Node:
    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
        if root is not None:
            yaml.SafeLoader("").construct_object(root, deep=True)
    except OSError as error:
        raise DesignError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise DesignError(f"{path}:{mark.line + 1 if mark else 1}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DesignError(f"{path}: {error}") from error
    if root is None:
        raise DesignError(f"{path}: a design must have the keys 'module' and 'calibration', and the file is empty")
    return root


def _module(reader: Reader, node: yaml.Node) -> str | None:
    name = reader.text(node, "module")
    if name is not None and not all(name.rpartition(":")[::2]):
        reader.complain(node, f"module must be package.module:name or path/to/file.py:name, not '{name}'")
    return name


def _arguments(reader: Reader, node: yaml.Node) -> dict[str, Any]:
    return {name: reader.value(value) for name, (_, value) in reader.pairs(node, "arguments").items()}


def _checkpoint(reader: Reader, node: yaml.Node) -> Checkpoint | None:
    if isinstance(node, yaml.ScalarNode):
        file, prefix = reader.file(node, "checkpoint", (".safetensors",)), ""
    else:
        pairs = reader.known(node, "checkpoint", ["file", "prefix"], required=("file",))
        file = reader.file(pairs["file"][1], "file", (".safetensors",)) if "file" in pairs else None
        prefix = (reader.text(pairs["prefix"][1], "prefix") or "") if "prefix" in pairs else ""
    return Checkpoint(file, prefix) if file else None


def _tasks(reader: Reader, node: yaml.Node) -> tuple[str, ...]:
    names = reader.of_type(node, "tasks", (list,), "a list of names") or []
    for i, name in enumerate(names):
        if not isinstance(name, str) or name in names[:i]:
            reader.complain(node.value[i], f"tasks must be different names, not {name!r}")
    return tuple(names)


def _calibration(reader: Reader, node: yaml.Node) -> dict[str, Data | None]:
    if not _is_by_name(node):
        return {"": _data(reader, node, "calibration")}
    return {
        name: _data(reader, value, f"calibration of '{name}'")
        for name, (_, value) in reader.pairs(node, "calibration").items()
    }


def _is_by_name(node: yaml.Node) -> bool:
    """Whether it is a mapping of mappings, one an input."""
    return isinstance(node, yaml.MappingNode) and not any(
        isinstance(value, yaml.ScalarNode | yaml.SequenceNode) for _, value in node.value
    )


def _data(reader: Reader, node: yaml.Node, what: str) -> Data | None:
    if isinstance(node, yaml.MappingNode) and any(key.value == "pictures" for key, _ in node.value):
        pairs = reader.known(node, f"{what} with pictures", ["pictures"])
        folder = _folder(reader, pairs["pictures"][1]) if "pictures" in pairs else None
        return Data(folder, reader.where(node)) if folder else None
    pairs = reader.known(node, what, ["file", "key", "divide", "shape"], required=("file",))
    values: dict[str, Any] = {}
    for name, (_, value) in pairs.items():
        if name == "file":
            values[name] = reader.file(value, "file", SUFFIXES)
        elif name == "key":
            values[name] = reader.text(value, "key")
        elif name == "divide":
            values[name] = reader.of_type(value, "divide", (int, float), "a number")
            if values[name] == 0:
                reader.complain(value, "divide must not be 0")
        else:
            values[name] = _shape(reader, value)
    return Data(where=reader.where(node), **values) if values.get("file") else None


def _folder(reader: Reader, node: yaml.Node) -> Path | None:
    name = reader.text(node, "pictures")
    if name is None:
        return None
    path = reader.path.parent / name
    if "\0" in name or not path.is_dir():
        reader.complain(node, f"pictures must be a folder, and there is none at {str(path)!r}")
    return path


def _shape(reader: Reader, node: yaml.Node) -> tuple[int, ...]:
    sizes = reader.of_type(node, "shape", (list,), "a list of sizes") or []
    if any(type(size) is not int or size < 1 for size in sizes):
        reader.complain(node, f"shape must be a list of positive sizes, not {sizes!r}")
    return tuple(sizes)


def _overrides(reader: Reader, node: yaml.Node) -> dict[str, str]:
    out = {}
    for pattern, (_, value) in reader.pairs(node, "overrides").items():
        out[pattern] = _precision(reader, value)
    return {pattern: text for pattern, text in out.items() if text is not None}


def _precision(reader: Reader, node: yaml.Node) -> str | None:
    text = reader.text(node, "precision")
    if text is not None:
        try:
            Precision.parse(text)
        except QuantiseError as error:
            reader.complain(node, str(error))
            return None
    return text


def _board(reader: Reader, node: yaml.Node) -> str | None:
    name = reader.text(node, "board")
    if name is not None and name not in BOARDS:
        try:
            board_of(name)
        except BoardError as error:
            reader.complain(node, str(error))
        return None
    return name


def _preprocessing(reader: Reader, node: yaml.Node) -> dict[str, Preprocessing]:
    if not _is_by_name(node) or not node.value:
        parts = {"": node}
    else:
        parts = {name: value for name, (_, value) in reader.pairs(node, "preprocessing").items()}
    made = {name: _one_preprocessing(reader, part) for name, part in parts.items()}
    return {name: preprocessing for name, preprocessing in made.items() if preprocessing is not None}


def _one_preprocessing(reader: Reader, node: yaml.Node) -> Preprocessing | None:
    before = len(reader.problems)
    pairs = reader.known(node, "preprocessing", [*NAMES, *TIMM])
    if len(reader.problems) > before:
        return None
    try:
        return stated({name: reader.value(value) for name, (_, value) in pairs.items()})
    except PreprocessingError as error:
        for line in str(error).splitlines():
            name = line.removeprefix("preprocessing.").split()[0]
            reader.complain(pairs[name][1] if name in pairs else node, line)
        return None


def _check_preprocessing(reader: Reader, pairs: Pairs, values: dict[str, Any]) -> None:
    """It is of inputs that have calibration, whose samples nothing else divides."""
    kept, data = values.get("preprocessing") or {}, values.get("calibration") or {}
    for name in kept:
        if name not in data:
            by_name = "by the names of calibration" if "" not in data else "as calibration is, without a name"
            reader.complain(pairs["preprocessing"][0], f"preprocessing must be given {by_name}, not for '{name}'")
        elif data[name] is not None and data[name].divide is not None:
            reader.complain(pairs["calibration"][0], "divide must be left out beside preprocessing, which divides")


KEYS: dict[str, Callable[[Reader, yaml.Node], Any]] = {
    "module": _module,
    "arguments": _arguments,
    "checkpoint": _checkpoint,
    "tasks": _tasks,
    "calibration": _calibration,
    "precision": _precision,
    "overrides": _overrides,
    "preprocessing": _preprocessing,
    "board": _board,
    "config": lambda reader, node: None,  # read last, as it follows precision and board
}


# --- The machine ---


def _config(
    reader: Reader, pair: tuple[yaml.Node, yaml.Node] | None, precision: Precision, board: str | None
) -> Config | None:
    """With a board: none unless it is given, and as wide a bus as the board's if it does not say."""
    if pair is None:
        return None if board else preset_for(precision)
    bus: dict[str, Any] = {"bus_width": board_of(board).memory.bus_width} if board in BOARDS else {}
    node = pair[1]
    if isinstance(node, yaml.ScalarNode):
        return replace(preset_for(precision, _preset(reader, node)), **bus)
    pairs = reader.known(node, "config", ["preset", *(f.name for f in fields(Config))])
    base = preset_for(precision, _preset(reader, pairs.pop("preset")[1]) if "preset" in pairs else "small")
    try:
        return replace(base, **bus | {name: reader.value(value) for name, (_, value) in pairs.items()})
    except ConfigError as error:
        for line in str(error).splitlines():
            name = line.removeprefix("Config.").split()[0]
            reader.complain(pairs[name][1] if name in pairs else node, line.removeprefix("Config."))
        return None


def _preset(reader: Reader, node: yaml.Node) -> str:
    name = reader.value(node)
    if isinstance(name, str) and name in PRESETS:
        return name
    reader.complain(node, f"config must be one of {', '.join(PRESETS)}, or fields, not {reader.shown(node)}")
    return "small"


# --- Building what the file names ---


def compile_design(
    design: Design,
    progress: Tell | None = None,
    budget: "Callable[[Budget], None] | None" = None,
    *,
    measure: bool = False,
) -> Program:
    """Raises `DesignError` with all that cannot be loaded."""
    return compile_module(
        **_loaded(design),
        config=design.config,
        board=design.board,
        measure=measure,
        precision=design.precision,
        overrides=design.overrides,
        progress=progress,
        budget=budget,
    )


def read_design(design: Design, progress: Tell | None = None) -> Model:
    """Its model as the compiler reads it. Raises as `compile_design` does."""
    return read_model(**_loaded(design), progress=progress)


def _loaded(design: Design) -> dict[str, Any]:
    """What both take of a model and its samples, by name."""
    problems: list[str] = []
    model = _attempt(problems, design.where_module, lambda: load_module(design))
    kept = design.preprocessing
    samples = {
        name: _attempt(problems, data.where, partial(data.load, kept.get(name)))
        for name, data in design.calibration.items()
    }
    if problems or model is None:
        raise DesignError("\n".join(problems))
    return {
        "module": model,
        "example_inputs": _example(design, model, samples),
        "calibration": samples.get("", samples),
        "tasks": design.tasks,
        "preprocessing": kept.get("", kept) or None,
    }


Loaded = TypeVar("Loaded")


def _attempt(problems: list[str], where: str, action: Callable[[], Loaded]) -> Loaded | None:
    """The action's result; or None, and what went wrong among the problems."""
    try:
        return action()
    except DesignError as error:
        problems.append(str(error))
    except InputError as error:
        problems.append(f"{where}: {error}")
    return None


def load_module(design: Design) -> nn.Module:
    """The model with its weights."""
    found = _find(design)
    try:
        model = found if isinstance(found, nn.Module) else found(**design.arguments)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise DesignError(f"{design.where_module}: {design.module} failed: {_said(error)}") from error
    if not isinstance(model, nn.Module):
        raise DesignError(
            f"{design.where_module}: module must be or return a torch.nn.Module, not {type(model).__name__}"
        )
    if design.checkpoint:
        _load_weights(design, model, design.checkpoint)
    return model.eval()


# Packages of models, and what makes one of its name.
BY_NAME = {"timm": "create_model", "transformers": "AutoModel.from_pretrained"}


def _find(design: Design) -> Any:
    place, _, name = design.module.rpartition(":")
    try:
        with _importing_from(design.path.resolve().parent):
            found = _run_file(design.path.parent / place) if place.endswith(".py") else importlib.import_module(place)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        if place in BY_NAME and isinstance(error, ModuleNotFoundError) and error.name == place:
            text = f"{place} is not installed: pip install {place}"
            raise DesignError(f"{design.where_module}: {design.module} needs it, but {text}") from error
        raise DesignError(f"{design.where_module}: {place} cannot be imported: {_said(error)}") from error
    if hasattr(found, name):
        return getattr(found, name)
    if place in BY_NAME:
        return partial(attrgetter(BY_NAME[place])(found), name)
    raise DesignError(f"{design.where_module}: {place} has no '{name}'")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def _importing_from(directory: Path) -> Iterator[None]:
    """Imports find modules beside the design file, and those of the directory one stands in."""
    before = sys.path[:]
    sys.path[:0] = [str(directory), str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def _run_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"design_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _load_weights(design: Design, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Every tensor of the model, and nothing else, or a `DesignError` with all that does not fit."""
    try:
        stored = load_file(checkpoint.file)
    except (RuntimeError, SafetensorError, OSError) as error:
        raise DesignError(f"{design.where_checkpoint}: {checkpoint.file} cannot be read: {error}") from error
    named = {name.removeprefix(checkpoint.prefix): tensor for name, tensor in stored.items()}
    problems = list(_misfits(model.state_dict(), named))
    if problems:
        lines = (f"{design.where_checkpoint}: {checkpoint.file} {problem}" for problem in problems)
        raise DesignError("\n".join(lines))
    model.load_state_dict(named, strict=False)


# What wrappers put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")


def _misfits(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with a checkpoint; `own` are the model's tensors, of which some may be one tensor by two names."""
    missing = [name for name in own if name not in stored]
    if missing:
        for prefix in PREFIXES:
            if all(prefix + name in stored for name in missing):
                yield f"has '{prefix}' before every name: give the checkpoint as {{file: ..., prefix: {prefix}}}"
                return
    present = {_place(own[name]) for name in own if name in stored}
    missing = [name for name in missing if _place(own[name]) not in present]
    if missing:
        yield f"has no {', '.join(sorted(missing))}"
    unexpected = sorted(stored.keys() - own.keys())
    if unexpected:
        yield f"has {', '.join(unexpected)}, which the model has not"
    for name in sorted(own.keys() & stored.keys()):
        ours, theirs = own[name], stored[name]
        if ours.shape != theirs.shape:
            yield f"has {name} of shape {list(theirs.shape)}, not {list(ours.shape)}"
        if ours.dtype != theirs.dtype and not (ours.is_floating_point() and theirs.is_floating_point()):
            yield f"has {name} of type {theirs.dtype}, which cannot become {ours.dtype}"


def _place(tensor: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """The same for tied weights."""
    return tensor.data_ptr(), tensor.numel(), tuple(tensor.stride())


def _example(
    design: Design, model: nn.Module, samples: Mapping[str, NDArray[np.floating[Any]] | None]
) -> tuple[Any, ...]:
    """Arguments of forward: the first sample of each input, the first task, as its number or by name."""
    tensors = {name: torch.from_numpy(array[:1]).float() for name, array in samples.items() if array is not None}
    parameters = inspect.signature(model.forward).parameters
    named = any(parameter.annotation in (str, "str") for parameter in parameters.values())
    task: list[Any] = [] if not design.tasks else [design.tasks[0] if named else 0]
    if "" in tensors:
        return (tensors[""], *task)
    arguments: list[Any] = []
    for name, parameter in parameters.items():
        if name in tensors:
            arguments.append(tensors[name])
        elif task:
            arguments.append(task.pop())
        elif parameter.default is parameter.empty:
            where = next(iter(design.calibration.values())).where
            raise DesignError(f"{where}: calibration must have '{name}', which forward of {design.module} needs")
        else:
            break
    return tuple(arguments)
