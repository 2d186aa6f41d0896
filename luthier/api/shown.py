"""An answer in the API's document: its class shows an example of itself, made as the answers are made."""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict


def _show(schema: JsonDict, kind: type[Any]) -> None:
    if (found := example_of(kind)) is not None:
        schema["example"] = json.dumps(found)


class Shown(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(json_schema_extra=_show)

    @classmethod
    def example(cls) -> Any:
        """What is shown, as a value of this class or as its JSON; None: a part that is shown within others alone."""
        return None

    @classmethod
    def example_of_argument(cls) -> Any:
        """That of the class which a generic one was made for."""
        arguments = cls.__pydantic_generic_metadata__["args"]
        return example_of(arguments[0]) if arguments else None


def example_of(kind: Any) -> Any:
    """The example of such an answer, as JSON; of a list one with one item. None where its class shows none."""
    if get_origin(kind) is list:
        item = example_of(get_args(kind)[0])
        return None if item is None else [item]
    if not (isinstance(kind, type) and issubclass(kind, Shown)):
        return None
    found = kind.example()
    return as_json(found) if isinstance(found, BaseModel) else found


def as_json(value: BaseModel) -> dict[str, Any]:
    """As it is answered."""
    return value.model_dump(mode="json", by_alias=True)


def in_document(example: Any) -> dict[str, Any]:
    """What a route adds to the description of an answer in JSON which its class does not show."""
    return {"application/json": {"example": json.dumps(example)}}


def read_examples(document: dict[str, Any]) -> None:
    """Put the examples of answers into a document as JSON: they come as texts, since the framework drops what is null in it."""
    operations = [one for path in document["paths"].values() for one in path.values()]
    answers = [answer for operation in operations for answer in operation["responses"].values()]
    contents = [answer.get("content", {}).get("application/json", {}) for answer in answers]
    for described in (*contents, *document.get("components", {}).get("schemas", {}).values()):
        if isinstance(text := described.get("example"), str):
            described["example"] = json.loads(text)
