"""Events through segments: numbered, in order, soon; storage trouble is heard, a newer attempt obeyed."""

import time

import pytest

from luthier.core.errors import StorageUnavailable
from luthier.storage import Storage
from luthier.training.emitter import Emitter, Superseded
from luthier.training.events import Evaluated, Progress, read_events

STEP = {
    "total_steps": 9, "epoch": 0.1, "loss": 1.0, "token_accuracy": 0.5, "learning_rate": 0.1, "grad_norm": 1.0,
    "tokens_per_second": 1.0, "seconds_left": 1.0, "elapsed_seconds": 1.0, "trained_tokens": 1,
}  # fmt: skip


class Broken(Storage):
    """A memory store whose chosen method fails."""

    def __init__(self, method: str) -> None:
        super().__init__("memory://")

        def fail(*_: object, **__: object) -> None:
            raise StorageUnavailable("the store is away")

        setattr(self, method, fail)


def test_events_come_back_as_they_were_told():
    storage = Storage("memory://")
    with Emitter(storage, "runs/j", 1) as emitter:
        made = [emitter.emit(Progress, step=1, **STEP), emitter.emit(Evaluated, step=1, loss=0.1, token_accuracy=1 / 3)]
        made.append(emitter.emit(Evaluated, step=2, loss=2.0, token_accuracy=0.0))
    assert read_events(storage, "runs/j", 1, -1) == made
    assert read_events(storage, "runs/j", 1, 1) == made[2:]
    assert len(storage.list("runs/j/events")) == 2  # progress travelled with the evaluation after it


def test_progress_is_stored_soon_though_nothing_follows():
    storage = Storage("memory://")
    with Emitter(storage, "runs/j", 1, every_seconds=0.02) as emitter:
        emitter.emit(Progress, step=1, **STEP)
        _wait(lambda: read_events(storage, "runs/j", 1, -1))


def test_what_fails_in_the_thread_reaches_the_run():
    with Emitter(Broken("create"), "runs/j", 1, every_seconds=0.02) as emitter:
        emitter.emit(Progress, step=1, **STEP)
        emitter._thread.join(5)
        with pytest.raises(StorageUnavailable):
            emitter.check()


def test_attempts_that_cannot_be_listed_stop_nothing():
    storage = Broken("list")
    with Emitter(storage, "runs/j", 1) as emitter:
        emitter.emit(Evaluated, step=1, loss=1.0, token_accuracy=0.0)
    assert storage.exists("runs/j/events/0001/000000000.jsonl")


def test_a_newer_attempt_is_noticed_before_anything_is_written():
    storage = Storage("memory://")
    storage.write("runs/j/attempts/0001", b"{}")
    with Emitter(storage, "runs/j", 1, every_seconds=0.02) as emitter:
        emitter.emit(Evaluated, step=1, loss=1.0, token_accuracy=0.0)
        storage.write("runs/j/attempts/0002", b"{}")
        with pytest.raises(Superseded):
            emitter.emit(Evaluated, step=2, loss=1.0, token_accuracy=0.0)
        emitter._thread.join(5)
    assert [event.step for event in read_events(storage, "runs/j", 1, -1)] == [1]


def test_a_callback_that_breaks_ends_nothing():
    shown = []

    def show(event):
        shown.append(event.step)
        raise ValueError

    with Emitter(Storage("memory://"), "runs/j", 1, also=show) as emitter:
        emitter.emit(Evaluated, step=1, loss=1.0, token_accuracy=0.0)
        emitter.emit(Progress, step=2, **STEP)
    assert shown == [1, 2]


def _wait(is_so, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)
