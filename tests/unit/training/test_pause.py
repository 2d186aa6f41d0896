"""A run that pauses and goes on equals the undisturbed one, wherever it was stopped: no step is lost or taken twice."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from luthier.core.errors import StorageUnavailable
from luthier.storage import Storage
from luthier.testing import toy_rows, toy_spec
from luthier.training.events import CheckpointSaved, Evaluated, Progress, RunEvent, pause_key
from luthier.training.run import run
from luthier.training.spec import PluginChoice, TrainingSpec
from tests.reference import trl

CHANGES = {"validation": toy_rows(4, seed=9), "epochs": 3, "evaluate_every_steps": 2, "save_every_steps": 4}


def paused(
    spec: TrainingSpec, storage: Storage, attempt: int, when: Callable[[RunEvent], bool], *, marked: bool = True
) -> None:
    """Run until `when` says so of an event, and pause then."""
    stop = threading.Event()

    def look(event: RunEvent) -> None:
        if when(event):
            if marked:
                storage.write(pause_key(spec.run_key, attempt), b"{}\n")
            stop.set()

    assert run(spec, storage, attempt=attempt, stop=stop, emit=look).type == "cancelled"


def kept(told: list[RunEvent]) -> list[tuple[object, ...]]:
    """What a run told of its steps and evaluations, without times."""
    steps = (event for event in told if isinstance(event, Progress | Evaluated))
    return [(event.type, event.step, event.loss, event.token_accuracy) for event in steps]


PLACES: dict[str, Callable[[RunEvent], bool]] = {
    "between two checkpoints": lambda event: isinstance(event, Progress) and event.step == 3,
    "before an evaluation": lambda event: isinstance(event, Progress) and event.step == 6,
    "before a checkpoint that is due": lambda event: isinstance(event, Progress) and event.step == 4,
    "after an evaluation": lambda event: isinstance(event, Evaluated) and event.step == 6,
    "right after a checkpoint": lambda event: isinstance(event, CheckpointSaved) and event.step == 4,
    "before the last evaluation": lambda event: isinstance(event, Progress) and event.step == 9,
    "after the first step": lambda event: isinstance(event, Progress) and event.step == 1,
    "before the first step": lambda event: isinstance(event, Evaluated) and event.step == 0,
}


def checkpoints(told) -> dict[int, str]:
    """The adapters that a run saved, by step."""
    return {event.step: event.artifact_sha256 for event in told if isinstance(event, CheckpointSaved)}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_paused_goes_on_as_if_nothing_had_been(storage, told, place):
    patient = CHANGES | {"patience": 3}
    whole, halted = toy_spec(storage, job="ftjob-whole", **patient), toy_spec(storage, job="ftjob-halted", **patient)
    undisturbed = run(whole, storage)
    paused(halted, storage, 1, PLACES[place])
    done = run(halted, storage, attempt=2)
    assert done.artifact_sha256 == undisturbed.artifact_sha256
    assert (done.result_step, done.trained_tokens) == (undisturbed.result_step, undisturbed.trained_tokens)
    first = kept(told(halted))
    if place == "before the first step":
        first = []  # it begins again
    assert first + kept(told(halted, 2)) == kept(told(whole))
    saved = checkpoints(told(halted)) | checkpoints(told(halted, 2))  # of one step, the later attempt's
    assert saved | checkpoints(told(whole)) == saved


def test_a_run_may_pause_at_every_step(storage, told):
    whole, halted = toy_spec(storage, job="ftjob-whole", **CHANGES), toy_spec(storage, job="ftjob-halted", **CHANGES)
    undisturbed = run(whole, storage)
    for step in range(1, 9):
        paused(halted, storage, step, lambda event, step=step: isinstance(event, Progress) and event.step == step)
    assert run(halted, storage, attempt=9).artifact_sha256 == undisturbed.artifact_sha256
    steps = [
        (one.step, one.loss) for attempt in range(1, 10) for one in told(halted, attempt) if one.type == "progress"
    ]
    assert steps == [(event.step, event.loss) for event in told(whole) if event.type == "progress"]


@pytest.mark.parametrize("case", ["full", "ptuning_v2", "qlora", "dpo"])
def test_every_method_and_objective_can_pause(storage, case):
    def spec_of(job: str) -> TrainingSpec:
        if case == "dpo":
            return trl.spec_of("dpo", storage).model_copy(update={"job": job})
        return toy_spec(storage, job=job, method=PluginChoice(name=case))

    undisturbed = run(spec_of("ftjob-whole"), storage)
    paused(halted := spec_of("ftjob-halted"), storage, 1, lambda event: event.type == "progress" and event.step == 5)
    assert run(halted, storage, attempt=2).artifact_sha256 == undisturbed.artifact_sha256


def test_a_run_that_is_only_stopped_saves_nothing_more(storage):
    spec = toy_spec(storage, **CHANGES)
    paused(spec, storage, 1, PLACES["between two checkpoints"], marked=False)
    assert not storage.list(f"{spec.run_key}/checkpoints")
    paused(spec, storage, 2, PLACES["between two checkpoints"])
    assert storage.exists(f"{spec.run_key}/checkpoints/0002-00000003/manifest.json")


def test_a_mark_of_an_older_attempt_means_nothing(storage):
    spec = toy_spec(storage, **CHANGES)
    storage.write(pause_key(spec.run_key, 1), b"{}\n")
    paused(spec, storage, 2, PLACES["between two checkpoints"], marked=False)
    assert not storage.list(f"{spec.run_key}/checkpoints")


def test_a_mark_that_cannot_be_read_stops_the_run_all_the_same(storage, monkeypatch):
    spec = toy_spec(storage, **CHANGES)

    def fail(self, key):
        raise StorageUnavailable("away")

    monkeypatch.setattr(Storage, "exists", fail)
    paused(spec, storage, 1, PLACES["between two checkpoints"], marked=False)
