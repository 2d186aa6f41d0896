"""What clients send beside OpenAI's fields, by vLLM's names: more ways to choose tokens, and the form of an answer."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field

from luthier.api.received import Received
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.serving.checks import MOST_STOP_TOKENS
from luthier.serving.protocol import Sampling

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class StructuredOutputs(Received):
    """What the answer must look like: one of these."""

    regex: str | None = Field(default=None, description="The whole answer matches it. Rust's syntax, no look-around.")
    json_: dict[str, Any] | str | None = Field(
        default=None, alias="json", description="A JSON schema, or one written as a text."
    )
    json_object: bool | None = None
    choice: Any = Field(default=None, description="Not offered; an alternation of a regex says the same.")
    grammar: Any = Field(default=None, description="Not offered.")
    structural_tag: Any = Field(default=None, description="Not offered.")

    def to_schema(self) -> dict[str, Any] | None:
        if isinstance(self.json_, str):
            try:
                schema = json.loads(self.json_)
            except (ValueError, RecursionError) as broken:
                raise InvalidParameter("structured_outputs.json", f"is no JSON: {broken}") from broken
            if not isinstance(schema, dict):
                raise InvalidParameter("structured_outputs.json", "must be a schema, which is an object")
            return schema
        return {} if self.json_object and self.json_ is None else self.json_


class Extras(Received):
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="Leaves out tokens with less than this share of the likeliest one's chance."
    )
    top_k: Annotated[int, Field(ge=-1)] | None = Field(default=None, description="-1, 0 or absent: all tokens.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(default=None, description="Absent: 1.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MOST_STOP_TOKENS)] | None = Field(
        default=None, description="Ids of tokens that end the answer and are no part of it."
    )
    structured_outputs: StructuredOutputs | None = None
    guided_regex: str | None = Field(default=None, description="Older form of structured_outputs.regex.")

    def with_extras(self, sampling: Sampling) -> Sampling:
        return sampling.model_copy(
            update={
                "min_p": self.min_p or 0.0,
                "top_k": self.top_k if self.top_k and self.top_k > 0 else None,
                "repetition_penalty": 1.0 if self.repetition_penalty is None else self.repetition_penalty,
                "stop_tokens": self.stop_token_ids or [],
            }
        )

    def form(self, json_schema: dict[str, Any] | None = None) -> tuple[dict[str, Any] | None, str | None]:
        """The schema and the regex of the answer, at most one of them; `json_schema` is what another field asks for.

        Raises InvalidParameter where several forms are asked for, NotOffered for those that are not there.
        """
        asked = self.structured_outputs or StructuredOutputs()
        for name in ("choice", "grammar", "structural_tag"):
            if getattr(asked, name) is not None:
                raise NotOffered(f"structured_outputs.{name} is not offered.", param="structured_outputs")
        forms = [json_schema, asked.to_schema(), asked.regex, self.guided_regex]
        if sum(form is not None for form in forms) > 1:
            raise InvalidParameter("structured_outputs", "an answer has one form: a schema or a regex")
        return (asked.to_schema() if json_schema is None else json_schema), (
            self.guided_regex if asked.regex is None else asked.regex
        )
