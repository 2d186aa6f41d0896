"""A job file and what lies on this machine → the spec of a job: the model found, its data checked, counted and stored.

Everything that is wrong is found before anything is written.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.chat.examples import Overlength
from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import TOKENIZER_FILES, Tokenizer
from luthier.cli.console import err, literal
from luthier.cli.language import counted
from luthier.control.catalog.cards import Facts, ModelCard, all_installed, installed
from luthier.control.catalog.installing import context_length_of
from luthier.control.datasets.counting import count_file
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.lengths import Selection, summed, under
from luthier.control.datasets.repairing import repair
from luthier.control.datasets.report import DatasetReport
from luthier.control.datasets.transforms.split import SplitOptions, split
from luthier.control.jobs.planning import limit_of, promised
from luthier.core.errors import LuthierError
from luthier.formats.base import formats
from luthier.records.source import LocalFile
from luthier.storage import Storage, digest
from luthier.training.draft import SEED, Draft, read_draft, read_spec
from luthier.training.faults import Fault, InvalidJob
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
from luthier.training.spec import DataFile, Start, TrainingSpec

if TYPE_CHECKING:
    from luthier.control.catalog.installing import Installer


_LISTED = 5  # rows that are left out
_ARTIFACT = "adapter"  # a checkpoint's; the file that says so imports torch, and a run must do that first

_WHY: dict[str, str] = {"too_long": "longer than {max_length:,}", "nothing_trained": "nothing of it is learned"}


@dataclass(frozen=True)
class Limited:
    """What the limit of tokens does to the rows of a file: which are left out, and how many are cut."""

    field: str
    name: str
    max_length: int
    chosen: Selection

    def lines(self) -> Iterator[str]:
        """The same for a person; nothing where every row stays as it is."""
        chosen, left_out = self.chosen, self.chosen.rows - self.chosen.trained_rows
        if left_out:
            yield f"{self.name}: {left_out:,} of {counted(chosen.rows, 'row')} left out"
            for one in chosen.dropped[:_LISTED]:
                why = _WHY[one["reason"]].format(max_length=self.max_length)
                yield f"  row {one['row']:,}: {counted(one['tokens'], 'token')}, {why}"
            if left_out > _LISTED:
                yield f"  and {left_out - _LISTED:,} more; `luthier data stats` counts them all"
        if chosen.truncated:
            yield f"{self.name}: {counted(chosen.truncated, 'row')} cut to {self.max_length:,} tokens"

    def as_json(self) -> dict[str, Any]:
        """The same for a script, with the first thousand rows that are left out."""
        names = ("rows", "trained_rows", "truncated", "dropped_counts", "dropped")
        return {name: getattr(self.chosen, name) for name in names}


@dataclass(frozen=True)
class Job:
    """A job that can be run. `given` are the fields that somebody wrote down; `notes` what was done with the data, and
    `limited` what its limit of tokens will do with it.
    """

    spec: TrainingSpec
    given: frozenset[str]
    notes: tuple[str, ...] = ()
    limited: tuple[Limited, ...] = ()


def read_job(path: Path, storage: Storage, installer: Installer, *, cores: int) -> Job:
    """The job of a file: of a whole spec where it ends with .json, otherwise of a job file in TOML.

    The data and the model of a job file are copied into the storage, each once under its hash, and the spec is written
    beside them. Raises InvalidJob with everything that is wrong, before anything is written.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if path.suffix == ".json":
            return _SpecFile(path, storage, cores, Path(scratch)).job()
        return _JobFile(path, storage, installer, cores, Path(scratch)).job()


class _Faults:
    """Collects what is wrong."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def add(self, field: str, text: str, hint: str | None = None) -> None:
        self.faults.append(Fault(field, text, hint))

    def are_in(self, *fields: str) -> bool:
        """Whether something is wrong with one of these fields, or with a part of it."""
        return any(
            fault.field == field or fault.field.startswith(f"{field}.") for fault in self.faults for field in fields
        )

    @contextmanager
    def noted(self, field: str) -> Iterator[None]:
        """What is refused inside the block is a fault of that field."""
        try:
            yield
        except LuthierError as refused:
            self.faults.append(_fault(field, refused))

    def check_method(self, method: str, field: str) -> None:
        """Whether what the method needs is installed."""
        if method in methods.names() and methods.load(method).is_quantised and find_spec("bitsandbytes") is None:
            self.add(
                field,
                f"{method!r} needs bitsandbytes, which is not installed",
                "Install it with: pip install 'luthier[quantised]'; or choose the method lora.",
            )


class _SpecFile:
    """A whole spec: everything that it names must be there, and be what its hashes say."""

    def __init__(self, path: Path, storage: Storage, cores: int, scratch: Path) -> None:
        self._path = path
        self._storage = storage
        self._cores = cores
        self._scratch = scratch
        self._faults = _Faults()

    def job(self) -> Job:
        spec, written, self._faults.faults = read_spec(self._path.read_bytes().removeprefix(codecs.BOM_UTF8))
        self._check_kinds(written)
        if isinstance(job := written.get("job"), str):
            self._check_key("job", f"runs/{job}")
        for field, key in (("weights", written.get("weights")), ("start.key", _part(written, "start").get("key"))):
            self._check_key(field, key, is_folder=True)
        limited = self._limited(spec) if spec is not None else []
        if self._faults.faults or spec is None:
            raise InvalidJob(self._faults.faults)
        return Job(spec, frozenset(TrainingSpec.model_fields), limited=tuple(limited))

    def _check_key(self, field: str, key: Any, *, is_folder: bool = False) -> None:
        if not isinstance(key, str):
            return
        try:
            is_there = bool(self._storage.list(key)) if is_folder else self._storage.exists(key)
        except (LuthierError, ValueError):
            self._faults.add(field, f"{key!r} is no key of a storage", "Keys are names with single / between them.")
        else:
            if not is_there and field != "job":
                self._faults.add(field, f"nothing is stored under {key!r}", _WHERE)

    def _check_kinds(self, written: dict[str, Any]) -> None:
        """The files' keys, and whether their rows are what the objective wants."""
        objective = _part(written, "objective").get("name")
        for name in ("training", "validation"):
            file = _part(written, name)
            self._check_key(f"{name}.key", file.get("key"))
            form = file.get("format", DataFile.model_fields["format"].default)
            if isinstance(form, str):
                with self._faults.noted(f"{name}.format"):
                    kind = formats.load(form).kind
                    if file and objective in objectives.names() and kind != objectives.load(objective).wants:
                        self._faults.faults.append(_misfit(f"{name}.format", f"{form!r} has", kind, objective))

    def _limited(self, spec: TrainingSpec) -> list[Limited]:
        """Hold what lies in the storage against the spec; what becomes of the rows of its files."""
        faults = self._faults
        faults.check_method(spec.method.name, "method.name")
        if spec.start is not None and not faults.are_in("start", "method"):
            folder = self._storage.folder(spec.start.key.strip("/"))
            if not _can_be_gone_on_from(folder, spec.method.name):
                faults.add("start.key", *_no_artifact(spec.start.key, spec.method.name))
            elif (found := digest(folder)) != spec.start.sha256:
                faults.add("start.sha256", _other(spec.start.sha256, found))
        if faults.are_in("weights"):
            return []
        folder = self._storage.folder(spec.weights)
        if (found := digest(folder, "*.safetensors")) != spec.weights_sha256:
            faults.add("weights_sha256", _other(spec.weights_sha256, found))
        with faults.noted("weights"):
            context = context_length_of(json.loads((folder / "config.json").read_bytes()))
            with faults.noted("max_length"):
                if not faults.are_in("method"):
                    method = methods.load(spec.method.name)
                    taken = method(method.Options.read(spec.method.options, param="method.options")).positions
                    limit_of(spec.base_model, context, spec.max_length, taken=taken)
            files = (("training", spec.training), ("validation", spec.validation))
            found_rows = [self._limited_file(name, file, spec, folder) for name, file in files if file is not None]
            return [one for one in found_rows if one is not None]
        return []

    def _limited_file(self, field: str, file: DataFile, spec: TrainingSpec, model: Path) -> Limited | None:
        if self._faults.are_in(field, "max_length"):
            return None
        path = self._scratch / field
        self._storage.download(file.key, path)
        if (found := _sha256_of(path)) != file.sha256:
            self._faults.add(f"{field}.sha256", _other(file.sha256, found))
            return None
        with self._faults.noted(field), err.status(literal(f"counting the tokens of {file.key}")):
            data = _Data(file.key.rsplit("/", 1)[-1], path, file.format)
            limits = _Limits(spec.base_model, spec.max_length, spec.overlength)
            return _counted(field, data, model, limits, self._cores)[1]
        return None


def _other(wanted: str, found: str) -> str:
    return f"what is stored has another hash ({found[:12]}…) than the spec says ({wanted[:12]}…)"


def _part(written: dict[str, Any], name: str) -> dict[str, Any]:
    part = written.get(name)
    return part if isinstance(part, dict) else {}


_WHERE = "--storage and --data say where it is looked for."


@dataclass(frozen=True)
class _Data:
    """A file whose rows are sound: the name that was given for it, and where its bytes are."""

    name: str
    path: Path
    format: str


@dataclass(frozen=True)
class _Limits:
    """How long a row may be, by which model, and what becomes of a longer one."""

    base_model: str
    max_length: int
    overlength: Overlength


@dataclass(frozen=True)
class _Model:
    """A card, and the folder of the model where it does not lie in the storage yet."""

    card: ModelCard
    tokenizer: Path
    brought_from: Path | None = None


class _JobFile:
    def __init__(self, path: Path, storage: Storage, installer: Installer, cores: int, scratch: Path) -> None:
        self._path = path
        self._storage = storage
        self._installer = installer
        self._cores = cores
        self._scratch = scratch
        self._faults = _Faults()
        self._limited: list[Limited] = []
        self._notes: list[str] = []

    def job(self) -> Job:
        try:
            written = tomllib.loads(self._path.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
            raise InvalidJob([Fault("", f"is not TOML: {wrong}")]) from wrong
        draft, self._faults.faults = read_draft(written)
        self._faults.check_method(draft.method, "method")
        model = self._model(draft.base_model)
        training, validation = self._data(draft)
        max_length = self._limit(model, draft)
        files = [
            self._counted(field, data, model, max_length, draft)
            for field, data in (("training", training), ("validation", validation))
        ]
        start = self._start(draft.start, draft.method)
        if self._faults.faults:
            raise InvalidJob(self._faults.faults)

        assert model is not None and training is not None and files[0] is not None
        if model.brought_from is not None:
            self._installer.keep(model.card, model.brought_from, anew=False)
        if isinstance(start, Path):
            start = self._brought(start)
        spec = draft.resolve(model.card, files[0], files[1], start, cores=self._cores)
        for data, file in ((training, files[0]), (validation, files[1])):
            if data is not None and file is not None and not self._storage.exists(file.key):
                self._storage.upload(data.path, file.key)
        self._storage.write(f"{spec.run_key}/spec.json", spec.model_dump_json(indent=2).encode() + b"\n")
        return Job(spec, frozenset(draft.given()), tuple(self._notes), tuple(self._limited))

    def _model(self, name: str) -> _Model | None:
        """An installed model of that name, otherwise that of a folder."""
        if self._faults.are_in("base_model"):
            return None
        with self._faults.noted("base_model"):
            if (card := installed(self._storage, name)) is not None:
                folder = self._storage.folder(card.weights, only=TOKENIZER_FILES)
                writes = renderer_for(Tokenizer(folder)).fingerprint()  # as conversations are written now
                return _Model(card.model_copy(update={"renderer_sha256": writes}), folder)
            if (folder := self._place(name)).is_dir():
                with err.status(literal(f"looking at {folder}")):
                    card = self._installer.card_of(_named(folder), folder, Facts(title=folder.name))
                return _Model(card, folder, folder)
            names = ", ".join(card.name for card in all_installed(self._storage)) or "none"
            self._faults.faults.append(
                Fault(
                    "base_model",
                    f"there is no model and no folder {name!r}; installed: {names}",
                    "`luthier models add NAME PATH` brings a model in; the first `luthier serve` brings the embedded one.",
                )
            )
        return None

    def _data(self, draft: Draft) -> tuple[_Data | None, _Data | None]:
        """The training file and the validation file, if there is one."""
        training = self._sound("training", draft.training, draft)
        if isinstance(draft.validation, str):
            return training, self._sound("validation", draft.validation, draft)
        if draft.validation is None or training is None:
            return training, None
        options = SplitOptions(ratio=draft.validation, seed=draft.given().get("seed", SEED))
        paths = [self._scratch / name for name in ("kept", "split_off")]
        with self._faults.noted("validation"), paths[0].open("wb") as kept, paths[1].open("wb") as split_off:
            division = split(LocalFile(training.path), options, kept, split_off)
            self._notes.append(
                f"{training.name}: {counted(division['training'], 'row')} to train, {division['validation']:,} split off"
            )
            kept_part, split_part = (
                _Data(f"{training.name} ({what})", path, training.format)  # rows are counted anew in each part
                for what, path in zip(("after the split", "split off"), paths, strict=True)
            )
            return kept_part, split_part
        return training, None

    def _sound(self, field: str, name: str, draft: Draft) -> _Data | None:
        """A file that can be trained on; what has one right answer is put right, as `luthier data repair` does it."""
        if self._faults.are_in(field):
            return None
        path = self._place(name)
        if not path.is_file():
            self._faults.faults.append(Fault(field, f"there is no file {str(path)!r}"))
            return None
        with err.status(literal(f"checking {path.name}")):
            report = inspect(LocalFile(path), processes=self._cores)
            if report.repairable:
                path, report = self._repaired(field, path, report)
        wants = objectives.load(draft.objective).wants if draft.objective in objectives.names() else None
        if report.kind is not None and wants not in (None, report.kind):
            self._faults.faults.append(_misfit(field, f"{Path(name).name!r} holds", report.kind, draft.objective))
        elif not report.fit or report.format is None:
            self._faults.faults.append(
                Fault(
                    field,
                    f"{Path(name).name!r} cannot be trained on: {report.summary or 'it has no rows'}",
                    f"`luthier data check {path}` lists everything that is wrong with it.",
                )
            )
        else:
            return _Data(Path(name).name, path, report.format)
        return None

    def _repaired(self, field: str, path: Path, report: DatasetReport) -> tuple[Path, DatasetReport]:
        """The file put right and what is found of it then; as it was, where something is left that only a person can know."""
        mended = self._scratch / f"{field}.repaired"
        with self._faults.noted(field), mended.open("wb") as out:
            changes = repair(LocalFile(path), out)
            out.flush()
            again = inspect(LocalFile(mended), processes=self._cores)
            if again.fit:
                counts = ", ".join(f"{code} {count:,}" for code, count in changes.counts.items())
                self._notes.append(f"{path.name}: put right ({counts}); `luthier data repair` shows every change")
                return mended, again
        return path, report

    def _limit(self, model: _Model | None, draft: Draft) -> int | None:
        """Tokens that a row may have."""
        if model is not None and not self._faults.are_in("max_length"):
            with self._faults.noted("max_length"):
                card, asked = model.card, draft.given().get("max_length")
                return limit_of(card.name, card.context_length, asked, taken=draft.positions)
        return None

    def _counted(
        self, field: str, data: _Data | None, model: _Model | None, max_length: int | None, draft: Draft
    ) -> DataFile | None:
        """A file as a spec names it: by its hash, with the number of rows that will be trained."""
        if data is None or model is None or max_length is None:
            return None
        overlength = draft.given().get("overlength", TrainingSpec.model_fields["overlength"].default)
        with self._faults.noted(field), err.status(literal(f"counting the tokens of {data.name}")):
            limits = _Limits(model.card.name, max_length, overlength)
            rows, limited = _counted(field, data, model.tokenizer, limits, self._cores)
            self._limited.append(limited)
            sha256 = _sha256_of(data.path)
            return DataFile(key=f"files/by-sha256/{sha256}", sha256=sha256, format=data.format, **rows)
        return None

    def _start(self, named: str | None, method: str) -> Start | Path | None:
        """What training goes on from: a folder of the storage, or one that has to be brought there; a checkpoint's artifact
        where its folder is named.
        """
        if named is None or self._faults.are_in("start", "method"):
            return None
        is_found = False
        for name in (named, f"{named.rstrip('/')}/{_ARTIFACT}"):
            if (folder := self._place(name)).is_dir():
                is_found = True
                if _can_be_gone_on_from(folder, method):
                    return folder
        for key in (named.strip("/"), f"{named.strip('/')}/{_ARTIFACT}"):
            with suppress(LuthierError, ValueError):  # it is no key, or there is nothing
                folder = self._storage.folder(key)
                is_found = True
                if _can_be_gone_on_from(folder, method):
                    return Start(key=key, sha256=digest(folder))
        if is_found:
            self._faults.add("start", *_no_artifact(named, method))
        else:
            self._faults.add("start", f"there is no folder {named!r}, neither here nor in the storage")
        return None

    def _brought(self, folder: Path) -> Start:
        sha256 = digest(folder)
        key = f"artifacts/by-sha256/{sha256}"
        for path in sorted(path for path in folder.iterdir() if path.is_file()):
            self._storage.upload(path, f"{key}/{path.name}")
        return Start(key=key, sha256=sha256)

    def _place(self, name: str) -> Path:
        """A path as it is written in the file: from its folder."""
        return self._path.parent / os.path.expanduser(name)


def _counted(field: str, data: _Data, model: Path, limits: _Limits, cores: int) -> tuple[dict[str, Any], Limited]:
    """What is promised of a file's rows, and what the limit does to them. Raises DatasetInvalid as `promised` does."""
    lengths = list(count_file(LocalFile(data.path), data.format, model, processes=cores))  # some bytes a row
    chosen = under(lengths, limits.max_length, limits.overlength)
    rows = promised(
        data.name,
        summed(lengths),
        chosen,
        base_model=limits.base_model,
        max_length=limits.max_length,
        overlength=limits.overlength,
    )
    return rows, Limited(field, data.name, limits.max_length, chosen)


def _can_be_gone_on_from(folder: Path, method: str) -> bool:
    """Whether a folder has the files of an artifact of that method."""
    return any(path.is_file() and fnmatch(path.name, methods.load(method).artifact_files) for path in folder.iterdir())


def _no_artifact(named: str, method: str) -> tuple[str, str]:
    """What is wrong with such a folder, and what to do."""
    return (
        f"{named!r} is no artifact of the method {method!r}: it has no file {methods.load(method).artifact_files}",
        f"Name the folder of a checkpoint or of its {_ARTIFACT}, made by the same method.",
    )


def _fault(field: str, refused: LuthierError) -> Fault:
    return Fault(field, refused.message.removeprefix(f"{refused.param}: "), refused.hint)


def _misfit(field: str, what: str, kind: str, objective: str) -> Fault:
    """Rows of a kind that the objective cannot use."""
    wants = objectives.load(objective).wants
    fitting = [name for name in objectives.names() if objectives.load(name).wants == kind]
    return Fault(
        field,
        f"{what} {kind} rows; the objective {objective!r} wants {wants} rows",
        f"Objectives for {kind} rows: {', '.join(fitting)}." if fitting else f"Use a file of {wants} rows.",
    )


def _named(folder: Path) -> str:
    """A name that a model may have, from that of its folder."""
    name = "".join(
        sign if sign.isascii() and (sign.isalnum() or sign in "._-") else "-" for sign in folder.resolve().name
    )
    return name.lower().lstrip("._-")[:63] or "model"


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
