"""What the module API makes of each error, at once and inside a stream; it never raises."""

from __future__ import annotations

import asyncio

import pytest
from dashscope import Generation
from dashscope.aigc.generation import AioGeneration

ERRORS = [
    ("invalid", 400, "InvalidParameter"),
    ("too-long", 400, "InvalidParameter"),
    ("conflict", 400, "UnsupportedOperation"),
    ("denied", 403, "AccessDenied"),
    ("absent", 404, "Model.NotExist"),
    ("undeployed", 404, "Model.NotExist"),
    ("limited", 429, "Throttling.RateQuota"),
    ("fault", 500, "InternalError"),
    ("crash", 500, "InternalError"),
    ("unavailable", 503, "ServiceUnavailable"),
]


@pytest.mark.parametrize(("name", "status", "code"), ERRORS)
def test_an_error_keeps_its_status_code_message_and_id(faulty: str, name: str, status: int, code: str) -> None:
    told = Generation.call(f"fail-{name}", "abc", base_address=faulty)
    assert (told.status_code, told.code) == (status, code)
    assert told.message and told.request_id.startswith("req-")
    (told,) = Generation.call(f"fail-{name}", "abc", base_address=faulty, stream=True)
    assert (told.status_code, told.code) == (status, code)


@pytest.mark.parametrize(("name", "status", "code"), ERRORS)
def test_an_error_inside_a_stream_keeps_them_too(faulty: str, name: str, status: int, code: str) -> None:
    first, last = Generation.call(f"fail-{name}-late", "abc", base_address=faulty, stream=True)
    assert (first.status_code, first.output.text) == (200, "Hello")
    assert (last.status_code, last.code) == (status, code)
    assert last.message and last.request_id.startswith("req-")


@pytest.mark.parametrize(("name", "status", "code"), ERRORS)
def test_the_asynchronous_client_reads_them_alike(faulty: str, name: str, status: int, code: str) -> None:
    async def asked():
        told = await AioGeneration.call(f"fail-{name}", "abc", base_address=faulty)
        stream = await AioGeneration.call(f"fail-{name}-late", "abc", base_address=faulty, stream=True)
        return [told, *[frame async for frame in stream]]

    told, first, last = asyncio.run(asked())
    assert (told.status_code, told.code) == (last.status_code, last.code) == (status, code)
    assert first.status_code == 200 and last.message
