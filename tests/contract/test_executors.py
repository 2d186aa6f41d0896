"""Every executor keeps the promises of the contract."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from luthier.executors.base import Executor, Handle, Launch, Observation, State, executors


def local(folder: Path) -> Executor:
    return executors.load("local")(folder, cores=2)  # type: ignore[call-arg]


CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
OPENED: dict[str, Callable[[Path], Executor]] = {"local": local}


@pytest.fixture(params=executors.names())
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Executor]:
    """Opens the executor over the same state, as often as it is called."""
    return lambda: OPENED[request.param](tmp_path / "launches")


def python(source: str, name: str = "run-1-1", **environment: str) -> Launch:
    return Launch(name, [sys.executable, "-c", source], cores=(0,), environment=environment)


def ended(executor: Executor, handle: Handle, seconds: float = 10) -> Observation:
    for _ in range(int(seconds * 50)):
        if (seen := executor.observe(handle)).state is State.ENDED:
            return seen
        time.sleep(0.02)
    raise AssertionError(f"still {seen}")


def printed(executor: Executor, name: str, text: str) -> None:
    for _ in range(500):
        if text in executor.logs(name):
            return
        time.sleep(0.02)
    raise AssertionError(executor.logs(name))


@pytest.mark.parametrize("code", [0, 3])
def test_exit_codes_and_output_arrive(opened: Callable[[], Executor], code: int) -> None:
    executor = opened()
    handle = executor.start(python(f"print('hello'); raise SystemExit({code})"))
    assert ended(executor, handle) == Observation(State.ENDED, code)
    assert executor.logs("run-1-1") == "hello\n"


def test_a_command_that_does_not_exist_ends_with_its_reason_in_the_log(opened: Callable[[], Executor]) -> None:
    executor = opened()
    handle = executor.start(Launch("run-1-1", ["/nowhere/at-all"], cores=(0,)))
    assert ended(executor, handle).exit_code == 127
    assert "/nowhere/at-all" in executor.logs("run-1-1")


def test_starting_twice_is_once_from_many_threads_and_executors(opened: Callable[[], Executor], tmp_path: Path) -> None:
    launch = python(
        f"open({str(tmp_path / 'starts')!r}, 'a').write('x'); print('up', flush=True); import time; time.sleep(60)"
    )
    both = [opened(), opened()]
    with ThreadPoolExecutor(6) as threads:
        handles = list(threads.map(lambda n: both[n % 2].start(launch), range(6)))
    printed(both[0], launch.name, "up")
    assert handles == [handles[0]] * 6
    assert (tmp_path / "starts").read_text() == "x"
    both[0].stop(handles[0], grace_seconds=0)
    ended(both[0], handles[0])


def test_a_name_that_has_ended_is_not_started_again(opened: Callable[[], Executor], tmp_path: Path) -> None:
    executor = opened()
    launch = python(f"open({str(tmp_path / 'starts')!r}, 'a').write('x')")
    handle = executor.start(launch)
    ended(executor, handle)
    assert executor.start(launch) == handle
    assert ended(opened(), handle).exit_code == 0
    assert (tmp_path / "starts").read_text() == "x"


def test_a_stop_is_graceful_first(opened: Callable[[], Executor]) -> None:
    executor = opened()
    source = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit(7)))\n"
        "print('up', flush=True); time.sleep(60)"
    )
    handle = executor.start(python(source))
    printed(executor, "run-1-1", "up")
    executor.stop(handle, grace_seconds=30)
    executor.stop(handle, grace_seconds=30)
    assert ended(executor, handle).exit_code == 7
    assert executor.logs("run-1-1") == "up\nbye\n"
    executor.stop(handle, grace_seconds=30)  # gone already: nothing happens


def test_a_stop_is_by_force_once_the_grace_is_over_also_after_our_restart(opened: Callable[[], Executor]) -> None:
    executor = opened()
    source = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    handle = executor.start(python(source))
    printed(executor, "run-1-1", "up")
    executor.stop(handle, grace_seconds=0.4)
    executor.stop(handle, grace_seconds=0.4)
    assert executor.observe(handle).state is State.RUNNING
    time.sleep(0.5)
    opened().stop(handle, grace_seconds=0.4)
    ended(executor, handle)


def test_the_launch_decides_about_environment_and_threads(
    opened: Callable[[], Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_BOOTSTRAP_KEY", "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    executor = opened()
    source = (
        "import os, sys; got = os.environ.get\n"
        "print(got('LUTHIER_BOOTSTRAP_KEY'), got('OMP_NUM_THREADS'), got('GIVEN'), sys.stdin.read())"
    )
    ended(executor, executor.start(python(source, GIVEN="this")))
    assert executor.logs("run-1-1") == "None 1 this \n"


@pytest.mark.skipif(len(CPUS) < 2, reason="there are no cores to choose between")
def test_a_process_uses_its_cores_and_those_it_is_moved_to(opened: Callable[[], Executor]) -> None:
    executor = opened()
    source = (
        "import os, time\nseen = None\n"
        "while True:\n"
        "    if (now := sorted(os.sched_getaffinity(0))) != seen:\n"
        "        print(*(seen := now), flush=True)\n"
        "    time.sleep(0.01)"
    )
    handle = executor.start(Launch("run-1-1", [sys.executable, "-c", source], cores=(0,)))
    expected = f"{CPUS[0]}\n"
    printed(executor, "run-1-1", expected)
    for cores, told in (((0, 1), f"{CPUS[0]} {CPUS[1]}\n"), ((0, 1), ""), ((1,), f"{CPUS[1]}\n")):
        opened().move(handle, cores)
        expected += told
        printed(executor, "run-1-1", expected)
    assert executor.logs("run-1-1") == expected
    executor.stop(handle, grace_seconds=0)
    executor.stop(handle, grace_seconds=0)
    ended(executor, handle)
    executor.move(handle, (0,))  # gone already: nothing happens


def test_logs_give_the_end_of_a_long_output(opened: Callable[[], Executor]) -> None:
    executor = opened()
    ended(executor, executor.start(python("print('a' * 100 + 'end', end='')")))
    assert executor.logs("run-1-1", last_bytes=5) == "aaend"
    assert executor.logs("never-started") == ""
