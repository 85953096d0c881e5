"""Our own :class:`fabric.Connection`: known host keys only, on every hop; strong and fast cryptography first.

Stock Fabric accepts any host key (``AutoAddPolicy``), and a ``ProxyJump`` builds a stock connection again.
"""

from __future__ import annotations

import random
import shlex
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import paramiko
from fabric.config import Config
from fabric.connection import Connection as FabricConnection
from paramiko.common import cMSG_CHANNEL_OPEN, cMSG_GLOBAL_REQUEST
from paramiko.ssh_exception import SSHException

from pipeline.errors import ConfigurationError, Reason
from pipeline.transports.known_hosts import HostKey, Trust, host_name, trust_for
from pipeline.transports.ssh_login import Login
from pipeline.transports.ssh_session import Session
from pipeline.transports.ssh_wire import Wire

CONNECT_TIMEOUT = 15
UNACKNOWLEDGED = 8
"""Seconds that data may stay unacknowledged (``TCP_USER_TIMEOUT``) before the connection counts as lost."""
ATTEMPTS = 7
"""Tries to get the server's banner, with rising pauses (12 s together): sshd drops connections at MaxStartups."""


def _called(name: str) -> Callable[[paramiko.Channel, Any], None]:
    return lambda channel, message: getattr(channel, name)(message)


class _Transport(paramiko.Transport):
    """Paramiko without what is broken or weak (CBC, 3DES, MD5, SHA-1), the fast cipher first."""

    _preferred_ciphers = (
        "aes128-gcm@openssh.com",
        "aes256-gcm@openssh.com",
        "aes128-ctr",
        "aes192-ctr",
        "aes256-ctr",
    )
    _preferred_macs = (
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
    )
    # Paramiko's own table calls its Channel's functions, whatever class a channel is of.
    _channel_handler_table: ClassVar[dict[int, Any]] = {
        number: _called(function.__name__)
        for number, function in paramiko.Transport._channel_handler_table.items()  # type: ignore[attr-defined]
    }

    def __init__(self, carrier: Any, **options: Any) -> None:
        self.wire = Wire(carrier)
        super().__init__(self.wire, **options)  # type: ignore[arg-type]
        self._ahead: list[Session] = []
        self._may_ask_ahead = True

    @property
    def is_openssh(self) -> bool:
        """Whether the server is OpenSSH, of which is known what it takes before it has answered."""
        return "OpenSSH" in self.remote_version

    def open_ahead(self) -> None:
        """Asks for the next session before it is needed, even before we are let in: one round trip less.

        OpenSSH takes that up once the login is through, and passes it over when it is not.
        """
        if self.is_openssh and self._may_ask_ahead and not self._ahead:
            self._ahead.append(self.begin_session())

    def forget_ahead(self) -> None:
        """The login failed: what was asked for meanwhile was passed over and will never be answered."""
        self._ahead.clear()

    def next_session(self) -> Session:
        """The session that was asked for ahead, if it can be used, or a new one; EOFError when the line has ended."""
        if self.wire.ended():
            raise EOFError("the server closed the connection")
        with suppress(IndexError):
            session = self._ahead.pop()
            if session.opened(CONNECT_TIMEOUT):
                return session
            # A server may open one session at a time (MaxSessions).
            self._may_ask_ahead = not session.refused
        return self.begin_session()

    def send_surely(self, message: paramiko.Message) -> None:
        """Sends a message, or raises: then the server was not given it whole. Paramiko drops one without a word."""
        paramikos: Any = self
        while True:
            self.clear_to_send.wait(1)
            if not paramikos.active:
                raise EOFError("the connection was lost")
            with self.clear_to_send_lock:
                if self.clear_to_send.is_set():
                    paramikos._send_message(message)
                    return

    def _parse_debug(self, message: Any) -> None:
        """Nothing: what a server has to tell those who debug it, Paramiko would write down letter by letter."""

    def watch(self) -> None:
        """From now on the server must answer when it is asked for a sign of life."""
        self.wire.ask = self._ask

    def _ask(self) -> None:
        # While keys are exchanged nothing may be sent, and the exchange has a time limit of its own.
        if self.clear_to_send.is_set():
            message = paramiko.Message()
            message.add_byte(cMSG_GLOBAL_REQUEST)
            message.add_string("keepalive@openssh.com")
            message.add_boolean(True)
            paramikos: Any = self
            paramikos._send_user_message(message)

    def begin_session(self) -> Session:
        """A session that was asked for; the answer is not waited for."""
        paramikos: Any = self  # its types leave out what is not public
        with self.lock:
            number = paramikos._next_channel()
            session: Any = Session(number)
            paramikos._channels.put(number, session)
            paramikos.channel_events[number] = session
            self.channels_seen[number] = True
            session._set_transport(self)
            session._set_window(self.default_window_size, self.default_max_packet_size)
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_OPEN)
        message.add_string("session")
        for value in (number, session.in_window_size, session.in_max_packet_size):
            message.add_int(value)
        paramikos._send_user_message(message)
        return session  # type: ignore[no-any-return]


def _dropped(error: SSHException) -> bool:
    """Whether the server ended the connection instead of saying who it is; silence is not that."""
    return "protocol banner" in str(error) and isinstance(error.__context__, EOFError | ConnectionError)


class NotTrusted(SSHException):
    """The server proved to have a key that is not trusted; ``reasons`` say why."""

    def __init__(self, trust: Trust, offered: HostKey, reasons: list[Reason]) -> None:
        super().__init__(f"host key of {trust.host} is not trusted")
        self.trust, self.offered, self.reasons = trust, offered, reasons


class _KnownKeysOnly(paramiko.MissingHostKeyPolicy):
    """Decides on every host key: the client is never given keys of its own, so that Paramiko always asks here."""

    def __init__(self, trust: Trust) -> None:
        self.trust = trust

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        offered = HostKey(key.get_name(), key.asbytes(), "the server")
        if reasons := self.trust.objections(offered):
            raise NotTrusted(self.trust, offered, reasons)


class Connection(FabricConnection):
    """A Fabric connection that trusts known host keys only, as does every jump host on its way.

    ``user_known_hosts`` are the files of the workspace; where there is none, ssh_config's ``UserKnownHostsFile``
    counts, else OpenSSH's usual files. ``host_key`` pins the key of this host (not of its jump hosts).
    """

    # Fabric's base class turns an attribute that its class does not have into a configuration value, for all connections
    # that share the configuration.
    inline_ssh_env: Any = None
    trust: Any = None
    host: Any = None
    port: Any = None
    client: Any = None
    transport: Any = None
    ssh_config: Any = None
    connect_kwargs: Any = None
    gateway: Any = None
    user: Any = None
    login: Any = None
    user_known_hosts: Any = None
    config_folder: Any = None

    def __init__(
        self,
        host: str,
        *,
        user: str | None = None,
        port: int | None = None,
        config: Config,
        config_folder: Path | None = None,
        user_known_hosts: Sequence[Path] = (),
        host_key: str | None = None,
        hops: tuple[str, ...] = (),
    ) -> None:
        self._set(config_folder=config_folder, user_known_hosts=tuple(user_known_hosts))
        # False keeps Fabric from building a plain connection for ProxyJump.
        super().__init__(host, user=user, port=port, config=config, gateway=False, connect_timeout=CONNECT_TIMEOUT)  # type: ignore[no-untyped-call]
        self.gateway = self._way(hops)
        name = self.ssh_config.get("hostkeyalias") or host_name(self.host, self.port)
        self.trust = trust_for(name, self._known_hosts_files(), pinned=host_key, pinned_source=f"host_key of {host}")
        self.client = paramiko.SSHClient()
        self.client.set_missing_host_key_policy(_KnownKeysOnly(self.trust))
        self.login = Login(
            self.user,
            [self._path(name) for name in self.ssh_config.get("identityfile", [])],
            only=self.ssh_config.get("identitiesonly", "no") == "yes",
        )
        self.connect_kwargs = {
            "auth_strategy": self.login,
            "transport_factory": self._new_transport,
            "banner_timeout": CONNECT_TIMEOUT,
            "auth_timeout": CONNECT_TIMEOUT,
        }

    def __setattr__(self, name: str, value: Any) -> None:
        # The base class goes through all its names for each attribute, which is most of what a connection costs before it
        # is opened.
        if hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def resolve_connect_kwargs(self, connect_kwargs: Any) -> dict[str, Any]:
        """None of Fabric's: the login takes what it needs from the ssh_config by itself."""
        return {}

    def _path(self, text: str) -> Path:
        """``~`` expanded; a relative path counts from the folder of the ssh_config, wherever the command is typed."""
        path = Path(text.strip('"')).expanduser()
        return self.config_folder / path if self.config_folder else path

    def _known_hosts_files(self) -> list[Path]:
        if self.user_known_hosts:
            return list(self.user_known_hosts)
        if text := self.ssh_config.get("userknownhostsfile"):
            return [self._path(word) for word in shlex.split(text) if word.lower() != "none"]
        user = Path.home() / ".ssh"
        return [user / "known_hosts", user / "known_hosts2", Path("/etc/ssh/ssh_known_hosts")]

    def _way(self, hops: tuple[str, ...]) -> Any:
        """The connection to the last jump host, or a ProxyCommand, or None."""
        jump = self.ssh_config.get("proxyjump", "none")
        if jump.lower() == "none":
            command = self.ssh_config.get("proxycommand", "none")
            return None if command.lower() == "none" else command
        before = None
        for hop in jump.split(","):
            place = hop.strip().removeprefix("ssh://")
            if place in hops:
                raise ConfigurationError(
                    f"ProxyJump of {self.original_host} leads back to itself.",
                    reasons=[" -> ".join((*hops, place))],
                )
            short = self.derive_shorthand(place)  # type: ignore[no-untyped-call]
            connection = Connection(
                short["host"],
                user=short["user"],
                port=short["port"],
                config=self.config,  # type: ignore[arg-type]
                config_folder=self.config_folder,
                user_known_hosts=self.user_known_hosts,
                hops=(*hops, place),
            )
            if before is not None:
                connection.gateway = before
            before = connection
        return before

    def _new_transport(self, sock: Any, **options: Any) -> paramiko.Transport:
        transport = _Transport(sock, **options)
        kinds: list[str] = []
        for kind in self.trust.kinds:
            kinds += ["rsa-sha2-512", "rsa-sha2-256"] if kind == "ssh-rsa" else [kind]
        offered = list(transport.get_security_options().key_types)
        first = [kind for kind in kinds if kind in offered]
        transport.get_security_options().key_types = first + [kind for kind in offered if kind not in first]
        return transport

    def open(self) -> Any:
        """Connects every hop; only a connection that died before the server's banner is tried again.

        Raises Paramiko's exceptions and OSError; :class:`SshTransport` puts them into words.
        """
        if self.is_connected:
            return None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if not self.gateway:
                    self.connect_kwargs["sock"] = self._socket()
                result = super().open()  # type: ignore[no-untyped-call]
                break
            except SSHException as error:
                self.client.close()
                if not _dropped(error) or attempt == ATTEMPTS:
                    raise
                # Not all together: the others that were dropped try again as well.
                time.sleep(0.1 * 2**attempt * random.uniform(0.7, 1.3))  # noqa: S311
            except BaseException:
                self.client.close()
                raise
        self.transport.watch()
        return result

    def open_gateway(self) -> Any:
        """A channel to this host through the jump host, or a ProxyCommand."""
        if not isinstance(self.gateway, Connection):
            return super().open_gateway()  # type: ignore[no-untyped-call]
        self.gateway.open()
        return self.gateway.transport.open_channel(
            "direct-tcpip", (self.host, self.port), ("127.0.0.1", 0), timeout=CONNECT_TIMEOUT
        )

    def _socket(self) -> socket.socket:
        # Bytes are not looked up as an international name, whose tables take longer to load than the connection.
        name = self.host.encode() if self.host.isascii() else self.host
        sock = socket.create_connection((name, self.port), timeout=CONNECT_TIMEOUT)
        # Without NODELAY a command takes 48 ms instead of 5.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED * 1000)
        return sock

    def close(self) -> None:
        """Ends the connection and those to its jump hosts."""
        super().close()  # type: ignore[no-untyped-call]
        self.client.close()
        if isinstance(self.gateway, Connection):
            self.gateway.close()
