"""What a request must be before anything is made: every fault of the caller's is told by the name of its parameter."""

from __future__ import annotations

import json
import math
from functools import lru_cache

from jsonschema import Draft202012Validator, SchemaError

from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidParameter, InvalidRequest
from luthier.serving.protocol import GenerateRequest, OfferedTool, Sampling

MOST_STOPS, LONGEST_STOP = 16, 1_000
MOST_STOP_TOKENS = 1_000
STRONGEST_BIAS = 100.0

LONGEST_SCHEMAS = 100_000
"""Characters of JSON of all schemas of a request, those of its tools or of its answer."""

_LONGEST_TOLD = 300  # characters of what a library says, which quotes what it was given


def check(request: GenerateRequest, tokenizer: Tokenizer) -> None:
    """Raise InvalidRequest for what no model could answer, InvalidParameter where one field is at fault.

    It takes a while where many tools are offered, and may be called from any thread.
    """
    if request.prompt is None and not request.messages:
        raise InvalidRequest("There is nothing to answer: neither messages nor a prompt.", param="messages")
    if request.prompt is not None:
        _check_prompt(request, request.prompt, tokenizer)
    _check_sampling(request.sampling, tokenizer)
    if request.json_schema is not None and request.regex is not None:
        raise InvalidRequest("An answer is held to a schema or to a regex, not to both.", param="structured_outputs")
    _check_tools(request.tools)
    if request.must_call is not None:
        offered = {tool.name for tool in request.tools}
        unknown = [name for name in request.must_call if name not in offered]
        if unknown or not request.must_call:
            raise InvalidParameter(
                "tool_choice", f"names no tool of the request: {', '.join(unknown) or 'none at all'}"
            )


def _check_prompt(request: GenerateRequest, prompt: str | list[int], tokenizer: Tokenizer) -> None:
    if request.messages:
        raise InvalidRequest("A request has messages or a prompt, not both.", param="prompt")
    if request.tools or request.must_call is not None:
        raise InvalidRequest("Tools are offered in a conversation; a plain prompt has none.", param="tools")
    if isinstance(prompt, list) and (unknown := [token for token in prompt if not tokenizer.knows(token)]):
        raise InvalidParameter("prompt", f"{unknown[0]} is no token of this model's vocabulary of {tokenizer.size:,}")


def _check_sampling(sampling: Sampling, tokenizer: Tokenizer) -> None:
    if len(sampling.stop) > MOST_STOPS:
        raise InvalidParameter("stop", f"may be {MOST_STOPS} strings, got {len(sampling.stop)}")
    if (longest := max(map(len, sampling.stop), default=0)) > LONGEST_STOP:
        raise InvalidParameter("stop", f"a string of it may be {LONGEST_STOP:,} characters, got {longest:,}")
    if (count := len(sampling.stop_tokens)) > MOST_STOP_TOKENS:
        raise InvalidParameter(
            "stop", f"it, or stop_token_ids, may be {MOST_STOP_TOKENS:,} ids of tokens, got {count:,}"
        )
    if unknown := [token for token in sampling.stop_tokens if not tokenizer.knows(token)]:
        raise InvalidParameter(
            "stop",
            f"{unknown[0]}, in it or in stop_token_ids, is no token of this model's vocabulary of {tokenizer.size:,}",
        )
    for token, bias in sampling.logit_bias.items():
        if not tokenizer.knows(token):
            raise InvalidParameter(
                "logit_bias", f"{token} is no token of this model's vocabulary of {tokenizer.size:,}"
            )
        if not math.isfinite(bias) or abs(bias) > STRONGEST_BIAS:
            raise InvalidParameter("logit_bias", f"must be from -100 to 100, got {bias} for token {token}")


def _check_tools(tools: list[OfferedTool]) -> None:
    written = 0
    for tool in tools:
        if not tool.name:
            raise InvalidParameter("tools", "a function has no name")
        if tool.parameters is None:
            continue
        try:
            schema = json.dumps(tool.parameters, sort_keys=True)
        except RecursionError as deep:
            raise InvalidParameter("tools", f"the parameters of {tool.name!r} are nested too deeply") from deep
        written += len(schema)
        if written > LONGEST_SCHEMAS:
            raise InvalidParameter(
                "tools", f"the parameters of all may be {LONGEST_SCHEMAS:,} characters of JSON, got more"
            )
        if fault := _fault(schema):
            raise InvalidParameter("tools", f"the parameters of {tool.name!r} {fault}")


@lru_cache(maxsize=128)
def _fault(schema: str) -> str | None:
    """What is wrong with the parameters of a tool. It takes a millisecond for each of them, and clients send theirs again."""
    parameters = json.loads(schema)
    if (kind := parameters.get("type", "object")) != "object":
        return f"must be of type object, got {json.dumps(kind)}"
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as wrong:
        return f"are no JSON schema: {wrong.message[:_LONGEST_TOLD]}"
    except OverflowError as large:  # in a pattern
        return f"are no JSON schema: {large}"
    except RecursionError:
        return "are nested too deeply"
    return None
