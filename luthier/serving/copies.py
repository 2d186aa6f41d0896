"""A folder of this process for copies of files, gone with it however it ends: the next process takes away what is left."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import stat
import tempfile
from functools import cache
from pathlib import Path

_PREFIX = "luthier-copies-"


@cache
def folder() -> Path:
    """Nobody else can read or change it. A lock says that its process lives: of another container its number says nothing."""
    _sweep()
    while True:
        made = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = os.open(_lock(made), os.O_CREAT | os.O_RDWR, 0o600)  # held until this process ends
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _lock(made).exists():  # else another one that swept took it for left
            atexit.register(shutil.rmtree, made, ignore_errors=True)
            return made
        os.close(lock)


def _sweep() -> None:
    for found in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            seen = found.lstat()
            if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid():
                continue
            lock = os.open(_lock(found), os.O_RDWR)
        except FileNotFoundError:  # just made, or just taken away
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(found, ignore_errors=True)
        except BlockingIOError:  # its process lives
            continue
        finally:
            os.close(lock)


def _lock(made: Path) -> Path:
    return made / "lock"
