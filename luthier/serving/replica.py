"""The replica process: the protocol in front, a backend behind."""

from __future__ import annotations

import asyncio
import gc
import hmac
import os
import signal
import stat
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

from pydantic import BaseModel, ValidationError

from luthier.chat.messages import Conversation, Message, Tool, ToolCall
from luthier.chat.renderers.base import Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core import logs
from luthier.core.errors import InvalidParameter, InvalidRequest, LuthierError
from luthier.nets.canary import Canary
from luthier.nets.tokens import Guide
from luthier.serving.address import KEY_VARIABLE, Address, UnixAddress, announcement, parse
from luthier.serving.answer import AnswerChunks
from luthier.serving.backends.base import Asked, Backend, adapter_folder, backends
from luthier.serving.checks import check
from luthier.serving.engine import Engine
from luthier.serving.guides import Guides
from luthier.serving.identity import check_canary, check_identity, check_model, check_renderer, kept_canary
from luthier.serving.protocol import (
    LONGEST_LINE,
    AdapterRef,
    Fault,
    Finish,
    GenerateRequest,
    Health,
    Sampling,
    Turn,
    calls,
)
from luthier.serving.residency import Residency
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage

GRACE_SECONDS = 5.0  # for what is still sent of a call that is too long, and for a key to come

_LONG = 20_000  # characters or tokens, which take a few milliseconds

log = logs.get("replica")
Send = Callable[[BaseModel], Awaitable[None]]


async def serve(spec: ReplicaSpec, storage: Storage, *, key: str = "") -> None:
    """Answer calls at the spec's address until SIGTERM or SIGINT; it listens there once a first token was made.

    Answers that are running then get a few seconds. Over TCP only those are heard who begin with the key, and the port is
    announced in the log. Raises InvalidParameter for a path too long for a socket and for TCP without a key, and what the
    backend raises when it cannot open the base model.
    """
    address = parse(spec.listen)
    if isinstance(address, UnixAddress):
        _prepare_folder(address.path.parent)
    elif not key:
        raise InvalidParameter("listen", f"TCP needs a key in {KEY_VARIABLE}")
    stopping = asyncio.Event()
    for asked in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(asked, stopping.set)
    engine = Engine()
    try:
        renderer = renderer_for(Tokenizer(storage.folder(spec.vocabulary)))
        backend = await engine.call(lambda: backends.load(spec.backend).open(spec, storage))
        engine.serve(backend)
        replica = Replica(spec, storage, engine, backend, renderer)
        await replica.warm_up()
        gc.freeze()  # what stays for good is not gone through again, while every answer waits
        server = await _listening(replica, address, key)
        log.info("ready", replica=spec.replica, base_model=spec.base_model)
        try:
            await stopping.wait()
        finally:
            server.close()
            if isinstance(address, UnixAddress):
                address.path.unlink(missing_ok=True)
            await replica.drain(spec.grace_seconds)
    finally:
        engine.close()


async def _listening(replica: Replica, address: Address, key: str) -> asyncio.Server:
    if isinstance(address, UnixAddress):  # takes a stale socket's place
        return await asyncio.start_unix_server(replica.answer, address.path, limit=LONGEST_LINE, backlog=1024)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await _knows(key, reader):
            await replica.answer(reader, writer)
        else:
            writer.close()

    server = await asyncio.start_server(answer, address.host, address.port, limit=LONGEST_LINE, backlog=1024)
    print(announcement(server.sockets[0].getsockname()[1]), flush=True)
    return server


async def _knows(key: str, reader: asyncio.StreamReader) -> bool:
    """Whether a line with the key comes, in a few seconds; not a byte more than it has is taken in."""
    expected = key.encode() + b"\n"
    try:
        async with asyncio.timeout(GRACE_SECONDS):
            return hmac.compare_digest(await reader.readexactly(len(expected)), expected)
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return False


class Replica:
    """Answers connections; an `Engine`'s thread is the only one that touches the backend."""

    def __init__(
        self, spec: ReplicaSpec, storage: Storage, engine: Engine, backend: Backend, renderer: Renderer
    ) -> None:
        self._spec = spec
        self._storage = storage
        self._engine = engine
        self._backend = backend
        self._renderer = renderer
        self._guides = Guides(renderer)
        self._guiding = ThreadPoolExecutor(1, "guides")  # of their own: a schema may take a whole core for a while
        self._fingerprint = renderer.fingerprint()
        self._residency = Residency(spec.adapters, self._load, self._unload)
        self._connections: set[asyncio.Task[None]] = set()
        self._active = 0

    async def warm_up(self) -> None:
        """Make one real token, and see that a model that was trained answers as it was trained to; be ready for guides."""
        preparing = asyncio.get_running_loop().run_in_executor(self._guiding, self._guides.prepare)
        prompt = self._renderer.prompt(Conversation((Message("user", "Hello"),)))
        asked = Asked(prompt, Sampling(temperature=0, max_tokens=1), self._renderer.stops)
        async for _ in self._engine.answer(asked):
            pass
        folder = self._storage.folder(self._spec.weights)
        precision = self._spec.precision
        await self._engine.call(
            lambda: check_model(self._backend, folder, renderer_sha256=self._fingerprint, precision=precision)
        )
        await preparing

    async def drain(self, seconds: float) -> None:
        """Let running answers end, for so long at most, then cancel them."""
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=seconds)
            for connection in late:
                connection.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: read a call, send its answers; when the caller closes first, the call is cancelled."""
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.CancelledError):
            pass  # the caller has gone, or we go
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def send(answer: BaseModel) -> None:
            writer.write(answer.model_dump_json().encode() + b"\n")
            await writer.drain()

        try:
            line = await reader.readline()
        except ValueError:
            await send(Fault(code=InvalidRequest.code, message=f"A call is longer than {LONGEST_LINE} bytes."))
            async with asyncio.timeout(GRACE_SECONDS):
                while await reader.read(1 << 20):  # what was not read would keep the fault from the caller
                    pass
            return
        answering = asyncio.ensure_future(self._answer(line, send))
        closed = asyncio.ensure_future(reader.read())
        try:
            await asyncio.wait({answering, closed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            answering.cancel()
            closed.cancel()
            await asyncio.gather(answering, closed, return_exceptions=True)

    async def _answer(self, line: bytes, send: Send) -> None:
        try:
            call = calls.validate_json(line)
            if isinstance(call, GenerateRequest):
                await self._generate(call, send)
            else:
                await send(self._health())
        except ValidationError as wrong:
            await send(Fault(code=InvalidRequest.code, message=f"Not a call: {wrong}"))
        except LuthierError as error:
            fault = Fault(code=error.code, message=error.text, param=error.param, retry_after=error.retry_after)
            await send(fault)
        except ConnectionError:
            raise
        except Exception:
            log.exception("a call failed")
            await send(Fault(code="internal_error", message="The replica failed on this request; its log says more."))

    async def _generate(self, request: GenerateRequest, send: Send) -> None:
        self._active += 1
        try:
            finish = await self._stream(request, send)
        finally:
            self._active -= 1
        await send(finish)

    async def _stream(self, request: GenerateRequest, send: Send) -> Finish:
        prompt, guide = await self._prepared(request)
        answer = AnswerChunks(self._renderer, request, prompt)
        stops = self._renderer.stops.union(request.sampling.stop_tokens)
        is_stopped, count = False, 0
        async with self._residency.hold(request.adapter) as adapter:
            asked = Asked(prompt, request.sampling, stops, adapter, guide, scope=request.scope)
            async with aclosing(self._engine.answer(asked)) as made:
                async for tokens in made:
                    for token in tokens:
                        count += 1
                        if is_stopped := token.id in stops:
                            break
                        for chunk in answer.add(token):
                            await send(chunk)
                        if is_stopped := answer.is_stopped:
                            break
                    if is_stopped:
                        break
        for chunk in answer.rest():
            await send(chunk)
        reason = "tool_calls" if answer.has_calls else "stop" if is_stopped or answer.is_stopped else "length"
        return Finish(
            reason=reason, prompt_tokens=len(prompt), completion_tokens=count, cached_tokens=asked.cached_tokens
        )

    async def _prepared(self, request: GenerateRequest) -> tuple[list[int], Guide | None]:
        """The tokens to go on from, and what the answer must look like."""
        prompt = await asyncio.to_thread(self._checked, request) if _is_long(request) else self._checked(request)
        if request.must_call is None and request.json_schema is None and request.regex is None:
            return prompt, None
        loop = asyncio.get_running_loop()
        return prompt, await loop.run_in_executor(self._guiding, self._guides.guide, request)

    def _checked(self, request: GenerateRequest) -> list[int]:
        check(request, self._renderer.tokenizer)
        return self._prompt(request)

    def _prompt(self, request: GenerateRequest) -> list[int]:
        if isinstance(request.prompt, str):
            tokens = self._renderer.tokenizer.encode_document(request.prompt)
        elif request.prompt is not None:
            tokens = request.prompt
        else:
            tools = tuple(Tool(tool.name, tool.description, tool.parameters) for tool in request.tools)
            try:
                return self._renderer.prompt(Conversation(tuple(map(_message, request.messages)), tools))
            except InvalidRequest as refused:
                refused.param = refused.param or ("tools" if tools else "messages")
                raise
        if not tokens:
            raise InvalidParameter("prompt", "is empty, and this model has no token that begins a document")
        return tokens

    def _health(self) -> Health:
        return Health(
            replica=self._spec.replica,
            base_model=self._spec.base_model,
            weights_sha256=self._spec.weights_sha256,
            renderer_sha256=self._fingerprint,
            adapters=self._residency.ids,
            active=self._active,
        )

    async def _load(self, ref: AdapterRef) -> None:
        # Its files come from where they are kept and are read now, so that running answers need not wait for them.
        put, canary = await asyncio.to_thread(self._read, ref)
        await self._engine.call(lambda: self._put_tried(ref, put, canary))

    def _read(self, ref: AdapterRef) -> tuple[Callable[[], None], Canary | None]:
        """What puts an adapter of ours on the device, and what it is tried by then. What it is, is checked before."""
        check_renderer(ref.renderer_sha256, self._fingerprint, f"Adapter {ref.id}")
        base_sha256 = self._spec.weights_sha256
        with adapter_folder(self._storage, ref) as folder:
            check_identity(folder, ref, base_sha256=base_sha256, renderer_sha256=self._fingerprint)
            canary = kept_canary(folder, f"Adapter {ref.id}")
            return self._backend.read_adapter(folder, ref), canary

    def _put_tried(self, ref: AdapterRef, put: Callable[[], None], canary: Canary | None) -> None:
        """Put an adapter on the device and try it; one that answers otherwise than it was trained to does not stay."""
        put()
        try:
            check_canary(self._backend, canary, ref.id, precision=self._spec.precision)
        except BaseException:
            self._backend.unload_adapter(ref.id)
            raise

    async def _unload(self, adapter: str) -> None:
        await self._engine.call(lambda: self._backend.unload_adapter(adapter))


def _is_long(request: GenerateRequest) -> bool:
    """Whether looking at it would keep other answers waiting."""
    given = len(request.prompt or "") + sum(len(turn.content) for turn in request.messages)
    return bool(request.tools) or given > _LONG


def _message(turn: Turn) -> Message:
    calls = tuple(ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls)
    return Message(turn.role, turn.content, tool_calls=calls, tool_call_id=turn.tool_call_id)


def _prepare_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()  # it may lie where others can write: they must not have made it
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InvalidParameter("listen", f"{folder} must be a folder of ours that nobody else can open")
