"""vLLM behind the contract: prompts go to it as token ids and its tokens come back as ids, so our renderer owns the template."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, field_validator

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core import logs
from luthier.core.errors import ContextTooLong, InternalError, InvalidRequest, ReplicaUnavailable
from luthier.nets.tokens import Token
from luthier.serving import copies, engines
from luthier.serving.backends.base import AdapterUnreadable, Asked, Backend, Options, Said
from luthier.serving.backends.vllm import self_check
from luthier.serving.backends.vllm.fitting import check_fit
from luthier.serving.backends.vllm.server import BASE, Refused, Server
from luthier.serving.backends.vllm.streams import Streams
from luthier.serving.backends.vllm.wire import completion
from luthier.serving.protocol import AdapterRef
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest

_WAIT_SECONDS = 0.005
"""How long a step waits for the first thing to come: so long at most a new answer waits before it is sent off."""

_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_OURS = ("--host", "--port", "--uds", "--api-key", "--served-model-name", "--trust-remote-code", "--trust_remote_code")

log = logs.get("vllm")


_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class VllmOptions(Options):
    max_model_len: int | None = Field(
        default=None, ge=16, description="Tokens of prompt and answer together; absent: what the model's files say."
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="Share of the GPU's memory that vLLM takes for weights and cache."
    )
    max_lora_rank: int = Field(
        default=64, description=f"Adapters of a higher rank are refused; one of {', '.join(map(str, _RANKS))}."
    )
    extra_args: tuple[str, ...] = Field(default=(), description="More arguments of `vllm serve`, as a list.")
    ready_within_seconds: float = Field(default=1800, gt=0, description="How long vLLM may take to start.")
    self_check: bool = Field(
        default=True, description="Compare its first tokens with those of transformers in fp32 before it serves."
    )

    @field_validator("max_lora_rank")
    @classmethod
    def _is_one_it_knows(cls, rank: int) -> int:
        if rank not in _RANKS:
            raise ValueError(f"must be one of {', '.join(map(str, _RANKS))}, got {rank}")
        return rank

    @field_validator("extra_args")
    @classmethod
    def _leave_ours_alone(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        if taken := [one for one in arguments if one.split("=")[0] in _OURS]:
            raise ValueError(f"{taken[0]} cannot be given: Luthier says itself where and what vLLM serves")
        return arguments


@dataclass
class _Answer:
    """What has come of one answer and was not told yet."""

    tokens: deque[Token] = field(default_factory=deque)
    error: Exception | None = None
    is_over: bool = False


class Vllm(Backend):
    """Every answer is a stream from the server. Tokens that needed no work are not told: vLLM says it only at the end."""

    Options = VllmOptions

    def __init__(self, server: Server, context: int, weights: Path, options: VllmOptions) -> None:
        self._server = server
        self._context = context
        self._weights = weights
        self._options = options
        self._secret = secrets.token_bytes(32)
        self._copies = copies.folder()
        self._adapters: set[str] = set()
        self._answers: dict[Asked, _Answer] = {}
        self._streams = Streams(server.url, server.key)

    @classmethod
    def open(cls, spec: ReplicaSpec, storage: Storage) -> Vllm:
        """Start the server and see that it answers rightly. Raises EngineNotInstalled, ReplicaUnavailable where it does
        not start, and AnswersWrongly where transformers would have said something else.

        When the server dies later, its answers end in an error, and so does this process: another replica takes its place.
        """
        options = VllmOptions.read(spec.options)
        engine = engines.find("vllm")
        weights = storage.folder(spec.weights)
        if (found := digest(weights, "*.safetensors")) != spec.weights_sha256:
            raise InvalidRequest(
                f"The weights in {weights} are not the ones this was made for "
                f"(sha256 {found[:12]}…, expected {spec.weights_sha256[:12]}…).",
                hint="Install the model again.",
            )
        expected: list[self_check.Expected] = []
        if options.self_check:  # before the server takes the GPU's memory
            expected = self_check.expected(weights, renderer_for(Tokenizer(weights)))
        server = Server(engine.program, _arguments(spec, str(weights), options))
        backend = None
        try:
            backend = cls(server, server.await_ready(options.ready_within_seconds), weights, options)
            if options.self_check:
                self_check.compare(backend, expected, spec.precision)
            else:
                log.warning("vLLM's answers were not checked", option="self_check")
        except BaseException:
            (backend or server).close()
            raise
        server.when_it_dies(end_this_process)
        log.info("ready", version=engine.version, context=backend._context)
        return backend

    def read_adapter(self, folder: Path, ref: AdapterRef) -> Callable[[], None]:
        """Only plain LoRA is taken; every tensor of the file must have its place, and every place its tensor."""
        check_fit(folder, ref.id, self._weights, highest_rank=self._options.max_lora_rank)
        copy = self._copies / ref.id  # vLLM may read it again as long as it is loaded
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)

        def put() -> None:
            try:
                self._call("/v1/load_lora_adapter", {"lora_name": ref.id, "lora_path": str(copy)})
            except BaseException as problem:
                shutil.rmtree(copy, ignore_errors=True)
                if isinstance(problem, Refused):
                    raise AdapterUnreadable(f"vLLM does not take adapter {ref.id}: {problem.said}") from problem
                raise
            self._adapters.add(ref.id)

        return put

    def unload_adapter(self, adapter: str) -> None:
        self._adapters.remove(adapter)
        for asked, answer in self._answers.items():
            if asked.adapter == adapter and not answer.is_over:
                self._streams.cancel(asked)
                answer.tokens.clear()
                answer.error = _not_loaded(adapter)
        try:
            self._call("/v1/unload_lora_adapter", {"lora_name": adapter})
        finally:
            shutil.rmtree(self._copies / adapter, ignore_errors=True)

    def begin(self, asked: Asked) -> None:
        """Raises also ReplicaUnavailable when the server has died, and InternalError for an adapter that is not loaded."""
        if asked.adapter is not None and asked.adapter not in self._adapters:
            raise _not_loaded(asked.adapter)
        if (room := self._context - len(asked.prompt)) < 1:
            raise ContextTooLong(
                f"The prompt is {len(asked.prompt)} tokens long; the model's context holds {self._context} with the answer.",
                hint="Shorten it.",
            )
        body = completion(asked, model=asked.adapter or BASE, room=room, secret=self._secret)
        if not self._server.is_alive:
            raise ReplicaUnavailable("vLLM has died.", hint="Try again.")
        self._answers[asked] = _Answer()
        self._streams.begin(asked, body)

    def step(self) -> Sequence[Said]:
        has_some = any(answer.tokens or answer.is_over or answer.error for answer in self._answers.values())
        for heard in self._streams.heard(0 if has_some else _WAIT_SECONDS):
            if (answer := self._answers.get(heard.asked)) is not None and answer.error is None:
                answer.tokens.extend(heard.tokens)
                answer.error, answer.is_over = heard.error, heard.is_last
        return [said for asked, answer in list(self._answers.items()) if (said := self._next(asked, answer))]

    def cancel(self, asked: Asked) -> None:
        if self._answers.pop(asked, None) is not None:
            self._streams.cancel(asked)

    @property
    def is_idle(self) -> bool:
        return not self._answers

    def close(self) -> None:
        self._streams.close()
        self._server.close()
        for adapter in self._adapters:
            shutil.rmtree(self._copies / adapter, ignore_errors=True)

    def _next(self, asked: Asked, answer: _Answer) -> Said | None:
        if not answer.tokens and answer.error is None and not answer.is_over:
            return None
        token = answer.tokens.popleft() if answer.tokens else None
        if answer.tokens:
            return Said(asked, token)
        if answer.error is not None and token is None:
            del self._answers[asked]
            return Said(asked, error=answer.error)
        if answer.is_over:
            del self._answers[asked]
        return Said(asked, token, is_last=answer.is_over)

    def _call(self, path: str, body: dict[str, str]) -> None:
        try:
            self._server.call("POST", path, body)
        except OSError as gone:
            raise ReplicaUnavailable(f"vLLM does not answer: {gone}", hint="Try again.") from gone


def end_this_process() -> None:
    """As when it is asked to stop: the replica gives its callers a few seconds to hear what happened."""
    os.kill(os.getpid(), signal.SIGTERM)


def _arguments(spec: ReplicaSpec, weights: str, options: VllmOptions) -> list[str]:
    """After the model; what is said twice holds as it was said last, so the operator's come first."""
    return [
        weights,
        *options.extra_args,
        "--dtype", _DTYPES[spec.precision],
        "--gpu-memory-utilization", str(options.gpu_memory_utilization),
        *(["--max-model-len", str(options.max_model_len)] if options.max_model_len else []),
        "--enable-lora",
        "--max-loras", str(spec.adapters),
        "--max-lora-rank", str(options.max_lora_rank),
        "--generation-config", "vllm",  # no defaults for sampling from the model's folder
        "--logprobs-mode", "raw_logprobs",  # the model's own chances
        "--max-logprobs", "20",
    ]  # fmt: skip


def _not_loaded(adapter: str) -> InternalError:
    return InternalError(f"Adapter {adapter} is not loaded.")
