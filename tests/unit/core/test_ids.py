"""Ids sort in the order in which they were made, whatever the clock does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from luthier.core import ids


@pytest.fixture(params=["running", "standing still", "going back"])
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ids.time.time_ns()
    ticks = iter(range(1_000_000))
    told = {
        "running": ids.time.time_ns,
        "standing still": lambda: start,
        "going back": lambda: start - next(ticks) * 1_000_000,
    }
    monkeypatch.setattr(ids.time, "time_ns", told[request.param])


def test_ids_sort_strictly_in_the_order_they_were_made(clock: None) -> None:
    made = [ids.new("file") for _ in range(5000)]
    assert made == sorted(set(made))


def test_ids_of_many_threads_are_all_different_and_sorted_within_each(clock: None) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: [ids.new("run") for _ in range(500)], range(8)))
    assert all(batch == sorted(batch) for batch in made)
    assert len({one for batch in made for one in batch}) == 8 * 500


def test_an_id_shows_its_kind_and_has_one_length() -> None:
    prefix, rest = ids.new("ckpt").split("-")
    assert (prefix, len(rest)) == ("ckpt", 24)
    assert len(ids.short()) == 4
