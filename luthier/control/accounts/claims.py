"""What a caller shows to prove a key: the key itself, or a token signed with its secret.

The token is a JWT as Zhipu's clients make it: header {"alg":"HS256"}, payload {"api_key":<id>,"exp":<ms>,"timestamp":<ms>}.
Its `exp` counts milliseconds, so it is read here: a JWT library takes it for seconds, and no token would ever expire.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

LONGEST = 4096  # characters of a header that are looked at
LONGEST_LIFE = timedelta(days=1)

_KEY = re.compile(r"([A-Za-z0-9_-]{1,64})\.([!-\-/-~]{1,256})")  # exactly one dot: a token has two
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class Claim:
    """To speak for the key `key_id`. `shown` is the secret itself, or a signature of `signed` made with it."""

    key_id: str | None
    shown: bytes
    signed: bytes | None = None

    def is_proved_by(self, secret: str) -> bool:
        """Compared in a time that tells nothing of the secret."""
        expected = secret.encode() if self.signed is None else _signature(self.signed, secret)
        return hmac.compare_digest(expected, self.shown) and self.key_id is not None


def read(text: str, now: datetime) -> Claim:
    """What `text` claims, be it what it may: where it is neither key nor token, the claim names no key."""
    if len(text) <= LONGEST:
        if key := _KEY.fullmatch(text):
            return Claim(key[1], key[2].encode())
        if token := _TOKEN.fullmatch(text):
            return _of_token(token, now)
    return Claim(None, b"")


def _of_token(token: re.Match[str], now: datetime) -> Claim:
    header, payload = _json(token[1]), _json(token[2])
    key_id = payload.get("api_key")
    # "crit" names extensions that must be understood; none is.
    is_ours = header.get("alg") == "HS256" and "crit" not in header and _is_current(payload.get("exp"), now)
    if not is_ours or not isinstance(key_id, str) or not _ID.fullmatch(key_id):
        return Claim(None, b"")
    return Claim(key_id, token[3].encode(), signed=f"{token[1]}.{token[2]}".encode())


def _is_current(expires_ms: Any, now: datetime) -> bool:
    if not isinstance(expires_ms, int | float):
        return False
    left_ms = expires_ms - int(now.timestamp() * 1000)
    return 0 < left_ms <= LONGEST_LIFE / timedelta(milliseconds=1)  # false for NaN and infinity too


def _json(part: str) -> dict[str, Any]:
    """The object that a part of a token holds; empty where it holds something else."""
    try:
        value = json.loads(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _signature(signed: bytes, secret: str) -> bytes:
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=")
