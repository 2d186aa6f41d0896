"""The benchmark of the edge sees what is lost, doubled or out of its place."""

from __future__ import annotations

import json

import pytest

from benchmarks.gateway import Answer, percentile, texts


def streamed(*pieces: str, status: str = "200 OK", frames_in_a_chunk: int = 1) -> bytes:
    """An answer as it comes over the wire."""
    frames = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    frames += [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    frames += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {}}]
    events = [f"data: {json.dumps(frame)}\n\n".encode() for frame in frames] + [b"data: [DONE]\n\n"]
    chunks = [b"".join(events[n : n + frames_in_a_chunk]) for n in range(0, len(events), frames_in_a_chunk)]
    return f"HTTP/1.1 {status}\r\nA: b\r\n\r\n".encode() + b"".join(
        b"%x\r\n%b\r\n" % (len(c), c) for c in [*chunks, b""]
    )


@pytest.mark.parametrize("frames_in_a_chunk", [1, 2, 100])
def test_an_answer_is_read_however_it_is_cut(frames_in_a_chunk: int) -> None:
    assert texts(streamed("a", "b", "c", frames_in_a_chunk=frames_in_a_chunk)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("came", "is_whole"),
    [
        (("a", "b", "c"), True),
        (("a", "c"), False),
        (("a", "b", "b", "c"), False),
        (("b", "a", "c"), False),
        (("ab", "c"), False),
        (("a", "b"), False),
        ((), False),
    ],
)
def test_an_answer_is_whole_when_every_token_came_by_itself_and_in_its_place(
    came: tuple[str, ...], is_whole: bool
) -> None:
    assert Answer("abc", chunks=texts(streamed(*came))).is_whole is is_whole


def test_an_error_is_no_answer() -> None:
    assert texts(streamed("a", status="503 Service Unavailable")) == []
    assert texts(b"") == []


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_an_answer_that_was_broken_off_is_read_as_far_as_it_came(cut: int) -> None:
    whole = streamed("a", "b", "c")
    last = whole.index(b'"c"')
    assert texts(whole[: last - cut]) in (["a", "b"], ["a"])
    assert texts(whole[: last + 1]) == ["a", "b"]


def test_percentiles_are_of_what_was_measured() -> None:
    assert [percentile([float(n) for n in range(100)], share) for share in (50, 99)] == [50.0, 99.0]
    assert percentile([7.0], 99) == 7.0
