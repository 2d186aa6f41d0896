"""Draft: a job as a person writes it, in TOML, in which only the base model and the data have to be said.

Its fields are those of TrainingSpec, whatever they are, but for those that are found on the machine: storage keys and hashes.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field, ValidationError, create_model, field_validator, model_validator
from pydantic.fields import FieldInfo

from luthier.core.errors import LuthierError
from luthier.core.registry import Registry
from luthier.training import defaults
from luthier.training.faults import UNKNOWN, Fault, InvalidJob, faults_in
from luthier.training.methods.base import Method, method_of, methods
from luthier.training.objectives.base import objectives
from luthier.training.spec import SHARED_AMONG_ONE, DataFile, PluginChoice, Start, TrainingSpec, Value

AUTO = "auto"
"""What may be written for every field that may be left out: as if its line were not there."""

_FOUND = frozenset(("version", "job", "weights", "weights_sha256", "renderer_sha256"))
"""Fields of a spec that nobody writes by hand."""

_SPEC = TrainingSpec.model_fields
SEED = 0  # the same file is the same job, so nothing is drawn


OPTIONS = ("method_options", "objective_options")
"""Tables of a job file, each for the plugin that is chosen."""


class Base(Protocol):
    """What is known of a base model."""

    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def renderer_sha256(self) -> str: ...
    @property
    def parameters(self) -> int: ...
    @property
    def context_length(self) -> int: ...


class Written(Value):
    """The fields that are written otherwise than they stand in a spec."""

    base_model: str = Field(
        description="Name of an installed base model, or path of a folder with safetensors, config.json and tokenizer.json."
    )
    training: str = Field(description="Path of the file that is trained on, from the folder of this file.")
    validation: str | float | None = Field(
        default=None,
        description="Path of a file that is evaluated on only; or a share of the rows, such as 0.1, that is split off.",
    )
    start: str | None = Field(
        default=None, description="Path or storage key of an adapter's folder that training goes on from."
    )
    method: str = Field(default=_SPEC["method"].get_default().name, description="Which numbers learn.")
    method_options: dict[str, Any] = Field(default_factory=dict)
    objective: str = Field(default=_SPEC["objective"].get_default().name, description="What is minimised.")
    objective_options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _take_auto_out(cls, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        needed = {name for name, field in cls.model_fields.items() if field.is_required()}
        said = {name: value for name, value in written.items() if name in needed or value != AUTO}
        return said | {name: _without_auto(said[name]) for name in OPTIONS if name in said}

    @field_validator("validation", mode="before")
    @classmethod
    def _path_or_share(cls, value: Any) -> Any:
        is_share = isinstance(value, float) and 0 < value < 1
        if not isinstance(value, str) and not is_share:
            raise ValueError("must be the path of a file, or a share of the rows above 0 and below 1")
        return value


def _without_auto(options: Any) -> Any:
    return {name: value for name, value in options.items() if value != AUTO} if isinstance(options, dict) else options


def _free_fields() -> dict[str, Any]:
    """The other fields of a spec, with their bounds; each may be absent."""
    return {
        name: (field.rebuild_annotation(), FieldInfo(default=None, description=field.description))
        for name, field in _SPEC.items()
        if name not in _FOUND and name not in Written.model_fields
    }


if TYPE_CHECKING:
    _Free = Written
else:
    _Free = create_model("_Free", __base__=Written, **_free_fields())


class Draft(_Free):
    """A job file as it was read. Every field of a TrainingSpec that is not among those above may be given, or left to us."""

    @property
    def positions(self) -> int:
        """Positions of the context that the method takes; 0 where the method or its options are not right."""
        with suppress(LuthierError):
            return self._chosen().positions
        return 0

    def given(self) -> dict[str, Any]:
        """What was written of the fields that may be left to us."""
        free = type(self).model_fields.keys() - Written.model_fields.keys()
        return {name: getattr(self, name) for name in _SPEC if name in free & self.model_fields_set}

    def resolve(
        self,
        base: Base,
        training: DataFile,
        validation: DataFile | None = None,
        start: Start | None = None,
        *,
        cores: int,
    ) -> TrainingSpec:
        """The spec, everything that was left out computed and written down; `training.trained_rows` must be known.

        The job's id follows from all that is in the spec: the same file on the same machine is the same job. Raises
        InvalidJob for fields that do not go together.
        """
        assert training.trained_rows is not None
        method = self._chosen()
        given = {"seed": SEED, **self.given()}
        asked = given.keys() & inspect.signature(defaults.resolve).parameters.keys()
        numbers = defaults.resolve(
            parameters=base.parameters,
            context_length=base.context_length - method.positions,
            rows=training.trained_rows,
            method=self.method,
            objective=self.objective,
            cores=cores,
            drops=method.drops,
            **{name: given[name] for name in asked},
        )
        fields = {
            "job": "",
            "base_model": base.name,
            "weights": base.weights,
            "weights_sha256": base.weights_sha256,
            "renderer_sha256": base.renderer_sha256,
            "training": training,
            "validation": validation,
            "start": start,
            "method": _whole(methods, self.method, self.method_options),
            "objective": _whole(objectives, self.objective, self.objective_options),
            **numbers.model_dump(),
            **given,
        }
        try:
            spec = TrainingSpec(**fields)
        except ValidationError as wrong:
            raise InvalidJob(faults_in(TrainingSpec, wrong)) from wrong
        content = spec.model_dump_json(exclude={"job"}, exclude_defaults=True).encode()
        return spec.model_copy(update={"job": f"ftjob-{hashlib.sha256(content).hexdigest()[:24]}"})

    def _chosen(self) -> Method:
        return method_of(self.method, self.method_options, param="method_options")


def _whole(registry: Registry[Any], name: str, options: dict[str, Any]) -> PluginChoice:
    """The choice with every option written out."""
    read = registry.load(name).Options.read(options, param=f"{registry.kind}_options")
    return PluginChoice(name=name, options=read.model_dump())


def read_draft(written: dict[str, Any]) -> tuple[Draft, list[Fault]]:
    """A job file's content, and everything that is wrong with its fields and options.

    The draft has what is right, so that more can be found out; a field that is needed is empty where it is not right.
    """
    faults: list[Fault] = []
    try:
        draft = Draft.model_validate(written)
    except ValidationError as wrong:
        faults = faults_in(Draft, wrong)
        of = {fault.field.split(".")[0] for fault in faults}
        needed = {name: "" for name, field in Draft.model_fields.items() if field.is_required()}
        draft = Draft.model_validate(needed | {name: value for name, value in written.items() if name not in of})
    for registry, name, options in (
        (methods, draft.method, draft.method_options),
        (objectives, draft.objective, draft.objective_options),
    ):
        faults += _faults_of_choice(registry, name, options, registry.kind, f"{registry.kind}_options")
    faults = [_pointed(fault, draft) if fault.text == UNKNOWN else fault for fault in faults]
    if draft.validation is None and not any(fault.field == "validation" for fault in faults):
        faults += _void(draft)
    free = draft.given()
    if free.get("sharding") == "full" and free.get("processes", 1) == 1:
        faults.append(Fault("sharding", SHARED_AMONG_ONE, "Set processes, or drop the line."))
    return draft, faults


def _pointed(fault: Fault, draft: Draft) -> Fault:
    """A field that is not known where it stands, with the place where it is."""
    *_, name = fault.field.split(".")
    if "." in fault.field and name in Draft.model_fields:
        return replace(fault, hint=f"Write {name} at the top of the file, above every [table].")
    for registry, chosen in ((methods, draft.method), (objectives, draft.objective)):
        having = [one for one in registry.names() if name in registry.load(one).Options.model_fields]
        if chosen in having:
            return replace(
                fault, hint=f"It is an option of the {registry.kind}: write it below [{registry.kind}_options]."
            )
        if having:
            return replace(
                fault, hint=f"It is an option of the {registry.kind} {' or '.join(having)}, not of {chosen}."
            )
    return fault


def _void(draft: Draft) -> list[Fault]:
    """What was written and says nothing without validation rows."""
    return [
        Fault(name, "needs validation rows, and there are none", "Name a validation file or a share, or drop the line.")
        for name in ("patience", "samples")
        if draft.given().get(name)
    ]


def read_spec(data: bytes) -> tuple[TrainingSpec | None, dict[str, Any], list[Fault]]:
    """A spec in JSON, None where it is none; what was written; and everything that is wrong with its fields and options."""
    spec, faults = None, []
    try:
        spec = TrainingSpec.model_validate_json(data)
    except ValidationError as wrong:
        faults = faults_in(TrainingSpec, wrong)
    try:
        written = json.loads(data)
    except ValueError:
        written = {}
    written = written if isinstance(written, dict) else {}
    for registry in (methods, objectives):
        kind, choice = registry.kind, written.get(registry.kind)
        if isinstance(choice, dict):
            name, options = choice.get("name"), choice.get("options", {})
            faults += _faults_of_choice(registry, name, options, f"{kind}.name", f"{kind}.options")
    return spec, written, faults


def _faults_of_choice(registry: Registry[Any], name: Any, options: Any, field: str, options_field: str) -> list[Fault]:
    """What is wrong with a plugin's name and options, each of its right type; where one is not, that has been said."""
    if not isinstance(name, str):
        return []
    try:
        plugin = registry.load(name)
    except LuthierError as unknown:
        return [Fault(field, unknown.message.removeprefix(f"{unknown.param}: "), unknown.hint)]
    if not isinstance(options, dict):
        return []
    try:
        plugin.Options.model_validate(options)
    except ValidationError as wrong:
        return faults_in(plugin.Options, wrong, below=options_field)
    return []
