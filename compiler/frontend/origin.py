"""Which line of the user's an operation is from, and how it is called."""

import inspect
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from patchloom.compiler.origin import Origin

OTHERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[2]}{os.sep}")
LIBRARY = f"{Path(os.__file__).parent}{os.sep}"
LEAVES = re.compile(r"^torch\.nn\.modules\.(linear|conv|normalization|batchnorm|activation)\.(?!MultiheadAttention)")


def is_users(file: str) -> bool:
    """Neither torch's, nor ours, nor Python's."""
    standard = file.startswith(LIBRARY) and "-packages" not in file
    return not (standard or file.startswith((*OTHERS, "<")))


def user_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """file:line of the innermost frame of the user's."""
    lines = [frame for frame in frames if is_users(frame.filename)]
    return f"{shown_path(lines[-1].filename)}:{lines[-1].lineno}" if lines else ""


def shown_path(path: str) -> str:
    """Relative to the working directory when inside it."""
    inside = os.path.relpath(path)
    return path if inside.startswith("..") else inside


def defined_at(module: nn.Module) -> str:
    code = inspect.unwrap(type(module).forward).__code__
    return f"{shown_path(code.co_filename)}:{code.co_firstlineno}"


def origin_of(node: torch.fx.Node, op: str, parameters: Mapping[torch.fx.Node, str]) -> Origin:
    """Named after the module whose weight it uses, else after the module it runs in."""
    found = re.findall(r'File "(.+?)", line (\d+), in (\w+)', node.meta.get("stack_trace") or "")
    frames = [traceback.FrameSummary(file, int(line), function, lookup_line=False) for file, line, function in found]
    modules = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())
    path, kind = modules[-1][0], str(modules[-1][1])
    short = op.rpartition(".")[2].strip("_").replace("scaled_dot_product_attention", "attention")
    name = path if LEAVES.match(kind) or short == "moe" else f"{path}.{short}".lstrip(".")
    owners = (re.fullmatch(r"(.+)[._]weight", parameters.get(part, "")) for part in node.all_input_nodes)
    name = next((owner[1] for owner in owners if owner), name)
    return Origin(op=op, name=name, where=user_line(frames))
