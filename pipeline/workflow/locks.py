"""Letting go of what nobody will finish."""

from __future__ import annotations

import contextlib

from pipeline.errors import Locked, Reason, Refused
from pipeline.lease import hold, read_lease
from pipeline.lease import release_lock as release_lease
from pipeline.model import Draft
from pipeline.workflow.gathering import closing, history_of, hosts_of
from pipeline.workflow.plans import resume_commands
from pipeline.workflow.session import Dossier, Result, Session


class LockReleased(Result):
    """What was let go."""

    customer: str
    environment: str
    deployment: str | None


def release_lock(
    session: Session, *, customer: str, environment: str, reason: str, dry_run: bool = False
) -> LockReleased:
    """Lets go of a deployment that nobody will finish, and ends a quarantine; only when every host holds what is recorded.

    A host that is half-way is first brought to the recorded release: by running the open command again, or by hand.
    """
    dossier = session.dossier(customer)
    target = dossier.environment(environment)
    state = dossier.state()
    here = state.environment(environment)
    lease = read_lease(dossier.repository, customer, environment)
    if here.running is None and here.quarantined is None and lease is None:
        return LockReleased(
            changed=False,
            what=f"{environment} of {customer} is not locked",
            customer=customer,
            environment=environment,
            deployment=None,
        )
    hosts = hosts_of(dossier, target)
    recorded = here.installed.release if here.installed else None
    abandoned: list[str] = []
    with closing(hosts):
        astray = [
            Reason(f"current is {seen or 'nothing'}, the record says {recorded or 'nothing'}", name)
            for name, seen in ((name, host.inspect().current) for name, host in hosts.items())
            if seen != recorded
        ]
        if not astray and here.running is not None:
            # What the abandoned run applied stays in the database, and no deployment will record it any more.
            rows = history_of(dossier, target, hosts[target.hosts[0].name], dossier.playbook.playbook)
            abandoned = [row.script for row in rows if row.run == here.running.run]
    if astray:
        raise Refused(
            f"the lock of {environment} of {customer} cannot be released while hosts hold something else",
            reasons=astray,
            next_commands=resume_commands(customer, environment, here.running),
        )
    deployment = here.running.deployment if here.running else here.quarantined
    if not dry_run:
        run = session.new_run()
        release_lease(dossier.repository, customer, environment)
        dossier.ledger.append(
            session.signer,
            lambda _: [
                Draft(
                    id=f"{run}-lock-released-1",
                    run=run,
                    kind="lock-released",
                    at=session.now(),
                    product=dossier.customer.product,
                    environment=environment,
                    release=recorded,
                    details={"deployment": deployment, "scripts": abandoned},
                    texts={"reason": reason, "people": dossier.people_used(session.actor.key)},
                )
            ],
        )
    return LockReleased(
        changed=not dry_run,
        what=f"the lock of {environment} of {customer} is released; {recorded or 'nothing'} is installed",
        customer=customer,
        environment=environment,
        deployment=deployment,
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
