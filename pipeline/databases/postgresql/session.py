"""The ways to a PostgreSQL server: what a session can do, and the one through a tunnel, with libpq.

A session takes *messages*: statements separated by semicolons, which the server runs in order up to the first that fails.
So a whole script with its history costs one round trip. The other way, for hosts that forbid forwarding, is the client on
the host: :func:`pipeline.databases.postgresql.client.open_client` gives a :class:`Session` as well.

Libpq speaks no TLS over a unix socket, so a server that demands it is reached through a port on loopback, with the
server's own name to verify.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.waiting import Ready, Wait

from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import ConfigurationError, PipelineError, Reason
from pipeline.model import DatabaseSettings
from pipeline.transports import Transport
from pipeline.transports.relay import join

APPLICATION = "tma-pipeline"
"""The application's name until a run gives its own."""


# libpq hands these to the server itself, as what RESET goes back to; no parameter of a connection overrides them.
_HANDED_ON = ("PGDATESTYLE", "PGTZ", "PGGEQO")
# What an empty value would not be understood as.
_NOT_EMPTY = {
    "max_protocol_version": "3.0",
    "min_protocol_version": "3.0",
    "require_auth": "scram-sha-256,md5,password,gss,sspi,none",
    "sslcertmode": "allow",
}
_UNSET = {"service"}


class Lost(Exception):
    """The connection broke; what was under way has an unknown outcome until the history is asked."""


@dataclass(frozen=True)
class Trouble:
    """What the server says about a statement that failed.

    ``position``: the character in the message (from 1), where the server gives one. ``copied``: it was a COPY with the
    client's own data, which a session cannot give. The server's DETAIL is left out: it may quote the customer's data.
    """

    message: str
    code: str | None = None
    position: int | None = None
    hint: str | None = None
    constraint: str | None = None
    copied: bool = False


@dataclass(frozen=True)
class Answer:
    """What one statement gave: its command tag (``INSERT 0 1``), columns, rows as text; or its ``trouble``."""

    tag: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str | None, ...], ...] = ()
    trouble: Trouble | None = None


class Session(Protocol):
    """One connection to the server, outside a transaction when it opens. Every method raises :class:`Lost`."""

    version: int
    """As ``server_version_num``: 150004."""

    process: int
    """The server process that the connection was given, by the word of whatever let it in: a proxy says another."""

    @property
    def closed(self) -> bool:
        """Whether it can be used no more."""

    @property
    def idle(self) -> bool:
        """Whether no transaction is open, not even a failed one."""

    def exchange(self, message: str, *, rows: bool = True) -> list[Answer]:
        """An answer a statement, up to the first that fails, which is the last. Without ``rows`` none are kept."""

    def fetch(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of one statement, and of no second one; raises :class:`StatementFailed`."""

    def close(self) -> None:
        """Ends it, and with it the lock; safe to call twice."""


class StatementFailed(Exception):
    """A statement of ours that the server did not run; ``trouble`` is what it says."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.message)
        self.trouble = trouble


def open_session(
    transport: Transport, settings: DatabaseSettings, password: str | None, errors: ScriptErrors, *, way: str
) -> Session:
    """A session by ``way`` (*tunnel* or *client*); Unreachable when the server is not there or does not let us in."""
    if way == "client":
        from pipeline.databases.postgresql.client import open_client

        return open_client(transport, settings, password, errors)
    return TunnelSession(transport, settings, password, errors)


class TunnelSession:
    """A session with libpq, through the transport's own connection."""

    def __init__(
        self, transport: Transport, settings: DatabaseSettings, password: str | None, errors: ScriptErrors
    ) -> None:
        folder = Path("/nonexistent")
        defaults = _defaults()
        try:
            with ExitStack() as stack:
                folder = stack.enter_context(transport.forward(settings.host, settings.reached_at))
                address: dict[str, Any] = {"host": str(folder), "port": settings.reached_at}
                if settings.tls == "verify-full":
                    port = stack.enter_context(_on_loopback(folder / f".s.PGSQL.{settings.reached_at}"))
                    address = {"host": settings.host, "hostaddr": "127.0.0.1", "port": port, "sslmode": "verify-full"}
                    address |= {"sslrootcert": settings.tls_ca or "system", "gssencmode": "disable"}
                self._connection = psycopg.connect(
                    autocommit=True,
                    prepare_threshold=None,
                    **defaults
                    | {
                        "dbname": settings.name,
                        "user": settings.user,
                        # An empty one keeps libpq from looking for another in this user's own ~/.pgpass.
                        "password": password or "",
                        "passfile": "/dev/null",
                        "application_name": APPLICATION,
                        "client_encoding": "UTF8",
                        "connect_timeout": 15,
                    }
                    | address,
                )
                self._stack = stack.pop_all()
        except psycopg.Error as error:
            raise _not_let_in(error, settings, errors, str(folder)) from None
        self._pgconn = self._connection.pgconn
        self.version = self._connection.info.server_version
        self.process = self._connection.info.backend_pid

    @property
    def closed(self) -> bool:
        return self._connection.closed or self._pgconn.status != pq.ConnStatus.OK

    @property
    def idle(self) -> bool:
        return self._connection.info.transaction_status == pq.TransactionStatus.IDLE

    def exchange(self, message: str, *, rows: bool = True) -> list[Answer]:
        return self._results(lambda: self._pgconn.send_query(message.encode()), rows)

    def fetch(self, statement: str) -> list[tuple[Any, ...]]:
        found: list[pq.abc.PGresult] = []
        # The extended protocol takes one statement only: a second one cannot leave the transaction.
        answers = self._results(lambda: self._pgconn.send_query_params(statement.encode(), None), False, found)
        if answers and answers[-1].trouble:
            raise StatementFailed(answers[-1].trouble)
        transformer = Transformer(self._connection)
        transformer.set_pgresult(found[-1])
        return transformer.load_rows(0, found[-1].ntuples, tuple)

    def close(self) -> None:
        with suppress(psycopg.Error):
            self._connection.close()
        self._stack.close()

    def _results(self, send: Any, rows: bool, found: list[pq.abc.PGresult] | None = None) -> list[Answer]:
        try:
            answers = self._connection.wait(_exchange(self._pgconn, send, rows, found))
        except psycopg.OperationalError:
            raise Lost from None
        if self.closed and not (answers and answers[-1].trouble and answers[-1].trouble.copied):
            raise Lost
        return answers


def _defaults() -> dict[str, Any]:
    """Every parameter that libpq would otherwise take from its environment or a service file, as if there were neither.

    ConfigurationError for what cannot be kept from the server that way.
    """
    told = [name for name in _HANDED_ON if os.environ.get(name, "default").lower() != "default"]
    if told:
        raise ConfigurationError(
            "the environment of this program would change what a script means.",
            reasons=[Reason(f"{name} is set here, and the server would be told of it") for name in told],
            next_commands=[f"unset {' '.join(told)}, then the same command again"],
        )
    found: dict[str, Any] = {}
    for option in pq.Conninfo.get_defaults():
        name = option.keyword.decode()
        if option.envvar and name not in _UNSET:
            found[name] = option.compiled.decode() if option.compiled else _NOT_EMPTY.get(name, "")
    return found


def _exchange(
    pgconn: pq.abc.PGconn, send: Any, rows: bool, found: list[pq.abc.PGresult] | None
) -> Generator[Wait, Ready | int, list[Answer]]:
    answers: list[Answer] = []
    copied = False
    send()
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    while True:
        while pgconn.is_busy():
            yield Wait.R
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return answers
        if result.status == pq.ExecStatus.COPY_IN:
            copied = True
            pgconn.put_copy_end(b"no data")
            continue
        if result.status in {pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH}:
            pgconn.finish()
            return [*answers, Answer(trouble=Trouble("COPY to the client", copied=True))]
        if found is not None:
            found.append(result)
        answers.append(_answer(result, rows, copied))


def _answer(result: pq.abc.PGresult, rows: bool, copied: bool) -> Answer:
    if result.status not in {pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY}:
        return Answer(trouble=_trouble(result, copied))
    columns = tuple((result.fname(number) or b"").decode(errors="replace") for number in range(result.nfields))
    values: tuple[tuple[str | None, ...], ...] = ()
    if rows:
        values = tuple(
            tuple(_text(result.get_value(row, column)) for column in range(result.nfields))
            for row in range(result.ntuples)
        )
    return Answer((result.command_status or b"").decode(errors="replace"), columns, values)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def _trouble(result: pq.abc.PGresult, copied: bool) -> Trouble:
    """Raises :class:`Lost` for libpq's own word for a lost connection, which has no SQLSTATE."""

    def field(name: pq.DiagnosticField) -> str | None:
        value = result.error_field(name)
        return value.decode(errors="replace") if value else None

    code = field(pq.DiagnosticField.SQLSTATE)
    # Class 57P: the server is being shut down, or an administrator ended the session.
    if code is None or code.startswith("57P"):
        raise Lost
    position = field(pq.DiagnosticField.STATEMENT_POSITION)
    return Trouble(
        field(pq.DiagnosticField.MESSAGE_PRIMARY) or "no message",
        code,
        int(position) if position else None,
        field(pq.DiagnosticField.MESSAGE_HINT),
        field(pq.DiagnosticField.CONSTRAINT_NAME),
        copied,
    )


@contextmanager
def _on_loopback(path: Path) -> Iterator[int]:
    """A port on loopback whose connections are passed on to the unix socket ``path``, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    far.connect(str(path))
                except OSError:
                    near.close()
                    far.close()
                    continue
                threading.Thread(target=join, args=(near, far), name="tls relay", daemon=True).start()

    threading.Thread(target=accept, name="tls relay", daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _not_let_in(error: psycopg.Error, settings: DatabaseSettings, errors: ScriptErrors, folder: str) -> PipelineError:
    place = f"{settings.host}:{settings.reached_at} as seen from the host"
    message = (error.diag.message_primary or str(error)).replace(folder, place)
    reasons: tuple[str, ...] = ()
    if settings.tls == "off" and ("no encryption" in message or "SSL" in message):
        reasons = ("the server demands TLS (hostssl), which takes tls: verify-full in the environment's file",)
    elif "password authentication failed" in message or "no password supplied" in message:
        reasons = ("the user or the password is wrong; the password's reference is in the environment's file",)
    return errors.not_let_in(message, reasons=reasons)
