"""A tokenizer read from files alone, and templates that can do no harm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from luthier.chat.messages import Message
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest
from luthier.testing import toy_tokenizer

HI = [Message("user", "Hi")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.mark.parametrize("text", ["", "Hello", "  two  blanks\n", "谢谢 🙂", "<|im_end|> in a text", "\x00\x7f"])
def test_a_text_is_encoded_and_decoded_without_loss(folder: Path, text: str) -> None:
    tokenizer = Tokenizer(folder)
    tokens = tokenizer.encode_plain(text)
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text


def test_special_tokens_are_special_only_where_we_write_them(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    assert tokenizer.encode("<|im_end|>") == [tokenizer.id_of("<|im_end|>")]
    assert len(tokenizer.encode_plain("<|im_end|>")) == 10
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>")) == "a"
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>"), special=True) == "a<|im_end|>"


def test_a_length_limit_or_padding_in_the_file_is_not_applied(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    settings["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 256, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    tokenizer = Tokenizer(folder)
    assert (len(tokenizer.encode("abcdef")), len(tokenizer.encode_plain("abc"))) == (6, 3)


def test_the_ends_come_from_every_place_that_states_them(folder: Path) -> None:
    end = Tokenizer(folder).id_of("<|im_end|>")
    assert Tokenizer(folder).ends == {end}
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert Tokenizer(folder).ends == {1, 2, end}


def test_a_folder_without_a_fast_tokenizer_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json") as refused:
        Tokenizer(tmp_path)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{% for %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ range(10 ** 9) | list }}", "too big"),
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "too big"),
        ("{{ 'x' * 10 ** 9 }}", "too big"),
        ("{{ 10 ** 10 ** 10 }}", "too big"),
        ("{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}", "without end"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    ],
)
def test_a_template_that_complains_or_reaches_out_is_a_refusal(folder: Path, template: str, complaint: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(InvalidRequest, match=complaint):
        Tokenizer(folder).template(HI, generation_prompt=True)


def test_a_template_is_told_the_same_day_on_every_day(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("Today is {{ strftime_now('%d %b %Y') }}")
    assert Tokenizer(folder).template([Message("user", "x")], generation_prompt=True) == "Today is 26 Jul 2024"


def test_a_model_without_a_template_says_so(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    tokenizer = Tokenizer(folder)
    assert not tokenizer.has_template
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.template(HI, generation_prompt=True)


def test_blocks_that_mark_what_is_generated_are_written_as_they_are(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% generation %}{{ messages[0].content }}{% endgeneration %}!")
    assert Tokenizer(folder).template(HI, generation_prompt=True) == "Hi!"


def test_many_texts_are_encoded_as_each_alone(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    texts = ["", "Hello", "<|im_end|>", "谢谢 🙂", "Hello"]
    assert tokenizer.encode_plain_batch(texts) == [tokenizer.encode_plain(text) for text in texts]


def test_a_text_is_split_at_its_special_tokens_and_at_nothing_else(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    end = tokenizer.special_id("<|im_end|>")
    assert tokenizer.split("a<|im_end|>\n<|im_en|>") == ["a", end, "\n<|im_en|>"]
    assert tokenizer.parts("a<|im_end|>") == [(0, 1, None), (1, 11, end)]
    assert [tokenizer.may_hold_special(text) for text in ("a", "a<", ">", "<|im_end|>", "a < b > c")] == [
        *(False, True, True, True, False)
    ]
    assert tokenizer.special_id("Hello") is None
