"""What every request of the dialects has in common: unknown fields are passed over, null is absence, and text can be kept."""

from __future__ import annotations

from functools import cache
from itertools import chain
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
        _refuse_what_cannot_be_kept(value)
        return value


@cache
def _stood_for(received: type[BaseModel]) -> frozenset[str]:
    """The fields for whose absence something else than None stands."""
    return frozenset(
        field.alias or name
        for name, field in received.model_fields.items()
        if not field.is_required() and field.get_default(call_default_factory=True, validated_data={}) is not None
    )


DEEPEST = 64
"""Levels of lists and objects within one field. Four times as many fail where JSON is written again."""


def _refuse_what_cannot_be_kept(value: Any) -> None:
    """JSON can name signs that UTF-8 cannot carry (half a surrogate pair) or PostgreSQL cannot keep (U+0000), and can be nested
    more deeply than those may follow who read it after us.
    """
    layer: list[Any] = [value]
    depth = 0
    while layer:
        if depth > DEEPEST:
            raise ValueError(f"may be nested {DEEPEST} levels deep")
        if not _is_text("".join([one for one in layer if isinstance(one, str)])):
            raise ValueError("U+0000 and halves of surrogate pairs are not text")
        objects = [one for one in layer if isinstance(one, dict)]
        lists = [one for one in layer if isinstance(one, list)]
        layer = [*chain(*objects), *chain.from_iterable(one.values() for one in objects), *chain(*lists)]
        depth += 1


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
