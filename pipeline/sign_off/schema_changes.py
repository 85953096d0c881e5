"""What changed in a database's schema between two catalogues, as the sign-off page tells it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast, get_args

from pipeline.databases import Catalogue
from pipeline.sign_off.page import SchemaChange, SchemaKind

Change = Literal["added", "removed", "changed"]

_SINGULAR = {"indexes": "index"}


def schema_changes(before: Catalogue, after: Catalogue) -> tuple[SchemaChange, ...]:
    """Everything that is new, gone or another, sorted by kind and name; of what is new or gone as a whole, no parts."""
    found: list[SchemaChange] = []
    for kind in sorted({*before, *after}, key=lambda kind: (kind != "tables", kind)):
        old, new = before.get(kind) or {}, after.get(kind) or {}
        for name in sorted({*old, *new}):
            change = _change(old.get(name), new.get(name))
            if change in {"added", "removed"}:
                found.append(SchemaChange(kind=_kind(kind), name=name, change=change))
            elif change is not None:
                parts = list(_parts(_kind(kind), name, old[name], new[name]))
                found += parts or [SchemaChange(kind=_kind(kind), name=name, change="changed")]
    return tuple(found)


def _parts(kind: SchemaKind, name: str, old: Any, new: Any) -> Iterator[SchemaChange]:
    """The parts of one object that differ: its columns, indexes and so on."""
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return
    for group in sorted({*old, *new}):
        was, now = old.get(group), new.get(group)
        if not isinstance(was or {}, Mapping) or not isinstance(now or {}, Mapping):
            continue
        for part in sorted({*(was or {}), *(now or {})}):
            change = _change((was or {}).get(part), (now or {}).get(part))
            if change is not None:
                yield SchemaChange(kind=kind, name=name, part_kind=_kind(group), part=part, change=change)


def _change(old: Any, new: Any) -> Change | None:
    if old is None and new is None:
        return None
    if old is None:
        return "added"
    if new is None:
        return "removed"
    return None if old == new else "changed"


def _kind(group: str) -> SchemaKind:
    word = _SINGULAR.get(group, group.removesuffix("s"))
    return cast(SchemaKind, word) if word in get_args(SchemaKind) else "other"
