"""Zhipu's older client, which can train, and what it has trained."""

from __future__ import annotations

import pytest
from zhipuai import ZhipuAI


@pytest.fixture(scope="session")
def client(url: str, key: str) -> ZhipuAI:
    return ZhipuAI(
        api_key=key, base_url=f"{url}/api/paas/v4", timeout=120, max_retries=0, _strict_response_validation=True
    )


@pytest.fixture(scope="session")
def lenient(url: str, key: str) -> ZhipuAI:
    """As users make it: no stream of this client holds its own strict validation."""
    return ZhipuAI(api_key=key, base_url=f"{url}/api/paas/v4", timeout=120)


@pytest.fixture(scope="session")
def faulty(faulty_url: str, key: str):
    def client(max_retries: int = 0) -> ZhipuAI:
        return ZhipuAI(api_key=key, base_url=f"{faulty_url}/api/paas/v4", timeout=60, max_retries=max_retries)

    return client


@pytest.fixture(scope="session")
def rows(client: ZhipuAI, data):
    return client.files.create(file=(data / "rows.jsonl").open("rb"), purpose="fine-tune")


@pytest.fixture(scope="session")
def trained(client: ZhipuAI, data, rows, ended):
    """A job that has succeeded."""
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=rows.id,
        validation_file=client.files.create(file=(data / "validation.jsonl").open("rb"), purpose="fine-tune").id,
        hyperparameters={"n_epochs": 1, "batch_size": "auto", "learning_rate_multiplier": "auto"},
        suffix="zhi",
        request_id="mine-1",
    )
    assert job.request_id == "mine-1"
    job = ended(job.id)
    assert job.status == "succeeded", job.error
    return job
