"""Answers that are fetched later."""

from __future__ import annotations

import pytest


@pytest.fixture
def finished(client, waiting):
    def until(task_id: str):
        def over():
            found = client.chat.asyncCompletions.retrieve_completion_result(id=task_id)
            return found if found.task_status != "PROCESSING" else None

        return waiting(over)

    return until


def test_an_answer_is_made_in_the_background(client, finished, say) -> None:
    messages = [{"role": "user", "content": "ab"}]
    task = client.chat.asyncCompletions.create(
        model="toy", messages=messages, temperature=0, max_tokens=16, request_id="mine-2"
    )
    assert (task.task_status, task.request_id, task.model) == ("PROCESSING", "mine-2", "toy")
    done = finished(task.id)
    assert (done.id, done.request_id, done.task_status) == (task.id, "mine-2", "SUCCESS")
    whole = say()
    assert done.choices[0].message.content == whole.choices[0].message.content
    assert done.choices[0].finish_reason == whole.choices[0].finish_reason
    assert done.usage.total_tokens == whole.usage.total_tokens


def test_what_cannot_be_answered_fails_with_the_reason(client, lenient, finished) -> None:
    task = client.chat.asyncCompletions.create(model="toy", messages=[{"role": "user", "content": "x" * 3000}])
    assert finished(task.id).task_status == "FAIL"
    told = lenient.get(f"/async-result/{task.id}", cast_type=object)
    assert told["error"]["code"] == "1261"


def test_what_nobody_asked_for_is_not_there(client, core) -> None:
    with pytest.raises(core.APIStatusError) as absent:
        client.chat.asyncCompletions.retrieve_completion_result(id="task-nonsense")
    assert absent.value.status_code == 404
    with pytest.raises(core.APIStatusError) as unknown:
        client.chat.asyncCompletions.create(model="gpt-9", messages=[{"role": "user", "content": "ab"}])
    assert unknown.value.status_code == 404
