"""Pictures are told by their bytes and decoded by a child that may die without anybody else noticing."""

from __future__ import annotations

import base64
import hashlib
import os
import resource
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from luthier.core.errors import InternalError
from luthier.images import decoding
from luthier.images.decoding import (
    DATA_URL_PREFIXES,
    MEMORY_BYTES,
    Decoder,
    ImageRefused,
    Picture,
    check_type,
    examine,
    from_data_url,
)
from tests.unit.images.pictures import TYPES, chunk, mutated, picture, png, zeros

MIB = 1024**2


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as decoder:
        yield decoder


def code_of(use: Callable[[], object]) -> str:
    with pytest.raises(ImageRefused) as caught:
        use()
    assert caught.value.message and caught.value.hint
    return caught.value.code


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_good_picture_is_described(decoder: Decoder, kind: str, mode: str) -> None:
    data = picture(kind, 24, 16, mode)
    expected = Picture(hashlib.sha256(data).hexdigest(), TYPES[kind], 24, 16)
    assert decoder.examine(data) == decoder.examine(data, declared=TYPES[kind]) == expected


@pytest.mark.parametrize(
    "data",
    [
        picture("PNG", mode="RGBA"),
        picture("PNG", mode="P"),
        picture("PNG", mode="1"),
        picture("PNG", mode="I;16"),
        picture("JPEG", mode="CMYK"),
        picture("JPEG", progressive=True),
        picture("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
        picture("WEBP", mode="RGBA", lossless=True),
        picture("JPEG", 1, 1),
        picture("JPEG") + b"bytes that a camera left behind",
    ],
    ids=range(10),
)
def test_the_many_kinds_of_good_pictures_are_taken(decoder: Decoder, data: bytes) -> None:
    assert decoder.examine(data).width in (24, 1)


def test_one_child_serves_many_pictures_and_one_picture_needs_no_context(decoder: Decoder) -> None:
    decoder.examine(picture())
    pid = decoder.pid
    for _ in range(50):
        decoder.examine(picture("WEBP"))
    assert decoder.pid == pid
    assert examine(picture()).height == 16


def test_threads_take_turns(decoder: Decoder) -> None:
    sizes = [(width, 5 + width) for width in range(1, 30)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda size: decoder.examine(picture("PNG", *size)), sizes))
    assert [(one.width, one.height) for one in found] == sizes


def test_the_largest_pictures_fit_and_one_pixel_row_more_does_not() -> None:
    with Decoder(most_pixels=24 * 16) as small:
        for kind in TYPES:
            assert small.examine(picture(kind)).width == 24
            assert code_of(lambda kind=kind: small.examine(picture(kind, 24, 17))) == "image_too_many_pixels"
    with Decoder(most_bytes=100) as small:
        assert code_of(lambda: small.examine(picture())) == "image_too_large"
        assert small.pid is None  # it was not even asked


def test_forty_megapixels_fit_into_the_childs_memory(decoder: Decoder) -> None:
    assert decoder.examine(picture("JPEG", 8000, 5000, progressive=True)).width == 8000
    assert decoder.examine(png(8000, 5000, rows=zeros(8000 * 5000 * 4 + 5 * MIB), depth=8, colour=6)).width == 8000


OTHER = {
    "empty": (b"", "not_an_image"),
    "text": (b"hello", "not_an_image"),
    "half a mark": (b"\xff\xd8", "not_an_image"),
    "a page": (b"<!DOCTYPE html><html>", "image_type_not_allowed"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image_type_not_allowed"),
    "gif": (picture("GIF"), "image_type_not_allowed"),
    "bmp": (picture("BMP"), "image_type_not_allowed"),
    "tiff": (picture("TIFF"), "image_type_not_allowed"),
    "avif": (b"\0\0\0\x1cftypavif", "image_type_not_allowed"),
    "video": (b"\0\0\0\x1cftypisom", "image_type_not_allowed"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "image_type_not_allowed"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0", "not_an_image"),
    "zip": (b"PK\3\4", "image_type_not_allowed"),
    "only a JPEG mark": (b"\xff\xd8\xff", "image_truncated"),
    "only a PNG mark": (b"\x89PNG\r\n\x1a\n", "image_truncated"),
    "only a WEBP mark": (b"RIFF\xff\xff\xff\x7fWEBP", "image_truncated"),
    "no pixels": (png(0, 0, rows=zeros(0)), "image_truncated"),
    "fewer rows than said": (png(100, 100, rows=zeros(0)), "image_truncated"),
    "animated PNG": (
        picture("PNG", save_all=True, append_images=[Image.new("RGB", (24, 16))]),
        "image_type_not_allowed",
    ),
    "animated WEBP": (
        picture("WEBP", save_all=True, append_images=[Image.new("RGB", (24, 16))]),
        "image_type_not_allowed",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_what_is_no_picture_of_ours_is_refused(decoder: Decoder, name: str) -> None:
    data, code = OTHER[name]
    assert code_of(lambda: decoder.examine(data)) == code


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_picture_that_is_cut_off_is_refused(decoder: Decoder, kind: str, part: float) -> None:
    data = picture(kind, 200, 200)
    assert code_of(lambda: decoder.examine(data[: int(len(data) * part)])) == "image_truncated"


@pytest.mark.parametrize("declared", ["image/png", "image/gif", "", "text/html\n" * 100])
def test_a_type_that_is_not_the_declared_one_is_refused(decoder: Decoder, declared: str) -> None:
    assert code_of(lambda: decoder.examine(picture("JPEG"), declared=declared)) == "image_type_mismatch"


BOMBS = {
    "50,000 x 50,000 in one bit": png(50_000, 50_000, rows=zeros(4 * MIB)),
    "as wide as can be said": png(0x7FFFFFFF, 0x7FFFFFFF, rows=zeros(MIB)),
    "wider than can be said": png(0xFFFFFFFF, 0xFFFFFFFF, rows=zeros(MIB)),
    "one row": png(0x7FFFFFFF, 1, rows=zeros(MIB)),
    "JPEG 65,535 x 65,535": picture("JPEG").replace(b"\x08\0\x10\0\x18\x03", b"\x08\xff\xff\xff\xff\x03"),
    "WEBP, extended": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6 + bytes(9),
    "WEBP, lossless": b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xff\xff\xff\x0f" + bytes(9),
    "WEBP, lossy": b"RIFF\x16\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\1\x2a\xff\x3f\xff\x3f" + bytes(9),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(decoder: Decoder, name: str) -> None:
    decoder.examine(picture())
    pid = decoder.pid
    tracemalloc.start()
    code = code_of(lambda: decoder.examine(BOMBS[name]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert code == "image_too_many_pixels"
    assert peak < MIB
    assert decoder.pid == pid


def test_a_bomb_of_text_in_a_png_is_refused(decoder: Decoder) -> None:
    bomb = png(1, 1, rows=b"", more=b"".join(chunk(b"zTXt", b"a\0\0" + zeros(20 * MIB)) for _ in range(5)))
    assert code_of(lambda: decoder.examine(bomb)) == "image_truncated"


def test_a_picture_with_more_rows_than_it_says_inflates_no_further() -> None:
    with Decoder() as decoder:
        assert decoder.examine(png(8, 1, rows=zeros(200 * MIB))).width == 8
        assert psutil.Process(decoder.pid).memory_info().rss < 100 * MIB


def test_a_picture_that_needs_too_much_memory_ends_only_its_own_child() -> None:
    with Decoder(memory_bytes=150 * MIB) as small:
        assert small.examine(picture()).width == 24
        first = small.pid
        big = png(8000, 5000, rows=zeros(8000 * 5000 * 4 + 5 * MIB), depth=8, colour=6)
        with pytest.raises(ImageRefused, match="bytes of memory"):
            small.examine(big)
        assert small.examine(picture()).width == 24
        assert small.pid != first


def test_the_child_has_its_limits(decoder: Decoder) -> None:
    decoder.examine(picture())
    assert decoder.pid is not None
    limits = Path(f"/proc/{decoder.pid}/limits")
    if sys.platform != "linux":
        pytest.skip("limits of another process are read from /proc")
    rows = {line[:26].strip(): line[26:].split()[:2] for line in limits.read_text().splitlines()[1:]}
    assert rows["Max address space"] == [str(MEMORY_BYTES)] * 2
    assert rows["Max file size"] == rows["Max core file size"] == rows["Max processes"] == ["0", "0"]
    assert rows["Max open files"] == ["3", "3"]
    assert 20 <= int(rows["Max cpu time"][0]) < 60
    assert len(os.listdir(f"/proc/{decoder.pid}/fd")) <= 3
    environment = Path(f"/proc/{decoder.pid}/environ").read_bytes().split(b"\0")
    assert {line.partition(b"=")[0] for line in environment} <= {b"", b"PATH", b"LD_LIBRARY_PATH"}
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3  # ours are as they were


def test_a_child_that_is_killed_between_pictures_is_replaced(decoder: Decoder) -> None:
    decoder.examine(picture())
    assert decoder.pid is not None
    before = decoder.pid
    os.kill(before, signal.SIGKILL)
    assert decoder.examine(picture()).width == 24
    assert decoder.pid != before


def test_a_child_that_hangs_is_killed_and_replaced() -> None:
    with Decoder(within_seconds=0.5) as hurried:
        hurried.examine(picture())
        assert hurried.pid is not None
        hung = hurried.pid
        os.kill(hung, signal.SIGSTOP)
        started = time.monotonic()
        assert code_of(lambda: hurried.examine(picture("PNG", 1500, 1500))) == "image_decoder_failed"
        assert time.monotonic() - started < 5
        assert not psutil.pid_exists(hung)
        assert hurried.examine(picture()).width == 24


def test_a_picture_that_kills_every_child_is_refused_and_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    with Decoder() as decoder:
        decoder.examine(picture())
        asked = []

        def dies(child: decoding._Child, *question: object) -> decoding._Answer:
            asked.append(child.pid)
            raise decoding._Ended("signal SIGSEGV")

        with monkeypatch.context() as patch:
            patch.setattr(decoding._Child, "ask", dies)
            with pytest.raises(ImageRefused, match="SIGSEGV"):
                decoder.examine(picture())
        assert len(set(asked)) == 2
        assert decoder.examine(picture()).width == 24


LIES = {
    "nothing": "",
    "noise": "os.write(1, b'\\xff' * 1000)",
    "half an answer": "os.write(1, b'\\0' * 5)",
    "two answers": "os.write(1, struct.pack('!BIIH', 0, 1, 1, 0) * 2)",
    "no pixels": "os.write(1, struct.pack('!BIIH', 0, 0, 0, 0))",
    "too many": "os.write(1, struct.pack('!BIIH', 0, 2**32 - 1, 2**32 - 1, 0))",
    "a long remark": "os.write(1, struct.pack('!BIIH', 1, 0, 0, 60000) + b'x' * 60000)",
}


@pytest.mark.parametrize("lie", LIES)
def test_what_a_child_that_was_taken_over_says_is_only_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    program = tmp_path / "liar.py"
    first = "import os, struct; os.write(1, struct.pack('!BIIH', 0, 0, 0, 0)); os.read(0, 1 << 20)"
    program.write_text(f"{first}\n{LIES[lie]}\n")
    monkeypatch.setattr(decoding, "_PROGRAM", program)
    with Decoder(within_seconds=10) as decoder:
        assert code_of(lambda: decoder.examine(picture())) == "image_decoder_failed"


def test_a_decoder_that_cannot_start_is_our_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit(3)")
    monkeypatch.setattr(decoding, "_PROGRAM", program)
    with Decoder() as decoder, pytest.raises(InternalError, match="exit code 3"):
        decoder.examine(picture())


def test_nothing_is_left_behind() -> None:
    threads, children = threading.active_count(), len(psutil.Process().children())
    fds = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(3):
        examine(picture())
    assert (threading.active_count(), len(psutil.Process().children())) == (threads, children)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == fds


@given(mutated([picture(kind) for kind in TYPES] + [picture("PNG", mode="P"), picture("JPEG", progressive=True)]))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_picture_or_refused(decoder: Decoder, data: bytes) -> None:
    try:
        found = decoder.examine(data)
    except ImageRefused:
        found = None
    if found is not None:
        assert found.sha256 == hashlib.sha256(data).hexdigest()
        assert 0 < found.width * found.height <= 40_000_000
    if decoder.pid is not None:
        assert psutil.Process(decoder.pid).memory_info().rss < MEMORY_BYTES


@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x16\0\0\0WEBPVP8 "]), st.binary(max_size=200))
@settings(max_examples=80, deadline=None)
def test_a_mark_and_noise_is_refused(decoder: Decoder, mark: bytes, noise: bytes) -> None:
    assert code_of(lambda: decoder.examine(mark + noise)) in ("image_truncated", "image_too_many_pixels")


def data_url(data: bytes, prefix: str = "data:image/jpeg;base64,") -> str:
    return prefix + base64.b64encode(data).decode()


@pytest.mark.parametrize(("kind", "prefix"), list(zip(TYPES, DATA_URL_PREFIXES, strict=True)))
def test_a_data_url_gives_its_type_and_bytes(kind: str, prefix: str) -> None:
    assert from_data_url(data_url(picture(kind), prefix)) == (TYPES[kind], picture(kind))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "image_prefix_missing"),
        (base64.b64encode(picture()).decode(), "image_prefix_missing"),
        ("https://a.example/x.jpg", "image_prefix_missing"),
        (data_url(picture(), "data:image/jpg;base64,"), "image_prefix_missing"),
        (data_url(picture(), "data:;base64,"), "image_prefix_missing"),
        (data_url(picture(), "data:image/jpeg,"), "image_prefix_missing"),
        (data_url(picture(), "DATA:IMAGE/JPEG;BASE64,"), "image_prefix_missing"),
        (data_url(picture(), " data:image/jpeg;base64,"), "image_prefix_missing"),
        (data_url(picture(), "data:image/jpeg;charset=x;base64,"), "image_type_not_allowed"),
        (data_url(picture("GIF"), "data:image/gif;base64,"), "image_type_not_allowed"),
        (data_url(b"", "data:image/jpeg;base64,"), "image_base64_invalid"),
        (data_url(picture()) + "\n", "image_base64_invalid"),
        (data_url(picture())[:-1], "image_base64_invalid"),
        (data_url(picture()).replace("/9j/", "_9j_"), "image_base64_invalid"),
        (data_url(picture()) + "====", "image_base64_invalid"),
        ("data:image/jpeg;base64,图", "image_base64_invalid"),
        ("data:image/jpeg;base64,\ud800", "image_base64_invalid"),
        (data_url(picture("PNG")), "image_type_mismatch"),
        (data_url(picture("JPEG"), "data:image/png;base64,"), "image_type_mismatch"),
        (data_url(picture("GIF")), "image_type_not_allowed"),
        (data_url(b"hello"), "not_an_image"),
        (data_url(picture() + bytes(10 * MIB)), "image_too_large"),
        (data_url(b"\xff\xd8\xff" + bytes(10 * MIB - 2)), "image_too_large"),
    ],
)
def test_a_data_url_that_is_not_as_it_must_be(text: str, code: str) -> None:
    assert code_of(lambda: from_data_url(text)) == code


def test_a_missing_prefix_is_named() -> None:
    with pytest.raises(ImageRefused, match="'data:image/jpeg;base64,'"):
        from_data_url("/9j/4AAQ")


def test_a_long_data_url_is_quick() -> None:
    text = data_url(b"\xff\xd8\xff" + bytes(6 * MIB))
    started = time.process_time()
    assert len(from_data_url(text)[1]) == 6 * MIB + 3
    assert time.process_time() - started < 0.5
    started = time.process_time()
    assert code_of(lambda: from_data_url("A" * 8 * MIB)) == "image_prefix_missing"
    assert time.process_time() - started < 0.1


@given(st.text(max_size=60) | st.text(max_size=60).map(DATA_URL_PREFIXES[1].__add__))
@settings(max_examples=80, deadline=None)
def test_any_text_is_a_data_url_or_refused(text: str) -> None:
    assert code_of(lambda: from_data_url(text))


def test_the_type_alone_can_be_told() -> None:
    assert check_type(b"\xff\xd8\xff\xe0") == "image/jpeg"
