"""A real PgBouncer before a test's PostgreSQL, in a temporary folder: it pools sessions or transactions."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import psycopg

from tests.servers.postgres import DatabaseAddress


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PgBouncer:
    """``with PgBouncer(address, mode="transaction") as proxy``: ``proxy.address`` is the same database, through it.

    ``mode`` is its ``pool_mode``. It refuses root, and runs as ``postgres`` or ``nobody`` then.
    """

    def __init__(self, address: DatabaseAddress, *, mode: Literal["session", "transaction"], size: int = 3) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pgb-"))
        self.address = replace(address, port=_free_port(), socket_folder=self.folder)
        self._target = address
        self._mode = mode
        self._size = size
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PgBouncer:
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

    def stop(self) -> None:
        """End it by pid and remove its folder. Safe to call twice."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            raise RuntimeError("PgBouncer is missing: apt-get install pgbouncer")
        target = self._target
        (self.folder / "users").write_text(f'"{target.user}" "{target.password}"\n')
        (self.folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host={target.host} port={target.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.address.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {self.folder}/users\npool_mode = {self._mode}\n"
            f"default_pool_size = {self._size}\nignore_startup_parameters = extra_float_digits\n"
            f"max_client_conn = 50\nserver_reset_query = DISCARD ALL\n"
        )
        keywords: dict[str, Any] = {}
        if os.geteuid() == 0:
            for name in ("postgres", "nobody"):
                with contextlib.suppress(KeyError):
                    user = pwd.getpwnam(name)
                    break
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
            keywords = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, self.folder / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                **keywords,
            )
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError), self.address.connect():
                return
            time.sleep(0.05)
        raise RuntimeError(f"PgBouncer did not start: {(self.folder / 'log').read_text(errors='replace')[-2000:]}")
