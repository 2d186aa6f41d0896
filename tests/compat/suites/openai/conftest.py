"""The official client of OpenAI, with its strict validation on, and what it has trained."""

from __future__ import annotations

import pytest
from openai import AsyncOpenAI, OpenAI


@pytest.fixture(scope="session")
def client(url: str, key: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120, _strict_response_validation=True)


@pytest.fixture(scope="session")
def lenient(url: str, key: str) -> OpenAI:
    """As users make it, for what the strict validation knows no word for."""
    return OpenAI(base_url=f"{url}/v1", api_key=key, timeout=120)


@pytest.fixture
def asynchronous(url: str, key: str):
    """Makes asynchronous clients, each for one event loop."""
    return lambda: AsyncOpenAI(
        base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120, _strict_response_validation=True
    )


@pytest.fixture(scope="session")
def faulty(faulty_url: str, key: str) -> OpenAI:
    return OpenAI(base_url=f"{faulty_url}/v1", api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def rows(client: OpenAI, data):
    return client.files.create(file=data / "rows.jsonl", purpose="fine-tune")


@pytest.fixture(scope="session")
def trained(client: OpenAI, data, rows, ended):
    """A job that has succeeded, with a validation file, a suffix, a seed and metadata."""
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=rows.id,
        validation_file=client.files.create(file=data / "validation.jsonl", purpose="fine-tune").id,
        suffix="Echo",
        seed=7,
        metadata={"team": "red", "suite": "openai"},
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 1.5}},
        },
    )
    job = ended(job.id)
    assert job.status == "succeeded", job.error
    return job


@pytest.fixture(scope="session")
def say(client: OpenAI):
    """Asks a model for an answer, greedily."""

    def ask(text: str = "ab", model: str = "toy", **more):
        asked = {"temperature": 0, "max_tokens": 16, "model": model} | more
        return client.chat.completions.create(messages=[{"role": "user", "content": text}], **asked)

    return ask
