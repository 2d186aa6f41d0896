"""The older client's example from Zhipu's document, with the address and the model's name changed."""

from __future__ import annotations

import zhipuai


def test_the_example_streams(url: str, key: str) -> None:
    client = zhipuai.ZhipuAI(api_key=key, base_url=f"{url}/api/paas/v4")

    response = client.chat.completions.create(
        model="toy",
        messages=[
            {"role": "user", "content": "你好"},
        ],
        stream=True,
    )
    deltas = [chunk.choices[0].delta for chunk in response]

    assert deltas[0].role == "assistant"
