"""A session with a MariaDB or MySQL server: opened through the transport, commands sent in messages, the runner's lock.

The driver is given a socket that is already connected to the tunnel's end: told of a unix socket, it would take the whole
way for safe and send passwords in the clear where the server asks for them so. Several statements travel in one message; the
server stops at the first that fails, and the number of results before it tells which one that was.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import pymysql
from pymysql.constants import CLIENT

from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import ConfigurationError, PipelineError, Reason, Unreachable
from pipeline.model import DatabaseSettings
from pipeline.transports import Transport

MESSAGE = 1024 * 1024
"""Bytes of statements after which a message is sent."""

COMMANDS = 256
"""Commands after which a message is sent."""

LOST = frozenset({2006, 2013, 2014, 2055, 1053, 1927, 1152, 1158, 1159, 1160, 1161, 1184, 3024, 4031})
"""Error numbers after which the connection is no more: what was under way is not known."""

LOCK_WAIT = frozenset({1205, 1213})
"""The lock was not to be had in time; a deadlock."""

Connection: TypeAlias = "pymysql.connections.Connection[Any]"


class Lost(Exception):
    """The connection broke; what was under way has an unknown outcome until the history is asked."""


@dataclass(frozen=True)
class Command:
    """One command of a message. ``number``: the statement of the script that it is, or whose counter it is.

    ``role``: *statement* of the script, *counter* (must change exactly one row), *guard*, or *own* for the rest of ours.
    ``alone``: it may give any number of results, so nothing travels with it.
    """

    sql: str
    role: str = "own"
    number: int | None = None
    alone: bool = False


class Trouble(Exception):
    """The server refused ``command`` with an error: number, its words, SQLSTATE."""

    def __init__(self, command: Command, number: int, message: str) -> None:
        super().__init__(message)
        self.command, self.number, self.message = command, number, message


def text(value: str) -> str:
    """A literal that means the same under every sql_mode and character set."""
    return f"X'{value.encode().hex()}'" if value else "''"


def sql(template: str, **values: object) -> str:
    """A statement with :func:`text`, :func:`name` or numbers put into its places."""
    return template.format(**values)


def name(identifier: str) -> str:
    """A quoted identifier."""
    return "`" + identifier.replace("`", "``") + "`"


def lock_name(database: str) -> str:
    """The runner's lock: the server has one namespace for all databases, and names of at most 64 characters."""
    plain = f"tma:{database}"
    return plain if len(plain) <= 64 else "tma:" + hashlib.sha256(database.encode()).hexdigest()[:60]


class Session:
    """The connection of one adapter, opened when first used."""

    def __init__(
        self,
        transport: Transport,
        settings: DatabaseSettings,
        password: str | None,
        errors: ScriptErrors,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._password = password
        self._errors = errors
        self._stack = ExitStack()
        self._open: Connection | None = None
        self._held = False
        self.lock = lock_name(settings.name or "")
        self.sql_mode = ""
        self.version = ""
        self.largest = 16 * 1024 * 1024
        """Bytes of the largest statement that the server takes."""

    # --- connection --------------------------------------------------------------------------------------------------

    def connection(self) -> Connection:
        """The open connection, or a new one; Unreachable when there is none to be had."""
        if self._open is not None and self._open.open:
            return self._open
        self.close()
        with ExitStack() as stack:
            connection = self.connect(stack, flags=CLIENT.MULTI_STATEMENTS)
            self._stack = stack.pop_all()
        self._open = connection
        return connection

    def connect(self, stack: ExitStack, *, flags: int = 0) -> Connection:
        """A connection of its own, which lives as long as ``stack``; Unreachable when there is none to be had."""
        settings = self._settings
        wait = settings.lock_timeout
        context = self._context() if settings.tls == "verify-full" else None
        folder = stack.enter_context(self._transport.forward(settings.host, settings.reached_at))
        connection: Connection = pymysql.connect(
            host=settings.host,
            port=settings.reached_at,
            user=settings.user or "",
            # As bytes: the driver would encode text as Latin-1.
            password=(self._password or "").encode(),
            database=settings.name,
            charset="utf8mb4",
            autocommit=True,
            local_infile=False,
            client_flag=flags,
            program_name="tma-pipeline",
            ssl=context,
            ssl_disabled=context is None,
            # A statement waits a day for another's lock on a table unless it is told not to.
            init_command=f"SET SESSION lock_wait_timeout = {wait}, innodb_lock_wait_timeout = {wait},"
            " wait_timeout = 28800, net_read_timeout = 600, net_write_timeout = 600",
            defer_connect=True,
        )
        try:
            line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.callback(line.close)
            line.settimeout(30)
            line.connect(str(folder / f".s.PGSQL.{settings.reached_at}"))
            connection.connect(line)
            stack.callback(_closed, connection)
            with connection.cursor() as cursor:
                cursor.execute("SELECT @@sql_mode, VERSION(), @@max_allowed_packet")
                row = cursor.fetchone() or ("", "", self.largest)
            self.sql_mode, self.version, self.largest = str(row[0]), str(row[1]), int(row[2])
        except (pymysql.Error, OSError, ssl.SSLError, EOFError) as error:
            raise self._not_let_in(error) from None
        return connection

    def _context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self._settings.tls_ca)
        except (OSError, ValueError, ssl.SSLError) as error:
            raise ConfigurationError(
                "the certificate authority of the database cannot be read.",
                reasons=[Reason(str(error), self._settings.tls_ca)],
            ) from None

    def close(self) -> None:
        """Ends the connection, and with it the lock; safe to call twice."""
        self._open, self._held = None, False
        self._stack.close()

    @property
    def backslashes(self) -> bool:
        """Whether a backslash escapes in this session's strings."""
        return "NO_BACKSLASH_ESCAPES" not in self.sql_mode

    @property
    def ansi_quotes(self) -> bool:
        """Whether double quotes hold a name in this session, not a text."""
        return "ANSI_QUOTES" in self.sql_mode

    # --- messages ----------------------------------------------------------------------------------------------------

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of one of our own statements. Lost, Trouble."""
        return self.send([Command(statement)])[0]

    def send(self, commands: Sequence[Command]) -> list[list[tuple[Any, ...]]]:
        """The rows of each command of one message; of one that is alone, those of its first result.

        Lost when the connection breaks. Trouble at the first one that fails, or whose counter was not there to be raised.
        """
        cursor = self.connection().cursor()
        found: list[list[tuple[Any, ...]]] = []
        try:
            cursor.execute("\n;\n".join(command.sql for command in commands))
            while True:
                command = commands[min(len(found), len(commands) - 1)]
                if command.role == "counter" and cursor.rowcount != 1:
                    raise Trouble(command, 0, "its row of the history is not what it was")
                found.append(list(cursor.fetchall()) if cursor.description else [])
                if not cursor.nextset():
                    break
            if len(found) != len(commands) and not any(each.alone for each in commands):
                # A command that was taken for one gave several results: what belongs to which is not known.
                why = f"the server gave {len(found)} results for {len(commands)} commands"
                raise Trouble(commands[-1], 0, why)
        except pymysql.Error as error:
            number = int(error.args[0]) if error.args and isinstance(error.args[0], int) else 0
            command = commands[min(len(found), len(commands) - 1)]
            message = str(error.args[1]) if len(error.args) > 1 else str(error)
            if command.alone and number == 1065:
                return [[]]  # all of it was in a comment for other versions
            if number in LOST or number == 0 or self._open is None or not self._open.open:
                raise Lost(message) from None
            raise Trouble(command, number, message) from None
        except OSError as error:
            raise Lost(str(error)) from None
        return found

    def stream(self, commands: Iterable[Command]) -> Iterable[Command]:
        """Sends the commands in messages of about a megabyte; gives each one once its message was answered. As :meth:`send`."""
        waiting: list[Command] = []
        size = 0
        for command in commands:
            more = len(command.sql) if command.sql.isascii() else len(command.sql.encode())
            # What is between two commands takes a few bytes as well.
            full = size + more + 3 * (len(waiting) + 1) + 100 > min(MESSAGE, self.largest)
            if waiting and (command.alone or waiting[-1].alone or full or len(waiting) >= COMMANDS):
                self.send(waiting)
                yield from waiting
                waiting, size = [], 0
            waiting.append(command)
            size += more
        if waiting:
            self.send(waiting)
            yield from waiting

    def roll_back(self) -> bool:
        """Ends what transaction there is; False when something of it could not be taken back (tables without transactions)."""
        if self._open is None or not self._open.open:
            return True
        try:
            self.send([Command("ROLLBACK")])
            warnings = self.ask("SHOW WARNINGS")
            self.send([Command("UNLOCK TABLES")])
            return all(row[1] != 1196 for row in warnings)
        except (Lost, Trouble):
            self.close()
            return True

    # --- the runner's lock ---------------------------------------------------------------------------------------------

    def take_lock(self, patience: float, commands: Sequence[Command] = ()) -> list[list[tuple[Any, ...]]]:
        """Takes the lock and gives the answers to ``commands``, asked in the same message.

        Polled, for at most ``patience`` seconds; Locked then, which names the holder.
        """
        deadline = time.monotonic() + patience
        while True:
            try:
                lock, *answers = self.send([Command(f"SELECT GET_LOCK({text(self.lock)}, 0)"), *commands])
            except Trouble:
                self._held = True  # perhaps: what failed may have come after it
                raise
            if lock[0][0] == 1:
                self._held = True
                return answers
            if time.monotonic() > deadline:
                raise self._errors.locked(self._holder(), patience)
            time.sleep(0.2)

    def hold(self, stack: ExitStack, lock: str, seconds: int) -> bool:
        """Whether the named lock was to be had in time; on a connection of its own, as long as ``stack`` lives."""
        cursor = self.connect(stack).cursor()
        try:
            cursor.execute(f"SELECT GET_LOCK({text(lock_name(lock))}, {seconds})")
            return bool((cursor.fetchone() or (0,))[0] == 1)
        except (pymysql.Error, OSError) as error:
            raise Lost(str(error)) from None

    @property
    def release(self) -> Command:
        """The command that gives the lock back."""
        return Command(f"DO RELEASE_LOCK({text(self.lock)})")

    def let_go(self) -> None:
        """Gives the lock back, by ending the session where it cannot be said otherwise."""
        if self._held and self._open is not None and self._open.open:
            try:
                self.send([self.release])
            except (Lost, Trouble):
                self.close()
        self._held = False

    def released(self) -> None:
        """The lock was given back by :attr:`release` in a message."""
        self._held = False

    def _holder(self) -> str:
        with contextlib.suppress(Lost, Trouble):
            rows = self.ask(
                sql(
                    "SELECT id, user, SUBSTRING_INDEX(host, ':', 1), time FROM information_schema.processlist"
                    " WHERE id = IS_USED_LOCK({lock})",
                    lock=text(self.lock),
                )
            )
            if rows:
                number, user, host, seconds = rows[0]
                return f"another run is at work here (connection {number} of {user} from {host}, busy for {seconds} s)"
        return "another run is at work here"

    def blockers(self) -> str | None:
        """Who may hold the lock that a statement waited for: the open transactions, as far as this user sees them."""
        with contextlib.suppress(Lost, Trouble):
            rows = self.ask(
                "SELECT p.id, p.user, SUBSTRING_INDEX(p.host, ':', 1), TIMESTAMPDIFF(SECOND, t.trx_started, NOW())"
                " FROM information_schema.innodb_trx t JOIN information_schema.processlist p"
                " ON p.id = t.trx_mysql_thread_id WHERE p.id <> CONNECTION_ID() ORDER BY t.trx_started LIMIT 3"
            )
            if rows:
                said = [
                    f"connection {row[0]} of {row[1]} from {row[2]}, in a transaction for {row[3]} s" for row in rows
                ]
                return "it may be held by " + "; ".join(said)
        return None

    # --- errors ------------------------------------------------------------------------------------------------------

    def _not_let_in(self, error: Exception) -> PipelineError:
        number = error.args[0] if error.args else 0
        message = str(error.args[1]) if isinstance(error, pymysql.Error) and len(error.args) > 1 else str(error)
        reasons: tuple[str, ...] = ()
        if number == 1045:
            reasons = ("the user or the password is wrong; the password's reference is in the environment's file",)
            if self._settings.tls == "off":
                # MariaDB gives the same answer where it demands TLS.
                reasons += ("or the server demands TLS: then say tls: verify-full",)
        elif number in {3159, 4151} or "secure transport" in message.lower():
            reasons = ("the server demands TLS: say tls: verify-full in the environment's file",)
        elif isinstance(error, ssl.SSLError) or "certificate" in message.lower():
            reasons = ("the server's certificate is checked against tls_ca and the name in host",)
        elif number in {2003, 2013, 0} and isinstance(error, pymysql.Error | OSError | EOFError):
            reasons = (f"nothing that speaks {self._settings.engine} answers there, as seen from the host",)
        found = self._errors.not_let_in(f"{message} [{number}]" if number else message, reasons=reasons)
        assert isinstance(found, Unreachable)
        return found


def _closed(connection: Connection) -> None:
    with contextlib.suppress(pymysql.Error):
        connection.close()
