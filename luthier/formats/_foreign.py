"""Rows as other tools write them, and how they read as ours."""

from __future__ import annotations

from typing import Any

from luthier.formats._turns import ROLE_WORDS

_PAIRS = {"completion": "prompt", "response": "prompt", "output": "prompt", "answer": "question"}
"""Names of an answer, and of the question that stands beside it."""


def foreign(row: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The name of another tool's kind of row and what it is in ours; None where nothing is recognised."""
    if isinstance(row.get("conversations"), list):
        return "conversations (ShareGPT)", _sharegpt(row)
    if "instruction" in row and ("output" in row or "response" in row):
        return "instruction/output (Alpaca)", _alpaca(row)
    if (
        isinstance(row.get("chosen"), str)
        and isinstance(row.get("rejected"), str)
        and isinstance(row.get("prompt"), str)
    ):
        return "prompt/chosen/rejected", _with_tag(
            row,
            {
                "messages": [_said("user", row["prompt"])],
                "chosen": _said("assistant", row["chosen"]),
                "rejected": _said("assistant", row["rejected"]),
            },
        )
    if {"prompt", "chosen", "rejected"} <= row.keys() and all(
        isinstance(row[name], list) for name in ("prompt", "chosen", "rejected")
    ):
        return "prompt/chosen/rejected", _with_tag(
            row,
            {
                "messages": row["prompt"],
                **{name: row[name][0] if len(row[name]) == 1 else row[name] for name in ("chosen", "rejected")},
            },
        )
    for answer in ("completion", "response", "output", "answer"):
        for question in ("prompt", "query", "question", "input"):
            if isinstance(row.get(answer), str) and isinstance(row.get(question), str):
                messages = [_said("user", row[question]), _said("assistant", row[answer])]
                if isinstance(row.get("system"), str) and row["system"]:
                    messages.insert(0, _said("system", row["system"]))
                return f"{question}/{answer}", _with_tag(row, {"messages": messages})
    return None


def _alpaca(row: dict[str, Any]) -> dict[str, Any]:
    asked = str(row["instruction"])
    if row.get("input"):
        asked = f"{asked}\n{row['input']}" if asked else str(row["input"])
    messages = [_said("user", asked), _said("assistant", row.get("output", row.get("response")))]
    history = row.get("history")
    for turn in reversed(history if isinstance(history, list) else []):
        if isinstance(turn, list) and len(turn) == 2:
            messages = [_said("user", turn[0]), _said("assistant", turn[1]), *messages]
    if row.get("system"):
        messages.insert(0, _said("system", row["system"]))
    return _with_tag(row, {"messages": messages})


def _sharegpt(row: dict[str, Any]) -> dict[str, Any]:
    messages = []
    for turn in row["conversations"]:
        if not isinstance(turn, dict):
            messages.append(turn)
            continue
        role = turn.get("from", turn.get("role"))
        if isinstance(role, str):
            role = ROLE_WORDS.get(role.strip().lower(), role.strip().lower())
        messages.append(_said(role, turn.get("value", turn.get("content"))))
    if isinstance(row.get("system"), str) and row["system"]:
        messages.insert(0, _said("system", row["system"]))
    return _with_tag(row, {"messages": messages})


def _said(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _with_tag(row: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    return {**ours, "tag": row["tag"]} if isinstance(row.get("tag"), str) else ours
