"""Verbs about the migrations of one environment's database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pipeline.command_line.options import Customer, Reason, a_file
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option

Environment = Annotated[str, Option("test, integration or production", value="ENV")]
ReleaseName = Annotated[
    str | None,
    Option("the release whose scripts count; the installed one by default, else the newest", value="RELEASE"),
]
Newest = Annotated[str | None, Option("the release whose scripts are meant; the newest by default", value="RELEASE")]


def a_number(text: str) -> int:
    """A whole number from 1; ValueError otherwise."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ValueError(f"is a number from 1, not {text!r}")
    return int(text)


@verb("Migrations", "migrate.baseline")
def baseline(
    command: Command,
    customer: Customer,
    env: Environment,
    reason: Reason,
    release: ReleaseName = None,
    upto: Annotated[str | None, Option("the last script that has run there already", value="SCRIPT")] = None,
    from_: Annotated[
        str | None,
        Option(
            "whose history says what has run: flyway, liquibase, dbmate, sqitch, golang-migrate, diesel, alembic; "
            "found by its table by default",
            value="TOOL",
        ),
    ] = None,
) -> Answer:
    """Takes over an existing database: scripts that ran there before count as applied, and are not run.

    Reads the history of another tool, or believes upto=. Shows which scripts count as applied and which would run next.
    """
    from pipeline.workflow import migrations

    return migrations.baseline(
        command.session,
        customer=customer,
        environment=env,
        reason=reason,
        release=release,
        upto=upto,
        tool=from_,
        dry_run=command.dry_run,
    )


@verb("Migrations", "migrate.repair")
def repair(
    command: Command,
    customer: Customer,
    env: Environment,
    script: Annotated[str, Option("the script, as the refusal names it", value="SCRIPT")],
    reason: Reason,
    resume_at: Annotated[
        int | None, Option("the statement with which it goes on, counted from 1", value="N", convert=a_number)
    ] = None,
    mark_done: Annotated[bool, Option("all of it was done by hand")] = False,
    mark_reverted: Annotated[bool, Option("all of it was taken back by hand")] = False,
) -> Answer:
    """Ends the blocked state of a script that was begun and not finished, by what you found in the database."""
    from pipeline.workflow import migrations

    return migrations.repair(
        command.session,
        customer=customer,
        environment=env,
        script=script,
        reason=reason,
        resume_at=resume_at,
        done=mark_done,
        reverted=mark_reverted,
        dry_run=command.dry_run,
    )


@verb("Migrations", "migrate.rehearse", changes=False)
def rehearse(command: Command, customer: Customer, env: Environment, release: Newest = None) -> Answer:
    """Runs the pending scripts on trial and takes everything back: in one transaction, or on a copy in scratch:.

    Ends with 1 when one fails.
    """
    from pipeline.workflow import rehearsals

    return rehearsals.rehearse(command.session, customer=customer, environment=env, release=release)


@verb("Migrations", "migrate.sql", changes=False)
def sql(
    command: Command,
    customer: Customer,
    env: Environment,
    release: Newest = None,
    out: Annotated[Path | None, Option("the file to write; printed by default", value="FILE", convert=a_file)] = None,
) -> Answer:
    """Writes the pending scripts as one SQL file that a database administrator may run by hand, history included.

    Afterwards migrate.baseline takes what was run into the ledger.
    """
    from pipeline.workflow import rehearsals

    return rehearsals.write_sql(command.session, customer=customer, environment=env, release=release, out=out)


@verb("Migrations", "migrate.drift", changes=False)
def drift(
    command: Command,
    customer: Customer,
    env: Environment,
    against: Annotated[
        str | None, Option("compare with what is recorded of this environment instead", value="ENV")
    ] = None,
) -> Answer:
    """Compares schema and history with what the ledger has of the last deployment; ends with 4 when anything differs."""
    from pipeline.workflow import schema_drift

    return schema_drift.schema_drift(command.session, customer=customer, environment=env, against=against)
