"""An environment's database, looked at before anything is decided: its history, what is pending, what speaks against it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline import foreign_histories, wiring
from pipeline.databases import Database
from pipeline.host import Host
from pipeline.layouts import files_of, scripts_of
from pipeline.migrations import Comparison, compare
from pipeline.model import Applied, Environment, Manifest, Script
from pipeline.playbook import MigrateStep, Playbook
from pipeline.preflight import DatabaseFacts
from pipeline.script_text import running_text
from pipeline.state import ReleaseState, State
from pipeline.versions import order, split_release
from pipeline.workflow.session import Dossier


@dataclass(frozen=True)
class Look:
    """What was seen of a database.

    ``scripts`` are the release's with their bytes, in order, ``verify`` the texts that must run after one of them, by its
    id. ``blocked`` says of each script that was begun and not finished what is known to be committed. ``unknown_schema``:
    there are tables, and no history of them but those of the tools in ``foreign``.
    """

    scripts: Mapping[str, tuple[Script, bytes]]
    verify: Mapping[str, bytes]
    comparison: Comparison
    history: list[Applied] = field(default_factory=list)
    blocked: Mapping[str, str] = field(default_factory=dict)
    server: DatabaseFacts | None = None
    unknown_schema: bool = False
    foreign: tuple[str, ...] = ()


Proof = Literal["archive", "restore"]
"""When a backup counts, see :class:`pipeline.model.BackupSettings`."""


def open_database(dossier: Dossier, environment: Environment, host: Host, proof: Proof | None = None) -> Database:
    """The environment's database as seen from ``host``; ConfigurationError when it has none.

    ``proof`` takes the place of what the environment's file says of its backups.
    """
    session = dossier.session
    if proof is not None and environment.database is not None:
        backup = environment.database.backup.model_copy(update={"proof": proof})
        settings = environment.database.model_copy(update={"backup": backup})
        environment = environment.model_copy(update={"database": settings})
    return wiring.database_for(environment, dossier.customer, host, session.resolve, session.folder)


def migrates(environment: Environment, playbook: Playbook) -> bool:
    """Whether deployments here apply migrations at all: there is a database, and a step for them."""
    return environment.database is not None and any(isinstance(step, MigrateStep) for step in playbook.steps)


def history_of(dossier: Dossier, environment: Environment, host: Host, playbook: Playbook) -> list[Applied]:
    """The migrations that the environment's database has had; nothing where the playbook migrates none."""
    if not migrates(environment, playbook):
        return []
    database = open_database(dossier, environment, host)
    try:
        return database.history()
    finally:
        database.close()


def release_scripts(
    dossier: Dossier, playbook: Playbook, manifest: Manifest, environment: Environment | None = None
) -> dict[str, tuple[Script, bytes]]:
    """The release's migrations with their bytes, in order, for the engine of ``environment`` (by default that of test)."""
    settings = playbook.migrations
    chosen = environment or next(iter(dossier.loaded.environments.values()), None)
    database = chosen.database if chosen is not None else None
    if settings is None or (database is None and "{engine}" in settings.folder):
        return {}
    engine = database.engine if database is not None else "postgresql"
    contents: dict[str, bytes | None] = dict(
        dossier.repository.read_many([file.blob for file in files_of(settings, engine, manifest)])
    )
    scripts = scripts_of(settings, engine, manifest, contents.get)
    return {script.id: (script, contents[script.blob] or b"") for script in scripts}


def look_at(
    dossier: Dossier,
    state: State,
    environment: Environment,
    host: Host,
    playbook: Playbook,
    manifest: Manifest,
    *,
    ask: bool,
) -> Look:
    """The release's scripts and how they stand to the database, which is only asked with ``ask``."""
    scripts = release_scripts(dossier, playbook, manifest, environment)
    verify = {id: dossier.repository.read(script.verify) or b"" for id, (script, _) in scripts.items() if script.verify}
    accepted = accepted_edits(state)
    listed = [script for script, _ in scripts.values()]
    if not ask or not migrates(environment, playbook):
        return Look(scripts, verify, compare(listed, [], accepted))
    here = state.environment(environment.key)
    database = open_database(dossier, environment, host)
    try:
        rows = database.history()
        begun = [row for row in rows if row.state == "running"]
        resumed = _to_resume(database) if begun else set()
        settings = playbook.migrations
        has_initial = settings is not None and settings.initial is not None
        # Of what a deployment has left the ledger knows: later the application's own tables are nothing strange.
        first = not (here.installed or here.running or here.failed or here.earlier)
        tables = database.catalogue().get("tables", {}) if not rows and listed and (has_initial or first) else None
        comparison = compare(listed, rows, accepted, empty=tables is not None and not tables)
        # Where nothing is to run, nothing more need be asked.
        server = database.server() if comparison.pending else None
    finally:
        database.close()
    return Look(
        scripts=scripts,
        verify=verify,
        comparison=comparison,
        history=rows,
        blocked={row.script: committed(row) for row in comparison.blocked if row.script not in resumed},
        server=DatabaseFacts(server.version, server.substitutes, server.refusals) if server else None,
        unknown_schema=bool(tables) and not here.applied,
        foreign=tuple(foreign_histories.found(tables or {})),
    )


def committed(row: Applied) -> str:
    """How far a script that was begun has come, in words."""
    return f"{row.statement} of {row.statements} statements are known to be committed"


def repair_commands(customer: str, environment: str, look: Look) -> list[str]:
    """What ends the blocked state of the first script that has one: to go on behind what is known, or to say what is true."""
    row = next((row for row in look.history if row.script in look.blocked), None)
    if row is None:
        return []
    command = f"invoke migrate.repair customer={customer} env={environment} script={shlex.quote(row.script)}"
    resume = [f"{command} resume-at={row.statement + 1} reason=…"] if row.statement < row.statements else []
    return [*([] if row.session else resume), f"{command} --mark-done reason=…", f"{command} --mark-reverted reason=…"]


def _to_resume(database: Database) -> set[str]:
    """The scripts that were begun and that somebody has found fit to go on."""
    last: dict[str, str] = {}
    for event in database.events():
        if event.script is not None:
            last[event.script] = event.what
    return {script for script, what in last.items() if what == "resumed"}


def running_bytes(look: Look, scripts: Iterable[Script]) -> dict[str, bytes]:
    """Of each of these scripts, by its id, the part of its file that runs."""
    return {
        script.id: running_text(script, look.scripts[script.id][1]).encode("utf-8", "surrogateescape")
        for script in scripts
    }


def accepted_edits(state: State) -> set[tuple[str, str, str]]:
    """Edits of applied migrations that were judged harmless: script, old and new checksum."""
    return {(acceptance.script, acceptance.old, acceptance.new) for acceptance in state.accepted}


def vanished_scripts(state: State, comparison: Comparison, release: ReleaseState, kind: str) -> dict[str, str]:
    """Scripts that ran here and that the release no longer holds, each with the release that it ran with.

    A script that a later version, or a later build of the same version, brought is *ahead*: it is known, and the older
    code runs on the expanded schema. Neither is what was accepted as removed.
    """
    removed = {acceptance.script for acceptance in state.accepted if acceptance.new == "removed"}

    def place(name: str) -> tuple[Any, int]:
        version, build = split_release(name)
        return order(kind, version), build

    here = place(release.name)
    return {
        row.script: row.release for row in comparison.ahead if row.script not in removed and place(row.release) <= here
    }


def unrehearsed(state: State, pending: Sequence[Script], release: ReleaseState) -> dict[str, str]:
    """Those of these scripts that have not run on this customer's test, each with the reason in words.

    What counts is that it ran: neither another text (unless the edit was accepted), nor what the full schema of a new
    database stands for, nor what somebody only said of it.
    """
    test = state.environment("test")
    accepted = accepted_edits(state)
    found: dict[str, str] = {}
    for script in pending:
        ran = test.applied.get(script.id)
        if ran is None or (ran != script.checksum and (script.id, ran, script.checksum) not in accepted):
            found[script.id] = f"has not run on test as it is in {release.name}"
        elif script.id in test.covered:
            found[script.id] = "has not run on test, where the full schema of a new database stands for it"
        elif script.id in test.asserted:
            found[script.id] = (
                "has not run on test: there it was only said to count as applied (migrate.baseline or migrate.repair); let it "
                f"run there, from a backup before it: invoke backup.restore customer={state.customer} env=test backup=… "
                "reason=…, then invoke deploy; or, if production has it already: invoke migrate.baseline "
                f"customer={state.customer} env=production upto=… reason=…"
            )
    return found
