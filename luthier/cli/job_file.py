"""A job file and what lies on this machine → the spec of a job: the model found, its data checked, counted and stored.

Everything that is wrong is found before anything is written.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import TOKENIZER_FILES, Tokenizer
from luthier.cli.console import err, literal
from luthier.cli.language import counted
from luthier.control.catalog.cards import Facts, ModelCard, all_installed, installed
from luthier.control.datasets.counting import count_file
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.lengths import summed, under
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
from luthier.training.objectives.base import objectives
from luthier.training.spec import DataFile, Start, TrainingSpec

if TYPE_CHECKING:
    from luthier.control.catalog.installing import Installer


@dataclass(frozen=True)
class Job:
    """A job that can be run. `given` are the fields that somebody wrote down; `notes` what was done with the data."""

    spec: TrainingSpec
    given: frozenset[str]
    notes: tuple[str, ...] = ()


def read_job(path: Path, storage: Storage, installer: Installer, *, cores: int) -> Job:
    """The job of a file: of a whole spec where it ends with .json, otherwise of a job file in TOML.

    The data and the model of a job file are copied into the storage, each once under its hash, and the spec is written
    beside them. Raises InvalidJob with everything that is wrong, before anything is written.
    """
    if path.suffix == ".json":
        return _of_spec(path, storage)
    with tempfile.TemporaryDirectory() as scratch:
        return _JobFile(path, storage, installer, cores, Path(scratch)).job()


def _of_spec(path: Path, storage: Storage) -> Job:
    spec, written, faults = read_spec(path.read_bytes())

    def check(field: str, key: Any, *, is_folder: bool = False) -> None:
        if isinstance(key, str) and not (storage.list(key) if is_folder else storage.exists(key)):
            faults.append(Fault(field, f"nothing is stored under {key!r}", _WHERE))

    objective = _part(written, "objective").get("name")
    for name in ("training", "validation"):
        file = _part(written, name)
        check(f"{name}.key", file.get("key"))
        form = file.get("format", DataFile.model_fields["format"].default)
        if isinstance(form, str):
            try:
                kind = formats.load(form).kind
            except LuthierError as unknown:
                faults.append(_fault(f"{name}.format", unknown))
            else:
                if file and objective in objectives.names() and kind != objectives.load(objective).wants:
                    faults.append(_misfit(f"{name}.format", f"{form!r} has", kind, objective))
    check("weights", written.get("weights"), is_folder=True)
    check("start.key", _part(written, "start").get("key"), is_folder=True)
    if faults or spec is None:
        raise InvalidJob(faults)
    return Job(spec, frozenset(TrainingSpec.model_fields))


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
        self._faults: list[Fault] = []
        self._notes: list[str] = []

    def job(self) -> Job:
        try:
            written = tomllib.loads(self._path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
            raise InvalidJob([Fault("", f"is not TOML: {wrong}")]) from wrong
        draft, self._faults = read_draft(written)
        model = self._model(draft.base_model)
        training, validation = self._data(draft)
        max_length = self._limit(model, draft)
        files = [
            self._counted(field, data, model, max_length, draft)
            for field, data in (("training", training), ("validation", validation))
        ]
        start = self._start(draft.start)
        if self._faults:
            raise InvalidJob(self._faults)

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
        return Job(spec, frozenset(draft.given()), tuple(self._notes))

    def _model(self, name: str) -> _Model | None:
        """An installed model of that name, otherwise that of a folder."""
        if self._is_wrong("base_model"):
            return None
        with self._noted("base_model"):
            if (card := installed(self._storage, name)) is not None:
                folder = self._storage.folder(card.weights, only=TOKENIZER_FILES)
                writes = renderer_for(Tokenizer(folder)).fingerprint()  # as conversations are written now
                return _Model(card.model_copy(update={"renderer_sha256": writes}), folder)
            if (folder := self._place(name)).is_dir():
                with err.status(literal(f"looking at {folder}")):
                    card = self._installer.card_of(_named(folder), folder, Facts(title=folder.name))
                return _Model(card, folder, folder)
            names = ", ".join(card.name for card in all_installed(self._storage)) or "none"
            self._faults.append(
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
        with self._noted("validation"), paths[0].open("wb") as kept, paths[1].open("wb") as split_off:
            division = split(LocalFile(training.path), options, kept, split_off)
            self._notes.append(
                f"{training.name}: {counted(division['training'], 'row')} to train, {division['validation']:,} split off"
            )
            kept_part, split_part = (_Data(training.name, path, training.format) for path in paths)
            return kept_part, split_part
        return training, None

    def _sound(self, field: str, name: str, draft: Draft) -> _Data | None:
        """A file that can be trained on; what has one right answer is put right, as `luthier data repair` does it."""
        if self._is_wrong(field):
            return None
        path = self._place(name)
        if not path.is_file():
            self._faults.append(Fault(field, f"there is no file {str(path)!r}"))
            return None
        with err.status(literal(f"checking {path.name}")):
            report = inspect(LocalFile(path), processes=self._cores)
            if report.repairable:
                path, report = self._repaired(field, path, report)
        wants = objectives.load(draft.objective).wants if draft.objective in objectives.names() else None
        if report.kind is not None and wants not in (None, report.kind):
            self._faults.append(_misfit(field, f"{Path(name).name!r} holds", report.kind, draft.objective))
        elif not report.fit or report.format is None:
            self._faults.append(
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
        with self._noted(field), mended.open("wb") as out:
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
        if model is not None:
            with self._noted("max_length"):
                return limit_of(model.card.name, model.card.context_length, draft.given().get("max_length"))
        return None

    def _counted(
        self, field: str, data: _Data | None, model: _Model | None, max_length: int | None, draft: Draft
    ) -> DataFile | None:
        """A file as a spec names it: by its hash, with the number of rows that will be trained."""
        if data is None or model is None or max_length is None:
            return None
        overlength = draft.given().get("overlength", TrainingSpec.model_fields["overlength"].default)
        with self._noted(field), err.status(literal(f"counting the tokens of {data.name}")):
            lengths = list(
                count_file(LocalFile(data.path), data.format, model.tokenizer, processes=self._cores)
            )  # some bytes a row
            rows = promised(
                data.name,
                summed(lengths),
                under(lengths, max_length, overlength),
                base_model=model.card.name,
                max_length=max_length,
                overlength=overlength,
            )
            sha256 = _sha256_of(data.path)
            return DataFile(key=f"files/by-sha256/{sha256}", sha256=sha256, format=data.format, **rows)
        return None

    def _start(self, named: str | None) -> Start | Path | None:
        """What training goes on from: a folder of the storage, or one that has to be brought there."""
        if named is None:
            return None
        if (folder := self._place(named)).is_dir():
            return folder
        with suppress(LuthierError):  # it is no key, or there is nothing
            return Start(key=named, sha256=digest(self._storage.folder(named)))
        self._faults.append(Fault("start", f"there is no folder {named!r}, neither here nor in the storage"))
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

    def _is_wrong(self, field: str) -> bool:
        return any(fault.field == field for fault in self._faults)

    @contextmanager
    def _noted(self, field: str) -> Iterator[None]:
        """What is refused inside the block is a fault of that field."""
        try:
            yield
        except LuthierError as refused:
            self._faults.append(_fault(field, refused))


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
