"""The Backend contract: how tokens are made, for one base model and the adapters loaded onto it."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.core.errors import InternalError, InvalidParameter, NotFound, NotOffered
from luthier.core.registry import Registry
from luthier.serving import copies
from luthier.serving.protocol import AdapterRef, Sampling
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest

if TYPE_CHECKING:
    from luthier.nets.tokens import Guide, Token


class AdapterUnreadable(InternalError):
    """An adapter's files are absent, altered, or do not fit the base model."""

    code = "adapter_unreadable"


@dataclass(eq=False)
class Asked:
    """One answer to be made: what `begin` is given, and by which `step` and `cancel` know the answer.

    `adapter` is the id of a loaded one, None the base model itself. A token of `stops` ends the answer and is its last;
    `sampling.stop` and `sampling.stop_tokens` are not looked at. The guide is this answer's own. Work that was done for an
    answer of another `scope`, another project's for instance, is never used for this one.
    """

    prompt: list[int]
    sampling: Sampling
    stops: Collection[int]
    adapter: str | None = None
    guide: Guide | None = None
    scope: str = ""
    cached_tokens: int = 0
    """How many of the prompt's tokens needed no work; the backend writes it before the first token."""


class Said(NamedTuple):
    """What a step made for one answer: a token, the answer's end, both at once, or the error that ended it."""

    asked: Asked
    token: Token | None = None
    error: Exception | None = None
    is_last: bool = False


class Options(BaseModel):
    """What an operator may choose of a backend, in `serving.options`: each field has a default and a description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, values: dict[str, Any]) -> Self:
        """Raises InvalidParameter that names every fault."""
        try:
            return cls.model_validate(values)
        except ValidationError as wrong:
            faults = [(".".join(["serving.options", *map(str, e["loc"])]), e["msg"]) for e in wrong.errors()]
            (name, message), *others = faults
            text = "; ".join([message, *(f"{other}: {said}" for other, said in others)])
            raise InvalidParameter(name, text, hint=f"Known: {', '.join(cls.model_fields) or 'none'}.") from wrong


class Backend(ABC):
    """One base model, open. All of it but `read_adapter` is called from one thread."""

    Options: ClassVar[type[Options]] = Options

    @classmethod
    @abstractmethod
    def open(cls, spec: ReplicaSpec, storage: Storage) -> Backend:
        """Load the base model. Raises InvalidRequest when the weights are not those of the spec."""

    @abstractmethod
    def read_adapter(self, folder: Path, ref: AdapterRef) -> Callable[[], None]:
        """Read an adapter's files, in any thread and beside the steps; what is returned puts it on the device, and is called
        where all else is, once or never.

        `folder` has the bytes that were checked, and may go when this returns. Both raise AdapterUnreadable, putting
        NoCapacity too, and then nothing of it stays.
        """

    @abstractmethod
    def unload_adapter(self, adapter: str) -> None:
        """Take an adapter off the device; an answer that uses it gets no further token but an error."""

    @abstractmethod
    def begin(self, asked: Asked) -> None:
        """Take an answer in, to be made by the steps that follow, beside those that are being made.

        Raises ContextTooLong when the prompt leaves no room for a token, NotOffered for what the backend cannot do, and
        NoCapacity when it could never hold that answer; then the answer is not taken in.
        """

    @abstractmethod
    def step(self) -> Sequence[Said]:
        """Go on with all answers: at most a token more for each. It may be that none has one yet.

        An answer has ended with what `is_last` says or with its error: after a token of its stops, after `max_tokens`, or
        where the context is full. Tokens tell their log-probabilities where `sampling.logprobs` asks for them, and nothing
        comes that a guide does not allow. What fails for one answer leaves the others alone; what is raised ends them all.
        """

    @abstractmethod
    def cancel(self, asked: Asked) -> None:
        """Drop an answer and what it holds. Nothing happens for one that has ended or is not known."""

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Whether no answer is being made."""

    def logprobs(self, tokens: list[int], *, adapter: str | None) -> list[float]:
        """The natural log-probability of every token but the first, each after those before it; the softmax is in fp32.

        `adapter` is the id of a loaded one, None the base model itself. Raises NotOffered where the backend cannot tell.
        """
        raise NotOffered("This backend does not tell how likely a given text is.")

    def close(self) -> None:  # noqa: B027 (most have nothing to let go of)
        """Let go of what the process would not free by ending."""


@contextmanager
def adapter_folder(storage: Storage, ref: AdapterRef) -> Iterator[Path]:
    """A copy of an adapter's files, their hash checked, for as long as this is open. Raises AdapterUnreadable.

    The files themselves may be overwritten between a look at their hash and the next read; nobody else writes to the copy.
    """
    with TemporaryDirectory(dir=copies.folder()) as name:
        copy = Path(name)
        try:
            for file in storage.folder(ref.key).iterdir():
                if file.is_file():
                    shutil.copyfile(file, copy / file.name)
        except (NotFound, FileNotFoundError) as absent:
            raise AdapterUnreadable(f"The files of adapter {ref.id} are not stored under {ref.key!r}.") from absent
        except OSError as problem:
            raise AdapterUnreadable(f"The files of adapter {ref.id} cannot be copied: {problem}.") from problem
        if (found := digest(copy)) != ref.sha256:
            raise AdapterUnreadable(
                f"The files of adapter {ref.id} are not the ones it was published with "
                f"(sha256 {found[:12]}…, expected {ref.sha256[:12]}…)."
            )
        yield copy


def load_adapter(backend: Backend, storage: Storage, ref: AdapterRef) -> None:
    """Read an adapter and put it on the device at once. Raises what both raise."""
    with adapter_folder(storage, ref) as folder:
        put = backend.read_adapter(folder, ref)
    put()


backends: Registry[Backend] = Registry("luthier.serving.backends", Backend, kind="backend")
