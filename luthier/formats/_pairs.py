"""What both shapes of a preference row have in common: a prompt, and two answers of which one is to be preferred."""

from __future__ import annotations

from typing import Any

from luthier.formats._quick import UNSET, Found
from luthier.formats._talk import Tools, Turn, found_in
from luthier.formats._turns import Rules, check_message, message_of
from luthier.formats.base import Findings
from luthier.records.lenient import Path
from luthier.records.problems import shown

PROMPT = Rules(tools=True, needs_answer=False, fields=frozenset({"messages", "tools", "parallel_tool_calls"}))


def check_answer(answer: Any, findings: Findings, path: Path, functions: set[str] | None) -> Any:
    """Check one of the two answers; the answer where it is right by itself, else None."""
    before = len(findings.problems)
    check_message(answer, findings, path, PROMPT, functions)
    if len(findings.problems) > before:
        return None
    if answer["role"] != "assistant":
        findings.add("unknown_role", (*path, "role"), found=shown(answer["role"]), expected='"assistant"')
        return None
    if "weight" in answer and answer["weight"] == 0:
        findings.add("answer_weight", (*path, "weight"), found=shown(answer["weight"]))
        return None
    return answer


def check_differ(preferred: Any, other: Any, *, findings: Findings, path: Path) -> None:
    """Two answers of which one is to be preferred must not be the same."""
    if message_of(preferred) == message_of(other):
        findings.add("same_answers", path)


def check_ends_with_question(messages: Any, findings: Findings, path: Path) -> None:
    """What is answered is the user's last turn, or what a tool gave back."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return
    role = messages[-1].get("role")
    if role in ("assistant", "system"):
        findings.add("prompt_ends", (*path, len(messages) - 1, "role"), found=role)


def found_in_pair(messages: list[Turn], preferred: Turn, other: Turn, functions: Tools | None) -> Found | None:
    """What a pair holds, where it is plainly right; its turns alone count as `strings`."""
    if functions is None or preferred.content == other.content:
        return None
    prompt = found_in(messages, functions.names, is_prompt=True)
    strings, characters, noted = 0, 0, ()
    for answer in (preferred, other):
        said = answer.content
        if answer.role != "assistant" or not isinstance(said, str) or not said or said.isspace():
            return None
        if answer.tool_calls is not UNSET or answer.tool_call_id is not UNSET or answer.weight == 0:
            return None
        strings += 4 + (answer.weight is not UNSET) + 2 * (answer.name is not UNSET)
        characters += len(said)
        noted += () if answer.name is UNSET else ("name_ignored",)
    if prompt is None:
        return None
    return Found(
        prompt.strings + strings, prompt.turns + 1, 1, prompt.characters + characters, noted=prompt.noted + noted
    )
