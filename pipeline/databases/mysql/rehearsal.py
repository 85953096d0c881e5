"""Scripts tried on a copy of the schema in the scratch database, since DDL cannot be rolled back on these engines.

The copy is made with the server's own ``SHOW CREATE``; it has no rows and no events (which would run). A script that names
another database, the real one too, would change it from there, and one that changes the server changes it for all: both
are skipped. A view, a trigger or a routine that names another database makes every rehearsal reach it: then all are.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from pipeline.databases import OWN_TABLES, Rehearsed
from pipeline.databases.mysql.catalogue import SCRATCH_MARK
from pipeline.databases.mysql.foreign import beyond
from pipeline.databases.mysql.session import Command, Session, Trouble, name, sql, text
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import PipelineError, Reason, Refused
from pipeline.model import DatabaseSettings, Script


class Scratch(Protocol):
    """The scratch database, as an adapter of its own."""

    @property
    def session(self) -> Session:
        """Its session."""

    def apply(self, script: Script, sql: bytes, *, fence: int, run: str, release: str) -> bool:
        """See :meth:`pipeline.databases.Database.apply`."""

    def close(self) -> None:
        """Ends its connection."""


_PATIENCE = 5

WITHOUT_DATA = "on a copy of the schema, without its rows"


def rehearse(
    session: Session,
    settings: DatabaseSettings,
    scratch: Scratch,
    scripts: Sequence[tuple[Script, bytes]],
    run: str,
    errors: ScriptErrors,
) -> list[Rehearsed]:
    """What becomes of the scripts; the scratch database is empty afterwards."""
    target, source = settings.scratch or "", settings.name or ""
    if same(target, source):
        raise Refused(
            "the scratch database is the database itself.",
            reasons=[Reason("scratch: and name: are the same", errors.place)],
        )
    databases = {*seen(session), source}
    copied = _definitions(session, source)
    for what, definition in copied:
        if why := beyond(definition, databases):
            said = f"a copy would not stay in the scratch database: {what} {why}"
            return [Rehearsed(script.id, "skipped", said) for script, _ in scripts]
    with held(scratch.session, target, errors):
        take_over(scratch.session, target, errors)
        try:
            _make(scratch.session, copied)
            return _tried(scratch, scripts, run, errors, databases)
        finally:
            empty(scratch.session, target)


def _tried(
    scratch: Scratch,
    scripts: Sequence[tuple[Script, bytes]],
    run: str,
    errors: ScriptErrors,
    databases: Collection[str],
) -> list[Rehearsed]:
    found: list[Rehearsed] = []
    for script, data in scripts:
        try:
            if why := beyond(errors.text(script, data, in_transaction=False), databases):
                found.append(Rehearsed(script.id, "skipped", f"it {why}"))
                continue
            scratch.apply(script, data, fence=1, run=run, release="rehearsal")
        except PipelineError as error:
            said = "; ".join([error.what, *(str(reason) for reason in error.reasons)])
            return [*found, Rehearsed(script.id, "failed", said)]
        found.append(Rehearsed(script.id, "ok", WITHOUT_DATA))
    return found


def same(one: str, other: str) -> bool:
    """Whether two names may be one database's: some servers do not tell capitals apart."""
    return one.casefold() == other.casefold()


def seen(session: Session) -> set[str]:
    """The databases of the server that this user sees."""
    return {str(row[0]) for row in session.ask("SHOW DATABASES")}


@contextmanager
def held(session: Session, database: str, errors: ScriptErrors) -> Iterator[None]:
    """One user of the scratch database at a time, on a connection that lives as long as the block; Locked otherwise."""
    with ExitStack() as stack:
        if not session.hold(stack, f"scratch:{database.casefold()}", _PATIENCE):
            raise errors.locked(f"a rehearsal or a trial restore uses the scratch database {database}", _PATIENCE)
        yield


def take_over(session: Session, database: str, errors: ScriptErrors) -> None:
    """The scratch database, empty but for a mark that it is ours; Refused when it holds what is not."""
    things = [str(row[0]) for rows in _contents(session, database) for row in rows]
    if things and SCRATCH_MARK not in {row[0] for row in session.ask("SHOW TABLES")}:
        raise Refused(
            f"the scratch database {database} is not empty.",
            reasons=[Reason(f"it holds {', '.join(sorted(things)[:5])}, which nobody marked as ours", errors.place)],
            state="Nothing of it was touched.",
            next_commands=["empty it yourself, or name another one under scratch:"],
        )
    empty(session, database)
    session.send([Command(f"CREATE TABLE {name(SCRATCH_MARK)} (n int) ENGINE=InnoDB")])


def _contents(session: Session, database: str) -> list[list[tuple[Any, ...]]]:
    """The names and kinds of its tables and views, its routines, its events."""
    schema = sql("CONVERT({name} USING utf8mb4)", name=text(database))
    asked = (
        "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = {schema}",
        "SELECT routine_name, routine_type FROM information_schema.routines WHERE routine_schema = {schema}",
        "SELECT event_name, 'EVENT' FROM information_schema.events WHERE event_schema = {schema}",
    )
    return [session.ask(sql(each, schema=schema)) for each in asked]


def empty(session: Session, database: str, keep: Collection[str] = ()) -> None:
    """Everything in the database goes, its tables of the history too; the tables in ``keep`` stay."""
    tables, routines, events = _contents(session, database)
    tables = [row for row in tables if row[0] not in keep]
    words = {"BASE TABLE": "TABLE", "SYSTEM VERSIONED": "TABLE"}
    # The mark goes last: what is interrupted stays ours.
    order = sorted([*events, *tables, *routines], key=lambda row: (row[0] == SCRATCH_MARK, "VIEW" not in row[1]))
    commands = [
        Command(f"DROP {words.get(kind, kind)} IF EXISTS {name(database)}.{name(each)}") for each, kind in order
    ]
    session.send([Command("SET SESSION foreign_key_checks = 0")])
    try:
        for _ in session.stream(commands):
            pass
    finally:
        session.send([Command("SET SESSION foreign_key_checks = 1")])


def _definitions(source: Session, database: str) -> list[tuple[str, str]]:
    """What a copy is made of, each as words for it and its statement, in an order in which views come last."""
    tables = source.ask("SHOW FULL TABLES")
    made: list[tuple[str, str]] = []
    for table, kind in tables:
        if table not in OWN_TABLES and kind in {"BASE TABLE", "SYSTEM VERSIONED", "SEQUENCE"}:
            definition = _definition(source.ask(f"SHOW CREATE TABLE {name(table)}"), 1)
            made.append((f"table {table}", _own_sequences(definition, database)))
    for kind, column in (("FUNCTION", 2), ("PROCEDURE", 2)):
        rows = source.ask(
            sql(
                "SELECT routine_name FROM information_schema.routines WHERE routine_schema = CONVERT({schema} USING utf8mb4)"
                " AND routine_type = '{kind}'",
                schema=text(database),
                kind=kind,
            )
        )
        for (routine,) in rows:
            definition = _definition(source.ask(f"SHOW CREATE {kind} {name(routine)}"), column)
            made.append((f"{kind.lower()} {routine}", definition))
    for row in source.ask("SHOW TRIGGERS"):
        made.append((f"trigger {row[0]}", _definition(source.ask(f"SHOW CREATE TRIGGER {name(row[0])}"), 2)))
    for table, kind in tables:
        if kind == "VIEW":
            made.append((f"view {table}", _definition(source.ask(f"SHOW CREATE VIEW {name(table)}"), 1)))
    return made


def _own_sequences(definition: str, database: str) -> str:
    """The server writes a sequence in a default with its database, which here is the copy's own."""
    return re.sub(rf"\b((?:next|last|set)val\(){re.escape(name(database))}\.", r"\1", definition)


def _make(target: Session, definitions: Sequence[tuple[str, str]]) -> None:
    views = [each for what, each in definitions if what.startswith("view ")]
    target.send([Command("SET SESSION foreign_key_checks = 0")])
    try:
        for what, each in definitions:
            if not what.startswith("view "):
                target.send([Command(each, alone=True)])
        # A view may stand on another that comes later.
        while views:
            left = [each for each in views if not _made(target, each)]
            if len(left) == len(views):
                target.send([Command(left[0], alone=True)])
            views = left
    finally:
        target.send([Command("SET SESSION foreign_key_checks = 1")])


def _definition(rows: list[tuple[Any, ...]], column: int) -> str:
    return str(rows[0][column])


def _made(target: Session, statement: str) -> bool:
    try:
        target.send([Command(statement, alone=True)])
    except Trouble:
        return False
    return True
