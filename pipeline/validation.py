"""A file's value as a model of :mod:`pipeline.model`; each of Pydantic's errors at its place, in words that help.

Validation is strict as for JSON: ``port: '22'`` and ``port: true`` are errors, not 22 and 1.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.errors import Reason
from pipeline.model import Key, SecretReference, SigningKey
from pipeline.strict_yaml import Place, Source, quoted, shorten
from pipeline.suggest import did_you_mean, nearest

# What a file means is for the models to say, not for a plugin of Pydantic's that happens to be installed; and to look for
# one, Pydantic reads the metadata of every installed package when it builds the first model, by way of ``email``.
_no_plugins: Any = ModuleType("pydantic.plugin._loader")
_no_plugins.get_plugins = tuple
sys.modules.setdefault(_no_plugins.__name__, _no_plugins)

Model = TypeVar("Model", bound=BaseModel)


def _pattern(annotation: Any) -> str:
    return next(str(part.pattern) for part in get_args(annotation)[1:] if getattr(part, "pattern", None))


_PATTERNS = {
    _pattern(Key): "lower-case letters, digits and inner hyphens, at most 63",
    _pattern(SecretReference): "a reference to a secret, never the secret itself: env:NAME or file:PATH",
    next(str(part.pattern) for part in SigningKey.model_fields["public"].metadata if getattr(part, "pattern", None)): (
        "an Ed25519 public key as OpenSSH writes it (ssh-ed25519 AAAA…), or file:PATH of such a file"
    ),
}
_EXPECTED = {
    "string": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "list": "a list",
    "dict": "keys and values",
    "model": "keys and values",
    "datetime": "an instant, for instance 2026-11-22T20:00:00Z",
    "timezone": "an instant with its time zone, for instance 2026-11-22T20:00:00Z",
    "date": "a date, for instance 2026-11-22",
    "time": "a time of day, for instance 20:00",
}


def validated(
    model: type[Model], source: Source, fixed: Mapping[str, str] | None = None, *, written_short: bool = False
) -> tuple[Model | None, list[Reason]]:
    """The model of this file, and every reason against it; the model is None exactly when Pydantic refused the value.

    ``fixed`` holds fields that the file's or folder's name gives: the file need not repeat them, and must not disagree.
    ``written_short`` is for a model that rewrites parts before it validates them, a playbook with its steps: Pydantic
    then leaves the JSON mode, in which a list is a tuple, for the Python mode, in which strictly it is not.
    Reasons that the strict reading gave already are in ``source.problems`` and not repeated.
    """
    if not source.whole:
        return None, []
    if not isinstance(source.value, dict):
        return None, [Reason(f"expected keys and values, found {_found(source.value)}", source.position())]
    reasons = []
    value = dict(source.value)
    for field, given in (fixed or {}).items():
        if value.setdefault(field, given) != given:
            reasons.append(
                Reason(f"{field} must be {quoted(given)}, as the name says, or be left out", source.position(field))
            )
            value[field] = given
    try:
        if written_short:
            return model.model_validate(_with_tuples(value), strict=True), reasons
        return model.model_validate_json(json.dumps(value), strict=True), reasons
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A list whose items are wrong is short of them for Pydantic, and not for the person who wrote them.
        wrong = {fault["loc"][:length] for fault in faults for length in range(len(fault["loc"]))}
        for fault in faults:
            if fault["type"] == "too_short" and fault["loc"] in wrong:
                continue
            reason = _reason(model, source, fault)
            if reason is not None:
                reasons.append(reason)
    return None, reasons


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    return tuple(_with_tuples(item) for item in value) if isinstance(value, list) else value


def _reason(model: type[BaseModel], source: Source, fault: Mapping[str, Any]) -> Reason | None:
    loc: tuple[str | int, ...] = tuple(fault["loc"])
    kind: str = fault["type"]
    place, exact = source.find(*loc)
    if exact and source.refused_at(place) and kind != "extra_forbidden":
        return None
    if kind == "extra_forbidden":
        word = str(loc[-1])
        known = fields_at(model, loc[:-1])
        return Reason(f"unknown key '{shorten(word)}'{did_you_mean(word, known)}", source.key_position(*loc))
    if kind == "missing":
        written = [key for key in place.children if isinstance(key, str)]
        fields = fields_at(model, loc[:-1])
        near = nearest(str(loc[-1]), (key for key in written if key not in fields))
        tail = f" (is it '{near}'?)" if near else ""
        return Reason(f"{loc[-1]} is missing{tail}", source.position(*loc[:-1]))
    return Reason(_words(source, loc, place, fault), source.position(*loc))


def _words(source: Source, loc: tuple[str | int, ...], place: Place, fault: Mapping[str, Any]) -> str:
    kind: str = fault["type"]
    context: Mapping[str, Any] = fault.get("ctx") or {}
    given = fault["input"]
    name = next((str(part) for part in reversed(loc) if isinstance(part, str)), "the file")
    if kind.startswith("union_tag"):
        return _step_words(given, context)
    if kind == "value_error":
        return f"{_of(loc, name)}{fault['msg'].removeprefix('Value error, ')}"
    if kind == "string_pattern_mismatch":
        wanted = _PATTERNS.get(context["pattern"], f"a text like {context['pattern']}")
        shown = "" if place.confidential or wanted.startswith("a reference") else f", not {quoted(str(given))}"
        return f"{name}: expected {wanted}{shown}"
    if kind == "literal_error":
        known = _literals(str(context["expected"]))
        shown = "another value" if place.confidential else quoted(str(given))
        return f"{name}: {shown} is not one of {', '.join(known)}{_nearest_only(str(given), known)}"
    if kind in {"too_short", "string_too_short"}:
        return f"{name}: at least {context.get('min_length', 1)} is needed"
    wanted = _EXPECTED.get(kind.split("_", maxsplit=1)[0], "")
    if not wanted:
        message: str = fault["msg"]
        return f"{name}: {message[:1].lower()}{message[1:]}"
    if wanted == "a text" and place.plain and not isinstance(given, str):
        if place.confidential:
            return f"{name}: expected a text; put it in quotes"
        return f"{name}: expected a text, found {_found(given)}; write {quoted(place.plain)}"
    shown = "another" if place.confidential else _found(given)
    return f"{name}: expected {wanted}, found {shown}"


def _of(loc: tuple[str | int, ...], name: str) -> str:
    return f"{name}: " if loc else ""


def _nearest_only(word: str, known: Iterable[str]) -> str:
    near = nearest(word, known)
    return f" (did you mean '{near}'?)" if near else ""


def _literals(expected: str) -> tuple[str, ...]:
    """The words in Pydantic's ``'fr', 'de' or 'en'``."""
    return tuple(part.strip().strip("'") for part in expected.replace(" or ", ", ").split(", ") if part.strip())


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return quoted(value)
    return "a list" if isinstance(value, list | tuple) else "keys and values"


def _step_words(given: Any, context: Mapping[str, Any]) -> str:
    """Why one entry of ``steps:`` is of no step kind."""
    known = _literals(str(context.get("expected_tags", "")))
    word = context.get("tag")
    if word is None and isinstance(given, dict) and "kind" not in given:
        if len(given) == 1:
            only, options = next(iter(given.items()))
            return f"'{shorten(str(only))}' takes keys and values, found {_found(options)}"
        keys = ", ".join(shorten(str(key)) for key in list(given)[:6])
        return f"a step has one kind, found {keys}; the options of a step are indented below its kind"
    if word is None:
        return f"expected a step, for instance upload, or check: with its options; found {_found(given)}"
    return f"unknown step '{shorten(str(word))}'{did_you_mean(str(word), known)}"


def fields_at(annotation: Any, loc: tuple[str | int, ...]) -> tuple[str, ...]:
    """The keys that may be written at ``loc`` of a model; a union's tag in ``loc`` chooses among its models."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return fields_at(get_args(annotation)[0], loc)
    if origin in {Union, types.UnionType}:
        members = get_args(annotation)
        tagged = [member for member in members if loc and _tag(member) == loc[0]]
        if tagged:
            return fields_at(tagged[0], loc[1:])
        return tuple(dict.fromkeys(field for member in members for field in fields_at(member, loc)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if not loc:
            return tuple(fields)
        field = fields.get(str(loc[0]))
        return fields_at(field.annotation, loc[1:]) if field else ()
    if loc and origin in {tuple, list, dict}:
        return fields_at(get_args(annotation)[1 if origin is dict else 0], loc[1:])
    return ()


def _tag(member: Any) -> str | None:
    while get_origin(member) is Annotated:
        member = get_args(member)[0]
    field = member.model_fields.get("kind") if isinstance(member, type) and issubclass(member, BaseModel) else None
    values = get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()
    return str(values[0]) if len(values) == 1 else None
