"""A replica that dies leaves nobody waiting and no answer silently cut: a short form of tests/fuzz/kills.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.kills import TOLD, WHOLE, Ending, kills

pytestmark = pytest.mark.timeout(600)  # real processes, killed and started again


def test_every_stream_ends_whole_or_says_that_it_does_not_when_replicas_are_killed(tmp_path: Path) -> None:
    seen = kills(tmp_path, kills=3, clients=8)
    assert not seen.faults, seen.faults
    assert seen.kills == 3 and seen.outcomes[WHOLE] and seen.outcomes[TOLD], seen.outcomes


@pytest.mark.parametrize(
    ("lines", "outcome"),
    [
        (['data: {"choices":[{"delta":{"content":"ab"},"finish_reason":"stop"}]}', "data: [DONE]"], WHOLE),
        (['data: {"choices":[{"delta":{"content":"a"}}]}', 'data: {"error":{"message":"lost"}}'], TOLD),
    ],
)
def test_a_stream_that_ends_well_is_told_by_how_it_ends(lines: list[str], outcome: str) -> None:
    assert _read(lines).outcome("ab") == outcome


@pytest.mark.parametrize(
    "lines",
    [
        ['data: {"choices":[{"delta":{"content":"ab"}}]}'],
        ['data: {"choices":[{"delta":{"content":"ab"}}]}', "data: [DONE]"],
        ['data: {"choices":[{"delta":{"content":"ab"},"finish_reason":"stop"}]}'],
        ['data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}', "data: [DONE]"],
        ['data: {"choices":[{"delta":{"content":"x"}}]}', 'data: {"error":{"message":"lost"}}'],
    ],
    ids=["nothing after it", "no reason", "no end", "a letter short", "other text"],
)
def test_a_stream_that_is_cut_or_changed_is_found_out(lines: list[str]) -> None:
    assert _read(lines).outcome("ab") not in (WHOLE, TOLD)


def _read(lines: list[str]) -> Ending:
    ending = Ending()
    for line in lines:
        ending.read(line)
    return ending
