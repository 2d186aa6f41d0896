"""Files that expire, on the wire: in the fields of a form and in JSON, told, refused, and gone when their time is over."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from luthier.control.datasets.tables import FileRow
from luthier.testing import jsonl, toy_rows
from tests.unit.api.conftest import Api

ROWS = jsonl(toy_rows(12))
PREFIXES = ["/v1", "/compatible-mode/v1", "/api/paas/v4"]
FORM = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
UPLOAD = {"bytes": len(ROWS), "filename": "a.jsonl", "purpose": "fine-tune", "mime_type": "application/jsonl"}


def uploaded(api: Api, prefix: str, form: dict[str, str]) -> dict[str, Any]:
    return api.call("POST", f"{prefix}/files", api.ada, files={"file": ("a.jsonl", ROWS)}, data=form).json()


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("seconds", [3600, 2592000])
def test_a_file_says_when_it_expires(api: Api, prefix: str, seconds: int) -> None:
    made = uploaded(api, prefix, FORM | {"expires_after[seconds]": str(seconds)})
    assert made["expires_at"] == made["created_at"] + seconds
    assert api.call("GET", f"{prefix}/files/{made['id']}", api.ada).json()["expires_at"] == made["expires_at"]
    listed = api.call("GET", f"{prefix}/files", api.ada).json()["data"]
    assert [file["expires_at"] for file in listed if file["id"] == made["id"]] == [made["expires_at"]]


def test_a_file_of_which_nobody_says_so_does_not_expire(api: Api) -> None:
    assert uploaded(api, "/v1", {"purpose": "fine-tune"})["expires_at"] is None


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_file_of_an_upload_expires_and_the_upload_tells_its_own_time(api: Api, prefix: str) -> None:
    asked = UPLOAD | {"expires_after": {"anchor": "created_at", "seconds": 7200}}
    upload = api.call("POST", f"{prefix}/uploads", api.ada, json=asked).json()
    assert upload["expires_at"] == upload["created_at"] + 3600
    part = api.call("POST", f"{prefix}/uploads/{upload['id']}/parts", api.ada, files={"data": ROWS}).json()["id"]
    path = f"{prefix}/uploads/{upload['id']}/complete"
    file = api.call("POST", path, api.ada, json={"part_ids": [part]}).json()["file"]
    assert file["expires_at"] == file["created_at"] + 7200


def test_null_is_a_file_that_does_not_expire(api: Api) -> None:
    answer = api.call("POST", "/v1/uploads", api.ada, json=UPLOAD | {"expires_after": None})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"expires_after[seconds]": "3599"}, "expires_after[seconds]", "greater than or equal to 3600"),
        ({"expires_after[seconds]": "2592001"}, "expires_after[seconds]", "less than or equal to 2592000"),
        ({"expires_after[seconds]": "soon"}, "expires_after[seconds]", "valid integer"),
        ({"expires_after[seconds]": "9" * 400}, "expires_after[seconds]", "2592000"),
        ({"expires_after[anchor]": "last_used_at"}, "expires_after[anchor]", "should be 'created_at'"),
        ({"expires_after[anchor]": None}, "expires_after[anchor]", "must be sent with expires_after[seconds]"),
        ({"expires_after[seconds]": None}, "expires_after[seconds]", "must be sent with expires_after[anchor]"),
    ],
    ids=str,
)
def test_a_wrong_life_in_a_form_is_refused_by_the_field(
    api: Api, change: dict[str, str | None], param: str, said: str
) -> None:
    form = {name: value for name, value in (FORM | change).items() if value is not None}
    sent = {"files": {"file": ("a.jsonl", ROWS)}, "data": form}
    status, error = api.refused("POST", "/v1/files", api.ada, **sent)
    assert (status, error["param"]) == (400, param)
    assert said in error["message"]


@pytest.mark.parametrize(
    ("sent", "param", "said"),
    [
        ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds", "greater than or equal to 3600"),
        ({"anchor": "created_at", "seconds": 2592001}, "expires_after.seconds", "less than or equal to 2592000"),
        ({"anchor": "created_at", "seconds": 3600.5}, "expires_after.seconds", "valid integer"),
        ({"anchor": "created_at"}, "expires_after.seconds", "Field required"),
        ({"anchor": "created_at", "seconds": None}, "expires_after.seconds", "valid integer"),
        ({"seconds": 3600}, "expires_after.anchor", "Field required"),
        ({"anchor": "used_at", "seconds": 3600}, "expires_after.anchor", "should be 'created_at'"),
        (3600, "expires_after", "valid dictionary"),
    ],
    ids=str,
)
def test_a_wrong_life_in_json_is_refused_by_the_field(api: Api, sent: Any, param: str, said: str) -> None:
    status, error = api.refused("POST", "/v1/uploads", api.ada, json=UPLOAD | {"expires_after": sent})
    assert (status, error["param"]) == (400, param)
    assert said in error["message"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_file_past_its_time_is_not_there(api: Api, prefix: str) -> None:
    made = uploaded(api, prefix, FORM)["id"]
    api.client.portal.call(_let_expire, api, made)  # type: ignore[union-attr]
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert api.call(method, f"{prefix}/files/{made}{path}", api.ada).status_code == 404
    assert made not in [file["id"] for file in api.call("GET", f"{prefix}/files", api.ada).json()["data"]]


def test_a_server_that_runs_removes_it(api: Api) -> None:
    made = uploaded(api, "/v1", FORM)["id"]
    api.until(f"/v1/files/{made}", api.ada, "processed")  # else the lease of whoever reads it may have to run out first
    api.client.portal.call(_let_expire, api, made)  # type: ignore[union-attr]
    assert api.client.portal.call(_removed, api, made)  # type: ignore[union-attr]


async def _removed(api: Api, file_id: str) -> bool:
    """Whether a file that may have expired is removed by itself, soon after the sweeper was woken."""
    for _ in range(100):
        api.parts.db.nudge("expiry")
        await asyncio.sleep(0.02)
        async with api.parts.db.read() as session:
            row = await session.get(FileRow, file_id)
            assert row is not None
            if row.deleted_at is not None:
                return True
    return False


async def _let_expire(api: Api, file_id: str) -> None:
    async with api.parts.db.write() as session:
        row = await session.get(FileRow, file_id)
        assert row is not None
        row.expires_at = datetime.now(UTC)
