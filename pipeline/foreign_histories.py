"""What other migration tools have written down about a database, and which of a release's scripts that names. Pure.

Each tool keeps a table of its own: Flyway, Liquibase, dbmate, sqitch, golang-migrate, diesel and Alembic. A new tool is one
entry of :data:`TOOLS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline.model import Engine, Script

Row = Sequence[Any]


@dataclass(frozen=True)
class Reading:
    """What a tool's rows mean for a release's scripts.

    ``applied`` are our ids, in the release's order. ``unknown`` are the tool's own names of what ran and is none of these
    scripts; ``unfinished`` those of what it began and did not finish.
    """

    applied: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """A tool's table: its base name, the columns that tell it apart, what is asked of it, and how rows are read."""

    table: str
    columns: tuple[str, ...]
    without: tuple[str, ...]
    asked: str
    read: Callable[[Sequence[Row], Sequence[Script]], Reading]


def found(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The tools of which the catalogue's ``tables`` hold a table, each with its name there."""
    tools: dict[str, str] = {}
    for name, table in sorted(tables.items()):
        columns = {column.lower() for column in table.get("columns", {})}
        for tool, known in TOOLS.items():
            same = name.rpartition(".")[2].lower() == known.table
            if same and columns.issuperset(known.columns) and columns.isdisjoint(known.without):
                tools[tool] = name
    return tools


def statement(tool: str, table: str, engine: Engine) -> str:
    """The query for the tool's rows, oldest first; ``table`` is its name in the catalogue."""
    mark = "`" if engine in {"mariadb", "mysql"} else '"'
    quoted = ".".join(mark + part.replace(mark, mark * 2) + mark for part in table.split("."))
    return TOOLS[tool].asked.format(table=quoted, mark=mark)


def reading(tool: str, rows: Sequence[Row], scripts: Sequence[Script]) -> Reading:
    """What these rows of a tool's table say of these scripts."""
    return TOOLS[tool].read(rows, [script for script in scripts if script.kind != "initial"])


def _taken(scripts: Iterable[Script], ran: Iterable[str], name: Callable[[Script], str | None]) -> Reading:
    """The scripts that ``name`` gives one of the names that ran; what it gives none of is unknown."""
    left = dict.fromkeys(ran)
    applied: list[str] = []
    for script in scripts:
        called = name(script)
        if called is not None and called in left:
            applied.append(script.id)
    known = {name(script) for script in scripts}
    return Reading(tuple(applied), tuple(one for one in left if one not in known))


def _base(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name


def _number(script: Script) -> str | None:
    """The leading number of a file's name without leading zeros, as dbmate and golang-migrate count."""
    match = re.match(r"\d+", _base(script.id))
    return None if match is None else str(int(match[0]))


# --- the tools --------------------------------------------------------------------------------------------------------


def _flyway(rows: Sequence[Row], scripts: Sequence[Script]) -> Reading:
    """Rows of version, type, script, success. A baseline stands for every version up to its own; an undone one is gone."""
    versions: set[tuple[int, ...]] = set()
    named: set[str] = set()
    unknown: dict[str, None] = {}
    unfinished: list[str] = []
    baseline: tuple[int, ...] = ()
    for version, kind, script, success in rows:
        numbers = _version(str(version)) if version is not None else ()
        if not success:
            unfinished.append(str(script))
        elif kind in {"BASELINE", "SQL_BASELINE"}:
            baseline = max(baseline, numbers)
        elif str(kind).startswith("UNDO") or kind == "DELETE":
            versions.discard(numbers)
            unknown.pop(str(script), None)
        elif kind != "SCHEMA":
            if version is None:
                named.add(_base(str(script)))
            else:
                versions.add(numbers)
            unknown[str(script)] = None
    applied: list[str] = []
    held: set[tuple[int, ...]] = set()
    for one in scripts:
        base = _base(one.id)
        match = re.match(r"V([\d._]+?)(?:__|\.sql)", base)
        if match is not None:
            numbers = _version(match[1])
            held.add(numbers)
            if numbers in versions or (baseline and numbers <= baseline):
                applied.append(one.id)
        elif base in named:
            applied.append(one.id)
    bases = {_base(one.id) for one in scripts}
    strange = [
        name
        for name in unknown
        if _base(name) not in bases
        and not ((m := re.match(r"V([\d._]+?)(?:__|\.)", _base(name))) and _version(m[1]) in held)
    ]
    return Reading(tuple(applied), tuple(strange), tuple(unfinished))


def _version(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.split(r"[._]", text) if part.isdigit()]
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _liquibase(rows: Sequence[Row], scripts: Sequence[Script]) -> Reading:
    """Rows of author, id, filename, exectype. A script counts where a change set of a file with its name ran."""
    ran: dict[str, None] = {}
    sets: dict[str, list[str]] = {}
    for author, id, filename, outcome in rows:
        if outcome in {"EXECUTED", "RERAN", "MARK_RAN"}:
            base = _base(str(filename))
            ran[base] = None
            sets.setdefault(base, []).append(f"{filename}::{id}::{author}")
    told = _taken(scripts, ran, lambda script: _base(script.id))
    return Reading(told.applied, tuple(one for base in told.unknown for one in sets[base]))


def _dbmate(rows: Sequence[Row], scripts: Sequence[Script]) -> Reading:
    """Rows of a version each: the number that a file's name begins with."""
    return _taken(scripts, [str(int(v)) if str(v).isdigit() else str(v) for (v,) in rows], _number)


def _golang_migrate(rows: Sequence[Row], scripts: Sequence[Script]) -> Reading:
    """One row of a version and whether it is dirty: every script up to this version has run."""
    for version, dirty in rows:
        ran = [script.id for script in scripts if (n := _number(script)) is not None and int(n) <= int(version)]
        here = {_number(script) for script in scripts}
        unknown = (str(version),) if str(int(version)) not in here and int(version) > 0 else ()
        return Reading(tuple(ran), unknown, (str(version),) if dirty else ())
    return Reading(())


def _diesel(rows: Sequence[Row], scripts: Sequence[Script]) -> Reading:
    """Rows of a version each: the part of a folder's name before its first ``_``, without hyphens."""

    def version(script: Script) -> str | None:
        folder = PurePosixPath(script.id).parent.name or _base(script.id)
        return folder.split("_", 1)[0].replace("-", "")

    return _taken(scripts, [str(v).replace("-", "") for (v,) in rows], version)


def _sqitch(rows: Sequence[Row], scripts: Sequence[Script]) -> Reading:
    """Rows of a change's name each, as our ids are."""
    return _taken(scripts, [str(change) for (change,) in rows], lambda script: script.id)


def _alembic(rows: Sequence[Row], scripts: Sequence[Script]) -> Reading:
    """Rows of a revision each, up to which all has run: the one that a file's name begins with, or holds between ``_``."""
    heads = [str(revision) for (revision,) in rows]
    last = -1
    known: set[str] = set()
    for position, script in enumerate(scripts):
        for word in re.split(r"[_.\-]", _base(script.id)):
            if word in heads:
                last, known = position, known | {word}
    applied = tuple(script.id for script in scripts[: last + 1])
    return Reading(applied, tuple(head for head in heads if head not in known))


TOOLS: Mapping[str, Tool] = {
    "flyway": Tool(
        "flyway_schema_history",
        ("installed_rank", "version", "script", "success"),
        (),
        "SELECT version, type, script, success FROM {table} ORDER BY installed_rank",
        _flyway,
    ),
    "liquibase": Tool(
        "databasechangelog",
        ("id", "author", "filename", "exectype"),
        (),
        "SELECT author, id, filename, exectype FROM {table} ORDER BY orderexecuted",
        _liquibase,
    ),
    "dbmate": Tool(
        "schema_migrations", ("version",), ("dirty",), "SELECT version FROM {table} ORDER BY version", _dbmate
    ),
    "sqitch": Tool(
        "changes",
        ("change_id", "change", "project", "committed_at"),
        (),
        "SELECT {mark}change{mark} FROM {table} ORDER BY committed_at",
        _sqitch,
    ),
    "golang-migrate": Tool(
        "schema_migrations", ("version", "dirty"), (), "SELECT version, dirty FROM {table}", _golang_migrate
    ),
    "diesel": Tool(
        "__diesel_schema_migrations", ("version", "run_on"), (), "SELECT version FROM {table} ORDER BY version", _diesel
    ),
    "alembic": Tool("alembic_version", ("version_num",), (), "SELECT version_num FROM {table}", _alembic),
}
