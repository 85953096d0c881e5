"""Letting go of what nobody will finish.

What is let go is recorded first, then the lease goes, then the record's number is raised as the fence on every host and in
the database: from then on the run that held the lock is refused wherever it turns to. Where the fence could not be raised
the result says so, and the same command raises it later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from pipeline.content import content_hash
from pipeline.errors import NOTHING_CHANGED, Locked, PipelineError, Reason, Refused, UsageError, overtaken
from pipeline.host import Host
from pipeline.host_journal import JournalEntry
from pipeline.lease import Lease, hold, read_lease, releasable
from pipeline.lease import release_lock as release_lease
from pipeline.model import Draft, Environment, Record, RefMove
from pipeline.state import EnvironmentState, ReleaseState, State
from pipeline.transports import LineCut
from pipeline.workflow.databases import history_of, migrates, open_database
from pipeline.workflow.gathering import closing, hosts_of, release_manifest
from pipeline.workflow.hosts import at_once, journal_disagreements
from pipeline.workflow.plans import resume_commands
from pipeline.workflow.session import Dossier, Result, Session


class LockReleased(Result):
    """What was let go: ``fence`` is the number that is raised, ``fenced`` where it was, ``unfenced`` where not and why."""

    customer: str
    environment: str
    deployment: str | None
    fence: int | None = None
    fenced: tuple[str, ...] = ()
    unfenced: tuple[dict[str, str], ...] = ()

    def lines(self) -> list[str]:
        lines = [self.what]
        if self.fenced:
            lines.append(
                f"  the run that held it is refused from now on (fence {self.fence}) by {', '.join(self.fenced)}"
            )
        if self.unfenced:
            lines.append("  not told, so make sure that the run is dead before anything else is done there:")
            lines += [f"    {place['where']}: {place['why']}" for place in self.unfenced]
        return lines


def release_lock(
    session: Session,
    *,
    customer: str,
    environment: str,
    reason: str,
    installed: str | None = None,
    dry_run: bool = False,
) -> LockReleased:
    """Lets go of an environment: a dead run's lease, a quarantine, or with ``installed`` an open deployment.

    A quarantine ends when every host holds, file for file, the recorded release, or the one that ``installed`` names. An
    open deployment is not let go as such (the same command resumes it, ``rollback`` brings it back); only where neither
    can be done may ``installed`` name its own release, which every host must hold, and which then counts as installed.
    """
    if not reason.strip():
        raise UsageError("releasing a lock needs a reason")
    dossier = session.dossier(customer)
    target = dossier.environment(environment)
    state = dossier.state()
    here = state.environment(environment)
    recorded = here.installed.release if here.installed else None
    lease = read_lease(dossier.repository, customer, environment)
    ends = "quarantine" if here.quarantined else "deployment" if here.running and installed else "lease"
    if ends == "lease" and lease is None:
        return _nothing_held(dossier, target, here, dry_run=dry_run)
    releasable(dossier.repository, customer, environment)
    if here.running is not None and installed is not None and installed != here.running.release:
        raise Refused(
            f"only {here.running.release} can be kept: it is what the open deployment {here.running.deployment} brings",
            next_commands=[f"invoke rollback customer={customer} env={environment}"],
        )
    held = installed or recorded
    kept: ReleaseState | None = dossier.release(held, state) if held else None
    hosts = hosts_of(dossier, target)
    with closing(hosts):
        scripts: dict[str, str] = {}
        if ends != "lease":
            astray = [reason for host in hosts.values() for reason in _astray(dossier, environment, host, kept)]
            if astray:
                back = ends == "quarantine" and recorded is not None
                raise Refused(
                    f"the lock of {environment} of {customer} cannot be released: not every host holds {held or 'nothing'}",
                    reasons=astray,
                    state=f"Nothing was changed. rollback brings every host to {recorded}."
                    if back
                    else NOTHING_CHANGED,
                    next_commands=[f"invoke rollback customer={customer} env={environment}"] * back
                    + [f"invoke lock.release customer={customer} env={environment} installed=… reason=…"],
                )
            rows = history_of(dossier, target, hosts[target.hosts[0].name], dossier.playbook.playbook)
            scripts = {row.script: row.checksum for row in rows if here.running and row.run == here.running.run}
        deployment = here.running.deployment if ends == "deployment" and here.running else here.quarantined
        what = f"the {ends} of {environment} of {customer} is let go; {held or 'nothing'} is installed"
        if dry_run:
            return _released(customer, environment, deployment, f"would be done: {what}", changed=False)
        record = _recorded(dossier, here, environment, reason, ends, kept, deployment, scripts, lease)
        if lease is not None:
            release_lease(dossier.repository, customer, environment, lease)
        fenced, unfenced = _raise_fence(dossier, target, hosts, record)
    return _released(
        customer, environment, deployment, what, changed=True, fence=record.number, fenced=fenced, unfenced=unfenced
    )


def _recorded(
    dossier: Dossier,
    here: EnvironmentState,
    environment: str,
    reason: str,
    ends: str,
    kept: ReleaseState | None,
    deployment: str | None,
    scripts: dict[str, str],
    lease: Lease | None,
) -> Record:
    """The record of what is let go, written before it is: a release that nobody could look up must not be."""
    session = dossier.session
    run = session.new_run()
    record_id = f"{run}-lock-released-1"
    recorded = here.installed.release if here.installed else None
    moved = kept if ends != "lease" and kept is not None and kept.name != recorded else None

    def decide(now: State) -> list[Draft]:
        if now.environment(environment) != here:
            raise Refused(
                f"{environment} of {dossier.key} has changed while this was being looked at",
                next_commands=[f"invoke status customer={dossier.key}"],
            )
        current = read_lease(dossier.repository, dossier.key, environment)
        if current is not None and (lease is None or not lease.same_run(current)):
            raise Refused(
                f"another run has taken {environment} of {dossier.key} while this was being looked at",
                next_commands=[f"invoke lock.status customer={dossier.key} env={environment}"],
            )
        return [
            Draft(
                id=record_id,
                run=run,
                kind="lock-released",
                at=session.now(),
                product=dossier.customer.product,
                environment=environment,
                release=kept.name if kept else None,
                content=content_hash(release_manifest(dossier, moved), dossier.playbook.raw) if moved else None,
                tickets=here.running.tickets if here.running else (),
                moves=(_installs(dossier, environment, moved, record_id),) if moved else (),
                configuration=dossier.configuration(environment),
                texts={"reason": reason, "people": dossier.people_used(session.actor.key)},
                details={
                    "ends": ends,
                    "deployment": deployment,
                    "purpose": "kept as found",
                    "scripts": scripts,
                    "lease": lease.model_dump(mode="json") if lease else None,
                },
            )
        ]

    return dossier.ledger.append(session.signer, decide)[0]


def _nothing_held(dossier: Dossier, target: Environment, here: EnvironmentState, *, dry_run: bool) -> LockReleased:
    """Nobody holds it: Refused where a deployment is open; else the fence of the last release, where it is missing."""
    customer, environment = dossier.key, target.key
    if here.running is not None:
        raise Refused(
            f"{environment} of {customer} is held by nobody: deployment {here.running.deployment} is open",
            reasons=[Reason(f"{here.running.purpose} of {here.running.release}", here.running.record)],
            next_commands=[
                *resume_commands(customer, environment, here.running),
                f"invoke rollback customer={customer} env={environment}",
            ],
        )
    what = f"{environment} of {customer} is not locked"
    last = next((r for r in dossier.ledger.records() if r.environment == environment and r.kind in _FENCING), None)
    if dry_run or last is None or last.kind != "lock-released":
        return _released(customer, environment, None, what, changed=False)
    hosts = hosts_of(dossier, target)
    with closing(hosts):
        fenced, unfenced = _raise_fence(dossier, target, hosts, last)
    return _released(
        customer, environment, None, what, changed=False, fence=last.number, fenced=fenced, unfenced=unfenced
    )


_FENCING = frozenset(
    {"deployment-started", "lock-released", "migrations-baselined", "migration-repaired", "backup-restored"}
)
"""The kinds of records whose number is a fence."""


def _raise_fence(
    dossier: Dossier, target: Environment, hosts: dict[str, Host], record: Record
) -> tuple[tuple[str, ...], tuple[dict[str, str], ...]]:
    """Tells every host and the database the record's number; where that was done, and where it was not with the reason."""
    digest = dossier.ledger.record_sha256(record.id)
    entry = JournalEntry(
        run=record.run,
        fence=record.number,
        customer=dossier.key,
        environment=target.key,
        release=record.release,
        at=record.at,
        what="lock-released",
        record=record.id,
        record_sha256=digest,
    )
    told: dict[str, str | None] = {}

    def tell(where: str, do: Callable[[], object]) -> None:
        try:
            do()
            told[where] = None
        except LineCut as error:
            told[where] = str(error)
        except PipelineError as error:
            # A later run has raised it higher still: the one that held the lock is refused there as well.
            told[where] = None if overtaken(error) else " ".join([error.what, *(str(r) for r in error.reasons)])
        except Exception as error:  # what nobody thought of must not hide that the release holds
            told[where] = type(error).__name__

    at_once(hosts, lambda host: tell(host.name, lambda: _journalled(host, entry)))
    if migrates(target, dossier.playbook.playbook):
        tell("the database", lambda: _claimed(dossier, target, hosts, record))
    places = [*hosts, "the database"]
    return (
        tuple(where for where in places if where in told and told[where] is None),
        tuple({"where": where, "why": why} for where in places if (why := told.get(where)) is not None),
    )


def _journalled(host: Host, entry: JournalEntry) -> None:
    """The entry in the host's journal, with a higher fence than any run before; never in somebody else's folder."""
    seen = host.inspect()
    theirs = (seen.journal_customer, seen.journal_environment)
    if seen.journal_customer is not None and theirs != (entry.customer, entry.environment):
        raise Refused(f"the folder is that of {theirs[1]} of {theirs[0]}, as its deployment journal says.")
    if seen.journal_fence is not None and seen.journal_fence > entry.fence:
        return
    if seen.foreign:
        raise Refused(f"{host.folder} holds what we did not put there: {seen.foreign[0]}.")
    # Also where nothing was deployed yet: the run that held the lock may have been about to.
    host.append_journal(entry)


def _claimed(dossier: Dossier, target: Environment, hosts: dict[str, Host], record: Record) -> None:
    database = open_database(dossier, target, hosts[target.hosts[0].name])
    try:
        database.claim(record.number, record.run)
    finally:
        database.close()


def _astray(dossier: Dossier, environment: str, host: Host, kept: ReleaseState | None) -> list[Reason]:
    """How this host differs from holding exactly this release (None: nothing): all that ``drift`` would find."""
    seen = host.inspect()
    wanted = kept.name if kept else None
    found = [*seen.foreign, *journal_disagreements(dossier, environment, seen)]
    if seen.current != wanted:
        found.append(f"current is {seen.current or 'nothing'}, not {wanted or 'nothing'}")
    elif kept is not None and not seen.foreign:
        found += host.verify(kept.name, release_manifest(dossier, kept, afresh=True))
    if seen.ours and not seen.foreign:
        found += host.verify_shared()
    return [Reason(line, host.name) for line in found]


def _installs(dossier: Dossier, environment: str, kept: ReleaseState, record_id: str) -> RefMove:
    return dossier.installation.deployed(
        environment,
        kept.commit,
        dossier.repository.ref(dossier.installation.env_ref(environment)),
        title=f"{kept.name} is kept as found on {environment}",
        author=dossier.session.signer.key,
        at=dossier.session.now(),
        trailers={"Record-Id": record_id, "Environment": environment, "Release": kept.name},
    )


def _released(
    customer: str, environment: str, deployment: str | None, what: str, *, changed: bool, **more: Any
) -> LockReleased:
    again = f"invoke lock.release customer={customer} env={environment} reason=…"
    return LockReleased(
        changed=changed,
        what=what,
        customer=customer,
        environment=environment,
        deployment=deployment,
        next_commands=(f"invoke status customer={customer}", *([again] if more.get("unfenced") else [])),
        **more,
    )


def tidy_lease(dossier: Dossier, environment: str) -> None:
    """Takes away a lease whose run died on this machine after its outcome was recorded; any other lease stays."""
    lease = read_lease(dossier.repository, dossier.key, environment)
    if lease is None:
        return
    session = dossier.session
    with (
        contextlib.suppress(Locked),
        hold(
            dossier.repository,
            dossier.key,
            environment,
            run=lease.run,
            actor=session.signer.key,
            at=session.now(),
            purpose=lease.purpose,
            work=session.work,
            release=lease.release,
        ),
    ):
        pass
