"""What changed between two catalogues, in sentences for people; and one number for a whole catalogue.

The shape that every engine gives (:data:`pipeline.databases.Catalogue`)::

    {"tables": {"public.orders": {"kind": "table",
                                  "columns": {"note": {"type": "text", "nullable": true, …}, …},
                                  "constraints": {"orders_pkey": "PRIMARY KEY (id)"}, "indexes": {…}, "triggers": {…}}},
     "views": {"public.v": {"definition": "SELECT …"}}, "functions": {…}, "types": {…}, …}

kind of object → name → property → value, or, for the parts of an object (columns, indexes), property → part → value or
properties. Values are text, numbers, true, false or null: where an order counts (the values of an enum) it is one text.
So there are no lists, and two catalogues are equal when their JSON with sorted keys is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.databases import Catalogue

LONGEST = 60
"""Characters of a value that are shown; a longer one (a view's text) is only said to have changed."""

_ONE = {"indexes": "index", "policies": "policy"}


def fingerprint(catalogue: Catalogue) -> str:
    """SHA-256 of the catalogue, in hexadecimal: the same for the same schema."""
    text = json.dumps(catalogue, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def differences(before: Catalogue, after: Catalogue) -> list[str]:
    """One sentence for each thing that is new, gone or another, sorted by object; empty when the schemas are equal."""
    found: list[str] = []
    for kind in sorted({*before, *after}):
        old, new = before.get(kind, {}), after.get(kind, {})
        for name in sorted({*old, *new}):
            what = f"{_one(kind)} {name}"
            if name not in old:
                found.append(f"{what}: added")
            elif name not in new:
                found.append(f"{what}: removed")
            else:
                found += [f"{what}: {change}" for change in _changes(old[name], new[name])]
    return found


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        if isinstance(was, Mapping) or isinstance(now, Mapping):
            yield from _parts(_one(key), was or {}, now or {})
        elif was != now:
            yield _change(key, was, now)


def _parts(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        was, now = old.get(name), new.get(name)
        if name not in old:
            yield f"{what} {name} added{_shown(now)}"
        elif name not in new:
            yield f"{what} {name} removed"
        elif isinstance(was, Mapping) and isinstance(now, Mapping):
            for key in sorted({*was, *now}):
                if was.get(key) != now.get(key):
                    yield f"{what} {name}: {_change(key, was.get(key), now.get(key))}"
        elif was != now:
            yield f"{what} {name}: {_change('', was, now)}"


def _change(key: str, was: object, now: object) -> str:
    old, new = _value(was), _value(now)
    words = f"{key} " if key else ""
    return f"{words}changed" if old is None or new is None else f"{words}was {old}, is {new}"


def _shown(value: object) -> str:
    """A new part in brackets: a column by its type, an index by its definition."""
    text = _value(value.get("type", value.get("definition")) if isinstance(value, Mapping) else value)
    return f" ({text})" if text and text != "nothing" else ""


def _value(value: object) -> str | None:
    """The value for a sentence; None when it is too long for one."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else None


def _one(kind: str) -> str:
    return _ONE.get(kind, kind.removesuffix("s"))
