"""Rows as other tools write them, and how they read as ours."""

from __future__ import annotations

from typing import Any

ROLE_WORDS = {
    "human": "user",
    "customer": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "developer": "system",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""Words that other tools use for a role."""

HARMLESS = frozenset(
    ("id", "idx", "index", "uuid", "_id", "source", "dataset", "lang", "language", "category", "topic", "timestamp")
) | {"created", "created_at", "url_source", "split"}
"""Fields that other tools put beside a row and that say nothing of what is learned."""


def foreign(row: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The name of another tool's kind of row and what it is in ours; None where nothing is recognised."""
    if has_retired_functions(row):
        return "functions (OpenAI)", _with_tools(row)
    if isinstance(row.get("conversations"), list):
        return "conversations (ShareGPT)", _sharegpt(row)
    if "instruction" in row and ("output" in row or "response" in row):
        return "instruction/output (Alpaca)", _alpaca(row)
    if isinstance(row.get("prompt"), str) and all(isinstance(row.get(name), list) for name in ("chosen", "rejected")):
        return "prompt/chosen/rejected", _with_tag(row, _of_conversations(row))
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


def unread(row: dict[str, Any]) -> list[str]:
    """The fields of a row of another tool that reading it as ours would lose."""
    found = foreign(row)
    if found is None:
        return []
    kinds = [names for kind, names in _READ.items() if found[0].startswith(kind)]
    read = {*(kinds[0] if kinds else ("system",)), *found[0].split("/"), "tag"}
    lost = [name for name, value in row.items() if name not in read and not is_harmless(name, value)]
    if "history" in read and not _is_history(row.get("history")):
        lost.append("history")
    lost += [name for name in ("tag", "system") if name in read and not isinstance(row.get(name), str | None)]
    if "instruction" in read and "output" in row and not is_harmless("response", row.get("response")):
        lost.append("response")
    if "conversations" in read:
        lost += _unread_of_turns(row["conversations"])
    if "chosen" in read and isinstance(row["prompt"], str) and isinstance(row["chosen"], list):
        asked = [message.get("content") for message in found[1]["messages"] if isinstance(message, dict)]
        lost += [] if row["prompt"] in ("", *asked) else ["prompt"]
    return lost


def is_harmless(name: str, value: Any) -> bool:
    """Whether nothing is lost when a field that is not known here is left out: it is empty, or only says which row it is."""
    return value is None or value in ("", [], {}) or name in HARMLESS


def has_retired_functions(row: dict[str, Any]) -> bool:
    """Whether a conversation has functions as OpenAI wrote them before there were tools: `functions` beside it, `function_call`
    in a message, and answers of the role `function` that name no call.
    """
    messages = row.get("messages")
    if not isinstance(messages, list) or "chosen" in row or "rejected" in row:
        return False
    return row.get("functions") is not None or any(
        isinstance(message, dict)
        and (
            message.get("function_call") is not None
            or (message.get("role") == "function" and "tool_call_id" not in message)
        )
        for message in messages
    )


_READ = {
    "functions": ("messages", "functions"),
    "conversations": ("conversations", "system"),
    "instruction": ("instruction", "input", "output", "response", "history", "system"),
    "prompt/chosen": (),
}
"""What is read of each kind, beside the fields that its name says."""


def _unread_of_turns(turns: list[Any]) -> list[str]:
    """The fields of ShareGPT's turns that are not taken over, each once."""
    lost: dict[str, None] = {}
    for turn in turns:
        if isinstance(turn, dict):
            read = ("from" if "from" in turn else "role", "value" if "value" in turn else "content")
            lost |= {name: None for name, value in turn.items() if name not in read and not is_harmless(name, value)}
    return [f"conversations[].{name}" for name in lost]


def _is_history(history: Any) -> bool:
    return history in (None, []) or (
        isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history)
    )


def _with_tools(row: dict[str, Any]) -> dict[str, Any]:
    """Functions as tools. A call had no id: it is given one, and the function of its name that speaks next answers it."""
    messages = []
    made, waiting = 0, None
    for message in row["messages"]:
        if isinstance(message, dict) and isinstance(call := message.get("function_call"), dict):
            made += 1
            waiting = {"id": f"call_{made:04}", "type": "function", "function": call}
            messages.append({**_without(message, "function_call"), "tool_calls": [waiting]})
        elif isinstance(message, dict) and message.get("role") == "function":
            answer = {**message, "role": "tool"}
            if waiting is not None and message.get("name") == waiting["function"].get("name"):
                answer = {**_without(answer, "name"), "tool_call_id": waiting["id"]}
                waiting = None
            messages.append(answer)
        elif isinstance(message, dict) and message.get("function_call", "") is None:
            messages.append(_without(message, "function_call"))
        else:
            messages.append(message)
    functions = row.get("functions")
    if isinstance(functions, list):
        functions = [{"type": "function", "function": function} for function in functions]
    return _with_tag(row, {"messages": messages} if functions is None else {"messages": messages, "tools": functions})


def _without(message: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != name}


def _of_conversations(row: dict[str, Any]) -> dict[str, Any]:
    """A pair of whole conversations: what both begin with is the prompt, the last turn of each the answer."""
    chosen, rejected = row["chosen"], row["rejected"]
    if not chosen or not rejected or chosen[:-1] != rejected[:-1]:
        return {"messages": [_said("user", row["prompt"])], "chosen": chosen, "rejected": rejected}
    return {"messages": chosen[:-1] or [_said("user", row["prompt"])], "chosen": chosen[-1], "rejected": rejected[-1]}


def _alpaca(row: dict[str, Any]) -> dict[str, Any]:
    asked, more = row["instruction"], row.get("input")
    if more and isinstance(asked, str) and isinstance(more, str):
        asked = f"{asked}\n{more}" if asked else more
    elif more:
        asked = {"instruction": asked, "input": more}  # no text can be made of it: the check will say so
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
