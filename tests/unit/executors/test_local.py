"""The local executor when we die, pids return, or keepers fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.core.errors import InternalError, InvalidParameter
from luthier.executors import local
from luthier.executors.base import Launch, Observation, State
from luthier.executors.local import Local

WAITS = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def wait_for(what) -> None:
    for _ in range(500):
        if what():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come")


def test_a_process_outlives_the_death_of_who_started_it(tmp_path: Path) -> None:
    source = (
        "import os, signal, sys; from pathlib import Path\n"
        "from luthier.executors.base import Launch; from luthier.executors.local import Local\n"
        f"Local(Path({str(tmp_path)!r}), 1).start(Launch('run', {WAITS!r}, (0,))); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", source]).returncode == -signal.SIGKILL
    executor = Local(tmp_path, 1)
    handle = executor.start(Launch("run", WAITS, (0,)))
    wait_for(lambda: "up" in executor.logs("run"))
    assert executor.observe(handle) == Observation(State.RUNNING)
    executor.stop(handle, grace_seconds=30)
    wait_for(lambda: executor.observe(handle) == Observation(State.ENDED, -signal.SIGTERM))


def test_a_crash_between_starting_and_writing_down_starts_no_second_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keeper is held before it writes itself down while its parent dies; the next start must find that keeper."""
    slow = tmp_path / "slow_keeper.py"
    slow.write_text("import time; time.sleep(1)\n" + local._KEEPER.read_text())
    source = (
        "import os, signal, threading; from pathlib import Path\n"
        "from luthier.executors import local; from luthier.executors.base import Launch\n"
        f"local._KEEPER = Path({str(slow)!r})\n"
        "threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
        f"local.Local(Path({str(tmp_path)!r}), 1).start(Launch('run', {WAITS!r}, (0,)))"
    )
    assert subprocess.run([sys.executable, "-c", source]).returncode == -signal.SIGKILL
    assert not (tmp_path / "run/handle.json").exists()
    executor = Local(tmp_path, 1)
    handle = executor.start(Launch("run", WAITS, (0,)))
    wait_for(lambda: "up" in executor.logs("run"))
    assert executor.logs("run") == "up\n"
    executor.stop(handle, grace_seconds=30)
    wait_for(lambda: executor.observe(handle).state is State.ENDED)


def test_a_keeper_that_cannot_start_is_an_error_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = Launch("run", [sys.executable, "-c", ""], (0,))
    with monkeypatch.context() as broken:
        broken.setattr(local, "_KEEPER", tmp_path / "absent.py")
        with pytest.raises(InternalError, match="keeper"):
            Local(tmp_path, 1).start(launch)
    executor = Local(tmp_path, 1)
    handle = executor.start(launch)
    wait_for(lambda: executor.observe(handle) == Observation(State.ENDED, 0))


def test_a_pid_given_to_somebody_else_is_not_mistaken_nor_stopped(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock").touch()
    (tmp_path / "run/handle.json").write_text(json.dumps({"name": "run", "pid": stranger.pid}))
    executor = Local(tmp_path, 1)
    handle = executor.start(Launch("run", WAITS, (0,)))
    assert executor.observe(handle) == Observation(State.ENDED, None)
    executor.stop(handle, grace_seconds=0)
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_children_left_behind_end_with_the_command(tmp_path: Path) -> None:
    source = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    executor = Local(tmp_path, 1)
    handle = executor.start(Launch("run", [sys.executable, "-c", source], (0,)))
    wait_for(lambda: executor.observe(handle) == Observation(State.ENDED, 0))
    child = int(executor.logs("run"))
    wait_for(lambda: not _is_running(child))


def test_a_command_killed_from_outside_tells_the_signal_and_leaves_no_zombie(tmp_path: Path) -> None:
    executor = Local(tmp_path, 1)
    source = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    handle = executor.start(Launch("run", [sys.executable, "-c", source], (0,)))
    wait_for(lambda: executor.observe(handle) == Observation(State.ENDED, -signal.SIGKILL))
    wait_for(lambda: not _exists(handle["pid"]))


def test_a_folder_that_is_gone_says_nothing_about_the_process(tmp_path: Path) -> None:
    assert Local(tmp_path, 1).observe({"name": "run", "pid": 1}).state is State.UNKNOWN


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_threads_and_children_are_moved_too(tmp_path: Path) -> None:
    source = (
        "import subprocess, sys, threading, time\n"
        "open('/proc/self/comm', 'wb').write('a测试测试测'.encode())\n"  # the system cuts it within a letter
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "thread = threading.Thread(target=time.sleep, args=(60,), daemon=True); thread.start()\n"
        "print(child.pid, thread.native_id, flush=True); time.sleep(60)"
    )
    executor = Local(tmp_path, 2)
    first, *_ = every = sorted(os.sched_getaffinity(0))[:2]
    handle = executor.start(Launch("run", [sys.executable, "-c", source], (0, 1)))
    wait_for(lambda: executor.logs("run").endswith("\n"))
    started = [int(number) for number in executor.logs("run").split()]
    assert [os.sched_getaffinity(one) for one in started] == [set(every)] * 2
    executor.move(handle, (0,))
    assert [os.sched_getaffinity(one) for one in started] == [{first}] * 2
    executor.stop(handle, grace_seconds=0)
    os.kill(started[0], signal.SIGKILL)
    wait_for(lambda: executor.observe(handle).state is State.ENDED)


def test_where_cores_cannot_be_chosen_their_number_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    executor = Local(tmp_path, 8)
    source = "import os, time; print(os.environ['OMP_NUM_THREADS'], flush=True); time.sleep(60)"
    handle = executor.start(Launch("run", [sys.executable, "-c", source], (2, 3, 4)))
    wait_for(lambda: executor.logs("run") == "3\n")
    executor.move(handle, (0,))
    executor.stop(handle, grace_seconds=30)
    wait_for(lambda: executor.observe(handle) == Observation(State.ENDED, -signal.SIGTERM))


def test_a_name_that_is_no_folder_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter, match=r"\.\./run"):
        Local(tmp_path, 1).start(Launch("../run", WAITS, (0,)))


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _is_running(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
