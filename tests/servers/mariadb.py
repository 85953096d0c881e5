"""A real MariaDB server in a temporary folder: loopback and a unix socket of its own, ended by pid.

MariaDB refuses to run as root unless it is told whom to step down to: ``mysql`` or, where there is no such user, ``nobody``.
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

import pymysql

SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class MariaDbAddress:
    """What a client needs."""

    host: str
    port: int
    name: str
    user: str
    password: str

    def connect(self, **options: Any) -> pymysql.connections.Connection[Any]:
        """A connection in autocommit, for the tests' own questions."""
        return pymysql.connect(
            host=self.host,
            port=self.port,
            database=options.pop("database", self.name),
            user=self.user,
            password=self.password,
            autocommit=True,
            charset="utf8mb4",
            **options,
        )

    def query(self, statement: str, arguments: Any = None) -> list[tuple[Any, ...]]:
        """The rows of one statement."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute(statement, arguments)
            return list(cursor.fetchall())


def program(name: str) -> str:
    """The path of one of the server's programs; an error says what to install."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *SYSTEM.split(":")])
    found = shutil.which(name, path=path)
    if found is None:
        raise RuntimeError(f"MariaDB's {name} is missing: apt-get install mariadb-server")
    return found


def _server_user() -> str | None:
    """Whom root steps down to; None for everyone else."""
    if os.geteuid() != 0:
        return None
    for name in ("mysql", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("MariaDB refuses root, and there is neither a user mysql nor nobody to step down to")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MariaDbServer:
    """``with MariaDbServer() as server``: runs until the block ends; then it is ended by pid and its folder removed.

    ``options`` are further words for ``mariadbd``, such as ``--ssl-cert=…``.
    """

    def __init__(self, *options: str) -> None:
        self.password = secrets.token_urlsafe(12)
        self.port = 0
        # Not pytest's tmp_path: it is 0700 and root's, and a unix socket's path must stay under 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="mariadb-"))
        self._options = options
        self._user = _server_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._names = 0

    def __enter__(self) -> MariaDbServer:
        try:
            self._make()
            self.start()
            with self.root(password="").connect() as connection, connection.cursor() as cursor:
                cursor.execute("CREATE USER boss@'%%' IDENTIFIED BY %s", [self.password])
                cursor.execute("GRANT ALL ON *.* TO boss@'%' WITH GRANT OPTION")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def create_database(
        self, name: str | None = None, *, password: str | None = None, scratch: bool = False
    ) -> MariaDbAddress:
        """A new empty database, and a user of the same name that has every right on it and none beyond.

        With ``scratch`` also one named ``<name>_scratch``, on which the user has the same rights.
        """
        self._names += 1
        name = name or f"customer_{self._names}"
        password = password or secrets.token_urlsafe(12)
        with self.superuser().connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE USER `{name[:80]}`@'%%' IDENTIFIED BY %s", [password])
            for database in (name, f"{name}_scratch")[: 1 + scratch]:
                cursor.execute(f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4")
                cursor.execute(f"GRANT ALL ON `{database}`.* TO `{name[:80]}`@'%'")
        return MariaDbAddress("127.0.0.1", self.port, name, name[:80], password)

    def superuser(self, database: str = "mysql") -> MariaDbAddress:
        """An address with every right."""
        return MariaDbAddress("127.0.0.1", self.port, database, "boss", self.password)

    def root(self, *, password: str) -> MariaDbAddress:
        """The user that the installation made."""
        return MariaDbAddress("127.0.0.1", self.port, "mysql", "root", password)

    def kill(self) -> None:
        """Ends it at once, as a crash does; :meth:`start` brings it back on the same port with the same data."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def stop(self) -> None:
        """End it by pid (at once: its data is thrown away), remove its folder. Safe to call twice."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Starts it and waits for the first connection."""
        for _ in range(5):
            if self._serve():
                return
        raise RuntimeError(f"MariaDB did not start: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")

    def _as_user(self) -> list[str]:
        return [f"--user={self._user}"] if self._user is not None else []

    def _make(self) -> None:
        if self._user is not None:
            shutil.chown(self.folder, self._user, pwd.getpwnam(self._user).pw_gid)
        self.folder.chmod(0o711)
        # A server that starts removes every temporary table in its tmpdir, another server's too.
        (self.folder / "tmp").mkdir()
        if self._user is not None:
            shutil.chown(self.folder / "tmp", self._user)
        made = subprocess.run(
            [
                *(
                    program("mariadb-install-db"),
                    "--no-defaults",
                    *self._as_user(),
                    f"--datadir={self.folder / 'data'}",
                ),
                *("--skip-test-db", "--auth-root-authentication-method=normal", "--skip-name-resolve"),
                *("--innodb-log-file-size=8M", "--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=0"),
                *("--innodb-doublewrite=0", "--innodb-flush-method=nosync", f"--tmpdir={self.folder / 'tmp'}"),
            ],
            capture_output=True,
            check=False,
            env={"PATH": f"{os.environ.get('PATH', os.defpath)}:{SYSTEM}", "LC_ALL": "C"},
        )
        if made.returncode:
            raise RuntimeError(f"mariadb-install-db failed: {(made.stdout + made.stderr).decode(errors='replace')}")

    def _serve(self) -> bool:
        """Start on a free port, or on the one that it had; False when another took the port meanwhile."""
        port = self.port or _free_port()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(program("mariadbd"), "--no-defaults", *self._as_user(), f"--datadir={self.folder / 'data'}"),
                    *(f"--port={port}", "--bind-address=127.0.0.1", f"--socket={self.folder / 'sock'}"),
                    *(f"--pid-file={self.folder / 'pid'}", "--skip-name-resolve", "--innodb-buffer-pool-size=32M"),
                    *("--innodb-log-file-size=32M", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"),
                    *("--key-buffer-size=1M", "--aria-pagecache-buffer-size=1M", "--max-connections=60"),
                    *("--innodb-flush-method=nosync", "--default-time-zone=+00:00"),
                    *(f"--tmpdir={self.folder / 'tmp'}", *self._options),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            )
        deadline = time.monotonic() + 60
        while self._process.poll() is None and time.monotonic() < deadline:
            # Any answer will do, a refusal too.
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
                if probe.recv(1):
                    self.port = port
                    return True
            time.sleep(0.05)
        return False
