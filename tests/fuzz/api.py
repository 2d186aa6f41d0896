"""Requests made from the OpenAPI document, and damaged ones, against a running server; a short form of it runs in the tests.

    python -m tests.fuzz.api                      # 100 requests an operation, as many damaged ones
    python -m tests.fuzz.api --requests 2000      # as long as you like
    python -m tests.fuzz.api --only /api/v1       # operations whose path begins so

Every answer must be below 500, in the shape that the document promises, and an error in the envelope of its path. Jobs that
are created have a trainer that ends at once; what answers is the echo backend. Stops at the first fault, with the request.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from luthier.testing import jsonl, toy_model, toy_rows
from tests.servers import KEY, RunningServer, install_toy, wait_for

TIMEOUT_SECONDS = 60
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@dataclass
class Fuzzed:
    """A running server, and ids of things that are there."""

    url: str
    things: dict[str, list[str]]
    session: requests.Session = field(default_factory=requests.Session)
    statuses: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.session.headers["authorization"] = f"Bearer {KEY}"


@contextmanager
def fuzzed(folder: Path) -> Iterator[Fuzzed]:
    """A server with a file, a job, its model and its checkpoints, that can train nothing more."""
    toy = toy_model(folder / "toy")
    install_toy(folder / "data", toy)
    server = RunningServer(folder / "data", LUTHIER_SERVING__BACKEND="echo", LUTHIER_TRAINING__ATTEMPTS="1")
    try:
        server.start()
        things = _fill(server)
        server.stop()
        server.environment["LUTHIER_TRAINING__PYTHON"] = "/bin/false"
        server.start()
        yield Fuzzed(server.url, things)
        assert server.process is not None and server.process.poll() is None, server.log
    finally:
        server.stop()


def _fill(server: RunningServer) -> dict[str, list[str]]:
    client = server.client()
    file = client.files.create(file=("rows.jsonl", jsonl(toy_rows(12))), purpose="fine-tune")
    hyperparameters: Any = {"n_epochs": 1, "batch_size": 6}
    job = client.fine_tuning.jobs.create(model="toy", training_file=file.id, hyperparameters=hyperparameters)
    done = wait_for(lambda: (now := client.fine_tuning.jobs.retrieve(job.id)).status == "succeeded" and now)
    checkpoints = [one.fine_tuned_model_checkpoint for one in client.fine_tuning.jobs.checkpoints.list(job.id)]
    upload = client.uploads.create(bytes=8, filename="rows.jsonl", mime_type="application/jsonl", purpose="fine-tune")
    models = ["toy", done.fine_tuned_model, *checkpoints]
    return {"file": [file.id], "job": [job.id], "upload": [upload.id], "model": models, "name": models}


def operations(server: Fuzzed, only: str = "") -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    last = [one for one in found if one.method == "delete"]  # until then the things are there
    return [one for one in [*(one for one in found if one not in last), *last] if one.path.startswith(only)]


def documented(server: Fuzzed, operation: Any, *, examples: int) -> None:
    """Requests of one operation as the document describes them, half of them about things that are there."""

    @_settled(examples)
    @given(case=operation.as_strategy(), dice=st.randoms(use_true_random=False))
    def check(case: Any, dice: Any) -> None:
        _point_at_things(case, server.things, dice)
        response = case.call(session=server.session, timeout=TIMEOUT_SECONDS)
        server.statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)
        _check_envelope(operation.path, response.status_code, response.content)

    check()


def damaged(server: Fuzzed, operation: Any, *, examples: int) -> None:
    """Bodies that are no JSON, or JSON of another shape, under whatever content type."""

    @_settled(examples)
    @given(body=_BODIES, kind=st.sampled_from(_KINDS), method=st.sampled_from(["", "", "", "PUT", "PATCH"]))
    def check(body: bytes, kind: str, method: str) -> None:
        path = operation.path.replace("{", "").replace("}", "")
        response = server.session.request(
            method or operation.method.upper(),
            server.url + path,
            data=body,
            headers={"content-type": kind},
            timeout=TIMEOUT_SECONDS,
        )
        server.statuses[response.status_code] += 1
        assert response.status_code < 500, (operation.label, kind, body, response.text)
        _check_envelope(path, response.status_code, response.content)

    check()


_KINDS = [
    "application/json",
    "text/plain",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "nonsense",
]
_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
_BODIES = st.one_of(
    st.binary(max_size=60),
    _ANYTHING.map(lambda value: json.dumps(value).encode()),
    _ANYTHING.map(lambda value: json.dumps(value).encode()[:-1]),
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("model", "messages", "input", "prompt", "stream"), _ANYTHING)
    ).map(lambda value: json.dumps(value).encode()),
)


def _point_at_things(case: Any, things: dict[str, list[str]], dice: Any) -> None:
    """Put ids of what is there in the places of half of those that were made up."""
    for place in (case.path_parameters, case.body, case.query):
        if not isinstance(place, dict):
            continue
        for name in place:
            kind = name.removesuffix("_id").removeprefix("training_").removeprefix("validation_").removesuffix("_ids")
            if kind in things and dice.random() < 0.5:
                one = dice.choice(things[kind])
                place[name] = [one] if isinstance(place[name], list) else one


def _check_envelope(path: str, status: int, content: bytes) -> None:
    if status < 400 or status == 499:
        return
    body = json.loads(content)
    if path.startswith("/api/v1/") and path != "/api/v1/chat/completions":
        assert {"code", "message", "request_id"} <= set(body) and "error" not in body, (path, body)
        assert all(isinstance(body[name], str) and body[name] for name in ("code", "message", "request_id")), body
    elif path.startswith(("/v1/", "/compatible-mode/v1/", "/api/paas/v4/", "/api/v1/")):
        assert set(body) == {"error"} and {"message", "type", "param", "code"} <= set(body["error"]), (path, body)
        assert body["error"]["message"] and isinstance(body["error"]["code"], str), body
    else:
        assert body["message"] and body["code"], (path, body)


def _settled(examples: int) -> settings:
    """The same requests at every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100, help="an operation, and as many damaged ones")
    parser.add_argument("--only", default="", help="operations whose path begins so")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, fuzzed(Path(folder)) as server:
        for operation in operations(server, asked.only):
            documented(server, operation, examples=asked.requests)
            damaged(server, operation, examples=asked.requests)
            print(operation.label, flush=True)
        print(f"{sum(server.statuses.values()):,} answers: {dict(sorted(server.statuses.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
