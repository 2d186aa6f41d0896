"""The newer client's example from Zhipu's document, with the address and the model's name changed."""

from __future__ import annotations

import zai
from zai import ZhipuAiClient


def test_the_version_can_be_printed() -> None:
    print(zai.__version__)


def test_the_example_answers(url: str, key: str) -> None:
    client = ZhipuAiClient(api_key=key, base_url=f"{url}/api/paas/v4")

    response = client.chat.completions.create(
        model="toy",
        messages=[
            {"role": "system", "content": "你是一个有用的AI助手。"},
            {"role": "user", "content": "你好，请介绍一下自己。"},
        ],
        temperature=0.7,
    )

    print(response.choices[0].message.content)
    assert response.choices[0].finish_reason in ("stop", "length")
