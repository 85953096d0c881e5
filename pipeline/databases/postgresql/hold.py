"""The session of a run: opened when first used, locked for as long as it lives, its fence raised before anything else.

The advisory lock belongs to the session and is polled, since a runner that blocks on it deadlocks with another's ``CREATE
INDEX CONCURRENTLY``. A proxy that gives each transaction another session would hand the lock to somebody else, so it is
looked for where the server's process is not the one that the connection was given.
"""

# What stands in the statements are constants and numbers of ours.
# ruff: noqa: S608

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipeline.databases import FENCE_TABLE, HISTORY_FORMAT
from pipeline.databases.postgresql.history import BEGIN, LOCK_KEY, TRY_LOCK, Tables, literal, rows_of
from pipeline.databases.postgresql.session import Answer, Lost, Session, Trouble, open_session
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import PipelineError, Refused
from pipeline.model import DatabaseSettings
from pipeline.transports import Transport

_OLDEST = 90400
_UNDEFINED_TABLE = "42P01"
_OURS = f"locktype = 'advisory' AND classid = 0 AND objid = {LOCK_KEY} AND objsubid = 1"


class Hold:
    """One database and at most one session with it. ``way`` is *tunnel* or *client* and may be changed between scripts.

    ``patience``: seconds to wait for another runner.
    """

    def __init__(
        self,
        transport: Transport,
        settings: DatabaseSettings,
        password: str | None,
        errors: ScriptErrors,
        *,
        patience: float,
    ) -> None:
        self.errors = errors
        self.settings = settings
        self.tables = Tables()
        self.way: str = settings.way
        self._transport = transport
        self._password = password
        self._patience = patience
        self._open: Session | None = None
        self._claimed: tuple[int, str] | None = None
        self._settle = ""

    # --- the session ----------------------------------------------------------------------------------------------------

    def session(self) -> Session:
        """The session, opened where there is none; outside a transaction."""
        if self._open is None or self._open.closed:
            self.close()
            self._open = self._another()
        return self._open

    def close(self) -> None:
        """Ends the session, and with it the lock."""
        session, self._open = self._open, None
        self._claimed, self.tables = None, Tables()
        if session is not None:
            session.close()

    def by(self, way: str) -> None:
        """Goes on by another way: the session ends first, since it holds the lock."""
        if self.way != way:
            self.close()
            self.way = way

    def tidy(self, *, failed: bool = False) -> None:
        """Rolls back what is open, and takes back what a script has left in the session; always when it ``failed``."""
        if self._open is None or self._open.closed or (self._open.idle and not failed):
            return
        try:
            answers = self._open.exchange(f"ROLLBACK; {self.settled(locks=failed)}", rows=False)
            if answers[-1].trouble:
                self.close()
        except Lost:
            self.close()

    def settled(self, *, locks: bool = False) -> str:
        """What a script may have left in the session goes; SET comes after RESET ALL. ``locks``: advisory ones too."""
        again = f"SELECT pg_catalog.pg_advisory_unlock_all(); {TRY_LOCK};" if locks else ""
        return (
            "RESET SESSION AUTHORIZATION; RESET ROLE; RESET ALL; CLOSE ALL; UNLISTEN *; DISCARD TEMP; DEALLOCATE ALL;"
            f"{again}{self._settle}"
        )

    def ask(self, message: str) -> list[Answer]:
        """The answers to statements of ours; Failed when one of them does not run, Unreachable when the line is lost."""
        try:
            answers = self.session().exchange(message)
        except Lost:
            self.close()
            raise self.errors.not_let_in("the server ended the connection") from None
        if answers and answers[-1].trouble:
            self.tidy()
            raise self.unreadable(answers[-1].trouble)
        return answers

    def unreadable(self, trouble: Trouble) -> PipelineError:
        """An error of a statement of ours."""
        return self.errors.unreadable(trouble.message, code=trouble.code)

    # --- the lock and the fence -----------------------------------------------------------------------------------------

    def lock(self, fence: int, run: str) -> Session:
        """The session with the lock and the fence raised, at no cost when it has both.

        Raises :class:`Lost`, Locked, and Refused for a stale fence, a newer format and a server that cannot be worked on.
        """
        session = self.session()
        if self._claimed != (fence, run):
            try:
                self._take(session, run, fence)
            except Refused:
                # It is not this run's turn ever again: nobody should wait for it.
                self.close()
                raise
            self._claimed = (fence, run)
        return session

    def lock_only(self, run: str) -> int | None:
        """Takes the lock in a new session, so that whatever went on in the old one is over; the highest fence, if any."""
        self.close()
        return self._take(self.session(), run, None)

    def unfit(self, session: Session) -> list[str]:
        """Why no migration may run on this server."""
        reasons = []
        if session.version < _OLDEST:
            reasons.append("PostgreSQL before 9.4 lacks lock_timeout (9.3) and what the history needs (9.4)")
        if self._pooled(session):
            reasons.append(
                "a proxy between here and the server pools transactions: no lock of a session holds there;"
                " give the server's own address, or pool sessions"
            )
        return reasons

    def substitutes(self, session: Session) -> list[str]:
        """What this server lacks, and what is done instead."""
        lacking = []
        if session.version < 140000:
            lacking.append(
                "client_connection_check_interval (PostgreSQL 14): a statement whose runner died runs to its end first"
            )
        if session.version < 90600:
            lacking.append("pg_blocking_pids (PostgreSQL 9.6): who holds a lock that a script waits for is not named")
        return lacking

    def _take(self, session: Session, run: str, fence: int | None) -> int | None:
        self._settle = self._settings_of(session, run)
        deadline = time.monotonic() + self._patience
        while True:
            tables = self.tables
            work = "" if fence is None else f"{tables.raise_fence(fence)};"
            answers = session.exchange(f"{BEGIN}; {self._settle} {TRY_LOCK}; {work} {tables.read_fence()}; COMMIT")
            trouble = answers[-1].trouble
            if trouble:
                session.exchange("ROLLBACK")
            if _value(answers, "tma_lock") != "t":
                if trouble and trouble.code != _UNDEFINED_TABLE:
                    raise self.unreadable(trouble)
                if time.monotonic() > deadline:
                    raise self.errors.locked(self._holder(session), self._patience)
                time.sleep(0.2)
                continue
            if trouble is not None:
                if trouble.code != _UNDEFINED_TABLE:
                    raise self.unreadable(trouble)
                self._refuse(session)
                if fence is None:
                    return None
                self._change(session, tables.create())
                continue
            row = next(iter(rows_of(answers[-2])), None)
            if row is None:
                raise self.errors.unreadable(f"{FENCE_TABLE} has lost its row")
            self.tables = Tables(row["schema"])
            if fence is None:
                return int(row["highest"] or 0)
            if self._settled_format(session, int(row["format"] or 0)):
                continue
            if int(row["highest"] or 0) > fence:
                raise self.errors.stale(fence, int(row["highest"] or 0))
            self._refuse(session, row["process"])
            return fence

    def _settled_format(self, session: Session, found: int) -> bool:
        """Whether the tables were brought up to date; Refused when they are newer than this version."""
        if found > HISTORY_FORMAT:
            raise self.errors.newer(found)
        if found < HISTORY_FORMAT:
            self._change(session, self.tables.upgrade())
        return found < HISTORY_FORMAT

    def _change(self, session: Session, statements: str) -> None:
        answers = session.exchange(f"{BEGIN}; {self._settle} {statements}; COMMIT")
        if answers[-1].trouble:
            session.exchange("ROLLBACK")
            raise self.unreadable(answers[-1].trouble)

    def _refuse(self, session: Session, process: str | None = None) -> None:
        if process == str(session.process):
            return
        reasons = self.unfit(session)
        if reasons:
            raise self.errors.unfit(reasons)

    def _settings_of(self, session: Session, run: str) -> str:
        name = literal(f"tma {run}".encode()[:63].decode(errors="ignore"))
        check = "SET client_connection_check_interval = '1s';" if session.version >= 140000 else ""
        # A role's own limits are for the application; between two scripts a run may wait for its other databases.
        limits = ["idle_in_transaction_session_timeout"] if session.version >= 90600 else []
        limits += ["idle_session_timeout"] if session.version >= 140000 else []
        waits = "".join(f"SET {limit} = 0; " for limit in limits)
        return f"SET application_name = {name}; SET lock_timeout = '{self.settings.lock_timeout}s'; {waits}{check}"

    def _holder(self, session: Session) -> str:
        answers = session.exchange(
            "SELECT COALESCE(a.application_name, ''), l.pid,"
            " pg_catalog.to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC')"
            " FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid"
            f" WHERE {_OURS} AND l.granted AND l.database ="
            " (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"
        )
        rows = answers[-1].rows
        if not rows:
            return "another run is at work here"
        name, process, since = rows[0]
        return f"{name or 'another run'} is at work here since {since or 'a time not told'}, process {process} of the server"

    # --- the proxy ------------------------------------------------------------------------------------------------------

    def _pooled(self, session: Session) -> bool:
        """Whether two connections at once, or two transactions of one, are seen to share or change the server's process.

        Asked only where the process is not the one that the connection was given, which a proxy makes up.
        """
        token = secrets.token_hex(8)
        first = self._process(session, f"SELECT pg_catalog.set_config('tma.token', '{token}', false);")
        if first[0] == str(session.process):
            return False
        other = self._another()
        try:
            mine, theirs = {first[0]}, set[str | None]()
            tokens = set[str | None]()
            # No strict turns: a proxy that deals its sessions in turn would give each of two its own.
            for which in (session, session, other, session, other, other, session):
                process, found = self._process(which)
                (mine if which is session else theirs).add(process)
                if which is session:
                    tokens.add(found)
            return len(mine) > 1 or len(theirs) > 1 or bool(mine & theirs) or len(tokens) > 1
        except Lost:
            return True
        finally:
            other.close()

    def _process(self, session: Session, before: str = "") -> tuple[str | None, str | None]:
        setting = "pg_catalog.current_setting('tma.token', true)" if session.version >= 90600 else "NULL"
        answers = session.exchange(f"{before} SELECT pg_catalog.pg_backend_pid(), {setting}")
        if answers[-1].trouble:
            raise self.unreadable(answers[-1].trouble)
        process, token = answers[-1].rows[0]
        return process, token

    def _another(self) -> Session:
        return open_session(self._transport, self.settings, self._password, self.errors, way=self.way)

    # --- who stands in the way ------------------------------------------------------------------------------------------

    @contextmanager
    def watched(self, session: Session) -> Iterator[list[str]]:
        """While the block runs, who keeps the session waiting is asked once, by another one; what it said, if anything."""
        found: list[str] = []
        over = threading.Event()
        process = self._process(session)[0]

        def watch() -> None:
            if over.wait(self.settings.lock_timeout * 0.6):
                return
            with suppress(PipelineError, Lost):
                other = self._another()
                try:
                    found.extend(_waited_for(other, process))
                finally:
                    other.close()

        watcher = threading.Thread(target=watch, name="who holds the lock", daemon=True)
        if session.version >= 90600:
            watcher.start()
        try:
            yield found
        finally:
            over.set()
            if watcher.ident is not None:
                watcher.join(5)


def _waited_for(session: Session, process: str | None) -> list[str]:
    answers = session.exchange(
        "SELECT COALESCE(NULLIF(a.application_name, ''), 'a session without a name'), a.usename, a.pid,"
        " pg_catalog.to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC')"
        f" FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY (pg_catalog.pg_blocking_pids({process}))"
    )
    return [
        f"the lock is held by {name} of user {user}, process {number} of the server"
        + (f", since {since}" if since else "")
        for name, user, number, since in answers[-1].rows
    ]


def _value(answers: list[Answer], column: str) -> str | None:
    """The one value of the answer with this column."""
    return next((answer.rows[0][0] for answer in answers if answer.columns == (column,) and answer.rows), None)
