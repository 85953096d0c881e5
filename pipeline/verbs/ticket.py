"""Verbs of the embedded tracker."""

from __future__ import annotations

from typing import Annotated

from pipeline.command_line.options import Customer, Ticket
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option


@verb("Tickets", "ticket.open")
def open_ticket(
    command: Command,
    customer: Customer,
    title: Annotated[str, Option("the title", value="TEXT")],
    text: Annotated[str, Option("the description", value="TEXT", blank=True)] = "",
    changed: Annotated[
        str, Option("what the release changes for it, in the customer's language", value="TEXT", blank=True)
    ] = "",
    test: Annotated[str, Option("how the customer can try that", value="TEXT", blank=True)] = "",
) -> Answer:
    """Opens a ticket; the sign-off page shows what changed and how to test it."""
    from pipeline.workflow import tickets

    return tickets.open_ticket(
        command.session,
        customer=customer,
        title=title,
        text=text,
        changed=changed,
        test=test,
        dry_run=command.dry_run,
    )


@verb("Tickets", "ticket.show", changes=False)
def show_ticket(command: Command, customer: Customer, ticket: Ticket) -> Answer:
    """Shows a ticket with its deployments, decisions and rollbacks."""
    from pipeline.workflow import tickets

    return tickets.show_ticket(command.session, customer=customer, ticket=ticket)


@verb("Tickets", "ticket.close")
def close_ticket(command: Command, customer: Customer, ticket: Ticket) -> Answer:
    """Closes a ticket."""
    from pipeline.workflow import tickets

    return tickets.close_ticket(command.session, customer=customer, ticket=ticket, dry_run=command.dry_run)
