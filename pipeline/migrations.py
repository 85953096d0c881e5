"""How a release's migrations stand to what a database has applied. Pure: no SQL, no Git.

:mod:`pipeline.layouts` says which migrations a release holds and in which order. A script that the history knows and the
release does not is *ahead* (a later release put it there), never an error: after a hotfix or a rollback the older release
runs on the newer schema.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Literal

from pipeline.errors import Refused
from pipeline.model import Applied, Script

ALGORITHMS = frozenset({"sha256-bom-eol"})
"""Checksum algorithms that this version can compare; another one comes from a newer version."""


@dataclass(frozen=True)
class Edit:
    """An applied script whose text in the release is another: ``applied`` is its row, ``checksum`` the release's."""

    applied: Applied
    checksum: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Script, old checksum, new checksum: what ``migrate.accept`` records."""
        return (self.applied.script, self.applied.checksum, self.checksum)


@dataclass(frozen=True)
class Comparison:
    """How a release's scripts stand to a history.

    ``pending`` in the order in which they run, repeatable ones after all others; a blocked script is among them, since its
    rest is still to run. ``edited`` stops everything, and so does ``blocked`` until somebody repairs it: rows of scripts
    that were begun and not finished. ``accepted`` are edits that were recorded as harmless; ``ahead`` are rows of scripts
    that this release does not hold. ``covers`` count as applied together with the full schema, where that is pending.
    """

    pending: tuple[Script, ...]
    edited: tuple[Edit, ...]
    ahead: tuple[Applied, ...]
    accepted: tuple[Edit, ...] = ()
    blocked: tuple[Applied, ...] = ()
    covers: tuple[Script, ...] = ()


def compare(
    scripts: Sequence[Script],
    history: Iterable[Applied],
    accepted: AbstractSet[tuple[str, str, str]] = frozenset(),
    *,
    empty: bool = False,
) -> Comparison:
    """What is pending, edited, ahead and blocked. ``accepted`` holds (script, old checksum, new checksum).

    ``empty``: the database has no history and no table. Then the full schema runs where the release has one, instead of the
    versioned scripts before it; so it does where it was begun and not finished. Refused when the history uses a checksum
    algorithm of a newer version: nothing can be said about it then.
    """
    rows = {row.script: row for row in history}
    unknown = sorted({row.algorithm for row in rows.values()} - ALGORITHMS)
    if unknown:
        raise Refused(
            "the migration history was written by a newer version.",
            reasons=[f"checksum algorithm {name}" for name in unknown],
            next_commands=["install the newer tma-pipeline, then the same command again"],
        )
    initial = next((script for script in scripts if script.kind == "initial"), None)
    fresh = initial is not None and (rows[initial.id].state == "running" if initial.id in rows else empty and not rows)
    covers = tuple(script for script in scripts[: scripts.index(initial)] if fresh) if initial is not None else ()
    covered = {script.id for script in covers}
    due = [s for s in scripts if s.id not in covered and _due(s, rows.get(s.id), fresh=fresh)]
    edits = [
        Edit(rows[script.id], script.checksum)
        for script in scripts
        if script.kind == "versioned" and script.id in rows and rows[script.id].checksum != script.checksum
    ]
    held = {script.id for script in scripts}
    return Comparison(
        pending=tuple(sorted(due, key=lambda script: script.kind == "repeatable")),
        edited=tuple(edit for edit in edits if edit.key not in accepted),
        ahead=tuple(row for row in rows.values() if row.script not in held),
        accepted=tuple(edit for edit in edits if edit.key in accepted),
        blocked=tuple(row for row in rows.values() if row.state == "running"),
        covers=covers,
    )


def _due(script: Script, row: Applied | None, *, fresh: bool) -> bool:
    if script.kind == "initial":
        return fresh
    if row is None or row.state == "running":
        return True
    return script.kind == "repeatable" and row.checksum != script.checksum


def select(
    scripts: Iterable[Script],
    only: str | Collection[str] | None = None,
    except_: str | Collection[str] | None = None,
    phase: Literal["expand", "contract"] | None = None,
) -> list[Script]:
    """The scripts of one ``migrate`` step, in the same order: base name matches ``only`` (all when None), not ``except_``.

    Of the phase *contract* are the scripts that say so of themselves, of *expand* all others; None asks for neither.
    Patterns are those of :mod:`fnmatch`, with upper and lower case told apart on every machine.
    """
    chosen = [script for script in scripts if named(script.id, only, except_)]
    if phase is None:
        return chosen
    return [script for script in chosen if (script.phase == "contract") == (phase == "contract")]


def named(script: str, only: str | Collection[str] | None = None, except_: str | Collection[str] | None = None) -> bool:
    """Whether the migration with this id is one of a ``migrate`` step, as :func:`select` chooses.

    A script that is called after its folder (``2024-01-01-000000_name/up.sql``) goes by the folder's name.
    """
    path = PurePosixPath(script)
    name = path.parent.name if path.name == "up.sql" and path.parent.name else path.name
    wanted = only is None or any(fnmatchcase(name, pattern) for pattern in _patterns(only))
    return wanted and not any(fnmatchcase(name, pattern) for pattern in _patterns(except_))


def _patterns(value: str | Collection[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
