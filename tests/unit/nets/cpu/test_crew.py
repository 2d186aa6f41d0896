"""Threads of a compiled pass, and when they help."""

from __future__ import annotations

import threading

from luthier.nets.cpu.crew import Crew, Pace


def test_a_call_wakes_every_other_worker_once_and_closing_sends_them_home() -> None:
    came: list[int] = []
    both = threading.Barrier(3)

    def work(number: int) -> None:
        came.append(number)
        both.wait(10)

    before = threading.active_count()
    crew = Crew(work, others=2)
    crew.call()
    both.wait(10)
    crew.close()
    crew.close()
    assert sorted(came) == [1, 2]
    assert threading.active_count() == before


def _passes(pace: Pace, count: int, *, alone: float, shared: float) -> list[bool]:
    ways = []
    for _ in range(count):
        ways.append(pace.is_shared(8))
        pace.took(8, ways[-1], shared if ways[-1] else alone)
    return ways


def test_the_others_help_while_that_is_quicker() -> None:
    pace = Pace()
    assert sum(_passes(pace, 100, alone=2.0, shared=1.0)) > 90
    assert sum(_passes(pace, 200, alone=2.0, shared=9.0)) < 20  # their core is busy with something else
    assert sum(_passes(pace, 400, alone=2.0, shared=1.0)[-100:]) > 90  # it is noticed when it is free again


def test_passes_of_other_sizes_keep_a_pace_of_their_own() -> None:
    pace = Pace()
    _passes(pace, 20, alone=1.0, shared=2.0)
    assert not pace.is_shared(8)
    assert pace.is_shared(200)
