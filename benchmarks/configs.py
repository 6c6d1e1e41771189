"""Three sizes of the same machine, each with as little memory as the reference workload needs."""

from compiler.config import Config

# 129 tokens of 1152 elements live while a dense feed-forward block runs.
ELEMENTS = 129 * 1152


def sized(*, inputs: int, outputs: int, lanes: int, bus_width: int, fifo_beats: int, packed: bool = False) -> Config:
    """Rows, experts and commands of M3ViT-T."""
    return Config(
        inputs=inputs,
        outputs=outputs,
        lanes=lanes,
        bus_width=bus_width,
        fifo_beats=fifo_beats,
        multipliers_packed=packed,
        scratchpad_chunks=-(-ELEMENTS // lanes // 2) * 2,
        accumulator_width=38,  # 16-bit gates
        max_rows=129,
        statistics_rows=258,
        max_experts=16,
        max_top_k=4,
        command_depth=320,
    )


CONFIGS = {
    "ulx3s": sized(inputs=16, outputs=4, lanes=4, bus_width=64, fifo_beats=512),
    "mid": sized(inputs=16, outputs=16, lanes=16, bus_width=128, fifo_beats=512),
    # A column of 64 weights is one bus beat, an attention head one slice. A longer buffer gains nothing.
    "zcu102": sized(inputs=64, outputs=32, lanes=32, bus_width=512, fifo_beats=512, packed=True),
}

# What Yosys maps each to, and what there is of it: the ULX3S has an LFE5U-85F, the ZCU102 an XCZU9EG.
DEVICES = {"ulx3s": "ecp5-85k", "mid": "xcup", "zcu102": "xcup"}
BUDGET = {
    "ulx3s": {"dsp": 156, "bram": 208, "lut": 83640},
    "mid": {"dsp": 2520, "bram": 912, "lut": 274080},
    "zcu102": {"dsp": 1754, "bram": 912, "lut": 164448},
}
