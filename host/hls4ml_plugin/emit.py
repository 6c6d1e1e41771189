"""The C++ of one leaf, beside hls4ml's own: index tables, formats and how the Program is run."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.program import Port
from host.hls4ml_plugin.leaf import Leaf
from sim.interpret import execute

HEADER = """// Written by Patchloom.
#ifndef {guard}
#define {guard}

#include "ap_fixed.h"

static const int {name}_input_index[] = {{{input_index}}};
static const int {name}_output_index[] = {{{output_index}}};
extern "C" void (*{name}_run)(const short *input, short *output) = nullptr;

struct {name}_patchloom {{
    typedef {input_t} input_t;
    typedef {output_t} output_t;
    static const int n_in = {n_in};
    static const int n_out = {n_out};
    static const int input_elements = {input_elements};
    static const int output_elements = {output_elements};
    static int input_index(int i) {{ return {name}_input_index[i]; }}
    static int output_index(int i) {{ return {name}_output_index[i]; }}
    static void run(const short *input, short *output) {{ {name}_run(input, output); }}
}};

#endif
"""
RUN = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_int16), ctypes.POINTER(ctypes.c_int16))


def header(leaf: Leaf, name: str, *, channels_last: bool) -> str:
    """The header that hls4ml's parameters.h includes for the layer `name`.

    hls4ml's arrays of this layer have the channels last where it has converted the model so.
    """
    task = leaf.program.tasks[0]
    places = np.append(_places(leaf.input, channels_last), -1)  # index -1 stays -1
    taken = np.empty(leaf.output.index.size, np.int64)
    taken[_places(leaf.output, channels_last)] = leaf.output.index.reshape(-1)
    region = np.full(task.input_bytes // 2, -1, np.int64)
    region[leaf.input.offset // 2 :][: leaf.input.elements] = places[leaf.input.index]
    return HEADER.format(
        guard=f"{name.upper()}_PATCHLOOM_H_",
        name=name,
        input_index=", ".join(map(str, region)),
        output_index=", ".join(map(str, taken + leaf.output.offset // 2)),
        input_t=fixed(leaf.input),
        output_t=fixed(leaf.output),
        n_in=places.size - 1,
        n_out=taken.size,
        input_elements=region.size,
        output_elements=task.output_bytes // 2,
    )


def fixed(port: Port) -> str:
    """A port's format as hls4ml and HLS write it; rounding and saturation are those of `to_region`."""
    return f"ap_fixed<{port.width}, {port.width - port.fraction}, AP_RND, AP_SAT>"


def _places(port: Port, channels_last: bool) -> NDArray[np.int64]:
    """Where hls4ml's flat array has each element of the user's flat tensor."""
    order = np.arange(np.prod(port.shape, dtype=int)).reshape(port.shape)
    if not channels_last:
        return order.reshape(-1)
    places = np.empty(order.size, np.int64)
    places[np.moveaxis(order, 0, -1).reshape(-1)] = np.arange(order.size)
    return places


def attach(library: ctypes.CDLL, leaves: Mapping[str, Leaf]) -> list[Any]:
    """Let the library's leaves run on the reference interpreter; the caller keeps what is returned."""
    functions = []
    for name, leaf in leaves.items():
        function = RUN(_interpreted(leaf))
        ctypes.c_void_p.in_dll(library, f"{name}_run").value = ctypes.cast(function, ctypes.c_void_p).value
        functions.append(function)
    return functions


def _interpreted(leaf: Leaf) -> Any:
    task = leaf.program.tasks[0]

    def run(source: Any, sink: Any) -> None:
        region = np.ctypeslib.as_array(source, (task.input_bytes // 2,))
        output, _ = execute(leaf.program, task.name, region)
        np.ctypeslib.as_array(sink, (task.output_bytes // 2,))[:] = output

    return run
