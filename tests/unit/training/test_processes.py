"""Runs of two processes give the losses of one; what each takes, and what becomes of a run that loses one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.nets.compiled.choice import PRODUCTS
from luthier.storage import Storage
from luthier.testing import jsonl, toy_rows, toy_spec
from luthier.training import precision, processes
from luthier.training.data import BatchPlan, micro_batches, read_rows, shared_from, tokens_of
from luthier.training.events import read_events
from luthier.training.objectives.base import objectives
from luthier.training.processes import Processes, meeting_place
from luthier.training.program import execute
from luthier.training.run import run
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec
from tests.reference import trl
from tests.unit.training.together import play

pytestmark = pytest.mark.timeout(300)  # what sets it up plays ten runs
PAIRS = [
    ("lora", "none"),
    ("full", "none"),
    ("qlora", "none"),
    ("lora_fused", "none"),
    ("lora", "full"),
    ("lora_fused", "full"),
    ("full", "full"),
    ("ptuning_v2", "full"),
]


def spec_of(storage: Storage, method: str, sharding: str, processes: int) -> TrainingSpec:
    options = {"dropout": 0.1} if method == "lora" else {}  # which the library's layers compute, the others ours
    shares = method == "lora_fused"
    begin = [{"role": "system", "content": "twice"}] if shares else []
    rows = storage.write(f"files/{shares}", jsonl([{"messages": begin + row["messages"]} for row in toy_rows()]))
    return toy_spec(
        storage,
        training=DataFile(key=rows.key, sha256=rows.sha256),
        job=f"ftjob-{method}-{sharding}-{processes}",
        method=PluginChoice(name=method.removesuffix("_fused"), options=options),
        validation=toy_rows(5, seed=9),
        micro_batch_tokens=96 if shares else 24,
        precision="fp32",
        samples=1,
        processes=processes,
        sharding=sharding,
    )


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """A storage in which two processes played every pair, preferences, and sharded jobs again from their step 3."""
    folder = tmp_path_factory.mktemp("together")
    storage = Storage(folder.as_uri())
    specs = [spec_of(storage, method, sharding, 2) for method, sharding in PAIRS]
    specs.append(trl.spec_of("dpo", storage).model_copy(update={"processes": 2, "job": "ftjob-dpo-2"}))
    plays = [(spec, 1) for spec in specs] + [(spec, 2) for spec in specs if spec.sharding == "full"]
    places, words = [], []
    for spec, attempt in plays:
        places.append(meeting_place())
        storage.write(f"specs/{spec.job}", spec.model_dump_json().encode())
        words += [f"specs/{spec.job}", str(attempt), str(places[-1].port)]
    lasts = {}
    command = [sys.executable, "-m", "tests.unit.training.together", storage.url, *words]
    before = dict(os.environ)
    with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as other:
        try:
            for (spec, attempt), place in zip(plays, places, strict=True):
                for step in (6, 9) if attempt == 2 else ():
                    storage.delete(f"{spec.run_key}/checkpoints/0001-{step:08d}")
                lasts[spec.job, attempt] = play(storage, spec, attempt, 0, place.port)
            assert other.wait(60) == 0
        finally:
            other.kill()
            os.environ.clear()
            os.environ.update(before)
    return storage, lasts


def losses(storage: Storage, job: str, *kinds: str) -> list[float]:
    events = read_events(storage, f"runs/{job}", 1, -1)
    return [event.loss for event in events if event.type in (kinds or ("progress", "evaluated"))]


def norms(storage: Storage, job: str) -> list[float]:
    """Of the gradients before they are clipped: AdamW alone would hide that all of them are too large or too small."""
    return [event.grad_norm for event in read_events(storage, f"runs/{job}", 1, -1) if event.type == "progress"]


@pytest.mark.parametrize(("method", "sharding"), PAIRS)
def test_two_processes_give_the_losses_and_the_artifact_of_one(played, method, sharding):
    storage, lasts = played
    together = lasts[f"ftjob-{method}-{sharding}-2", 1]
    assert together.type == "succeeded"
    if (f"ftjob-{method}-none-1", 1) not in lasts:
        plain = spec_of(storage, method, "none", 1).model_copy(update={"share_prefixes": False, "fused": False})
        lasts[plain.job, 1] = run(plain, storage)
    alone, expected = lasts[f"ftjob-{method}-none-1", 1], losses(storage, f"ftjob-{method}-none-1")
    assert len(expected) == 9 + 4
    assert losses(storage, f"ftjob-{method}-{sharding}-2") == pytest.approx(expected, rel=1e-4)
    assert norms(storage, f"ftjob-{method}-{sharding}-2") == pytest.approx(
        norms(storage, f"ftjob-{method}-none-1"), rel=1e-3
    )
    assert together.trained_tokens == alone.trained_tokens
    last = lasts.get((f"ftjob-{method}-{sharding}-2", 2), together)  # the first attempt's artifact is gone
    ours, theirs = (storage.folder(last.artifact_key) for last in (last, alone))
    for path in theirs.glob("*.safetensors"):
        one, other = load_file(ours / path.name), load_file(path)
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_processes_share_beginnings_and_take_our_layers(played, sharding):
    storage, _ = played
    spec = spec_of(storage, "lora_fused", sharding, 2)
    started = read_events(storage, spec.run_key, 1, -1)[0]
    assert [name for name in started.active if name != PRODUCTS] == ["shared prefixes", "fused layers"]
    assert (PRODUCTS in started.active) is precision.is_narrow_to_mkl()
    assert started.inactive == {"compiled norms and gates": "the job is too short to repay compiling"}
    objective, renderer = objectives.load("sft"), renderer_for(Tokenizer(storage.folder(spec.weights)))
    rows = read_rows(storage, spec.training, objective(objective.Options()), renderer, max_length=64).rows
    plan = BatchPlan(len(rows), spec.seed, spec.batch_size, spec.epochs)
    for step in range(1, plan.total_steps + 1):
        batch = [rows[place] for place in plan.rows_of(step)]
        groups = micro_batches(batch, spec.micro_batch_tokens, shared=shared_from(spec), processes=2)
        dealt = [Processes(rank, 2).dealt(groups) for rank in (0, 1)]
        laid = [sum(tokens_of(group, shared_from(spec)) for group, _ in part) for part in dealt]
        assert min(laid) > 0
        assert sum(laid) < sum(row.length for row in batch)


@pytest.mark.parametrize("method", ["lora", "full", "ptuning_v2"])
def test_a_sharded_run_goes_on_bit_for_bit(played, method):
    storage, lasts = played
    first, second = (lasts[f"ftjob-{method}-full-2", attempt] for attempt in (1, 2))
    assert second.artifact_sha256 == first.artifact_sha256
    told = read_events(storage, f"runs/ftjob-{method}-full-2", 2, -1)
    assert told[0].step == 3
    assert [e.loss for e in told if e.type == "progress"] == losses(storage, f"ftjob-{method}-full-2", "progress")[3:]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_sharded_checkpoint_is_like_any_other(played, method):
    storage, _ = played
    one, other = (
        load_file(
            storage.folder(f"runs/ftjob-{method}-{sharding}-2/checkpoints/0001-00000003") / "optimizer.safetensors"
        )
        for sharding in ("full", "none")
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-2, atol=1e-5)


def test_preferences_are_compared_by_all_with_one_reference(played):
    storage, lasts = played
    assert lasts["ftjob-dpo-2", 1].type == "succeeded"
    steps = [e for e in read_events(storage, "runs/ftjob-dpo-2", 1, -1) if e.type == "progress"]
    assert [event.loss for event in steps] == pytest.approx(json.loads(trl.KEPT.read_text())["losses"]["dpo"], abs=1e-4)


def test_the_first_process_starts_the_others_and_goes_on_after_one_was_lost(played):
    storage, _ = played
    spec = spec_of(storage, "lora", "none", 2).model_copy(update={"job": "ftjob-lost"})
    before, events = dict(os.environ), []

    def kill_the_other(event):
        events.append(event)
        if (event.type, event.step) == ("progress", 5):
            (other,) = _others()
            other.kill()

    try:
        assert execute(spec, storage, 1, kill_the_other) == 1
        assert (events[-1].type, events[-1].code) == ("failed", "process_lost")
        assert execute(spec, storage, 2, events.append) == 0
        assert {name for name in ("RANK", "WORLD_SIZE", "MASTER_PORT") if name in os.environ} == set()
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert _others() == []
    assert events[-1].artifact_sha256 == _last(storage, "ftjob-lora-none-2").artifact_sha256


def _others() -> list[psutil.Process]:
    """The processes that this one has started to train with it."""
    return [one for one in psutil.Process().children() if "luthier.training.program" in one.cmdline()]


def _last(storage: Storage, job: str):
    return read_events(storage, f"runs/{job}", 1, -1)[-1]


def test_a_run_that_was_started_alone_though_it_is_of_several_says_how_to_start_it(storage):
    last = run(spec_of(storage, "lora", "none", 2), storage)
    assert (last.type, last.code) == ("failed", "run_failed")
    assert "torchrun --nproc-per-node 2" in last.message


def test_a_process_whose_others_never_come_does_not_wait_for_ever(storage, monkeypatch):
    monkeypatch.setattr(processes, "_MEETING", timedelta(seconds=2))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    last = run(spec_of(storage, "lora", "none", 2), storage)
    assert (last.type, last.code) == ("failed", "process_lost")


def test_every_group_is_taken_once_and_only_a_sharded_model_takes_more():
    groups = list("abcde")
    dealt = [Processes(rank, 2).dealt(groups) for rank in (0, 1)]
    assert sorted(group for part in dealt for group, counts in part if counts) == groups
    assert [len(part) for part in dealt] == [3, 2]
    sharded = [Processes(rank, 2, is_sharded=True).dealt(groups) for rank in (0, 1)]
    assert [len(part) for part in sharded] == [3, 3]
    assert sharded[1][-1] == ("a", False)
    assert Processes().dealt(groups) == [(group, True) for group in groups]
