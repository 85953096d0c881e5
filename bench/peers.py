"""What ours is compared with: rsync, a plain Fabric script, and the floor. The scripts themselves are in ``scripts/``.

Fair play: the peers write the same folders (``releases/<version>``, ``current``, ``shared``), restart and check with the
same commands, keep five releases as we do, and go to all hosts at once. They may use what ours may: OpenSSH's defaults,
the previous release on the host, checksums that were made beforehand. Where ours hashes every file on the host (a full
upload), theirs run ``sha256sum -c`` over the release before they switch; for a patch, rsync's own checksum of each
transferred file is enough.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from bench import tree
from bench.servers import Fleet
from bench.timing import Sample, measure
from pipeline.errors import Failed

SCRIPTS = Path(__file__).parent / "scripts"


class Peer:
    """One tool, with host folders of its own below ``folder``."""

    name = ""

    def __init__(self, folder: Path, fleet: Fleet, source: Path) -> None:
        self.folder = folder
        self.fleet = fleet
        self.source = source
        folder.mkdir(parents=True)

    def host(self, group: str, number: int = 1) -> Path:
        """The folder of a host of this group."""
        return self.folder / f"{group}{number:02}"

    def prepare(self, group: str, ports: Sequence[int], number: int) -> None:
        """Hosts of this group that hold and serve this version, which lies in the source."""
        for position, _ in enumerate(ports, 1):
            where = self.host(group, position)
            release = where / "releases" / tree.version(number)
            (where / "shared").mkdir(parents=True)
            release.parent.mkdir()
            # Real copies, as ours are: hard links between hosts would make them contend for the same inodes.
            subprocess.run(["cp", "-a", self.source, release], check=True)
            (where / "current").symlink_to(f"releases/{tree.version(number)}")

    def deploy(self, group: str, ports: Sequence[int], number: int, *, verified: bool = False) -> Sample:
        """Brings the version in the source to the group's hosts; Failed when one does not serve it afterwards."""
        for position, _ in enumerate(ports, 1):
            self.host(group, position).mkdir(exist_ok=True)
            (self.host(group, position) / "shared").mkdir(exist_ok=True)
            (self.host(group, position) / "releases").mkdir(exist_ok=True)
        listed = "".join(f"127.0.0.1 {port} {self.host(group, n)}\n" for n, port in enumerate(ports, 1))
        sums = str(self._sums()) if verified else "-"
        done = measure(self._command(tree.version(number), sums, len(ports)), stdin=listed.encode())
        for position, _ in enumerate(ports, 1):
            served = (self.host(group, position) / "shared" / "served").read_text()
            if not served.startswith(f"{tree.version(number)} "):
                raise Failed(f"{self.host(group, position)} serves {served!r} after {self.name}", state="")
        return done

    def forget(self, group: str, ports: Sequence[int]) -> None:
        """Removes the hosts of this group."""
        for position, _ in enumerate(ports, 1):
            shutil.rmtree(self.host(group, position))

    def _command(self, release: str, sums: str, parallel: int) -> list[str | Path]:
        raise NotImplementedError

    def _sums(self) -> Path:
        """The SHA-256 of every file of the source, as sha256sum reads it."""
        found = sorted(path for path in self.source.rglob("*") if path.is_file())
        lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  ./{p.relative_to(self.source)}\n" for p in found]
        file = self.folder / "sums"
        file.write_text("".join(lines))
        return file


class Rsync(Peer):
    """``rsync -a --link-dest`` and one ``ssh``, hosts in parallel."""

    name = "rsync"

    def _command(self, release: str, sums: str, parallel: int) -> list[str | Path]:
        return ["sh", SCRIPTS / "rsync_deploy.sh", self.fleet.ssh_config, self.source, release, sums, str(parallel)]


class Fabric(Peer):
    """A plain script: ``tar``, ``put``, unpack, link, restart, check."""

    name = "Fabric script"

    def _command(self, release: str, sums: str, parallel: int) -> list[str | Path]:
        return [sys.executable, SCRIPTS / "fabric_deploy.py", self.fleet.identity, self.source, release, sums]


class Floor:
    """Below this nobody gets: what the host has to do, without any line; and a connection that does nothing."""

    def __init__(self, folder: Path, fleet: Fleet, source: Path) -> None:
        self.folder = folder
        self.fleet = fleet
        folder.mkdir(parents=True)
        self.host = folder / "host"
        (self.host / "shared").mkdir(parents=True)
        (self.host / "releases").mkdir()
        release = self.host / "releases" / tree.version(0)
        subprocess.run(["cp", "-a", source, release], check=True)
        (self.host / "current").symlink_to(f"releases/{tree.version(0)}")

    def patch(self, step: tree.Patch) -> Sample:
        """``cp -al``, delete, unpack, hash what came, switch, restart, check: as a bare ``sh`` script."""
        files = step.changed | step.added
        with tarfile.open(self.folder / "changed.tar", "w") as packed:
            for path, data in files.items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(data), 0o644
                packed.addfile(entry, io.BytesIO(data))
        sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items())
        (self.folder / "sums").write_text(sums)
        (self.folder / "deleted").write_text("".join(f"{path}\n" for path in step.deleted))
        given = (self.folder / "changed.tar", self.folder / "deleted", self.folder / "sums")
        return measure(["sh", SCRIPTS / "floor.sh", self.host, tree.version(step.number), *given])

    def connection(self, port: int) -> Sample:
        """Paramiko: connect, ``true``, close; its import included."""
        key = self.fleet.identity
        return measure([sys.executable, SCRIPTS / "bare_connection.py", key, "127.0.0.1", str(port), self.fleet.user])
