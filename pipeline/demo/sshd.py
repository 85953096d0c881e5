"""A throwaway OpenSSH server on loopback, for the demo and the tests: own keys, own folder, no root needed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from getpass import getuser
from pathlib import Path

from pipeline.errors import Failed, NotKnown

PLACES = ("/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/lib/ssh/sshd")


def sshd_program() -> str | None:
    """Absolute path of the OpenSSH server (it insists on one), or None where it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *(str(Path(place).parent) for place in PLACES)])
    found = shutil.which("sshd", path=path)
    return str(Path(found).resolve()) if found else None


class ThrowawaySshd:
    """One server that runs as the current user, lets only its own user key in, and keeps everything in ``folder``.

    It outlives the process that started it, until :meth:`stop`; a second object on the same folder finds it running.
    Sessions see the PATH of whoever started it and ``environment``. ``settings`` are further lines of sshd_config.
    Attributes: ``port``, ``host_key`` (public, one line), ``identity_file``, ``known_hosts_file``, ``log_file``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        settings: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder.resolve()
        self.user = getuser()
        self.address = "127.0.0.1"
        self.identity_file = self.folder / "user_key"
        self.known_hosts_file = self.folder / "known_hosts"
        self.log_file = self.folder / "sshd.log"
        self._wanted_port = port
        self._environment = {"PATH": os.environ.get("PATH", os.defpath)} | dict(environment or {})
        self._settings = settings
        self._pid_file = self.folder / "sshd.pid"
        self._config_file = self.folder / "sshd_config"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port it listens on, the same after a restart."""
        return int((self.folder / "port").read_text())

    @property
    def host_key(self) -> str:
        """``ssh-ed25519 AAAA…``."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    def start(self) -> ThrowawaySshd:
        """Starts it and waits until it answers; nothing to do when it runs already.

        Raises NotKnown where OpenSSH's server is not installed, Failed with the end of its log when it ends.
        """
        if self.running():
            return self
        program = sshd_program()
        if program is None:
            raise NotKnown(
                "there is no OpenSSH server (sshd) on this machine.", next_commands=["apt-get install openssh-server"]
            )
        self._prepare()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-D", "-e", "-f", str(self._config_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C meant for the demo must not end it
                cwd="/",
            )
        self._pid_file.write_text(f"{self._process.pid}\n")
        for _ in range(200):
            if self._process.poll() is not None:
                break
            with suppress(OSError), socket.create_connection((self.address, self.port), timeout=5) as probe:
                if probe.recv(4) == b"SSH-":
                    return self
            time.sleep(0.05)
        self.stop()
        last = self.log_file.read_text(errors="replace").splitlines()[-3:]
        raise Failed("the throwaway OpenSSH server did not start.", reasons=last, state=f"Its log: {self.log_file}")

    def stop(self) -> None:
        """Ends it and its connections, by its process id; nothing to do when it does not run."""
        pid = self._pid()
        if pid is not None:
            # It leads a process group of its own, which holds the handlers of its connections.
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGTERM)
            if self._process is not None:
                self._process.wait(10)
            for _ in range(100):
                if self._pid() is None:
                    break
                time.sleep(0.05)
        self._process = None
        self._pid_file.unlink(missing_ok=True)

    def running(self) -> bool:
        """Whether the server of this folder runs."""
        return self._pid() is not None

    def ssh_config_text(
        self, alias: str = "throwaway", *, known_hosts: Path | None = None, proxy_jump: str | None = None
    ) -> str:
        """A ``Host`` block for an ssh_config, under which OpenSSH and this tool reach the server as ``alias``."""
        lines = [
            f"Host {alias}",
            f"    HostName {self.address}",
            f"    Port {self.port}",
            f"    User {self.user}",
            f'    IdentityFile "{self.identity_file}"',
            "    IdentitiesOnly yes",
            f'    UserKnownHostsFile "{known_hosts or self.known_hosts_file}"',
            "    StrictHostKeyChecking yes",
        ]
        if proxy_jump:
            lines.append(f"    ProxyJump {proxy_jump}")
        return "\n".join(lines) + "\n"

    def _pid(self) -> int | None:
        """Its process id while it lives; never that of another program that was given the same number."""
        if self._process is not None and self._process.poll() is not None:
            return None
        try:
            pid = int(self._pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self._config_file).encode() in words else None

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for name in ("host_key", "user_key"):
            if not (self.folder / name).exists():
                subprocess.run(
                    [
                        "ssh-keygen",
                        "-q",
                        "-t",
                        "ed25519",
                        "-N",
                        "",
                        "-C",
                        f"throwaway {name}",
                        "-f",
                        self.folder / name,
                    ],
                    check=True,
                    stdin=subprocess.DEVNULL,
                )
        port_file = self.folder / "port"
        if self._wanted_port or not port_file.exists():
            port_file.write_text(str(self._wanted_port or free_port()))
        shutil.copy(self.folder / "user_key.pub", self.folder / "authorized_keys")
        self.known_hosts_file.write_text(f"[{self.address}]:{self.port} {self.host_key}\n")
        if os.geteuid() == 0:
            # Root's sshd wants this folder for privilege separation; Debian's service makes it, nothing else does.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        variables = " ".join(f'"{name}={value}"' for name, value in self._environment.items())
        self._config_file.write_text(
            "\n".join(
                [
                    *self._settings,  # first: sshd takes the first value that it finds
                    f"ListenAddress {self.address}:{self.port}",
                    f'HostKey "{self.folder / "host_key"}"',
                    f'AuthorizedKeysFile "{self.folder / "authorized_keys"}"',
                    "PidFile none",
                    "StrictModes no",
                    "UsePAM no",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "PubkeyAuthentication yes",
                    "PermitRootLogin prohibit-password",
                    f"AllowUsers {self.user}",
                    "AllowTcpForwarding yes",
                    "X11Forwarding no",
                    "PermitUserRC no",
                    "PrintMotd no",
                    "MaxStartups 100",
                    "MaxSessions 100",
                    f"SetEnv {variables}",
                    "",
                ]
            )
        )


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
