"""Levelling of a DDR3's reads behind LiteDRAM, from the host: there is no CPU to run LiteX's firmware.

As that firmware does it (litex/soc/software/liblitedram/sdram.c): a row is written and read back with random bytes at
every setting of the PHY's delays; of the settings that read well, a byte lane gets the middle of the longest run.
**No one has run this on silicon**, and LiteDRAM's models know no delays.
"""

from dataclasses import dataclass
from random import Random
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from patchloom.host.errors import MemoryLevelError

# Flags of LiteDRAM's DFI injector (litedram/dfii.py).
CONTROL = {"DFII_CONTROL_SEL": 1, "DFII_CONTROL_CKE": 2, "DFII_CONTROL_ODT": 4, "DFII_CONTROL_RESET_N": 8}
COMMAND = {"DFII_COMMAND_CS": 1, "DFII_COMMAND_WE": 2, "DFII_COMMAND_CAS": 4, "DFII_COMMAND_RAS": 8}
CS, WE, CAS, RAS = COMMAND.values()
WRITE_DATA, READ_DATA = 16, 32
PATTERNS = 3  # that the settings chosen must read
FEWEST = 2  # settings in a run: one alone is no eye

Good = NDArray[np.bool_]  # by bit slip, delay and byte lane: a pattern was read as it was written


class Registers(Protocol):
    """Words of 32 bits on the SoC's bus."""

    def read(self, address: int) -> int: ...
    def write(self, address: int, value: int) -> None: ...


@dataclass(frozen=True)
class Levelling:
    """A PHY whose reads are to be levelled; whoever builds the SoC writes it."""

    lanes: int  # bytes of the memory's data bus
    phases: int  # of the memory's clock in one of the controller's
    phase_bytes: int  # of a phase's data
    read_phase: int
    write_phase: int
    delays: int  # steps
    bitslips: int  # steps
    csrs: dict[str, int]  # addresses, by LiteX's names less "sdram_dfii_" and "phy_"

    @property
    def write_slips(self) -> range:
        """Bit slips of writes that are tried, whole clocks apart."""
        return range(0, self.bitslips, 2) if "wdly_dq_bitslip" in self.csrs else range(1)


def level(plan: Levelling, bus: Registers) -> NDArray[np.int64]:
    """Leave the PHY with settings that read well; returns write slip, bit slip and delay of every lane.

    The memory must have run its sequence and be under software control. Raises `MemoryLevelError`.
    """
    phy = _Phy(plan, bus)
    found = [phy.scan(slip) for slip in plan.write_slips]
    chosen = np.array([_best(found, plan.write_slips, lane) for lane in range(plan.lanes)])
    for lane, settings in enumerate(chosen):
        phy.set(1 << lane, *map(int, settings))
    if not all(phy.good(seed).all() for seed in range(1, 1 + PATTERNS)):
        raise MemoryLevelError(f"the memory does not read well at the settings {chosen.tolist()} that it read well at")
    return chosen


def _best(found: list[Good], write_slips: range, lane: int) -> tuple[int, int, int]:
    runs = [
        (*_longest_run(delays), write_slip, slip)
        for write_slip, good in zip(write_slips, found, strict=True)
        for slip, delays in enumerate(good[:, :, lane])
    ]
    length, first, write_slip, slip = max(runs, key=lambda run: run[0])
    if length < FEWEST:
        read = "; ".join("".join(".#"[int(bit)] for bit in row) for good in found for row in good[:, :, lane])
        raise MemoryLevelError(
            f"byte lane {lane} of the memory reads well at no two neighbouring delays; by bit slip: {read}"
        )
    return write_slip, slip, first + (length - 1) // 2


def _longest_run(good: Good) -> tuple[int, int]:
    """Its length and where it begins."""
    best, length = (0, 0), 0
    for at, bit in enumerate(good):
        length = length + 1 if bit else 0
        best = max(best, (length, at + 1 - length), key=lambda run: run[0])
    return best


class _Phy:
    def __init__(self, plan: Levelling, bus: Registers) -> None:
        self.plan, self.bus = plan, bus

    def write(self, name: str, value: int) -> None:
        self.bus.write(self.plan.csrs[name], value)

    def scan(self, write_slip: int) -> Good:
        """All lanes at once."""
        everyone = (1 << self.plan.lanes) - 1
        good = np.zeros((self.plan.bitslips, self.plan.delays, self.plan.lanes), bool)
        for slip, delay in np.ndindex(good.shape[:2]):
            if delay == 0:
                self.set(everyone, write_slip, slip, 0)
            else:
                self._act(everyone, "rdly_dq_inc")
            good[slip, delay] = self.good(0)
        return good

    def set(self, lanes: int, write_slip: int, slip: int, delay: int) -> None:
        if "wdly_dq_bitslip" in self.plan.csrs:
            self._act(lanes, "wdly_dq_bitslip_rst", *["wdly_dq_bitslip"] * write_slip)
        self._act(lanes, "rdly_dq_bitslip_rst", *["rdly_dq_bitslip"] * slip)
        self._act(lanes, "rdly_dq_rst", *["rdly_dq_inc"] * delay)

    def _act(self, lanes: int, *names: str) -> None:
        self.write("dly_sel", lanes)
        for name in names:
            self.write(name, 1)
        if "burstdet_clr" in self.plan.csrs:  # ECP5: a selected strobe is paused; all are let go together
            self.write("dly_sel", (1 << self.plan.lanes) - 1)
        self.write("dly_sel", 0)

    def good(self, seed: int) -> NDArray[np.bool_]:
        """Whether each lane reads what was written, in row 0 of bank 0."""
        plan = self.plan
        wanted = np.frombuffer(Random(seed).randbytes(plan.phases * plan.phase_bytes), np.uint8)
        for phase, data in enumerate(wanted.reshape(plan.phases, -1)):
            for offset, word in enumerate(data.view("<u4")[::-1]):  # LiteX's registers: highest word first
                self.bus.write(plan.csrs[f"pi{phase}_wrdata"] + 4 * offset, int(word))
        self._command(0, RAS | CS)  # activate
        self._command(plan.write_phase, CAS | WE | CS | WRITE_DATA)
        if "burstdet_clr" in plan.csrs:
            self.write("burstdet_clr", 1)
        self._command(plan.read_phase, CAS | CS | READ_DATA)
        self._command(0, RAS | WE | CS)  # precharge
        seen = np.full(plan.lanes, fill_value=True)
        if "burstdet_seen" in plan.csrs:
            seen = self.bus.read(plan.csrs["burstdet_seen"]) >> np.arange(plan.lanes) & 1 == 1
        same: NDArray[np.bool_] = (self._data() == wanted).reshape(-1, plan.lanes).all(axis=0) & seen
        return same

    def _command(self, phase: int, flags: int) -> None:
        for name, value in (("address", 0), ("baddress", 0), ("command", flags), ("command_issue", 1)):
            self.write(f"pi{phase}_{name}", value)

    def _data(self) -> NDArray[np.uint8]:
        """What was read last, in the order of the phases; the lanes' bytes take turns."""
        words = [
            self.bus.read(self.plan.csrs[f"pi{phase}_rddata"] + 4 * offset)
            for phase in range(self.plan.phases)
            for offset in reversed(range(self.plan.phase_bytes // 4))
        ]
        return np.array(words, "<u4").view(np.uint8)
