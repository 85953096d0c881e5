"""Picks the adapters: the only module that imports transports, databases and trackers.

Heavy libraries are imported when an adapter is picked, so that what speaks to no host pays for none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from pipeline.databases import Database
from pipeline.errors import ConfigurationError, Reason
from pipeline.host import Host as TargetHost
from pipeline.model import Customer, Environment, Host, WorkspaceSettings
from pipeline.trackers.ledger import LedgerTracker
from pipeline.transports import Transport


def transport_for(
    host: Host,
    environment: Environment,
    settings: WorkspaceSettings,
    workspace: Path,
    resolve: Callable[[str], str] | None = None,
) -> Transport:
    """A connection to this host, opened when first used; Unreachable (exit 7) comes from its first command.

    ``resolve`` looks up the password of ``become:``. ConfigurationError for ``become:`` on this machine itself.
    """
    relative = not host.folder.startswith("/")
    here = relative and settings.local_while is not None and (workspace / settings.local_while).exists()
    if environment.transport == "local" or here:
        from pipeline.transports.local import LocalTransport

        if host.become is not None:
            raise ConfigurationError(
                f"{host.name} is this machine, where nobody else can be become.",
                reasons=[Reason("become: is for hosts over ssh", environment.key)],
            )
        return LocalTransport(name=host.name)
    with _without_mocks():
        from pipeline.transports.ssh import SshTransport

    return SshTransport(
        host,
        ssh_config=workspace / settings.ssh_config if settings.ssh_config else None,
        known_hosts=workspace / settings.known_hosts if settings.known_hosts else None,
        hint=settings.hint_unreachable,
        **({"secret": resolve} if resolve else {}),
    )


@contextmanager
def _without_mocks() -> Iterator[None]:
    """While Paramiko and Fabric are imported: Invoke, which they import, names a class of ``unittest.mock`` for tests.

    With it come asyncio and ssl, a fifth of the whole import, of which nothing is used.
    """
    if "unittest.mock" in sys.modules:
        yield
        return
    stand_in = ModuleType("unittest.mock")
    stand_in.Mock = object  # type: ignore[attr-defined]
    sys.modules["unittest.mock"] = stand_in
    try:
        yield
    finally:
        del sys.modules["unittest.mock"]


def host_for(
    host: Host,
    environment: Environment,
    settings: WorkspaceSettings,
    workspace: Path,
    resolve: Callable[[str], str] | None = None,
) -> TargetHost:
    """The host's folder, over the transport of its environment."""
    folder = str(workspace / host.folder)
    return TargetHost(transport_for(host, environment, settings, workspace, resolve), host.name, folder)


def database_for(
    environment: Environment, customer: Customer, host: TargetHost, resolve: Callable[[str], str]
) -> Database:
    """The environment's database as seen from ``host``; ConfigurationError where it has none or too little is said."""
    place = f"environments/{customer.key}/{environment.key}.yaml"
    database = environment.database
    if database is None:
        raise ConfigurationError(
            f"{environment.key} of {customer.key} has no database, but the playbook migrates one",
            reasons=[Reason("database: is missing", place)],
        )
    backups = f"{host.folder}/backups"
    if database.engine == "sqlite":
        from pipeline.databases.sqlite import SqliteDatabase

        if not database.path:
            raise ConfigurationError("a SQLite database needs path:", reasons=[Reason("path is missing", place)])
        path = database.path if database.path.startswith("/") else f"{host.folder}/{database.path}"
        return SqliteDatabase(host.transport, path, backups=backups, customer=customer.key, environment=environment.key)
    from pipeline.databases.postgresql import PostgresqlDatabase

    if not database.name or not database.user:
        raise ConfigurationError(
            "a PostgreSQL database needs name: and user:", reasons=[Reason("name or user is missing", place)]
        )
    password = resolve(database.password) if database.password else None
    return PostgresqlDatabase(
        host.transport, database, password, backups=backups, customer=customer.key, environment=environment.key
    )


def tracker_for(customer: Customer) -> LedgerTracker:
    """The tracker that holds this customer's tickets."""
    return LedgerTracker(customer)
