"""Pending scripts as one file of SQL that a database administrator runs by hand, the rows of the history included.

For ``psql``, ``mariadb`` or ``mysql``, and ``sqlite3``, which stop at the first error. Whatever can be refused is refused by
the file itself, before its first script: a later run's fence, another format of the history, another runner at work. As by
a runner, a script and its row are one transaction where the engine has that; otherwise a *running* row comes first, so that
a file that stopped in the middle leaves its script blocked.
"""

# The names are our own constants, the values quoted; a file takes no parameters.
# ruff: noqa: S608

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.databases import EVENTS_TABLE, FENCE_TABLE, HISTORY_FORMAT, HISTORY_TABLE
from pipeline.databases.script_errors import ScriptErrors
from pipeline.model import DatabaseSettings, Engine, Script

PROGRAMS: dict[Engine, str] = {
    "postgresql": "psql --no-psqlrc --file=FILE DATABASE",
    "mariadb": "mariadb DATABASE < FILE",
    "mysql": "mysql DATABASE < FILE",
    "sqlite": "sqlite3 -bail DATABASE < FILE",
}
"""How the file is run."""


@dataclass(frozen=True)
class ByHand:
    """Whose file it is: for which database, from which record of the ledger (``fence``), with which release.

    On PostgreSQL ``search_path`` and ``schema`` are the runner's own, and where the history lies; ``known``: there is one.
    """

    customer: str
    environment: str
    release: str
    settings: DatabaseSettings
    fence: int
    run: str
    at: str
    search_path: str | None = None
    schema: str | None = None
    known: bool = False

    def file(
        self,
        scripts: Sequence[tuple[Script, bytes]],
        covers: Sequence[Script] = (),
        verify: Mapping[str, bytes] | None = None,
    ) -> str:
        """The whole file; ``covers`` get their rows with the full schema. Failed or Refused as when a runner applied them.

        ``verify`` has, by a script's id, what must run after it.
        """
        engine = self.settings.engine
        form = _FORMS[engine](self)
        database = self.settings.path if engine == "sqlite" else self.settings.name
        named = f"customer={self.customer} env={self.environment}"
        lines = [
            f"-- {len(scripts)} migration(s) of release {self.release} for the database {database} of {self.environment} of "
            f"{self.customer}",
            f"-- written {self.at}, as of record {self.fence} of the ledger; refused by the database once a later run was there",
            f"-- run it with: {PROGRAMS[engine]}",
            f"-- and tell the ledger then: invoke migrate.baseline {named} reason=…",
            "",
            *form.before(),
        ]
        for number, (script, data) in enumerate(scripts):
            lines += form.anew() if number else ()
            # Outside a transaction of ours a script keeps the one that it brings along.
            alone = form.transactional and script.transactional
            text = form.errors.text(script, data, in_transaction=alone).strip("\n")
            form.look(script, data, verify.get(script.id) if verify else None)
            rows = covers if script.kind == "initial" else ()
            lines += ["", f"-- {script.id} ({script.checksum[:12]})", *form.around(script, text, rows, alone=alone)]
        return "\n".join([*lines, "", *form.after(), ""])


class _Form:
    """What differs between the engines; PostgreSQL's."""

    transactional = True
    begin, commit = "BEGIN;", "COMMIT;"
    now = "clock_timestamp()"

    def __init__(self, by_hand: ByHand) -> None:
        self.by_hand = by_hand
        self.stateful = False
        place = f"the database of {by_hand.environment} of {by_hand.customer}"
        self.errors = ScriptErrors(place, by_hand.customer, by_hand.environment)
        self.verify: str | None = None
        self.count = 0

    def look(self, script: Script, data: bytes, verify: bytes | None) -> None:
        """Raises what a runner would say of the script before it begins; keeps its verify."""
        from pipeline.databases.postgresql.scripts import prepared

        work = prepared(script, data, self.errors, verify=verify)
        self.verify, self.count = work.verify, work.count
        self.stateful = any(part.of_the_session for part in work.parts)

    def before(self) -> Iterator[str]:
        from pipeline.databases.postgresql.history import LOCK_KEY, Tables

        yield "\\set ON_ERROR_STOP on"
        name = self.quoted(self.by_hand.settings.name or "")
        yield "DO $$ BEGIN"
        yield f"  IF current_database() <> {name} THEN"
        yield f"    RAISE 'the database % is not %', current_database(), {name};"
        yield "  END IF;"
        yield "END $$;"
        yield from self.session()
        yield "DO $$ BEGIN"
        yield f"  IF NOT pg_try_advisory_lock({LOCK_KEY}) THEN RAISE 'another runner is at work'; END IF;"
        yield f"  IF to_regclass('{FENCE_TABLE}') IS NULL THEN"
        if self.by_hand.known:
            yield "    RAISE 'the migration history that was here is missing: it is another database, or an older one';"
        else:
            yield "  " + Tables(self.by_hand.schema).create() + ";"
        yield "  END IF;"
        yield "END $$;"
        yield "DO $$ BEGIN"
        yield f"  IF (SELECT format FROM {FENCE_TABLE}) <> {HISTORY_FORMAT} THEN RAISE 'the history has another format'; END IF;"
        yield f"  IF (SELECT highest FROM {FENCE_TABLE}) > {self.by_hand.fence} THEN"
        yield "    RAISE 'a later run was here: write this file anew';"
        yield "  END IF;"
        yield "END $$;"
        yield from self.raised()

    def session(self) -> Iterator[str]:
        """What holds for every script, whatever the client would have by itself."""
        yield "\\encoding UTF8"
        yield f"SET lock_timeout = '{self.by_hand.settings.lock_timeout}s';"
        yield from self.owner()

    def owner(self) -> Iterator[str]:
        """Whoever runs the file: what it makes is the runner's user's, and lies where it would put it."""
        from pipeline.databases.postgresql.history import identifier

        if self.by_hand.settings.user is not None:
            yield f"SET ROLE {identifier(self.by_hand.settings.user)};"
        if self.by_hand.search_path is not None:
            path = self.by_hand.search_path.replace("\n", " ") or "''"
            yield f"SET search_path = {path};"

    def anew(self) -> Iterator[str]:
        """Between two scripts: what the one has left in the session goes, as a runner sees to it."""
        yield "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; DISCARD TEMP; DEALLOCATE ALL;"
        yield from self.session()

    def found_again(self) -> Iterator[str]:
        """After a script, before its history is written: a dump leaves no search path, another one another user."""
        yield "RESET SESSION AUTHORIZATION; RESET ROLE; RESET search_path;"
        yield from self.owner()

    def raised(self) -> Iterator[str]:
        yield f"UPDATE {FENCE_TABLE} SET highest = {self.by_hand.fence};"

    def after(self) -> Iterator[str]:
        return iter(())

    def around(self, script: Script, text: str, covers: Sequence[Script], *, alone: bool) -> Iterator[str]:
        if alone:
            yield self.begin
            yield from self.guarded(script, text)
            yield from self.found_again() if covers else ()
            for covered in covers:
                yield from self.rows(covered, "baseline", "baselined")
            yield self.commit
            return
        count = self.statements(script, text)
        yield from self.again(script)
        yield from self.rows(script, "running", "started", count)
        yield from self.ended(text)
        yield from self.found_again()
        if self.verify is not None:
            yield from (self.begin, self.verify, ";", "ROLLBACK;")
        done = f"state = 'done', statement = {count}"
        yield f"UPDATE {HISTORY_TABLE} SET {done} WHERE script = {self.quoted(script.id)};"
        yield self.event(script, "applied")
        for covered in covers:
            yield from self.rows(covered, "baseline", "baselined")

    def guarded(self, script: Script, text: str) -> Iterator[str]:
        """Between the beginning and the end of its transaction: what a runner would send."""
        from pipeline.databases.postgresql.history import Tables

        tables, by_hand = Tables(self.by_hand.schema), self.by_hand
        again = script.kind == "repeatable"
        same = f" AND checksum = '{script.checksum}'" if again else ""
        yield "DO $$ BEGIN"
        yield f"  IF EXISTS (SELECT FROM {tables.history} WHERE script = {self.quoted(script.id)}{same}) THEN"
        yield f"    RAISE 'it is in {HISTORY_TABLE} already: write this file anew';"
        yield "  END IF;"
        yield "END $$;"
        # The script's own COMMIT breaks a foreign key from here to its row, which comes last.
        yield tables.guard(script, by_hand.fence, "again" if again else "whole") + ";"
        yield from self.ended(text)
        yield tables.check(script) + ";"
        yield from self.found_again()
        if self.verify is not None:
            yield from ("SAVEPOINT tma_verify;", self.verify, ";", "ROLLBACK TO SAVEPOINT tma_verify;")
            yield from self.found_again()
        yield tables.record(script, by_hand.fence, by_hand.run, by_hand.release, statements=self.count) + ";"

    def again(self, script: Script) -> Iterator[str]:
        """A repeatable script's row of its earlier text goes."""
        if script.kind == "repeatable":
            yield f"DELETE FROM {HISTORY_TABLE} WHERE script = {self.quoted(script.id)};"

    def statements(self, script: Script, text: str) -> int:
        """How many statements a script has that commits each by itself."""
        return self.count

    def ended(self, text: str) -> Iterator[str]:
        """The script, with an end of its last statement where it has none."""
        yield text
        yield ";"

    def rows(self, script: Script, state: str, what: str, statements: int = 0) -> Iterator[str]:
        yield (
            f"INSERT INTO {HISTORY_TABLE} (script, checksum, algorithm, fence, run, {self.release}, applied_at, state,"
            f" statement, statements, session) VALUES ({self.quoted(script.id)}, '{script.checksum}', '{script.algorithm}',"
            f" {self.common}, '{state}', 0, {statements}, '{int(script.session or self.stateful)}');"
        )
        yield self.event(script, what)

    def event(self, script: Script, what: str) -> str:
        return (
            f"INSERT INTO {EVENTS_TABLE} (number, what, script, checksum, fence, run, {self.release}, at, details)"
            f" SELECT COALESCE(MAX(number), 0) + 1, '{what}', {self.quoted(script.id)}, '{script.checksum}',"
            f' {self.common}, \'{{"by": "hand"}}\' FROM {EVENTS_TABLE};'
        )

    @property
    def common(self) -> str:
        return f"{self.by_hand.fence}, {self.quoted(self.by_hand.run)}, {self.quoted(self.by_hand.release)}, {self.now}"

    @property
    def release(self) -> str:
        return "release"

    def quoted(self, text: str) -> str:
        """The text as SQL; ids and names hold no backslash (:mod:`pipeline.paths`)."""
        return "'" + text.replace("'", "''") + "'"


class _MysqlForm(_Form):
    """MariaDB and MySQL: everything commits by itself, so every script has its *running* row first."""

    transactional = False
    now = "UTC_TIMESTAMP(6)"

    @property
    def release(self) -> str:
        return "`release`"

    def __init__(self, by_hand: ByHand) -> None:
        from pipeline.databases.mysql.session import lock_name

        super().__init__(by_hand)
        self.lock = self.quoted(lock_name(by_hand.settings.name or ""))
        self.dirty = False

    def look(self, script: Script, data: bytes, verify: bytes | None) -> None:
        """Keeps its verify; the script itself is looked at when its statements are counted."""
        self.verify = self.errors.verify_text(script, verify) if verify is not None else None

    def before(self) -> Iterator[str]:
        from pipeline.databases.mysql.history import History

        yield from self.session()
        for command in History(self.by_hand.settings.name or "", "").create:
            yield command.sql + ";"
        yield "-- An error here says that a later run was here, or that the history has another format: write this file anew."
        yield (
            f"SELECT 18446744073709551615 + (highest > {self.by_hand.fence} OR format <> {HISTORY_FORMAT})"
            f" FROM {FENCE_TABLE};"
        )
        yield from self.raised()

    def session(self) -> Iterator[str]:
        wait = self.by_hand.settings.lock_timeout
        yield "SET NAMES utf8mb4;"
        yield f"SET SESSION autocommit = 1, lock_wait_timeout = {wait}, innodb_lock_wait_timeout = {wait};"
        yield "-- An error here (1690) says that another runner is at work."
        yield f"SELECT 18446744073709551615 + (COALESCE(GET_LOCK({self.lock}, 0), 0) <> 1);"

    def anew(self) -> Iterator[str]:
        if self.dirty:
            # MariaDB's client cannot reset a session: a new one, which must find the lock free.
            yield f"DO RELEASE_LOCK({self.lock});"
            yield "connect"
            yield from self.session()

    def statements(self, script: Script, text: str) -> int:
        from pipeline.databases.lexer import mysql_statements
        from pipeline.databases.mysql.units import looked_through

        found = looked_through(self.errors, script, mysql_statements(text), self.by_hand.settings.name or "")
        self.dirty, self.stateful = found.dirty, found.session is not None
        return found.statements

    def ended(self, text: str) -> Iterator[str]:
        from pipeline.databases.lexer import mysql_statements

        yield text
        parts = mysql_statements(text)
        while True:
            try:
                next(parts)
            except StopIteration as end:
                delimiter, unended = end.value
                break
        # An empty statement is an error here.
        if unended:
            yield delimiter
        if delimiter != ";":
            yield "DELIMITER ;"

    def found_again(self) -> Iterator[str]:
        yield "UNLOCK TABLES;"


class _SqliteForm(_Form):
    """SQLite, through its own client."""

    begin = "BEGIN IMMEDIATE;"
    now = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')"

    def look(self, script: Script, data: bytes, verify: bytes | None) -> None:
        """Keeps its verify; the script itself is looked at by SQLite."""
        self.verify = self.errors.verify_text(script, verify) if verify is not None else None

    def before(self) -> Iterator[str]:
        from pipeline.databases.sqlite.host import CREATE

        yield ".bail on"
        yield f".timeout {self.by_hand.settings.lock_timeout * 1000}"
        for create in CREATE:
            yield create.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS") + ";"
        yield (
            f"INSERT INTO {FENCE_TABLE} (id, highest, format) SELECT 1, 0, {HISTORY_FORMAT}"
            f" WHERE NOT EXISTS (SELECT 1 FROM {FENCE_TABLE});"
        )
        yield "-- A failed check here says that a later run was here, or that the history has another format."
        yield "CREATE TEMP TABLE tma_file_is_current (yes INTEGER CHECK (yes));"
        yield (
            f"INSERT INTO tma_file_is_current SELECT highest <= {self.by_hand.fence} AND format = {HISTORY_FORMAT}"
            f" FROM {FENCE_TABLE};"
        )
        yield from self.raised()

    def guarded(self, script: Script, text: str) -> Iterator[str]:
        yield from self.again(script)
        # The row comes first, so that a script that ran already is refused before it runs once more.
        yield from self.rows(script, "done", "applied")
        yield from self.ended(text)
        if self.verify is not None:
            yield from ("SAVEPOINT tma_verify;", self.verify, ";", "ROLLBACK TO SAVEPOINT tma_verify;")

    def anew(self) -> Iterator[str]:
        return iter(())

    def found_again(self) -> Iterator[str]:
        return iter(())


_FORMS: dict[Engine, type[_Form]] = {
    "postgresql": _Form,
    "mariadb": _MysqlForm,
    "mysql": _MysqlForm,
    "sqlite": _SqliteForm,
}
