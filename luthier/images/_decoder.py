"""Decodes images for `decoding.py` in a process with limits, one after the other. Standard library and Pillow only.

`python _decoder.py MOST_PIXELS MEMORY_BYTES CPU_SECONDS` reads questions from standard input and writes one answer to
each: first one about itself, then one for every image. It ends with its input.
"""

import importlib
import io
import math
import os
import struct
import sys
import time

QUESTION = struct.Struct("!BI")  # which of TYPES, bytes that follow
ANSWER = struct.Struct("!BIIH")  # which of OUTCOMES, width, height, bytes of a remark that follow
TYPES = ("image/jpeg", "image/png", "image/webp")
OUTCOMES = ("good", "damaged", "too_many_pixels", "animated", "out_of_memory", "not_limited")
LONGEST_REMARK = 200
_READ_FD, _WRITE_FD = 0, 1


class TooManyPixels(Exception):
    """(width, height)"""


class Animated(Exception):
    """How many pictures there are."""


def main(most_pixels: int, memory_bytes: int, cpu_seconds: int) -> None:
    sys.tracebacklimit = 0
    try:
        read = readers(most_pixels)
        limit(memory_bytes)
    except Exception as failed:
        answer("not_limited", remark=f"{type(failed).__name__}: {failed}")
        return
    answer("good")
    while head := receive(QUESTION.size):
        kind, size = QUESTION.unpack(head)
        spend(cpu_seconds)
        try:
            data = receive(size)
            width, height = look(read, TYPES[kind], data, most_pixels)
        except MemoryError:
            answer("out_of_memory")
        except TooManyPixels as wrong:
            answer("too_many_pixels", *wrong.args)
        except Animated as wrong:
            answer("animated", remark=str(wrong))
        except Exception as wrong:
            answer("damaged", remark=f"{wrong}" or type(wrong).__name__)
        else:
            answer("good", width, height)
        data = b""


def readers(most_pixels: int):
    """Pillow's three readers, asked by name, so that no other one is ever tried; all that they load lazily is loaded."""
    from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    for name in ("ExifTags", "ImagePalette", "TiffImagePlugin"):
        importlib.import_module(f"PIL.{name}")
    Image.MAX_IMAGE_PIXELS = most_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    found = {
        "image/jpeg": JpegImagePlugin.JpegImageFile,
        "image/png": PngImagePlugin.PngImageFile,
        "image/webp": WebPImagePlugin.WebPImageFile,
    }
    for name, reader in found.items():  # a first picture of each, before files can no longer be opened
        sample = io.BytesIO()
        Image.new("RGB", (2, 2)).save(sample, reader.format)
        look(found, name, sample.getvalue(), most_pixels)
    return found


def limit(memory_bytes: int) -> None:
    """From here on: so much memory, no file opened or written, no process started, no core dumped."""
    import resource

    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if sys.platform != "darwin":  # which knows this limit and does not keep it
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def spend(cpu_seconds: int) -> None:
    """So many seconds of a processor from now on, then the system ends this process."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time()) + cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def look(read, kind: str, data: bytes, most_pixels: int) -> tuple[int, int]:
    """Width and height of a picture that was decoded whole."""
    fit(stated(kind, data), most_pixels)
    with read[kind](io.BytesIO(data)) as picture:
        fit(picture.size, most_pixels)
        pictures = getattr(picture, "n_frames", 1) if kind != "image/jpeg" else 1
        if pictures != 1:
            raise Animated(pictures)
        picture.load()
        fit(picture.size, most_pixels)
        return picture.size


def stated(kind: str, data: bytes) -> tuple[int, int]:
    """The size in the header, before a decoder makes room for it; JPEG's reader makes none until it decodes."""
    if kind == "image/png" and data[12:16] == b"IHDR":
        return struct.unpack(">II", data[16:24])
    if kind == "image/webp" and data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == "image/webp" and data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == "image/webp" and data[12:16] == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    if kind == "image/jpeg":
        return (1, 1)
    raise ValueError("the header is not where it should be")


def fit(size: tuple[int, int], most_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"{width} x {height} pixels")
    if width * height > most_pixels:
        raise TooManyPixels(width, height)


def receive(count: int) -> bytes:
    """So many bytes, or none where the input has ended."""
    data = bytearray()
    while len(data) < count:
        piece = os.read(_READ_FD, min(count - len(data), 1 << 20))
        if not piece:
            return b""
        data += piece
    return bytes(data)


def answer(outcome: str, width: int = 0, height: int = 0, remark: str = "") -> None:
    said = remark.encode("ascii", "replace")[:LONGEST_REMARK]
    whole = ANSWER.pack(OUTCOMES.index(outcome), width & 0xFFFFFFFF, height & 0xFFFFFFFF, len(said)) + said
    while whole:
        whole = whole[os.write(_WRITE_FD, whole) :]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
