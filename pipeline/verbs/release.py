"""Verbs that make what is tested, signed off and deployed as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pipeline.command_line.options import Customer, Merged, Tickets, Version, an_existing_file
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option


@verb("Prepare a release", "release")
def release(command: Command, customer: Customer, version: Version, ticket: Tickets, merged: Merged = None) -> Answer:
    """Merges a version of the product into the customer's line and makes the release.

    Says what changed: files, migrations, customisations carried over. A conflict is reported file by file and leaves
    nothing half-merged; merged=COMMIT continues once you have resolved it.
    """
    from pipeline.workflow import releases

    return releases.make_release(
        command.session, customer=customer, version=version, tickets=ticket, merged=merged, dry_run=command.dry_run
    )


@verb("Prepare a release", "patch")
def patch(
    command: Command,
    customer: Customer,
    ticket: Tickets,
    commit: Annotated[
        str | None, Option("the fix, as a commit of the customer's line or of the product", value="COMMIT")
    ] = None,
    file: Annotated[
        Path | None, Option("the fix, as a diff that git apply takes", value="FILE", convert=an_existing_file)
    ] = None,
    env: Annotated[
        str, Option("the environment whose installed release is patched; production by default", value="ENV")
    ] = "production",
    id: Annotated[str | None, Option("the patch's own id, for instance CVE-2026-1234", value="ID")] = None,
    merged: Merged = None,
) -> Answer:
    """Makes a release of what is installed plus one fix, without the rest of the next version.

    Patches made since, and not installed yet, stay in it unless they were rejected or rolled back from.
    The fix is merged into the customer's line in the same step, and open sign-offs without it are superseded.
    """
    from pipeline.workflow import releases

    return releases.make_patch(
        command.session,
        customer=customer,
        tickets=ticket,
        commit=commit,
        file=file,
        environment=env,
        id=id,
        merged=merged,
        dry_run=command.dry_run,
    )
