"""Levelling of a DDR3, against a PHY and a memory whose eyes are known."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from patchloom.host.device import Region
from patchloom.host.errors import MemoryLevelError
from patchloom.host.transports.levelling import CAS, CS, RAS, READ_DATA, WE, WRITE_DATA, Levelling, level
from patchloom.host.transports.soc import SocDevice, SocMap, Step

PORT = ("command", "command_issue", "address", "baddress")


def plan(*, phases, phase_bytes, delays, bitslips, phy):
    """With a register every 4 bytes, as many of them as its data take."""
    names = ["dly_sel", "rdly_dq_rst", "rdly_dq_inc", "rdly_dq_bitslip_rst", "rdly_dq_bitslip", *phy]
    sizes = dict.fromkeys(names, 4)
    for phase in range(phases):
        sizes |= {f"pi{phase}_{name}": 4 for name in PORT}
        sizes |= {f"pi{phase}_{name}": phase_bytes for name in ("wrdata", "rddata")}
    ends = np.cumsum(list(sizes.values())).tolist()
    csrs = {name: 0x800 + end - size for (name, size), end in zip(sizes.items(), ends, strict=True)}
    return Levelling(2, phases, phase_bytes, 0, phases - 1, delays, bitslips, csrs)


ECP5 = plan(phases=2, phase_bytes=8, delays=8, bitslips=4, phy=("burstdet_clr", "burstdet_seen"))
ARTIX = plan(phases=4, phase_bytes=4, delays=32, bitslips=8, phy=("wdly_dq_bitslip_rst", "wdly_dq_bitslip"))


class Lane:
    """A lane reads what was written at one write slip, one bit slip and the delays of `eye`, else something else."""

    def __init__(self, eye, slip, write_slip):
        self.eye, self.right = eye, (slip, write_slip)
        self.delay = self.slip = self.write_slip = 99  # as nobody knows

    def reads(self):
        return self.delay in self.eye and (self.slip, self.write_slip) == self.right


class Phy:
    """LiteDRAM's registers, and one row of a memory."""

    def __init__(self, plan, lanes, burst_detected=True):
        self.plan, self.lanes, self.burst_detected = plan, lanes, burst_detected
        if not plan.write_slips.step > 1:
            for lane in lanes:
                lane.write_slip = 0
        self.names = {address: name for name, address in plan.csrs.items()}
        self.words, self.open, self.seen, self.selected = {}, False, 0, 0
        self.row = self.read_back = np.zeros((plan.phases, plan.phase_bytes), np.uint8)

    def write(self, address, value):
        name = self.names.get(address)
        self.words[address] = value
        if name == "dly_sel":
            self.selected = value
        elif name == "burstdet_clr":
            self.seen = 0
        elif name and name.endswith("command_issue"):
            self.command(int(name[2]))
        elif name and name.startswith(("rdly", "wdly")):
            for lane in (lane for at, lane in enumerate(self.lanes) if self.selected >> at & 1):
                self.move(lane, name)

    def move(self, lane, name):
        what = {"rdly_dq": "delay", "rdly_dq_bitslip": "slip", "wdly_dq_bitslip": "write_slip"}
        steps = self.plan.delays if name in ("rdly_dq_rst", "rdly_dq_inc") else self.plan.bitslips
        place = what[name.removesuffix("_rst").removesuffix("_inc")]
        setattr(lane, place, 0 if name.endswith("_rst") else (getattr(lane, place) + 1) % steps)

    def command(self, phase):
        assert self.selected == 0, "a selected strobe of an ECP5 is paused"
        flags, *_ = (self.words[self.plan.csrs[f"pi{phase}_{name}"]] for name in PORT)
        if flags in (RAS | CS, RAS | WE | CS):
            self.open = flags == RAS | CS
        elif flags == CAS | WE | CS | WRITE_DATA:
            assert (phase, self.open) == (self.plan.write_phase, True)
            self.row = self.data("wrdata")
        else:
            assert (flags, phase, self.open) == (CAS | CS | READ_DATA, self.plan.read_phase, True)
            self.read_row()

    def data(self, name):
        """LiteX has a register's highest word first."""
        words = self.plan.phase_bytes // 4
        bases = [self.plan.csrs[f"pi{phase}_{name}"] for phase in range(self.plan.phases)]
        rows = [[self.words[base + 4 * at] for at in reversed(range(words))] for base in bases]
        return np.array(rows, "<u4").view(np.uint8)

    def read_row(self):
        read = self.row.copy()
        for at, lane in enumerate(self.lanes):
            self.seen |= lane.reads() << at
            if not lane.reads():
                read[:, at :: len(self.lanes)] ^= 1 << self.plan.phases
        self.read_back = read

    def read(self, address):
        if self.names.get(address) == "burstdet_seen":
            return self.seen if self.burst_detected else 0
        for phase, row in enumerate(self.read_back.copy().view("<u4")):
            offset = (address - self.plan.csrs[f"pi{phase}_rddata"]) // 4
            if 0 <= offset < len(row):
                return int(row[::-1][offset])
        raise AssertionError(address)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("plan", [ECP5, ARTIX], ids=["ecp5", "artix"])
def test_a_lane_gets_the_middle_of_its_eye(plan, seed):
    random = Random(seed)
    eyes = [sorted(random.sample(range(plan.delays + 1), 2)) for _ in range(plan.lanes)]
    eyes = [(min(first, plan.delays - 2), max(end, min(first, plan.delays - 2) + 2)) for first, end in eyes]
    slips = [(random.randrange(plan.bitslips), random.choice(plan.write_slips)) for _ in eyes]
    lanes = [Lane(range(*eye), *slip) for eye, slip in zip(eyes, slips, strict=True)]
    chosen = level(plan, Phy(plan, lanes)).tolist()
    middles = [first + (end - first - 1) // 2 for first, end in eyes]
    wanted = [[write_slip, slip, at] for (slip, write_slip), at in zip(slips, middles, strict=True)]
    assert chosen == wanted
    assert [[lane.write_slip, lane.slip, lane.delay] for lane in lanes] == wanted


def test_an_eye_in_two_pieces():
    lanes = [Lane([0, 1, 3, 4, 5], 2, 0), Lane([0, 1, 2, 3, 6, 7], 0, 0)]
    assert level(ECP5, Phy(ECP5, lanes)).tolist() == [[0, 2, 4], [0, 0, 1]]


@pytest.mark.parametrize("eye", [[], [3], [0, 2, 4, 6]])
def test_a_lane_without_an_eye(eye):
    lanes = [Lane(range(8), 1, 0), Lane(eye, 1, 0)]
    read = "".join(".#"[at in eye] for at in range(8))
    with pytest.raises(MemoryLevelError, match=r"lane 1 .* no two neighbouring delays; by bit slip: (.{8}); ") as told:
        level(ECP5, Phy(ECP5, lanes))
    assert str(told.value).endswith(f"........; {read}; ........; ........")


def test_a_strobe_that_is_not_detected():
    with pytest.raises(MemoryLevelError, match="byte lane 0"):
        level(ECP5, Phy(ECP5, [Lane(range(8), 1, 0), Lane(range(8), 1, 0)], burst_detected=False))


def test_settings_that_no_longer_read_well():
    class Drifting(Phy):
        def read_row(self):
            if self.row.tobytes() != Random(0).randbytes(self.row.size):  # any pattern but the scan's
                self.lanes[0].eye = []
            super().read_row()

    with pytest.raises(MemoryLevelError, match="does not read well at the settings"):
        level(ECP5, Drifting(ECP5, [Lane(range(8), 1, 0), Lane(range(8), 1, 0)]))


def test_one_lane():
    single = replace(ECP5, lanes=1)
    assert level(single, Phy(single, [Lane(range(2, 7), 3, 0)])).tolist() == [[0, 3, 4]]


CONTROL = 0x400


class Bus(Phy):
    """Of a SoC: also the controller's register, which says who has the memory."""

    @property
    def link(self):
        return self

    def sleep(self, seconds):
        assert seconds == 0.25

    def read(self, address):
        return self.words.get(CONTROL, 1) if address == CONTROL else super().read(address)

    def command(self, phase):
        assert self.words[CONTROL] == 14, "under software control"
        super().command(phase)


MAP = SocMap("fake", 4000, 0, Region(0, 4096), (Step(CONTROL, 14, 1000), Step(CONTROL, 15, 0)), ECP5)


def test_the_controller_gets_a_memory_that_is_levelled(tmp_path):
    MAP.save(tmp_path / "soc.json")
    bus = Bus(ECP5, [Lane(range(2, 7), 1, 0), Lane(range(4), 2, 0)])
    SocDevice(SocMap.load(tmp_path / "soc.json"), bus)
    assert bus.words[CONTROL] == 15
    assert [(lane.slip, lane.delay) for lane in bus.lanes] == [(1, 4), (2, 1)]
    bus.lanes[0].delay = 0
    SocDevice(MAP, bus)
    assert bus.lanes[0].delay == 0, "once is enough"


def test_a_memory_that_cannot_be_levelled_is_not_used():
    bus = Bus(ECP5, [Lane([], 1, 0), Lane(range(4), 2, 0)])
    for _ in range(2):
        with pytest.raises(MemoryLevelError):
            SocDevice(MAP, bus)
        assert bus.words[CONTROL] == 14
