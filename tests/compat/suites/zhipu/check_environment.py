"""A client that is told of the server by its environment alone."""

from __future__ import annotations

import pytest


def test_two_variables_are_all_that_changes(package, url: str, key: str, say, monkeypatch: pytest.MonkeyPatch) -> None:
    family = package.__name__.upper()
    monkeypatch.setenv(f"{family}_BASE_URL", f"{url}/api/paas/v4")
    monkeypatch.setenv(f"{family}_API_KEY", key)
    client = package.ZhipuAiClient() if family == "ZAI" else package.ZhipuAI()
    asked = {"model": "toy", "temperature": 0, "max_tokens": 16}
    answer = client.chat.completions.create(messages=[{"role": "user", "content": "ab"}], **asked)
    assert answer.choices[0].message.content == say().choices[0].message.content
