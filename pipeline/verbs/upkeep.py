"""Verbs that keep the records, the migrations and the keys in order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pipeline.command_line.options import Customer, Reason, a_file
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option


@verb("Upkeep", "migrate.accept")
def accept_migration(
    command: Command,
    customer: Customer,
    script: Annotated[
        str, Option("the script, as the refusal names it; '*': the database was replaced", value="SCRIPT")
    ],
    reason: Reason,
    env: Annotated[str, Option("the environment whose database has the older script", value="ENV")] = "test",
    release: Annotated[
        str | None, Option("the release with the edited script; the newest by default", value="RELEASE")
    ] = None,
) -> Answer:
    """Records that an applied script's later edit is harmless; the sign-off page shows it."""
    from pipeline.workflow import upkeep

    return upkeep.accept_migration(
        command.session,
        customer=customer,
        script=script,
        reason=reason,
        environment=env,
        release=release,
        dry_run=command.dry_run,
    )


@verb("Upkeep", "erase", asks=True)
def erase(
    command: Command,
    customer: Customer,
    reason: Reason,
    ticket: Annotated[str | None, Option("the ticket whose texts go", value="TICKET")] = None,
    person: Annotated[str | None, Option("the person whose texts go", value="PERSON")] = None,
    record: Annotated[str | None, Option("the record whose texts go", value="RECORD")] = None,
) -> Answer:
    """Erases a ticket's, a person's or a record's texts for good; the ledger stays verifiable.

    It cannot be taken back, and asks to retype the customer's name. --dry-run lists every text that would go.
    """
    from pipeline.workflow import upkeep

    def run(*, dry_run: bool) -> Answer:
        return upkeep.erase(
            command.session,
            customer=customer,
            ticket=ticket,
            person=person,
            record=record,
            reason=reason,
            dry_run=dry_run,
        )

    command.ask_before_erasing(customer, lambda: run(dry_run=True))
    return run(dry_run=command.dry_run)


@verb("Upkeep", "ledger.verify", changes=False)
def verify_ledger(command: Command, customer: Customer) -> Answer:
    """Checks every record of a customer: bytes, chain, signatures, texts and refs."""
    from pipeline.workflow import upkeep

    return upkeep.verify_ledger(command.session, customer=customer)


@verb("Upkeep", "key.create")
def create_key(
    command: Command,
    person: Annotated[str, Option("the person's key in people.yaml", value="PERSON")],
    out: Annotated[
        Path | None,
        Option(
            "where the private key is written; where the workspace expects it by default", value="FILE", convert=a_file
        ),
    ] = None,
) -> Answer:
    """Makes a signing key for a person and says what to write into people.yaml."""
    from pipeline.workflow import upkeep

    return upkeep.create_key(command.session, person=person, out=out, dry_run=command.dry_run)
