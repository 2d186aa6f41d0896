"""A job file to begin with: every field with its meaning, bounds and default, as the spec and the plugins state them."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from luthier.core.registry import Registry
from luthier.formats.base import known
from luthier.training import defaults
from luthier.training.draft import AUTO, OPTIONS, SEED, Draft, Written
from luthier.training.faults import bound
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
from luthier.training.options import Options
from luthier.training.spec import TrainingSpec

_WIDTH = 110
_SPEC = TrainingSpec.model_fields
_KINDS: tuple[Registry[Any], ...] = (methods, objectives)


def example(method: str, objective: str, *, base_model: str, training: str) -> str:
    """A job file with a comment on every field; what may be left out stands in it as a comment that shows what holds then.

    Raises InvalidParameter for the name of a method or an objective that there is not.
    """
    chosen = {"method": method, "objective": objective}
    plugins = {registry.kind: registry.load(chosen[registry.kind]) for registry in _KINDS}
    written = {"base_model": base_model, "training": training, **chosen}
    more = {
        "training": [f"A row is {form.describes}" for form in _forms(plugins["objective"].wants)],
        **{registry.kind: list(_told(registry)) for registry in _KINDS},
    }
    lines = [
        *_comment("A job for `luthier train`. A line that begins with # shows what holds without it."),
        *_comment(f'"{AUTO}" is the same as no line: what is computed then is written into the job\'s spec.'),
    ]
    bounds = Draft.model_json_schema()["properties"]
    for name, field in Draft.model_fields.items():
        if name in OPTIONS:
            continue
        lines += ["", *_comment(field.description)]
        for sentence in more.get(name, []):
            lines += _comment(sentence)
        if name in written:
            lines.append(f"{name} = {json.dumps(written[name], ensure_ascii=False)}")
        else:
            said = None if name in Written.model_fields else _sentence(bound(bounds[name]))
            lines += [*_comment(said, _left_out(name)), f"# {name} = {_default(name)}"]
    for kind, plugin in plugins.items():
        lines += ["", f"[{kind}_options]", *_options(plugin.Options)]
    return "\n".join(lines) + "\n"


def _options(options: type[Options]) -> Iterator[str]:
    bounds = options.model_json_schema().get("properties", {})
    for name, field in options.model_fields.items():
        yield ""
        yield from _comment(field.description)
        yield from _comment(_sentence(bound(bounds[name])))
        yield f"# {name} = {_toml(field.get_default(call_default_factory=True))}"
    if not bounds:
        yield from _comment("There is nothing to choose.")


def _told(registry: Registry[Any]) -> Iterator[str]:
    """Every plugin with the first line of its file."""
    for name in registry.names():
        file = sys.modules[registry.load(name).__module__]
        yield f"{name}: {(file.__doc__ or '').strip().splitlines()[0]}" if file.__doc__ else name


def _forms(kind: str) -> list[Any]:
    return [form for form in known().values() if form.kind == kind]


def _left_out(name: str) -> str | None:
    """What a field is when it is left out, where its default does not show it."""
    if name == "seed":
        return f"Left out: {SEED}."
    if (computed := defaults.Resolved.model_fields.get(name)) is not None:
        return f"Left out: {computed.description}"
    says_so = "Absent:" in (_SPEC[name].description or "")
    return "Left out: none." if _default(name) == _toml(None) and not says_so else None


def _default(name: str) -> str:
    field = _SPEC[name]
    is_computed = field.is_required() or name in defaults.Resolved.model_fields
    return _toml(None if is_computed else field.get_default(call_default_factory=True))


def _toml(value: Any) -> str:
    """A default as TOML; "auto" for one that TOML cannot say."""
    values = value if isinstance(value, list | tuple) else [value]
    is_plain = all(isinstance(one, bool | int | float | str) for one in values)
    return json.dumps(value if is_plain else AUTO, ensure_ascii=False)


def _sentence(words: str | None) -> str | None:
    return f"{words[0].upper()}{words[1:]}." if words else None


def _comment(*sentences: str | None) -> list[str]:
    """Sentences as a paragraph of comments."""
    said = " ".join(filter(None, sentences))
    return textwrap.wrap(said, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False)
