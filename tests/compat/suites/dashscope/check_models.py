"""dashscope.Models."""

from __future__ import annotations

import dashscope


def test_models_are_listed_to_the_end(trained) -> None:
    found: list[str] = []
    page, total = 0, 1
    while len(found) < total:
        page += 1
        listed = dashscope.Models.list(page=page, page_size=1)
        assert listed.status_code == 200
        assert listed.output["models"], "a page before the end is empty"
        total = listed.output["total"]
        found += [model["model"] for model in listed.output["models"]]
    assert {"toy", trained.finetuned_output} <= set(found)


def test_a_model_is_found_by_its_name(trained) -> None:
    base = dashscope.Models.get("toy").output
    assert (base["name"], base["source"]) == ("toy", "base")
    tuned = dashscope.Models.get(trained.finetuned_output).output
    assert (tuned["source"], tuned["base_model"], tuned["job_id"]) == ("custom", "toy", trained.job_id)


def test_a_model_that_there_is_not_is_not_found() -> None:
    assert dashscope.Models.get("none").status_code == 404
