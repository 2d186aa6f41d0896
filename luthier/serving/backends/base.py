"""The Backend contract: how tokens are made, for one base model and the adapters loaded onto it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import InternalError, NotFound, NotOffered
from luthier.core.registry import Registry
from luthier.serving.protocol import AdapterRef, Sampling
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest

if TYPE_CHECKING:
    from luthier.nets.tokens import Guide, Token


class AdapterUnreadable(InternalError):
    """An adapter's files are absent, altered, or do not fit the base model."""

    code = "adapter_unreadable"


class Backend(ABC):
    """One base model, open. Its methods, and the steps of what `generate` returns, are called one at a time."""

    @classmethod
    @abstractmethod
    def open(cls, spec: ReplicaSpec, storage: Storage) -> Backend:
        """Load the base model. Raises InvalidRequest when the weights are not those of the spec."""

    @abstractmethod
    def load_adapter(self, ref: AdapterRef) -> None:
        """Put an adapter on the device. Raises AdapterUnreadable, and then nothing of it stays."""

    @abstractmethod
    def unload_adapter(self, adapter: str) -> None:
        """Take an adapter off the device; no stream that uses it may take another step."""

    @abstractmethod
    def generate(
        self,
        prompt: list[int],
        *,
        adapter: str | None,
        sampling: Sampling,
        stops: Collection[int],
        guide: Guide | None = None,
    ) -> Iterator[Token]:
        """Yield the answer's tokens, each made when it is asked for; steps of several answers may alternate.

        `adapter` is the id of a loaded one, None the base model itself. A token of `stops` ends the answer and is
        yielded; an answer that ends without one has reached `max_tokens` or the end of the context. `sampling.stop` and
        `sampling.stop_tokens` are not looked at here. Tokens tell their log-probabilities where `sampling.logprobs` asks
        for them. Nothing comes that the guide, which is this answer's own, does not allow.

        Raises ContextTooLong at the first step when the prompt leaves no room, and NotOffered for a guide where the
        backend cannot follow one.
        """

    def logprobs(self, tokens: list[int], *, adapter: str | None) -> list[float]:
        """The natural log-probability of every token but the first, each after those before it; the softmax is in fp32.

        `adapter` is the id of a loaded one, None the base model itself. Raises NotOffered where the backend cannot tell.
        """
        raise NotOffered("This backend does not tell how likely a given text is.")


def adapter_folder(storage: Storage, ref: AdapterRef) -> Path:
    """The files of an adapter as a folder, their hash checked. Raises AdapterUnreadable."""
    try:
        folder = storage.folder(ref.key)
    except NotFound as absent:
        raise AdapterUnreadable(f"The files of adapter {ref.id} are not stored under {ref.key!r}.") from absent
    if (found := digest(folder)) != ref.sha256:
        raise AdapterUnreadable(
            f"The files of adapter {ref.id} are not the ones it was published with "
            f"(sha256 {found[:12]}…, expected {ref.sha256[:12]}…)."
        )
    return folder


backends: Registry[Backend] = Registry("luthier.serving.backends", Backend, kind="backend")
