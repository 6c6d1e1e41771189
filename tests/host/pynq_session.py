"""A Session through PYNQ's own classes, on a double of its device with the RTL behind it: run by test_mapped.

The double's buffers are a cache: what is not flushed does not reach the machine's memory, and what is not invalidated
does not come from there.
"""

import sys
from pathlib import Path

import numpy as np
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device

import patchloom
from patchloom.compiler.machine.frames import input_region
from patchloom.host.errors import CapacityError
from patchloom.host.transports.mapped import MappedDevice, pynq_device
from patchloom.sim.device import CLOCK_HZ, SimulatedDevice
from patchloom.sim.interpret import execute

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
    import ctypes  # noqa: PLC0415 - beside its only use

    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def main(folder: Path) -> None:
    program = patchloom.load(folder / "program")
    with SimulatedDevice(program.config, latency=5) as machine:
        double = Double(machine)
        device = pynq_device(folder / "machine.bit", REGISTERS, 1e6, double)
        device._sleep = lambda seconds: machine.step(max(int(seconds * CLOCK_HZ), 1))  # its time is not ours
        session, rng = patchloom.Session(device, program), np.random.default_rng(0)
        for _ in range(6):
            task = program.tasks[rng.integers(len(program.tasks))]
            region, _ = input_region(task, {port.name: rng.normal(size=port.shape) for port in task.inputs})
            output, cycles, saturations = session.frame(region, task.name)
            expected, expected_saturations = execute(program, task.name, region)
            np.testing.assert_array_equal(output, expected)
            assert (saturations, cycles > 0) == (expected_saturations, True)
        try:
            device.allocate(MOST + 1)
        except CapacityError as error:
            assert "no CMA left" in str(error)  # noqa: PT017 - no pytest here
        else:
            raise AssertionError("allocated")
        assert isinstance(device, MappedDevice)
        assert double.downloaded == [str(folder / "machine.bit")]
    print("identical")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
