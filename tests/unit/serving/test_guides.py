"""What is read before the first guided answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.serving import guides
from luthier.serving.guides import Guides
from luthier.serving.protocol import GenerateRequest, Sampling, Turn
from luthier.testing import toy_model


def test_the_vocabulary_is_read_once_and_before_the_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Guides(renderer_for(Tokenizer(toy_model(tmp_path / "toy"))))
    made.prepare()
    monkeypatch.setattr(Tokenizer, "as_json", lambda _: pytest.fail("read again"))
    asked = GenerateRequest(messages=[Turn(role="user", content="Hi")], sampling=Sampling(), json_schema={})
    assert made.guide(asked) is not None


def test_a_vocabulary_that_cannot_be_read_costs_guides_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strange:
        @property
        def tokenizer(self) -> Any:
            raise ValueError("of a strange kind")

    said: list[str] = []
    monkeypatch.setattr(guides.log, "warning", lambda event, problem: said.append(problem))
    Guides(Strange()).prepare()  # pyright: ignore[reportArgumentType]
    assert said == ["of a strange kind"]
