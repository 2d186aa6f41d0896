"""A row is shown as it will be trained: the text, its tokens, which of them are learned, and what a limit makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.chat.tokenizer import Tokenizer
from luthier.control.datasets import inspection
from luthier.control.datasets import preview as preview_module
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.preview import Preview, preview, token_texts
from luthier.core.errors import InvalidParameter
from luthier.formats.base import known
from luthier.records.source import Given
from luthier.testing import jsonl, toy_tokenizer

ROW = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你🙂!"}]}
PAIR = {
    "messages": [{"role": "user", "content": "Hi"}],
    "chosen": {"role": "assistant", "content": "good"},
    "rejected": {"role": "assistant", "content": "bad answer"},
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_tokenizer(folder)
    return folder


def without_tools(folder: Path) -> Path:
    """The toy's tokenizer with a template that knows of no tools."""
    toy_tokenizer(folder)
    said = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(said + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    return folder


def look(toy: Path, *rows: object, form: str = "messages", row: int = 1, **asked: object) -> Preview:
    return preview(Given(jsonl(list(rows))), form, row, toy, **asked)  # type: ignore[arg-type]


def learned(shown: Preview, number: int = 0) -> str:
    return "".join(token.text for token in shown.sequences[number].tokens if token.trained)


def test_the_answer_and_its_end_are_learned_and_nothing_else(toy: Path) -> None:
    shown = look(toy, ROW)
    assert shown.text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n你🙂!<|im_end|>\n"
    texts = [token.text for token in shown.tokens]
    opening = ["<|im_start|>", *"user\n", *"Hi", "<|im_end|>", "\n", "<|im_start|>", *"assistant\n"]
    answer = ["", "", "你", "", "", "", "🙂", "!", "<|im_end|>"]
    assert texts == [*opening, *answer, "\n"]
    assert [token.trained for token in shown.tokens] == [False] * len(opening) + [True] * len(answer) + [False]
    assert (shown.trained_tokens, shown.billed_tokens, shown.marks) == (9, len(texts), [])
    assert [token.id for token in shown.tokens] == Tokenizer(toy).encode(shown.text)


def test_an_answer_of_weight_zero_is_shown_and_not_learned(toy: Path) -> None:
    turns = [*ROW["messages"], {"role": "user", "content": "And?"}, {"role": "assistant", "content": "yes"}]
    turns[1] = turns[1] | {"weight": 0}
    shown = look(toy, {"messages": turns})
    assert "你🙂!" in shown.text
    assert learned(shown) == "yes<|im_end|>"


def test_of_a_pair_both_sequences_are_shown_and_billed_and_only_the_answers_learned(toy: Path) -> None:
    shown = look(toy, PAIR, form="chosen_rejected")
    assert [one.name for one in shown.sequences] == ["chosen", "rejected"]
    assert (learned(shown), learned(shown, 1)) == ("good<|im_end|>", "bad answer<|im_end|>")
    assert shown.billed_tokens == sum(len(one.tokens) for one in shown.sequences)
    assert shown.trained_tokens == 5 + 11
    assert (shown.text, shown.tokens) == (shown.sequences[0].text, shown.sequences[0].tokens)


@pytest.mark.parametrize(
    ("form", "row", "asked", "marks", "trained", "billed"),
    [
        ("messages", ROW, {"max_length": 31}, [], 9, 31),
        ("messages", ROW, {"max_length": 30}, ["too_long"], 0, 0),
        ("messages", ROW, {"max_length": 30, "overlength": "truncate"}, ["truncated"], 9, 30),
        ("messages", ROW, {"max_length": 22, "overlength": "truncate"}, ["truncated"], 1, 22),
        ("messages", ROW, {"max_length": 21, "overlength": "truncate"}, ["too_long"], 0, 0),
        ("messages", ROW, {"max_length": 20, "overlength": "fail"}, [], 9, 31),
        ("chosen_rejected", PAIR, {"max_length": 27}, ["too_long"], 0, 0),  # 27 and 33
        ("chosen_rejected", PAIR, {"max_length": 30, "overlength": "truncate"}, ["truncated"], 5 + 9, 27 + 30),
        ("chosen_rejected", PAIR, {"max_length": 24, "overlength": "truncate"}, ["truncated"], 3 + 3, 24 + 24),
        ("text", {"text": "abcd"}, {"max_length": 8}, [], 4, 5),
        ("text", {"text": "abcdefghij"}, {"max_length": 8, "overlength": "truncate"}, ["truncated"], 7, 8),
    ],
)
def test_a_limit_drops_or_cuts_a_row_and_what_is_billed_is_what_is_left(
    toy: Path, form: str, row: dict, asked: dict, marks: list[str], trained: int, billed: int
) -> None:
    shown = look(toy, row, form=form, **asked)
    assert (shown.marks, shown.trained_tokens, shown.billed_tokens) == (marks, trained, billed)


def test_what_an_image_is_made_from_is_billed_by_the_image_and_not_learned(toy: Path) -> None:
    sample = known()["image_generation"].sample()
    shown = preview(Given(sample), "image_generation", 1, toy, max_length=2048)
    assert (shown.marks, shown.trained_tokens, shown.billed_tokens) == (["images"], 0, 1024)
    assert [one.name for one in shown.sequences] == ["prompt"]
    assert not any(token.trained for token in shown.tokens)
    assert preview(Given(sample), "image_generation", 1, toy, max_length=8).marks == ["images", "too_long"]
    cut = preview(Given(sample), "image_generation", 1, toy, max_length=8, overlength="truncate")
    assert (cut.marks, cut.billed_tokens, len(cut.tokens)) == (["images", "truncated"], 1024, 8)


def test_a_row_that_the_model_cannot_write_says_why(toy: Path, tmp_path: Path) -> None:
    sample = known()["function_calling"].sample()
    assert preview(Given(sample), "function_calling", 1, toy).marks == []
    shown = preview(Given(sample), "function_calling", 1, without_tools(tmp_path / "deaf"))
    assert shown.marks == ["refused"]
    assert "uses tools" in (shown.said or "")
    assert (shown.sequences, shown.billed_tokens) == ([], 0)


def test_a_row_with_a_fault_shows_the_fault_and_itself(toy: Path) -> None:
    shown = look(toy, ROW, {"messages": [{"role": "user", "content": "x"}]}, row=2)
    assert [problem.code for problem in shown.problems] == ["no_assistant"]
    assert json.loads(shown.text) == {"messages": [{"role": "user", "content": "x"}]}
    assert (shown.row, shown.line, shown.tokens) == (2, 2, [])


@pytest.mark.parametrize("row", [0, -1, 3, 10**30])
def test_a_row_that_there_is_not_is_refused_with_the_number_of_rows(toy: Path, row: int) -> None:
    with pytest.raises(InvalidParameter, match=r"row: must be (1 or more|at most 2, the number of rows), got"):
        look(toy, ROW, ROW, row=row)


def test_rows_are_counted_over_blank_lines(toy: Path) -> None:
    source = Given(b"\n\n" + jsonl([PAIR]) + b"\n" + jsonl([ROW]))
    shown = preview(source, "messages", 2, toy)
    assert (shown.row, shown.line) == (2, 5)


def test_a_long_row_is_shown_in_parts_and_counted_whole(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你🙂x" * 50}]}
    whole = look(toy, row)
    monkeypatch.setattr(preview_module, "SHOWN", 37)
    parts = [look(toy, row, first_token=first) for first in range(0, len(whole.tokens), 37)]
    assert [token for part in parts for token in part.tokens] == whole.tokens
    assert "".join(part.text for part in parts) == whole.text
    for part in parts:
        [one] = part.sequences
        assert (one.total_tokens, part.trained_tokens, part.billed_tokens) == (
            len(whole.tokens),
            whole.trained_tokens,
            whole.billed_tokens,
        )
    assert look(toy, row, first_token=10**6).tokens == []


def test_a_row_is_found_from_where_its_piece_begins(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"row {n}"}, {"role": "assistant", "content": "x"}]}
        for n in range(90)
    ]
    lines = jsonl(rows).splitlines(keepends=True)
    data = b"\n" + b"".join(b"  \n" * (n % 3 == 0) + line for n, line in enumerate(lines))
    source = Given(data)
    monkeypatch.setattr(inspection, "PIECE", 1000)
    report = inspect(source)
    assert report.fit and len(report.starts) > 5
    for row in (1, 2, 3, 17, 44, 45, 89, 90):
        shown = preview(source, "messages", row, toy, starts=report.starts, is_fit=True)
        assert shown == preview(source, "messages", row, toy)
        assert f"row {row - 1}<" in shown.text
        assert data.splitlines()[shown.line - 1].strip() == lines[row - 1].strip()
    with pytest.raises(InvalidParameter, match="at most 90, the number of rows, got 91"):
        preview(source, "messages", 91, toy, starts=report.starts, is_fit=True)


def test_a_row_with_a_fault_far_down_is_shown_at_its_own_line(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Given(jsonl([ROW] * 50) + b'{"messages": [],}\n' + jsonl([ROW] * 50))
    monkeypatch.setattr(inspection, "PIECE", 500)
    report = inspect(source)
    assert not report.fit and len(report.starts) > 5
    shown = preview(source, "messages", 51, toy, starts=report.starts)
    assert (shown.row, shown.line) == (51, 51)
    assert [(problem.row, problem.line) for problem in shown.problems] == [(51, 51)] * len(shown.problems)
    assert {problem.code for problem in shown.problems} >= {"trailing_comma"}
    assert preview(source, "messages", 52, toy, starts=report.starts).line == 52


def pieced(folder: Path) -> Tokenizer:
    """A tokenizer as SentencePiece makes them: words that begin with a blank, and bytes for what it does not know."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁a", "cat", "▁cat", "s", "t", "h", "e"]
    bare = Fast(
        models.BPE({word: place for place, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    bare.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    bare.decoder = decoders.Sequence(steps)  # type: ignore[arg-type]
    bare.add_special_tokens([AddedToken("<s>", special=True)])
    folder.mkdir(exist_ok=True)
    bare.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


SIGNS = st.text(st.sampled_from("aé你🙂\ufffd \n▁<s>") | st.characters(exclude_categories=["Cs"]), max_size=40)


@given(text=SIGNS)
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_texts_of_all_tokens_are_together_the_text(
    toy: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, text: str
) -> None:
    tokenizer = Tokenizer(toy) if kind == "bytes" else pieced(tmp_path_factory.getbasetemp() / "pieced")
    tokens = tokenizer.encode_plain(text)
    assert "".join(token_texts(tokens, tokenizer)) == tokenizer.decode(tokens, special=True)


def test_the_blank_that_a_word_begins_with_is_shown(tmp_path: Path) -> None:
    tokenizer = pieced(tmp_path / "pieced")
    tokens = [tokenizer.id_of(word) for word in ("▁the", "▁cat", "s", "▁a")]
    assert token_texts(tokens, tokenizer) == ["the", " cat", "s", " a"]  # type: ignore[arg-type]


def test_many_signs_that_are_no_characters_are_shown_in_linear_time(toy: Path) -> None:
    tokenizer = Tokenizer(toy)
    tokens = tokenizer.encode_plain("\ufffd" * 20_000)
    assert "".join(token_texts(tokens, tokenizer)) == "\ufffd" * 20_000
