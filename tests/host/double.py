"""A double of PYNQ's device with the RTL behind it, for PYNQ's own classes.

Its buffers are a cache: what is not flushed does not reach the machine's memory, and what is not invalidated does not
come from there.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

from patchloom.host.transports.mapped import MappedDevice, pynq_device
from patchloom.sim.device import CLOCK_HZ, SimulatedDevice

REGISTERS = 0x43C0_0000
MOST = 8 << 20  # bytes of a buffer


class Double(Device):
    """What PYNQ asks of a board."""

    capabilities = {"REGISTER_RW": True}  # noqa: RUF012 - PYNQ's

    def __init__(self, machine: SimulatedDevice) -> None:
        super().__init__("double")
        self.machine, self.downloaded = machine, []

    def has_capability(self, capability):
        return self.capabilities.get(capability, False)

    def get_bitfile_metadata(self, name):
        return None

    def download(self, bitstream, parser=None):
        self.downloaded.append(bitstream.bitfile_name)

    def read_registers(self, address, length):
        assert length == 4
        return self.machine.read_register(address - REGISTERS).to_bytes(4, "little")

    def write_registers(self, address, data):
        self.machine.write_register(address - REGISTERS, int.from_bytes(bytes(data), "little"))

    def allocate(self, shape, dtype, **options):
        (size,) = shape
        if size > MOST:
            raise MemoryError("no CMA left")
        region = self.machine.allocate(size)
        cache = np.full(size, 0xA5, np.uint8)
        return PynqBuffer(shape, dtype, buffer=cache.data, device=self, device_address=region.address, bo=region)

    def flush(self, region, offset, virtual_address, size):
        self.machine.put(region.address + offset, _bytes_at(virtual_address, size).tobytes())

    def invalidate(self, region, offset, virtual_address, size):
        _bytes_at(virtual_address, size)[:] = np.frombuffer(self.machine.get(region.address + offset, size), np.uint8)


def _bytes_at(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


@contextmanager
def doubled(machine: SimulatedDevice, folder: Path) -> Iterator[MappedDevice]:
    """As `pynq_device` gives it on a board. The machine's time is not this computer's: it goes on in pauses."""
    bitstream, double = folder / "machine.bit", Double(machine)
    bitstream.write_bytes(b"bits")
    with pynq_device(bitstream, REGISTERS, CLOCK_HZ, double) as device:
        assert double.downloaded == [str(bitstream)]
        device._sleep = lambda seconds: machine.step(max(int(seconds * CLOCK_HZ), 1))
        device.now = machine.now
        yield device
