"""A token's bytes, joined, are the text it was made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.chat.token_bytes import TokenBytes
from luthier.chat.tokenizer import Tokenizer
from tests.unit.chat import toys

TEXT = "Hello é 谢谢 🙂\n\tx\x00\x7f\xad <tool_call>"


@pytest.mark.parametrize("toy", ["toy_qwen", "toy_glm4", "toy_chatglm3"])
def test_the_bytes_of_the_tokens_are_those_of_the_text(tmp_path: Path, toy: str) -> None:
    tokenizer = Tokenizer(getattr(toys, toy)(tmp_path))
    found = b"".join(TokenBytes(tokenizer).of(token) for token in tokenizer.encode_plain(TEXT))
    assert found.removeprefix(b" ").decode() == TEXT


def test_a_special_token_has_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer(toys.toy_qwen(tmp_path))
    assert [TokenBytes(tokenizer).of(token) for token in tokenizer.encode("<|im_end|>")] == [b""]
