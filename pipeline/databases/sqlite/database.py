"""SQLite: the file lies on the host, so the host's own ``python3`` works on it, fed the modules ``host*.py``.

One exec a script: the port to a host has no dialogue, and each exec is let through by the host's own lock and journal. A
script whose connection was cut runs on there, so the history is asked before anything is said.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pipeline.databases import BackupFound, BackupTaken, Catalogue, Rehearsed, Repair, Server
from pipeline.databases.backup_files import BackupFile, BackupFiles, Program
from pipeline.databases.script_errors import ScriptErrors
from pipeline.databases.sqlite.troubles import trouble_of
from pipeline.errors import Failed, PipelineError, Reason, Refused, overtaken
from pipeline.model import Applied, HistoryEvent, Script
from pipeline.transports import LineCut, Transport

_NO_PYTHON = 86
_OLD_PYTHON = 87
# -I: no module of the working folder or of the user's own can stand in for json or sqlite3. -S: nor need any be looked for.
_SCRIPT = """
command -v python3 >/dev/null 2>&1 || exit 86
python3 -I -S -c "$1" && exit 0
code=$?
python3 -I -S -c 'import sys, sqlite3; sys.exit(sys.version_info < (3, 7))' </dev/null 2>/dev/null || exit 87
exit "$code"
"""
_BACKUP = r"""
python_here() {
  command -v python3 >/dev/null 2>&1 || { echo "python3 is not installed" >&2; return 86; }
  python3 -I -S "$private/program" "$@"
}
dump() { python_here dump "$private"; }
read_back() {
  # Only an open backup can be looked at where it lies.
  case $file in *.enc) set -- ;; *) set -- "${part:-$file}" ;; esac
  python_here prove "$private" "$@"
}
"""
_RESTORE = _BACKUP + 'read_back() { python_here restore "$private"; }\n'
_QUICK = 120.0
_LONG = 6 * 3600.0

_LOOKING, _CATALOGUE = "host", "host_catalogue"
_SCRIPTS = (_LOOKING, "host_plan", "host_scripts")


@cache
def _program(*modules: str) -> str:
    """One Python program out of modules of this package, the last of which is run; each finds those before it."""
    sources = [
        (f"{__package__}.{name}", files(__package__).joinpath(f"{name}.py").read_text(encoding="utf-8"))
        for name in modules
    ]
    return (
        "import json, sys, types\n"
        f"for name, source in json.loads({json.dumps(sources)!r}):\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(source, name, 'exec'), module.__dict__)\n"
        "module.main()\n"
    )


class SqliteDatabase:
    """A SQLite file at ``path`` on the host (absolute). ``backups`` is a folder on the host.

    A file that does not exist yet has no history; the first script makes it, its folder must be there. ``patience``:
    seconds to wait for another runner or writer; ``lock_timeout``: those that a script waits for a lock of the application.
    ``passphrase`` seals backups; ``proof`` is that of :class:`pipeline.model.BackupSettings`: a trial restore needs no
    scratch database here.
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
        passphrase: str | None = None,
        lock_timeout: int = 5,
        proof: Literal["archive", "restore"] = "archive",
    ) -> None:
        self._transport = transport
        self._path = path
        self._patience = patience
        self._lock_timeout = lock_timeout
        self._proof = proof
        self._errors = ScriptErrors(f"database {path} on {transport.name}", customer, environment, passphrase)
        self._files = BackupFiles(transport, backups, "sqlite", self._errors, passphrase)

    # --- looking ------------------------------------------------------------------------------------------------------

    def history(self) -> list[Applied]:
        """See :meth:`pipeline.databases.Database.history`."""
        return self._history(settled=False)

    def events(self) -> list[HistoryEvent]:
        """See :meth:`pipeline.databases.Database.events`."""
        rows = self._look("events")["rows"]
        return [HistoryEvent.model_validate(row | {"details": json.loads(row["details"])}) for row in rows]

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """See :meth:`pipeline.databases.Database.query`. Bytes come as bytes."""
        return [tuple(map(_unpacked, row)) for row in self._look("query", texts=[statement.encode()])["rows"]]

    def catalogue(self) -> Catalogue:
        """See :meth:`pipeline.databases.Database.catalogue`."""
        found: Catalogue = self._look("catalogue", modules=(_LOOKING, _CATALOGUE))["catalogue"]
        return found

    def server(self) -> Server:
        """See :meth:`pipeline.databases.Database.server`."""
        answer = self._look("server")
        return Server(version=answer["version"], substitutes=tuple(answer["substitutes"]))

    # --- migrating ----------------------------------------------------------------------------------------------------

    def apply(
        self,
        script: Script,
        sql: bytes,
        *,
        fence: int,
        run: str,
        release: str,
        verify: bytes | None = None,
        covers: Sequence[Script] = (),
    ) -> bool:
        """See :meth:`pipeline.databases.Database.apply`."""
        texts = [self._text(script, sql)]
        if verify is not None:
            texts.append(self._errors.verify_text(script, verify).encode())
        request = {
            **self._told(script),
            "fence": fence,
            "run": run,
            "release": release,
            "covers": [[other.id, other.checksum, other.algorithm] for other in covers],
            "id": uuid.uuid4().hex,
        }
        try:
            answer = self._ask("apply", request, texts, _SCRIPTS, timeout=_LONG)
        except LineCut as cut:
            return self._ask_again(script, request, str(cut))
        if answer["ok"]:
            return bool(answer["applied"])
        raise self._trouble(answer, script, fence)

    def claim(self, fence: int, run: str) -> None:
        """See :meth:`pipeline.databases.Database.claim`."""
        try:
            answer = self._ask("claim", {"fence": fence, "run": run}, timeout=_QUICK)
        except LineCut as cut:
            raise self._errors.not_claimed(str(cut)) from None
        if not answer["ok"]:
            raise self._trouble(answer, None, fence)

    def baseline(self, scripts: Sequence[Script], *, fence: int, run: str, release: str) -> list[str]:
        """See :meth:`pipeline.databases.Database.baseline`."""
        told = [[script.id, script.checksum, script.algorithm] for script in scripts]
        request = {"scripts": told, "fence": fence, "run": run, "release": release}
        return list(self._look("baseline", request, modules=_SCRIPTS)["taken"])

    def repair(
        self, script: str, what: Repair, *, fence: int, run: str, release: str, resume_at: int | None = None
    ) -> None:
        """See :meth:`pipeline.databases.Database.repair`."""
        request = {
            "script": script,
            "what": what,
            "resume_at": resume_at,
            "fence": fence,
            "run": run,
            "release": release,
        }
        self._look("repair", request, modules=_SCRIPTS)

    def rehearse(self, scripts: Sequence[tuple[Script, bytes]], *, run: str) -> list[Rehearsed]:
        """See :meth:`pipeline.databases.Database.rehearse`. On a copy of the database, so every script runs as it will."""
        texts = [self._text(script, sql) for script, sql in scripts]
        request = {"scripts": [self._told(script) for script, _ in scripts], "run": run, "release": "", "covers": []}
        outcomes = self._look("rehearse", request, texts, modules=_SCRIPTS, timeout=_LONG)["outcomes"]
        rehearsed = []
        for (script, _), outcome in zip(scripts, outcomes, strict=False):
            if outcome["ok"]:
                said = "" if outcome["applied"] else "it is applied already"
                rehearsed.append(Rehearsed(script.id, "ok", said))
            else:
                trouble = self._trouble(outcome, script, 0)
                rehearsed.append(Rehearsed(script.id, "failed", "; ".join(map(str, trouble.reasons)) or trouble.what))
        return rehearsed

    # --- backups ------------------------------------------------------------------------------------------------------

    def backup(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.backup`. A file that does not exist yet is kept as an empty database."""
        trial = self._proof == "restore"
        return _taken(self._files.take(label, self._backing(_BACKUP, restore=trial)), trial)

    def backups(self) -> list[BackupFound]:
        """See :meth:`pipeline.databases.Database.backups`."""
        return self._files.found()

    def prove(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.prove`: always by a trial restore, beside the database."""
        return _taken(self._files.read(label, self._backing(_BACKUP, restore=True)), trial=True)

    def restore(self, label: str, *, sha256: str | None, fence: int, run: str) -> None:
        """See :meth:`pipeline.databases.Database.restore`. In one step: other connections see the old or the new."""
        program = self._backing(_RESTORE, fence=fence, run=run, label=label)
        try:
            answer = json.loads(self._files.read(label, program, sha256=sha256).said)
        except Failed as error:
            raise self._not_restored(label, [*error.reasons]) from None
        if answer["kind"] in {"stale", "newer", "locked"}:
            raise self._trouble(answer, None, fence)
        if answer["kind"] != "restored":
            raise self._not_restored(label, [Reason(self._errors.clean(answer["message"]), self._errors.place)])

    def close(self) -> None:
        """Nothing is held open."""

    def _backing(self, shell: str, **request: Any) -> Program:
        told = {
            "path": self._path,
            "patience": self._patience,
            "sealed": self._files.passphrase is not None,
            "open": None,
        }
        program = _program(_LOOKING, _CATALOGUE, "host_backups")
        return Program(shell, files={"program": program.encode(), "request": json.dumps(told | request).encode()})

    def _not_restored(self, label: str, reasons: Sequence[Reason]) -> Failed:
        return Failed(
            f"the backup {label} was not restored into {self._errors.place}.",
            reasons=reasons,
            state="The database is as it was or, where the connection was lost, as the backup has it: never in between.",
            next_commands=["the same command again", self._errors.history],
        )

    # --- asking the host ----------------------------------------------------------------------------------------------

    def _text(self, script: Script, sql: bytes) -> bytes:
        """What runs of the script, in UTF-8. Refused when it is declared for a client."""
        text = self._errors.text(script, sql, in_transaction=script.transactional)
        if script.client:
            raise Refused(
                f"migration {script.id} cannot run on {self._errors.place}.",
                reasons=[Reason("it is declared for a client, and SQLite's scripts run without one", script.id)],
                next_commands=[self._errors.plan],
            )
        return text.encode()

    def _told(self, script: Script) -> dict[str, Any]:
        return {
            "script": script.id,
            "checksum": script.checksum,
            "algorithm": script.algorithm,
            "kind": script.kind,
            "transactional": script.transactional,
            "session": script.session,
        }

    def _history(self, *, settled: bool) -> list[Applied]:
        rows = self._look("history", {"settled": settled})["rows"]
        return [
            Applied.model_validate({"at" if name == "applied_at" else name: row[name] for name in row}) for row in rows
        ]

    def _ask_again(self, script: Script, request: dict[str, Any], cut: str) -> bool:
        """What the history says once no other process is at work here, and none can begin with what was sent."""
        run: str = request["run"]
        stepwise = not script.transactional
        try:
            self._look("withdraw", {key: request[key] for key in ("id", "fence", "run")}, modules=_SCRIPTS)
        except PipelineError as error:
            # Overtaken, it could not begin either.
            if not overtaken(error):
                raise self._errors.unknown(script, error, stepwise=stepwise) from None
        try:
            rows = {row.script: row for row in self._history(settled=True)}
        except PipelineError as error:
            raise self._errors.unknown(script, error, stepwise=stepwise) from None
        row = rows.get(script.id)
        if row is not None and row.state == "running" and row.checksum == script.checksum:
            raise self._errors.stopped(
                script,
                f"the connection was lost: {cut}",
                number=row.statement + 1,
                statements=row.statements,
                uncertain=True,
            )
        if row is None or (row.checksum != script.checksum and script.kind == "repeatable"):
            raise self._errors.not_applied(script)
        if row.checksum != script.checksum:
            raise self._errors.edited(script, row.checksum)
        return row.run == run

    def _look(
        self,
        operation: str,
        request: dict[str, Any] | None = None,
        texts: Sequence[bytes] = (),
        modules: tuple[str, ...] = (_LOOKING,),
        timeout: float = _QUICK,
    ) -> dict[str, Any]:
        """The host's answer; the error of ours that it stands for."""
        try:
            answer = self._ask(operation, request or {}, texts, modules, timeout=timeout)
        except LineCut:
            raise self._errors.not_let_in("the connection to the host was lost") from None
        if not answer["ok"]:
            told = request or {}
            raise self._trouble(answer, None, told.get("fence", 0), told.get("script", ""), told.get("resume_at"))
        return answer

    def _ask(
        self,
        operation: str,
        request: dict[str, Any],
        texts: Sequence[bytes] = (),
        modules: tuple[str, ...] = (_LOOKING,),
        *,
        timeout: float,
    ) -> dict[str, Any]:
        """The host's answer; :class:`LineCut` also when the program was ended before it could give one."""
        digest = hashlib.sha256()
        for text in texts:
            digest.update(text)
        told = {
            "operation": operation,
            "path": self._path,
            "patience": self._patience,
            "lock_timeout": self._lock_timeout,
        }
        told |= request | {"sizes": [len(text) for text in texts], "sha256": digest.hexdigest()}
        stdin = [json.dumps(told).encode() + b"\n", *texts]
        result = self._transport.run(_SCRIPT, [_program(*modules)], stdin=stdin, timeout=timeout)
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

    def _trouble(
        self, answer: dict[str, Any], script: Script | None, fence: int, name: str = "", resume_at: int | None = None
    ) -> PipelineError:
        return trouble_of(
            self._errors, answer, script, fence=fence, patience=self._patience, name=name, resume_at=resume_at
        )


def _taken(file: BackupFile, trial: bool) -> BackupTaken:
    return BackupTaken(file.path, file.sha256, file.size, file.said, trial)


def _unpacked(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
