"""A client that is told of the server by its environment alone, and one below DashScope's path for OpenAI's form."""

from __future__ import annotations

import pytest
from openai import OpenAI

ASKED = {"model": "toy", "messages": [{"role": "user", "content": "ab"}], "temperature": 0, "max_tokens": 16}


def test_two_variables_are_all_that_changes(url: str, key: str, say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{url}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert OpenAI().chat.completions.create(**ASKED).choices[0].message.content == say().choices[0].message.content


def test_the_compatible_path_of_dashscope_says_the_same(url: str, key: str, say) -> None:
    client = OpenAI(base_url=f"{url}/compatible-mode/v1", api_key=key, max_retries=0, _strict_response_validation=True)
    whole = client.chat.completions.create(**ASKED).choices[0].message.content
    chunks = client.chat.completions.create(**ASKED, stream=True)
    assert whole == say().choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
