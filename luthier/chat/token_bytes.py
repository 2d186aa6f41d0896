"""The bytes a token stands for, which may be half a character."""

from __future__ import annotations

import re

from luthier.chat.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_LIKE_THEMSELVES = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in set(_LIKE_THEMSELVES)]
_OF_LETTER = {chr(byte): byte for byte in _LIKE_THEMSELVES} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
"""How byte-level vocabularies write bytes: visible ones as themselves, the others from U+0100 on."""


class TokenBytes:
    """Of one tokenizer: one that writes bytes as letters, or one with `▁` for a blank and `<0x0A>` for a byte."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._markers = {number: word.encode() for word, number in tokenizer.words.items()}

    def of(self, token: int) -> bytes:
        """None of a special token's, which is no part of any text."""
        if (marker := self._markers.get(token)) is not None:
            return marker
        name = self._tokenizer.name_of(token)
        if self._tokenizer.special_id(name) == token:
            return b""
        if self._tokenizer.is_byte_level:
            return b"".join(bytes([_OF_LETTER[one]]) if one in _OF_LETTER else one.encode() for one in name)
        if byte := _BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)])
        return name.replace("▁", " ").encode()
