"""Small pictures and archives for tests, and what to do to them."""

from __future__ import annotations

import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from PIL import Image

TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}


def picture(kind: str = "JPEG", width: int = 24, height: int = 16, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    image = Image.linear_gradient("L").resize((width, height)).convert(mode)
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, rows: bytes, depth: int = 1, colour: int = 0, more: bytes = b"") -> bytes:
    """A PNG put together by hand, so that it may say what it likes; `rows` is packed already."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@functools.cache
def zeros(count: int) -> bytes:
    """So many zero bytes, packed by zlib without ever being there."""
    pack = zlib.compressobj(9)
    piece = bytes(1 << 20)
    return b"".join([*(pack.compress(piece) for _ in range(count >> 20)), pack.flush()])


def archive(
    files: Mapping[str, bytes] | Sequence[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as packed:
        for name, data in files.items() if isinstance(files, Mapping) else files:
            info = zipfile.ZipInfo(name) if isinstance(name, str) else name  # always of the same day
            packed.writestr(info, data, compress_type=method)
    return out.getvalue()


GOOD_FILES = {"train.jsonl": b'{"messages": []}\n' * 3, "a.jpg": picture("JPEG"), "图.png": picture("PNG")}


@st.composite
def mutated(draw: st.DrawFn, originals: Sequence[bytes]) -> bytes:
    """One of the originals with a few bytes changed, a piece cut out, doubled or put in, or the end cut off."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 40))
        match draw(st.sampled_from(["change", "cut", "double", "put", "end", "number"])):
            case "change" if data:
                data[place] = draw(st.integers(0, 255))
            case "cut":
                del data[place : place + length]
            case "double":
                data[place:place] = data[place : place + length]
            case "put":
                data[place:place] = draw(st.binary(max_size=40))
            case "number":
                data[place : place + 4] = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"]))
            case _:
                del data[place:]
    return bytes(data)
