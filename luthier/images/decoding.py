"""Tells whether bytes are a picture that can be used. The type is told here; decoding happens in a process with limits.

JPEG, PNG and WEBP, still pictures only. Metadata is not looked at: width and height are those of the stored pixels,
whatever an EXIF orientation says, and of a JPEG that carries several pictures the first one counts.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import InternalError, InvalidRequest
from luthier.images._decoder import ANSWER, LONGEST_REMARK, OUTCOMES, QUESTION, TYPES

MOST_BYTES = 10 * 1024 * 1024
MOST_PIXELS = 40_000_000
MEMORY_BYTES = 1024**3
DATA_URL_PREFIXES = tuple(f"data:{kind};base64," for kind in TYPES)

_PROGRAM = Path(__file__).with_name("_decoder.py")
_START_SECONDS = 60  # to load Pillow on a busy machine
_PIECE = 1 << 20

_MARKS = [  # how files begin; the three types that are taken come first
    ("image/jpeg", b"\xff\xd8\xff"),
    ("image/png", b"\x89PNG\r\n\x1a\n"),
    ("image/gif", b"GIF8"),
    ("image/bmp", b"BM"),
    ("image/tiff", b"II*\0"),
    ("image/tiff", b"MM\0*"),
    ("image/vnd.adobe.photoshop", b"8BPS"),
    ("image/x-icon", b"\0\0\1\0"),
    ("image/jxl", b"\xff\x0a"),
    ("image/jxl", b"\0\0\0\x0cJXL "),
    ("image/jp2", b"\0\0\0\x0cjP  "),
    ("image/svg+xml", b"<svg"),
    ("image/svg+xml", b"<?xml"),
    ("application/pdf", b"%PDF"),
    ("application/zip", b"PK\3\4"),
    ("text/html", b"<!DOCTYPE"),
    ("text/html", b"<!doctype"),
    ("text/html", b"<html"),
]


class ImageRefused(InvalidRequest):
    """A picture that cannot be used. `code` is one of

    not_an_image, image_type_not_allowed, image_type_mismatch, image_too_large, image_too_many_pixels,
    image_truncated, image_decoder_failed; of a data URL also image_prefix_missing, image_base64_invalid; of a name in
    an archive also image_missing, image_name_not_allowed, image_entry_damaged.
    """

    code = "image_refused"

    def __init__(self, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True)
class Picture:
    """What is known of a picture that was decoded whole."""

    sha256: str  # of its bytes as they came
    media_type: str
    width: int  # pixels
    height: int


class Decoder:
    """Examines pictures, one after the other, in a child process that stays up. Threads may share one and take turns.

    The child has limits on memory, processor time and pixels, and can open no file, so a picture made to harm harms
    nothing but its own answer. It starts with the first picture and again after one that it did not survive; `close`
    ends it, and the next picture starts it again.
    """

    def __init__(
        self,
        *,
        most_bytes: int = MOST_BYTES,
        most_pixels: int = MOST_PIXELS,
        within_seconds: float = 20,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """`within_seconds` is for one picture, by the clock and on the processor; `memory_bytes` is address space."""
        self._most_bytes = most_bytes
        self._most_pixels = most_pixels
        self._within_seconds = within_seconds
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id; absent while there is none."""
        return self._child.pid if self._child else None

    def examine(self, data: bytes, *, declared: str | None = None) -> Picture:
        """Decode a picture whole and tell its type and size.

        `declared` is the media type that its sender claims; absent, its bytes alone decide. The same bytes get the
        same answer whatever was examined before. Raises ImageRefused, and InternalError when the child cannot start.
        """
        if len(data) > self._most_bytes:
            raise _too_large(len(data), self._most_bytes)
        media_type = check_type(data, declared)
        with self._lock:
            outcome, width, height, remark = self._ask(media_type, data)
        if outcome == "good" and 0 < width * height <= self._most_pixels:
            return Picture(hashlib.sha256(data).hexdigest(), media_type, width, height)
        raise self._refusal(outcome, media_type, width, height, remark)

    def close(self) -> None:
        """End the child; a second time is harmless."""
        with self._lock:
            self._end()

    def _ask(self, media_type: str, data: bytes) -> _Answer:
        """Ask the child; where one that had answered before fails, ask a fresh one, so that no picture pays for another."""
        while True:
            if self._child is None:
                self._child = _Child(self._most_pixels, self._memory_bytes, self._within_seconds)
            child, is_fresh = self._child, self._child.answers == 0
            try:
                answer = child.ask(media_type, data, self._within_seconds)
            except _Ended as ended:
                answer = ("ended", 0, 0, str(ended))
            except TimeoutError:
                self._end()
                return ("too_slow", 0, 0, "")
            except BaseException:  # a question half asked would spoil the next one
                self._end()
                raise
            if answer[0] not in ("ended", "out_of_memory"):
                return answer
            self._end()
            if is_fresh:
                return answer

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._child = None

    def _refusal(self, outcome: str, media_type: str, width: int, height: int, remark: str) -> ImageRefused:
        kind = media_type.removeprefix("image/").upper()
        if outcome == "too_many_pixels":
            return ImageRefused(
                "image_too_many_pixels",
                f"The {kind} is {width:,} x {height:,} pixels; at most {self._most_pixels:,} in all are allowed.",
                hint="Scale it down.",
            )
        if outcome == "animated":
            return ImageRefused(
                "image_type_not_allowed",
                f"The {kind} is animated ({remark[:20]} pictures); one still picture is expected.",
                hint="Save one of its pictures alone.",
            )
        if outcome == "damaged":
            return ImageRefused(
                "image_truncated",
                f"The {kind} is cut off or damaged: {remark}.",
                hint="Send the whole file, or save it anew.",
            )
        why = {
            "too_slow": f"took more than {self._within_seconds:g} seconds",
            "out_of_memory": f"needed more than {self._memory_bytes:,} bytes of memory",
            "ended": f"ended the decoder ({remark})",
        }
        return ImageRefused(
            "image_decoder_failed",
            f"The {kind} could not be decoded: it {why.get(outcome, 'confused the decoder')}.",
            hint="Save it anew with another program, or leave it out.",
        )


def examine(data: bytes, *, declared: str | None = None) -> Picture:
    """Examine one picture, see Decoder.examine; for many keep one Decoder. Raises ImageRefused."""
    with Decoder() as decoder:
        return decoder.examine(data, declared=declared)


def check_type(data: bytes, declared: str | None = None) -> str:
    """The media type that the first bytes show, without decoding.

    Raises ImageRefused: not_an_image, image_type_not_allowed, or image_type_mismatch when another was declared.
    """
    found = _sniffed(data)
    if found is None:
        raise ImageRefused(
            "not_an_image",
            f"These {len(data):,} bytes do not begin like an image; JPEG, PNG or WEBP is expected.",
            hint="Check that the file is an image and not, say, a page about one.",
        )
    if found not in TYPES:
        raise ImageRefused(
            "image_type_not_allowed", f"This is {found}; JPEG, PNG or WEBP is expected.", hint="Convert it."
        )
    if declared is not None and declared.lower() != found:
        raise ImageRefused(
            "image_type_mismatch",
            f"The image is declared as {declared[:60]!r} and its bytes are {found}.",
            hint=f"Declare it as {found}, or send the image that was meant.",
        )
    return found


def from_data_url(text: str, *, most_bytes: int = MOST_BYTES) -> tuple[str, bytes]:
    """The media type and the bytes of `data:image/jpeg;base64,...`, and as our extension of png and webp.

    The prefix is taken as written here, in lower case; base64 is strict: the standard alphabet, padded, no line
    breaks. The first bytes must fit the declared type; nothing is decoded. Raises ImageRefused.
    """
    prefix = next((prefix for prefix in DATA_URL_PREFIXES if text.startswith(prefix)), None)
    if prefix is None:
        raise _prefix_missing(text)
    if len(text) - len(prefix) > 4 * -(-most_bytes // 3):
        raise _too_large((len(text) - len(prefix)) * 3 // 4, most_bytes)
    try:
        data = base64.b64decode(text[len(prefix) :], validate=True)
    except (binascii.Error, ValueError) as wrong:  # ValueError: letters outside ASCII
        raise ImageRefused(
            "image_base64_invalid",
            f"What follows {prefix!r} is not base64: {wrong}.",
            hint="Encode with the standard alphabet (+ and /), with padding and without line breaks.",
        ) from wrong
    if not data:
        raise ImageRefused("image_base64_invalid", f"Nothing follows {prefix!r}.", hint="Append the image in base64.")
    if len(data) > most_bytes:
        raise _too_large(len(data), most_bytes)
    return check_type(data, prefix[len("data:") : -len(";base64,")]), data


_Answer = tuple[str, int, int, str]  # outcome, width, height, remark


class _Ended(Exception):
    """The child is gone, or says what it cannot mean."""


class _Child:
    """One run of `_decoder.py`, with its two pipes."""

    def __init__(self, most_pixels: int, memory_bytes: int, cpu_seconds: float) -> None:
        self.answers = 0
        limits = [str(most_pixels), str(memory_bytes), str(int(cpu_seconds) + 2)]  # our clock runs out first
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_PROGRAM), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=kept,  # no secret of ours
            start_new_session=True,  # Ctrl-C is meant for us
        )
        assert self._process.stdin and self._process.stdout
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._input, False)
        try:
            outcome, *_, remark = self._exchange(b"", b"", _START_SECONDS)
        except (TimeoutError, _Ended) as failed:
            self.end()
            raise _not_started(str(failed)) from failed
        if outcome != "good":
            self.end()
            raise _not_started(remark)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, media_type: str, data: bytes, within_seconds: float) -> _Answer:
        """Raises TimeoutError, and _Ended when the child is gone; in both cases it is of no more use."""
        answer = self._exchange(QUESTION.pack(TYPES.index(media_type), len(data)), data, within_seconds)
        self.answers += 1
        return answer

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()

    def _exchange(self, head: bytes, data: bytes, within_seconds: float) -> _Answer:
        """Write and read by turns, as the pipes allow, until one whole answer is there."""
        deadline = time.monotonic() + within_seconds
        rest = [memoryview(part) for part in (head, data) if part]
        found = b""
        with selectors.DefaultSelector() as ready:
            ready.register(self._output, selectors.EVENT_READ)
            if rest:
                ready.register(self._input, selectors.EVENT_WRITE)
            while (answer := _read_answer(found)) is None:
                events = ready.select(max(0.0, deadline - time.monotonic()))
                if not events or time.monotonic() > deadline:
                    raise TimeoutError("no answer in time")
                for key, _ in events:
                    if key.fd == self._output:
                        if not (piece := os.read(self._output, ANSWER.size + LONGEST_REMARK)):
                            raise _Ended(self._last_words())
                        found += piece
                    else:
                        rest = self._write(rest)
                        if not rest:
                            ready.unregister(self._input)
        if rest:
            raise _Ended("it answered before it was asked")
        return answer

    def _write(self, rest: list[memoryview]) -> list[memoryview]:
        try:
            count = os.write(self._input, rest[0][:_PIECE])
        except BlockingIOError:
            return rest
        except BrokenPipeError as gone:
            raise _Ended(self._last_words()) from gone
        return [part for part in (rest[0][count:], *rest[1:]) if part]

    def _last_words(self) -> str:
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        if code < 0:
            return f"signal {signal.Signals(-code).name}"
        return f"exit code {code}"


def _read_answer(found: bytes) -> _Answer | None:
    """An answer, None while it is not whole yet. The child may have been taken over: what it says is only data."""
    if len(found) < ANSWER.size:
        return None
    outcome, width, height, length = ANSWER.unpack_from(found)
    if outcome >= len(OUTCOMES) or length > LONGEST_REMARK or len(found) > ANSWER.size + length:
        raise _Ended("it gave no answer that can be read")
    if len(found) < ANSWER.size + length:
        return None
    remark = found[ANSWER.size :].decode("ascii", "replace")
    return OUTCOMES[outcome], width, height, "".join(letter if letter.isprintable() else "?" for letter in remark)


def _not_started(why: str) -> InternalError:
    return InternalError(f"The image decoder does not start: {why}.", hint="Check that Pillow is installed and whole.")


def _sniffed(data: bytes) -> str | None:
    if data[:4] == b"RIFF":
        return "image/webp" if data[8:12] == b"WEBP" else "a RIFF file"
    if data[4:8] == b"ftyp":
        return {b"avif": "image/avif", b"heic": "image/heic"}.get(data[8:12], "video/mp4 or kin")
    return next((kind for kind, mark in _MARKS if data.startswith(mark)), None)


def _too_large(size: int, most_bytes: int) -> ImageRefused:
    return ImageRefused(
        "image_too_large",
        f"The image is {size:,} bytes; at most {most_bytes:,} are allowed.",
        hint="Scale it down or save it with more compression.",
    )


def _prefix_missing(text: str) -> ImageRefused:
    expected = f"An image in base64 must start with {DATA_URL_PREFIXES[0]!r}"
    also = " or ".join(repr(prefix) for prefix in DATA_URL_PREFIXES[1:])
    kind, mark, _ = text[:80].removeprefix("data:").partition(";base64,")
    if text.startswith("data:") and mark and kind.lower() not in (*TYPES, "image/jpg", ""):
        return ImageRefused(
            "image_type_not_allowed", f"{expected} (also: {also}), this one is {kind[:60]!r}.", hint="Convert it."
        )
    return ImageRefused(
        "image_prefix_missing",
        f"{expected} (also: {also}), this one starts with {text[:32]!r}.",
        hint="Put the prefix of the image's type in front of the base64, in lower case.",
    )
