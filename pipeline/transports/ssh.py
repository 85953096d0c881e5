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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

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
from pipeline.transports import (
    KEPT_ERRORS,
    SILENCE,
    TIMED_OUT,
    LineCut,
    Lines,
    Output,
    Result,
    Take,
    TurnedAway,
    check_command,
)
from pipeline.transports.become import Becoming
from pipeline.transports.relay import as_socket, listening
from pipeline.transports.ssh_connection import CONNECT_TIMEOUT, Connection, NotTrusted
from pipeline.transports.ssh_session import LOST, Session
from pipeline.transports.ssh_wire import ASK_AFTER

if TYPE_CHECKING:
    from pipeline.transports.host_key import OfferedKey

TURNED_AWAY = (NotTrusted, BadHostKeyException, AuthenticationException, IncompatiblePeer)
"""What a host that is there says for good."""

DIAL_TIMEOUT = 10.0
OVERTIME = 20.0
"""Seconds beyond a script's own timeout before we stop waiting for the host to say that it ended it."""

BOUNDED = """
seconds=$1 script=$2
shift 2
if timeout -k 5 9 true 2>/dev/null; then timeout -k 5 "$seconds" sh -c "$script" sh "$@"
else sh -c "$script" sh "$@"; fi
exit $?
"""
# The last line keeps this shell as the parent, which turns "killed by signal n" into 128 + n whatever the server says.


@lru_cache(maxsize=8)
def _read_config(path: Path | None, *_stamps: int) -> Config:
    """The ssh_config as Fabric takes it, read once for all hosts; None where there is none. No connection changes it."""
    settings = paramiko.SSHConfig.from_path(str(path)) if path else paramiko.SSHConfig()
    # lazy: not Fabric's own files (/etc/fabric.yml, ~/.fabric.yml), which could set a gateway or a key.
    return Config(ssh_config=settings, lazy=True)  # type: ignore[no-untyped-call]


def _no_secrets(reference: str) -> str:
    raise ConfigurationError(f"{reference} is needed on a host, and nobody is there to look it up.")


class SshTransport:
    """A host over SSH. Connects when first used, and anew when the connection was lost.

    ``ssh_config`` None means the user's ``~/.ssh/config``; ``known_hosts`` is the workspace's file; ``hint`` is added
    to every error about reaching the host. ``host.address`` may be an alias of the ssh_config; ``host.port`` and
    ``host.user`` beat it. ``secret`` looks up the password of ``host.become``. Raises ConfigurationError for an
    ssh_config that cannot be read.
    """

    overtime = OVERTIME

    def __init__(
        self,
        host: Host,
        *,
        ssh_config: Path | None = None,
        known_hosts: Path | None = None,
        hint: str | None = None,
        secret: Callable[[str], str] = _no_secrets,
    ) -> None:
        path = ssh_config or Path.home() / ".ssh" / "config"
        try:
            stat = path.stat() if ssh_config is not None or path.exists() else None
            settings = _read_config(path, stat.st_mtime_ns, stat.st_size) if stat else _read_config(None)
            self._connection = Connection(
                host.address,
                user=host.user,
                port=host.port,
                config=settings,
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
        self._secret = secret
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """For messages: ``app1 (deploy@10.0.0.1:22)``."""
        there = self._connection
        return f"{self._host.name} ({there.user}@{there.host}:{there.port})"

    def connect(self) -> None:
        """See :meth:`pipeline.transports.Transport.connect`."""
        self._open()

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
        out, wrong = Output(keep), Output(keep)
        started = time.monotonic()
        code = self._execute(
            ["sh", "-c", BOUNDED, "sh", f"{timeout:g}", script, *arguments],
            stdin,
            lambda is_wrong, data: (wrong if is_wrong else out).add(data),
            timeout=timeout + self.overtime,
        )
        timed_out = code in (TIMED_OUT, 128 + 9) and time.monotonic() - started >= timeout
        return Result(TIMED_OUT if timed_out else code, out.last(), wrong.last(), timed_out, out.cut)

    def stream(
        self,
        script: str,
        arguments: Sequence[str] = (),
        *,
        stdin: bytes | Iterable[bytes] = b"",
        on_line: Callable[[str], None],
        silence: float = SILENCE,
    ) -> Result:
        """See :meth:`pipeline.transports.Transport.stream`."""
        lines, wrong = Lines(on_line), Output(KEPT_ERRORS)
        code = self._execute(
            ["sh", "-c", script, "sh", *arguments],
            stdin,
            lambda is_wrong, data: (wrong if is_wrong else lines).add(data),
            silence=silence,
        )
        lines.end()
        return Result(code, b"", wrong.last())

    def _execute(
        self,
        words: Sequence[str],
        stdin: bytes | Iterable[bytes],
        take: Take,
        *,
        timeout: float | None = None,
        silence: float | None = None,
    ) -> int:
        """The exit code; LineCut when it is not known."""
        become = self._host.become
        becoming = None
        if become is not None:
            becoming = Becoming(become.user, self._secret(become.password) if become.password else None)
            words, take = becoming.words(words), becoming.take(take)
        check_command("", words)
        # The one place where words become a line: SSH carries a command as one string (RFC 4254, 6.5).
        session = self._started(shlex.join(words))
        given = becoming.stdin(stdin) if becoming else stdin
        code = session.finish(given, take, timeout=timeout, silence=silence)
        if session.refused:
            raise self._unreachable(
                SSHException("it refused to run a command"), "the server does not let us run commands"
            )
        if code is None:
            raise LineCut(f"the connection to {self.name} was lost while a command ran: {self._why_lost()}")
        if becoming is not None and not becoming.through:
            raise Unreachable(
                f"{self.name}: {self._connection.user} may not become {becoming.user}.",
                reasons=[Reason(line, "sudo") for line in becoming.said()] or ["sudo said nothing"],
                state="Nothing was run on this host.",
                next_commands=[f"ssh {self._host.address} sudo -l   # shows what {self._connection.user} may do there"],
            )
        return code

    def _started(self, line: str) -> Session:
        """A session in which the command was asked for; once more on a new connection when it surely was not."""
        for last in (False, True):
            session = self._session()
            try:
                session.start(line)
            except LOST as error:
                if last:
                    raise LineCut(
                        f"the connection to {self.name} was lost while a command was being started"
                    ) from error
                self._connection.close()
            else:
                with suppress(*LOST):
                    self._connection.transport.open_ahead()
                return session
        raise AssertionError

    def _why_lost(self) -> str:
        """The reason for a command without an outcome; a connection that seems to be dead is not used again."""
        transport = self._connection.transport
        if not self._connection.is_connected:
            return str(transport.get_exception() or "the server closed it") if transport else "it was closed"
        quiet = transport.wire.quiet
        if quiet > 2 * ASK_AFTER:
            self._connection.close()
        return f"the command said nothing any more; the server itself was last heard {quiet:.0f} seconds ago"

    def dial(self, address: str, port: int) -> socket.socket:
        """See :meth:`pipeline.transports.Transport.dial`."""
        return as_socket(self._dial(address, port))

    def forward(self, address: str, port: int) -> AbstractContextManager[Path]:
        """See :meth:`pipeline.transports.Transport.forward`."""
        self._open()
        return listening(lambda: self._dial(address, port), port, f"{address}:{port} as seen from {self.name}")

    def offered_keys(self) -> Iterator[OfferedKey]:
        """See :func:`pipeline.transports.host_key.offered_keys`; Unreachable when a server on the way does not answer."""
        from pipeline.transports.host_key import offered_keys

        try:
            yield from offered_keys(self._connection)
        except (SSHException, OSError, EOFError) as error:
            raise self._unreachable(error) from error

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

    def _session(self) -> Session:
        """A new session; nothing was run when it fails, so a connection that died while idle is opened once more."""
        pauses = [0.0, 0.05, 0.2, 0.6]
        opened_again = False
        while True:
            self._open()
            try:
                session = self._connection.transport.next_session()
                if session.opened(CONNECT_TIMEOUT):
                    return session  # type: ignore[no-any-return]
                session.discard()
                error: Exception = SSHException("it was asked, and did not open one")
                if session.refused and pauses:
                    # Where one session at a time may be open, the last is perhaps not quite over.
                    time.sleep(pauses.pop(0))
                    continue
                refused = session.refused
            except LOST as raised:
                error, refused = raised, False
            if refused or opened_again:
                raise self._unreachable(error, "the server opens no session") from error
            opened_again = True
            self._connection.close()

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
                reasons = [Reason(f"{str(error).rstrip('.')}; looked for keys in: {there.login.describe()}")]
            case IncompatiblePeer():
                what = f"{self.name} offers only outdated cryptography that this tool does not speak."
                reasons = [Reason(str(error))]
                next_commands = [
                    "have OpenSSH on the host updated to 7.2 or newer, or given an Ed25519 host key (ssh-keygen -A there,"
                    " since 6.5) and its SHA-1, CBC and 3DES settings removed; then add the new host key"
                ]
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
        kind = TurnedAway if isinstance(error, TURNED_AWAY) else Unreachable
        return kind(what, reasons=reasons, state="Nothing was run on this host.", next_commands=next_commands)
