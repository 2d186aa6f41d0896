"""The uploads calls on the wire: shapes under both prefixes, and what is wrong with a request."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.testing import jsonl, toy_rows
from tests.unit.api.conftest import UPLOAD_LIMIT, Api

ROWS = jsonl(toy_rows(12))
UPLOAD = {"bytes": len(ROWS), "filename": "数据.jsonl", "purpose": "fine-tune", "mime_type": "application/jsonl"}


@pytest.mark.parametrize("prefix", ["/v1", "/compatible-mode/v1"])
def test_a_file_goes_up_in_parts_under_either_prefix(api: Api, prefix: str) -> None:
    upload = api.call("POST", f"{prefix}/uploads", api.ada, json=UPLOAD).json()
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "bytes": len(ROWS),
        "created_at": upload["created_at"],
        "expires_at": upload["created_at"] + 3600,
        "filename": "数据.jsonl",
        "purpose": "fine-tune",
        "status": "pending",
        "file": None,
    }
    parts = []
    for piece in (ROWS[:100], ROWS[100:]):
        part = api.call("POST", f"{prefix}/uploads/{upload['id']}/parts", api.ada, files={"data": piece}).json()
        assert set(part) == {"id", "object", "created_at", "upload_id"}
        assert (part["object"], part["upload_id"]) == ("upload.part", upload["id"])
        parts.append(part["id"])
    asked = {"part_ids": parts, "md5": None, "a_field_of_tomorrow": 1}
    done = api.call("POST", f"{prefix}/uploads/{upload['id']}/complete", api.ada, json=asked).json()
    assert (done["status"], done["file"]["object"], done["file"]["filename"]) == ("completed", "file", "数据.jsonl")
    file = api.until(f"/v1/files/{done['file']['id']}", api.ada, "processed", "error")
    assert (file["status"], file["bytes"]) == ("processed", len(ROWS))
    assert api.call("GET", f"/v1/files/{file['id']}/content", api.ada).content == ROWS
    api.call("DELETE", f"/v1/files/{file['id']}", api.ada)


def test_an_upload_is_cancelled_without_a_body(api: Api) -> None:
    upload = api.call("POST", "/v1/uploads", api.ada, json=UPLOAD).json()["id"]
    headers = {"content-type": "application/json"}
    for _ in range(2):
        assert (
            api.call("POST", f"/v1/uploads/{upload}/cancel", api.ada, headers=headers).json()["status"] == "cancelled"
        )
    status, error = api.refused("POST", f"/v1/uploads/{upload}/parts", api.ada, files={"data": b"x"})
    assert (status, error["code"]) == (400, "upload_ended")
    assert error["message"].endswith("is cancelled. Create a new one, and send all parts to it.")


@pytest.mark.parametrize(
    ("change", "code", "param", "said"),
    [
        ({"bytes": None}, "invalid_request", "bytes", "valid integer"),
        ({"bytes": 0}, "invalid_request", "bytes", "greater than or equal to 1"),
        ({"bytes": 1.5}, "invalid_request", "bytes", "integer"),
        ({"bytes": 10 * 1024**3 + 1}, "invalid_parameter", "bytes", "from 1 to 10,737,418,240, got 10,737,418,241"),
        ({"purpose": "vision"}, "invalid_parameter", "purpose", "must be 'fine-tune', got 'vision'"),
        ({"filename": None}, "invalid_request", "filename", "valid string"),
        ({"filename": "a\0b"}, "invalid_request", "filename", "not text"),
    ],
    ids=str,
)
def test_a_wrong_upload_is_refused_by_the_field(
    api: Api, change: dict[str, Any], code: str, param: str, said: str
) -> None:
    status, error = api.refused("POST", "/v1/uploads", api.ada, json=UPLOAD | change)
    assert (status, error["code"], error["param"]) == (400, code, param)
    assert said in error["message"]


@pytest.mark.parametrize(
    "sent",
    [{"files": {"file": b"x"}}, {"json": {"data": "x"}}, {"data": {"data": "a text"}, "files": {"other": b"x"}}, {}],
)
def test_a_part_without_data_says_so(api: Api, sent: dict[str, Any]) -> None:
    upload = api.call("POST", "/v1/uploads", api.ada, json=UPLOAD).json()["id"]
    status, error = api.refused("POST", f"/v1/uploads/{upload}/parts", api.ada, **sent)
    assert (status, error["param"]) == (400, "data")


def test_a_part_above_the_limit_of_one_request_is_told_the_limit(api: Api) -> None:
    upload = api.call("POST", "/v1/uploads", api.ada, json=UPLOAD).json()["id"]
    path = f"/v1/uploads/{upload}/parts"
    status, error = api.refused("POST", path, api.ada, files={"data": bytes(UPLOAD_LIMIT)})
    assert (status, error["code"]) == (413, "request_too_large")
    assert f"{UPLOAD_LIMIT:,}" in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "part_ids"),
        ({"part_ids": "part-1"}, "part_ids"),
        ({"part_ids": []}, "part_ids"),
        ({"part_ids": ["part-1", 2]}, "part_ids[1]"),
        ({"part_ids": ["part-1"]}, "part_ids"),
        ({"part_ids": [], "md5": "x"}, "md5"),
    ],
)
def test_a_wrong_completion_is_refused_by_the_field(api: Api, body: dict[str, Any], param: str) -> None:
    upload = api.call("POST", "/v1/uploads", api.ada, json=UPLOAD).json()["id"]
    status, error = api.refused("POST", f"/v1/uploads/{upload}/complete", api.ada, json=body)
    assert (status, error["param"]) == (400, param)


def test_the_upload_of_the_tenancy_walk_is_real(api: Api) -> None:
    path = f"/v1/uploads/{api.bobs['upload_id']}"
    part = api.call("POST", f"{path}/parts", api.bob, files={"data": b"more"})
    assert part.status_code == 200
    _, error = api.refused("POST", f"{path}/complete", api.bob, json={"part_ids": [api.bobs["part_id"]]})
    assert "the 1 parts named have 4 bytes, expected 8" in error["message"]
