"""dashscope.Deployments: as documented, from the call to an answer and the end."""

from __future__ import annotations

import time

import dashscope
import pytest

Deployments = dashscope.Deployments
PATIENCE_SECONDS = 180


def running(name: str):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := Deployments.get(name)).output["status"] in ("PENDING", "DEPLOYING", "UPDATING"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found.output


@pytest.fixture(scope="module")
def deployed(trained) -> str:
    made = Deployments.call(model=trained.finetuned_output, capacity=1, suffix="dep")
    assert made.status_code == 200, made
    assert made.output["status"] == "PENDING"
    name = made.output["deployed_model"]
    assert running(name)["status"] == "RUNNING"
    return name


def test_it_answers_by_its_name(deployed: str) -> None:
    told = dashscope.Generation.call(model=deployed, prompt="abc", max_tokens=5)
    assert (told.status_code, bool(told.usage["output_tokens"])) == (200, True)


def test_it_is_listed_to_the_end(deployed: str) -> None:
    found: list[str] = []
    page, total = 0, 1
    while len(found) < total:
        page += 1
        listed = Deployments.list(page_no=page, page_size=1)
        assert listed.status_code == 200
        total = listed.output["total"]
        found += [one["deployed_model"] for one in listed.output["deployments"]]
    assert deployed in found


def test_it_is_scaled(deployed: str) -> None:
    assert Deployments.scale(deployed, 2).output["capacity"] == 2
    assert running(deployed)["ready_capacity"] == 2
    Deployments.scale(deployed, 1)


def test_one_that_is_deleted_answers_no_more(trained) -> None:
    name = Deployments.call(model=trained.finetuned_output, capacity=1, suffix="gone").output["deployed_model"]
    running(name)
    assert Deployments.delete(name).output["status"] == "success"
    assert dashscope.Generation.call(model=name, prompt="abc").status_code == 404
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := Deployments.get(name)).status_code == 200:
        assert found.output["status"] == "DELETING"
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert (found.status_code, found.code) == (404, "NotFound")


def test_one_that_there_is_not_is_not_found() -> None:
    assert Deployments.get("none").status_code == 404
    assert Deployments.delete("none").status_code == 404
