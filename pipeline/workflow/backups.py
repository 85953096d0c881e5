"""Backups of one environment made, listed and proven by hand; how they are restored is in :mod:`pipeline.workflow.restores`.

What is backed up is the database and, where the playbook backs it up, ``shared/`` on every host. Each is recorded with its
SHA-256: a backup counts only as long as its bytes are those that the ledger knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from pipeline import wiring
from pipeline.databases import BackupFound, BackupTaken
from pipeline.errors import Failed, NotKnown, PipelineError, Reason, Refused, UsageError
from pipeline.host import Host
from pipeline.lease import Held, hold
from pipeline.model import Draft, Environment, Outcome, Record, RecordKind
from pipeline.shared_backup import SharedBackups
from pipeline.state import State
from pipeline.steps import BackupStep
from pipeline.suggest import did_you_mean
from pipeline.transports import LineCut
from pipeline.workflow.databases import open_database
from pipeline.workflow.gathering import closing, hosts_of
from pipeline.workflow.session import Dossier, Result, Session

What = Literal["database", "shared"]

HASHING = 6 * 3600.0
"""Seconds that reading the backups of one host may take."""


class BackupsMade(Result):
    """Backups that were made or proven just now: of each what it is of, host, path, SHA-256, size in bytes, and the proof."""

    customer: str
    environment: str
    label: str
    backups: tuple[dict[str, Any], ...] = ()
    record: str | None = None

    def lines(self) -> list[str]:
        lines = [self.what]
        for backup in self.backups:
            lines.append(f"  {backup['what']} of {backup['host']}: {backup['path']}, {backup['size']} bytes")
            lines.append(f"    SHA-256 {backup['sha256']}; {backup['proven_by']}")
        return lines


class BackupsListed(Result):
    """The backups that lie on the hosts, oldest first, and what the ledger knows of each."""

    customer: str
    environment: str
    backups: tuple[dict[str, Any], ...] = ()

    def lines(self) -> list[str]:
        lines = [self.what]
        for backup in self.backups:
            lines.append(
                f"  {backup['label']}  {backup['what']} of {backup['host']}, {backup['size']} bytes, {backup['age']} old"
            )
            belongs = [word for word in (backup["release"], backup["schema"]) if word]
            if belongs:
                lines.append(f"    of {'; '.join(belongs)}")
            if backup["proven_by"]:
                lines.append(f"    proven {backup['proven_at']}: {backup['proven_by']}")
            if backup["trouble"]:
                lines.append(f"    {backup['trouble']}")
        return lines


@dataclass
class Known:
    """What the ledger knows of one backup; ``record`` is the id of the first one that names it."""

    what: What
    host: str
    label: str
    sha256: str
    record: str
    release: str | None
    schema: str
    path: str
    size: int
    proven_by: str
    proven_at: datetime


@dataclass(frozen=True)
class Place:
    """One environment with its hosts, and what of it is backed up."""

    dossier: Dossier
    state: State
    environment: Environment
    hosts: dict[str, Host]
    targets: tuple[tuple[What, str], ...] = field(default=())

    @property
    def named(self) -> str:
        """The options that name it, for a command."""
        return f"customer={self.dossier.key} env={self.environment.key}"

    @property
    def key(self) -> str:
        """The environment's key."""
        return self.environment.key

    def shared(self, host: Host) -> SharedBackups:
        """The backups of this host's ``shared/``."""
        dossier = self.dossier
        return wiring.shared_backups_for(self.environment, dossier.customer, host, dossier.session.resolve)

    def found(self, what: What, host: str) -> list[BackupFound]:
        """Those that lie on this host, oldest first."""
        if what == "shared":
            return self.shared(self.hosts[host]).found()
        database = open_database(self.dossier, self.environment, self.hosts[host])
        try:
            return database.backups()
        finally:
            database.close()

    def done(self, what: What, host: str, label: str, fence: int, *, prove: bool) -> dict[str, Any]:
        """The backup of this label, made now or (``prove``) proven anew, as a record keeps it."""
        guarded = self.hosts[host].guarded(fence)
        taken: BackupTaken
        if what == "shared":
            shared = self.shared(guarded)
            taken = shared.prove(label) if prove else shared.take(label)
        else:
            database = open_database(self.dossier, self.environment, guarded)
            try:
                taken = database.prove(label) if prove else database.backup(label)
            finally:
                database.close()
        return {"what": what, "label": label, "host": host} | asdict(taken)

    def history(self) -> dict[str, str]:
        """The scripts that count as applied in the database, with their checksums, in order; nothing without a database."""
        if self.environment.database is None:
            return {}
        database = open_database(self.dossier, self.environment, self.hosts[self.environment.hosts[0].name])
        try:
            return {row.script: row.checksum for row in database.history() if row.state != "running"}
        finally:
            database.close()


@contextmanager
def opened(session: Session, customer: str, environment: str, *, deciding: bool) -> Iterator[Place]:
    """The environment, its connections closed at the end. Refused where nothing of it is ever backed up."""
    dossier = session.dossier(customer, deciding=deciding)
    if not deciding:
        dossier.repository.fetch()
    target = dossier.environment(environment)
    first, steps = target.hosts[0].name, dossier.playbook.playbook.steps
    targets: list[tuple[What, str]] = [("database", first)] if target.database is not None else []
    if any(isinstance(step, BackupStep) and step.shared for step in steps):
        targets += [("shared", host.name) for host in target.hosts]
    if not targets:
        raise Refused(
            f"nothing of {environment} of {customer} is backed up",
            reasons=[
                Reason(
                    "it has no database:, and the playbook has no backup step with shared: true",
                    f"environments/{customer}/{environment}.yaml",
                )
            ],
        )
    hosts = hosts_of(dossier, target)
    with closing(hosts):
        yield Place(dossier, dossier.state(), target, hosts, tuple(targets))


def make(
    session: Session,
    *,
    customer: str,
    environment: str,
    reason: str,
    label: str | None = None,
    dry_run: bool = False,
) -> BackupsMade:
    """A proven backup now, under a label of its own. Refused where one of this label lies there already."""
    if not reason.strip():
        raise UsageError("a backup by hand needs a reason")
    with opened(session, customer, environment, deciding=True) as place:
        run = session.new_run()
        chosen = label or run
        there = [f"{what} of {host}" for what, host in place.targets if chosen in _labels(place, what, host)]
        if there:
            raise Refused(
                f"there is a backup {chosen} on {environment} of {customer} already",
                reasons=[Reason(one) for one in there],
                next_commands=[f"invoke backup.list {place.named}"],
            )
        of = " and ".join(dict.fromkeys({"database": "the database", "shared": "shared/"}[w] for w, _ in place.targets))
        result = BackupsMade(
            changed=not dry_run,
            what=f"backup {chosen} of {of} of {environment} of {customer} {'would be' if dry_run else 'is'} made and read back",
            customer=customer,
            environment=environment,
            label=chosen,
            next_commands=(f"invoke backup.list {place.named}",),
        )
        _there_is_one(place)
        if dry_run:
            return result
        with held(place, run, "backup.run") as lease:
            fence = place.dossier.state().number
            made = [_tried(place, what, host, chosen, fence, prove=False) for what, host in place.targets]
            applied = list(place.history())
            details = {"label": chosen, "backups": made, "schema": _schema(applied)}
            record = written(place, lease, run, "backup-made", details, reason)
    return result.model_copy(update={"backups": tuple(made), "record": record.id})


def listed(session: Session, *, customer: str, environment: str) -> BackupsListed:
    """Every backup that lies on the hosts, its bytes compared with what the ledger knows; writes nothing."""
    with opened(session, customer, environment, deciding=False) as place:
        known = known_backups(place)
        now = session.now()
        running = place.state.environment(environment).running
        rows: list[dict[str, Any]] = []
        for what, host in place.targets:
            found = place.found(what, host)
            digests = digests_of(place.hosts[host], [one.path for one in found])
            for one in found:
                about = known.get((what, host, one.label))
                trouble = None
                if about is None and running is not None and one.label.startswith(running.run):
                    trouble = f"made by deployment {running.deployment}, which has no outcome yet"
                elif about is None:
                    trouble = "the ledger does not know it: backup.prove takes it in"
                elif digests.get(one.path) != about.sha256:
                    trouble = (
                        f"its SHA-256 is {digests.get(one.path, 'unknown')}, and the ledger has {about.sha256}: it was "
                        "changed, and is never restored"
                    )
                rows.append(
                    asdict(one)
                    | {
                        "what": what,
                        "host": host,
                        "sha256": digests.get(one.path),
                        "age": _age(now, datetime.fromisoformat(one.at)),
                        "release": about.release if about else None,
                        "schema": about.schema if about else "",
                        "proven_by": about.proven_by if about else "",
                        "proven_at": f"{about.proven_at:%Y-%m-%dT%H:%M:%SZ}" if about else None,
                        "record": about.record if about else None,
                        "trouble": trouble,
                    }
                )
    rows.sort(key=lambda row: (row["at"], row["label"]))
    good = next((row["label"] for row in reversed(rows) if row["trouble"] is None), None)
    return BackupsListed(
        changed=False,
        what=f"{len(rows)} backup(s) of {environment} of {customer} lie on its hosts",
        customer=customer,
        environment=environment,
        backups=tuple(rows),
        next_commands=(f"invoke backup.prove customer={customer} env={environment} backup={good}",) if good else (),
    )


def prove(session: Session, *, customer: str, environment: str, backup: str, dry_run: bool = False) -> BackupsMade:
    """Proves a backup anew, by a trial restore where there is a database for it; one that the ledger did not know counts then.

    NotKnown where no host has it; Refused where its bytes are not those that the ledger knows.
    """
    with opened(session, customer, environment, deciding=True) as place:
        targets = lying(place, backup)
        result = BackupsMade(
            changed=not dry_run,
            what=f"backup {backup} of {environment} of {customer} {'would be' if dry_run else 'is'} proven",
            customer=customer,
            environment=environment,
            label=backup,
            next_commands=(f"invoke backup.list {place.named}",),
        )
        if dry_run:
            return result
        run = session.new_run()
        with held(place, run, "backup.prove") as lease:
            fence = place.dossier.state().number
            known = known_backups(place)
            proven = [_tried(place, what, host, backup, fence, prove=True) for what, host in targets]
            for one in proven:
                about = known.get((one["what"], one["host"], backup))
                if about is not None and about.sha256 != one["sha256"]:
                    raise Refused(
                        f"backup {backup} of {environment} of {customer} is not the one that was recorded",
                        reasons=[Reason(f"its SHA-256 is {one['sha256']}, not {about.sha256}", about.record)],
                        next_commands=[f"invoke backup.list {place.named}"],
                    )
            record = written(place, lease, run, "backup-proven", {"label": backup, "backups": proven})
    return result.model_copy(update={"backups": tuple(proven), "record": record.id})


# --- what restores use as well ---------------------------------------------------------------------------------------


def known_backups(place: Place) -> dict[tuple[What, str, str], Known]:
    """What the ledger knows of the backups of this environment, by what they are of, host and label."""
    found: dict[tuple[What, str, str], Known] = {}
    for record in reversed(place.dossier.ledger.records()):
        if record.environment != place.key or record.kind not in _TELLING:
            continue
        if record.kind == "backup-restored" and "deployment" in record.details:
            continue  # its outcome says the same, and more
        for backup in record.details.get("backups", ()):
            # Records of earlier versions name the path, which ends with the label and what it is.
            label = backup.get("label") or backup["path"].rpartition("/")[2].partition(".")[0]
            key = (backup.get("what", "database"), backup["host"], label)
            about = found.get(key)
            if about is None:
                of_deployment = record.kind == "deployment-finished"
                scripts = list(record.details.get("scripts", ())) if of_deployment else []
                found[key] = Known(
                    *key,
                    sha256=backup["sha256"],
                    record=record.id,
                    release=record.details.get("from") if of_deployment else record.release,
                    schema=f"before {scripts[0]}" if scripts else record.details.get("schema", ""),
                    path=backup["path"],
                    size=backup["size"],
                    proven_by=backup.get("proven_by", ""),
                    proven_at=record.at,
                )
            elif about.sha256 == backup["sha256"]:
                about.proven_by, about.proven_at = backup.get("proven_by", ""), record.at
    return found


_TELLING = frozenset({"deployment-finished", "backup-made", "backup-proven", "backup-restored"})


def lying(place: Place, label: str) -> list[tuple[What, str]]:
    """What of this label lies on the hosts; NotKnown when nothing does."""
    every = {(what, host): _labels(place, what, host) for what, host in place.targets}
    found = [target for target, labels in every.items() if label in labels]
    if not found:
        labels = sorted({one for labels in every.values() for one in labels})
        raise NotKnown(
            f"there is no backup {label!r} of {place.key} of {place.dossier.key}{did_you_mean(label, labels)}",
            next_commands=[f"invoke backup.list {place.named}"],
        )
    return found


@contextmanager
def held(place: Place, run: str, purpose: str) -> Iterator[Held]:
    """The environment's lease, for a command of this name."""
    session = place.dossier.session
    installed = place.state.environment(place.key).installed
    with hold(
        place.dossier.repository,
        place.dossier.key,
        place.key,
        run=run,
        actor=session.signer.key,
        at=session.now(),
        purpose=purpose,
        work=session.work,
        release=installed.release if installed else None,
        clock=session.now,
    ) as lease:
        yield lease


def written(
    place: Place,
    lease: Held,
    run: str,
    kind: RecordKind,
    details: dict[str, Any],
    reason: str | None = None,
    *,
    outcome: Outcome | None = None,
    files: Mapping[str, bytes] | None = None,
    check: Callable[[State], None] = lambda state: None,
) -> Record:
    """The record; ``files`` go with it as configuration. ``check`` may refuse it on the state that it is written on."""
    dossier, session = place.dossier, place.dossier.session
    installed = place.state.environment(place.key).installed

    def decide(state: State) -> list[Draft]:
        lease.check()
        check(state)
        return [
            Draft(
                id=f"{run}-{kind}-{state.number + 1}",
                run=run,
                kind=kind,
                at=session.now(),
                product=dossier.customer.product,
                environment=place.key,
                release=installed.release if installed else None,
                outcome=outcome,
                configuration=dossier.configuration(place.key) | dict(files or {}),
                texts={"people": dossier.people_used(session.actor.key)} | ({"reason": reason} if reason else {}),
                details=details,
            )
        ]

    return dossier.ledger.append(session.signer, decide)[0]


def _tried(place: Place, what: What, host: str, label: str, fence: int, *, prove: bool) -> dict[str, Any]:
    try:
        return place.done(what, host, label, fence, prove=prove)
    except LineCut as error:
        raise Failed(
            f"nobody knows whether backup {label} of {what} of {host} {'is proven' if prove else 'was made'}",
            reasons=[Reason(place.dossier.session.conceal(str(error)), host)],
            state="Nothing is recorded. Doing it again is safe.",
            next_commands=[f"invoke backup.list {place.named}"],
        ) from None
    except PipelineError as error:
        if not error.next_commands or "the same command again" in error.next_commands:
            error.next_commands = (f"invoke backup.list {place.named}",)
        raise


def missing_file(environment: Environment, host: Host) -> str | None:
    """The path of a SQLite database whose file is not on its host; None where it is there, and for another engine."""
    path = wiring.sqlite_file(environment, host)
    if path is None:
        return None
    # 1 is the answer of test; any other code says nothing of the file.
    return path if host.transport.run('test -e "$1"', [path]).exit_code == 1 else None


def _there_is_one(place: Place) -> None:
    """Failed where a SQLite database has no file: what a deployment may begin with is no backup that anybody asks for."""
    for what, name in place.targets:
        path = missing_file(place.environment, place.hosts[name]) if what == "database" else None
        if path is None:
            continue
        applied = len(place.state.environment(place.key).applied)
        known = (
            f"the ledger knows {applied} migration(s) as applied there" if applied else "no migration was ever applied"
        )
        raise Failed(
            f"there is no database at {path} on {name}",
            reasons=[Reason(known, place.key), Reason("a backup of nothing would count as one of the database")],
            state="Nothing was backed up, and nothing is recorded.",
            next_commands=[f"invoke doctor customer={place.dossier.key} env={place.key}"],
        )


def _labels(place: Place, what: What, host: str) -> set[str]:
    return {found.label for found in place.found(what, host)}


def _schema(applied: list[str]) -> str:
    return f"{len(applied)} migration(s), the last one {applied[-1]}" if applied else "no migrations"


def digests_of(host: Host, paths: list[str]) -> dict[str, str]:
    """The SHA-256 of these files on the host; those that cannot be read are missing."""
    if not paths:
        return {}
    script = 'for file do set -- $(sha256sum < "$file" 2>/dev/null) && printf "%s %s\\n" "${1:--}" "$file"; done'
    result = host.transport.run(script, paths, timeout=HASHING)
    lines = (line.partition(" ") for line in result.stdout.decode("utf-8", "replace").splitlines())
    return {path: digest for digest, _, path in lines if len(digest) == 64}


def _age(now: datetime, at: datetime) -> str:
    seconds = max(0, int((now - at).total_seconds()))
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            return f"{seconds // length} {name}{'s' if seconds // length > 1 else ''}"
    return "less than a minute"
