"""The trainer as a process: `python -m luthier.training.program SPEC --storage URL --attempt N`.

Exit codes: 0 the run succeeded or was cancelled, 1 it failed, 3 a newer attempt has taken over.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from luthier.core import logs
from luthier.storage import Storage
from luthier.training.events import Failed, RunEvent, attempts_key
from luthier.training.spec import TrainingSpec

SUPERSEDED = 3
SPIN_COUNT = "1000"
"""Rounds that a waiting thread of torch spins before it sleeps: few, so that a run goes on well with more threads than cores."""
_LINGER_SECONDS = 10  # in which the other processes see that the first one has ended
_log = logs.get("training")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m luthier.training.program", description="Run one training job.")
    parser.add_argument("spec", help="a file with the spec as JSON, or its storage key")
    parser.add_argument("--storage", required=True, help="URL of the storage")
    parser.add_argument(
        "--attempt",
        type=int,
        help="number of this attempt at the job, from 1; absent: the one after the newest that is stored",
    )
    parser.add_argument("--cache", type=Path, help="folder for weights of a storage that is not on this machine")
    parser.add_argument("--log-level", default="info")
    wanted = parser.parse_args(argv)
    logs.configure(wanted.log_level)
    storage = Storage(wanted.storage, cache=wanted.cache or Path.home() / ".cache" / "luthier")
    path = Path(wanted.spec)
    spec = TrainingSpec.model_validate_json(path.read_bytes() if path.is_file() else storage.read(wanted.spec))
    return execute(spec, storage, wanted.attempt or _attempt_of(spec, storage, parser))


def _attempt_of(spec: TrainingSpec, storage: Storage, parser: argparse.ArgumentParser) -> int:
    """The number of an attempt that was given none. Processes that torchrun starts must have one number, and do not know
    of each other yet, so theirs is 1, or has to be told.
    """
    if spec.processes == 1 or "RANK" not in os.environ:
        return next_attempt(storage, spec)
    if os.environ["RANK"] == "0" and (newest := _newest_attempt(storage, spec)):
        parser.error(f"attempt {newest} at {spec.job} is stored already; tell every process --attempt {newest + 1}")
    return 1


def next_attempt(storage: Storage, spec: TrainingSpec) -> int:
    """Claim the number after that of the newest attempt of which anything is stored; older ones that still live stop.

    Raises AlreadyExists where somebody else claims it at the same moment.
    """
    attempt = _newest_attempt(storage, spec) + 1
    storage.create(f"{attempts_key(spec.run_key)}/{attempt:04d}", b"{}\n")
    return attempt


def _newest_attempt(storage: Storage, spec: TrainingSpec) -> int:
    """0 where there was none."""
    named = re.compile(rf"{re.escape(spec.run_key)}/(?:attempts|events|checkpoints)/(\d{{4,}})\b")
    return max((int(found[1]) for key in storage.list(spec.run_key) if (found := named.match(key))), default=0)


def execute(
    spec: TrainingSpec, storage: Storage, attempt: int = 1, on_event: Callable[[RunEvent], None] | None = None
) -> int:
    """Run a job in this process and return its exit code; SIGTERM and SIGINT cancel it.

    Call it, or `load_libraries`, before anything imports torch: thread counts are read from the environment then. Nothing is
    downloaded.
    """
    load_libraries(spec)
    from luthier.training.emitter import Superseded
    from luthier.training.run import run

    with logs.bind(job=spec.job, attempt=attempt), _stop_by_signal() as stop, _beside(spec, storage, attempt):
        try:
            last = run(spec, storage, attempt=attempt, emit=on_event, stop=stop, on_stall=_die)
        except Superseded as newer:
            _log.warning("stopped", why=str(newer))
            return SUPERSEDED
    return 1 if isinstance(last, Failed) else 0


def load_libraries(spec: TrainingSpec) -> None:
    """Import what computes, with the job's number of threads. Nothing may have imported torch before the first call."""
    os.environ.update(
        dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(spec.threads)),
        GOMP_SPINCOUNT=SPIN_COUNT,
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TOKENIZERS_PARALLELISM="false",
        TORCHINDUCTOR_COMPILE_THREADS="1",  # otherwise processes that stay, each with a torch of its own
    )
    _keep_freed_memory()
    from transformers.utils import logging

    import_module("luthier.training.run")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed: a pass frees and takes hundreds of megabytes, and to get them from the system page
    by page each time is a twentieth of a step. Elsewhere than under glibc nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold, library = -1, -3, ctypes.CDLL(None)  # mallopt(3)
    for threshold in (2**30, 2**25):  # older ones take no more than the second
        if library.mallopt(mmap_threshold, threshold):
            break
    library.mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def _beside(spec: TrainingSpec, storage: Storage, attempt: int) -> Iterator[None]:
    """The other processes of a run of several, of which this is the first; they end with it.

    Under torchrun, or in one of these processes, RANK is set and nothing is started.
    """
    if spec.processes == 1 or "RANK" in os.environ:
        yield
        return
    from luthier.training.processes import meeting_place

    met = meeting_place()  # kept until they have ended
    together = {"WORLD_SIZE": str(spec.processes), "MASTER_ADDR": met.host, "MASTER_PORT": str(met.port)}
    key = f"{spec.run_key}/spec.{attempt:04d}.json"
    storage.write(key, spec.model_dump_json().encode())
    command = [sys.executable, "-m", __spec__.name, key, "--storage", storage.url, "--attempt", str(attempt)]
    if storage.cache is not None:
        command += ["--cache", str(storage.cache)]
    others = [
        subprocess.Popen(
            command,
            env=os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is the first one's to hear
        )
        for rank in range(1, spec.processes)
    ]
    os.environ.update(together, RANK="0", LOCAL_RANK="0")
    try:
        yield
    finally:
        for name in (*together, "RANK", "LOCAL_RANK"):
            del os.environ[name]
        for process in others:
            try:
                process.wait(_LINGER_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _die() -> None:
    """End a process whose run stands still, after telling its log where."""
    faulthandler.dump_traceback(all_threads=True)
    os._exit(1)


@contextmanager
def _stop_by_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, where this is the main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
