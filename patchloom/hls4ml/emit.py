"""The C++ of leaves, beside hls4ml's own: the kernels once, and per leaf its Program, index tables and formats."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.program import Port
from patchloom.hls4ml.leaf import Leaf
from patchloom.hw.hls import emit

HEADER = """\
// Generated: a Program, and how it reads and writes hls4ml's arrays.
#ifndef {guard}
#define {guard}

#include "nnet_utils/nnet_patchloom.h"

static const patchloom::Word {name}_program[] = {{
{program}
}};
static const int {name}_input_index[] = {{{input_index}}};
static const int {name}_output_index[] = {{{output_index}}};

struct {name}_patchloom {{
    typedef {input_t} input_t;
    typedef {output_t} output_t;
    static const int n_in = {n_in};
    static const int n_out = {n_out};
    static const int input_words = {input_words};
    static const int input_bits = {input_bits};
    static const int output_words = {output_words};
    static const patchloom::Word *program() {{ return {name}_program; }}
    static int input_index(int i) {{ return {name}_input_index[i]; }}
    static int output_index(int i) {{ return {name}_output_index[i]; }}
}};

#endif
"""


def write_kernels(config: Config, directory: Path) -> None:
    """The machine's sources, for a Config."""
    directory.mkdir(parents=True, exist_ok=True)
    kernels = {name: text for name, text in emit.sources().items() if name.endswith(".hpp") and name != "top.hpp"}
    for name, text in (kernels | {"facts.hpp": emit.facts(config)}).items():
        (directory / name).write_text(text)


def header(leaf: Leaf, name: str, *, channels_last: bool) -> str:
    """What hls4ml's parameters.h includes for the layer `name`.

    hls4ml's arrays of this layer have the channels last where it has converted the model so.
    """
    task, beat = leaf.program.tasks[0], leaf.program.config.beat_bytes
    words = -(-task.input_bytes // beat), -(-task.output_bytes // beat)
    places = np.append(_places(leaf.input, channels_last), -1)  # index -1 stays -1
    size = leaf.input.element_bytes
    region = np.full(words[0] * beat // size, -1, np.int64)
    region[leaf.input.offset // size :][: leaf.input.elements] = places[leaf.input.index]
    taken = np.empty(leaf.output.index.size, np.int64)
    taken[_places(leaf.output, channels_last)] = leaf.output.index.reshape(-1) + leaf.output.offset // 2
    return HEADER.format(
        guard=f"{name.upper()}_PATCHLOOM_H_",
        name=name,
        program=",\n".join(_words(leaf.program.image, beat)),
        input_index=", ".join(map(str, region)),
        output_index=", ".join(map(str, taken)),
        input_t=fixed(leaf.input),
        output_t=fixed(leaf.output),
        n_in=places.size - 1,
        n_out=taken.size,
        input_words=words[0],
        input_bits=8 * size,
        output_words=words[1],
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


def _words(image: bytes, beat: int) -> list[str]:
    """Bus words as C++ literals; those wider than any integer are strings."""
    words = [int.from_bytes(image[at : at + beat], "little") for at in range(0, len(image), beat)]
    return [f"{word:#x}ULL" if beat <= 8 else f'patchloom::Word("{word:x}", 16)' for word in words]
