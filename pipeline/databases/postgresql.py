"""PostgreSQL: psycopg through the transport's unix socket; one transaction a script, ``COMMIT`` as its own message.

Measured: a runner that is killed while script and ``COMMIT`` travel in one message commits all the same; with ``COMMIT``
as a message of its own the server rolls back. The advisory lock belongs to the transaction and is polled, since a
runner that blocks on it deadlocks with another's ``CREATE INDEX CONCURRENTLY``.

A script cannot commit by itself: the fence's row points, by a foreign key that is checked at commit, to a row of the
history that is written only after the script. Nor can it change the history or the fence: their rows' places (``ctid``)
and transactions (``xmin``) are compared before and after it. Libpq speaks no TLS over a unix socket: a server that
demands ``hostssl`` refuses, and the error says so.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
from psycopg import pq, sql
from psycopg.waiting import Ready, Wait

from pipeline.databases import FENCE_TABLE, HISTORY_FORMAT, HISTORY_TABLE, BackupTaken
from pipeline.databases.postgresql_backup import take_backup
from pipeline.databases.script_errors import ScriptErrors
from pipeline.databases.statements import Statement, first_words, line_at, statements
from pipeline.errors import PipelineError
from pipeline.model import Applied, DatabaseSettings, Script
from pipeline.transports import Transport

LOCK_KEY = 0x746D6131
"""Key of the advisory lock (``tma1``); PostgreSQL keeps advisory locks apart by database."""

OWN_COMMIT = "tma_migration_own_commit"
"""Name of the foreign key that a script's own ``COMMIT`` breaks."""

_PATIENCE = 30.0

# What a script before may have left in the session goes first; SET comes after RESET ALL. One message, so that a
# script over a line of 30 ms costs five round trips, not twelve.
_OPENING = sql.SQL(
    "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; DISCARD TEMP;"
    " SELECT pg_catalog.pg_advisory_unlock_all();"
    " SET application_name = {name}; SET lock_timeout = '5s'; {check}"
    " BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT pg_catalog.pg_try_advisory_xact_lock({key})"
)
_CREATE = sql.SQL(
    "CREATE TABLE {history} (script text PRIMARY KEY, checksum text NOT NULL, algorithm text NOT NULL,"
    " fence bigint NOT NULL, run text NOT NULL, release text NOT NULL, applied_at timestamptz NOT NULL);"
    "CREATE TABLE {fence} (id smallint PRIMARY KEY CHECK (id = 1), highest bigint NOT NULL, format integer NOT NULL,"
    " script text CONSTRAINT {constraint} REFERENCES {history} (script) DEFERRABLE INITIALLY DEFERRED);"
    "INSERT INTO {fence} VALUES (1, 0, {format}, NULL)"
)


# Which row versions there are: in the script's own transaction no change of a row keeps both. Unlike a row's text it
# does not depend on what a script SET.
_MARKS = sql.SQL(
    "pg_catalog.md5(pg_catalog.string_agg(t.ctid::pg_catalog.text || ' ' || t.xmin::pg_catalog.text, ' '"
    " ORDER BY t.ctid))"
)


class _Lost(Exception):
    """The connection broke; what was under way has an unknown outcome until the history is asked."""


class PostgresqlDatabase:
    """A customer's PostgreSQL database as seen from a host; opened when first used.

    ``backups`` is a folder on the host. ``patience``: seconds to wait for another runner. The history lies in the schema
    where the user's search_path finds it, else in the first one of it; scripts that change the path change nothing.
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
    ) -> None:
        place = f"database {settings.name} on {settings.host}:{settings.port}, through {transport.name}"
        self._transport = transport
        self._settings = settings
        self._password = password
        self._backups = backups
        self._patience = patience
        self._errors = ScriptErrors(place, customer, environment, password)
        self._stack = ExitStack()
        self._open: psycopg.Connection[tuple[Any, ...]] | None = None
        self._history: sql.Identifier | None = None
        self._fence = sql.Identifier(FENCE_TABLE)
        self._claimed: int | None = None

    # --- the port ----------------------------------------------------------------------------------------------------

    def history(self) -> list[Applied]:
        """See :meth:`pipeline.databases.Database.history`."""
        try:
            connection = self._connection()
            if not self._find_tables(connection):
                return []
            rows = connection.execute(
                sql.SQL(
                    "SELECT script, checksum, algorithm, fence, run, release, applied_at FROM {} ORDER BY 7, 1"
                ).format(self._history)
            ).fetchall()
        except psycopg.Error as error:
            raise self._unreadable(error) from None
        names = ("script", "checksum", "algorithm", "fence", "run", "release", "at")
        return [Applied.model_validate(dict(zip(names, row, strict=True))) for row in rows]

    def apply(self, script: Script, sql: bytes, *, fence: int, run: str, release: str) -> bool:
        """See :meth:`pipeline.databases.Database.apply`."""
        text = self._errors.text(script, sql)
        parts = statements(text)
        ending = next((part for part in parts if part.ends_transaction), None)
        if ending is not None:
            raise self._errors.own_commit(script, ending.first_words, line=ending.line)
        try:
            if self._claimed != fence:
                self._claim(fence, run)
            return self._apply(script, text, parts, fence, run, release)
        except _Lost:
            return self._ask_again(script, run)
        except psycopg.Error as error:
            if self._connection_lost():
                return self._ask_again(script, run)
            raise self._errors.failed(script, _said(error), code=error.sqlstate) from None
        finally:
            self._roll_back()

    def claim(self, fence: int, run: str) -> None:
        """See :meth:`pipeline.databases.Database.claim`."""
        try:
            self._claim(fence, run)
        except _Lost:
            raise self._errors.not_claimed("the server ended the connection") from None
        except psycopg.Error as error:
            if self._connection_lost():
                raise self._errors.not_claimed(_said(error)) from None
            raise self._unreadable(error) from None
        finally:
            self._roll_back()

    def backup(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.backup`."""
        label = self._errors.label(label)
        return take_backup(self._transport, self._settings, self._password, self._backups, label, self._errors)

    def close(self) -> None:
        """See :meth:`pipeline.databases.Database.close`."""
        connection, self._open = self._open, None
        self._claimed = self._history = None
        with suppress(psycopg.Error):
            if connection is not None:
                connection.close()
        self._stack.close()

    # --- connection --------------------------------------------------------------------------------------------------

    def _connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._open is not None and not self._open.closed:
            return self._open
        self.close()
        settings = self._settings
        try:
            with ExitStack() as stack:
                folder = stack.enter_context(self._transport.forward(settings.host, settings.port))
                connection = psycopg.connect(
                    host=str(folder),
                    port=settings.port,
                    dbname=settings.name,
                    user=settings.user,
                    # An empty one keeps libpq from looking for another in this user's own ~/.pgpass.
                    password=self._password or "",
                    passfile="/dev/null",
                    application_name="tma-pipeline",
                    client_encoding="UTF8",
                    connect_timeout=15,
                    autocommit=True,
                    prepare_threshold=None,
                )
                self._stack = stack.pop_all()
        except psycopg.Error as error:
            raise self._not_let_in(error, folder=str(folder)) from None
        self._open = connection
        return connection

    def _connection_lost(self) -> bool:
        return self._open is not None and (self._open.closed or self._open.broken)

    def _roll_back(self) -> None:
        connection = self._open
        if connection is None or connection.closed:
            return
        if connection.info.transaction_status != pq.TransactionStatus.IDLE:
            # A connection that cannot roll back is dropped, and the server rolls back.
            try:
                connection.execute("ROLLBACK")
            except psycopg.Error:
                self.close()

    def _find_tables(self, connection: psycopg.Connection[tuple[Any, ...]]) -> bool:
        """Whether the tables exist; remembers their schema, so that a script's search_path does not matter."""
        if self._history is not None:
            return True
        row = connection.execute(
            "SELECT n.nspname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.oid = pg_catalog.to_regclass(%s)",
            [HISTORY_TABLE],
        ).fetchone()
        if row is None:
            return False
        self._history, self._fence = sql.Identifier(row[0], HISTORY_TABLE), sql.Identifier(row[0], FENCE_TABLE)
        return True

    # --- a script ----------------------------------------------------------------------------------------------------

    def _begin(self, run: str) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection inside a transaction that holds the lock; Locked when another keeps it too long."""
        connection = self._connection()
        check = "SET client_connection_check_interval = '1s';" if connection.info.server_version >= 140000 else ""
        opening = _OPENING.format(name=sql.Literal(f"tma {run}"[:63]), check=sql.SQL(check), key=sql.Literal(LOCK_KEY))
        deadline = time.monotonic() + self._patience
        while True:
            results = self._send(connection, opening.as_bytes(connection))
            if results[-1].status != pq.ExecStatus.TUPLES_OK:
                message, code = _trouble(results[-1])
                raise self._errors.unreadable(message, code=code)
            if results[-1].get_value(0, 0) == b"t":
                return connection
            connection.execute("ROLLBACK")
            if time.monotonic() > deadline:
                raise self._errors.locked(self._holder(connection), self._patience)
            time.sleep(0.2)

    def _holder(self, connection: psycopg.Connection[tuple[Any, ...]]) -> str:
        row = connection.execute(
            "SELECT a.application_name, a.xact_start FROM pg_catalog.pg_locks l"
            " JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted"
            " AND l.classid = 0 AND l.objid = %s AND l.database ="
            " (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
            [LOCK_KEY],
        ).fetchone()
        return f"{row[0]} is at work here since {row[1]:%Y-%m-%d %H:%M:%S %Z}" if row else "another run is at work here"

    def _claim(self, fence: int, run: str) -> None:
        """Makes the tables when missing and raises the fence, in a transaction of its own.

        So a script that fails does not take the fence back with it, and an older runner stays shut out.
        """
        connection = self._begin(run)
        if not self._find_tables(connection):
            tables = {"history": sql.Identifier(HISTORY_TABLE), "fence": sql.Identifier(FENCE_TABLE)}
            create = _CREATE.format(**tables, constraint=sql.Identifier(OWN_COMMIT), format=sql.Literal(HISTORY_FORMAT))
            connection.execute(create)
            self._find_tables(connection)
        row = connection.execute(sql.SQL("SELECT highest, format FROM {} FOR UPDATE").format(self._fence)).fetchone()
        if row is None:
            raise self._errors.unreadable(f"{FENCE_TABLE} has lost its row")
        if row[1] > HISTORY_FORMAT:
            raise self._errors.newer(row[1])
        if row[0] > fence:
            raise self._errors.stale(fence, row[0])
        connection.execute(sql.SQL("UPDATE {} SET highest = %s").format(self._fence), [fence])
        connection.execute("COMMIT")
        self._claimed = fence

    def _apply(self, script: Script, text: str, parts: list[Statement], fence: int, run: str, release: str) -> bool:
        connection = self._begin(run)
        row = connection.execute(
            sql.SQL(
                "UPDATE {fence} SET highest = GREATEST(highest, %s), script = %s"
                " RETURNING highest, pg_catalog.txid_current(), (SELECT checksum FROM {history} WHERE script = %s),"
                " (SELECT {marks} FROM {history} t), ctid::pg_catalog.text"
            ).format(fence=self._fence, history=self._history, marks=_MARKS),
            [fence, script.id, script.id],
        ).fetchone()
        if row is None:
            raise self._errors.unreadable(f"{FENCE_TABLE} has lost its row")
        highest, transaction, checksum, *marks = row
        if highest > fence:
            raise self._errors.stale(fence, highest)
        if checksum is not None:
            if checksum != script.checksum:
                raise self._errors.edited(script, checksum)
            return False
        self._run_script(connection, script, text, parts)
        if connection.info.transaction_status != pq.TransactionStatus.INTRANS:
            raise self._errors.escaped(script)
        self._record(connection, script, transaction, marks, fence, run, release)
        connection.execute("COMMIT")
        return True

    def _run_script(
        self, connection: psycopg.Connection[tuple[Any, ...]], script: Script, text: str, parts: list[Statement]
    ) -> None:
        results = self._send(connection, text.encode())
        last = results[-1] if results else None
        if last is None or last.status in {
            pq.ExecStatus.COMMAND_OK,
            pq.ExecStatus.TUPLES_OK,
            pq.ExecStatus.EMPTY_QUERY,
        }:
            return
        if last.status != pq.ExecStatus.FATAL_ERROR:
            self.close()
            raise self._errors.failed(script, "COPY with the client's own data cannot stand in a script; use INSERT")
        message, code = _trouble(last)
        if _field(last, pq.DiagnosticField.CONSTRAINT_NAME) == OWN_COMMIT:
            raise self._errors.own_commit(script, "COMMIT (as END), or SET CONSTRAINTS ALL IMMEDIATE,")
        position = _field(last, pq.DiagnosticField.STATEMENT_POSITION)
        # A syntax error is found before anything runs, so the results do not count the statements then.
        number = len(results)
        line = line_at(text, int(position)) if position else None
        if position and number == 1:
            number = max((part.number for part in parts if part.line <= (line or 1)), default=1)
        part = parts[number - 1] if number <= len(parts) else None
        raise self._errors.failed(
            script,
            message,
            number=number,
            line=line or (part.line if part else None),
            words=part.first_words if part else first_words(text),
            code=code,
            hint=_field(last, pq.DiagnosticField.MESSAGE_HINT),
        )

    def _record(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        script: Script,
        transaction: int,
        marks: list[str | None],
        fence: int,
        run: str,
        release: str,
    ) -> None:
        """The script's row; PartlyDone when the transaction is not the one that the script began in.

        Failed when ``marks``, those of the history's rows and the place of the fence's, are not what they were.
        """
        values = [script.id, script.checksum, script.algorithm, fence, run, release]
        insert = sql.SQL(
            "RESET SESSION AUTHORIZATION; RESET ROLE;"
            " SELECT (SELECT {marks} FROM {history} t),"
            " (SELECT pg_catalog.string_agg(ctid::pg_catalog.text, ' ') FROM {fence});"
            " INSERT INTO {history} VALUES ({values}, pg_catalog.clock_timestamp())"
            " RETURNING pg_catalog.txid_current()"
        ).format(
            history=self._history,
            fence=self._fence,
            marks=_MARKS,
            values=sql.SQL(", ").join(sql.Literal(value) for value in values),
        )
        results = self._send(connection, insert.as_bytes(connection))
        if results[-1].status != pq.ExecStatus.TUPLES_OK:
            message, code = _trouble(results[-1])
            raise self._errors.failed(script, f"its row of the history cannot be written: {message}", code=code)
        if int(results[-1].get_value(0, 0) or b"0") != transaction:
            raise self._errors.escaped(script)
        now = [value.decode() if value is not None else None for value in map(results[-2].get_value, (0, 0), (0, 1))]
        if now != marks:
            table = HISTORY_TABLE if now[0] != marks[0] else FENCE_TABLE
            raise self._errors.own_history(script, table)

    def _ask_again(self, script: Script, run: str) -> bool:
        """What the history says after the connection broke: once the lock is free, the old session is over."""
        try:
            self.close()
            connection = self._begin(run)
            row = None
            if self._find_tables(connection):
                row = connection.execute(
                    sql.SQL("SELECT checksum, run FROM {} WHERE script = %s").format(self._history), [script.id]
                ).fetchone()
        except _Lost:
            raise self._errors.unknown(script, self._errors.not_let_in("the connection was lost again")) from None
        except psycopg.Error as error:
            raise self._errors.unknown(script, self._unreadable(error)) from None
        except PipelineError as error:
            raise self._errors.unknown(script, error) from None
        if row is None:
            raise self._errors.not_applied(script)
        if row[0] != script.checksum:
            raise self._errors.edited(script, row[0])
        return bool(row[1] == run)

    def _send(self, connection: psycopg.Connection[tuple[Any, ...]], message: bytes) -> list[pq.abc.PGresult]:
        """The results of one message of several statements, the failing one last: their count tells which failed.

        psycopg's cursor raises and drops the count. Raises :class:`_Lost` when the connection breaks.
        """
        try:
            results = connection.wait(_exchange(connection.pgconn, message))
        except psycopg.OperationalError:
            raise _Lost from None
        if connection.pgconn.status != pq.ConnStatus.OK:
            raise _Lost
        return results

    # --- errors ------------------------------------------------------------------------------------------------------

    def _not_let_in(self, error: psycopg.Error, *, folder: str) -> PipelineError:
        message = _said(error).replace(folder, f"{self._settings.host}:{self._settings.port} as seen from the host")
        reasons: tuple[str, ...] = ()
        if "no encryption" in message or "SSL" in message:
            reasons = ("the server demands TLS (hostssl), which cannot be spoken over the tunnel's unix socket",)
        elif "password authentication failed" in message or "no password supplied" in message:
            reasons = ("the user or the password is wrong; the password's reference is in the environment's file",)
        return self._errors.not_let_in(message, reasons=reasons)

    def _unreadable(self, error: psycopg.Error) -> PipelineError:
        if self._connection_lost():
            return self._errors.not_let_in(_said(error))
        return self._errors.unreadable(_said(error), code=error.sqlstate)


def _exchange(pgconn: pq.abc.PGconn, message: bytes) -> Generator[Wait, Ready | int, list[pq.abc.PGresult]]:
    results: list[pq.abc.PGresult] = []
    pgconn.send_query(message)
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        results.append(result)
        if result.status in {pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH}:
            return results


def _field(result: pq.abc.PGresult, field: pq.DiagnosticField) -> str | None:
    value = result.error_field(field)
    return value.decode(errors="replace") if value else None


def _trouble(result: pq.abc.PGresult) -> tuple[str, str | None]:
    """The server's message and its SQLSTATE; a result without a SQLSTATE is libpq's word for a lost connection.

    The DETAIL is left out: it may quote the customer's data.
    """
    code = _field(result, pq.DiagnosticField.SQLSTATE)
    # Class 57P: the server is being shut down, or an administrator ended the session.
    if code is None or code.startswith("57P"):
        raise _Lost
    return _field(result, pq.DiagnosticField.MESSAGE_PRIMARY) or "no message", code


def _said(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error)
