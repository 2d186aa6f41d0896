"""Threads of a compiled pass, and when they help."""

from __future__ import annotations

import threading
import time

import pytest

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


def _passes(pace: Pace, count: int, *, alone: float, shared: float, tokens: int = 8) -> list[bool]:
    ways = []
    for _ in range(count):
        ways.append(pace.is_shared(tokens))
        pace.took(tokens, ways[-1], shared if ways[-1] else alone)
    return ways


def test_the_others_help_while_that_is_quicker() -> None:
    pace = Pace()
    assert sum(_passes(pace, 100, alone=2.0, shared=1.0)) > 90
    assert sum(_passes(pace, 400, alone=2.0, shared=9.0)[-300:]) < 20  # their core is busy with something else
    assert sum(_passes(pace, 400, alone=2.0, shared=1.0)[-300:]) > 280  # it is noticed when it is free again


def test_a_slow_pass_at_the_beginning_keeps_nobody_away() -> None:
    pace = Pace()
    pace.took(8, pace.is_shared(8), 100.0)
    assert sum(_passes(pace, 100, alone=2.0, shared=1.0)) > 90


def test_prompts_of_many_lengths_are_compared_too() -> None:
    pace = Pace()
    ways = []
    for number in range(400):
        tokens = 129 + number % 12
        ways.append(pace.is_shared(tokens))
        pace.took(tokens, ways[-1], tokens * (9.0 if ways[-1] else 2.0))
    assert sum(ways[-300:]) < 20


def test_a_moment_in_which_the_others_are_kept_away_changes_nothing() -> None:
    pace = Pace()
    _passes(pace, 31, alone=2.0, shared=1.0)
    _passes(pace, 6, alone=2.0, shared=9.0)
    assert sum(_passes(pace, 100, alone=2.0, shared=1.0)) > 90


def test_only_passes_of_about_the_same_size_are_compared() -> None:
    pace = Pace()
    for number in range(200):
        tokens = 500 if number % 2 else 1
        is_shared = pace.is_shared(tokens)
        assert is_shared
        pace.took(tokens, is_shared, 1.0 * tokens)


def test_nothing_is_tried_while_every_thread_has_a_core_to_itself() -> None:
    pace = Pace()
    for number in range(200):
        assert pace.is_shared(8)
        pace.took(8, True, 1.0, given=0.95 if number % 10 else 0.5)
    for _ in range(32):
        pace.took(8, True, 1.0, given=0.5)
    assert not pace.is_shared(8)


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="the system does not say")
def test_a_crew_says_what_each_thread_was_given() -> None:
    came = threading.Event()

    def work(number: int) -> None:
        ends = time.thread_time() + 0.05
        while time.thread_time() < ends:
            pass
        came.set()

    crew = Crew(work, others=1)
    mine, before = crew.seconds()
    crew.call()
    assert came.wait(10)
    later, after = crew.seconds()
    crew.close()
    assert after - before >= 0.05
    assert later - mine < after - before
