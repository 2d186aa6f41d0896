"""From the files that somebody asked for to those that a job is trained on, and from them to its spec."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.control.catalog.cards import ModelCard
from luthier.control.catalog.service import Catalog
from luthier.control.datasets.service import Datasets, File
from luthier.control.jobs.planning import Data, limit_of, objective_for, plan, positions_of
from luthier.control.jobs.values import JobRequest, Value
from luthier.control.tenancy import Principal
from luthier.core.errors import DatasetInvalid, FileNotChecked
from luthier.training.objectives.base import objectives
from luthier.training.spec import TrainingSpec


class Inputs(Value):
    """The files that a job is trained on: those that were asked for, or what is made of them.

    `training_file` is None until several have been joined, `validation_file` also until rows have been split off, or where
    none is used. `seed` is drawn where rows are to be split and none was given.
    """

    training_file: str | None
    validation_file: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Prepared:
    """How far a job is; `spec` is None while a file is made or read, or the tokens of one are counted."""

    inputs: Inputs
    spec: TrainingSpec | None = None


class Preparation:
    """Files that are made on the way are new versions of the first of those that were asked for, and tell the job they are
    made for: who begins again finds them.
    """

    def __init__(self, catalog: Catalog, datasets: Datasets, *, cores: int) -> None:
        self.catalog = catalog
        self.datasets = datasets
        self.cores = cores

    async def begin(self, who: Principal, request: JobRequest, *, patience_seconds: float = 0.0) -> Inputs:
        """Look at the files that were asked for, all of which must have been read within the patience. Makes nothing.

        Raises what is wrong with the request, or with one of the files; FileNotChecked where that is all there is.
        """
        card = await self.catalog.trainable(request.base_model, request.method.name)
        _limit(card, request)
        deadline = time.monotonic() + patience_seconds
        asked = {"training_file": request.training_files, "validation_file": request.validation_files}
        files: dict[str, list[File]] = {param: [] for param in asked}
        unread: FileNotChecked | None = None
        for param, file_ids in asked.items():
            least = request.least_rows if (param, len(file_ids)) == ("training_file", 1) else 1
            for file_id in file_ids:
                try:
                    file = await self._ready(who, file_id, request, param, least, deadline - time.monotonic())
                except FileNotChecked as error:  # the others are looked at all the same
                    unread = unread or error
                    continue
                request = _aimed(request, file) if param == "training_file" else request
                files[param].append(file)
        if unread is not None:
            raise unread
        rows = sum(file.report.rows for file in files["training_file"] if file.report)
        if rows < request.least_rows:
            raise DatasetInvalid(
                f"The training files have {rows} rows together; at least {request.least_rows} are needed.",
                [],
                param="training_file",
            )
        if _is_share_due(request) and rows < 2:
            raise DatasetInvalid(
                "The training file has one row; two are needed to keep some for validation.", [], param="training_file"
            )
        for param, found in files.items():
            if len(found) > 1:
                self.datasets.check_joinable(found, param=param)
        draws = _is_share_due(request) and request.seed is None
        return Inputs(
            training_file=_only(request.training_files),
            validation_file=_only(request.validation_files),
            seed=secrets.randbelow(2**31) if draws else request.seed,
        )

    async def go_on(
        self, who: Principal, job: str, request: JobRequest, inputs: Inputs, *, may_make: bool = True
    ) -> Prepared:
        """Do what is next for a job: join files, split rows off, have tokens counted, compute what was left to us.

        Making a file takes as long as reading and writing its rows; who may not do it gets the inputs as they are. Raises
        what is wrong with the job.
        """
        card = await self.catalog.trainable(request.base_model, request.method.name)
        limit = _limit(card, request)
        try:
            if inputs.training_file is None or (request.validation_files and inputs.validation_file is None):
                return Prepared(await self._joined(who, job, request, inputs) if may_make else inputs)
            training = await self._ready(who, inputs.training_file, request, "training_file")
            request = _aimed(request, training).model_copy(update={"seed": inputs.seed})
            if _is_share_due(request) and inputs.validation_file is None:
                return Prepared(await self._split(who, job, training, request, inputs) if may_make else inputs)
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

    async def _joined(self, who: Principal, job: str, request: JobRequest, inputs: Inputs) -> Inputs:
        """Make one file of several, for training if that is due, else for validation."""
        param, file_ids = "training_file", request.training_files
        if inputs.training_file is not None:
            param, file_ids = "validation_file", request.validation_files
        files = [await self._ready(who, file_id, request, param) for file_id in file_ids]
        made = await self._made_before(who, files[0], job, "join")
        joined = made.get("joined") or await self.datasets.join(who, files, param=param, made_for=job)
        return inputs.model_copy(update={param: joined.id})

    async def _split(self, who: Principal, job: str, file: File, request: JobRequest, inputs: Inputs) -> Inputs:
        """Keep the share of the rows for validation: at least one, and at most as many as were asked for."""
        made = await self._made_before(who, file, job, "split")
        if len(made) < 2:  # none was made, or one of the two was deleted since
            assert file.report is not None and request.validation_share is not None
            rows = file.report.rows
            wanted = min(max(round(rows * request.validation_share), 1), rows - 1)
            wanted = min(wanted, request.validation_rows_at_most or rows)
            options = {"ratio": wanted / rows, "seed": inputs.seed}
            made["training"], made["validation"], _ = await self.datasets.split(who, file.id, options, made_for=job)
        return inputs.model_copy(
            update={"training_file": made["training"].id, "validation_file": made["validation"].id}
        )

    async def _made_before(self, who: Principal, file: File, job: str, operation: str) -> dict[str, File]:
        """What an earlier try made of a file for that job, by the names of the outputs."""
        made: dict[str, File] = {}
        for child in await self.datasets.children(who, file.id):
            told = child.operation or {}
            if (told.get("name"), told.get("made_for")) == (operation, job):
                made[told["output"]] = child
        return made


def _only(file_ids: Sequence[str]) -> str | None:
    return file_ids[0] if len(file_ids) == 1 else None


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
