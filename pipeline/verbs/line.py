"""Verbs about a customer's line: product versions merged with this customer's customisations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pipeline.command_line.options import Customer, Version, a_file
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option


@verb("Prepare a release", "line.start")
def start(command: Command, customer: Customer, version: Version) -> Answer:
    """Begins the customer's line from a version of the product."""
    from pipeline.workflow import lines

    return lines.start_line(command.session, customer=customer, version=version, dry_run=command.dry_run)


@verb("Prepare a release", "line.checkout")
def checkout(
    command: Command,
    customer: Customer,
    folder: Annotated[
        Path | None, Option("where the work tree is made; under var/ by default", value="FOLDER", convert=a_file)
    ] = None,
) -> Answer:
    """Gives a work tree of the customer's line, for customisations: commit there and push."""
    from pipeline.workflow import lines

    return lines.checkout_line(command.session, customer=customer, folder=folder, dry_run=command.dry_run)
