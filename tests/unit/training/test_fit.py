"""What a job will take: from trials that measure a law we know, and once from real ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import DatasetInvalid, OutOfMemory, RunFailed
from luthier.storage import Storage
from luthier.testing import toy_rows, toy_spec
from luthier.training import fit
from luthier.training.data import BatchPlan, Rows, micro_batches, read_rows, tokens_of
from luthier.training.objectives.base import objectives
from luthier.training.spec import PluginChoice, TrainingSpec

MEGABYTE = 1024**2
ROOM = 8000 * MEGABYTE


class Law:
    """A machine without noise. Of the job that it is given it counts what a run would take."""

    def __init__(self) -> None:
        self.a_step, self.a_micro_batch, self.a_token = 0.5, 0.2, 0.001  # seconds
        self.trained, self.evaluated = 2 * MEGABYTE, MEGABYTE  # for a token of the largest micro-batch
        self.base = 500 * MEGABYTE
        self.sampled = 0  # where an answer is given
        self.a_size = 0  # what a new size of micro-batch leaves behind
        self.seen: list[TrainingSpec] = []

    def seconds(self, spec: TrainingSpec, groups: list[Any]) -> float:
        return self.a_step + self.a_micro_batch * len(groups) + self.a_token * _tokens(groups)

    def step_peaks(self, spec: TrainingSpec, steps: list[Any], validation: list[Any]) -> list[int]:
        sizes = {_tokens([group]) for group in validation}
        largest, found = 0, []
        for groups in steps:
            sizes |= {_tokens([group]) for group in groups}
            largest = max(largest, *(_tokens([group]) for group in groups))
            found.append(self.base + self.trained * largest + self.a_size * len(sizes))
        return found

    def __call__(self, spec: TrainingSpec, folder: Path, room_bytes: int) -> fit.Took | None:
        self.seen.append(spec)
        storage = Storage(folder.as_uri())
        steps, validation = _steps(spec, storage)
        training = max(self.step_peaks(spec, steps, validation))
        peaks = {"loading": self.base, "training": training, "saving": self.base + 10}
        if validation:
            peaks["evaluation"] = self.base + self.evaluated * max(_tokens([group]) for group in validation)
        if max(peaks.values()) > room_bytes:
            return None
        if spec.samples:
            peaks["sampling"] = self.sampled
        return fit.Took(
            device="cpu",
            room_bytes=None,
            trainable_parameters=7,
            loading_seconds=10.0,
            step_seconds=[99.0, *(self.seconds(spec, groups) for groups in steps[1:])],
            step_peak_bytes=self.step_peaks(spec, steps, validation),
            evaluation_seconds=0.0005 * _tokens(validation) if validation else None,
            saving_seconds=2.0,
            sampling_seconds=5.0 if spec.samples else None,
            peak_bytes=peaks,
        )


def _rows(storage: Storage, spec: TrainingSpec, file: Any) -> Rows:
    objective = objectives.load(spec.objective.name)
    renderer = renderer_for(Tokenizer(storage.folder(spec.weights)))
    return read_rows(storage, file, objective(objective.Options()), renderer, max_length=spec.max_length)


def _steps(spec: TrainingSpec, storage: Storage) -> tuple[list[Any], list[Any]]:
    rows = _rows(storage, spec, spec.training).rows
    plan = BatchPlan(len(rows), spec.seed, spec.batch_size, spec.epochs)
    steps = [
        micro_batches([rows[place] for place in plan.rows_of(step)], spec.micro_batch_tokens)
        for step in range(1, plan.total_steps + 1)
    ]
    validation = _rows(storage, spec, spec.validation).rows if spec.validation else []
    return steps, micro_batches(validation, spec.micro_batch_tokens)


def _tokens(groups: list[Any]) -> int:
    return sum(row.length for group in groups for row in group)


@pytest.fixture
def law(monkeypatch: pytest.MonkeyPatch) -> Law:
    law = Law()
    monkeypatch.setattr(fit, "measured", law)
    monkeypatch.setattr(fit, "available_bytes", lambda: ROOM)
    monkeypatch.setattr(fit, "resident_bytes", lambda: 0)
    return law


@pytest.fixture
def job(storage: Storage) -> Callable[..., TrainingSpec]:
    usual = {"batch_size": 32, "epochs": 2, "share_prefixes": False}
    return lambda **changes: toy_spec(storage, rows=toy_rows(200), **usual | changes)


def test_time_and_memory_follow_the_law_that_trials_were_measured_by(storage: Storage, law: Law, job: Any) -> None:
    spec = job(micro_batch_tokens=512, validation=toy_rows(60, seed=9))
    found = fit.forecast(spec, storage).as_written
    steps, validation = _steps(spec, storage)
    assert found is not None and found.fits
    real = [law.seconds(spec, groups) for groups in steps]
    assert found.seconds_per_step == pytest.approx(sum(real) / len(real), rel=1e-6)
    assert found.micro_batches_per_step == sum(map(len, steps)) / len(steps)
    largest = max(_tokens([group]) for groups in steps for group in groups)
    assert law.base + law.trained * largest <= found.peak_bytes <= law.base + law.trained * 512
    evaluations, checkpoints = 1 + len(steps) // 3 + 1, len(steps) // 3 + 1
    beside = 10.0 + evaluations * 0.0005 * _tokens(validation) + checkpoints * 2.0
    assert found.seconds == pytest.approx(sum(real) + beside, rel=1e-6)


def test_what_rows_share_is_counted_once(storage: Storage, law: Law, job: Any) -> None:
    apart, together = (fit.forecast(job(share_prefixes=shares), storage).as_written for shares in (False, True))
    assert apart is not None and together is not None
    rows = _rows(storage, job(), job().training).rows
    assert tokens_of(rows, 8) < sum(row.length for row in rows)
    assert together.seconds_per_step < apart.seconds_per_step
    assert together.micro_batches_per_step < apart.micro_batches_per_step


@pytest.mark.parametrize(
    ("changes", "apart"),
    [
        ({"share_prefixes": True}, None),
        ({"share_prefixes": False}, "it was not asked for"),
        ({"method": PluginChoice(name="lora", options={"dropout": 0.1})}, "dropout would be drawn once for all rows"),
    ],
)
def test_what_is_active_is_the_jobs_and_not_the_trials(
    storage: Storage, law: Law, job: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], apart: str | None
) -> None:
    seen: list[TrainingSpec] = []

    def measured(spec: TrainingSpec, *given: Any) -> fit.Took | None:
        seen.append(spec)
        took = law(spec, *given)
        of_trial = {"active": ["fused layers"], "inactive": {"shared prefixes": "it was not asked for"}}
        return took and took.model_copy(update=of_trial)

    monkeypatch.setattr(fit, "measured", measured)
    found = fit.forecast(job(**changes), storage)
    assert {(spec.share_prefixes, spec.fused) for spec in seen} == {(False, True)}
    assert found.active == (("fused layers",) if apart else ("shared prefixes", "fused layers"))
    assert found.inactive == ({"shared prefixes": apart} if apart else {})


def test_what_new_sizes_of_micro_batches_leave_behind_is_counted_on(storage: Storage, law: Law, job: Any) -> None:
    spec = job(micro_batch_tokens=128)
    before = fit.forecast(spec, storage).as_written
    law.a_size = 10 * MEGABYTE
    after = fit.forecast(spec, storage).as_written
    assert before is not None and after is not None
    sizes = len({_tokens([group]) for groups in _steps(spec, storage)[0] for group in groups})
    assert (after.peak_bytes - before.peak_bytes) / (10 * MEGABYTE) == pytest.approx(min(sizes, 24), rel=0.3)


def test_evaluation_counts_where_it_takes_the_most(storage: Storage, law: Law, job: Any) -> None:
    law.evaluated = 8 * MEGABYTE
    found = fit.forecast(job(micro_batch_tokens=256, validation=toy_rows(60, seed=9)), storage).as_written
    assert found is not None
    assert found.peak_while == "evaluation"
    assert found.peak_bytes == pytest.approx(law.base + law.evaluated * 256, rel=0.05)


def test_the_largest_micro_batches_that_fit_are_chosen(storage: Storage, law: Law, job: Any) -> None:
    spec = job(micro_batch_tokens=128)
    chosen = fit.forecast(spec, storage, choose=True).chosen
    assert chosen is not None and chosen.micro_batch_tokens == 512  # four times as many at most
    room = law.base + law.trained * 300
    chosen = fit.forecast(spec, storage, choose=True, memory_bytes=room).chosen
    assert chosen is not None and chosen.micro_batch_tokens == 256
    assert chosen.peak_bytes == pytest.approx(law.base + law.trained * 256, rel=0.05)


def test_nothing_is_chosen_where_the_job_fits_as_it_is_written(storage: Storage, law: Law, job: Any) -> None:
    assert fit.forecast(job(micro_batch_tokens=128), storage).chosen is None
    assert len(law.seen) == 2


def test_micro_batches_that_do_not_fit_are_told_with_smaller_ones_that_do(storage: Storage, law: Law, job: Any) -> None:
    found = fit.forecast(job(micro_batch_tokens=1024), storage, memory_bytes=law.base + law.trained * 300)
    assert found.as_written is not None and not found.as_written.fits and not found.fits
    assert found.chosen is not None and found.chosen.micro_batch_tokens == 256


def test_a_trial_without_memory_is_taken_again_with_smaller_micro_batches(
    storage: Storage, law: Law, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = law.base + law.trained * 300
    monkeypatch.setattr(fit, "available_bytes", lambda: room)
    found = fit.forecast(job(micro_batch_tokens=1024), storage)
    assert [spec.micro_batch_tokens for spec in law.seen][-1] < 300
    assert found.as_written is not None and not found.as_written.fits
    assert found.as_written.peak_bytes > room
    assert found.chosen is not None and found.chosen.micro_batch_tokens == 256


def test_a_longest_row_that_does_not_fit_alone_is_told(
    storage: Storage, law: Law, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda: law.base + law.trained * 30)
    found = fit.forecast(job(micro_batch_tokens=256), storage)
    assert (found.as_written, found.chosen, found.fits) == (None, None, False)
    assert found.longest == 40


def test_larger_micro_batches_that_take_longer_for_a_token_are_not_chosen(
    storage: Storage, law: Law, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slower(spec: TrainingSpec, groups: list[Any]) -> float:
        return _tokens(groups) * (0.02 if spec.micro_batch_tokens > 128 else 0.001)

    monkeypatch.setattr(law, "seconds", slower)
    chosen = fit.forecast(job(micro_batch_tokens=128), storage, choose=True).chosen
    assert chosen is not None and chosen.micro_batch_tokens == 128


def test_a_larger_micro_batch_whose_trial_gets_no_memory_is_not_chosen(
    storage: Storage, law: Law, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = fit.measured
    monkeypatch.setattr(
        fit, "measured", lambda spec, *more: None if spec.micro_batch_tokens > 300 else measured(spec, *more)
    )
    chosen = fit.forecast(job(micro_batch_tokens=128), storage, choose=True).chosen
    assert chosen is not None and chosen.micro_batch_tokens == 256
    assert law.seen[-1].micro_batch_tokens == 256


def test_processes_share_the_memory_of_a_machine_and_the_work_of_a_step(storage: Storage, law: Law, job: Any) -> None:
    one = fit.forecast(job(micro_batch_tokens=64), storage)
    two = fit.forecast(job(micro_batch_tokens=64, processes=2), storage)
    assert one.as_written is not None and two.as_written is not None
    assert two.as_written.peak_bytes == 2 * one.as_written.peak_bytes
    steps, _ = _steps(job(micro_batch_tokens=64), storage)
    real = [max(law.seconds(job(), groups[rank::2]) for rank in range(2)) for groups in steps]
    assert two.as_written.seconds_per_step == pytest.approx(sum(real) / len(real), rel=0.02)
    assert (one.not_counted, len(two.not_counted)) == ((), 1)
    sharded = fit.forecast(job(micro_batch_tokens=64, processes=2, sharding="full"), storage)
    assert "sharding" in sharded.not_counted[1]


def test_a_trial_of_one_of_several_processes_has_its_share_of_the_memory(
    storage: Storage, law: Law, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[int] = []
    monkeypatch.setattr(fit, "measured", lambda spec, folder, room: rooms.append(room) or law(spec, folder, room))
    fit.forecast(job(processes=4), storage)
    assert set(rooms) == {ROOM // 4}


def test_samples_count_in_memory_and_in_time(storage: Storage, law: Law, job: Any) -> None:
    held = {"validation": toy_rows(60, seed=9), "micro_batch_tokens": 256, "sample_share": 0.0}
    without = fit.forecast(job(**held), storage).as_written
    law.sampled, law.seen = 9000 * MEGABYTE, []
    found = fit.forecast(job(**held, samples=3), storage, memory_bytes=8000 * MEGABYTE).as_written
    assert without is not None and found is not None
    assert (found.peak_while, found.peak_bytes, found.fits) == ("sampling", 9000 * MEGABYTE, False)
    assert found.seconds == pytest.approx(without.seconds + 2 * 3 * 5.0)  # before the first step and at the end
    assert max(spec.samples for spec in law.seen) == 1


def test_where_no_trial_fits_the_room_is_what_a_trial_could_take(
    storage: Storage, law: Law, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = law.base + law.trained * 30
    monkeypatch.setattr(fit, "available_bytes", lambda: room)
    found = fit.forecast(job(), storage, memory_bytes=64 * ROOM)
    assert (found.as_written, found.memory_bytes, found.tried_bytes) == (None, room, room)
    assert fit.forecast(job(), storage, memory_bytes=room - 1).memory_bytes == room - 1


def test_a_gpu_that_is_too_small_is_named(
    storage: Storage, law: Law, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "has_gpu", lambda: True)
    monkeypatch.setattr(fit, "device_and_room", lambda: ("A GPU", 7 * MEGABYTE))
    monkeypatch.setattr(fit, "measured", lambda *_: None)
    found = fit.forecast(job(), storage)
    assert (found.device, found.memory_bytes, found.fits) == ("A GPU", 7 * MEGABYTE, False)


def test_no_step_holds_more_than_the_batch_has(storage: Storage, law: Law, job: Any) -> None:
    spec = job(batch_size=2, micro_batch_tokens=4096)
    found = fit.forecast(spec, storage).as_written
    assert found is not None and found.micro_batches_per_step == 1
    assert found.peak_bytes <= law.base + law.trained * 2 * 40


def test_nothing_is_left_in_the_storage_or_the_scratch(storage: Storage, law: Law, job: Any, tmp_path: Path) -> None:
    spec = job()
    before = storage.list("")
    fit.forecast(spec, storage, scratch=tmp_path / "scratch")
    assert storage.list("") == before
    assert list((tmp_path / "scratch").iterdir()) == []


def test_rows_that_cannot_be_trained_are_refused_before_any_trial(storage: Storage, law: Law, job: Any) -> None:
    with pytest.raises(DatasetInvalid, match="longer than 8 tokens"):
        fit.forecast(job(max_length=8), storage)
    assert law.seen == []


@pytest.mark.parametrize(
    ("status", "said", "noise", "is_memory"),
    [
        (1, {"code": OutOfMemory.code, "message": "no"}, "", True),
        (-9, None, "", True),
        (-6, None, "memory allocation of 99 bytes failed", True),
        (1, {"code": "internal_error", "message": "x"}, "ImportError: failed to map segment", True),
        (1, {"code": "loss_diverged", "message": "The loss rose."}, "", False),
        (1, None, "ValueError: x", False),
    ],
)
def test_how_a_trial_ended_is_understood(
    storage: Storage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    said: Any,
    noise: str,
    is_memory: bool,
) -> None:
    spec = toy_spec(storage)
    done = subprocess.CompletedProcess([], status, f"{json.dumps(said)}\n" if said else "", noise)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    if is_memory:
        assert fit.measured(spec, tmp_path, ROOM) is None
    else:
        with pytest.raises(RunFailed, match="The loss rose" if said else "ValueError: x"):
            fit.measured(spec, tmp_path, ROOM)


def test_a_law_with_a_part_that_would_be_negative_is_fitted_without_it() -> None:
    points = [((1.0, float(n), float(t)), 0.01 * t - 0.1 * n) for n, t in ((4, 100), (1, 100), (1, 50), (2, 50))]
    once, each, token = fit._fitted(points)
    assert min(once, each, token) >= 0
    assert token == pytest.approx(0.01, rel=0.3)


@pytest.mark.slow
def test_real_trials_find_the_memory_and_the_time_of_a_real_run(storage: Storage) -> None:
    spec = toy_spec(storage, rows=toy_rows(60), validation=toy_rows(8, seed=9), batch_size=16, epochs=1)
    found = fit.forecast(spec, storage)
    assert found.as_written is not None and found.fits
    assert (found.steps, found.trainable_parameters) == (
        4,
        16 * 2 * (32 + 32 + 2 * (32 + 16) + 32 + 32 + 3 * (32 + 64)),
    )
    assert 100 * MEGABYTE < found.as_written.peak_bytes < found.memory_bytes
    assert 0 < 4 * found.as_written.seconds_per_step < found.as_written.seconds


@pytest.mark.slow
def test_a_trial_that_is_given_too_little_memory_says_so_instead_of_taking_more(
    storage: Storage, tmp_path: Path
) -> None:
    spec = toy_spec(storage)
    (tmp_path / "dry").mkdir()
    (tmp_path / "dry" / "models").symlink_to(storage.folder("models"))
    Storage((tmp_path / "dry").as_uri()).write(spec.training.key, storage.read(spec.training.key))
    assert fit.measured(spec, tmp_path / "dry", 150 * MEGABYTE) is None


_LIMITED = """
import torch
from luthier.training.memory import is_out_of_memory
from luthier.training.trial import limit

assert not limit(1_000_000)
assert limit(2_000_000_000)
torch.zeros(10_000_000)
try:
    torch.zeros(1_000_000_000)
except RuntimeError as error:
    assert is_out_of_memory(error), error
else:
    raise AssertionError("it took more")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere a process cannot be held to so much memory")
def test_what_goes_beyond_the_limit_of_a_trial_is_told_as_a_lack_of_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
