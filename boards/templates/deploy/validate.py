"""Runs the sample of every task that travels with the Program on the machine: pass, or what goes wrong first.

    python validate.py [DEVICE]

DEVICE is uart:PORT of a board on a serial port; on a Zynq uio:NAME, or by default PYNQ with the bitstream here.
"""

import json
import sys
from pathlib import Path

import patchloom
from patchloom.boards.board import board
from patchloom.validating import validate

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> bool:
    """Whether all have passed."""
    on_zynq = board(json.loads((HERE / "manifest.json").read_bytes())["board"]).zynq is not None
    if len(arguments) != 1 and not (on_zynq and not arguments):
        sys.exit(str(__doc__))
    device, passed = arguments[0] if arguments else f"pynq:{HERE / 'patchloom.bit'}", True
    with patchloom.Session(device, patchloom.load(HERE / "program"), project=HERE) as session:
        for verdict in validate(session):
            passed &= verdict.passed
            print(f"{verdict.task}: pass, {verdict.cycles:,} cycles" if verdict.passed else verdict)
    return passed


if __name__ == "__main__":
    try:
        sys.exit(0 if main(sys.argv[1:]) else 1)
    except (patchloom.Error, OSError) as error:
        sys.exit(f"error: {error}")
