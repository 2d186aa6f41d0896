"""luthier deployments: what is sent, and what is said of what comes back."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from typer.testing import CliRunner

from luthier.api.platform.wire import Deployment
from luthier.cli import app, deployments
from luthier.cli.client import Refused

AT = "http://127.0.0.1:8321/api/platform/deployments"


def shown(**changes: Any) -> dict[str, Any]:
    return Deployment.example().model_dump(mode="json") | changes


class Server:
    """Answers in turn with what it was given, the last for ever, and keeps what it was asked."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, Any]] = []

    def __getattr__(self, verb: str) -> Any:
        def ask(address: str, *, body: Any = None, cast_to: object) -> Any:
            self.asked.append((verb, address, body))
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

        return ask


class Clock:
    """The command's own: every other thread of this process goes by the real one."""

    def __init__(self, step: int = 0) -> None:
        self._seconds = itertools.count(step=step)

    def monotonic(self) -> float:
        return next(self._seconds)

    def sleep(self, seconds: float) -> None:
        pass


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    def serve(*answers: dict[str, Any]) -> Server:
        server = Server(*answers)

        @contextmanager
        def connected(url: str, key: str | None) -> Iterator[Server]:
            yield server

        monkeypatch.setattr(deployments, "connected", connected)
        monkeypatch.setattr(deployments, "time", Clock())
        return server

    return serve


def test_one_that_is_waited_for_is_asked_after_until_it_runs(serving: Callable[..., Server]) -> None:
    server = serving(shown(status="pending", ready=0), shown(status="deploying"), shown(status="running", ready=2))
    said = CliRunner().invoke(app, ["deployments", "create", "-m", "toy", "-n", "support", "-c", "2", "--wait"])
    assert said.exit_code == 0
    assert server.asked[0] == ("post", AT, {"model": "toy", "name": "support", "capacity": 2})
    assert [verb for verb, *_ in server.asked[1:]] == ["get", "get"]
    assert "support is running (2 of 2 replicas answer)" in said.output


def test_one_that_failed_is_an_error_with_its_reason(serving: Callable[..., Server]) -> None:
    serving(shown(status="failed", error={"code": "no_capacity", "message": "Too large."}))
    said = CliRunner().invoke(app, ["deployments", "create", "-m", "toy", "--wait"])
    assert isinstance(said.exception, Refused)
    assert str(said.exception) == "The deployment support failed: Too large."


def test_one_that_comes_no_further_is_waited_for_only_for_a_while(
    serving: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"code": "replica_unavailable", "message": "Its process ended."}
    server = serving(shown(status="deploying", ready=0, error=None), shown(status="deploying", ready=0, error=wrong))
    monkeypatch.setattr(deployments, "time", Clock(step=100))
    said = CliRunner().invoke(app, ["deployments", "create", "-m", "toy", "--wait"])
    assert isinstance(said.exception, Refused)
    assert str(said.exception) == "The deployment support is still deploying: Its process ended."
    assert [verb for verb, *_ in server.asked[1:]] == ["get"] * 4


def test_scale_and_delete_name_it_in_the_address(serving: Callable[..., Server]) -> None:
    server = serving(shown(status="updating"))
    assert CliRunner().invoke(app, ["deployments", "scale", "support", "-c", "3"]).exit_code == 0
    assert CliRunner().invoke(app, ["deployments", "delete", "support"]).exit_code == 0
    assert server.asked == [("patch", f"{AT}/support", {"capacity": 3}), ("delete", f"{AT}/support", None)]


def test_every_page_is_listed(serving: Callable[..., Server]) -> None:
    first, last = ({"data": [shown(id=f"deploy-{n}")], "has_more": n > 1} for n in (2, 1))
    server = serving(first, last)
    said = CliRunner().invoke(app, ["deployments", "list", "--json"])
    assert [one["id"] for one in json.loads(said.output)] == ["deploy-2", "deploy-1"]
    assert server.asked[1][1] == f"{AT}?limit=100&after=deploy-2"
