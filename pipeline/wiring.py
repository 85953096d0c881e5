"""Picks the adapters: the only module that imports transports, databases and trackers.

Heavy libraries are imported when an adapter is picked, so that what speaks to no host pays for none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.databases import Database
from pipeline.errors import ConfigurationError, Reason
from pipeline.host import Host as TargetHost
from pipeline.model import Customer, Environment, Host, WorkspaceSettings
from pipeline.shared_backup import SharedBackups
from pipeline.trackers.ledger import LedgerTracker
from pipeline.transports import Transport
from pipeline.transports.lean import lean_imports


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
    with lean_imports():
        from pipeline.transports.ssh import SshTransport

    return SshTransport(
        host,
        ssh_config=workspace / settings.ssh_config if settings.ssh_config else None,
        known_hosts=workspace / settings.known_hosts if settings.known_hosts else None,
        hint=settings.hint_unreachable,
        **({"secret": resolve} if resolve else {}),
    )


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
    environment: Environment,
    customer: Customer,
    host: TargetHost,
    resolve: Callable[[str], str],
    workspace: Path = Path(),
) -> Database:
    """The environment's database as seen from ``host``; ConfigurationError where it has none or too little is said.

    ``resolve`` looks up the password and the passphrase of its backups; ``workspace`` is where ``tls_ca`` starts from.
    """
    place = f"environments/{customer.key}/{environment.key}.yaml"
    database = environment.database
    if database is None:
        raise ConfigurationError(
            f"{environment.key} of {customer.key} has no database, but the playbook migrates one",
            reasons=[Reason("database: is missing", place)],
        )
    backups = f"{host.folder}/backups"
    named: dict[str, Any] = {"backups": backups, "customer": customer.key, "environment": environment.key}
    if database.backup.encrypt is not None:
        named["passphrase"] = resolve(database.backup.encrypt)
    if database.engine == "sqlite":
        from pipeline.databases.sqlite.database import SqliteDatabase

        path = sqlite_file(environment, host)
        if path is None:
            raise ConfigurationError("a SQLite database needs path:", reasons=[Reason("path is missing", place)])
        named |= {"lock_timeout": database.lock_timeout, "proof": database.backup.proof}
        return SqliteDatabase(host.transport, path, **named)
    if not database.name or not database.user:
        raise ConfigurationError(
            f"a database of {database.engine} needs name: and user:",
            reasons=[Reason("name or user is missing", place)],
        )
    if database.tls_ca is not None:
        certificates = workspace / database.tls_ca
        if not certificates.is_file():
            raise ConfigurationError(
                f"the certificates for the database of {environment.key} of {customer.key} are missing",
                reasons=[Reason(f"tls_ca: there is no file {database.tls_ca}", place)],
            )
        database = database.model_copy(update={"tls_ca": str(certificates)})
    password = resolve(database.password) if database.password else None
    if database.engine == "postgresql":
        from pipeline.databases.postgresql.database import PostgresqlDatabase

        return PostgresqlDatabase(host.transport, database, password, **named)
    from pipeline.databases.mysql.database import MysqlDatabase

    return MysqlDatabase(host.transport, database, password, **named)


def shared_backups_for(
    environment: Environment, customer: Customer, host: TargetHost, resolve: Callable[[str], str]
) -> SharedBackups:
    """The backups of ``shared/`` on ``host``: sealed with the passphrase of the database's backups, where there is one."""
    from pipeline.shared_backup import SharedFolder

    database = environment.database
    encrypt = database.backup.encrypt if database is not None else None
    return SharedFolder(
        host.transport,
        host.folder,
        customer=customer.key,
        environment=environment.key,
        passphrase=resolve(encrypt) if encrypt else None,
        sqlite=sqlite_file(environment, host),
    )


def sqlite_file(environment: Environment, host: TargetHost) -> str | None:
    """Where on the host a SQLite database's file lies or will lie; None for another engine, or without a path."""
    database = environment.database
    if database is None or database.engine != "sqlite" or not database.path:
        return None
    return database.path if database.path.startswith("/") else f"{host.folder}/{database.path}"


def tracker_for(customer: Customer) -> LedgerTracker:
    """The tracker that holds this customer's tickets."""
    return LedgerTracker(customer)
