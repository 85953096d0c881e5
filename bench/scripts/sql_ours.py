"""Applies every script of a folder with our adapter, as a deployment does: one connection, the fence claimed, one by one.

``sql_ours.py REQUEST`` reads a JSON file: ``settings`` (of the database), ``password``, ``folder`` (of the scripts),
``backups``, and ``ssh`` (a host and the files to reach it) or nothing for this machine itself. Prints how many it applied.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.content import script_checksum
from pipeline.databases import Database
from pipeline.model import DatabaseSettings, Host, Script
from pipeline.transports import Transport


def main(request: dict[str, Any]) -> int:
    """How many scripts were applied now; an error of the pipeline's is raised as it is."""
    database = _database(DatabaseSettings.model_validate(request["settings"]), request)
    applied = 0
    try:
        # As a plan does: what is pending is known from the history, and nothing else is sent.
        had = {row.script: row.checksum for row in database.history()}
        for path in sorted(Path(request["folder"]).glob("*.sql")):
            data = path.read_bytes()
            script = Script(id=path.name, checksum=script_checksum(data), blob=hashlib.sha1(data).hexdigest())  # noqa: S324
            if had.get(script.id) != script.checksum:
                applied += database.apply(script, data, fence=1, run="bench", release="1.0.0+1")
    finally:
        database.close()
    return applied


def _database(settings: DatabaseSettings, request: dict[str, Any]) -> Database:
    if settings.engine == "postgresql":
        from pipeline.databases.postgresql.database import PostgresqlDatabase

        return PostgresqlDatabase(_transport(request), settings, request["password"], backups=request["backups"])
    from pipeline.databases.mysql.database import MysqlDatabase

    return MysqlDatabase(_transport(request), settings, request["password"], backups=request["backups"])


def _transport(request: dict[str, Any]) -> Transport:
    far = request.get("ssh")
    if far is None:
        from pipeline.transports.local import LocalTransport

        return LocalTransport("bench")
    from pipeline.transports.ssh import SshTransport

    host = Host.model_validate(far["host"])
    return SshTransport(host, ssh_config=Path(far["ssh_config"]), known_hosts=Path(far["known_hosts"]))


if __name__ == "__main__":
    print(main(json.loads(Path(sys.argv[1]).read_text())))
