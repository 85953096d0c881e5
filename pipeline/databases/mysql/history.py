"""The history's tables in a MariaDB or MySQL database, and the commands that write them.

Ids are binary: no collation takes two scripts for one, and no trailing space is lost. The tables are named with their database,
so that a script's ``USE`` does not matter. Private columns: ``session`` (cannot be resumed in the middle), ``resume`` (may
go on), and in the fence's table the run that wrote last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.databases import EVENTS_TABLE, FENCE_TABLE, HISTORY_FORMAT, HISTORY_TABLE
from pipeline.databases.mysql.session import Command, name, sql, text
from pipeline.model import Applied, HistoryEvent, Script

_OPTIONS = "ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"

_CREATE = (
    "CREATE TABLE IF NOT EXISTS {history} (script varbinary(700) NOT NULL PRIMARY KEY, checksum varbinary(64) NOT NULL,"
    " algorithm varbinary(40) NOT NULL, fence bigint NOT NULL, run varbinary(255) NOT NULL,"
    " `release` varbinary(255) NOT NULL, applied_at datetime(6) NOT NULL, state varbinary(10) NOT NULL DEFAULT 'done',"
    " statement int NOT NULL DEFAULT 0, statements int NOT NULL DEFAULT 0, session tinyint NOT NULL DEFAULT 0,"
    " resume tinyint NOT NULL DEFAULT 0) " + _OPTIONS,
    "CREATE TABLE IF NOT EXISTS {events} (number bigint NOT NULL PRIMARY KEY, what varbinary(40) NOT NULL,"
    " script varbinary(700), checksum varbinary(64), fence bigint NOT NULL, run varbinary(255) NOT NULL,"
    " `release` varbinary(255) NOT NULL, at datetime(6) NOT NULL, details longtext NOT NULL) " + _OPTIONS,
    "CREATE TABLE IF NOT EXISTS {fence} (id tinyint NOT NULL PRIMARY KEY, highest bigint NOT NULL, format int NOT NULL,"
    " script varbinary(700), run varbinary(255)) " + _OPTIONS,
    "INSERT IGNORE INTO {fence} (id, highest, format) VALUES (1, 0, {format})",
)

RESTORE_TABLE = "tma_migration_restore"
"""There while a restore is under way, so that what one left half done is used by nothing but the restore again. It outlives
the emptying of the database, and holds the highest fence meanwhile."""

_RESTORING = (
    "CREATE TABLE IF NOT EXISTS {restore} (id tinyint NOT NULL PRIMARY KEY, highest bigint NOT NULL,"
    " label varbinary(255) NOT NULL, run varbinary(255) NOT NULL) " + _OPTIONS
)

LONGEST_ID = 700
"""Bytes of the longest script id that the history can hold; of a run's or a release's name it is 255."""


@dataclass(frozen=True)
class Row:
    """One script's row, with its private columns."""

    checksum: str
    state: str
    statement: int
    statements: int
    run: str
    release: str
    fence: int
    at: datetime
    session: bool
    resume: bool


class History:
    """The statements for one database's history; none of them is sent here."""

    def __init__(self, database: str, lock: str) -> None:
        tables = {"history": HISTORY_TABLE, "events": EVENTS_TABLE, "fence": FENCE_TABLE, "restore": RESTORE_TABLE}
        self._names: dict[str, object] = {key: f"{name(database)}.{name(table)}" for key, table in tables.items()}
        self._database, self._lock = database, lock

    def _sql(self, template: str, **values: object) -> str:
        return sql(template, **self._names, **values)

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def exists(self) -> Command:
        """Answered by the names of the tables that there are; :data:`RESTORE_TABLE` is not one of the history's three."""
        return Command(
            sql(
                "SELECT table_name FROM information_schema.tables WHERE table_schema = CONVERT({database} USING utf8mb4)"
                " AND table_name IN ('tma_migration_history', 'tma_migration_events', 'tma_migration_fence', '{restore}')",
                database=text(self._database),
                restore=RESTORE_TABLE,
            )
        )

    @property
    def look(self) -> Command:
        """Answered by the highest fence, the format, and whether a restore was begun and not finished."""
        return Command(
            self._sql(
                "SELECT highest, format, (SELECT COUNT(*) FROM information_schema.tables WHERE table_schema ="
                " CONVERT({database} USING utf8mb4) AND table_name = '{mark}') FROM {fence}",
                database=text(self._database),
                mark=RESTORE_TABLE,
            )
        )

    @property
    def restoring(self) -> Command:
        """Answered by the highest fence and the label of the restore under way; nothing where it had not begun to empty."""
        return Command(self._sql("SELECT highest, label FROM {restore}"))

    def row_of(self, script: str) -> Command:
        """Answered by what :func:`row` reads."""
        return Command(
            self._sql(
                "SELECT checksum, state, statement, statements, run, `release`, fence, applied_at, session, resume"
                " FROM {history} WHERE script = {script}",
                script=text(script),
            )
        )

    @property
    def rows(self) -> Command:
        """Answered by what :func:`applied` reads."""
        return Command(
            self._sql(
                "SELECT script, checksum, algorithm, fence, run, `release`, applied_at, state, statement, statements,"
                " session FROM {history} ORDER BY applied_at, script"
            )
        )

    @property
    def events(self) -> Command:
        """Answered by what :func:`event` reads."""
        return Command(
            self._sql(
                "SELECT number, what, script, checksum, fence, run, `release`, at, details FROM {events} ORDER BY number"
            )
        )

    # --- writing -----------------------------------------------------------------------------------------------------

    @property
    def create(self) -> list[Command]:
        """Makes what is missing; harmless where all is there."""
        return [Command(self._sql(each, format=HISTORY_FORMAT)) for each in _CREATE]

    def guard(self, fence: int, *, shared: bool = True, script: str | None = None, counted: int = 0) -> Command:
        """Fails with 1690 when a higher fence was seen, or when the runner's lock is no longer this session's.

        So it does when a ``script`` is given and ``counted`` is not what its row says: the server itself stops what follows in
        the message. ``shared``: the fence stays as it is until the transaction's end.
        """
        row = "0"
        if script is not None:
            row = self._sql(
                "NOT EXISTS (SELECT 1 FROM {history} WHERE script = {script} AND state = 'running' AND statement = {counted})",
                script=text(script),
                counted=counted,
            )
        return Command(
            self._sql(
                "SELECT 18446744073709551615 + (highest > {number} OR COALESCE(IS_USED_LOCK({lock}), 0) <> CONNECTION_ID()"
                " OR {row}) FROM {fence}{mode}",
                number=fence,
                lock=text(self._lock),
                row=row,
                mode=" LOCK IN SHARE MODE" if shared else "",
            ),
            "guard",
            counted + 1 if script is not None else None,
        )

    def raise_fence(self, fence: int, run: str) -> Command:
        """The fence rises, and is never lowered."""
        return Command(
            self._sql(
                "UPDATE {fence} SET highest = GREATEST(highest, {number}), run = {run}", number=fence, run=text(run)
            )
        )

    def begin_restore(self, highest: int, label: str, run: str) -> list[Command]:
        """The mark that a restore is under way."""
        values = f"1, {highest}, {text(label)}, {text(run)}"
        return [Command(self._sql(_RESTORING)), Command(self._sql("REPLACE INTO {restore} VALUES ({row})", row=values))]

    def raise_restoring(self, fence: int) -> Command:
        """The fence in the mark rises, and is never lowered."""
        return Command(self._sql("UPDATE {restore} SET highest = GREATEST(highest, {number})", number=fence))

    @property
    def end_restore(self) -> Command:
        """The mark goes."""
        return Command(self._sql("DROP TABLE IF EXISTS {restore}"))

    def begin(
        self, script: Script, statements: int, *, session: bool, fence: int, run: str, release: str
    ) -> list[Command]:
        """The *running* row of a script that is about to run from its beginning."""
        values = self._values(script, fence, run, release)
        return [
            Command(
                self._sql(
                    "REPLACE INTO {history} VALUES ({values}, UTC_TIMESTAMP(6), 'running', 0, {statements}, {session}, 0)",
                    values=values,
                    statements=statements,
                    session=int(session),
                )
            ),
            self.event("started", script, fence, run, release, {"statements": statements}),
        ]

    def go_on(self, script: Script, *, fence: int, run: str, release: str) -> Command:
        """The row of a script that goes on after a repair: blocked again until it is done."""
        return Command(
            self._sql(
                "UPDATE {history} SET resume = 0, fence = {number}, run = {run}, `release` = {release}"
                " WHERE script = {script} AND state = 'running' AND resume = 1",
                number=fence,
                run=text(run),
                release=text(release),
                script=text(script.id),
            ),
            "counter",
        )

    def count(self, script: Script, number: int) -> Command:
        """So many statements of the script are committed."""
        return Command(
            self._sql(
                "UPDATE {history} SET statement = {number} WHERE script = {script} AND state = 'running'"
                " AND checksum = {checksum} AND statement < {number}",
                number=number,
                script=text(script.id),
                checksum=text(script.checksum),
            ),
            "counter",
            number,
        )

    def finish(
        self,
        script: Script,
        covers: Sequence[Script],
        statements: int,
        *,
        again: bool,
        fence: int,
        run: str,
        release: str,
    ) -> list[Command]:
        """The script is done, those that it covers count as applied."""
        done = Command(
            self._sql(
                "UPDATE {history} SET state = 'done', statement = {statements}, applied_at = UTC_TIMESTAMP(6)"
                " WHERE script = {script} AND state = 'running' AND checksum = {checksum}",
                statements=statements,
                script=text(script.id),
                checksum=text(script.checksum),
            ),
            "counter",
        )
        return [
            done,
            self.event("reapplied" if again else "applied", script, fence, run, release, {"statements": statements}),
            *(
                each
                for other in covers
                for each in self.baseline(other, fence, run, release, {"covered_by": script.id})
            ),
        ]

    def baseline(
        self, script: Script, fence: int, run: str, release: str, details: dict[str, Any] | None = None
    ) -> list[Command]:
        """The script counts as applied unless it has a row."""
        inserted = self._sql(
            "INSERT IGNORE INTO {history} VALUES ({values}, UTC_TIMESTAMP(6), 'baseline', 0, 0, 0, 0)",
            values=self._values(script, fence, run, release),
        )
        told = self.event("baselined", script, fence, run, release, details or {})
        # ROW_COUNT() is that of the insert: no event for one that had its row.
        return [Command(inserted), Command(f"{told.sql} HAVING ROW_COUNT() > 0")]

    def restore_row(self, script: Script, row: Row) -> Command:
        """The row as it was before a repeatable script was tried again and did nothing."""
        return Command(
            self._sql(
                "REPLACE INTO {history} VALUES ({script}, {checksum}, {algorithm}, {number}, {run}, {release}, '{at}',"
                " {state}, {statement}, {statements}, {session}, 0)",
                script=text(script.id),
                checksum=text(row.checksum),
                algorithm=text(script.algorithm),
                number=row.fence,
                run=text(row.run),
                release=text(row.release),
                at=row.at.isoformat(sep=" "),
                state=text(row.state),
                statement=row.statement,
                statements=row.statements,
                session=int(row.session),
            )
        )

    def remove(self, script: str) -> Command:
        """The row goes."""
        return Command(self._sql("DELETE FROM {history} WHERE script = {script}", script=text(script)))

    def settle(self, script: str, *, state: str, statement: int, resume: bool) -> Command:
        """What a repair makes of a blocked row."""
        return Command(
            self._sql(
                "UPDATE {history} SET state = {state}, statement = {statement}, resume = {resume} WHERE script = {script}",
                state=text(state),
                statement=statement,
                resume=int(resume),
                script=text(script),
            )
        )

    def event(
        self, what: str, script: Script | str | None, fence: int, run: str, release: str, details: dict[str, Any]
    ) -> Command:
        """One more event; under the runner's lock, so the numbers have no gaps."""
        known = isinstance(script, Script)
        return Command(
            self._sql(
                "INSERT INTO {events} SELECT COALESCE(MAX(number), 0) + 1, {what}, {script}, {checksum}, {number}, {run},"
                " {release}, UTC_TIMESTAMP(6), CONVERT({details} USING utf8mb4) FROM {events}",
                what=text(what),
                script="NULL" if script is None else text(script.id if isinstance(script, Script) else script),
                checksum=text(script.checksum) if known and isinstance(script, Script) else "NULL",
                number=fence,
                run=text(run),
                release=text(release),
                details=text(json.dumps(details, sort_keys=True)),
            )
        )

    def _values(self, script: Script, fence: int, run: str, release: str) -> str:
        texts = [text(value) for value in (script.id, script.checksum, script.algorithm)]
        return ", ".join([*texts, str(fence), text(run), text(release)])


def _values_of(names: Sequence[str], found: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(names, (_text(value) if isinstance(value, bytes) else value for value in found), strict=True))


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def row(found: Sequence[tuple[Any, ...]]) -> Row | None:
    """The answer to :meth:`History.row_of`."""
    if not found:
        return None
    checksum, state, statement, statements, run, release, fence, at, session, resume = found[0]
    return Row(
        _text(checksum),
        _text(state),
        statement,
        statements,
        _text(run),
        _text(release),
        fence,
        at,
        bool(session),
        bool(resume),
    )


def applied(found: tuple[Any, ...]) -> Applied:
    """One row of the answer to :attr:`History.rows`."""
    names = ("script", "checksum", "algorithm", "fence", "run", "release", "at", "state", "statement", "statements")
    values = _values_of((*names, "session"), found)
    return Applied.model_validate(values | {"at": values["at"].replace(tzinfo=UTC)})


def event(found: tuple[Any, ...]) -> HistoryEvent:
    """One row of the answer to :attr:`History.events`."""
    names = ("number", "what", "script", "checksum", "fence", "run", "release", "at", "details")
    values = _values_of(names, found)
    return HistoryEvent.model_validate(
        values | {"at": values["at"].replace(tzinfo=UTC), "details": json.loads(values["details"])}
    )
