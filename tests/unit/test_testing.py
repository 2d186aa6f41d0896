"""The twin of an executor keeps an executor's promises, as far as a thread can."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from luthier.executors.base import Launch, Observation, State
from luthier.testing import InlineExecutor, InlineProcess

LAUNCH = Launch("run-1", ["trainer"], cores=(0,))


def test_starting_a_name_twice_runs_it_once_also_when_it_has_ended() -> None:
    ran: list[str] = []
    executor = InlineExecutor(lambda process: ran.append(process.launch.name) or 7)
    with ThreadPoolExecutor(6) as threads:
        handles = list(threads.map(lambda _: executor.start(LAUNCH), range(6)))
    assert executor.join("run-1") == Observation(State.ENDED, 7)
    assert executor.start(LAUNCH) == handles[0]
    assert handles == [handles[0]] * 6
    assert (ran, executor.started) == (["run-1"], [LAUNCH])


def test_a_stop_is_graceful_first_and_by_force_once_the_grace_is_over() -> None:
    deaf = threading.Event()
    executor = InlineExecutor(
        lambda process: 3 if process.launch.name == "run-1" and process.stopping.wait(60) else deaf.wait(60)
    )
    polite, rude = executor.start(LAUNCH), executor.start(Launch("run-2", [], cores=(0,)))
    assert executor.observe(polite) == executor.observe(rude) == Observation(State.RUNNING)
    for handle in (polite, rude):
        executor.stop(handle, grace_seconds=60)
    executor.stop(rude, grace_seconds=60)
    assert executor.join("run-1") == Observation(State.ENDED, 3)
    assert executor.observe(rude) == Observation(State.RUNNING)
    executor.stop(rude, grace_seconds=0)
    assert executor.observe(rude) == Observation(State.ENDED, None)
    deaf.set()


def test_what_is_printed_or_raised_is_in_the_log() -> None:
    def fail(process: InlineProcess) -> int:
        process.print("loading")
        raise ValueError("no such file")

    executor = InlineExecutor(fail)
    executor.start(LAUNCH)
    assert executor.join("run-1") == Observation(State.ENDED, 1)
    assert executor.logs("run-1").startswith("loading\n")
    assert executor.logs("run-1", last_bytes=26).strip() == "ValueError: no such file"
    assert executor.logs("never-started") == ""


def test_a_handle_of_somebody_else_says_nothing_about_a_process() -> None:
    assert InlineExecutor(lambda process: 0).observe({"pid": 1}) == Observation(State.UNKNOWN)
