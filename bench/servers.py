"""Throwaway OpenSSH servers on loopback: one a host, one deploy key for all, ended by process id."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.delay import Line, delayed
from pipeline.demo.sshd import ThrowawaySshd


@dataclass(frozen=True)
class Fleet:
    """The servers that run, and the files with which OpenSSH, Fabric and ours reach them alike.

    ``ports`` has one for each host; ``far`` is the first server's behind a line with a longer round trip.
    """

    folder: Path
    user: str
    ports: tuple[int, ...]
    far: Line

    @property
    def ssh_config(self) -> Path:
        """One ``Host *`` block: user, key, known hosts."""
        return self.folder / "ssh_config"

    @property
    def identity(self) -> Path:
        """The private key that every server lets in."""
        return self.folder / "deploy_key"

    @property
    def known_hosts(self) -> Path:
        """The host keys of all servers."""
        return self.folder / "known_hosts"


@contextmanager
def fleet(folder: Path, count: int, *, round_trip: float = 0.05) -> Iterator[Fleet]:
    """``count`` servers, and the first once more behind a line of ``round_trip`` seconds; all ended at the end.

    Raises NotKnown where OpenSSH's server is not installed.
    """
    # A bare home: bash reads ~/.bashrc for each command of sshd's, which on a developer's machine may take 200 ms.
    home = folder / "home"
    home.mkdir(parents=True)
    plain = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(home)}
    settings = ("Subsystem sftp internal-sftp",)  # for Fabric's put
    first = ThrowawaySshd(folder / "server01", environment=plain, settings=settings)
    servers = [first]
    try:
        first.start()
        for number in range(2, count + 1):
            own = folder / f"server{number:02}"
            own.mkdir(parents=True, exist_ok=True)
            for name in ("user_key", "user_key.pub"):
                shutil.copy(first.folder / name, own / name)
            servers.append(ThrowawaySshd(own, environment=plain, settings=settings))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ThrowawaySshd.start, servers))
        with delayed(first.port, round_trip) as far:
            made = Fleet(folder, first.user, tuple(server.port for server in servers), far)
            shutil.copy(first.identity_file, made.identity)
            known = [f"[127.0.0.1]:{server.port} {server.host_key}\n" for server in servers]
            known.append(f"[127.0.0.1]:{far.port} {first.host_key}\n")
            made.known_hosts.write_text("".join(known))
            made.ssh_config.write_text(
                "Host *\n"
                f"    User {first.user}\n"
                f'    IdentityFile "{made.identity}"\n'
                "    IdentitiesOnly yes\n"
                f'    UserKnownHostsFile "{made.known_hosts}"\n'
                "    StrictHostKeyChecking yes\n"
            )
            yield made
    finally:
        for server in servers:
            server.stop()
