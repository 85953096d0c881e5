"""PostgreSQL: one session a run, which holds the lock; one message a script, from ``BEGIN`` to ``COMMIT``.

So a run with nothing to do costs five round trips, and a script one more. What is decided in the middle of a script is
decided by the server (:mod:`~.history`); :mod:`~.hold` keeps the lock and the fence,
:mod:`~.scripts` runs scripts, :mod:`~.session` is the way to the server, and
:mod:`~.backup` makes backups with the server's own programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.databases import BackupFound, BackupTaken, Catalogue, Rehearsed, Repair, Server
from pipeline.databases.postgresql import scripts as scripts_of
from pipeline.databases.postgresql.backup import PostgresqlBackups
from pipeline.databases.postgresql.catalogue import catalogue
from pipeline.databases.postgresql.history import BEGIN, Tables, applied_of, event_of, objection, objection_in, rows_of
from pipeline.databases.postgresql.hold import Hold
from pipeline.databases.postgresql.rehearsal import rehearse
from pipeline.databases.postgresql.session import Answer, Lost, Session, StatementFailed
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import PipelineError
from pipeline.model import Applied, DatabaseSettings, HistoryEvent, Script
from pipeline.transports import Transport

_PATIENCE = 30.0
_UNDEFINED_TABLE = "42P01"
_QUERY_TIME = "60s"


class PostgresqlDatabase:
    """A customer's PostgreSQL database as seen from a host; opened when first used.

    ``backups`` is a folder on the host, ``passphrase`` seals them. ``patience``: seconds to wait for another runner. The
    history lies in the schema where the user's search_path finds it, else in the first one of it; scripts that change the
    path change nothing.
    """

    engine = "postgresql"

    def __init__(
        self,
        transport: Transport,
        settings: DatabaseSettings,
        password: str | None,
        *,
        backups: str,
        customer: str = "CUSTOMER",
        environment: str = "ENVIRONMENT",
        patience: float = _PATIENCE,
        passphrase: str | None = None,
    ) -> None:
        place = f"database {settings.name} on {settings.host}:{settings.reached_at}, through {transport.name}"
        self._transport = transport
        self._settings = settings
        self._password = password
        self._folder = backups
        self._passphrase = passphrase
        self._errors = ScriptErrors(place, customer, environment, password)
        self._hold = Hold(transport, settings, password, self._errors, patience=patience)

    # --- looking ------------------------------------------------------------------------------------------------------

    def history(self) -> list[Applied]:
        """See :meth:`pipeline.databases.Database.history`."""
        return [applied_of(row) for row in self._read(self._hold.tables.read_history())]

    def events(self) -> list[HistoryEvent]:
        """See :meth:`pipeline.databases.Database.events`."""
        return [event_of(row) for row in self._read(self._hold.tables.read_events())]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """See :meth:`pipeline.databases.Database.query`."""
        hold = self._hold
        hold.ask(f"BEGIN READ ONLY; SET LOCAL statement_timeout = '{_QUERY_TIME}'")
        try:
            return hold.session().fetch(statement)
        except StatementFailed as failed:
            raise hold.unreadable(failed.trouble) from None
        except Lost:
            raise self._errors.not_let_in("the server ended the connection") from None
        finally:
            hold.tidy()

    def catalogue(self) -> Catalogue:
        """See :meth:`pipeline.databases.Database.catalogue`."""
        return catalogue(self.query)

    def server(self) -> Server:
        """See :meth:`pipeline.databases.Database.server`."""
        version = self._hold.ask("SELECT pg_catalog.version()")[-1].rows[0][0] or ""
        session = self._hold.session()
        try:
            refusals = self._hold.unfit(session)
        except Lost:
            raise self._errors.not_let_in("the server ended the connection") from None
        return Server(version, tuple(self._hold.substitutes(session)), tuple(refusals))

    # --- migrating ----------------------------------------------------------------------------------------------------

    def apply(
        self,
        script: Script,
        sql: bytes,
        *,
        fence: int,
        run: str,
        release: str,
        verify: bytes | None = None,
        covers: Sequence[Script] = (),
    ) -> bool:
        """See :meth:`pipeline.databases.Database.apply`."""
        work = scripts_of.prepared(
            script, sql, self._errors, fence=fence, run=run, release=release, verify=verify, covers=covers
        )
        self._hold.by("client" if script.client else self._settings.way)
        return scripts_of.apply(self._hold, work)

    def claim(self, fence: int, run: str) -> None:
        """See :meth:`pipeline.databases.Database.claim`."""
        self._claim(fence, run)

    def baseline(self, scripts: Sequence[Script], *, fence: int, run: str, release: str) -> list[str]:
        """See :meth:`pipeline.databases.Database.baseline`."""
        if not scripts:
            return []
        self._claim(fence, run)
        tables = self._hold.tables
        answers = self._write(fence, tables.baseline(scripts, fence, run, release))
        (added,) = (answer for answer in answers if answer.columns == ("tma_added",))
        return [row[0] or "" for row in added.rows]

    def repair(
        self, script: str, what: Repair, *, fence: int, run: str, release: str, resume_at: int | None = None
    ) -> None:
        """See :meth:`pipeline.databases.Database.repair`."""
        self._claim(fence, run)
        tables = self._hold.tables
        row = next(iter(rows_of(self._hold.ask(tables.read_row(script))[-1])), None)
        if row is None:
            raise self._errors.no_row(script)
        if row["state"] != "running":
            raise self._errors.not_blocked(script)
        statements = int(row["statements"] or 0)
        if what == "resume":
            if row["session"] == "t" and resume_at != 1:
                raise self._errors.not_resumable(script)
            if resume_at is None or not 1 <= resume_at <= statements:
                raise self._errors.no_statement(script, resume_at, statements)
        named = (script, row["checksum"] or "")
        word = {"resume": "resumed", "done": "marked-done", "reverted": "marked-reverted"}[what]
        details = {"resume_at": resume_at} if what == "resume" else {"statement": int(row["statement"] or 0)}
        event = tables.event(word, None, fence, run, release, details, named=named)
        self._write(fence, f"{tables.repaired(script, what, resume_at)}; {event}")

    def rehearse(self, scripts: Sequence[tuple[Script, bytes]], *, run: str) -> list[Rehearsed]:
        """See :meth:`pipeline.databases.Database.rehearse`."""
        self._hold.by(self._settings.way)
        try:
            return rehearse(self._hold, scripts, run)
        except Lost:
            raise self._errors.not_let_in("the server ended the connection") from None

    # --- backups ------------------------------------------------------------------------------------------------------

    def backup(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.backup`."""
        label = self._errors.label(label)
        return self._backups.take(label)

    def backups(self) -> list[BackupFound]:
        """See :meth:`pipeline.databases.Database.backups`."""
        return self._backups.found()

    def prove(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.prove`."""
        label = self._errors.label(label)
        return self._backups.prove(label)

    def restore(self, label: str, *, sha256: str | None, fence: int, run: str) -> None:
        """See :meth:`pipeline.databases.Database.restore`."""
        label = self._errors.label(label)
        session = self._claim(fence, run)
        tables = Tables(self._hold.tables.schema)
        process = self._hold.ask("SELECT pg_catalog.pg_backend_pid()")[-1].rows[0][0] or "0"
        first, last = tables.restorable(fence, process), tables.restored(label, fence, run)
        try:
            self._backups.restore(label, sha256=sha256, first=first, last=last)
        except PipelineError as error:
            said = next((found for reason in error.reasons if (found := objection_in(reason.text))), None)
            if said is None:
                raise
            self._hold.close()
            if said.word == "stale":
                raise self._errors.stale(fence, int(said.values[0])) from None
            raise self._errors.locked("the lock of this run was lost meanwhile", 0) from None
        finally:
            if session.closed:
                self._hold.close()

    def close(self) -> None:
        """See :meth:`pipeline.databases.Database.close`."""
        self._hold.close()

    # --- pieces -------------------------------------------------------------------------------------------------------

    @property
    def _backups(self) -> PostgresqlBackups:
        return PostgresqlBackups(
            self._transport, self._settings, self._password, self._folder, self._errors, self._passphrase
        )

    def _read(self, statement: str) -> list[dict[str, str | None]]:
        """The rows of a table of ours; none where there is no such table."""
        try:
            answers = self._hold.session().exchange(statement)
        except Lost:
            self._hold.close()
            raise self._errors.not_let_in("the server ended the connection") from None
        trouble = answers[-1].trouble
        if trouble is None:
            return list(rows_of(answers[-1]))
        self._hold.tidy()
        if trouble.code == _UNDEFINED_TABLE:
            return []
        raise self._hold.unreadable(trouble)

    def _claim(self, fence: int, run: str) -> Session:
        try:
            return self._hold.lock(fence, run)
        except Lost:
            self._hold.close()
            raise self._errors.not_claimed("the server ended the connection") from None

    def _write(self, fence: int, statements: str) -> list[Answer]:
        """The answers to statements in one transaction that the fence allows; Refused when it does not any more."""
        hold = self._hold
        try:
            answers = hold.session().exchange(f"{BEGIN}; {hold.tables.fenced(fence)}; {statements}; COMMIT")
        except Lost:
            hold.close()
            raise self._errors.not_let_in("the server ended the connection; it is safe to do it again") from None
        trouble = answers[-1].trouble
        if trouble is not None:
            hold.tidy()
            said = objection(trouble)
            if said is not None and said.word == "stale":
                hold.close()
                raise self._errors.stale(fence, int(said.values[0]))
            raise hold.unreadable(trouble)
        return answers
