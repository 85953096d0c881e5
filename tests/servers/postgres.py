"""A real PostgreSQL server in a temporary folder: loopback and a unix socket, passwords by scram-sha-256.

PostgreSQL refuses to run as root, so root steps down to ``postgres`` or, where there is no such user, to ``nobody``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql


@dataclass(frozen=True)
class DatabaseAddress:
    """What a client needs; ``socket_folder`` serves where a unix socket is wanted."""

    host: str
    port: int
    name: str
    user: str
    password: str
    socket_folder: Path

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection in autocommit, for the tests' own questions."""
        return psycopg.connect(
            host=self.host,
            port=self.port,
            dbname=self.name,
            user=self.user,
            password=self.password,
            autocommit=True,
            **options,
        )


def binaries() -> Path:
    """The folder with ``initdb`` and ``postgres``: on PATH, or Debian's newest; an error says what to install."""
    found = shutil.which("initdb")
    if found and (Path(found).resolve().parent / "postgres").exists():
        return Path(found).resolve().parent
    versions = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not versions:
        raise RuntimeError("PostgreSQL's server is missing: apt-get install postgresql (or put initdb on PATH)")
    return max(versions, key=lambda folder: float(folder.parent.name))


def _server_user() -> str | None:
    """Whom root steps down to; None for everyone else."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("PostgreSQL refuses root, and there is neither a user postgres nor nobody to step down to")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """``with PostgresServer() as server``: runs until the block ends; then it is ended by pid and its folder removed.

    With a ``certificate`` and its ``key`` (PEM) it speaks TLS, and over TCP only that to everyone but its superuser.
    """

    def __init__(self, *, certificate: bytes | None = None, key: bytes | None = None) -> None:
        self._tls = (certificate, key) if certificate and key else None
        self.bin = binaries()
        self.password = secrets.token_urlsafe(12)
        self.port = 0
        # Not pytest's tmp_path: it is 0700 and root's, and a unix socket's path must stay under 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._user = _server_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._names = 0

    def __enter__(self) -> PostgresServer:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def create_database(self, name: str | None = None, *, password: str | None = None) -> DatabaseAddress:
        """A new empty database, owned by a new role of the same name that has a password and no other right."""
        self._names += 1
        name = name or f"customer_{self._names}"
        password = password or secrets.token_urlsafe(12)
        with self.superuser().connect() as connection:
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(name), sql.Literal(password))
            )
            connection.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(name)))
        return DatabaseAddress("127.0.0.1", self.port, name, name, password, self.folder)

    def superuser(self, database: str = "postgres") -> DatabaseAddress:
        """The superuser's own address of a database."""
        return DatabaseAddress("127.0.0.1", self.port, database, "postgres", self.password, self.folder)

    def stop(self) -> None:
        """End it by pid (at once: its data is thrown away), remove its folder. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGQUIT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run_as(self) -> dict[str, Any]:
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "TZ": "UTC"}
        keywords: dict[str, Any] = {"env": environment, "cwd": self.folder}
        if self._user is not None:
            keywords |= {"user": self._user, "group": pwd.getpwnam(self._user).pw_gid, "extra_groups": []}
        return keywords

    def _start(self) -> None:
        if self._user is not None:
            shutil.chown(self.folder, self._user, pwd.getpwnam(self._user).pw_gid)
        # The clients may run as somebody else than the server; the socket's own password guards it.
        self.folder.chmod(0o711)
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        data = self.folder / "data"
        if self._user is not None:
            shutil.chown(password_file, self._user)
        made = subprocess.run(
            [
                *(self.bin / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", "--pwfile", password_file),
                *("-E", "UTF8", "--no-locale", "--no-sync"),
            ],
            capture_output=True,
            check=False,
            **self._run_as(),
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stderr.decode(errors='replace')}")
        password_file.unlink()
        if self._tls is not None:
            self._demand_tls(data, *self._tls)
        for _ in range(5):
            if self._serve(data):
                return
        raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")

    def _demand_tls(self, data: Path, certificate: bytes, key: bytes) -> None:
        for name, content in (("server.crt", certificate), ("server.key", key)):
            path = data / name
            path.write_bytes(content)
            path.chmod(0o600)
            if self._user is not None:
                shutil.chown(path, self._user, pwd.getpwnam(self._user).pw_gid)
        (data / "pg_hba.conf").write_text(
            "local all all scram-sha-256\nhost all postgres 127.0.0.1/32 scram-sha-256\n"
            "hostssl all all 127.0.0.1/32 scram-sha-256\n"
        )
        with (data / "postgresql.conf").open("a") as settings:
            settings.write("ssl = on\n")

    def _serve(self, data: Path) -> bool:
        """Start on a free port and wait for the first connection; False when another took the port meanwhile."""
        self.port = _free_port()
        options = ["listen_addresses=127.0.0.1", "fsync=off", "full_page_writes=off", "shared_buffers=16MB"]
        options += [f"unix_socket_directories={self.folder}", "max_connections=40", "timezone=UTC"]
        arguments = [piece for option in options for piece in ("-c", option)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.bin / "postgres", "-D", data, "-p", str(self.port), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._run_as(),
            )
        deadline = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), self.superuser().connect():
                return True
            time.sleep(0.05)
        return False
