"""One driver at a time: a lock on a file, that ends with its process however that ends."""

import fcntl
import os
import tempfile
from pathlib import Path

from patchloom.host.errors import LinkError

NAME = "patchloom"


def try_lock(file: int) -> str:
    """Lock an open file; nothing, or who has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return _holder(file)
    return ""


def lock_file(name: str) -> int:
    """A locked file of all users of this computer, for a machine that has none of its own. Raises `LinkError`."""
    path = Path(tempfile.gettempdir()) / f"{NAME}-{name}.lock"
    old = os.umask(0)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise LinkError(f"{path} must be a file to lock, and cannot be opened: {error.strerror}") from error
    finally:
        os.umask(old)
    if holder := try_lock(file):
        os.close(file)
        raise LinkError(f"the machine must be nobody else's: {holder} has it ({path})")
    return file


def _holder(file: int) -> str:
    """As Linux tells."""
    found = os.fstat(file)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        locks = []
    return next((f"process {words[4]}" for words in locks if words[5:6] == [place]), "another process")
