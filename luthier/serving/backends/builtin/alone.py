"""A model whose answers cannot be made side by side: transformers and PEFT, one adapter at work in each step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import InternalError
from luthier.nets.tokens import Token
from luthier.serving import adapters
from luthier.serving.backends.base import AdapterUnreadable, Asked
from luthier.serving.one_by_one import OneByOne
from luthier.serving.protocol import AdapterRef
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel


class Alone(OneByOne):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self._model = model
        self._layers: list[LoraLayer] = []  # the model's layers that hold adapters
        self._adapters: set[str] = set()
        self._active: str | None = None

    @classmethod
    def open(cls, spec: ReplicaSpec, storage: Storage) -> Alone:
        from luthier.nets.loading import load_model

        folder = storage.folder(spec.weights)
        model = load_model(folder, precision=spec.precision, expected_sha256=spec.weights_sha256)
        return cls(model.requires_grad_(False))

    def read_adapter(self, folder: Path, ref: AdapterRef) -> Callable[[], None]:
        """Only plain LoRA is taken; every tensor of the file must have its place, and every place its tensor."""
        from peft import LoraConfig

        tensors = adapters.read_adapter(folder, ref).tensors
        config = LoraConfig.from_pretrained(str(folder))
        assert isinstance(config, LoraConfig)
        config.inference_mode = True
        config.init_lora_weights = False  # all of them are read

        def put() -> None:
            try:
                self._insert(ref, config, tensors)
            except BaseException:
                self._remove(ref.id)
                raise
            self._adapters.add(ref.id)

        return put

    def unload_adapter(self, adapter: str) -> None:
        self._adapters.remove(adapter)
        self._remove(adapter)

    def generate(self, asked: Asked) -> Iterator[Token]:
        from luthier.nets.generate import decode
        from luthier.nets.sampling import Sampler

        sampling = asked.sampling
        sampler = Sampler(
            **sampling.model_dump(exclude={"max_tokens", "stop", "stop_tokens"}), prompt=asked.prompt, guide=asked.guide
        )
        steps = decode(self._model, asked.prompt, sampler, stops=asked.stops, max_tokens=sampling.max_tokens)
        while True:
            self._activate(asked.adapter)  # before every step: another answer may have had the last one
            if (token := next(steps, None)) is None:
                return
            yield token

    def logprobs(self, tokens: list[int], *, adapter: str | None) -> list[float]:
        import torch

        self._activate(adapter)
        ids_1T = torch.tensor([tokens], device=self._model.device)
        with torch.inference_mode():
            logits_TV = self._model(input_ids=ids_1T, use_cache=False).logits[0, :-1]
            return logits_TV.float().log_softmax(-1).gather(-1, ids_1T[0, 1:, None])[:, 0].tolist()

    def _insert(self, ref: AdapterRef, config: LoraConfig, tensors: dict[str, torch.Tensor]) -> None:
        from peft.functional import (
            cast_adapter_dtype,
            get_peft_model_state_dict,
            inject_adapter_in_model,
            set_peft_model_state_dict,
        )

        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that there is an adapter already
                inject_adapter_in_model(config, self._model, ref.id)
        except ValueError as unfit:
            raise AdapterUnreadable(f"Adapter {ref.id} does not fit the base model: {unfit}") from unfit
        cast_adapter_dtype(self._model, ref.id)  # fp32, as it was trained
        state = get_peft_model_state_dict(self._model, adapter_name=ref.id)
        places = {
            f"base_model.model.{name}": tuple(tensor.shape) for name, tensor in state.items()
        }  # as files name them
        if problems := adapters.differences(places, {name: tuple(tensor.shape) for name, tensor in tensors.items()}):
            raise AdapterUnreadable(f"Adapter {ref.id} does not fit the base model: {'; '.join(problems)}.")
        set_peft_model_state_dict(self._model, tensors, adapter_name=ref.id)
        self._settle()

    def _remove(self, adapter: str) -> None:
        from peft.functional import delete_adapter

        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that another one becomes active
            delete_adapter(self._model, adapter, "lora_")
        self._model.peft_config.pop(adapter, None)
        self._settle()

    def _settle(self) -> None:
        """After PEFT changed the model: no dropout, nothing to train, no adapter at work."""
        from peft.tuners.lora import LoraLayer

        self._model.eval().requires_grad_(False)
        self._layers = [module for module in self._model.modules() if isinstance(module, LoraLayer)]
        self._use(None)

    def _activate(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise InternalError(f"Adapter {adapter} is not loaded.")  # PEFT would let the base model answer
        if adapter != self._active:
            self._use(adapter)

    def _use(self, adapter: str | None) -> None:
        for layer in self._layers:
            layer.set_adapter([] if adapter is None else [adapter], inference_mode=True)
        self._active = adapter
