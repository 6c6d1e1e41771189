"""A link that flips, loses and doubles bytes: no wrong result ever comes out, only an `Error`, and then it works again.

    python -m tests.faults --count 100000 --seed 0

A transfer is one thing that a driver asks of a machine over UARTBone or Etherbone: a frame, some that overlap, memory
put or read back, a register. Of the bytes up to 1 % are hit, in both directions; now and then the link is cut. The
machine is one of `fake` that copies its input, and something else if one byte of its Program is not as it should be.
"""

import math
import zlib
from random import Random

import numpy as np

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import Error
from patchloom.compiler.machine.registers import MAGIC
from patchloom.host.errors import LinkError
from patchloom.host.session import Session
from patchloom.host.transports.soc import SocDevice
from tests.campaign import Found, command_line, shown
from tests.host.bridge import MAP, FakeStream
from tests.host.etherbone import FakePackets
from tests.host.fake import BASE, FakeDevice
from tests.host.programs import ELEMENTS, copying

CONFIG = Config(command_depth=8)
PROGRAM = copying(CONFIG, "depth", "edges")
FRAME = 2 * ELEMENTS  # bytes
SPARE = BASE + (1 << 15)  # of the memory: no Session's
MOST = 1000  # bytes that are put
SHARES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2)  # of the bytes, that are hit
PERIOD = 100  # transfers over one link
CUT = 0.01  # of the transfers, in which the link is cut
OVERLAPPING = 3  # frames
CARRIED = "bytes carried"


class Wrong(AssertionError):
    """What must never come out."""


def fate(device: FakeDevice) -> None:
    """The copy depends on every byte of the Program; settings are those that the start has taken."""
    image = device.running["program_base_lo"] - BASE
    source, target = (device.running[f"{name}_base_lo"] - BASE for name in ("input", "output"))
    if max(source, target) + FRAME > len(device.memory) or min(source, target, image) < 0:
        return  # a stray write
    damage = zlib.crc32(device.memory[image : image + len(PROGRAM.image)]) ^ zlib.crc32(PROGRAM.image)
    words = np.frombuffer(bytes(device.memory[source : source + FRAME]), np.uint32) ^ np.uint32(damage)
    device.memory[target : target + FRAME] = words.tobytes()


class Spoiler:
    """Bytes of which a share is lost, doubled or has a flipped bit."""

    def __init__(self, random: Random, share: float) -> None:
        self.random, self.share = random, share
        self.gap = self.far()

    def far(self) -> int:
        """How many bytes are left alone before the next one that is hit."""
        return int(math.log(1 - self.random.random()) / math.log1p(-self.share)) if self.share else 1 << 62

    def __call__(self, data: bytes) -> bytes:
        made = bytearray()
        while self.gap < len(data):
            byte = data[self.gap]
            made += data[: self.gap]
            made += bytes(self.random.choice(((), (byte, byte), (byte ^ 1 << self.random.randrange(8),))))
            data, self.gap = data[self.gap + 1 :], self.far()
        self.gap -= len(data)
        return bytes(made + data) if made else data


class Faults:
    """One link, and a Session over it."""

    def __init__(self, random: Random, share: float, found: Found, *, packets: bool) -> None:
        self.random, self.found, self.left, self.spoiler = random, found, math.inf, Spoiler(random, 0.0)
        self.kind = f"{'Etherbone' if packets else 'UARTBone'}, {share:g}"
        self.link = FakePackets(CONFIG, FRAME) if packets else FakeStream(CONFIG, FRAME)
        self.link.spoil, self.link.garble = (self.packets,) * 2 if packets else (self.spoiled,) * 2
        self.link.machine.fate, self.machine = fate, self.link.machine
        self.device = (SocDevice.etherbone if packets else SocDevice.uart)(MAP, self.link)
        self.session, self.spoiler = Session(self.device, PROGRAM), Spoiler(random, share)

    def spoiled(self, data: bytes) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise LinkError("the link was cut")
        self.found.outcomes[CARRIED] += len(data)
        return self.spoiler(data)

    def packets(self, packet: bytes) -> list[bytes]:
        changed = self.spoiled(packet)
        return [packet] if changed == packet else self.random.choice(([], [packet] * 2, [changed]))

    # --- One transfer ---

    def once(self) -> None:
        transfer = self.random.choice((self.frame, self.frame, self.frames, self.memory, self.memory, self.register))
        if self.random.random() < CUT:
            self.left = self.random.randrange(8)
        try:
            transfer()
            outcome = "right"
        except Wrong as wrong:
            outcome = "WRONG"
            self.found.failures.append(f"{self.kind}, {transfer.__name__}: {wrong}")
        except Error as error:
            outcome = type(error).__name__
            if not str(error).strip():
                self.found.failures.append(f"{self.kind}, {transfer.__name__}: {outcome} without a word")
        self.found.outcomes[f"{self.kind}, {transfer.__name__}: {outcome}"] += 1
        self.left = math.inf

    def usable(self) -> None:
        """Once the link is good again the very next frame works."""
        self.spoiler = Spoiler(self.random, 0.0)
        try:
            self.frame()
        except (Wrong, Error) as error:
            self.found.failures.append(f"{self.kind}, afterwards: {type(error).__name__}: {error}")

    def frame(self) -> None:
        region = self.region()
        self.same(self.session.frame(region, self.task())[0].tobytes(), region.tobytes())

    def frames(self) -> None:
        jobs = [(self.region(), self.task()) for _ in range(OVERLAPPING)]
        for (region, _), (output, *_) in zip(jobs, self.session.jobs(jobs), strict=True):
            self.same(output.tobytes(), region.tobytes())

    def memory(self) -> None:
        address, data = SPARE + self.random.randrange(1000), self.random.randbytes(self.random.randrange(MOST))
        address &= ~3
        at = address - BASE
        doubts = self.device.doubts
        self.device.put(address, data)
        if self.device.doubts == doubts:
            self.same(bytes(self.machine.memory[at : at + len(data)]), data)
        self.same(self.device.get(address, len(data)), bytes(self.machine.memory[at : at + len(data)]))

    def register(self) -> None:
        self.same(self.device.read("magic"), MAGIC)
        self.device.write_all({"watchdog": self.random.getrandbits(32)})

    def region(self) -> np.ndarray:
        return np.frombuffer(self.random.randbytes(FRAME), np.int16)

    def task(self) -> str:
        return self.random.choice(PROGRAM.tasks).name

    @staticmethod
    def same(found: object, wanted: object) -> None:
        if found != wanted:
            raise Wrong(f"{found!r:.100} for {wanted!r:.100}")


def faults(count: int, seed: int, period: int = PERIOD) -> Found:
    """So many transfers, over links of each kind and of each share of errors in turn."""
    random, found = Random(seed), Found()
    for number in shown(range(math.ceil(count / period))):
        share = SHARES[number // 2 % len(SHARES)]
        link = Faults(random, share, found, packets=bool(number % 2))
        for _ in range(period):
            link.once()
        link.usable()
    return found


if __name__ == "__main__":
    command_line(faults, count=100_000)
