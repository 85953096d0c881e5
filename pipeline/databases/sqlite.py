"""SQLite: the file lies on the host, so the host's own ``python3`` works on it, fed :mod:`~.sqlite_host`.

One exec a script. A script whose connection was cut runs on there, so the history is asked before anything is said.
"""

from __future__ import annotations

import base64
import json
import posixpath
from functools import cache
from importlib.resources import files
from typing import Any

from pipeline.databases import BackupTaken
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import Failed, PipelineError
from pipeline.model import Applied, Script
from pipeline.transports import LineCut, Transport

_NO_PYTHON = 86
_OLD_PYTHON = 87
# -I: no module of the working folder or of the user's own can stand in for json or sqlite3.
_SCRIPT = """
command -v python3 >/dev/null 2>&1 || exit 86
python3 -I -c "$1" && exit 0
code=$?
python3 -I -c 'import sys, sqlite3; sys.exit(sys.version_info < (3, 7))' </dev/null 2>/dev/null || exit 87
exit "$code"
"""
_QUICK = 120.0
_LONG = 6 * 3600.0


@cache
def _program() -> str:
    return files("pipeline.databases").joinpath("sqlite_host.py").read_text(encoding="utf-8")


class SqliteDatabase:
    """A SQLite file at ``path`` on the host (absolute). ``backups`` is a folder on the host.

    A file that does not exist yet has no history; the first script makes it, its folder must be there. ``patience``:
    seconds to wait for another writer.
    """

    engine = "sqlite"

    def __init__(
        self,
        transport: Transport,
        path: str,
        *,
        backups: str,
        customer: str = "CUSTOMER",
        environment: str = "ENVIRONMENT",
        patience: float = 30.0,
    ) -> None:
        self._transport = transport
        self._path = path
        self._backups = backups
        self._patience = patience
        self._errors = ScriptErrors(f"database {path} on {transport.name}", customer, environment)

    def history(self) -> list[Applied]:
        """See :meth:`pipeline.databases.Database.history`."""
        return self._history(settled=False)

    def apply(self, script: Script, sql: bytes, *, fence: int, run: str, release: str) -> bool:
        """See :meth:`pipeline.databases.Database.apply`."""
        text = self._errors.text(script, sql)
        request = {
            "operation": "apply",
            "path": self._path,
            "script": script.id,
            "checksum": script.checksum,
            "algorithm": script.algorithm,
            "fence": fence,
            "run": run,
            "release": release,
            "sql": base64.b64encode(text.encode()).decode("ascii"),
        }
        try:
            answer = self._ask(request, timeout=_LONG)
        except LineCut:
            return self._ask_again(script, run)
        if answer["ok"]:
            return bool(answer["applied"])
        raise self._trouble(answer, script, fence)

    def claim(self, fence: int, run: str) -> None:
        """See :meth:`pipeline.databases.Database.claim`."""
        request = {"operation": "claim", "path": self._path, "fence": fence}
        try:
            answer = self._ask(request, timeout=_QUICK)
        except LineCut as cut:
            raise self._errors.not_claimed(str(cut)) from None
        if not answer["ok"]:
            raise self._trouble(answer, None, fence)

    def backup(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.backup`. A file that does not exist yet is kept as an empty database."""
        target = posixpath.join(self._backups, self._errors.label(label) + ".sqlite")
        request = {"operation": "backup", "path": self._path, "target": target}
        try:
            answer = self._ask(request, timeout=_LONG)
        except LineCut:
            raise self._errors.backup_failed("the connection to the host was lost while it was taken") from None
        if not answer["ok"]:
            raise self._errors.backup_failed(answer["message"])
        proof = f"SQLite's integrity_check of the copy, {answer['tables']} tables"
        return BackupTaken(path=answer["path"], sha256=answer["sha256"], size=answer["size"], proven_by=proof)

    def close(self) -> None:
        """Nothing is held open."""

    def _history(self, *, settled: bool) -> list[Applied]:
        request = {"operation": "history", "path": self._path, "settled": settled}
        try:
            answer = self._ask(request, timeout=_QUICK)
        except LineCut:
            raise self._errors.not_let_in("the connection to the host was lost") from None
        if not answer["ok"]:
            raise self._trouble(answer, None, 0)
        names = ("script", "checksum", "algorithm", "fence", "run", "release", "at")
        return [Applied.model_validate(dict(zip(names, row, strict=True))) for row in answer["rows"]]

    def _ask_again(self, script: Script, run: str) -> bool:
        try:
            rows = {row.script: row for row in self._history(settled=True)}
        except PipelineError as error:
            raise self._errors.unknown(script, error) from None
        if script.id not in rows:
            raise self._errors.not_applied(script)
        if rows[script.id].checksum != script.checksum:
            raise self._errors.edited(script, rows[script.id].checksum)
        return rows[script.id].run == run

    def _ask(self, request: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """The host's answer; :class:`LineCut` also when the program was ended before it could give one."""
        stdin = json.dumps(request | {"patience": self._patience}).encode()
        result = self._transport.run(_SCRIPT, [_program()], stdin=stdin, timeout=timeout)
        host = self._transport.name
        if result.exit_code == _NO_PYTHON:
            raise self._missing(f"python3 is not installed on {host}", "install python3 on the host")
        if result.exit_code == _OLD_PYTHON:
            raise self._missing(
                f"python3 on {host} is older than 3.7 or lacks sqlite3", "install a newer python3 there"
            )
        try:
            answer: dict[str, Any] = json.loads(result.stdout)
        except ValueError:
            said = result.stderr.decode(errors="replace").strip().splitlines()
            # Ended by a signal or by the time limit: what it had begun may be rolled back, or not.
            if result.exit_code >= 124:
                raise LineCut(f"exit code {result.exit_code} on {host}") from None
            raise self._errors.unreadable(said[-1] if said else f"exit code {result.exit_code}") from None
        return answer

    def _missing(self, what: str, cure: str) -> Failed:
        return Failed(
            f"{self._errors.place} cannot be worked on.",
            reasons=[f"{what}: SQLite databases are migrated there"],
            next_commands=[cure, "the same command again"],
            in_order=True,
        )

    def _trouble(self, answer: dict[str, Any], script: Script | None, fence: int) -> PipelineError:
        kind, message = answer["kind"], answer.get("message", "")
        errors = self._errors
        if kind == "locked":
            return errors.locked(message, self._patience)
        if kind == "newer":
            return errors.newer(answer["found"])
        if kind == "stale":
            return errors.stale(fence, answer["highest"])
        if script is not None and kind == "edited":
            return errors.edited(script, answer["checksum"])
        if script is not None and kind == "own-commit":
            return errors.own_commit(script, message, line=answer["line"])
        if script is not None and kind == "own-history":
            return errors.own_history(script, message, line=answer["line"])
        if script is not None and kind == "escaped":
            return errors.escaped(script)
        if script is not None and kind == "script":
            place = {"number": answer["number"], "line": answer["line"]}
            return errors.failed(script, message, words=answer["words"], code=answer.get("code"), **place)
        return errors.unreadable(message, code=answer.get("code"))
