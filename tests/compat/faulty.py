"""A server whose answers fail as its model's name says: `python -m tests.compat.faulty --port N --data FOLDER`.

The dialects, the key and the wire are the real ones; only the services behind them are replaced, since most of these errors
cannot be had at will. `fail-NAME` fails at once, `fail-NAME-late` after the first word of a stream, `fail-NAME-once-ANYTHING` the
first time it is called and not again; looking such a model up in the catalog fails at once.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar

import uvicorn

from luthier.api.edge import TooLarge
from luthier.app import assemble, build
from luthier.control.catalog.service import Catalog, NamedModel
from luthier.control.inference.service import CompletionRequest, Delta, Inference
from luthier.control.tenancy import Principal
from luthier.core import errors, logs
from luthier.core.settings import Settings
from luthier.serving.protocol import Finish, TokenChunk

FAILURES: dict[str, Exception] = {
    "invalid": errors.InvalidParameter("temperature", "must be at most 2"),
    "too-long": errors.ContextTooLong("The messages are longer than the model's context."),
    "denied": errors.PermissionDenied("This key may not do that."),
    "absent": errors.ModelNotFound("There is no such model.", param="model"),
    "undeployed": errors.ModelNotDeployed("The model must be deployed first.", param="model"),
    "conflict": errors.InvalidTransition("The job has ended already."),
    "limited": errors.RateLimited("Too many requests.", retry_after=1),
    "fault": errors.InternalError("A fault of ours."),
    "crash": RuntimeError("what nobody expected"),
    "too-large": TooLarge("The request is larger than what is taken here."),
    "unavailable": errors.ReplicaUnavailable("The model is being loaded.", retry_after=1),
}


class FaultyCatalog(Catalog):
    """Fails when it is asked for a model by such a name, which is for callers that call none."""

    async def get(self, who: Principal, name: str) -> NamedModel:
        if name.startswith("fail-"):
            raise FAILURES[name.removeprefix("fail-")]
        return await super().get(who, name)


class Faulty(Inference):
    failed: ClassVar[set[str]] = set()
    """Models that were called before."""

    async def complete(self, who: Principal, request: CompletionRequest) -> AsyncGenerator[Delta, None]:
        name = request.model.removeprefix("fail-")
        name, is_once, _ = name.partition("-once-")
        if is_once and request.model in self.failed:
            return _greeting()
        self.failed.add(request.model)
        if not name.endswith("-late"):
            raise FAILURES[name]

        async def begun() -> AsyncGenerator[Delta, None]:
            yield Delta(0, TokenChunk(text="Hello"))
            raise FAILURES[name.removesuffix("-late")]

        return begun()


async def _greeting() -> AsyncGenerator[Delta, None]:
    yield Delta(0, TokenChunk(text="Hello"))
    yield Delta(0, Finish(reason="stop", prompt_tokens=1, completion_tokens=1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    asked = parser.parse_args()
    logs.configure("critical")  # its faults are meant
    told: dict[str, Any] = {"server": {"data": asked.data}, "models": {"embedded": False}}
    settings = Settings(**told)
    parts = assemble(settings)
    catalog = parts.services.catalog
    faulty = Faulty(catalog, parts.services.inference.routing)
    services = dataclasses.replace(
        parts.services, inference=faulty, catalog=FaultyCatalog(catalog.db, catalog.storage, catalog.clock)
    )
    parts = dataclasses.replace(parts, services=services)
    uvicorn.run(build(settings, parts=parts), host="127.0.0.1", port=asked.port, log_level="warning")


if __name__ == "__main__":
    main()
