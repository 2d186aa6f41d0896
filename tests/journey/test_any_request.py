"""No request makes the server stumble: a short form of tests/fuzz/api.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.api import Fuzzed, damaged, documented, fuzzed, operations

pytestmark = pytest.mark.timeout(600)  # hundreds of requests to a real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    with fuzzed(tmp_path_factory.mktemp("fuzzed")) as server:
        yield server


def test_every_request_is_answered_as_the_document_says(server: Fuzzed) -> None:
    for operation in operations(server):
        documented(server, operation, examples=4)
        damaged(server, operation, examples=3)
    assert server.statuses[200] and server.statuses[400] and server.statuses[404]
