"""Verbs that only look."""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated

from pipeline.command_line.options import AnyCustomer, Customer, a_past_time
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option


@verb("See what is what", "status", changes=False)
def status(
    command: Command,
    customer: AnyCustomer = None,
    at: Annotated[
        date | datetime | None,
        Option(
            "a past day (its end) or time, on the customer's clock unless a zone is given; now by default",
            value="2026-11-22",
            convert=a_past_time,
        ),
    ] = None,
) -> Answer:
    """Shows who runs what, where, since when, and waiting for whom; now or at any past date."""
    from pipeline.workflow import overview

    return overview.status(command.session, customer=customer, at=at)


@verb("See what is what", "history", changes=False)
def history(command: Command, customer: Customer) -> Answer:
    """Shows every record of a customer, newest first."""
    from pipeline.workflow import overview

    return overview.history(command.session, customer=customer)
