"""Checkpoints: a resumed run continues bit for bit, and nothing damaged is trusted."""

import json
import random
import threading

import pytest

from luthier.core.errors import StorageUnavailable
from luthier.storage import Storage
from luthier.testing import toy_rows, toy_spec
from luthier.training.events import read_events
from luthier.training.methods.base import methods
from luthier.training.run import run
from luthier.training.spec import PluginChoice
from tests.fuzz import killed_runs

CHANGES = {
    "validation": toy_rows(4, seed=9),
    "method": PluginChoice(name="lora", options={"rank": 4, "dropout": 0.2}),
    "save_every_steps": 2,
}


class Crash(BaseException):
    """The process dies: nothing that the run would do about it is done."""


def crash_at(step: int, kind: str = "progress"):
    def die(event):
        if (event.step, event.type) == (step, kind):
            raise Crash

    return die


@pytest.fixture
def whole(storage, series):
    """The series and the artifact of a run that nothing disturbed."""
    spec = toy_spec(storage, job="ftjob-whole", **CHANGES)
    return run(spec, storage).artifact_sha256, series(spec)


def crashed(storage, step: int):
    """A job whose first attempt died at a step."""
    spec = toy_spec(storage, **CHANGES)
    with pytest.raises(Crash):
        run(spec, storage, emit=crash_at(step))
    return spec


def test_a_resumed_run_equals_the_undisturbed_one(storage, series, told, whole):
    for number, step in enumerate(random.Random(7).sample(range(1, 9), 3)):
        spec = toy_spec(storage, job=f"ftjob-{number}", **CHANGES)
        with pytest.raises(Crash):
            run(spec, storage, emit=crash_at(step))
        last = run(spec, storage, attempt=2)
        assert told(spec, 2)[0].step == (step - 1) // 2 * 2  # a step is saved after its progress was told
        assert (last.artifact_sha256, series(spec, 1, 2)) == whole


def test_a_stopped_run_can_be_taken_up_again(storage, series, whole):
    stop, spec = threading.Event(), toy_spec(storage, **CHANGES)
    run(spec, storage, stop=stop, emit=lambda event: stop.set() if event.step == 5 else None)
    assert run(spec, storage, attempt=2).artifact_sha256 == whole[0]
    assert series(spec, 1, 2) == whole[1]


@pytest.mark.parametrize("damage", ["missing", "cut short"])
@pytest.mark.parametrize("part", ["adapter/adapter_model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_damaged_checkpoint_is_passed_over(storage, told, part, damage):
    spec = crashed(storage, 7)
    key = f"{spec.run_key}/checkpoints/0001-00000006/{part}"
    if damage == "missing":
        storage.delete(key)
    else:
        storage.write(key, storage.read(key)[:-3])
    run(spec, storage, attempt=2)
    assert told(spec, 2)[0].step == 4


def test_the_newest_step_counts_then_the_newest_attempt_up_to_ones_own(storage, told):
    spec = crashed(storage, 5)
    with pytest.raises(Crash):
        run(spec, storage, attempt=3, emit=crash_at(7))  # resumes at 4, saves 6
    run(spec, storage, attempt=2)
    assert told(spec, 2)[0].step == 4  # what a newer attempt saved is not taken
    last = run(spec, storage, attempt=4)
    assert last.artifact_key == f"{spec.run_key}/checkpoints/0002-00000009/adapter"


def test_a_checkpoint_that_was_not_told_is_told_by_the_next_attempt(storage, told, monkeypatch):
    spec = toy_spec(storage, **CHANGES)
    create = Storage.create

    def die_telling(self, key, data):
        if b'"checkpoint_saved"' in data:
            raise Crash
        create(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "create", die_telling)
        with pytest.raises(Crash):
            run(spec, storage)
    run(spec, storage, attempt=2)
    told_twice = [event for event in told(spec, 1) + told(spec, 2) if event.type == "checkpoint_saved"]
    assert [event.step for event in told_twice] == [2, 4, 6, 8, 9]
    assert told(spec, 2)[1].key.endswith("0001-00000002")


def test_a_checkpoint_of_another_spec_ends_the_run(storage):
    spec = crashed(storage, 5)
    last = run(spec.model_copy(update={"learning_rate": 0.02}), storage, attempt=2)
    assert last.code == "checkpoint_unreadable"


def test_a_storage_that_is_away_is_no_damage(storage, monkeypatch):
    spec = crashed(storage, 5)
    read = Storage.read

    def away(self, key):
        if key.endswith("manifest.json"):
            raise StorageUnavailable("away")
        return read(self, key)

    monkeypatch.setattr(Storage, "read", away)
    assert run(spec, storage, attempt=2).code == "storage_unavailable"


def test_a_checkpoint_names_the_base_model_and_no_path(storage):
    spec = crashed(storage, 3)
    config = json.loads(storage.read(f"{spec.run_key}/checkpoints/0001-00000002/adapter/adapter_config.json"))
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"]) == ("toy", 4, 8)
    assert "self_attn.q_proj" in config["target_modules"]


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("method", methods.names())
def test_a_run_that_dies_at_any_write_equals_the_undisturbed_one(storage, method, objective):
    whole = killed_runs.spec_of(storage, "ftjob-whole", method, objective)
    expected = run(whole, storage).artifact_sha256, killed_runs.numbers(storage, whole, 1)
    dice = random.Random(f"{method}/{objective}")
    spec = killed_runs.spec_of(storage, "ftjob-dying", method, objective)
    attempts = killed_runs.dying(storage, spec, dice, deaths=4, writes=25)
    assert attempts > 1
    last = read_events(storage, spec.run_key, attempts, -1)[-1]
    assert (last.artifact_sha256, killed_runs.numbers(storage, spec, attempts)) == expected
