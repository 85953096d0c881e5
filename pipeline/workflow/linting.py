"""What the lint finds in the migrations that would run, and what of it the playbook refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline import lint, squawk
from pipeline.errors import Reason
from pipeline.lint import INFORMATION
from pipeline.model import Environment
from pipeline.playbook import Playbook, contract_scripts
from pipeline.state import EnvironmentState, State
from pipeline.workflow.databases import Look
from pipeline.workflow.session import Dossier

SEARCHED_SIZE = 1 << 20
"""Bytes up to which a file of the installed release is searched for the names that a migration takes away."""

PLACES_SHOWN = 3
"""Places at which such a name is read that are looked for, at the most."""


@dataclass(frozen=True)
class Finding:
    """A finding, and whether the playbook refuses a deployment for it. ``accepted``: its author's reason, or None."""

    rule: str
    script: str
    line: int
    said: str
    accepted: str | None
    refuses: bool

    @property
    def reason(self) -> Reason:
        """The finding with its place."""
        return Reason(f"{self.rule}: {self.said}", f"{self.script}:{self.line}")

    @property
    def warns(self) -> bool:
        """Whether a person should look: not where it is only to be known, and not where its author did."""
        return self.accepted is None and self.rule not in INFORMATION


def findings_of(
    dossier: Dossier, state: State, environment: Environment, playbook: Playbook, look: Look
) -> tuple[Finding, ...]:
    """What is found in the pending migrations, in their order."""
    pending, database = look.comparison.pending, environment.database
    if not pending or database is None or playbook.migrations is None:
        return ()
    late = set(contract_scripts(playbook, pending))
    scripts = [s.model_copy(update={"phase": "contract" if s.id in late else "expand"}) for s in pending]
    texts = {script.id: look.scripts[script.id][1] for script in pending}
    reads = _still_read(dossier, state.environment(environment.key))
    found = lint.findings(scripts, texts, database.engine, still_read=reads)
    if database.engine == "postgresql":
        found += squawk.findings(scripts, texts)
    order = {script.id: number for number, script in enumerate(pending)}
    refused = frozenset(playbook.migrations.refuse)
    return tuple(
        Finding(one.rule, one.script, one.line, one.said, one.accepted, one.accepted is None and one.rule in refused)
        for one in sorted(found, key=lambda one: (order[one.script], one.line, one.rule))
    )


def _still_read(dossier: Dossier, here: EnvironmentState) -> Callable[[str], Sequence[str]]:
    """Where in the installed release a name stands as a word; its files are read when that is first asked.

    SQL is left out, since what an earlier migration made is no reader of it, and so are large files and what is no text.
    """
    searched: list[tuple[str, bytes]] | None = None

    def places(name: str) -> list[str]:
        nonlocal searched
        if searched is None:
            searched = list(_files(dossier, here))
        pattern = re.compile(rb"(?<!\w)" + re.escape(name.encode()) + rb"(?!\w)", re.IGNORECASE)
        found: list[str] = []
        for path, data in searched:
            match = pattern.search(data)
            if match is not None:
                line = data.count(b"\n", 0, match.start()) + 1
                found.append(f"{path}:{line}")
                if len(found) == PLACES_SHOWN:
                    break
        return found

    return places


def _files(dossier: Dossier, here: EnvironmentState) -> list[tuple[str, bytes]]:
    if here.installed is None:
        return []
    release = dossier.state().releases[here.installed.release]
    files = [
        file
        for file in dossier.installation.manifest(
            release.commit, cache=dossier.session.work / "cache" / "manifests"
        ).files
        if file.size <= SEARCHED_SIZE and file.mode != "120000" and not file.path.lower().endswith(".sql")
    ]
    contents = dossier.repository.read_many([file.blob for file in files])
    texts = ((file.path, contents[file.blob]) for file in files)
    return [(path, data) for path, data in texts if data is not None and b"\0" not in data[:8192]]
