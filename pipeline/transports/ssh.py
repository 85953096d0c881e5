"""The transport over SSH: our own :class:`fabric.Connection` that trusts known host keys only, on every hop.

Stock Fabric accepts any host key (``AutoAddPolicy``), and a ``ProxyJump`` builds a stock connection again; its ``cd``,
``prefix`` and ``env`` are not escaped, so none of them is used. Importing this module costs about 0.16 s (Paramiko,
Fabric): it is imported when a host is spoken to.
"""

from __future__ import annotations

import shlex
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import paramiko
from fabric.config import Config
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    ChannelException,
    ConfigParseError,
    IncompatiblePeer,
    NoValidConnectionsError,
    PasswordRequiredException,
    SSHException,
)

from pipeline.errors import ConfigurationError, PipelineError, Reason, Unreachable
from pipeline.model import Host
from pipeline.transports import TIMED_OUT, LineCut, Output, Result, check_command, pieces
from pipeline.transports.relay import as_socket, listening
from pipeline.transports.ssh_connection import CONNECT_TIMEOUT, Connection, NotTrusted

DIAL_TIMEOUT = 10.0
GRACE = 2.0
"""Seconds without a byte after which output held open by a background process is no longer waited for."""
OVERTIME = 20.0
"""Seconds beyond a script's own timeout before we stop waiting for the host to say that it ended it."""

BOUNDED = """
seconds=$1 script=$2
shift 2
if timeout -k 5 9 true 2>/dev/null; then timeout -k 5 "$seconds" sh -c "$script" sh "$@"
else sh -c "$script" sh "$@"; fi
exit $?
"""
# The last line keeps this shell as the parent, which turns "killed by signal n" into 128 + n; without it, sshd reports
# the signal itself and Paramiko gives -1, the same as for a cut line.


class SshTransport:
    """A host over SSH. Connects when first used, and anew when the connection was lost.

    ``ssh_config`` None means the user's ``~/.ssh/config``; ``known_hosts`` is the workspace's file; ``hint`` is added
    to every error about reaching the host. ``host.address`` may be an alias of the ssh_config; ``host.port`` and
    ``host.user`` beat it. Raises ConfigurationError for an ssh_config that cannot be read.
    """

    overtime = OVERTIME

    def __init__(
        self,
        host: Host,
        *,
        ssh_config: Path | None = None,
        known_hosts: Path | None = None,
        hint: str | None = None,
    ) -> None:
        path = ssh_config or Path.home() / ".ssh" / "config"
        settings = paramiko.SSHConfig()
        try:
            if ssh_config is not None or path.exists():
                settings = paramiko.SSHConfig.from_path(str(path))
            self._connection = Connection(
                host.address,
                user=host.user,
                port=host.port,
                # lazy: not Fabric's own files (/etc/fabric.yml, ~/.fabric.yml), which could set a gateway or a key.
                config=Config(ssh_config=settings, lazy=True),  # type: ignore[no-untyped-call]
                config_folder=path.parent,
                user_known_hosts=(known_hosts,) if known_hosts else (),
                host_key=host.host_key,
            )
        except (OSError, UnicodeDecodeError, ConfigParseError, ValueError) as error:
            raise ConfigurationError(
                "the ssh_config cannot be used.", reasons=[Reason(str(error), str(path))]
            ) from error
        self._host = host
        self._hint = hint
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """For messages: ``app1 (deploy@10.0.0.1:22)``."""
        there = self._connection
        return f"{self._host.name} ({there.user}@{there.host}:{there.port})"

    def run(
        self,
        script: str,
        arguments: Sequence[str] = (),
        *,
        stdin: bytes | Iterable[bytes] = b"",
        timeout: float = 120,
        keep: int | None = None,
    ) -> Result:
        """See :meth:`pipeline.transports.Transport.run`. The login shell on the host must be a POSIX one."""
        check_command(script, arguments)
        # The one place where words become a line: SSH carries a command as one string (RFC 4254, 6.5).
        line = shlex.join(["sh", "-c", BOUNDED, "sh", f"{timeout:g}", script, *arguments])
        channel = self._session()
        started = time.monotonic()
        try:
            channel.exec_command(line)
        except (SSHException, EOFError, OSError) as error:
            if self._connection.is_connected:
                raise self._unreachable(error, "the server does not let us run commands") from error
            raise LineCut(f"the connection to {self.name} was lost while a command was being started") from error
        conversation = _Conversation(channel, keep)
        code = conversation.finish(stdin, timeout + self.overtime)
        if code is None:
            raise LineCut(f"the connection to {self.name} was lost while a command ran")
        stdout, stderr = conversation.stdout.last(), conversation.stderr.last()
        timed_out = code in (TIMED_OUT, 128 + 9) and time.monotonic() - started >= timeout
        return Result(TIMED_OUT if timed_out else code, stdout, stderr, timed_out, conversation.stdout.cut)

    def dial(self, address: str, port: int) -> socket.socket:
        """See :meth:`pipeline.transports.Transport.dial`."""
        return as_socket(self._dial(address, port))

    def forward(self, address: str, port: int) -> AbstractContextManager[Path]:
        """See :meth:`pipeline.transports.Transport.forward`."""
        self._open()
        return listening(lambda: self._dial(address, port), port, f"{address}:{port} as seen from {self.name}")

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def _dial(self, address: str, port: int) -> paramiko.Channel:
        self._open()
        try:
            return self._connection.transport.open_channel(  # type: ignore[no-any-return]
                "direct-tcpip", (address, port), ("127.0.0.1", 0), timeout=DIAL_TIMEOUT
            )
        except ChannelException as error:
            if error.code == 1:  # RFC 4254, 5.1: SSH_OPEN_ADMINISTRATIVELY_PROHIBITED
                raise self._unreachable(
                    error, "the server forbids connections through it (AllowTcpForwarding, PermitOpen)"
                ) from error
            raise ConnectionRefusedError(f"{address}:{port} as seen from {self.name}: {error.text}") from error
        except (SSHException, EOFError) as error:
            raise OSError(f"{address}:{port} as seen from {self.name}: {error or 'the connection was lost'}") from error

    def _open(self) -> None:
        with self._lock:
            try:
                self._connection.open()
            except PipelineError:
                raise
            except (SSHException, OSError, EOFError) as error:
                raise self._unreachable(error) from error

    def _session(self) -> paramiko.Channel:
        """A new session; nothing was run when it fails, so a connection that died while idle is opened once more."""
        for last in (False, True):
            self._open()
            try:
                return self._connection.transport.open_session(timeout=CONNECT_TIMEOUT)  # type: ignore[no-any-return]
            except (SSHException, EOFError, OSError) as error:
                if last or isinstance(error, ChannelException):
                    raise self._unreachable(error, "the server opens no session") from error
                self._connection.close()
        raise AssertionError

    def _unreachable(self, error: Exception, said: str = "") -> Unreachable:
        """Paramiko's and the system's exceptions in words: the only table of them."""
        there = self._connection
        next_commands: list[str] = []
        reasons: list[Reason] = []
        match error:
            case NotTrusted():
                what = f"{self.name} was not connected to: the host key of {error.trust.host} is not trusted."
                reasons = error.reasons
                if not error.trust.accepted:
                    where = next((name for name in error.trust.sources if name), "known_hosts")
                    next_commands = [
                        f"compare the fingerprint with the one that the host's owner gives you, then add to {where}:"
                        f" {error.trust.host} {error.offered.line}"
                    ]
            case BadHostKeyException():
                what, reasons = f"{self.name} was not connected to: its host key is wrong.", [Reason(str(error))]
            case PasswordRequiredException():
                what = f"{self.name} was not connected to: the private key is locked by a passphrase."
                next_commands = ["load the key into an agent with ssh-add"]
            case AuthenticationException():
                what = f"{self.name} did not let {there.user} in."
                keys = there.connect_kwargs["key_filename"]
                reasons = [Reason(f"{str(error).rstrip('.')}; keys tried: {', '.join(keys) or 'agent and ~/.ssh'}")]
            case IncompatiblePeer():
                what = f"{self.name} offers only outdated cryptography that this tool does not speak."
                reasons = [Reason(str(error))]
            case NoValidConnectionsError():
                what = f"{self.name} cannot be reached."
                reasons = [Reason(str(cause)) for cause in error.errors.values()]
            case socket.gaierror():
                what, reasons = f"{self.name} cannot be reached: no such address.", [Reason(str(error.strerror))]
            case TimeoutError():
                what = f"{self.name} cannot be reached: no answer within {CONNECT_TIMEOUT} seconds."
            case ChannelException():
                what = f"{self.name} cannot be reached."
                reasons = [Reason(f"a host on the way says: {error.text or error}")]
            case _:
                what, reasons = f"{self.name} cannot be reached.", [Reason(str(error) or "the connection was lost")]
        if said:
            reasons.insert(0, Reason(said))
        if isinstance(there.gateway, Connection):
            reasons.append(Reason(f"the way leads over {there.gateway.user}@{there.gateway.host}:{there.gateway.port}"))
        if self._hint:
            next_commands.append(self._hint)
        return Unreachable(what, reasons=reasons, state="Nothing was run on this host.", next_commands=next_commands)


class _Conversation:
    """One command's channel and the three threads that keep its streams moving."""

    def __init__(self, channel: paramiko.Channel, keep: int | None) -> None:
        self.channel = channel
        self.stdout, self.stderr = Output(keep), Output(keep)
        self.heard = time.monotonic()
        self.failure: list[BaseException] = []

    def finish(self, stdin: bytes | Iterable[bytes], timeout: float) -> int | None:
        """The exit code; None when the outcome is not known."""
        channel = self.channel
        readers = [
            threading.Thread(target=self._read, args=(channel.recv, self.stdout), daemon=True),
            threading.Thread(target=self._read, args=(channel.recv_stderr, self.stderr), daemon=True),
        ]
        feeder = threading.Thread(target=self._feed, args=(stdin,), daemon=True)
        try:
            for thread in (*readers, feeder):
                thread.start()
            channel.status_event.wait(timeout)
            code = channel.exit_status
            self.heard = time.monotonic()
            for reader in readers:
                while code >= 0 and reader.is_alive() and time.monotonic() - self.heard < GRACE:
                    reader.join(0.05)
        finally:
            # Ends the threads too, and at a timeout of ours or a Ctrl-C gives the script on the host its end of input.
            with suppress(SSHException, EOFError, OSError):
                channel.close()
        feeder.join(GRACE)
        if self.failure:
            raise self.failure[0]
        return int(code) if code >= 0 else None

    def _read(self, receive: Any, into: Output) -> None:
        with suppress(SSHException, EOFError, OSError):
            while data := receive(65536):
                into.add(data)
                self.heard = time.monotonic()

    def _feed(self, stdin: bytes | Iterable[bytes]) -> None:
        source = pieces(stdin)
        while True:
            try:
                piece = next(source, None)
            except BaseException as error:
                self._fail(error)
                return
            try:
                if piece is None:
                    self.channel.shutdown_write()
                    return
                self.channel.sendall(bytes(piece))
            except (SSHException, EOFError, OSError):
                return  # it stopped reading, or the line was cut: its exit code says which

    def _fail(self, error: BaseException) -> None:
        self.failure.append(error)
        with suppress(SSHException, EOFError, OSError):
            self.channel.close()
