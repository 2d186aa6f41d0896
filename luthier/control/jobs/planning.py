"""A request, a card and the files it names → the spec of what will be trained."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.control.catalog.cards import ModelCard
from luthier.control.datasets.service import File
from luthier.control.jobs.values import JobRequest
from luthier.core.errors import InvalidParameter
from luthier.training import defaults
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec


def plan(
    job: str, request: JobRequest, card: ModelCard, training: File, validation: File | None, *, cores: int
) -> TrainingSpec:
    """Everything that was left to us is computed and written down. Raises InvalidParameter for what was asked wrongly."""
    assert training.report is not None
    numbers = defaults.resolve(
        parameters=card.parameters,
        context_length=card.context_length,
        rows=training.report.rows,
        cores=cores,
        epochs=request.epochs,
        batch_size=request.batch_size,
        learning_rate_multiplier=request.learning_rate_multiplier,
        seed=request.seed,
    )
    return _checked(
        TrainingSpec,
        job=job,
        base_model=card.name,
        weights=card.weights,
        weights_sha256=card.weights_sha256,
        renderer_sha256=card.renderer_sha256,
        training=_data(training),
        validation=_data(validation) if validation else None,
        **choices(request),
        **numbers.model_dump(),
    )


def choices(request: JobRequest) -> dict[str, PluginChoice]:
    """Method and objective with every option written out. Raises InvalidParameter for a name or an option that there is not."""
    return {
        "method": _options(methods.load(request.method.name), request.method),
        "objective": _options(objectives.load(request.objective.name), request.objective),
    }


def _data(file: File) -> DataFile:
    assert file.report is not None and file.report.format is not None
    return DataFile(key=file.key, sha256=file.sha256, format=file.report.format)


def _options(plugin: Any, choice: PluginChoice) -> PluginChoice:
    """The choice with every option of the plugin written out."""
    return PluginChoice(name=choice.name, options=_checked(plugin.Options, **choice.options).model_dump())


def _checked(kind: type[BaseModel], **fields: Any) -> Any:
    try:
        return kind(**fields)
    except ValidationError as wrong:
        faults = [(".".join(map(str, e["loc"])), e["msg"]) for e in wrong.errors()]
        raise InvalidParameter(faults[0][0], "; ".join(f"{message} ({field})" for field, message in faults)) from wrong
