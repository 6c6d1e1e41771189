"""One driver at a time: a lock on a file, that ends with its process however that ends."""

import fcntl
import os
from pathlib import Path


def try_lock(file: int) -> str:
    """Lock an open file; nothing, or who has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _holder(file)
    return ""


def _holder(file: int) -> str:
    """As Linux tells."""
    found = os.fstat(file)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        locks = []
    return next((f"process {words[4]}" for words in locks if words[5:6] == [place]), "another process")
