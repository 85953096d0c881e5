"""Verbs about the customer's recorded decision."""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

from pipeline.command_line.options import Customer, a_day, a_file, a_moment, an_existing_file
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option, refuse
from pipeline.suggest import nearest

VERDICTS = ("works", "works-with-remark", "does-not-work", "not-tested")
SEVERITIES = ("blocking", "major", "minor")
_NEXT_VERDICT = re.compile(rf",\s*(?=[^,:\s]+:(?:{'|'.join(VERDICTS)})(?:[:,]|\s*$))")
_RESERVATION = re.compile(
    rf"(?P<severity>{'|'.join(SEVERITIES)}):(?P<date>\d{{4}}-\d{{2}}-\d{{2}}):(?P<text>.+)", re.DOTALL
)


def verdicts_of(text: str) -> dict[str, tuple[str, str | None]]:
    """``ACME-1:works,ACME-2:works-with-remark:slow`` as {ticket: (verdict, remark)}; ValueError when it is not that.

    A remark may hold commas and colons: a comma ends it only where a ticket and a verdict follow.
    """
    verdicts: dict[str, tuple[str, str | None]] = {}
    for piece in _NEXT_VERDICT.split(text):
        ticket, _, rest = piece.partition(":")
        verdict, _, remark = rest.partition(":")
        ticket, verdict = ticket.strip(), verdict.strip()
        if verdict not in VERDICTS or not ticket:
            raise ValueError(
                f"is TICKET:VERDICT or TICKET:VERDICT:REMARK with one of {', '.join(VERDICTS)}, not {piece!r}"
                + (_meant(verdict, VERDICTS) if ticket else "")
            )
        if ticket in verdicts:
            raise ValueError(f"names {ticket} twice")
        verdicts[ticket] = (verdict, remark.strip() or None)
    return verdicts


def reservation_of(text: str) -> dict[str, str]:
    """``minor:2026-12-24:the text`` as severity, date and text; ValueError when it is not that."""
    found = _RESERVATION.fullmatch(text.strip())
    if found is None or not found["text"].strip():
        meant = _meant(text.partition(":")[0].strip(), SEVERITIES)
        raise ValueError(f"is SEVERITY:DAY:TEXT with one of {', '.join(SEVERITIES)}, not {text!r}{meant}")
    a_day(found["date"])
    return {name: value.strip() for name, value in found.groupdict().items()}


def _meant(word: str, known: tuple[str, ...]) -> str:
    near = None if word in known else nearest(word, known)
    return f" (did you mean '{near}'?)" if near else ""


@verb("Have it signed off", "signoff.page")
def page(
    command: Command,
    customer: Customer,
    due: Annotated[
        date | None,
        Option("the day by which to decide; the customer's usual time by default", value="2026-11-30", convert=a_day),
    ] = None,
    planned: Annotated[
        datetime | None,
        Option(
            "when production is planned, on the customer's clock unless a zone is given",
            value="'2026-12-02 20:00'",
            convert=a_moment,
        ),
    ] = None,
    out: Annotated[
        Path | None, Option("where the page is written; under var/ by default", value="FILE", convert=a_file)
    ] = None,
) -> Answer:
    """Writes the sign-off page for what is on test: one HTML file in the customer's language."""
    from pipeline.workflow import sign_offs

    return sign_offs.write_page(
        command.session, customer=customer, due=due, planned=planned, out=out, dry_run=command.dry_run
    )


@verb("Have it signed off", "signoff.record")
def record(
    command: Command,
    customer: Customer,
    decision: Annotated[str, Option("approved, approved-with-reservations or rejected", value="DECISION")],
    by: Annotated[str, Option("who decided: the key of one of the customer's approvers", value="PERSON")],
    evidence: Annotated[
        Path, Option("the customer's mail or signed page; kept by its hash", value="FILE", convert=an_existing_file)
    ],
    release: Annotated[
        str | None, Option("the release that was decided on; refused when test holds another by now", value="RELEASE")
    ] = None,
    verdicts: Annotated[
        tuple[dict[str, tuple[str, str | None]], ...],
        Option(
            "per ticket: works, works-with-remark, does-not-work or not-tested, and a remark",
            value="A-1:works,A-2:works-with-remark:TEXT",
            convert=verdicts_of,
            several=True,
            separator=None,
        ),
    ] = (),
    reservations: Annotated[
        tuple[dict[str, str], ...],
        Option(
            "what is reserved: blocking, major or minor, the day by which it is to be mended, the text",
            value="minor:2026-12-24:TEXT",
            convert=reservation_of,
            several=True,
            separator=None,
        ),
    ] = (),
    reasons: Annotated[str, Option("the customer's reasons, in their own words", value="TEXT", blank=True)] = "",
) -> Answer:
    """Records the customer's decision on the release that is on test.

    The decision is bound to customer, release and content hash. It comes from a listed approver who is not the one who
    records it.
    """
    from pipeline.workflow import sign_offs

    merged: dict[str, tuple[str, str | None]] = {}
    for part in verdicts:
        twice = sorted(merged.keys() & part.keys())
        if twice:
            raise refuse(f"signoff.record: verdicts= names {twice[0]} twice")
        merged.update(part)
    return sign_offs.record_decision(
        command.session,
        customer=customer,
        decision=decision,
        by=by,
        verdicts={ticket: verdict for ticket, (verdict, _) in merged.items()},
        remarks={ticket: remark for ticket, (_, remark) in merged.items() if remark},
        reservations=reservations,
        reasons=reasons,
        evidence=evidence,
        release=release,
        dry_run=command.dry_run,
    )
