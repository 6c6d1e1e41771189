"""The command set as hardware sees it: the encoding of `compiler.machine.commands` as a layout."""

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from patchloom.compiler.machine.commands import FIELDS
from patchloom.compiler.machine.config import Config

CommandLayout = data.StructLayout({name: signed(bits) if s else unsigned(bits) for name, (bits, s) in FIELDS.items()})


# Of the numbers of slices and groups: a row that is not packed has no more of them than its stride has chunks.
STEPS_WIDTH = FIELDS["a_stride"].width


def pass_layout(config: Config) -> data.StructLayout:
    """What travels through the epilogue beside some sums of a row: those of `Config.channels_at_once` channels."""
    return data.StructLayout(
        {
            "valid": 1,
            "row": range(config.max_rows),
            "group": STEPS_WIDTH,
            "number": range(config.passes),  # of the row's passes
        }
    )


def beat_layout(config: Config) -> data.StructLayout:
    """What travels down the datapath beside one token's slice."""
    return data.StructLayout(
        {
            "valid": 1,
            "row": range(config.max_rows),  # position in the command, not the token
            "slice": STEPS_WIDTH,  # which `inputs` features
            "group": STEPS_WIDTH,  # which `outputs` channels
            "digit": 1,  # of the streamed operand
            "scale": unsigned(2),  # bytes that the partial sum weighs: streamed plus stationary digit
            "tile": 1,  # first beat of a new tile
            "channels": 1,  # first beat of a new group
            "first": 1,  # begins an accumulation
            "last": 1,  # ends it
            "fresh": 1,  # the row's elements enter for the first time in this group
        }
    )
