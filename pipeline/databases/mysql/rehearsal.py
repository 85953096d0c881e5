"""Scripts tried on a copy of the schema in the scratch database, since DDL cannot be rolled back on these engines.

The copy is made with the server's own ``SHOW CREATE``; it has no rows and no events (which would run). A script that names
the real database would change it from there too, so it is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from pipeline.databases import OWN_TABLES, Rehearsed
from pipeline.databases.mysql.catalogue import SCRATCH_MARK
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
    target = settings.scratch or ""
    if target == settings.name:
        raise Refused(
            "the scratch database is the database itself.",
            reasons=[Reason("scratch: and name: are the same", errors.place)],
        )
    other = re.compile(
        rf"(?:`{re.escape(settings.name or '')}`|\b{re.escape(settings.name or '')}\b)\s*\.", re.IGNORECASE
    )
    take_over(scratch.session, target, errors)
    found: list[Rehearsed] = []
    try:
        _copy(session, scratch.session, settings.name or "")
        for script, data in scripts:
            if other.search(data.decode(errors="replace")):
                found.append(
                    Rehearsed(script.id, "skipped", f"it names the database {settings.name}, and would change it")
                )
                continue
            try:
                scratch.apply(script, data, fence=1, run=run, release="rehearsal")
            except PipelineError as error:
                said = "; ".join([error.what, *(str(reason) for reason in error.reasons)])
                return [*found, Rehearsed(script.id, "failed", said)]
            found.append(Rehearsed(script.id, "ok", WITHOUT_DATA))
        return found
    finally:
        empty(scratch.session, target)


def take_over(session: Session, database: str, errors: ScriptErrors) -> None:
    """The scratch database, empty but for a mark that it is ours; Refused when it holds what is not."""
    tables = {row[0] for row in session.ask("SHOW TABLES")}
    if tables and SCRATCH_MARK not in tables:
        raise Refused(
            f"the scratch database {database} is not empty.",
            reasons=[
                Reason(f"it holds {', '.join(sorted(map(str, tables))[:5])}, which nobody marked as ours", errors.place)
            ],
            state="Nothing of it was touched.",
            next_commands=["empty it yourself, or name another one under scratch:"],
        )
    empty(session, database)
    session.send([Command(f"CREATE TABLE {name(SCRATCH_MARK)} (n int) ENGINE=InnoDB")])


def empty(session: Session, database: str) -> None:
    """Everything in the database goes, its tables of the history too."""
    schema = sql("CONVERT({name} USING utf8mb4)", name=text(database))
    tables = session.ask(
        sql("SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = {schema}", schema=schema)
    )
    routines = session.ask(
        sql(
            "SELECT routine_name, routine_type FROM information_schema.routines WHERE routine_schema = {schema}",
            schema=schema,
        )
    )
    events = session.ask(
        sql("SELECT event_name, 'EVENT' FROM information_schema.events WHERE event_schema = {schema}", schema=schema)
    )
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


def _copy(source: Session, target: Session, database: str) -> None:
    tables = source.ask("SHOW FULL TABLES")
    made: list[str] = []
    for table, kind in tables:
        if table not in OWN_TABLES and kind in {"BASE TABLE", "SYSTEM VERSIONED", "SEQUENCE"}:
            made.append(_definition(source.ask(f"SHOW CREATE TABLE {name(table)}"), 1))
    for kind, column in (("FUNCTION", 2), ("PROCEDURE", 2)):
        rows = source.ask(
            sql(
                "SELECT routine_name FROM information_schema.routines WHERE routine_schema = CONVERT({schema} USING utf8mb4)"
                " AND routine_type = '{kind}'",
                schema=text(database),
                kind=kind,
            )
        )
        made += [_definition(source.ask(f"SHOW CREATE {kind} {name(row[0])}"), column) for row in rows]
    made += [_definition(source.ask(f"SHOW CREATE TRIGGER {name(row[0])}"), 2) for row in source.ask("SHOW TRIGGERS")]
    views = [_definition(source.ask(f"SHOW CREATE VIEW {name(table)}"), 1) for table, kind in tables if kind == "VIEW"]
    target.send([Command("SET SESSION foreign_key_checks = 0")])
    try:
        for each in made:
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
