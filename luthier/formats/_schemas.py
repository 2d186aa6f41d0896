"""Whether the JSON schema of a function's parameters is valid: known keywords by a compiled decoder, others by the library."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec

from luthier.records.problems import shown, type_of

_UNSET = msgspec.UNSET
_Name = Literal["array", "boolean", "integer", "null", "number", "object", "string"]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | msgspec.UnsetType
_Number = int | float | msgspec.UnsetType
_Text = str | msgspec.UnsetType


class _Schema(msgspec.Struct, forbid_unknown_fields=True):
    """What most schemas are made of. Whatever it takes is valid; what it does not take may be."""

    type: _Name | msgspec.UnsetType = _UNSET
    title: _Text = _UNSET
    description: _Text = _UNSET
    format: _Text = _UNSET
    properties: dict[str, _Schema] | msgspec.UnsetType = _UNSET
    required: list[str] | msgspec.UnsetType = _UNSET
    additionalProperties: bool | _Schema | msgspec.UnsetType = _UNSET
    items: _Schema | msgspec.UnsetType = _UNSET
    enum: list[Any] | msgspec.UnsetType = _UNSET
    default: Any = _UNSET
    minimum: _Number = _UNSET
    maximum: _Number = _UNSET
    minLength: _Count = _UNSET
    maxLength: _Count = _UNSET
    minItems: _Count = _UNSET
    maxItems: _Count = _UNSET
    anyOf: Annotated[list[_Schema], msgspec.Meta(min_length=1)] | msgspec.UnsetType = _UNSET

    def __post_init__(self) -> None:
        if self.required is not _UNSET and len(set(self.required)) != len(self.required):
            raise ValueError("a name is required twice")


def schema_fault(schema: Any) -> str | None:
    """What is wrong with a schema; None for a valid one."""
    if not isinstance(schema, dict):
        return type_of(schema)
    if schema.get("type", "object") != "object":
        return f"type is {shown(schema['type'])}"
    if is_plain(schema):
        return None
    written = json.dumps(schema)
    return _known_fault(written) if len(written) < 10_000 else _fault(written)


def is_plain(schema: dict[str, Any]) -> bool:
    """Whether a schema is of known keywords alone, and valid."""
    try:
        msgspec.convert(schema, _Schema)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True


@lru_cache(maxsize=256)  # the rows of a file mostly declare the same functions, and this takes a millisecond
def _known_fault(written: str) -> str | None:
    return _fault(written)


def _fault(written: str) -> str | None:
    from jsonschema import Draft202012Validator, FormatChecker
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    schema = json.loads(written)
    try:
        # Patterns are JavaScript's, which Python's library would judge wrongly: they are not looked at.
        kind: Any = validator_for(schema, Draft202012Validator)
        kind.check_schema(schema, format_checker=FormatChecker(formats=()))
    except SchemaError as wrong:
        where = ".".join(map(str, wrong.absolute_path))
        return f"{where}: {wrong.message}"[:160] if where else wrong.message[:160]
    except (RecursionError, OverflowError):
        return "it is nested too deeply, or has a number that is too large"
    return None
