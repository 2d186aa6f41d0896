"""Whether a program ended because its memory did not suffice, wherever in it that was noticed."""

from __future__ import annotations

import errno

from luthier.core.errors import LuthierError, OutOfMemory

_SIGNS = (
    *("memoryerror", "bad_alloc", "out of memory", "allocate memory", "memory allocation"),
    *("alloc_failed", "start new thread", "map segment", "unable to instantiate"),
)
"""What is said where there is no more memory: by Python, C++, torch and its GPU libraries, Rust, threads, the loader."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was no memory left, of the machine or of its GPU."""
    if isinstance(error, LuthierError):
        return isinstance(error, OutOfMemory)
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    is_of_such = isinstance(error, MemoryError | RuntimeError | OSError | ImportError)
    return is_of_such and says_out_of_memory(f"{type(error).__name__}: {error}")


def says_out_of_memory(text: str) -> bool:
    """The same of what a process that died has left on standard error."""
    return any(sign in text.lower() for sign in _SIGNS)
