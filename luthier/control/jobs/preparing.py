"""From the files that somebody asked for to those that a job is trained on, and from them to its spec."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from luthier.control.catalog.cards import ModelCard
from luthier.control.catalog.service import Catalog
from luthier.control.datasets.service import Datasets, File
from luthier.control.jobs.planning import Data, limit_of, objective_for, plan, positions_of
from luthier.control.jobs.values import JobRequest, Value
from luthier.control.tenancy import Principal
from luthier.core.errors import DatasetInvalid, FileNotChecked, InvalidParameter
from luthier.training.objectives.base import objectives
from luthier.training.spec import TrainingSpec


class Inputs(Value):
    """The files that a job is trained on: those that were asked for, or what was made of them; `seed` is drawn where rows are
    to be split and none was given.
    """

    training_file: str
    validation_file: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Prepared:
    """How far a job is; `spec` is None while a file is read, or the tokens of one are counted."""

    inputs: Inputs
    spec: TrainingSpec | None = None


class Preparation:
    """Files that are made on the way are new versions of the first of those that were asked for; a crash may leave one unused."""

    def __init__(self, catalog: Catalog, datasets: Datasets, *, cores: int) -> None:
        self.catalog = catalog
        self.datasets = datasets
        self.cores = cores

    async def begin(self, who: Principal, request: JobRequest, *, patience_seconds: float = 0.0) -> Inputs:
        """Look at the files that were asked for, which must have been read within the patience, and join several.

        Raises what is wrong with them, FileNotChecked included, and with the request.
        """
        card = await self.catalog.trainable(request.base_model, request.method.name)
        _limit(card, request)
        training: list[File] = []
        for file_id in request.training_files:
            least = request.least_rows if len(request.training_files) == 1 else 1
            found = await self._ready(who, file_id, request, "training_file", least, patience_seconds)
            request = _aimed(request, found)
            training.append(found)
        validation = [
            await self._ready(who, file_id, request, "validation_file", 1, patience_seconds)
            for file_id in request.validation_files
        ]
        rows = sum(file.report.rows for file in training if file.report)
        if rows < request.least_rows:
            raise DatasetInvalid(
                f"The training files have {rows} rows together; at least {request.least_rows} are needed.",
                [],
                param="training_file",
            )
        if _is_share_due(request) and rows < 2:
            raise InvalidParameter("validation_share", "can be kept of two rows or more; the training file has one")
        for files, param in ((training, "training_file"), (validation, "validation_file")):
            if len(files) > 1:  # before anything is made of any of them
                self.datasets.check_joinable(files, param=param)
        draws = _is_share_due(request) and request.seed is None
        return Inputs(
            training_file=await self._one(who, training, "training_file"),
            validation_file=await self._one(who, validation, "validation_file") if validation else None,
            seed=secrets.randbelow(2**31) if draws else request.seed,
        )

    async def go_on(self, who: Principal, job: str, request: JobRequest, inputs: Inputs) -> Prepared:
        """Do what can be done next for a job: split rows off, have tokens counted, compute what was left to us.

        Raises what is wrong with it.
        """
        card = await self.catalog.trainable(request.base_model, request.method.name)
        limit = _limit(card, request)
        try:
            training = await self._ready(who, inputs.training_file, request, "training_file")
            request = _aimed(request, training).model_copy(update={"seed": inputs.seed})
            if _is_share_due(request) and inputs.validation_file is None:
                inputs = await self._split(who, training, request, inputs)
                training = await self._ready(who, inputs.training_file, request, "training_file")
            files = [training]
            if inputs.validation_file is not None:
                files.append(await self._ready(who, inputs.validation_file, request, "validation_file"))
        except FileNotChecked:  # one that was made just now, or that is read once more by a newer version of ours
            return Prepared(inputs)
        data: list[Data] = []
        for file in files:  # all of them, so that the second need not wait for the first
            counted = await self.datasets.counted(
                file,
                who.project,
                card,
                max_length=limit,
                overlength=request.overlength,
                turn_weights=request.turn_weights,
            )
            data += [Data(file, counted)] if counted is not None else []
        if len(data) < len(files):
            return Prepared(inputs)
        validation = data[1] if len(data) > 1 else None
        spec = plan(job, request, card, data[0], validation, max_length=limit, cores=self.cores)
        return Prepared(inputs, spec)

    async def _ready(
        self,
        who: Principal,
        file_id: str,
        request: JobRequest,
        param: str,
        at_least: int = 1,
        patience_seconds: float = 0.0,
    ) -> File:
        wants = objectives.load(request.objective.name).wants if request.objective else None
        return await self.datasets.ready(
            who, file_id, param=param, wants=wants, at_least=at_least, patience_seconds=patience_seconds
        )

    async def _one(self, who: Principal, files: list[File], param: str) -> str:
        return files[0].id if len(files) == 1 else (await self.datasets.join(who, files, param=param)).id

    async def _split(self, who: Principal, file: File, request: JobRequest, inputs: Inputs) -> Inputs:
        """Keep the share of the rows for validation: at least one, and at most as many as were asked for."""
        assert file.report is not None and request.validation_share is not None
        rows = file.report.rows
        wanted = min(max(round(rows * request.validation_share), 1), rows - 1, request.validation_rows_at_most or rows)
        options = {"ratio": wanted / rows, "seed": inputs.seed}
        training, validation, _ = await self.datasets.split(who, file.id, options)
        return inputs.model_copy(update={"training_file": training.id, "validation_file": validation.id})


def _is_share_due(request: JobRequest) -> bool:
    return request.validation_share is not None and not request.validation_files


def _aimed(request: JobRequest, file: File) -> JobRequest:
    """The request with an objective: where none was asked for, the one that the rows of the training file are for."""
    if request.objective is not None:
        return request
    assert file.report is not None and file.report.kind is not None
    return request.model_copy(update={"objective": objective_for(file.report.kind, file.filename)})


def _limit(card: ModelCard, request: JobRequest) -> int:
    taken = positions_of(request.method)
    return limit_of(card.name, card.context_length, request.max_length, usual=request.usual_max_length, taken=taken)
