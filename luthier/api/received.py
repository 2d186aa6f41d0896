"""What every request of the dialects has in common: unknown fields are passed over, null is absence, and text can be kept."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator


class Received(BaseModel):
    """A request, or a part of one."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absence(cls, value: Any) -> Any:
        """Also where something else than None stands for what is absent."""
        if not isinstance(value, dict):
            return value
        stood_for = _stood_for(cls)
        return {name: inner for name, inner in value.items() if inner is not None or name not in stood_for}

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_kept(cls, value: Any) -> Any:
        _refuse_what_is_no_text(value)
        return value


@cache
def _stood_for(received: type[BaseModel]) -> frozenset[str]:
    """The fields for whose absence something else than None stands."""
    return frozenset(
        field.alias or name
        for name, field in received.model_fields.items()
        if not field.is_required() and field.get_default(call_default_factory=True, validated_data={}) is not None
    )


_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def _refuse_what_is_no_text(value: Any) -> None:
    """JSON can name signs that UTF-8 cannot carry (half a surrogate pair) or PostgreSQL cannot keep (U+0000)."""
    if isinstance(value, str) and _NO_TEXT.search(value):
        raise ValueError("U+0000 and halves of surrogate pairs are not text")
    for inner in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_what_is_no_text(inner)
