"""A request, a card and the files it names → the spec of what will be trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.chat.examples import Overlength
from luthier.control.catalog.cards import ModelCard
from luthier.control.datasets.lengths import Selection, Summary
from luthier.control.datasets.service import Counted, File
from luthier.control.jobs.values import JobRequest
from luthier.core.errors import DatasetInvalid, InvalidParameter
from luthier.training import defaults
from luthier.training.faults import faults_in, refusal
from luthier.training.methods.base import Method, methods
from luthier.training.objectives.base import objectives
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec


@dataclass(frozen=True)
class Data:
    """A file that is ready, and how long its rows are by the job's model."""

    file: File
    counted: Counted


def plan(
    job: str,
    request: JobRequest,
    card: ModelCard,
    training: Data,
    validation: Data | None,
    *,
    max_length: int,
    cores: int,
) -> TrainingSpec:
    """Everything that was left to us is computed and written down.

    Raises InvalidParameter for what was asked wrongly, DatasetInvalid when a length limit leaves nothing to train.
    """
    numbers = defaults.resolve(
        parameters=card.parameters,
        context_length=card.context_length,
        rows=max(training.counted.chosen.trained_rows, 1),  # where there is none, what follows refuses the job
        cores=cores,
        method=request.method.name,
        objective=_objective(request).name,
        epochs=request.epochs,
        batch_size=request.batch_size,
        learning_rate=request.learning_rate,
        learning_rate_multiplier=request.learning_rate_multiplier,
        seed=request.seed,
        max_length=max_length,
        drops=_method(request.method).drops,
    )
    asked = {name: value for name in _TAKEN_AS_ASKED if (value := getattr(request, name)) is not None}
    if not numbers.learning_rate <= 1:  # where the rate itself was checked already
        rate = f"{numbers.learning_rate:g}; it must be at most 1"
        if request.learning_rate is not None:
            raise InvalidParameter("learning_rate", f"with its multiplier it is {rate}")
        raise InvalidParameter("learning_rate_multiplier", f"makes the learning rate {rate}")
    return _checked(
        TrainingSpec,
        job=job,
        base_model=card.name,
        weights=card.weights,
        weights_sha256=card.weights_sha256,
        renderer_sha256=card.renderer_sha256,
        training=_data(training, request, numbers.max_length, "training_file"),
        validation=_data(validation, request, numbers.max_length, "validation_file") if validation else None,
        overlength=request.overlength,
        **choices(request),
        **numbers.model_dump() | asked,
    )


def limit_of(
    model: str, context_length: int, asked: int | None, *, usual: int = defaults.LONGEST, taken: int = 0
) -> int:
    """Tokens that a row may have: what is asked, otherwise the usual number, or less where the model reads less.

    `taken` are positions of the model's context that the method takes for itself. Raises InvalidParameter for more than are
    left.
    """
    left = context_length - taken
    if left < _LEAST_LENGTH:
        raise InvalidParameter(
            "max_length", f"the method takes {taken:,} of the {context_length:,} positions that {model} has"
        )
    if asked is not None and asked > left:
        most = f"must be at most {left:,}, the context of {model}, got {asked:,}"
        if taken:
            most = (
                f"must be at most {left:,}: {model} has a context of {context_length:,}, of which the method takes "
                f"{taken:,}; got {asked:,}"
            )
        raise InvalidParameter("max_length", most)
    return min(left, usual) if asked is None else asked


def positions_of(method: PluginChoice) -> int:
    """Positions of a model's context that a method takes. Raises InvalidParameter for a name or an option that there is not."""
    return _method(method).positions


def objective_for(kind: str, filename: str) -> PluginChoice:
    """The objective that rows of a kind are for. Raises DatasetInvalid where there is none."""
    if kind not in _OBJECTIVES:
        raise DatasetInvalid(
            f"The file {filename!r} holds {kind} rows, which cannot be trained by this version.",
            [],
            param="training_file",
        )
    return PluginChoice(name=_OBJECTIVES[kind])


def check_numbers(request: JobRequest) -> None:
    """Raises InvalidParameter, which names the field of the request, for numbers that no job can have."""
    given = {name: value for name in _NUMBERS if (value := getattr(request, name)) is not None}
    if (least := given.get("usual_max_length")) is not None and least < _LEAST_LENGTH:
        raise InvalidParameter("usual_max_length", f"must be at least {_LEAST_LENGTH}, got {least:,}")
    multiplier = request.learning_rate_multiplier
    if multiplier is not None and not 0 < multiplier < float("inf"):
        raise InvalidParameter("learning_rate_multiplier", f"must be above 0, got {multiplier:g}")
    try:
        TrainingSpec.model_validate({name: value for name, value in given.items() if name != "usual_max_length"})
    except ValidationError as wrong:
        if faults := [fault for fault in faults_in(TrainingSpec, wrong) if fault.field in given]:
            raise refusal(faults) from wrong


_LEAST_LENGTH = 8
_TAKEN_AS_ASKED = ("schedule", "warmup_ratio", "weight_decay", "evaluate_every_steps", "save_every_steps")
_NUMBERS = (*_TAKEN_AS_ASKED, "epochs", "batch_size", "learning_rate", "seed", "max_length", "usual_max_length")
_OBJECTIVES: dict[str, str] = {"chat": "sft", "preference": "dpo", "text": "cpt"}


def choices(request: JobRequest) -> dict[str, PluginChoice]:
    """Method and objective with every option written out; no objective where none was asked for.

    Raises InvalidParameter for a name or an option that there is not.
    """
    found = {"method": _options(methods.load(request.method.name), request.method)}
    if request.objective is not None:
        found["objective"] = _options(objectives.load(request.objective.name), request.objective)
    return found


def promised(
    filename: str,
    found: Summary,
    chosen: Selection,
    *,
    base_model: str,
    max_length: int,
    overlength: Overlength,
    param: str | None = None,
) -> dict[str, Any]:
    """What a DataFile promises of its rows: rows in = rows trained + rows dropped.

    Raises DatasetInvalid for rows that the model cannot write, that are too long for `fail`, or where none is left to train.
    """
    if found.refused_rows:
        row, _, why = found.refused[0]
        raise DatasetInvalid(
            f"{found.refused_rows:,} rows of {filename!r} cannot be written for {base_model}; row {row}: {why}",
            [(line, reason) for _, line, reason in found.refused],
            param=param,
        )
    if overlength == "fail" and chosen.too_long:
        raise DatasetInvalid(
            f"{chosen.too_long:,} rows of {filename!r} are longer than {max_length:,} tokens; the longest has "
            f"{found.longest:,}.",
            [],
            param=param,
        )
    if not chosen.trained_rows:
        raise DatasetInvalid(_nothing_left(filename, chosen, max_length), [], param=param)
    return {
        "rows": chosen.rows,
        "trained_rows": chosen.trained_rows,
        "dropped": chosen.dropped_counts,
        "first_dropped": [one["row"] for one in chosen.dropped[:10]],
    }


def _method(choice: PluginChoice) -> Method:
    plugin = methods.load(choice.name)
    return plugin(_checked(plugin.Options, **choice.options))


def _data(data: Data, request: JobRequest, max_length: int, param: str) -> DataFile:
    file = data.file
    assert file.report is not None and file.report.format is not None
    rows = promised(
        file.filename,
        data.counted.summary,
        data.counted.chosen,
        base_model=request.base_model,
        max_length=max_length,
        overlength=request.overlength,
        param=param,
    )
    return DataFile(
        key=file.key, sha256=file.sha256, format=file.report.format, turn_weights=request.turn_weights, **rows
    )


def _nothing_left(filename: str, chosen: Selection, max_length: int) -> str:
    told: list[str] = []
    if count := chosen.dropped_counts.get("too_long", 0):
        told.append(
            f"{count:,} are longer than {max_length:,} tokens (the shortest of them has {chosen.shortest_too_long:,})"
        )
    if count := chosen.dropped_counts.get("nothing_trained", 0):
        told.append(f"{count:,} have nothing that is learned")
    return f"No row of {filename!r} can be trained: of {chosen.rows:,} rows {' and '.join(told)}."


def _options(plugin: Any, choice: PluginChoice) -> PluginChoice:
    """The choice with every option of the plugin written out."""
    return PluginChoice(name=choice.name, options=_checked(plugin.Options, **choice.options).model_dump())


def _objective(request: JobRequest) -> PluginChoice:
    assert request.objective is not None
    return request.objective


def _checked(kind: type[BaseModel], **fields: Any) -> Any:
    try:
        return kind(**fields)
    except ValidationError as wrong:
        raise refusal(faults_in(kind, wrong)) from wrong
