"""`patchloom.Session`: the driver's, on a device or on the name of one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from patchloom.boards.board import board
from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.program import Program, Task
from patchloom.extras import needed_by
from patchloom.host import session
from patchloom.host.device import Device
from patchloom.host.transports import etherbone
from patchloom.host.transports.mapped import pynq_device, uio_device
from patchloom.host.transports.soc import SocDevice, SocMap
from patchloom.host.transports.tty import Tty
from patchloom.host.transports.udp import Udp
from patchloom.pictures import inputs_with_pictures

T = TypeVar("T")


def _simulated(config: Config, which: str, project: Path | None, **options: Any) -> Device:
    with needed_by("a Session on 'sim'", "sim"):
        from patchloom.sim.device import SimulatedDevice  # noqa: PLC0415 - an extra
    return SimulatedDevice(config, **options)


def _simulated_soc(config: Config, which: str, project: Path | None) -> Device:
    with needed_by("a Session on a simulated SoC", "boards"):
        from patchloom.boards.simulated import simulate  # noqa: PLC0415 - an extra
    return simulate(which, config).device()


def _uart(config: Config, which: str, project: Path | None) -> Device:
    soc, (port, _, baud) = _map(f"uart:{which}", project), which.partition("@")
    if baud and not baud.isdecimal():
        raise InputError(f"device must be uart:PORT or uart:PORT@BAUD, not 'uart:{which}'")
    return SocDevice.uart(soc, Tty(port, int(baud) if baud else soc.baud))


def _etherbone(config: Config, which: str, project: Path | None) -> Device:
    soc, (host, colon, port) = _map(f"etherbone:{which}", project), which.partition(":")
    if not host or (colon and not port.isdecimal()):
        raise InputError(f"device must be etherbone:HOST or etherbone:HOST:PORT, not 'etherbone:{which}'")
    return SocDevice.etherbone(soc, Udp(host, int(port) if port else etherbone.PORT))


def _map(device: str, project: Path | None) -> SocMap:
    return SocMap.load(_needed(device, project) / "soc.json")


def _needed(device: str, project: Path | None) -> Path:
    if project is None:
        raise InputError(f"device {device!r} needs the project that `patchloom build` wrote for the board")
    return project


def _pynq(config: Config, which: str, project: Path | None) -> Device:
    found = _stated(_needed(f"pynq:{which}", project), lambda manifest: board(manifest["board"]))
    bitstream = Path(which)
    if not bitstream.is_file():
        raise InputError(f"device must be pynq:BITFILE, and there is no file {bitstream}")
    try:
        return pynq_device(bitstream, found.registers, found.clock_hz)
    except ImportError as error:
        raise InputError(f"device 'pynq:{which}' needs PYNQ, which boards with its image have: {error}") from error


def _uio(config: Config, which: str, project: Path | None) -> Device:
    return uio_device(which)


# Name -> what opens a machine of a Config, by what stands behind the colon and the board's project.
HOMES: Mapping[str, Callable[..., Device]] = {
    "sim": _simulated,
    "soc:BOARD": _simulated_soc,
    "uart:PORT[@BAUD]": _uart,
    "etherbone:HOST[:PORT]": _etherbone,
    "pynq:BITFILE": _pynq,
    "uio:NAME": _uio,
}


class Session(session.Session):
    """A Program on a machine: a `Device`, or the name of one, which is opened and closed with the session.

    "sim" is the RTL simulated in this process; `options` are those of `sim.device.SimulatedDevice`. "soc:BOARD" is the
    whole SoC of a board, simulated with its memory, over its own link. "uart:PORT[@BAUD]" is a board on a serial port,
    "etherbone:HOST[:PORT]" one on a network. On a Zynq itself "pynq:BITFILE" loads a bitstream by PYNQ, and "uio:NAME"
    opens a UIO device, whose bitstream is loaded, beside a u-dma-buf. `project` is the folder that `patchloom build`
    wrote for the board: where things are, and which build the machine must be.

        with patchloom.Session("sim", program) as session:
            depth = session.run(image, task="depth").outputs["depth"]
    """

    def __init__(
        self,
        device: Device | str,
        program: Program,
        *,
        project: Path | str | None = None,
        build: int = 0,
        watchdog: int | None = None,
        **options: Any,
    ) -> None:
        self._opened: Device | None = None
        folder = None if project is None else Path(project)
        if folder is not None:
            build = build or _stated(folder, lambda manifest: int(manifest["digest"], 16))
        if isinstance(device, str):
            device = self._opened = _open(device, program.config, folder, options)
        try:
            super().__init__(device, program, build=build, watchdog=watchdog)
        except BaseException:
            if self._opened is not None:
                self._opened.close()
            raise

    def _given(self, task: Task, inputs: Any) -> Any:
        """Also pictures, as `patchloom.run` takes them."""
        return inputs_with_pictures(task, inputs)

    def close(self) -> None:
        if self._opened is None:
            super().close()
        else:
            self._opened.close()


def _open(name: str, config: Config, project: Path | None, options: dict[str, Any]) -> Device:
    kind, colon, which = name.partition(":")
    for home, opened in HOMES.items():
        if home.partition(":")[:2] == (kind, colon):
            return opened(config, which, project, **options)
    raise InputError(f"device must be a Device or one of {', '.join(HOMES)}, not {name!r}")


def _stated(project: Path, entry: Callable[[dict[str, Any]], T]) -> T:
    """What the project's manifest says."""
    path = project / "manifest.json"
    try:
        return entry(json.loads(path.read_bytes()))
    except OSError as error:
        raise InputError(f"{path} must be the manifest of a project, and cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} must be the manifest of a project as `patchloom build` wrote it: {error!r}"
        ) from error
