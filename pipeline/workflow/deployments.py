"""Deploy, promote, roll back: one way for all of them, gather → decide → announce → act → record."""

from __future__ import annotations

from pipeline import rules
from pipeline.errors import Reason, Refused
from pipeline.state import Deployed, State
from pipeline.workflow.attempts import DeploymentResult, bring_back, carry_out
from pipeline.workflow.gathering import Case
from pipeline.workflow.locks import LockReleased, release_lock, tidy_lease
from pipeline.workflow.plans import PlanResult, chosen_release, looked_at, nothing_to_do, plan, planned, tickets_of
from pipeline.workflow.session import Session

__all__ = [
    "DeploymentResult",
    "LockReleased",
    "PlanResult",
    "deploy",
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
    dry_run: bool = False,
) -> DeploymentResult | PlanResult:
    """Puts a release (the newest by default) on test or integration; on test, writes the sign-off request's record."""
    if environment == "production":
        raise Refused(
            "deploy does not touch production.",
            reasons=[Reason("production gets only what the customer has signed off, through promote")],
            next_commands=[f"invoke promote customer={customer}"],
        )
    dossier = session.dossier(customer)
    dossier.environment(environment)
    state = dossier.state()
    chosen = chosen_release(dossier, state, release, "deploy")
    named = tickets_of(dossier, state, chosen, tickets)
    with looked_at(dossier, state, environment, "deploy", chosen, named) as case:
        if dry_run:
            return planned(case)
        if nothing_to_do(case):
            return _unchanged(case)
        return carry_out(case)


def promote(
    session: Session, *, customer: str, release: str | None = None, dry_run: bool = False
) -> DeploymentResult | PlanResult:
    """Puts on production exactly what the customer signed off on test; everything else is Refused."""
    dossier = session.dossier(customer)
    dossier.environment("production")
    state = dossier.state()
    chosen = chosen_release(dossier, state, release, "promote")
    with looked_at(dossier, state, "production", "promote", chosen, tickets_of(dossier, state, chosen)) as case:
        if dry_run:
            return planned(case)
        if nothing_to_do(case):
            return _unchanged(case)
        return carry_out(case)


def rollback(
    session: Session, *, customer: str, environment: str, tickets: tuple[str, ...] = (), dry_run: bool = False
) -> DeploymentResult | PlanResult:
    """Back to the release before, skipping any that was rolled back from; with the playbook and values frozen with it.

    Where a deployment is open (it was interrupted, or its outcome is unknown), it is brought back instead: what was
    installed before it serves again.
    """
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
            return planned(case) if dry_run else bring_back(case, running)
    target = _resumed_rollback(state, environment) or _release_before(state, environment)
    if here.installed is None or target is None:
        raise Refused(
            f"there is no release before {here.installed.release if here.installed else 'the first'} "
            f"on {environment} of {customer}",
            reasons=[Reason(f"rolled back from before: {name}") for name in here.left],
            next_commands=[f"invoke history customer={customer}"],
        )
    named = tickets or tuple(ticket.id for ticket in here.installed.tickets)
    chosen = dossier.release(target.release, state)
    with looked_at(dossier, state, environment, "rollback", chosen, named, frozen=target) as case:
        if dry_run:
            return planned(case)
        return carry_out(case)


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
