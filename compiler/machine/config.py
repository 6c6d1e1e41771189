"""The one object that sizes a machine. RTL, HLS, cycle model, interpreter and compiler all read it.

It lives with the compiler, above `hw`, because a Program states the Config it was scheduled for.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from patchloom.compiler.machine.commands import COMMAND_BITS, FIELDS
from patchloom.compiler.machine.encoding import Bits
from patchloom.compiler.machine.errors import Error

if TYPE_CHECKING:
    from typing import Self  # of Python 3.11; the driver runs on 3.10, too

ELEMENT_WIDTH = 16  # bits of one stored activation, whatever width it is used at
WIDEST = 1024  # rows or columns of an array: more than any device has multipliers for
# Epilogue parameters of one output channel, as they lie in memory. Of the shift SHIFT_WIDTH bits count.
PARAMETER = {"bias": Bits(40, signed=True), "multiplier": FIELDS["multiplier"], "shift": Bits(8)}
PARAMETER_BITS = sum(bits.width for bits in PARAMETER.values())
BIAS_WIDTH = PARAMETER["bias"].width


ABSENT = "absent"


def added(default: Any, *, absent: Any) -> Any:
    """A field that came later than others: `absent` is what machines and Programs of before are, whatever the default.

    At that value it is left out of the fingerprint, and a manifest that does not state it has it; so it never changes.
    """
    return field(default=default, metadata={ABSENT: absent})


class ConfigError(Error, ValueError):
    """Every rule a Config breaks, one per line."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the shared compute unit.

    A new field is `added`: else every machine and saved Program would be another one's. A default may be changed, a
    Program's manifest states every value.

    `inputs` x `outputs` multipliers hold one weight tile (K x N in the papers). The scratchpad is read and
    written in chunks of `lanes` elements, so a tensor's rows start at multiples of `lanes`.
    """

    inputs: int = 16  # K: array rows, elements of a token that enter in one cycle
    outputs: int = 16  # N: array columns, partial sums that leave in one cycle
    lanes: int = 16  # elements per scratchpad chunk; divides inputs and outputs
    weight_width: int = 8  # bits of a stationary operand digit: 8 or 16
    activation_width: int = 8  # bits of a streamed operand digit: 8 or 16
    accumulator_width: int = 40
    max_rows: int = 256  # accumulator depth: tokens one command can stream
    scratchpad_chunks: int = 16384
    scratchpad_copies: int = 2  # 1: half the block RAM, but what adds a residual writes a row every other cycle
    statistics_rows: int = 512  # rows whose sum and sum of squares are remembered
    max_experts: int = 16
    max_top_k: int = 4  # experts a token can choose
    command_depth: int = 256  # commands of one task
    bus_width: int = 64  # AXI4 data bits
    word_beats: int = 1  # beats that the prefetch buffer hands over at once: how fast a tile can be written
    fifo_beats: int = 512  # weight prefetch buffer, in bus beats
    multipliers_packed: bool = False  # two 8-bit products in one 27x18 multiplier
    epilogue_lanes: int = added(0, absent=0)  # sums of a row that are finished in one cycle; 0: all, without a queue

    def __post_init__(self) -> None:
        broken = [f"Config.{name} must be {rule}, not {getattr(self, name)!r}" for name, rule in self._broken()]
        if broken:
            raise ConfigError("\n".join(broken))

    def _broken(self) -> list[tuple[str, str]]:
        for known in fields(self):
            value = getattr(self, known.name)
            if type(value) is not known.type:
                return [(known.name, f"of type {getattr(known.type, '__name__', known.type)}")]
            if known.type is int and value < 1 and value != known.metadata.get(ABSENT):
                return [(known.name, "positive")]
        return [(name, rule) for name, rule, holds in self.rules() if not holds]

    def rules(self) -> list[tuple[str, str, bool]]:
        """What each field must be beside the others, and whether it is."""
        column = self.inputs * self.weight_width
        statistics, experts = (1 << FIELDS[name].width for name in ("a_statistics", "expert"))
        whole_chunks = f"a multiple of lanes ({self.lanes}), at most {WIDEST}"
        return [
            ("lanes", "a power of two, 4 to 64", self.lanes in (4, 8, 16, 32, 64)),
            ("inputs", whole_chunks, self.inputs % self.lanes == 0 and self.inputs <= WIDEST),
            ("outputs", whole_chunks, self.outputs % self.lanes == 0 and self.outputs <= WIDEST),
            ("weight_width", "8 or 16", self.weight_width in (8, 16)),
            ("activation_width", "8 or 16", self.activation_width in (8, 16)),
            (
                "multipliers_packed",
                "False unless weight_width and activation_width are 8 and outputs is even",
                not self.multipliers_packed
                or (self.weight_width == self.activation_width == 8 and self.outputs % 2 == 0),
            ),
            ("accumulator_width", f"24 to {BIAS_WIDTH}", 24 <= self.accumulator_width <= BIAS_WIDTH),
            ("max_rows", "16 to 4096", 16 <= self.max_rows <= 4096),
            (
                "scratchpad_chunks",
                f"64 to 2**20 and a multiple of the {self.banks} banks",
                64 <= self.scratchpad_chunks <= 1 << 20 and self.scratchpad_chunks % self.banks == 0,
            ),
            ("scratchpad_copies", "1 or 2", self.scratchpad_copies in (1, 2)),
            ("statistics_rows", f"16 to {statistics}", 16 <= self.statistics_rows <= statistics),
            ("max_experts", f"2 to {experts}", 2 <= self.max_experts <= experts),
            ("max_top_k", "1 to 8 and at most max_experts", 1 <= self.max_top_k <= min(8, self.max_experts)),
            ("command_depth", "8 to 16384", 8 <= self.command_depth <= 16384),
            (
                "command_depth",
                f"a multiple of the {self.word_commands} commands of a word",
                self.command_depth % self.word_commands == 0,
            ),
            ("bus_width", "32, 64, 128, 256 or 512", self.bus_width in (32, 64, 128, 256, 512)),
            (
                "bus_width",
                f"times word_beats a multiple or a divisor of one weight column ({column} bits)",
                column % self.word_width == 0 or self.word_width % column == 0,
            ),
            ("word_beats", "1, 2, 4 or 8", self.word_beats in (1, 2, 4, 8)),
            ("fifo_beats", "a power of two, 32 to 65536", self.fifo_beats in [1 << i for i in range(5, 17)]),
            (
                "epilogue_lanes",
                f"0, or a divisor of lanes ({self.lanes}) that is less than outputs",
                not self.epilogue_lanes
                or (self.lanes % self.epilogue_lanes == 0 and self.epilogue_lanes < self.outputs),
            ),
        ]

    @property
    def input_chunks(self) -> int:
        return self.inputs // self.lanes

    @property
    def output_chunks(self) -> int:
        return self.outputs // self.lanes

    @property
    def channels_at_once(self) -> int:
        """Sums of a row that are finished in one cycle."""
        return self.epilogue_lanes or self.outputs

    @property
    def passes(self) -> int:
        """Cycles in which a row's sums are finished."""
        return self.outputs // self.channels_at_once

    @property
    def banks(self) -> int:
        """Scratchpad banks, a power of two: the chunks that one access can take."""
        return 1 << (max(self.input_chunks, self.output_chunks) - 1).bit_length()

    @property
    def limb_width(self) -> int:
        """Unsigned bits that the wider input of a multiplier of the device takes."""
        return 26 if self.multipliers_packed else 17

    @property
    def beat_bytes(self) -> int:
        return self.bus_width // 8

    @property
    def word_width(self) -> int:
        """Bits that leave the prefetch buffer at once. Whatever is read from memory fills whole words."""
        return self.bus_width * self.word_beats

    @property
    def word_commands(self) -> int:
        return max(1, self.word_width // COMMAND_BITS)

    @property
    def columns_at_once(self) -> int:
        """Columns of a weight tile that one word brings, at least one."""
        return max(1, self.word_width // (self.inputs * self.weight_width))

    @property
    def tile_beats(self) -> int:
        """Bus beats of one weight tile."""
        return self._whole_words(self.inputs * self.weight_width * self.outputs)

    @property
    def parameter_beats(self) -> int:
        """Bus beats of the epilogue parameters of `outputs` channels."""
        return self._whole_words(PARAMETER_BITS * self.outputs)

    def _whole_words(self, bits: int) -> int:
        """Beats of as many words as `bits` need."""
        return -(-bits // self.word_width) * self.word_beats

    @property
    def fingerprint(self) -> int:
        """32 bits that tell two Configs apart; the machine refuses a program made for another one."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        stated = {f.name: value for f, value in values if ABSENT not in f.metadata or value != f.metadata[ABSENT]}
        return int.from_bytes(hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).digest()[:4], "little")

    @classmethod
    def stated(cls, values: Mapping[str, Any]) -> "Self":
        """What a manifest states, perhaps of a time when there were fewer fields. Raises `KeyError` for others."""
        absent = {f.name: f.metadata[ABSENT] for f in fields(cls) if ABSENT in f.metadata}
        missing = [f.name for f in fields(cls) if f.name not in absent and f.name not in values]
        if missing:
            raise KeyError(missing[0])
        return cls(**{**absent, **values})
