"""Which migrations a release holds, and how they stand to what a database has applied. Pure: no SQL, no Git.

Order is the order of the ids by Unicode code point, so ``10_x.sql`` comes before ``9_x.sql``: products write leading
zeros. A script that the history knows and the release does not is *ahead* (a later release put it there), never an
error: after a hotfix or a rollback the older release runs on the newer schema.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from pipeline.content import script_checksum
from pipeline.errors import Failed, Reason, Refused
from pipeline.model import Applied, Manifest, Script
from pipeline.paths import is_plain

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

    ``pending`` in the order in which they run; ``edited`` stops everything; ``accepted`` are edits that were recorded as
    harmless; ``ahead`` are rows of scripts that this release does not hold.
    """

    pending: tuple[Script, ...]
    edited: tuple[Edit, ...]
    ahead: tuple[Applied, ...]
    accepted: tuple[Edit, ...] = ()


def scripts_of(manifest: Manifest, folder: str, pattern: str, read: Callable[[str], bytes | None]) -> list[Script]:
    """The migrations below ``folder`` whose base name matches ``pattern``, sorted by id (the path below the folder).

    ``read`` gives a blob's bytes by its object id. Refused when a match is a symbolic link: its text would lie outside
    the checksum. Failed when a blob is missing.
    """
    prefix = "" if folder.strip("/") in {"", "."} else folder.strip("/") + "/"
    scripts: list[Script] = []
    for file in manifest.files:
        if not file.path.startswith(prefix) or not fnmatchcase(PurePosixPath(file.path).name, pattern):
            continue
        if file.mode == "120000":
            raise Refused(
                f"migration {file.path} is a symbolic link.",
                reasons=[Reason("the checksum would cover the link, not the text", file.path)],
            )
        if not is_plain(file.path):
            raise Refused(
                f"migration {file.path} has a name that a history cannot hold.",
                reasons=[
                    Reason(
                        "control characters, backslashes and bytes that are not UTF-8 are not for migrations", file.path
                    )
                ],
            )
        data = read(file.blob)
        if data is None:
            raise Failed(f"migration {file.path} cannot be read.", reasons=[Reason(f"blob {file.blob} is missing")])
        scripts.append(Script(id=file.path[len(prefix) :], checksum=script_checksum(data), blob=file.blob))
    return sorted(scripts, key=lambda script: script.id)


def compare(
    scripts: Sequence[Script], history: Iterable[Applied], accepted: AbstractSet[tuple[str, str, str]] = frozenset()
) -> Comparison:
    """What is pending, edited and ahead. ``accepted`` holds (script, old checksum, new checksum).

    Refused when the history uses a checksum algorithm of a newer version: nothing can be said about it then.
    """
    rows = {row.script: row for row in history}
    unknown = sorted({row.algorithm for row in rows.values()} - ALGORITHMS)
    if unknown:
        raise Refused(
            "the migration history was written by a newer version.",
            reasons=[f"checksum algorithm {name}" for name in unknown],
            next_commands=["install the newer tma-pipeline, then the same command again"],
        )
    edits = [
        Edit(rows[script.id], script.checksum)
        for script in scripts
        if script.id in rows and rows[script.id].checksum != script.checksum
    ]
    held = {script.id for script in scripts}
    return Comparison(
        pending=tuple(script for script in scripts if script.id not in rows),
        edited=tuple(edit for edit in edits if edit.key not in accepted),
        ahead=tuple(row for row in rows.values() if row.script not in held),
        accepted=tuple(edit for edit in edits if edit.key in accepted),
    )


def select(
    scripts: Iterable[Script], only: str | Collection[str] | None = None, except_: str | Collection[str] | None = None
) -> list[Script]:
    """The scripts of one ``migrate`` step, in the same order: base name matches ``only`` (all when None), not ``except_``.

    Patterns are those of :mod:`fnmatch`, with upper and lower case told apart on every machine.
    """
    return [script for script in scripts if named(script.id, only, except_)]


def named(script: str, only: str | Collection[str] | None = None, except_: str | Collection[str] | None = None) -> bool:
    """Whether the migration with this id is one of a ``migrate`` step, as :func:`select` chooses."""
    name = PurePosixPath(script).name
    wanted = only is None or any(fnmatchcase(name, pattern) for pattern in _patterns(only))
    return wanted and not any(fnmatchcase(name, pattern) for pattern in _patterns(except_))


def _patterns(value: str | Collection[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
