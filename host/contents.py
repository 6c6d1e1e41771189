"""What a device's memory holds, as far as it is known: moved once, and proved again whenever there is doubt."""

import zlib
from weakref import WeakKeyDictionary, proxy

from patchloom.host.device import Device, Region
from patchloom.host.errors import LinkError

PIECE = 1 << 16  # bytes that are proved and moved together
ROUNDS = 8  # of proving, until the link is given up

_KNOWN: WeakKeyDictionary[Device, "Contents"] = WeakKeyDictionary()


class Contents:
    """Of one device, for all its Sessions."""

    def __init__(self, device: Device) -> None:
        self._device: Device = proxy(device)  # which would never end if what is known of it held it
        self._images: dict[bytes, Region] = {}
        self._held: dict[int, bytes | memoryview] = {}  # by address: what a driver has put there
        self.epoch: int | None = None  # of the machine, when it was used last; none before a first time
        self._proved: int | None = device.doubts  # how many of the device's doubts all that has been proved after

    @classmethod
    def of(cls, device: Device) -> "Contents":
        if device not in _KNOWN:
            _KNOWN[device] = cls(device)
        return _KNOWN[device]

    def image(self, data: bytes) -> Region:
        """Where a Program's image is: where it was, if it is there already. Only pieces that are not are moved."""
        if data not in self._images:
            self._images[data] = self._device.allocate(len(data))
        region = self._images[data]
        for at in range(0, len(data), PIECE):
            address, piece = region.address + at, memoryview(data)[at : at + PIECE]
            if address not in self._held:
                self._have(address, piece)
                self._held[address] = piece
        return region

    def put(self, address: int, data: bytes) -> None:
        """Have it there, and nothing else that was put to this address; what is known to be there is not moved."""
        if self._held.get(address) != data:
            self.forget(address)
            self._device.put(address, data)
            self._held[address] = data

    def forget(self, address: int) -> None:
        """The machine may write there."""
        self._held.pop(address, None)

    # --- Doubt ---

    @property
    def doubtful(self) -> bool:
        return self._proved != self._device.doubts

    def doubt(self) -> None:
        """Anything may have been written to anywhere."""
        self._proved = None

    def settle(self) -> None:
        """Prove all of it, and move again what is not there. Raises `LinkError` if new doubts come with every try."""
        for _ in range(ROUNDS):
            if not self.doubtful:
                return
            doubts = self._device.doubts
            for address, data in self._held.items():
                self._have(address, data)
            self._proved = doubts
        raise LinkError(
            f"the device's memory cannot be proved: the link changed what it carried {ROUNDS} times in turn"
        )

    def _have(self, address: int, data: bytes | memoryview) -> None:
        if self._device.crc(Region(address, len(data))) != zlib.crc32(data):
            self._device.put(address, bytes(data))
