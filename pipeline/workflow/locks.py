"""Letting go of what nobody will finish."""

from __future__ import annotations

import contextlib

from pipeline.content import content_hash
from pipeline.errors import Locked, Reason, Refused, UsageError
from pipeline.host import Host
from pipeline.lease import hold, read_lease
from pipeline.lease import release_lock as release_lease
from pipeline.model import Draft, RefMove
from pipeline.state import ReleaseState, State
from pipeline.workflow.gathering import closing, history_of, hosts_of, release_manifest
from pipeline.workflow.plans import resume_commands
from pipeline.workflow.session import Dossier, Result, Session


class LockReleased(Result):
    """What was let go."""

    customer: str
    environment: str
    deployment: str | None


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
        if here.running is not None:
            raise Refused(
                f"{environment} of {customer} is held by nobody: deployment {here.running.deployment} is open",
                reasons=[Reason(f"{here.running.purpose} of {here.running.release}", here.running.record)],
                next_commands=[
                    *resume_commands(customer, environment, here.running),
                    f"invoke rollback customer={customer} env={environment}",
                ],
            )
        return _released(customer, environment, None, f"{environment} of {customer} is not locked", changed=False)
    if here.running is not None and installed is not None and installed != here.running.release:
        raise Refused(
            f"only {here.running.release} can be kept: it is what the open deployment {here.running.deployment} brings",
            next_commands=[f"invoke rollback customer={customer} env={environment}"],
        )
    held = installed or recorded
    kept: ReleaseState | None = dossier.release(held, state) if held else None
    scripts: dict[str, str] = {}
    if ends != "lease":
        hosts = hosts_of(dossier, target)
        with closing(hosts):
            astray = [reason for host in hosts.values() for reason in _astray(dossier, host, kept)]
            if astray:
                raise Refused(
                    f"the lock of {environment} of {customer} cannot be released: not every host holds {held or 'nothing'}",
                    reasons=astray,
                    next_commands=[f"invoke lock.release customer={customer} env={environment} installed=… reason=…"],
                )
            rows = history_of(dossier, target, hosts[target.hosts[0].name], dossier.playbook.playbook)
        scripts = {row.script: row.checksum for row in rows if here.running and row.run == here.running.run}
    deployment = here.running.deployment if ends == "deployment" and here.running else here.quarantined
    what = f"the {ends} of {environment} of {customer} is let go; {held or 'nothing'} is installed"
    if dry_run:
        return _released(customer, environment, deployment, f"would be done: {what}", changed=False)
    run = session.new_run()
    record_id = f"{run}-lock-released-1"

    def decide(now: State) -> list[Draft]:
        if now.environment(environment) != here:
            raise Refused(
                f"{environment} of {customer} has changed while this was being looked at",
                next_commands=[f"invoke status customer={customer}"],
            )
        moved = ends != "lease" and kept is not None and held != recorded
        return [
            Draft(
                id=record_id,
                run=run,
                kind="lock-released",
                at=session.now(),
                product=dossier.customer.product,
                environment=environment,
                release=held,
                content=content_hash(release_manifest(dossier, kept), dossier.playbook.raw) if moved and kept else None,
                tickets=here.running.tickets if here.running else (),
                moves=(_installs(dossier, environment, kept, record_id),) if moved and kept else (),
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

    release_lease(dossier.repository, customer, environment)
    dossier.ledger.append(session.signer, decide)
    return _released(customer, environment, deployment, what, changed=True)


def _astray(dossier: Dossier, host: Host, kept: ReleaseState | None) -> list[Reason]:
    """How this host differs from holding exactly this release (None: nothing)."""
    seen = host.inspect().current
    wanted = kept.name if kept else None
    if seen != wanted:
        return [Reason(f"current is {seen or 'nothing'}, not {wanted or 'nothing'}", host.name)]
    if kept is None:
        return []
    return [Reason(line, host.name) for line in host.verify(kept.name, release_manifest(dossier, kept, afresh=True))]


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


def _released(customer: str, environment: str, deployment: str | None, what: str, *, changed: bool) -> LockReleased:
    return LockReleased(
        changed=changed,
        what=what,
        customer=customer,
        environment=environment,
        deployment=deployment,
        next_commands=(f"invoke status customer={customer}",),
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
