"""Which host key each server on the way to a host offers, read without logging in to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import paramiko

from pipeline.errors import Reason
from pipeline.transports.known_hosts import HostKey
from pipeline.transports.ssh_connection import CONNECT_TIMEOUT, Connection


@dataclass(frozen=True)
class OfferedKey:
    """One server's key: ``name`` as known_hosts lists it, why it is not trusted, and whether no other key is known.

    ``files`` are the known_hosts files that were looked into. Only an ``unknown`` key is one to add; a key that differs
    from a known one, or was revoked, means that something is wrong.
    """

    name: str
    key: HostKey
    objections: tuple[Reason, ...]
    unknown: bool
    files: tuple[str, ...]

    @property
    def line(self) -> str:
        """The line that makes it known in known_hosts."""
        return f"{self.name} {self.key.line}"


def offered_keys(connection: Connection) -> Iterator[OfferedKey]:
    """The keys of the jump hosts, the first one first, then the host's own; ends at the first that is not trusted.

    A jump host is logged in to, since the way leads through it; the host itself is not. Raises what Paramiko and the
    system raise.
    """
    before = connection.gateway
    if isinstance(before, Connection):
        for offered in offered_keys(before):
            yield offered
            if offered.objections:
                return
    yield _offered(connection)


def _offered(connection: Connection) -> OfferedKey:
    before = connection.gateway
    sock: Any
    if isinstance(before, Connection):
        before.open()
        sock = before.transport.open_channel(
            "direct-tcpip", (connection.host, int(connection.port)), ("", 0), timeout=CONNECT_TIMEOUT
        )
    else:
        sock = paramiko.ProxyCommand(before) if before else connection._socket()
    transport = connection._new_transport(sock)
    try:
        transport.banner_timeout = CONNECT_TIMEOUT
        transport.start_client(timeout=CONNECT_TIMEOUT)
        key = transport.get_remote_server_key()
    finally:
        transport.close()
    trust = connection.trust
    offered = HostKey(key.get_name(), key.asbytes(), "the server")
    return OfferedKey(
        name=trust.host,
        key=offered,
        objections=tuple(trust.objections(offered)),
        unknown=not trust.accepted and all(revoked.blob != offered.blob for revoked in trust.revoked),
        files=tuple(trust.sources),
    )
