"""Job files as values: what may be left out, what follows from what, and everything that is wrong at once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from luthier.control.catalog.cards import ModelCard
from luthier.core.errors import InvalidParameter
from luthier.training import defaults
from luthier.training.draft import Draft, read_draft, read_spec
from luthier.training.faults import InvalidJob
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
from luthier.training.spec import DataFile, TrainingSpec

BASE = ModelCard(
    title="Toy",
    name="toy",
    parameters=135_000_000,
    context_length=512,
    weights="models/toy",
    weights_sha256="a" * 64,
    renderer_sha256="b" * 64,
    installed_at=datetime(2026, 1, 1, tzinfo=UTC),
)
ROWS = DataFile(key="files/x", sha256="c" * 64, rows=320, trained_rows=320)
LEAST = {"base_model": "toy", "training": "train.jsonl"}


def spec_of(**written: Any) -> TrainingSpec:
    draft, faults = read_draft(LEAST | written)
    assert faults == []
    return draft.resolve(BASE, ROWS, cores=2)


def faults_of(**written: Any) -> dict[str, str]:
    return {fault.field: fault.text for fault in read_draft(LEAST | written)[1]}


def test_two_lines_are_a_whole_job() -> None:
    spec = spec_of()
    computed = defaults.resolve(parameters=BASE.parameters, context_length=512, rows=320, cores=2, seed=0)
    assert {name: getattr(spec, name) for name in defaults.Resolved.model_fields} == computed.model_dump()
    assert (spec.method.name, spec.objective.name, spec.method.options["rank"]) == ("lora", "sft", 16)


def test_every_field_of_a_spec_that_is_not_found_on_the_machine_can_be_written() -> None:
    found = {"version", "job", "weights", "weights_sha256", "renderer_sha256"}
    assert TrainingSpec.model_fields.keys() - Draft.model_fields.keys() == found
    assert Draft.model_fields.keys() - TrainingSpec.model_fields.keys() == {"method_options", "objective_options"}


def test_what_is_written_is_kept_and_what_depends_on_it_follows() -> None:
    spec = spec_of(epochs=8, batch_size=10, learning_rate=1e-3, warmup_ratio=0.2, threads=1, micro_batch_tokens=64)
    assert (spec.epochs, spec.batch_size, spec.learning_rate, spec.warmup_ratio) == (8, 10, 1e-3, 0.2)
    assert (spec.threads, spec.micro_batch_tokens) == (1, 64)
    assert spec.evaluate_every_steps == 8 * 32 // 4


@pytest.mark.parametrize(
    ("written", "shares", "fused"),
    [
        ({}, True, True),
        ({"method_options": {"dropout": 0.1}}, False, True),
        ({"method_options": {"dropout": 0.1}, "share_prefixes": True}, True, True),
        ({"share_prefixes": False, "fused": False}, False, False),
    ],
)
def test_what_makes_a_new_job_faster_is_written_into_its_spec(written: dict, shares: bool, fused: bool) -> None:
    spec = spec_of(**written)
    assert (spec.share_prefixes, spec.fused) == (shares, fused)


def test_a_spec_that_was_stored_before_a_field_was_there_means_what_it_meant() -> None:
    plain = spec_of(share_prefixes=False, fused=False)
    stored = plain.model_dump(mode="json", exclude={"share_prefixes", "fused"})
    assert TrainingSpec.model_validate(stored) == plain


def test_auto_is_the_same_as_no_line() -> None:
    optional = Draft.model_fields.keys() - LEAST.keys() - {"method_options", "objective_options"}
    options = {"method_options": {"rank": "auto"}, "objective_options": {}}
    assert spec_of(**dict.fromkeys(optional, "auto"), **options) == spec_of()


def test_the_same_content_is_the_same_job_and_any_change_another() -> None:
    assert spec_of(epochs=2).job == spec_of(epochs=2).job
    jobs = {spec_of(**one).job for one in ({}, {"epochs": 3}, {"method_options": {"rank": 8}}, {"seed": 1})}
    assert len(jobs) == 4
    assert read_draft(LEAST)[0].resolve(BASE, ROWS.model_copy(update={"sha256": "d" * 64}), cores=2).job not in jobs


def test_every_fault_is_found_at_once_with_its_bound_and_what_came() -> None:
    assert faults_of(
        epochs=200,
        learning_rate="fast",
        precision="fp64",
        seed=-1,
        validation=1.5,
        gradient_checkpointing=3,
        method="lorra",
        objective_options={"beta": 1},
        weights="models/toy",
    ) == {
        "epochs": "must be a whole number from 1 to 100, got 200",
        "learning_rate": "must be a number above 0 and at most 1, got 'fast'",
        "precision": "must be " + _precisions() + ", got 'fp64'",
        "seed": "must be a whole number at least 0 and below 2,147,483,648, got -1",
        "validation": "must be the path of a file, or a share of the rows above 0 and below 1, got 1.5",
        "gradient_checkpointing": "must be true or false, got 3",
        "method": "there is no method 'lorra'; known: full, lora, ptuning_v2, qlora",
        "objective_options.beta": "is not a field that is known here",
        "weights": "is not a field that is known here",
    }


def _precisions() -> str:
    *others, last = (f'"{name}"' for name in Draft.model_json_schema()["properties"]["precision"]["enum"])
    return f"{', '.join(others)} or {last}"


def test_a_field_that_is_nearly_one_is_told() -> None:
    hints = [fault.hint for fault in read_draft(LEAST | {"epoch": 3, "method_options": {"rnak": 8}})[1]]
    assert hints == ["Did you mean 'epochs'?", "Did you mean 'rank'?"]


def test_a_field_at_the_wrong_place_is_told_where_it_stands() -> None:
    written = {"rank": 8, "beta": 0.1, "method_options": {"epochs": 3}}
    hints = {fault.field: fault.hint for fault in read_draft(LEAST | written)[1]}
    assert hints == {
        "rank": "It is an option of the method: write it below [method_options].",
        "beta": "It is an option of the objective dpo, not of sft.",
        "method_options.epochs": "Write epochs at the top of the file, above every [table].",
    }


@pytest.mark.parametrize(("processes", "is_fault"), [({}, True), ({"processes": 1}, True), ({"processes": 2}, False)])
def test_weights_are_shared_among_several_processes_only(processes: dict[str, int], is_fault: bool) -> None:
    faults = read_draft(LEAST | {"sharding": "full"} | processes)[1]
    assert [fault.field for fault in faults] == ["sharding"] * is_fault


def test_what_needs_validation_rows_is_a_fault_without_them() -> None:
    words = "needs validation rows, and there are none"
    assert faults_of(patience=2, samples=3) == {"patience": words, "samples": words}
    assert faults_of(patience=2, samples=3, validation=0.1) == {}
    assert faults_of(samples=0, patience="auto") == {}
    assert faults_of(patience=2, validation=2).keys() == {"validation"}


def test_numbers_follow_the_rows_that_are_trained() -> None:
    draft, _ = read_draft(LEAST)
    few = draft.resolve(BASE, ROWS.model_copy(update={"trained_rows": 40}), cores=2)
    assert (few.batch_size, few.epochs) == (4, 10)


def test_the_cores_are_divided_among_the_processes() -> None:
    assert [spec_of(processes=count).threads for count in (1, 2, 3)] == [2, 1, 1]


def test_a_prefix_leaves_less_of_the_context() -> None:
    assert spec_of(method="ptuning_v2", method_options={"prefix_length": 100}).max_length == 412


@pytest.mark.parametrize("name", ["clip_norm", "weight_decay", "stall_after_seconds"])
def test_a_number_without_end_is_refused(name: str) -> None:
    assert faults_of(**{name: float("inf")}) == {name: "must be a finite number, got inf"}
    written = spec_of().model_dump_json().replace(f'"{name}":', f'"{name}":Infinity,"was":')
    assert name in {fault.field for fault in read_spec(written.encode())[2]}


def test_options_that_are_wrong_are_refused_in_the_same_words_everywhere() -> None:
    with pytest.raises(InvalidParameter) as refused:
        methods.load("lora").Options.read({"rank": 0, "alpha": -1}, param="method.options")
    assert refused.value.param == "method.options.rank"
    assert refused.value.message == (
        "method.options.rank: must be a whole number from 1 to 512, got 0; "
        "method.options.alpha: must be a number above 0, got -1"
    )


def test_what_is_right_of_a_wrong_file_is_still_known() -> None:
    draft, faults = read_draft({"base_model": 3, "training": "train.jsonl", "epochs": 0, "max_length": 64})
    assert [fault.field for fault in faults] == ["base_model", "epochs"]
    assert (draft.training, draft.given()) == ("train.jsonl", {"max_length": 64})


def test_the_faults_of_a_spec_are_found_with_those_of_its_options() -> None:
    spec, _, faults = read_spec(
        b'{"job": 3, "training": {"key": "a"}, "method": {"name": "lora", "options": {"rank": 0}}}'
    )
    told = {fault.field: fault.text for fault in faults}
    assert spec is None
    assert told["job"] == "must be a text, got 3"
    assert told["training.sha256"] == told["weights"] == "is missing"
    assert told["method.options.rank"] == "must be a whole number from 1 to 512, got 0"
    assert read_spec(b'{"job"')[2][0].text.startswith("is not JSON: ")
    assert read_spec(b"[]")[2][0].field == ""


def test_a_whole_spec_has_no_faults() -> None:
    spec = spec_of()
    assert read_spec(spec.model_dump_json().encode())[::2] == (spec, [])


@pytest.mark.parametrize("registry", [methods, objectives], ids=lambda registry: registry.kind)
def test_options_of_every_plugin_are_checked(registry: Any) -> None:
    for name in registry.names():
        told = faults_of(**{registry.kind: name, f"{registry.kind}_options": {"nonsense": 1}})
        assert told == {f"{registry.kind}_options.nonsense": "is not a field that is known here"}


def test_fields_that_do_not_go_together_are_a_fault_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    draft, _ = read_draft(LEAST)
    numbers = defaults.resolve(parameters=1, context_length=512, rows=320, cores=2)
    monkeypatch.setattr(defaults, "resolve", lambda **asked: numbers.model_copy(update={"threads": 0}))
    with pytest.raises(InvalidJob, match="threads: must be a whole number at least 1, got 0"):
        draft.resolve(BASE, ROWS, cores=2)


def test_an_unknown_name_is_refused_where_a_draft_is_resolved_all_the_same() -> None:
    draft, _ = read_draft(LEAST | {"method": "lorra"})
    with pytest.raises(InvalidParameter, match="lorra"):
        draft.resolve(BASE, ROWS, cores=2)
