"""Verbs that look at the hosts as they are: what was changed there, and whether they could be deployed to."""

from __future__ import annotations

from typing import Annotated

from pipeline.command_line.options import Customer, Tickets
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option

Environment = Annotated[str, Option("test, integration or production", value="ENV")]


@verb("See what is what", "drift", changes=False)
def drift(command: Command, customer: Customer, env: Environment) -> Answer:
    """Compares every file on every host with what was deployed, by content; ends with 4 when anything differs.

    Extra, missing and changed files, modes, links, empty folders, folders of releases, current, and the configuration in
    shared/. --json lists all of it.
    """
    from pipeline.workflow import drift as hosts

    return hosts.drift(command.session, customer=customer, environment=env)


@verb("Prepare a release", "drift.adopt")
def adopt(
    command: Command,
    customer: Customer,
    env: Environment,
    host: Annotated[str, Option("the host whose files are taken, by its name in the environment's file", value="HOST")],
    ticket: Tickets,
) -> Answer:
    """Makes a commit of what somebody changed on a host, for patch to bring into the line and have it reviewed.

    Only files of the release that serves; never the configuration in shared/, and no file with a secret in it.
    """
    from pipeline.workflow import drift as hosts

    return hosts.adopt(
        command.session, customer=customer, environment=env, host=host, tickets=ticket, dry_run=command.dry_run
    )


@verb("See what is what", "doctor", changes=False)
def doctor(
    command: Command,
    customer: Customer,
    env: Annotated[str | None, Option("only this environment; all of them by default", value="ENV")] = None,
) -> Answer:
    """Looks at every host and database: reached, trusted, let in, room, clock, tools; shows host keys and what to add.

    Ends with 0 only if all is well: 7 when something is not reached, trusted or let in, 4 when a deployment would be
    refused.
    """
    from pipeline.workflow import doctor as hosts

    return hosts.doctor(command.session, customer=customer, environment=env)
