"""What other migration tools have written down about a database, and which of a release's scripts that names. Pure.

Each tool keeps a table of its own: Flyway, Liquibase, dbmate, sqitch, golang-migrate, diesel and Alembic. A new tool is one
entry of :data:`TOOLS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pipeline.model import Engine, Script

Row = Sequence[Any]


@dataclass(frozen=True)
class Reading:
    """What a tool's rows mean for a release's scripts.

    ``applied`` are our ids, in the release's order. ``unknown`` are the tool's own names of what ran and is none of these
    scripts; ``unfinished`` those of what it began and did not finish. ``unclear`` are sentences: what may have run or not.
    """

    applied: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tool:
    """A tool's table: its base name, the columns that tell it apart, what is asked of it, and how rows are read."""

    table: str
    columns: tuple[str, ...]
    without: tuple[str, ...]
    asked: str
    read: Callable[[Sequence[Row], Sequence[Script], Mapping[str, str]], Reading]


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


def reading(
    tool: str, rows: Sequence[Row], scripts: Sequence[Script], texts: Mapping[str, str] | None = None
) -> Reading:
    """What these rows of a tool's table say of these scripts, of which ``texts`` has the text by id.

    A repeatable script is never among the applied: with which text it ran cannot be known, and it may run again.
    """
    told = TOOLS[tool].read(rows, [script for script in scripts if script.kind != "initial"], texts or {})
    again = {script.id for script in scripts if script.kind == "repeatable"}
    return replace(told, applied=tuple(script for script in told.applied if script not in again))


def _by_name(read: Callable[[Sequence[Row], Sequence[Script]], Reading]) -> Callable[..., Reading]:
    """Of a tool whose history is told by the scripts' names alone."""
    return lambda rows, scripts, _texts: read(rows, scripts)


def _taken(scripts: Iterable[Script], ran: Iterable[str], name: Callable[[Script], str | None]) -> Reading:
    """The scripts that ``name`` gives one of the names that ran; what it gives none of is unknown."""
    called: dict[str | None, list[str]] = {}
    for script in scripts:
        called.setdefault(name(script), []).append(script.id)
    left = dict.fromkeys(ran)
    applied = tuple(ids[0] for one, ids in called.items() if one in left and len(ids) == 1)
    unclear = tuple(_any_of(one, ids) for one in left if len(ids := called.get(one, [])) > 1)
    return Reading(applied, tuple(one for one in left if one not in called), unclear=unclear)


def _any_of(name: str, scripts: Sequence[str]) -> str:
    return f"{name} may be any of {', '.join(scripts)}"


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
            # One without a version is repeatable, and Flyway keeps no checksum that can be compared with ours.
            if version is not None:
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


def _liquibase(rows: Sequence[Row], scripts: Sequence[Script], texts: Mapping[str, str]) -> Reading:
    """Rows of author, id, filename, exectype. A script counts where all change sets of the file with its path ran."""
    ran: dict[str, dict[str, str]] = {}
    for author, id, filename, outcome in rows:
        if outcome in {"EXECUTED", "RERAN", "MARK_RAN"}:
            ran.setdefault(str(filename), {})[f"{author}:{id}"] = f"{filename}::{id}::{author}"
    sets: dict[str, set[str]] = {}
    unclear: list[str] = []
    left: list[str] = []
    for filename, done in ran.items():
        alike = _alike(filename, scripts)
        if len(alike) == 1:
            sets.setdefault(alike[0], set()).update(done)
        elif alike:
            unclear.append(_any_of(filename, alike))
        else:
            left.append(filename)
    unknown: list[str] = []
    for filename in left:
        same = [script.id for script in scripts if _base(script.id) == _base(filename) and script.id not in sets]
        unclear += [f"{filename} may be {' or '.join(same)}, which lies elsewhere"] if same else []
        unknown += [] if same else ran[filename].values()
    applied: list[str] = []
    for script in scripts:
        missing = [one for one in _change_sets(texts.get(script.id, "")) if one not in sets.get(script.id, ())]
        if script.id in sets and missing:
            unclear.append(f"{script.id}: of its change sets {', '.join(missing)} did not run")
        elif script.id in sets:
            applied.append(script.id)
    return Reading(tuple(applied), tuple(unknown), unclear=tuple(unclear))


def _alike(filename: str, scripts: Sequence[Script]) -> list[str]:
    """The scripts whose path has the longest end in common with this one, where that is all of one of the two."""
    theirs = re.split(r"[/\\:]", filename)[::-1]
    found: dict[int, list[str]] = {}
    for script in scripts:
        ours = script.id.split("/")[::-1]
        common = min(len(theirs), len(ours))
        if theirs[:common] == ours[:common]:
            found.setdefault(common, []).append(script.id)
    return found[max(found)] if found else []


def _change_sets(text: str) -> list[str]:
    """The change sets of a script in Liquibase's own format, each as author:id; a plain script is one and has none."""
    return [
        f"{author.strip()}:{id.strip()}"
        for author, id in re.findall(r"^\s*--\s*changeset\s+([^:\n]+):(\S+)", text, re.MULTILINE | re.IGNORECASE)
    ]


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
    """Rows of a revision each, up to which all has run: the one that a file's name begins with, or holds between ``_``.

    The order is only known where every name begins with a number; revisions are random otherwise.
    """
    heads = [str(revision) for (revision,) in rows]
    last = -1
    known: dict[str, None] = {}
    numbers: list[int] = []
    for position, script in enumerate(scripts):
        words = re.split(r"[_.\-]", _base(script.id))
        numbers += [int(words[0])] if words[0].isdecimal() else []
        for word in words:
            if word in heads:
                last, known[word] = position, None
    unknown = tuple(head for head in heads if head not in known)
    if known and len(scripts) > 1 and (len(numbers) < len(scripts) or numbers != sorted(set(numbers))):
        said = f"the names of {len(scripts)} scripts do not say which of them ran before it"
        return Reading((), unknown, (), tuple(f"{head}: {said}" for head in known))
    return Reading(tuple(script.id for script in scripts[: last + 1]), unknown)


TOOLS: Mapping[str, Tool] = {
    "flyway": Tool(
        "flyway_schema_history",
        ("installed_rank", "version", "script", "success"),
        (),
        "SELECT version, type, script, success FROM {table} ORDER BY installed_rank",
        _by_name(_flyway),
    ),
    "liquibase": Tool(
        "databasechangelog",
        ("id", "author", "filename", "exectype"),
        (),
        "SELECT author, id, filename, exectype FROM {table} ORDER BY orderexecuted",
        _liquibase,
    ),
    "dbmate": Tool(
        "schema_migrations", ("version",), ("dirty",), "SELECT version FROM {table} ORDER BY version", _by_name(_dbmate)
    ),
    "sqitch": Tool(
        "changes",
        ("change_id", "change", "project", "committed_at"),
        (),
        "SELECT {mark}change{mark} FROM {table} ORDER BY committed_at",
        _by_name(_sqitch),
    ),
    "golang-migrate": Tool(
        "schema_migrations", ("version", "dirty"), (), "SELECT version, dirty FROM {table}", _by_name(_golang_migrate)
    ),
    "diesel": Tool(
        "__diesel_schema_migrations",
        ("version", "run_on"),
        (),
        "SELECT version FROM {table} ORDER BY version",
        _by_name(_diesel),
    ),
    "alembic": Tool("alembic_version", ("version_num",), (), "SELECT version_num FROM {table}", _by_name(_alembic)),
}
