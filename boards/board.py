"""The boards there are, by name: `board("ulx3s_85f")`."""

from difflib import get_close_matches

from patchloom.boards.description import Board, BoardError, Device, Litex, Memory, Zynq
from patchloom.boards.supported import arty_a7_100t, ecpix5_85f, kv260, pynq_z2, ulx3s_85f, zcu102

__all__ = ["BOARDS", "Board", "BoardError", "Device", "Litex", "Memory", "Zynq", "board"]

BOARDS: dict[str, Board] = {
    module.BOARD.name: module.BOARD for module in (ulx3s_85f, ecpix5_85f, zcu102, kv260, pynq_z2, arty_a7_100t)
}


def board(name: str) -> Board:
    """Raises `BoardError` with the nearest names."""
    if name in BOARDS:
        return BOARDS[name]
    near = get_close_matches(name.lower().replace("-", "_"), BOARDS, cutoff=0.4)
    raise BoardError(f"board must be {_listed(near or list(BOARDS))}, not {name!r}")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
