"""The asynchronous client."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import AsyncOpenAI


def test_the_asynchronous_client_lists_answers_and_streams_alike(asynchronous, trained, say, data) -> None:
    async def go() -> None:
        async with asynchronous() as client:
            ask = {"model": "toy", "messages": [{"role": "user", "content": "ab"}], "temperature": 0, "max_tokens": 16}
            whole, stream = await asyncio.gather(
                client.chat.completions.create(**ask), client.chat.completions.create(**ask, stream=True)
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == whole.choices[0].message.content == say().choices[0].message.content
            assert "toy" in [model.id async for model in client.models.list()]
            jobs = [job.id async for job in client.fine_tuning.jobs.list(limit=1)]
            assert trained.id in jobs and len(jobs) == len(set(jobs))
            assert len([event async for event in client.fine_tuning.jobs.list_events(trained.id, limit=3)]) > 3
            file = await client.files.create(file=("a.jsonl", (data / "rows.jsonl").read_bytes()), purpose="fine-tune")
            file = await client.files.wait_for_processing(file.id, poll_interval=0.1)
            assert file.status == "processed"
            assert (await client.files.delete(file.id)).deleted

    asyncio.run(go())


def test_an_error_inside_an_asynchronous_stream_ends_it(faulty_url: str, key: str) -> None:
    async def go() -> None:
        async with AsyncOpenAI(base_url=f"{faulty_url}/v1", api_key=key, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="fail-unavailable-late", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            with pytest.raises(openai.APIError) as told:
                async for _ in stream:
                    pass
            assert told.value.code == "replica_unavailable"

    asyncio.run(go())
