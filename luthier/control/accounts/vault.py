"""Seals secrets under a server key that lies outside the database.

Sealed, not hashed: two official clients send a token signed with the secret, which can only be checked with the secret.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from luthier.core.errors import InternalError

_NONCE = 12  # bytes, as AES-GCM wants them


class Vault:
    """AES-256-GCM under the key in a file that only its owner can read; made at first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cipher = AESGCM(_read_or_make(path))

    def seal(self, text: str, *, bound_to: str) -> bytes:
        """Seal a text so that it opens only together with `bound_to`, the id of its row."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._cipher.encrypt(nonce, text.encode(), bound_to.encode())

    def open(self, sealed: bytes, *, bound_to: str) -> str:
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], bound_to.encode()).decode()
        except InvalidTag as wrong:
            raise InternalError(
                f"The server key in {self._path} does not open the secrets in the database.",
                hint="Put the server key back that belongs to this database, or make new API keys with `luthier keys create`.",
            ) from wrong


def _read_or_make(path: Path) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        handle, partial = tempfile.mkstemp(dir=path.parent)  # only its owner can read it
        with os.fdopen(handle, "wb") as file:
            file.write(AESGCM.generate_key(256))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # somebody else was first; theirs holds
            os.link(partial, path)
        os.unlink(partial)
    key = path.read_bytes()
    if len(key) != 32:
        raise InternalError(f"{path} must hold 32 bytes, it holds {len(key)}.")
    return key
