"""The options that several verbs share, and how typed text becomes what the workflow takes."""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

from pipeline.command_line.words import Option


def a_file(text: str) -> Path:
    """An absolute path; relative ones start from the current folder, of which the workflow knows nothing."""
    return Path(text).expanduser().absolute()


def an_existing_file(text: str) -> Path:
    """The absolute path of a file that can be read; ValueError otherwise."""
    path = a_file(text)
    if not path.is_file():
        raise ValueError(f"names no file: {path}")
    return path


def a_day(text: str) -> date:
    """A date as 2026-11-30 (ISO 8601); ValueError otherwise."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise ValueError(f"is a day written as 2026-11-30, not {text!r}")
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"names no day of the calendar: {text}") from None


def a_moment(text: str) -> datetime:
    """An instant as '2026-12-02 20:00' or 2026-12-02T20:00:00Z (ISO 8601), naive without a zone; ValueError otherwise."""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise ValueError(f"has no time: write the day and the time, for instance '{text} 20:00'")
    if not re.match(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}", text):
        raise ValueError(f"is a day and a time written as '2026-12-02 20:00', not {text!r}")
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"is no day and time: {text}") from None


def a_past_time(text: str) -> date | datetime:
    """A day, or an instant as :func:`a_moment`; ValueError otherwise."""
    if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return a_day(text)
    if re.match(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}", text):
        return a_moment(text)
    raise ValueError(f"is a day written as 2026-11-30, or with a time as '2026-11-30 20:00', not {text!r}")


Customer = Annotated[str, Option("the customer's key: its folder under environments/", value="CUSTOMER")]
AnyCustomer = Annotated[str | None, Option("only this customer; all of them by default", value="CUSTOMER")]
Version = Annotated[str, Option("a version of the product that product.import has brought in", value="VERSION")]
Tickets = Annotated[
    tuple[str, ...], Option("the tickets that it belongs to, with commas between", value="A,B", several=True)
]
Ticket = Annotated[str, Option("the ticket's id, for instance ACME-1", value="TICKET")]
ReleaseName = Annotated[
    str | None, Option("the release, for instance 2.4.0+1; by default the one that is next there", value="RELEASE")
]
Merged = Annotated[
    str | None, Option("the commit in which you resolved the conflict that was reported", value="COMMIT")
]
Reason = Annotated[str, Option("why, in a sentence; it is recorded", value="TEXT")]
