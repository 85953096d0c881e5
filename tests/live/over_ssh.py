"""What the live stories share: workspaces whose hosts are reached over real SSH, and a look at what is really there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from pipeline import wiring
from pipeline.demo.sshd import ThrowawaySshd
from pipeline.workflow import Session
from tests.workspaces import Sample


def ready_path() -> dict[str, str]:
    """The PATH of a server on which ``python3`` is a program: a version manager's shim costs each command its start."""
    return {"PATH": os.pathsep.join([str(Path(sys.executable).resolve().parent), os.environ.get("PATH", os.defpath)])}


class SshSample(Sample):
    """The small workspace of ``tests/workspaces.py``, with every host behind an OpenSSH server.

    ``servers``: those of each environment, one a host. ``databases``: the ``database:`` block of an environment whose
    database is not SQLite.
    """

    def __init__(
        self, folder: Path, servers: Mapping[str, Sequence[ThrowawaySshd]], databases: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder)
        known = list({id(server): server for hosts in servers.values() for server in hosts}.values())
        names = {id(server): f"server{number}" for number, server in enumerate(known, 1)}
        self.write("ssh_config", "".join(server.ssh_config_text(names[id(server)]) for server in known))
        settings = folder / "environments/workspace.yaml"
        settings.write_text(settings.read_text() + "ssh_config: ssh_config\n")
        for environment, hosts in servers.items():
            listed = "".join(
                f"  - name: app{n}\n    address: {names[id(server)]}\n    folder: {self.host(environment, n)}\n"
                for n, server in enumerate(hosts, 1)
            )
            database = (databases or {}).get(environment, "  engine: sqlite\n  path: shared/app.sqlite\n")
            self.write(
                f"environments/acme/{environment}.yaml",
                f"transport: ssh\nurl: http://{environment}.acme.example/\nhosts:\n{listed}"
                f"values:\n  title: Acme {environment}\ndatabase:\n{database}"
                "secrets:\n  password: file:keys/password\n",
            )

    def current(self, environment: str, number: int = 1) -> str | None:
        """What ``current`` on a host points to, read from the file system itself."""
        link = self.host(environment, number) / "current"
        return str(link.readlink()) if link.is_symlink() else None


def snapshot(folder: Path) -> dict[str, tuple[int, float, bytes]]:
    """Mode, time of change and bytes of everything below a folder: equal when nothing was written in between."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime,
            str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def ask(session: Session, customer: str, environment: str, path: str) -> tuple[int, Any]:
    """Status and JSON of the application's answer, asked for through the SSH connection to the environment's first host."""
    configured = session.workspace.customer(customer).environment(environment)
    host = configured.hosts[0]
    transport = wiring.transport_for(host, configured, session.workspace.settings, session.folder)
    try:
        with transport.dial("127.0.0.1", host.values["port"]) as connection:
            connection.settimeout(20)
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n".encode())
            answer = HTTPResponse(connection)
            answer.begin()
            return answer.status, json.loads(answer.read())
    finally:
        transport.close()


def every_object(repository: Path) -> Iterator[tuple[str, bytes]]:
    """Every object of a bare repository, reachable or not, decompressed."""
    for file in (repository / "objects").glob("[0-9a-f][0-9a-f]/*"):
        yield file.parent.name + file.name, zlib.decompress(file.read_bytes())
    listed = subprocess.run(
        ["git", "cat-file", "--batch-all-objects", "--batch-check=%(objectname)"],
        cwd=repository,
        check=True,
        capture_output=True,
    ).stdout
    done = subprocess.run(["git", "cat-file", "--batch"], cwd=repository, check=True, capture_output=True, input=listed)
    yield "all packed objects", done.stdout
