"""Is a converted model still the torch model? Compared layer by layer on the calibration inputs.

What quantisation explains is measured in torch, without our compiler: a copy of the model, `coarse`, has its numbers
rounded to the steps of the converted model, but nothing in it saturates, wraps or gets lost. A layer is accepted while
it is at most `MARGIN` times as far from torch as the coarse copy, root mean square, plus one step of its result.
"""

import copy
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchloom.compiler.machine.errors import Error, InputError
from patchloom.compiler.quantise import Precision
from patchloom.hls4ml.leaf import Leaf

MARGIN = 3
TABLE_BITS = 14  # the machine's function tables err by up to 4e-5: no activation is better than this
Outputs = dict[str, NDArray[np.float64]]


class MismatchError(Error, RuntimeError):
    """A layer of a converted model differs from torch by more than its quantisation explains."""


def check(model: Any, library: ctypes.CDLL) -> None:
    """Compare a compiled hls4ml model with the torch model it was converted from; raises `MismatchError`.

    Without a leaf in it nothing says which inputs to compare on, and nothing is compared.
    """
    module = model.config.config.get("PytorchModel")
    if module is None:
        raise InputError("backend Patchloom must be given a model from PyTorch, whose parts it compiles")
    leaves = [leaf for leaf in module.modules() if isinstance(leaf, Leaf)]
    if not leaves:
        return
    samples = leaves[0].calibration
    exact, rounded = torch_outputs(module, samples, model), torch_outputs(coarse(module, model), samples, model)
    for name, actual in library_outputs(model, library, _as_given(samples, model)).items():
        if name in exact:
            bound = MARGIN * rms(rounded[name] - exact[name]) + _step(model.graph[name].get_attr("result_t"))
            _compare(name, actual, exact[name].reshape(len(samples), -1), bound)


def _compare(name: str, actual: NDArray[np.float64], exact: NDArray[np.float64], bound: float) -> None:
    if actual.shape != exact.shape:
        raise MismatchError(
            f"layer '{name}' must return {exact.shape[1]} values, as in torch, not {actual.shape[1]}: hls4ml has "
            "dropped an operation between this layer and the one before"
        )
    value = rms(actual - exact)
    if not value <= bound:
        raise MismatchError(
            f"layer '{name}' must differ from torch by at most {bound:.3g}, which its quantisation explains, not "
            f"{value:.3g} (root mean square over {len(exact)} calibration inputs)"
        )


def rms(x: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(x).mean()))


# --- Outputs of every layer ---


def torch_outputs(module: nn.Module, samples: Tensor, model: Any) -> Outputs:
    """What torch's modules return, and the model: [n, ...] by the name and in the layout of hls4ml's layers."""
    seen: dict[str, Tensor] = {}
    hooks = [
        part.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name, part in _parts(module, model).items()
    ]
    with torch.no_grad():
        result = module(samples)
    for hook in hooks:
        hook.remove()
    seen.update(zip(model.outputs, result if isinstance(result, tuple) else (result,), strict=True))
    return {name: _as_hls4ml(output, model.graph[name]) for name, output in seen.items()}


def _parts(module: nn.Module, model: Any) -> dict[str, nn.Module]:
    """The modules that are layers of the converted model, by the layer's name."""
    named = {name.replace(".", "_"): part for name, part in module.named_modules() if name}
    named = {f"_{name}" if name[0].isdigit() else name: part for name, part in named.items()}
    return {name: part for name, part in named.items() if name in model.graph}


def _as_hls4ml(output: Tensor, layer: Any) -> NDArray[np.float64]:
    array: NDArray[np.float64] = output.double().numpy()
    return np.moveaxis(array, 1, -1) if layer.get_attr("data_format") == "channels_last" else array


def _as_given(samples: Tensor, model: Any) -> NDArray[np.float64]:
    """The model's inputs as its library takes them: conversion "internal" leaves it to the user to move channels."""
    array: NDArray[np.float64] = samples.double().numpy()
    moved = model.config.config["HLSConfig"]["Model"].get("ChannelsLastConversion") == "internal"
    return np.moveaxis(array, 1, -1) if moved else array


class _Traced(ctypes.Structure):
    """`trace_data` of hls4ml's bridge."""

    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_double))]


def library_outputs(model: Any, library: ctypes.CDLL, samples: NDArray[np.float64]) -> Outputs:
    """What the layers of hls4ml's library return, in the order they run, [n, elements]."""
    sizes = {
        layer.name: layer.get_output_variable().size() for layer in model.get_layers() if layer.get_attr("function_cpp")
    }
    run = getattr(library, f"{model.config.get_project_name()}_double")
    results = [np.zeros(variable.size()) for variable in model.get_output_variables()]
    traced, frames = (_Traced * len(sizes))(), []
    library.allocate_trace_storage(ctypes.c_size_t(8))
    try:
        for sample in np.ascontiguousarray(samples):
            run(*(ctypes.c_void_p(array.ctypes.data) for array in (sample, *results)))
            library.collect_trace_output(traced)
            frame = {t.name.decode(): np.ctypeslib.as_array(t.data, (sizes[t.name.decode()],)).copy() for t in traced}
            frames.append(frame | dict(zip(model.outputs, (result.copy() for result in results), strict=True)))
    finally:
        library.free_trace_storage()
    return {name: np.stack([frame[name] for frame in frames]) for name in [*sizes, *model.outputs]}


# --- What quantisation explains ---


def coarse(module: nn.Module, model: Any) -> nn.Module:
    """A copy of the torch model, rounded as the converted one is."""
    module = copy.deepcopy(module)
    for name, part in _parts(module, model).items():
        if isinstance(part, Leaf):
            part.module = coarse_leaf(part)
        else:
            _coarsen_layer(part, model.graph[name])
    return module


def coarse_leaf(leaf: Leaf) -> nn.Module:
    """The leaf's module, its input, its matrices and what its parts return rounded to the bits of its precision.

    Steps are chosen as simply as can be: per row of a matrix, and for activations a power of two per tensor.
    """
    precision, module = Precision.parse(leaf.precision), copy.deepcopy(leaf.module)
    bits = min(precision.activations, TABLE_BITS)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                flat = parameter.reshape(len(parameter), -1)
                step = flat.abs().amax(1, keepdim=True) / (2 ** (precision.weights - 1) - 1)
                parameter.copy_((flat / step.clamp(min=1e-30)).round().mul(step).reshape(parameter.shape))

    def rounded(x: Tensor) -> Tensor:
        step = 2.0 ** (torch.ceil(torch.log2(x.abs().amax().clamp(min=1e-30))) - (bits - 1))
        return (x / step).round() * step

    module.register_forward_pre_hook(lambda _, arguments: tuple(map(rounded, arguments)))
    for name, part in module.named_modules():
        if name:
            part.register_forward_hook(lambda _, __, output: _tensors(rounded, output))
    return module


def _tensors(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    """nn.MultiheadAttention returns a tuple of a tensor and None."""
    if isinstance(output, tuple):
        return tuple(_tensors(function, part) for part in output)
    return function(output) if isinstance(output, Tensor) else output


def _coarsen_layer(part: nn.Module, layer: Any) -> None:
    """Round one of hls4ml's own layers: weights, bias, result; every sum loses half a step of `accum_t` a term."""
    with torch.no_grad():
        for name in ("weight", "bias"):
            if isinstance(getattr(part, name, None), Tensor) and layer.get_attr(f"{name}_t"):
                getattr(part, name).copy_(_round(getattr(part, name), layer.get_attr(f"{name}_t")))
    accumulator = layer.get_attr("accum_t")
    lost = _step(accumulator) * layer.get_attr("n_in", 1) / 2 if accumulator else 0
    part.register_forward_hook(lambda _, __, output: _round(output - lost, layer.get_attr("result_t")))


def _round(x: Tensor, type_: Any) -> Tensor:
    """To the steps of an hls4ml type: down, where it truncates, else to the nearest."""
    step = _step(type_)
    if not step:
        return x
    down = "TRN" in str(getattr(type_.precision, "rounding_mode", "TRN"))
    return torch.floor(x / step + (0 if down else 0.5)) * step


def _step(type_: Any) -> float:
    """Of a fixed-point type; 0 of a float type."""
    fraction = getattr(type_.precision, "fractional", None)
    return 0.0 if fraction is None else 2.0**-fraction
