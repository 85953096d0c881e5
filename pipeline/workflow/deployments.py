"""Deploy, promote, roll back: one way for all of them, gather → decide → announce → act → record."""

from __future__ import annotations

from functools import partial

from pipeline import rules
from pipeline.errors import Reason, Refused, UsageError
from pipeline.state import Deployed, Running, State
from pipeline.workflow.attempts import DeploymentResult, bring_back, carry_out, restore_first
from pipeline.workflow.failures import went_back
from pipeline.workflow.gathering import Case
from pipeline.workflow.lock_status import LockStatus, lock_status
from pipeline.workflow.locks import LockReleased, release_lock, tidy_lease
from pipeline.workflow.plans import (
    PlanResult,
    chosen_release,
    looked_at,
    nothing_to_do,
    plan,
    planned,
    planned_back,
    tickets_of,
)
from pipeline.workflow.session import Dossier, Session
from pipeline.workflow.waiting import in_turn

__all__ = [
    "DeploymentResult",
    "LockReleased",
    "LockStatus",
    "PlanResult",
    "deploy",
    "lock_status",
    "plan",
    "promote",
    "release_lock",
    "rollback",
]


def deploy(
    session: Session,
    *,
    customer: str,
    release: str | None = None,
    environment: str = "test",
    tickets: tuple[str, ...] = (),
    accept_drift: str | None = None,
    wait: bool = False,
    dry_run: bool = False,
) -> DeploymentResult | PlanResult:
    """Puts a release (the newest by default) on test or integration; on test, writes the sign-off request's record.

    ``accept_drift`` is the reason, recorded, for going over what was changed on the hosts since the last deployment.
    ``wait``: queues until no other run holds the environment, and decides on what there is then.
    """
    _check_reason(accept_drift)
    if environment == "production":
        raise Refused(
            "deploy does not touch production.",
            reasons=[Reason("production gets only what the customer has signed off, through promote")],
            next_commands=[f"invoke promote customer={customer}"],
        )
    if wait:
        again = partial(deploy, release=release, tickets=tickets, accept_drift=accept_drift, dry_run=dry_run)
        act = partial(again, session, customer=customer, environment=environment)
        return in_turn(session, customer, environment, act)
    dossier = session.dossier(customer)
    dossier.environment(environment)
    state = dossier.state()
    chosen = chosen_release(dossier, state, release, "deploy")
    if running := _on_its_way_back(state, environment, "deploy", chosen.name):
        return _goes_on_back(dossier, state, environment, running, dry_run=dry_run)
    named = tickets_of(dossier, state, chosen, tickets)
    with looked_at(dossier, state, environment, "deploy", chosen, named, accept_drift=accept_drift) as case:
        if dry_run:
            return planned(case)
        if nothing_to_do(case):
            return _unchanged(case)
        for warning in case.warnings:
            session.progress(f"note: {warning}")
        return carry_out(case)


def promote(
    session: Session,
    *,
    customer: str,
    release: str | None = None,
    accept_drift: str | None = None,
    wait: bool = False,
    dry_run: bool = False,
) -> DeploymentResult | PlanResult:
    """Puts on production exactly what the customer signed off on test; everything else is Refused.

    ``accept_drift`` is the reason for going over what was changed on production's hosts; it never excuses drift on test.
    ``wait`` as for :func:`deploy`.
    """
    _check_reason(accept_drift)
    if wait:
        act = partial(promote, session, customer=customer, release=release, accept_drift=accept_drift, dry_run=dry_run)
        return in_turn(session, customer, "production", act)
    dossier = session.dossier(customer)
    dossier.environment("production")
    state = dossier.state()
    chosen = chosen_release(dossier, state, release, "promote")
    if running := _on_its_way_back(state, "production", "promote", chosen.name):
        return _goes_on_back(dossier, state, "production", running, dry_run=dry_run)
    named = tickets_of(dossier, state, chosen)
    with looked_at(dossier, state, "production", "promote", chosen, named, accept_drift=accept_drift) as case:
        if dry_run:
            return planned(case)
        if nothing_to_do(case):
            return _unchanged(case)
        for warning in case.warnings:
            session.progress(f"note: {warning}")
        return carry_out(case)


def rollback(
    session: Session,
    *,
    customer: str,
    environment: str,
    tickets: tuple[str, ...] = (),
    wait: bool = False,
    dry_run: bool = False,
) -> DeploymentResult | PlanResult:
    """Back to the release before, skipping any that was rolled back from; with the playbook and values frozen with it.

    Where a deployment is open (it was interrupted, or its outcome is unknown), it is brought back instead: what was
    installed before it serves again. Where a way back has failed (quarantined), every host is brought to the release that
    is recorded as installed, which ends the quarantine. ``wait`` as for :func:`deploy`.
    """
    if wait:
        act = partial(rollback, session, customer=customer, environment=environment, tickets=tickets, dry_run=dry_run)
        return in_turn(session, customer, environment, act)
    dossier = session.dossier(customer)
    dossier.environment(environment)
    state = dossier.state()
    here = state.environment(environment)
    running = here.running
    if running is not None and running.purpose != "rollback":
        begun = dossier.release(running.release, state)
        named = tuple(ticket.id for ticket in running.tickets)
        purpose: rules.Purpose = "promote" if running.purpose == "promote" else "deploy"
        with looked_at(dossier, state, environment, purpose, begun, named, frozen=running) as case:
            return planned_back(case, running) if dry_run else bring_back(case, running)
    target = _resumed_rollback(state, environment) or _release_before(state, environment)
    if here.quarantined is not None:
        target = here.installed
    if here.installed is None or target is None:
        raise Refused(
            f"there is no release before {here.installed.release if here.installed else 'the first'} "
            f"on {environment} of {customer}",
            reasons=[Reason(f"rolled back from before: {name}") for name in here.left],
            next_commands=[f"invoke history customer={customer}"]
            if here.quarantined is None
            else [f"invoke lock.release customer={customer} env={environment} installed=… reason=…"],
        )
    named = tickets or tuple(ticket.id for ticket in here.installed.tickets)
    chosen = dossier.release(target.release, state)
    with looked_at(dossier, state, environment, "rollback", chosen, named, frozen=target) as case:
        case.refusals += restore_first(case)
        would = planned(case)
        if dry_run:
            return would
        for warning in would.warnings:
            session.progress(f"note: {warning}")
        return carry_out(case)


def _on_its_way_back(state: State, environment: str, purpose: str, release: str) -> Running | None:
    """The open deployment that this command resumes, if its way back has begun with a restore."""
    running = state.environment(environment).running
    if running is None or not running.restoring or (running.purpose, running.release) != (purpose, release):
        return None
    return running


def _goes_on_back(
    dossier: Dossier, state: State, environment: str, running: Running, *, dry_run: bool
) -> DeploymentResult | PlanResult:
    """Finishes that way back, which is a failed deployment all the same."""
    begun = dossier.release(running.release, state)
    named = tuple(ticket.id for ticket in running.tickets)
    purpose: rules.Purpose = "promote" if running.purpose == "promote" else "deploy"
    with looked_at(dossier, state, environment, purpose, begun, named, frozen=running) as case:
        if dry_run:
            return planned_back(case, running)
        done = bring_back(case, running)
        raise went_back(case, done, done.record)


def _check_reason(accept_drift: str | None) -> None:
    if accept_drift is not None and not accept_drift.strip():
        raise UsageError("accepting drift needs a reason")


def _release_before(state: State, environment: str) -> Deployed | None:
    here = state.environment(environment)
    if here.installed is None:
        return None
    skipped = {*here.left, here.installed.release}
    return next((earlier for earlier in reversed(here.earlier) if earlier.release not in skipped), None)


def _resumed_rollback(state: State, environment: str) -> Deployed | None:
    here = state.environment(environment)
    if here.running is None or here.running.purpose != "rollback":
        return None
    wanted = here.running.release
    return next((earlier for earlier in reversed(here.earlier) if earlier.release == wanted), None)


def _unchanged(case: Case) -> DeploymentResult:
    tidy_lease(case.dossier, case.environment.key)
    return DeploymentResult(
        changed=False,
        what=f"{case.environment.key} of {case.customer} holds {case.release.name} already",
        customer=case.customer,
        environment=case.environment.key,
        release=case.release.name,
        installed_before=case.release.name,
        deployment=None,
        content=case.content,
        tickets=case.tickets,
    )
