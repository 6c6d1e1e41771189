"""Four sizes of the same machine; the small one has as little memory as the reference workload needs."""

from dataclasses import replace

from patchloom.boards.board import board
from patchloom.compiler.machine.config import Config

# The image of 129 x 768 elements, the position embeddings that it is added to, and some more.
ELEMENTS = 129 * 1152
# Attentions head by head and the image in two parts: 129 tokens of 612 elements, in 80 block RAMs of 1024 elements.
FEWEST_ELEMENTS = 80 * 1024


def sized(
    *,
    inputs: int,
    outputs: int,
    lanes: int,
    bus_width: int,
    fifo_beats: int = 512,
    word_beats: int = 1,
    elements: int = ELEMENTS,
    copies: int = 2,
    command_depth: int = 320,
    packed: bool = False,
) -> Config:
    """Rows and experts of M3ViT-T."""
    return Config(
        inputs=inputs,
        outputs=outputs,
        lanes=lanes,
        bus_width=bus_width,
        fifo_beats=fifo_beats,
        word_beats=word_beats,
        multipliers_packed=packed,
        scratchpad_chunks=-(-elements // lanes // 2) * 2,
        scratchpad_copies=copies,
        accumulator_width=38,  # 16-bit gates
        max_rows=129,
        statistics_rows=258,
        max_experts=16,
        max_top_k=4,
        command_depth=command_depth,
    )


CONFIGS = {
    "ulx3s": sized(inputs=8, outputs=8, lanes=4, bus_width=64, elements=FEWEST_ELEMENTS, copies=1, command_depth=384),
    "mid": sized(inputs=16, outputs=16, lanes=16, bus_width=128),
    # A column of 64 weights is one bus beat, an attention head one slice. The buffer is filled during attention with
    # the experts' weights, and tiles are written faster than beats come, so that small experts do not wait.
    "zcu102": sized(inputs=64, outputs=16, lanes=16, bus_width=512, fifo_beats=8192, word_beats=2, packed=True),
    # Twice the multipliers: fewest cycles, though more of them wait.
    "zcu102-wide": sized(inputs=64, outputs=32, lanes=32, bus_width=512, fifo_beats=16384, word_beats=4, packed=True),
}

# What Yosys maps each to, and what there is of it: the ULX3S has an LFE5U-85F, the ZCU102 an XCZU9EG.
DEVICES = {"ulx3s": "ecp5-85k", "mid": "xcup", "zcu102": "xcup", "zcu102-wide": "xcup"}
BUDGET = {
    "ulx3s": {"dsp": 156, "bram": 208, "lut": 83640},
    "mid": {"dsp": 2520, "bram": 912, "lut": 274080},
    "zcu102": {"dsp": 1754, "bram": 912, "lut": 164448},
    "zcu102-wide": {"dsp": 1754, "bram": 912, "lut": 164448},
}


# The small machine beside each board's memory, with as much scratchpad as M3ViT-T needs, in whole block RAMs. Few lanes
# behind the array leave room for routing, and on the ULX3S for more multipliers, which make up for its slower clock.
# Its buffer holds most of an expert's weights: memory does not wait while one with many tokens multiplies.
BOARDS = {
    "ulx3s_85f": {
        "outputs": 12,
        "epilogue_lanes": 2,
        "word_beats": 2,
        "fifo_beats": 16384,
        "scratchpad_chunks": 20480,
    },
    "ecpix5_85f": {"epilogue_lanes": 4, "scratchpad_chunks": 20480},
}


def on_board(name: str) -> Config:
    """The machine that examples/fashion_scenes and M3ViT-T share on a board that open tools build for."""
    return replace(CONFIGS["ulx3s"], bus_width=board(name).memory.bus_width, **BOARDS[name])
