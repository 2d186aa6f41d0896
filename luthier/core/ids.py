"""Prefixed ids that sort by the time they were made: file-…, ftjob-…, run-…, ckpt-…"""

from __future__ import annotations

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case


_RANDOM_BITS = 72
_lock = threading.Lock()
_last = 0


def new(prefix: str) -> str:
    """A new id: the prefix, 48 bits of milliseconds, 72 random bits, in base 32 (24 characters).

    Ids of one process sort strictly in the order in which they were made, also within a millisecond.
    """
    global _last
    with _lock:
        now = time.time_ns() // 1_000_000
        fresh = now << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS - 1)  # the top bit is left free for counting up
        _last = max(fresh, _last + 1) if now > _last >> _RANDOM_BITS else _last + 1
        return f"{prefix}-{_base32(_last, 24)}"


def short(length: int = 4) -> str:
    """A short random suffix for a name that is checked for uniqueness elsewhere."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _base32(number: int, length: int) -> str:
    return "".join(_ALPHABET[number >> (5 * place) & 31] for place in reversed(range(length)))
