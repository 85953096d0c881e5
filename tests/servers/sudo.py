"""An OpenSSH server whose machine has users of its own, with passwords and sudo rules, and leaves the real one alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.demo.sshd import ThrowawaySshd, free_port, sshd_program

PASSWORD = "correct horse $(id) 'é"

USERS = {"free": 4001, "asked": 4002, "nobodys": 4003, "app": 4004}
"""``free`` may become app, ``asked`` with its password, ``nobodys`` not."""

SUDOERS = """
free ALL=(app) NOPASSWD: ALL
asked ALL=(app) ALL
"""


class SudoSshd:
    """Runs in a mount namespace in which passwd, shadow and sudoers are its own; only root can start it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.keys = ThrowawaySshd(folder / "keys", port=self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> SudoSshd:
        self.folder.chmod(0o755)
        self.keys._prepare()
        authorized = self.folder / "authorized_keys"
        shutil.copy(self.keys.folder / "authorized_keys", authorized)
        authorized.chmod(0o644)
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=PASSWORD, capture_output=True, text=True, check=True
        ).stdout.strip()
        passwd, shadow = Path("/etc/passwd").read_text(), Path("/etc/shadow").read_text()
        for name, number in USERS.items():
            passwd += f"{name}:x:{number}:{number}::/tmp:/bin/sh\n"
            shadow += f"{name}:{hashed}:19000:0:99999:7:::\n"
        self._write("passwd", passwd, 0o644)
        self._write("shadow", shadow, 0o600)
        self._write("sudoers", SUDOERS, 0o440)
        config = self.folder / "sshd_config"
        text = (self.keys.folder / "sshd_config").read_text()
        text = text.replace(str(self.keys.folder / "authorized_keys"), str(authorized))
        config.write_text("\n".join(line for line in text.splitlines() if not line.startswith("AllowUsers")) + "\n")
        script = 'for name in passwd shadow sudoers; do mount --bind "$1/$name" "/etc/$name" || exit 9; done; shift; exec "$@"'
        program = sshd_program()
        assert program
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", script, "sh", self.folder, program, "-D", "-e", "-f", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        for _ in range(200):
            if self._process.poll() is not None:
                break
            if b"Server listening" in (self.folder / "log").read_bytes():
                return self
            time.sleep(0.05)
        text = (self.folder / "log").read_text(errors="replace")
        self.stop()
        pytest.skip(f"no mount namespace of our own can be had here: {text[-300:]}")

    def stop(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(10)

    def ssh_config_text(self, user: str) -> str:
        """An ssh_config in which each user of this machine is a host of its own name."""
        return self.keys.ssh_config_text(user).replace(f"User {self.keys.user}", f"User {user}")

    def _write(self, name: str, text: str, mode: int) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(mode)


@pytest.fixture(scope="session")
def sudo_sshd() -> Iterator[SudoSshd]:
    """One for the whole session."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a server in a mount namespace of its own")
    if not all(map(shutil.which, ("sudo", "unshare", "openssl"))):
        pytest.skip("needs sudo, unshare and openssl")
    folder = Path(tempfile.mkdtemp(prefix="tma-sudo-"))
    server = SudoSshd(folder)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
