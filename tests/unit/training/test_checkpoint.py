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
LONG = [
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "abcd" * length}]}
    for length in range(30, 54, 2)
]


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
    noted = [event.message for event in told(spec, 2) if event.type == "noted"]
    is_named = part != "manifest.json" or damage != "missing"  # without a manifest there is no checkpoint
    assert [f"{spec.run_key}/checkpoints/0001-00000006 is damaged" in message for message in noted] == [True] * is_named


def test_what_an_attempt_left_unfinished_is_cleared_away_by_the_next(storage, monkeypatch):
    spec, write = toy_spec(storage, **CHANGES), Storage.write

    def die_at_manifest(self, key, data):
        if key.endswith("00000004/manifest.json"):
            raise Crash
        return write(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", die_at_manifest)
        with pytest.raises(Crash):
            run(spec, storage)
    left = f"{spec.run_key}/checkpoints/0001-00000004"
    assert storage.list(left)
    run(spec, storage, attempt=2)
    assert not storage.list(left)
    assert storage.list(f"{spec.run_key}/checkpoints/0001-00000002")


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"threads": 2, "max_length": 512, "micro_batch_tokens": 2048, "rows": LONG},
        {"gradient_checkpointing": True},
        {"keep_checkpoints": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_resumed_run_is_equal_whatever_it_computes_in(storage, series, changes):
    method = PluginChoice(name="lora", options={"rank": 4, "dropout": 0.2})
    specs = [
        toy_spec(storage, job=f"ftjob-{name}", method=method, validation=toy_rows(4, seed=9), **changes)
        for name in ("whole", "crashed")
    ]
    expected = run(specs[0], storage)
    with pytest.raises(Crash):
        run(specs[1], storage, emit=crash_at(5))
    assert run(specs[1], storage, attempt=2).artifact_sha256 == expected.artifact_sha256
    assert series(specs[1], 1, 2) == series(specs[0])


def test_a_resumed_run_ends_early_where_the_undisturbed_one_does(storage, series):
    changes = {"validation": toy_rows(4, seed=9), "epochs": 40, "learning_rate": 0.05, "patience": 3}
    changes |= {"evaluate_every_steps": 2, "save_every_steps": 1}
    specs = [toy_spec(storage, job=f"ftjob-{name}", **changes) for name in ("whole", "crashed")]
    expected = run(specs[0], storage)
    assert expected.result_step < expected.step < 120
    with pytest.raises(Crash):  # after two evaluations that were no better
        run(specs[1], storage, emit=crash_at(expected.step - 1))
    last = run(specs[1], storage, attempt=2)
    assert (last.step, last.result_step) == (expected.step, expected.result_step)
    assert series(specs[1], 1, 2) == series(specs[0])


def test_a_run_that_died_after_its_last_checkpoint_still_gives_its_last_answers(storage, told):
    spec = toy_spec(storage, **CHANGES | {"samples": 2})
    with pytest.raises(Crash):
        run(spec, storage, emit=lambda event: crash_at(9, "checkpoint_saved")(event))
    run(spec, storage, attempt=2)
    assert [(event.type, event.step) for event in told(spec, 2)] == [("started", 9), ("sampled", 9), ("succeeded", 9)]


def test_a_checkpoint_is_told_to_be_gone_before_it_goes(storage, told):
    spec = toy_spec(storage, **CHANGES | {"keep_checkpoints": 1})
    with pytest.raises(Crash):
        run(spec, storage, emit=lambda event: crash_at(event.step, "checkpoints_dropped")(event))
    keys = [key for event in told(spec) if event.type == "checkpoints_dropped" for key in event.keys]
    assert keys
    assert all(storage.exists(f"{key}/manifest.json") for key in keys)
    assert run(spec, storage, attempt=2).type == "succeeded"
    assert not any(storage.exists(f"{key}/manifest.json") for key in keys)


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
