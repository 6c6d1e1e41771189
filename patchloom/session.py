"""`patchloom.Session`: the driver's, on a device or on the name of one."""

from collections.abc import Callable, Mapping
from typing import Any

from patchloom.compiler.machine.config import Config
from patchloom.compiler.machine.errors import InputError
from patchloom.compiler.machine.frames import Result, Tell, task_of
from patchloom.compiler.machine.program import Program
from patchloom.extras import needed_by
from patchloom.host import session
from patchloom.host.device import Device
from patchloom.pictures import inputs_with_pictures


def _simulated(config: Config, **options: Any) -> Device:
    with needed_by("a Session on 'sim'", "sim"):
        from patchloom.sim.device import SimulatedDevice  # noqa: PLC0415 - an extra
    return SimulatedDevice(config, **options)


def _simulated_soc(config: Config, board: str) -> Device:
    with needed_by("a Session on a simulated SoC", "boards"):
        from patchloom.boards.simulated import simulate  # noqa: PLC0415 - an extra
    return simulate(board, config).device()


# Name -> what opens a machine of a Config; of a name with `:`, the second argument stands behind it.
HOMES: Mapping[str, Callable[..., Device]] = {"sim": _simulated, "soc:BOARD": _simulated_soc}


class Session(session.Session):
    """A Program on a machine: a `Device`, or the name of one, which is opened and closed with the session.

    "sim" is the RTL simulated in this process; `options` are those of `sim.device.SimulatedDevice`. "soc:BOARD" is the
    whole SoC of a board, simulated with its memory, over its own link.

        with patchloom.Session("sim", program) as session:
            depth = session.run(image, task="depth").outputs["depth"]
    """

    def __init__(
        self,
        device: Device | str,
        program: Program,
        *,
        build: int = 0,
        watchdog: int = session.WATCHDOG,
        **options: Any,
    ) -> None:
        self._opened: Device | None = None
        if isinstance(device, str):
            device = self._opened = _open(device, program.config, options)
        try:
            super().__init__(device, program, build=build, watchdog=watchdog)
        except BaseException:
            if self._opened is not None:
                self._opened.close()
            raise

    def run(
        self,
        inputs: Any,
        *,
        task: str | None = None,
        deadline: float = session.DEADLINE,
        progress: Tell | None = None,
    ) -> Result:
        """As `patchloom.run` takes them, pictures too; `deadline` is seconds of the device's clock a frame."""
        given = inputs_with_pictures(task_of(self.program, task), inputs)
        return super().run(given, task=task, deadline=deadline, progress=progress)

    def close(self) -> None:
        if self._opened is None:
            super().close()
        else:
            self._opened.close()


def _open(name: str, config: Config, options: dict[str, Any]) -> Device:
    kind, colon, which = name.partition(":")
    for home, opened in HOMES.items():
        if home.partition(":")[:2] == (kind, colon):
            return opened(config, *([which] if colon else []), **options)
    raise InputError(f"device must be a Device or one of {', '.join(HOMES)}, not {name!r}")
