"""Everything that can be asked of a job is in its spec, or is refused under the name that it was asked by."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.planning import limit_of
from luthier.control.jobs.values import JobRequest
from luthier.core.errors import DatasetInvalid, InvalidParameter
from luthier.core.pages import PageRequest
from luthier.testing import jsonl, toy_pairs, toy_rows, toy_texts
from luthier.training.spec import PluginChoice, TrainingSpec
from tests.unit.control.conftest import ADA, House, on_sqlite


async def planned(house: House, rows: list[dict[str, Any]] | None = None, **asked: Any) -> TrainingSpec:
    content = jsonl(toy_rows(12) if rows is None else rows)
    job = await house.submit(training_files=[(await house.upload(content=content)).id], **asked)
    assert (job.status, job.spec is None) == (Status.QUEUED, False)
    assert job.spec is not None
    return job.spec


@on_sqlite
async def test_every_number_that_is_asked_for_is_in_the_spec(house: House) -> None:
    asked = {
        "epochs": 5, "batch_size": 3, "learning_rate": 0.02, "schedule": "linear", "warmup_ratio": 0.25,
        "weight_decay": 0.5, "evaluate_every_steps": 7, "save_every_steps": 9, "max_length": 99, "seed": 4,
        "overlength": "truncate",
    }  # fmt: skip
    spec = await planned(house, **asked)
    assert spec.model_dump(include=set(asked)) == asked


@on_sqlite
async def test_what_is_left_to_us_is_what_it_was(house: House) -> None:
    spec = await planned(house)
    usual = TrainingSpec.model_fields
    assert (spec.schedule, spec.warmup_ratio) == (usual["schedule"].default, usual["warmup_ratio"].default)
    assert (spec.weight_decay, spec.method.name, spec.objective.name) == (0.0, "lora", "sft")
    assert spec.save_every_steps == spec.evaluate_every_steps == -(-spec.epochs * 3 // 4)


@on_sqlite
@pytest.mark.parametrize("dropout", [0.0, 0.1])
async def test_what_makes_a_new_job_faster_is_written_into_its_spec(house: House, dropout: float) -> None:
    spec = await planned(house, method=PluginChoice(name="lora", options={"dropout": dropout}))
    assert (spec.share_prefixes, spec.fused) == (not dropout, True)


@on_sqlite
async def test_a_rate_may_be_absolute_and_the_multiplier_multiplies_it_too(house: House) -> None:
    assert (await planned(house, learning_rate=1e-5)).learning_rate == 1e-5
    assert (await planned(house, learning_rate=1e-5, learning_rate_multiplier=3.0)).learning_rate == pytest.approx(3e-5)
    usual = (await planned(house)).learning_rate
    assert (await planned(house, learning_rate_multiplier=0.5)).learning_rate == pytest.approx(usual / 2)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("full", {}),
        ("lora", {"rank": 4, "alpha": 8.0, "dropout": 0.1}),
        ("qlora", {"rank": 2}),
        ("ptuning_v2", {"prefix_length": 5}),
    ],
)
@on_sqlite
async def test_every_method_can_be_asked_for_with_its_options(
    house: House, method: str, options: dict[str, Any]
) -> None:
    spec = await planned(house, method={"name": method, "options": options})
    assert spec.method.name == method
    assert options.items() <= spec.method.options.items()


@pytest.mark.parametrize(
    ("rows", "found"), [(toy_rows(12), "sft"), (toy_pairs(12), "dpo"), (toy_texts(12), "cpt")], ids=str
)
@on_sqlite
async def test_where_no_objective_is_named_it_is_the_one_that_the_rows_are_for(
    house: House, rows: list[dict[str, Any]], found: str
) -> None:
    spec = await planned(house, rows, objective=None)
    assert spec.objective.name == found
    assert (await planned(house, rows, objective={"name": found})).objective == spec.objective


@on_sqlite
async def test_a_validation_file_must_hold_what_the_training_file_does(house: House) -> None:
    pairs = await house.upload(content=jsonl(toy_pairs(4)))
    with pytest.raises(DatasetInvalid, match="holds preference rows; this job wants chat") as refused:
        await planned(house, objective=None, validation_files=[pairs.id])
    assert refused.value.param == "validation_file"


@on_sqlite
async def test_an_objective_has_its_options(house: House) -> None:
    spec = await planned(house, toy_pairs(12), objective={"name": "dpo", "options": {"beta": 0.3}})
    assert spec.objective.options["beta"] == 0.3


NAN, MUCH = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"epochs": 0}, "epochs", "from 1 to 100, got 0"),
        ({"batch_size": 0}, "batch_size", "got 0"),
        ({"batch_size": 5000}, "batch_size", "from 1 to 4,096, got 5000"),
        ({"learning_rate": 0.0}, "learning_rate", "above 0"),
        ({"learning_rate": 2.0}, "learning_rate", "at most 1"),
        ({"learning_rate": NAN}, "learning_rate", "finite number"),
        ({"learning_rate_multiplier": 0.0}, "learning_rate_multiplier", "above 0"),
        ({"learning_rate_multiplier": NAN}, "learning_rate_multiplier", "above 0"),
        ({"learning_rate_multiplier": MUCH}, "learning_rate_multiplier", "above 0"),
        ({"learning_rate_multiplier": 1e9}, "learning_rate_multiplier", "it must be at most 1"),
        ({"learning_rate": 0.5, "learning_rate_multiplier": 4.0}, "learning_rate", "it is 2; it must be at most 1"),
        ({"schedule": "cosines"}, "schedule", "\"wsd\", got 'cosines'"),
        ({"warmup_ratio": 1.0}, "warmup_ratio", "below 1"),
        ({"weight_decay": -0.1}, "weight_decay", "at least 0"),
        ({"evaluate_every_steps": 0}, "evaluate_every_steps", "at least 1"),
        ({"save_every_steps": 0}, "save_every_steps", "at least 1"),
        ({"max_length": 7}, "max_length", "at least 8"),
        ({"usual_max_length": 7}, "usual_max_length", "at least 8"),
        ({"objective": {"name": "dpo", "options": {"beta": 0}}}, "beta", "above 0"),
        ({"method": {"name": "ptuning_v2"}, "max_length": 481}, "max_length", "of which the method takes 32; got 481"),
        (
            {"method": {"name": "ptuning_v2", "options": {"prefix_length": 505}}},
            "max_length",
            "takes 505 of the 512 positions",
        ),
    ],
    ids=str,
)
@on_sqlite
async def test_what_no_job_can_have_is_refused_by_the_name_of_its_field(
    house: House, asked: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        await planned(house, **asked)
    assert refused.value.param == param
    assert said in refused.value.message
    assert (await house.jobs.list(ADA, PageRequest())).items == []


@on_sqlite
async def test_two_faults_of_a_job_are_told_together(house: House) -> None:
    with pytest.raises(InvalidParameter, match="must be a whole number from 1 to 100, got 0; weight_decay") as refused:
        await planned(house, epochs=0, weight_decay=-1)
    assert refused.value.param == "epochs"


@on_sqlite
async def test_a_prefix_leaves_less_room_for_rows(house: House) -> None:
    method = {"name": "ptuning_v2", "options": {"prefix_length": 40}}
    assert (await planned(house, method=method)).max_length == 512 - 40
    assert (await planned(house, method=method, max_length=472)).max_length == 472
    assert (await planned(house, method=method, usual_max_length=100)).max_length == 100


@pytest.mark.parametrize(
    ("context", "asked", "usual", "found"),
    [(512, None, 2048, 512), (32768, None, 2048, 2048), (32768, None, 8192, 8192), (512, 100, 50, 100)],
)
def test_a_row_may_have_what_is_asked_else_what_is_usual(
    context: int, asked: int | None, usual: int, found: int
) -> None:
    assert limit_of("toy", context, asked, usual=usual) == found


def test_a_request_takes_one_of_two_ways_with_weights() -> None:
    with pytest.raises(ValueError, match="turn_weights"):
        JobRequest.model_validate({"base_model": "toy", "training_files": ["file-1"], "turn_weights": "doubled"})
