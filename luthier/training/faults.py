"""What is wrong with a job as somebody wrote it: every fault with its field, what is expected there, and what came."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.core.errors import InvalidParameter, InvalidRequest


@dataclass(frozen=True)
class Fault:
    """What is wrong with one field: what is expected and what came, and where it is not plain what to do."""

    field: str
    text: str
    hint: str | None = None


class InvalidJob(InvalidRequest):
    """A job that cannot be run as it was written, with everything that is wrong with it."""

    code = "invalid_job"

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{fault.field}: {fault.text}" if fault.field else fault.text for fault in faults))
        self.faults = faults


UNKNOWN = "is not a field that is known here"


def refusal(faults: list[Fault]) -> InvalidParameter:
    """Every fault as one error, whose `param` is the field of the first."""
    first, *others = faults
    rest = "".join(f"; {other.field}: {other.text}" for other in others)
    return InvalidParameter(first.field, first.text + rest, hint=first.hint)


def faults_in(model: type[BaseModel], wrong: ValidationError, *, below: str = "") -> list[Fault]:
    """What pydantic found, one fault a field, with the bounds of the field and what came; `below` is the field they are in."""
    schema = model.model_json_schema().get("properties", {})
    faults: dict[str, Fault] = {}
    for one in wrong.errors():
        path = list(map(str, one["loc"]))
        plain = bound(schema[path[0]]) if path and path[0] in schema and len(path) <= 2 else None
        hint = None
        if one["type"] == "missing":
            text = "is missing"
        elif one["type"] == "extra_forbidden":
            text = UNKNOWN
            near = difflib.get_close_matches(path[-1], schema, n=1) if len(path) == 1 else []
            hint = f"Did you mean {near[0]!r}?" if near else None
        elif one["type"] == "json_invalid":
            text = f"is not JSON: {one.get('ctx', {}).get('error', one['msg'])}"
        elif one["type"] == "value_error":
            text = one["msg"].removeprefix("Value error, ")
            text = f"{text}, got {_shown(one['input'])}" if path else text  # of a whole job it would be too much
        elif one["type"] == "finite_number":
            text = f"must be a finite number, got {_shown(one['input'])}"
        elif plain is not None:
            path = path[:1]  # where several types would do, pydantic adds the name of each
            text = f"must be {plain}, got {_shown(one['input'])}"
        else:
            text = one["msg"].replace("Input should be", "must be") + f", got {_shown(one['input'])}"
        field = ".".join(filter(None, (below, *path)))
        faults.setdefault(field, Fault(field, text, hint))
    return list(faults.values())


def bound(schema: dict[str, Any]) -> str | None:
    """What the JSON schema of a field allows, in words; None for one that has fields of its own."""
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    said = [_bound(one) for one in kinds]
    return " or ".join(one for one in said if one) if all(said) else None


_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "array": "a list",
    "object": "a table",
}


def _bound(schema: dict[str, Any]) -> str | None:
    if names := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        *others, last = map(json.dumps, names)
        return f"{', '.join(others)} or {last}" if others else last
    if "$ref" in schema or schema.get("type") not in _KINDS:
        return None
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, under = schema.get("maximum"), schema.get("exclusiveMaximum")
    if least is not None and most is not None:
        return f"{_KINDS[schema['type']]} from {_number(least)} to {_number(most)}"
    limits = [
        f"{word} {_number(value)}"
        for word, value in (("at least", least), ("above", above), ("at most", most), ("below", under))
        if value is not None
    ]
    return " ".join(filter(None, (_KINDS[schema["type"]], " and ".join(limits))))


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
