"""The engine of our own: one base model, all answers in one batch, each with its own adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core import logs
from luthier.core.errors import InternalError, InvalidParameter, InvalidRequest, NoCapacity
from luthier.serving.backends.base import Asked, Backend, Said
from luthier.serving.protocol import AdapterRef
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from luthier.nets.cpu.decoder import Decoder
    from luthier.nets.paged.bank import Thin
    from luthier.nets.paged.batch import PagedBatch
    from luthier.serving.backends.builtin.adapters import PrefixKeys
    from luthier.serving.backends.builtin.batcher import Loaded

log = logs.get("builtin")

_CHUNK_TOKENS, _CHUNK_TOKENS_BESIDE = 512, 128
_CACHE_BYTES = 2**30  # on a CPU, where memory is taken as it is written, and some ahead
_SHARE_OF_GPU = 0.6  # of what is free once the weights are there; adapters and passes need the rest


class Builtin(Backend):
    """Computes with the library's own layers, and steps of few tokens on a CPU compiled where the model's kind is known.

    A model whose layers cannot be batched so is answered one by one.
    """

    def __init__(self, model: PreTrainedModel, spec: ReplicaSpec) -> None:
        """Raises InvalidRequest for a model whose answers cannot be made side by side."""
        import torch

        from luthier.nets.cpu.decoder import decoder_of
        from luthier.nets.paged.bank import Bank
        from luthier.nets.paged.blocks import Blocks
        from luthier.nets.paged.model import PagedModel
        from luthier.nets.paged.pages import Pages
        from luthier.nets.paged.pool import Pool
        from luthier.serving.backends.builtin.batcher import Batcher

        self._model = model
        self._threads = spec.threads
        embeddings: Any = model.get_input_embeddings()
        self._vocabulary = int(embeddings.weight.shape[0])
        self._bank = Bank(model, spec.adapters)
        self._pool = Pool.for_model(model, bytes_at_most=_cache_bytes(spec, model.device))
        self._paged = PagedModel(model, self._pool, self._bank)
        self._decoder: Decoder | None = None
        if model.device.type == "cpu":
            torch.set_num_threads(spec.threads)
            self._decoder = decoder_of(model, self._pool, self._bank, threads=spec.threads)
        self._blocks = Blocks(self._pool.blocks)
        self._batcher = Batcher(
            self._blocks,
            self._logits,
            self._pool.copy,
            context=model.config.max_position_embeddings,
            chunk_tokens=_CHUNK_TOKENS,
            chunk_tokens_beside=_CHUNK_TOKENS_BESIDE,
        )
        self._adapters: dict[str, Loaded] = {}
        self._places = list(range(spec.adapters))
        self._ended: list[Said] = []
        self._pages = Pages(self._pool)

    @classmethod
    def open(cls, spec: ReplicaSpec, storage: Storage) -> Backend:
        from luthier.nets.loading import load_model

        folder = storage.folder(spec.weights)
        model = load_model(folder, precision=spec.precision, expected_sha256=spec.weights_sha256).requires_grad_(False)
        try:
            return cls(model, spec)
        except InvalidRequest as unfit:
            from luthier.serving.backends.builtin.alone import Alone

            log.warning("answers are made one by one", model=spec.base_model, reason=unfit.text)
            return Alone(model)

    def read_adapter(self, folder: Path, ref: AdapterRef) -> Callable[[], None]:
        """LoRA with its kin, and prefixes of P-tuning v2; every tensor of the files must have its place, and every place
        its tensor.
        """
        from luthier.serving.backends.builtin import adapters

        found = adapters.read(folder, ref, self._model, self._pool.shape)
        return lambda: self._put(ref, found)

    def _put(self, ref: AdapterRef, found: dict[str, Thin] | PrefixKeys) -> None:
        from luthier.serving.backends.builtin import adapters
        from luthier.serving.backends.builtin.batcher import Loaded

        if ref.id in self._adapters:
            raise InternalError(f"Adapter {ref.id} is loaded already.")
        root = f"{ref.id}\0{ref.sha256}"
        if isinstance(found, adapters.PrefixKeys):
            self._adapters[ref.id] = Loaded(
                root, prefix=found.positions, prefix_blocks=self._put_prefix(found.both_L2KPD)
            )
            return
        place = self._places.pop()
        try:
            self._bank.put(place, found)
        except BaseException:
            self._bank.put(place, {})
            self._places.append(place)
            raise
        self._adapters[ref.id] = Loaded(root, place)

    def unload_adapter(self, adapter: str) -> None:
        if (loaded := self._adapters.pop(adapter, None)) is None:
            return
        self._ended += self._batcher.end_all(loaded, _not_loaded(adapter))
        self._blocks.release(loaded.prefix_blocks)
        if loaded.place >= 0:
            self._bank.put(loaded.place, {})
            self._places.append(loaded.place)

    def begin(self, asked: Asked) -> None:
        self._check_tokens(asked.prompt)
        self._batcher.begin(asked, self._loaded(asked.adapter))
        self._pages.pause()

    def step(self) -> Sequence[Said]:
        ended, self._ended = self._ended, []
        said = ended or self._batcher.step()
        self._rest()
        return said

    def logprobs(self, tokens: list[int], *, adapter: str | None) -> list[float]:
        import torch

        self._check_tokens(tokens)
        logits_TV = self._batcher.logits_of(tokens, self._loaded(adapter))[:-1]
        following_T1 = torch.tensor(tokens[1:], device=logits_TV.device)[:, None]
        return logits_TV.log_softmax(-1).gather(-1, following_T1)[:, 0].tolist()

    def cancel(self, asked: Asked) -> None:
        self._batcher.cancel(asked)
        self._ended = [said for said in self._ended if said.asked is not asked]
        self._rest()

    def _rest(self) -> None:
        if self._batcher.is_idle:
            self._pages.resume(self._blocks.reached)

    @property
    def is_idle(self) -> bool:
        return self._batcher.is_idle and not self._ended

    def close(self) -> None:
        self._pages.close()
        if self._decoder is not None:
            self._decoder.close()

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        """A tokenizer may know tokens that the model has no row for; one of them would end everybody's answers."""
        if (largest := max(tokens)) >= self._vocabulary:
            raise InvalidParameter("prompt", f"{largest} is no token of this model, which has {self._vocabulary:,}")

    def _loaded(self, adapter: str | None) -> Loaded:
        from luthier.serving.backends.builtin.batcher import NO_ADAPTER

        if adapter is None:
            return NO_ADAPTER
        if adapter not in self._adapters:
            raise _not_loaded(adapter)
        return self._adapters[adapter]

    def _logits(self, batch: PagedBatch) -> torch.Tensor:
        if self._decoder is None or len(batch.ids_N) > self._decoder.most or not self._decoder.knows(self._bank):
            return self._paged.logits(batch)
        import torch

        torch.set_num_threads(1)  # two crews of threads on the same cores would only keep each other waiting
        try:
            return self._decoder.logits(batch)
        finally:
            torch.set_num_threads(self._threads)

    def _put_prefix(self, both_L2KPD: torch.Tensor) -> list[int]:
        from luthier.nets.paged.batch import BLOCK

        blocks = self._batcher.take(-(-both_L2KPD.shape[3] // BLOCK))
        if blocks is None:
            raise NoCapacity("The replica's cache has no room for this model's prefix.", retry_after=5)
        self._pool.write(blocks, both_L2KPD)
        return blocks


def _not_loaded(adapter: str) -> InternalError:
    return InternalError(f"Adapter {adapter} is not loaded.")


def _cache_bytes(spec: ReplicaSpec, device: torch.device) -> int:
    import torch

    if spec.cache_bytes is not None:
        return spec.cache_bytes
    if device.type != "cuda":
        return _CACHE_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(_SHARE_OF_GPU * free)
