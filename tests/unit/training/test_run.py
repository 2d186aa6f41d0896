"""Whole runs of a toy: they learn, repeat themselves, stop, give way and fail as they promise."""

import errno
import math
import shutil
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier.training.run
from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import StorageUnavailable
from luthier.nets import losses
from luthier.nets.compiled.choice import PRODUCTS
from luthier.nets.loading import load_model, weights_sha256
from luthier.storage import Storage
from luthier.testing import jsonl, toy_rows, toy_spec
from luthier.training import precision
from luthier.training.emitter import Superseded
from luthier.training.run import run
from luthier.training.spec import PluginChoice, Start, TrainingSpec
from tests.reference import trl


def test_the_loss_falls_and_every_event_comes_in_its_order(storage, told):
    spec = toy_spec(storage, validation=toy_rows(4, seed=9), epochs=8)
    shown = []
    last = run(spec, storage, emit=shown.append)
    events = told(spec)
    assert [event.number for event in events] == list(range(len(events)))
    assert events == shown
    assert events[-1] == last
    steps = [event for event in events if event.type == "progress"]
    assert steps[-1].loss < 0.7 * steps[0].loss
    kinds = ["started", "evaluated", "progress", "progress", "progress", "evaluated", "checkpoint_saved", "progress"]
    assert [event.type for event in events[:8]] == kinds
    assert [event.step for event in events if event.type == "checkpoint_saved"] == [3, 6, 9, 12, 15, 18, 21, 24]


@pytest.mark.parametrize(
    ("method", "options", "inactive"),
    [
        ("lora", {}, {}),
        ("ptuning_v2", {}, {}),
        (
            "lora",
            {"dropout": 0.1},
            {"shared prefixes": "dropout would be drawn once for all rows", "fused layers": "its adapter has dropout"},
        ),
        ("full", {}, {"fused layers": "its norms learn"}),
    ],
)
def test_a_run_tells_what_is_faster_and_why_something_is_not(storage, told, method, options, inactive):
    spec = toy_spec(storage, method=PluginChoice(name=method, options=options), epochs=1)
    run(spec, storage)
    started = told(spec)[0]
    why_eager = (
        "the layers are the library's" if "fused layers" in inactive else "the job is too short to repay compiling"
    )
    assert started.inactive == inactive | {"compiled norms and gates": why_eager}
    assert [name for name in started.active if name != PRODUCTS] == [
        name for name in ("shared prefixes", "fused layers") if name not in inactive
    ]
    assert (PRODUCTS in started.active) is precision.is_narrow_to_mkl()


def test_a_spec_that_was_stored_before_a_field_was_there_runs_as_it_did(storage, told):
    fields = toy_spec(storage, epochs=1).model_dump(exclude={"share_prefixes", "fused", "compiled"})
    run(spec := TrainingSpec(**fields), storage)
    why = "it was not asked for"
    plain = {"shared prefixes": why, "fused layers": why, "compiled norms and gates": "the layers are the library's"}
    started = told(spec)[0]
    assert (started.active, started.inactive) == ([], plain)


def test_compiled_operations_give_the_losses_of_our_own(storage, told):
    by_us = toy_spec(storage, epochs=1, compiled=False)
    compiled = by_us.model_copy(update={"job": "ftjob-compiled", "compiled": True})
    for spec in (by_us, compiled):
        run(spec, storage)
    started = told(compiled)[0]
    if shutil.which("g++"):
        assert "compiled norms and gates" in started.active
    else:
        assert "No working C++ compiler" in started.inactive["compiled norms and gates"]
    expected, found = ([one.loss for one in told(spec) if one.type == "progress"] for spec in (by_us, compiled))
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_told_adds_up(storage, told):
    rows = toy_rows(13)
    rows[12]["messages"][0]["content"] = "x" * 99
    spec = toy_spec(storage, rows=rows, validation=toy_rows(3))
    last = run(spec, storage)
    events = told(spec)
    started, saved = events[0], events[-2]
    assert (started.rows, started.dropped, started.total_steps) == (12, [13], 9)
    assert last.trained_tokens == 3 * started.tokens_per_epoch
    assert started.trainable_parameters == 16 * 2 * (32 + 32 + 2 * (32 + 16) + 32 + 32 + 3 * (32 + 64))
    assert (last.artifact_key, last.artifact_sha256) == (saved.artifact_key, saved.artifact_sha256)
    assert saved.valid_loss == events[-3].loss
    assert saved.train_loss == events[-4].loss
    assert events[-4].epoch == 3.0
    assert events[-4].seconds_left == 0.0


def test_the_same_spec_gives_the_same_series_and_the_same_bytes(storage, series):
    changes = {"validation": toy_rows(4, seed=9), "method": PluginChoice(name="lora", options={"dropout": 0.1})}
    one, two = toy_spec(storage, job="ftjob-1", **changes), toy_spec(storage, job="ftjob-2", **changes)
    assert run(one, storage).artifact_sha256 == run(two, storage).artifact_sha256
    assert series(one) == series(two)
    other = toy_spec(storage, job="ftjob-3", **changes | {"seed": 2})
    run(other, storage)
    assert series(one) != series(other)


def test_micro_batches_do_not_change_the_losses(storage, series):
    one, many = toy_spec(storage, micro_batch_tokens=8), toy_spec(storage, job="ftjob-many", micro_batch_tokens=4096)
    run(one, storage)
    run(many, storage)
    flat = [[value for pair in series(spec).values() for value in pair] for spec in (one, many)]
    assert flat[0] == pytest.approx(flat[1], rel=1e-4)


def test_a_stop_is_obeyed_between_micro_batches(storage, told):
    stop = threading.Event()
    spec = toy_spec(storage, epochs=50)
    last = run(spec, storage, stop=stop, emit=lambda event: stop.set() if event.step == 4 else None)
    assert (last.type, last.step) == ("cancelled", 4)
    assert told(spec)[-1] == last
    assert storage.exists(f"{spec.run_key}/checkpoints/0001-00000003/manifest.json")


def test_a_stop_before_the_start_cancels(storage):
    stop = threading.Event()
    stop.set()
    assert run(toy_spec(storage), storage, stop=stop).type == "cancelled"


def test_an_attempt_that_was_overtaken_writes_nothing_more(storage, told):
    spec = toy_spec(storage)

    def overtake(event):
        if event.step == 4:
            storage.write(f"{spec.run_key}/attempts/0002", b"{}")

    with pytest.raises(Superseded):
        run(spec, storage, emit=overtake)
    assert told(spec)[-1].step == 3
    assert not storage.list(f"{spec.run_key}/checkpoints/0001-00000006")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"max_length": 8}, "invalid_training_file", "12 rows are longer than 8 tokens"),
        ({"weights_sha256": "0" * 64}, "invalid_request", "not the ones this was made for"),
        ({"renderer_sha256": "0" * 64}, "invalid_request", "written otherwise"),
        ({"weights": "models/none"}, "object_not_found", "models/none"),
        (
            {"max_length": 481, "method": PluginChoice(name="ptuning_v2")},
            "invalid_parameter",
            "context of 512 tokens of which ptuning_v2 takes 32, got 481",
        ),
        ({"method": PluginChoice(name="lorra")}, "invalid_parameter", "Did you mean 'lora'?"),
        ({"method": PluginChoice(name="lora", options={"rank": 0})}, "invalid_parameter", "method.options.rank"),
    ],
)
def test_a_run_that_cannot_begin_says_why(storage, told, changes, code, words):
    spec = toy_spec(storage, **changes)
    last = run(spec, storage)
    assert (last.type, last.code) == ("failed", code)
    assert words in last.message
    assert told(spec) == [last]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (torch.OutOfMemoryError("no"), "out_of_memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (StorageUnavailable("away"), "storage_unavailable"),
        (RuntimeError("[gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "process_lost"),
        (torch.distributed.DistNetworkError("reset"), "process_lost"),
        (OSError(errno.ENOSPC, "no space"), "storage_unavailable"),
        (ZeroDivisionError("secret detail"), "internal_error"),
    ],
)
def test_what_ends_a_run_is_told_with_its_code(storage, told, monkeypatch, fault, code):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(losses, "learned_tokens", fail)
    spec = toy_spec(storage)
    last = run(spec, storage)
    assert (last.type, last.code, told(spec)[-1]) == ("failed", code, last)
    assert "secret" not in last.message


def test_a_loss_that_is_no_number_ends_the_run(storage):
    spec = toy_spec(storage)
    model = load_model(storage.folder(spec.weights), precision="fp32")
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(storage.folder(spec.weights))
    spec = spec.model_copy(update={"weights_sha256": weights_sha256(storage.folder(spec.weights))})
    last = run(spec, storage)
    assert (last.code, last.step) == ("loss_diverged", 0)
    assert "at step 1" in last.message


def test_answers_that_are_not_learned_are_harmless_beside_others(storage, told):
    rows = toy_rows(4)
    for row in rows:
        row["messages"] = [*row["messages"], *row["messages"]]
        row["messages"][1] = row["messages"][1] | {"weight": 0}
    assert run(toy_spec(storage, rows=rows, batch_size=1, epochs=1, max_length=200), storage).type == "succeeded"


def test_a_file_in_which_nothing_is_learned_is_refused(storage):
    quiet = toy_rows(4)
    for row in quiet:
        row["messages"][1]["weight"] = 0
    last = run(toy_spec(storage, rows=quiet), storage)
    assert (last.code, "4 faults" in last.message) == ("invalid_training_file", True)


def test_a_storage_that_fails_at_the_end_still_gives_the_end(storage, monkeypatch):
    spec = toy_spec(storage)

    def fail(self, key, data):
        raise StorageUnavailable("away")

    monkeypatch.setattr(Storage, "create", fail)
    assert run(spec, storage).code == "storage_unavailable"


def test_a_changed_file_is_refused(storage):
    spec = toy_spec(storage)
    storage.write(spec.training.key, jsonl(toy_rows(5)))
    assert "not the file this job was made for" in run(spec, storage).message


def test_a_run_that_reads_other_rows_than_promised_fails_with_its_code(storage, told):
    spec = toy_spec(storage)
    spec = spec.model_copy(update={"training": spec.training.model_copy(update={"rows": 12, "trained_rows": 11})})
    last = run(spec, storage)
    assert (last.type, last.code, told(spec)) == ("failed", "rows_lost", [last])
    assert "11 of 12 rows; it gives 12 of 12" in last.message


def test_a_run_tells_how_many_rows_it_trained_and_dropped(storage):
    rows = toy_rows(13)
    rows[12]["messages"][1]["content"] = "x" * 99
    spec = toy_spec(storage, rows=rows)
    last = run(spec, storage)
    assert (last.rows, last.dropped_rows) == (12, 1)
    cut = run(spec.model_copy(update={"job": "ftjob-cut", "overlength": "truncate"}), storage)
    assert (cut.rows, cut.dropped_rows) == (13, 0)
    assert cut.trained_tokens == last.trained_tokens + 3 * 64


def with_pairs(storage: Storage, **changes) -> TrainingSpec:
    return trl.spec_of("dpo", storage).model_copy(update={"evaluate_every_steps": 3, "save_every_steps": 3} | changes)


def test_a_preference_run_that_goes_on_compares_with_the_model_as_it_was_at_first(storage, series, told):
    whole = with_pairs(storage, job="ftjob-whole")
    undisturbed = run(whole, storage)
    halted = with_pairs(storage, job="ftjob-halted")
    stop = threading.Event()
    assert (
        run(halted, storage, stop=stop, emit=lambda event: stop.set() if event.step == 7 else None).type == "cancelled"
    )
    went_on = run(halted, storage, attempt=2)
    assert went_on.artifact_sha256 == undisturbed.artifact_sha256
    assert told(halted, 2)[-2].train_loss == told(whole)[-2].train_loss
    measures = [event.measures for event in told(whole) if event.type == "progress"]
    assert measures[0]["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert measures[-1]["reward_accuracy"] == 1.0
    storage.delete(f"{halted.run_key}/reference")
    storage.delete(f"{halted.run_key}/checkpoints/0002-{12:08d}")
    lost = run(halted, storage, attempt=3)
    assert (lost.type, lost.code) == ("failed", "checkpoint_unreadable")


def test_training_goes_on_from_an_artifact_with_the_same_loss(storage, told):
    first = toy_spec(storage, epochs=6, validation=toy_rows())
    done = run(first, storage)
    start = Start(key=done.artifact_key, sha256=done.artifact_sha256)
    second = toy_spec(storage, job="ftjob-second", start=start, validation=toy_rows())
    run(second, storage)
    before, after = ([event.loss for event in told(spec) if event.type == "evaluated"] for spec in (first, second))
    assert after[0] == pytest.approx(before[-1], abs=1e-6)
    assert after[0] < 0.8 * before[0]
    other = toy_spec(storage, job="ftjob-other", start=start.model_copy(update={"sha256": "0" * 64}))
    refused = run(other, storage)
    assert (refused.type, refused.code) == ("failed", "invalid_request")
    assert "is not what this job was to go on from" in refused.message


def test_preferences_that_go_on_from_an_adapter_are_compared_with_it(storage, told):
    taught = run(with_pairs(storage, job="ftjob-first"), storage)
    start = Start(key=taught.artifact_key, sha256=taught.artifact_sha256)
    spec = with_pairs(storage, job="ftjob-second", start=start)
    spec = spec.model_copy(update={"validation": spec.training})
    run(spec, storage)
    first = next(event for event in told(spec) if event.type == "evaluated")
    assert first.measures["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (("lora", {"alpha": 8}), ("lora", {}), "alpha 8"),
        (("lora", {"rank": 4}), ("lora", {"rank": 8}), "rank 4 (this job: 8)"),
        (("lora", {"rank_stabilised": True}), ("lora", {}), "rank_stabilised True (this job: False)"),
        (("lora", {"targets": "attention"}), ("lora", {}), "does not fit"),
        (("lora", {}), ("ptuning_v2", {}), "no projection.safetensors"),
        (("full", {}), ("lora", {}), "no adapter_model.safetensors"),
        (("lora", {}), ("full", {}), "do not fit this model"),
    ],
    ids=str,
)
def test_training_goes_on_from_nothing_that_means_something_else(storage, first, second, words):
    methods = [PluginChoice(name=name, options=options) for name, options in (first, second)]
    done = run(toy_spec(storage, method=methods[0]), storage)
    start = Start(key=done.artifact_key, sha256=done.artifact_sha256)
    refused = run(toy_spec(storage, job="ftjob-second", method=methods[1], start=start), storage)
    assert (refused.type, refused.code) == ("failed", "checkpoint_unreadable")
    assert words in refused.message


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
def test_the_rate_of_every_step_is_that_of_its_formula(storage, told, schedule):
    total, warmup, decay = 18, 5, 4
    run(spec := toy_spec(storage, epochs=6, schedule=schedule, warmup_ratio=0.28, decay_ratio=0.2), storage)
    falling = {
        "cosine": lambda done: (1 + math.cos(math.pi * done / (total - warmup))) / 2,
        "linear": lambda done: 1 - done / (total - warmup),
        "constant": lambda done: 1.0,
        "wsd": lambda done: min(1.0, (total - warmup - done) / (decay + 1)),
    }[schedule]
    expected = [0.01 * step / 6 for step in range(1, 6)] + [0.01 * falling(done) for done in range(13)]
    rates = [event.learning_rate for event in told(spec) if event.type == "progress"]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_gradient_of_a_step_is_that_of_its_rows_whatever_the_micro_batches(storage, told):
    spec = toy_spec(storage, rows=toy_rows(8), batch_size=8, method=PluginChoice(name="full"), micro_batch_tokens=8)
    run(spec, storage)
    model = AutoModelForCausalLM.from_pretrained(storage.folder(spec.weights), dtype=torch.float64)
    renderer = renderer_for(Tokenizer(storage.folder(spec.weights)))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in toy_rows(8):
        turns = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
        prompt = renderer.prompt(Conversation(turns[:1]))
        answer = [*renderer.tokenizer.encode(turns[1].text), *renderer.stops]
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        count += len(answer)
    (total / count).backward()
    norm = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]).norm().item()
    first = next(event for event in told(spec) if event.type == "progress")
    assert first.grad_norm == pytest.approx(norm, rel=1e-5)


def test_training_that_gets_no_better_ends_early_with_the_best_checkpoint(storage, told):
    spec = toy_spec(
        storage,
        validation=toy_rows(4, seed=9),
        epochs=40,
        learning_rate=0.05,
        evaluate_every_steps=2,
        save_every_steps=1000,
        patience=3,
    )
    last = run(spec, storage)
    losses = {event.step: event.loss for event in told(spec) if event.type == "evaluated" and event.step}
    best = min(losses, key=losses.__getitem__)
    assert (last.result_step, last.step) == (best, best + 6)
    saved = {event.step: event for event in told(spec) if event.type == "checkpoint_saved"}
    assert last.artifact_key == saved[best].artifact_key
    assert [step for step, event in saved.items() if not event.is_best] == [last.step]


@pytest.mark.parametrize("name", ["full", "ptuning_v2", "qlora"])
def test_a_run_of_every_method_that_goes_on_equals_the_undisturbed_one(storage, name):
    method = PluginChoice(name=name)
    whole = run(toy_spec(storage, job="ftjob-whole", method=method), storage)
    halted, stop = toy_spec(storage, job="ftjob-halted", method=method), threading.Event()
    run(halted, storage, stop=stop, emit=lambda event: stop.set() if event.step == 4 else None)
    assert run(halted, storage, attempt=2).artifact_sha256 == whole.artifact_sha256


def test_layers_computed_again_give_the_same_losses(storage, series):
    one = toy_spec(storage)
    two = toy_spec(storage, job="ftjob-2", gradient_checkpointing=True)
    run(one, storage)
    run(two, storage)
    flat = [[value for pair in series(spec).values() for value in pair] for spec in (one, two)]
    assert flat[0] == pytest.approx(flat[1], rel=1e-5)


def test_dropout_does_not_depend_on_the_micro_batches(storage, series):
    method = PluginChoice(name="lora", options={"dropout": 0.3})
    one, many = (
        toy_spec(storage, job=f"ftjob-{tokens}", micro_batch_tokens=tokens, method=method) for tokens in (8, 4096)
    )
    run(one, storage)
    run(many, storage)
    flat = [[value for pair in series(spec).values() for value in pair] for spec in (one, many)]
    assert flat[0] == pytest.approx(flat[1], rel=1e-4)


@pytest.mark.parametrize("has_validation", [True, False])
def test_of_all_checkpoints_the_best_and_the_last_stay(storage, told, has_validation):
    spec = toy_spec(
        storage,
        validation=toy_rows(4, seed=9) if has_validation else None,
        epochs=6,
        learning_rate=0.05,
        evaluate_every_steps=2,
        save_every_steps=2,
        keep_checkpoints=2,
    )
    last = run(spec, storage)
    saved = {event.key: event for event in told(spec) if event.type == "checkpoint_saved"}
    dropped = [key for event in told(spec) if event.type == "checkpoints_dropped" for key in event.keys]
    left = {
        key.rsplit("/", 1)[0] for key in storage.list(f"{spec.run_key}/checkpoints") if key.endswith("manifest.json")
    }
    assert left == set(saved) - set(dropped)
    assert not [key for key in storage.list(f"{spec.run_key}/checkpoints") for gone in dropped if key.startswith(gone)]
    best = sorted(saved, key=lambda key: saved[key].valid_loss if has_validation else -saved[key].step)[:2]
    assert left == {*best, max(saved, key=lambda key: saved[key].step)}
    assert storage.exists(f"{last.artifact_key}/adapter_config.json")


def test_a_run_that_goes_on_counts_the_checkpoints_it_finds(storage, told):
    changes = {"validation": toy_rows(4, seed=9), "keep_checkpoints": 1, "epochs": 6, "learning_rate": 0.05}
    whole, halted = toy_spec(storage, job="ftjob-whole", **changes), toy_spec(storage, job="ftjob-halted", **changes)
    run(whole, storage)
    stop = threading.Event()
    run(halted, storage, stop=stop, emit=lambda event: stop.set() if event.step == 10 else None)
    run(halted, storage, attempt=2)
    left = [
        {int(key.split("-")[-1].split("/")[0]) for key in storage.list(f"{spec.run_key}/checkpoints")}
        for spec in (whole, halted)
    ]
    assert left[0] == left[1]
    assert len(left[0]) in (1, 2)


def test_a_best_checkpoint_that_is_gone_is_told_of(storage, told):
    spec = toy_spec(
        storage, validation=toy_rows(4, seed=9), epochs=40, learning_rate=0.05, evaluate_every_steps=2, patience=3
    )

    def lose(event):
        if event.type == "checkpoint_saved" and event.is_best:
            storage.delete(f"{event.key}/manifest.json")

    last = run(spec, storage, emit=lose)
    assert last.type == "succeeded"
    assert last.result_step == last.step
    (noted,) = [event for event in told(spec) if event.type == "noted"]
    assert "cannot be read any more: the result is the last one" in noted.message


@pytest.mark.parametrize(
    ("wish", "computes", "used"),
    [
        ("bf16", False, "fp32"),
        ("fp16", False, "fp32"),
        ("fp16", True, "bf16"),
        ("bf16", True, "bf16"),
        ("fp32", True, "fp32"),
    ],
)
def test_a_precision_that_the_processor_lacks_is_replaced_and_told_of(storage, told, monkeypatch, wish, computes, used):
    monkeypatch.setattr(precision, "computes_in_bf16", lambda: computes)
    loaded = []
    load = luthier.training.run.load_model

    def loading(*args, **kwargs):
        loaded.append(kwargs["precision"])
        return load(*args, **kwargs)

    monkeypatch.setattr(luthier.training.run, "load_model", loading)
    spec = toy_spec(storage, precision=wish, epochs=1)
    assert run(spec, storage).type == "succeeded"
    assert loaded == [used]
    notes = [event.message for event in told(spec) if event.type == "noted"]
    expected = [f"This processor does not compute in {wish}: the run computes in {used}."] if wish != used else []
    assert notes == expected


def test_a_run_in_fp16_learns_and_goes_on_with_its_scale(storage, told, monkeypatch):
    monkeypatch.setattr(luthier.training.run, "computed", lambda wish, device: (wish, None))
    for method in ("lora", "full"):
        choice = PluginChoice(name=method)
        whole = toy_spec(storage, job=f"ftjob-{method}", precision="fp16", method=choice)
        halted = toy_spec(storage, job=f"ftjob-{method}-2", precision="fp16", method=choice)
        expected, stop = run(whole, storage), threading.Event()
        steps = [event for event in told(whole) if event.type == "progress"]
        assert steps[-1].loss < 0.95 * steps[0].loss
        run(halted, storage, stop=stop, emit=lambda event, stop=stop: stop.set() if event.step == 4 else None)
        assert run(halted, storage, attempt=2).artifact_sha256 == expected.artifact_sha256


def test_a_run_that_gets_no_further_is_ended_and_told_of(storage, told, monkeypatch):
    stalled, awake = threading.Event(), threading.Event()

    def stand_still(*_, **__):
        awake.wait(30)
        raise RuntimeError("too late")

    monkeypatch.setattr(losses, "learned_tokens", stand_still)

    def end():
        stalled.set()
        awake.set()

    spec = toy_spec(storage, stall_after_seconds=0.5)
    run(spec, storage, on_stall=end)
    assert stalled.is_set()
    failed = next(event for event in told(spec) if event.type == "failed")
    assert failed.code == "run_stalled"
    assert "got no further" in failed.message
