"""Bitstreams of the small machine: `python -m benchmarks.bitstreams [boards]`, results/bitstreams.json, docs/boards.md.

The machine is the one that fashion_scenes and M3ViT-T share, on every board that open tools build for, routed with
several seeds. A seed that misses the timing is stated as such. What is in the cache is not routed again.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.configs import on_board
from patchloom.boards import build
from patchloom.boards.board import BOARDS, board
from patchloom.boards.place import Missed
from patchloom.boards.project import Project, project
from patchloom.boards.sources import MACHINE
from patchloom.progress import stages

RESULTS = Path(__file__).parent / "results" / "bitstreams.json"
OPEN = tuple(name for name, found in BOARDS.items() if found.tools == "open")
SEEDS = {"ulx3s_85f": (1, 3), "ecpix5_85f": (1, 2)}  # the ULX3S's second misses its clock by one net


def measure(made: Project, seed: int) -> dict[str, Any]:
    """One bitstream, or by how much it missed."""
    stated = {"digest": f"{made.digest:032x}", "date": datetime.now(UTC).date().isoformat()}
    with stages() as watch:
        try:
            routed, files = build.routed(made, seed, watch)
        except Missed as error:
            return {**stated, "missed": str(error)}
    raw = files[f"{MACHINE}.bit"]
    bits = raw if isinstance(raw, bytes) else raw.encode()
    made_of = {"bytes": len(bits), "sha256": hashlib.sha256(bits).hexdigest()}
    return {**stated, **made_of, "synthesis_seconds": build.synthesis_seconds(made), **asdict(routed)}


def main(names: Sequence[str]) -> None:
    for name in names:
        made = project(board(name), on_board(name))
        for seed in SEEDS[name]:
            print(f"{name}, seed {seed}")
            result = measure(made, seed)
            known = (
                json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            )  # another run may have written meanwhile
            known.setdefault(name, {})[str(seed)] = result
            RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
            print(result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("boards", nargs="*", default=OPEN)
    main(parser.parse_args().boards)
