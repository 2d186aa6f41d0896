"""Models: what is listed can be called, what is deleted cannot."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI


def test_models_are_listed_and_retrieved(client: OpenAI, trained) -> None:
    assert {"toy", trained.fine_tuned_model} <= {model.id for model in client.models.list()}
    model = client.models.retrieve(trained.fine_tuned_model)
    assert (model.id, model.object, model.owned_by) == (trained.fine_tuned_model, "model", trained.organization_id)


def test_a_deleted_model_is_gone_and_a_base_model_stays(client: OpenAI, trained, say) -> None:
    [*_, first] = client.fine_tuning.jobs.checkpoints.list(trained.id)
    name = first.fine_tuned_model_checkpoint
    assert say(model=name).model == name
    deleted = client.models.delete(name)
    assert (deleted.id, deleted.object, deleted.deleted) == (name, "model", True)
    with pytest.raises(openai.NotFoundError) as gone:
        say(model=name)
    assert gone.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="base model"):
        client.models.delete("toy")


def test_a_name_with_a_slash_is_looked_for_as_it_is(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="org/name"):
        client.models.retrieve("org/name")


def test_the_other_paths_of_the_dialect_answer_alike(url: str, key: str, trained) -> None:
    with OpenAI(base_url=f"{url}/compatible-mode/v1", api_key=key, max_retries=0) as compatible:
        assert trained.fine_tuned_model in [model.id for model in compatible.models.list()]
    with OpenAI(base_url=f"{url}/api/v1", api_key=key, max_retries=0, _strict_response_validation=True) as alias:
        answer = alias.chat.completions.create(
            model=trained.fine_tuned_model, messages=[{"role": "user", "content": "ab"}], max_tokens=4
        )
        assert answer.model == trained.fine_tuned_model


def test_this_client_reads_zhipus_dialect_too(url: str, key: str) -> None:
    with OpenAI(base_url=f"{url}/api/paas/v4", api_key=key, max_retries=0, _strict_response_validation=True) as client:
        ask = {"model": "toy", "messages": [{"role": "user", "content": "ab"}], "temperature": 0, "max_tokens": 8}
        whole = client.chat.completions.create(**ask)
        chunks = list(client.chat.completions.create(**ask, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
        assert chunks[-1].usage == whole.usage
        with pytest.raises(openai.NotFoundError) as unknown:
            client.models.retrieve("gpt-9")
        assert unknown.value.code == "1211"
