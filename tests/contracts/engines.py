"""The engines under test: one class each, which the one suite and an engine's own tests use.

A new engine is a class here and a fixture of its name in ``conftest.py``.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from pipeline.content import script_checksum
from pipeline.databases import Database
from pipeline.databases.mysql.database import MysqlDatabase
from pipeline.databases.postgresql.database import PostgresqlDatabase
from pipeline.databases.sqlite.database import SqliteDatabase
from pipeline.model import DatabaseSettings, Script
from pipeline.transports.local import LocalTransport
from tests.servers.mariadb import MariaDbServer, program
from tests.servers.postgres import DatabaseAddress, PostgresServer

SECRET = "canary-pa55word"
HOST_PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
"""This Python is the host's python3 too: a version manager's shim would cost more than the tests."""

MISSING_TABLE = "INSERT INTO nowhere VALUES (1)"


class Engine(Protocol):
    """One engine under test: a database of its own, and the ways to look at it past the adapter.

    ``slow`` is a piece of a script that takes a second or so. ``transactional_ddl``: a failing script leaves nothing.
    ``hold`` takes what a runner holds while it is at work, until what it returns is closed.
    """

    name: str
    slow: str
    transactional_ddl: bool

    def open(self, **options: Any) -> Database: ...
    def query(self, statement: str) -> list[tuple[Any, ...]]: ...
    def tables(self) -> set[str]: ...
    def unreadable(self) -> Database: ...
    def restore(self, backup: str, query: str) -> list[tuple[Any, ...]]: ...
    def hold(self) -> Any: ...


class Postgres:
    name = "postgresql"
    transactional_ddl = True
    slow = "SELECT pg_sleep(1);"

    def __init__(self, server: PostgresServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.opened: list[Database] = []
        self.address = server.create_database(password=SECRET)
        self.transport = LocalTransport("app1", environment={"PATH": HOST_PATH})

    def settings(self, **changes: Any) -> DatabaseSettings:
        address: DatabaseAddress = self.address
        return DatabaseSettings(
            engine="postgresql", host=address.host, port=address.port, name=address.name, user=address.user
        ).model_copy(update=changes)

    def open(self, *, transport: Any = None, password: str = SECRET, **options: Any) -> Database:
        names = {name: options.pop(name) for name in list(options) if name in DatabaseSettings.model_fields}
        database = PostgresqlDatabase(
            transport or self.transport,
            self.settings(**names),
            password,
            backups=str(self.folder / "backups"),
            customer="acme",
            environment="test",
            **options,
        )
        self.opened.append(database)
        return database

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with self.address.connect() as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def tables(self) -> set[str]:
        rows = self.query(
            "SELECT tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        return {row[0] for row in rows}

    def unreadable(self) -> Database:
        return self.open(name="nowhere")

    def restore(self, backup: str, query: str) -> list[tuple[Any, ...]]:
        other = self.server.create_database()
        environment = {**os.environ, "PGPASSWORD": other.password}
        target = ["--host", other.host, "--port", str(other.port), "--username", other.user, "--dbname", other.name]
        restore = self.server.bin / "pg_restore"
        subprocess.run([restore, "--no-owner", "--exit-on-error", *target, backup], env=environment, check=True)
        with other.connect() as connection:
            return connection.execute(query.encode()).fetchall()

    def hold(self) -> Any:
        connection = self.address.connect(application_name="tma other-run")
        connection.execute("BEGIN")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [0x746D6131])
        return connection


class Sqlite:
    name = "sqlite"
    transactional_ddl = True
    slow = (
        "CREATE TABLE filler AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500000)"
        " SELECT max(i) AS i FROM n; DROP TABLE filler;"
    )

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "app 100%?#.sqlite"
        self.transport = LocalTransport("app1", environment={"PATH": HOST_PATH})

    def open(self, *, transport: Any = None, path: Path | None = None, **options: Any) -> Database:
        return SqliteDatabase(
            transport or self.transport,
            str(path or self.path),
            backups=str(self.folder / "backups"),
            customer="acme",
            environment="test",
            **options,
        )

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.path)
        try:
            with connection:
                return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def tables(self) -> set[str]:
        return {row[0] for row in self.query("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def unreadable(self) -> Database:
        path = self.folder / "not-a-database"
        path.write_bytes(b"this is a text, not a database\n" * 100)
        return self.open(path=path)

    def restore(self, backup: str, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(backup)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def hold(self) -> Any:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        return connection


def script(name: str, sql: str | bytes) -> tuple[Script, bytes]:
    data = sql.encode() if isinstance(sql, str) else sql
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return Script(id=name, checksum=script_checksum(data), blob=blob), data


def apply(database: Database, name: str, sql: str | bytes, *, fence: int = 1, run: str = "r1") -> bool:
    return database.apply(*script(name, sql), fence=fence, run=run, release="1.0+1")


def history_of(database: Database) -> list[str]:
    return [row.script for row in database.history()]


class MariaDb:
    name = "mariadb"
    transactional_ddl = False
    slow = "DO SLEEP(1);"

    def __init__(self, server: MariaDbServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.opened: list[MysqlDatabase] = []
        self.address = server.create_database(password=SECRET, scratch=True)
        self.transport = LocalTransport("app1", environment={"PATH": HOST_PATH})

    def settings(self, **changes: Any) -> DatabaseSettings:
        address = self.address
        return DatabaseSettings(
            engine="mariadb", host=address.host, port=address.port, name=address.name, user=address.user
        ).model_copy(update=changes)

    def open(self, *, transport: Any = None, password: str = SECRET, **options: Any) -> MysqlDatabase:
        names = set(DatabaseSettings.model_fields)
        changes = {name: options.pop(name) for name in list(options) if name in names}
        database = MysqlDatabase(
            transport or self.transport,
            self.settings(**changes),
            password,
            backups=str(self.folder / "backups"),
            customer="acme",
            environment="test",
            **options,
        )
        self.opened.append(database)
        return database

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        return self.address.query(statement)

    def tables(self) -> set[str]:
        return {row[0] for row in self.query("SHOW TABLES")}

    def unreadable(self) -> Database:
        return self.open(name="nowhere")

    def restore(self, backup: str, query: str) -> list[tuple[Any, ...]]:
        other = self.server.create_database()
        options = [f"--host={other.host}", f"--port={other.port}", f"--user={other.user}", "--protocol=tcp", "--batch"]
        environment = {**os.environ, "MYSQL_PWD": other.password}
        text = gzip.decompress(Path(backup).read_bytes())
        command = [program("mariadb"), "--no-defaults", *options, other.name]
        subprocess.run(command, input=text, env=environment, check=True)
        return other.query(query)

    def hold(self) -> Any:
        connection = self.address.connect()
        connection.cursor().execute("SELECT GET_LOCK(%s, 0)", [f"tma:{self.address.name}"])
        return connection
