"""Verbs that look at, change or unlock an environment."""

from __future__ import annotations

from typing import Annotated

from pipeline.command_line.options import Customer, Reason, ReleaseName, Tickets
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option

AcceptDrift = Annotated[
    str | None, Option("why what was changed on the hosts may be gone over; it is recorded", value="REASON")
]
Wait = Annotated[bool, Option("queue until no other run holds the environment, then decide anew")]
NeededEnvironment = Annotated[str, Option("test, integration or production", value="ENV")]


@verb("Bring it to test", "plan", changes=False)
def plan(
    command: Command,
    customer: Customer,
    env: Annotated[str | None, Option("test (the default), integration or production", value="ENV")] = None,
    release: ReleaseName = None,
) -> Answer:
    """Shows the numbered actions with what undoes each, and every reason why they would be refused; writes nothing."""
    from pipeline.workflow import deployments

    return deployments.plan(command.session, customer=customer, environment=env, release=release)


@verb("Bring it to test", "deploy")
def deploy(
    command: Command,
    customer: Customer,
    release: ReleaseName = None,
    env: Annotated[str, Option("test or integration; production is for promote", value="ENV")] = "test",
    ticket: Tickets = (),
    accept_drift: AcceptDrift = None,
    wait: Wait = False,
) -> Answer:
    """Deploys a release to test or integration, and asks for the customer's sign-off.

    The ticket is the release's own unless given. A check that fails brings the old release back.
    """
    from pipeline.workflow import deployments

    return deployments.deploy(
        command.session,
        customer=customer,
        release=release,
        environment=env,
        tickets=ticket,
        accept_drift=accept_drift,
        wait=wait and not command.dry_run,
        dry_run=command.dry_run,
    )


@verb("Go to production", "promote", asks=True)
def promote(
    command: Command,
    customer: Customer,
    release: ReleaseName = None,
    accept_drift: AcceptDrift = None,
    wait: Wait = False,
) -> Answer:
    """Deploys to production exactly what the customer has signed off on test.

    Asks to retype the customer's name; anything but the signed-off content is refused, with every reason.
    accept-drift= is for changes on production's own hosts, never for those on test.
    """
    from pipeline.workflow import deployments

    def run(*, dry_run: bool) -> Answer:
        return deployments.promote(
            command.session,
            customer=customer,
            release=release,
            accept_drift=accept_drift,
            wait=wait and not command.dry_run,
            dry_run=dry_run,
        )

    command.ask_before("production", customer, lambda: run(dry_run=True))
    return run(dry_run=command.dry_run)


@verb("Go to production", "rollback", asks=True)
def rollback(
    command: Command, customer: Customer, env: NeededEnvironment, ticket: Tickets = (), wait: Wait = False
) -> Answer:
    """Returns an environment to the release before, skipping any that was rolled back from.

    An open deployment is brought back instead; a quarantined environment's hosts are all brought to the release that is
    installed. The ticket is the deployment's own unless given. Production asks to retype the customer's name.
    """
    from pipeline.workflow import deployments

    def run(*, dry_run: bool) -> Answer:
        return deployments.rollback(
            command.session,
            customer=customer,
            environment=env,
            tickets=ticket,
            wait=wait and not command.dry_run,
            dry_run=dry_run,
        )

    command.ask_before(env, customer, lambda: run(dry_run=True))
    return run(dry_run=command.dry_run)


@verb("Upkeep", "lock.status", changes=False)
def lock_status(
    command: Command,
    customer: Customer,
    env: Annotated[str | None, Option("only this environment; all of them by default", value="ENV")] = None,
) -> Answer:
    """Shows who holds an environment, where, since when, and whether that run lives; and what to do next."""
    from pipeline.workflow import deployments

    return deployments.lock_status(command.session, customer=customer, environment=env)


@verb("Upkeep", "lock.release")
def release_lock(
    command: Command,
    customer: Customer,
    env: NeededEnvironment,
    reason: Reason,
    installed: Annotated[
        str | None, Option("the release that every host holds, where it is not the recorded one", value="RELEASE")
    ] = None,
) -> Answer:
    """Frees an environment that a dead run still holds, or that a failed way back has quarantined.

    The run that held it is refused from then on, by every host and database that can be reached (the rest is named). An
    open deployment is not freed: the same command resumes it, rollback brings it back. Where neither can be done,
    installed= keeps what the hosts hold, once every file there was compared.
    """
    from pipeline.workflow import deployments

    return deployments.release_lock(
        command.session,
        customer=customer,
        environment=env,
        reason=reason,
        installed=installed,
        dry_run=command.dry_run,
    )
