"""What a MariaDB or MySQL server is and lacks, before anything is migrated on it."""

from __future__ import annotations

import re

from pipeline.databases import Server
from pipeline.databases.mysql.session import Command, Session, Trouble

_OLDEST = {"mariadb": (10, 2), "mysql": (5, 7)}
_ATOMIC = {"mariadb": (10, 6), "mysql": (8, 0)}


def described(session: Session) -> Server:
    """The server's version, what it lacks with what is done instead, and why nothing may run on it."""
    session.connection()
    version = session.version
    kind = "mariadb" if "mariadb" in version.lower() else "mysql"
    # A MariaDB behind an old replication prefix calls itself 5.5.5-10.x.
    match = re.search(r"(\d+)\.(\d+)", version.removeprefix("5.5.5-"))
    number = (int(match[1]), int(match[2])) if match else (0, 0)
    substitutes, refusals = [], []
    if number < _OLDEST[kind]:
        refusals.append(f"{version} is older than {kind} {_OLDEST[kind][0]}.{_OLDEST[kind][1]}")
    elif number < _ATOMIC[kind]:
        substitutes.append("DDL is not atomic on this version: a statement that a crash interrupts may be half done")
    settings = {row[0]: str(row[1]) for row in session.ask(_SETTINGS)}
    if settings.get("read_only", "OFF") in {"ON", "1"}:
        refusals.append("the server is read-only (a replica?)")
    if settings.get("wsrep_on", "OFF") in {"ON", "1"}:
        substitutes.append(
            "GET_LOCK holds on one node of the cluster only: the fence stops a second run on another node"
        )
    if settings.get("innodb_flush_log_at_trx_commit", "1") != "1":
        substitutes.append(
            "innodb_flush_log_at_trx_commit is not 1: after a crash of the server the last second's counters may be lost"
        )
    if settings.get("innodb_rollback_on_timeout", "OFF") in {"ON", "1"}:
        substitutes.append(
            "innodb_rollback_on_timeout is on: a unit that waited too long is tried again as a whole anyway"
        )
    try:
        first, second = (
            session.send([Command("SELECT CONNECTION_ID()")]),
            session.send([Command("SELECT CONNECTION_ID()")]),
        )
        if first != second:
            refusals.append("a proxy spreads one session over several connections, where no lock of a session holds")
    except Trouble as trouble:
        refusals.append(f"the server does not say which connection this is: {trouble.message}")
    return Server(version, tuple(substitutes), tuple(refusals))


_SETTINGS = (
    "SHOW GLOBAL VARIABLES WHERE variable_name IN"
    " ('read_only', 'wsrep_on', 'innodb_flush_log_at_trx_commit', 'innodb_rollback_on_timeout')"
)
