"""Who runs what, where, since when, waiting for whom; and everything that was ever recorded."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from pipeline.errors import Unreachable
from pipeline.ledger import Ledger
from pipeline.model import Customer
from pipeline.record_format import parse_state
from pipeline.repository import Repository
from pipeline.state import State
from pipeline.trackers.ledger import sentence
from pipeline.workflow.session import Result, Session, end_of_day


class StatusResult(Result):
    """A row a customer and environment, then what each customer waits for."""

    at: str | None
    rows: tuple[dict[str, Any], ...]
    waiting: dict[str, str]

    def lines(self) -> list[str]:
        table = [("customer", "product", "environment", "release", "since", "by", "deployment")]
        table += [
            (
                r["customer"],
                r["product"],
                r["environment"],
                r["release"] or "—",
                r["since"] or "—",
                r["by"] or "—",
                r["deployment"] or "—",
            )
            for r in self.rows
        ]
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        notes = [f"  {r['environment']} of {r['customer']}: {r['note']}" for r in self.rows if r["note"]]
        waits = [f"  {customer}: {what}" for customer, what in self.waiting.items()]
        title = f"as of {self.at}" if self.at else None
        return [
            *([title] if title else []),
            *lines,
            *(["", "attention:", *notes] if notes else []),
            "",
            "waiting for:",
            *waits,
        ]


class HistoryResult(Result):
    """Every record of a customer, newest first."""

    customer: str
    records: tuple[dict[str, Any], ...]

    def lines(self) -> list[str]:
        lines = []
        for record in self.records:
            lines.append(f"{record['at']}  {record['what']}")
            marks = [record["id"]]
            if record["tickets"]:
                marks.append("tickets " + ", ".join(record["tickets"]))
            if record["content"]:
                marks.append("content " + record["content"][:12])
            lines.append("    " + "  ".join(marks))
        return lines or [f"{self.customer} has no records yet"]


def status(session: Session, *, customer: str | None = None, at: date | datetime | None = None) -> StatusResult:
    """What is installed everywhere, now or as it was at an instant (a date: at the end of that day, customer's clock)."""
    customers = [customer] if customer else list(session.workspace.customers)
    rows: list[dict[str, Any]] = []
    waiting: dict[str, str] = {}
    for loaded, state in _states(session, customers, at):
        for key in session.workspace.customer(loaded.key).environments:
            here = state.environment(key)
            note = ""
            if here.quarantined:
                note = f"quarantined since deployment {here.quarantined}"
            elif here.running:
                note = f"deployment {here.running.deployment} of {here.running.release} has no outcome yet"
            elif here.failed:
                note = f"deployment {here.failed} failed"
            rows.append(
                {
                    "customer": loaded.key,
                    "product": loaded.product,
                    "environment": key,
                    "release": here.installed.release if here.installed else None,
                    "since": f"{here.installed.at:%Y-%m-%d %H:%MZ}" if here.installed else None,
                    "by": here.installed.by if here.installed else None,
                    "deployment": here.installed.deployment if here.installed else None,
                    "content": here.installed.content if here.installed else None,
                    "tickets": [ticket.id for ticket in here.installed.tickets] if here.installed else [],
                    "note": note,
                }
            )
        waiting[loaded.key] = waits_for(loaded, state)
    moment = at.isoformat() if at else None
    return StatusResult(
        changed=False, what=f"{len(customers)} customer(s)", at=moment, rows=tuple(rows), waiting=waiting
    )


def waits_for(customer: Customer, state: State) -> str:
    """Who has to do what next for this customer, in words."""
    newest, sign_off = state.newest_release(), state.sign_off
    on_test, running = state.environment("test").installed, state.environment("production").installed
    if state.version is None:
        return "its line to be started (line.start)"
    if newest is None:
        return "a first release (release)"
    if newest.name in {*state.environment("test").left, *state.environment("production").left}:
        return f"a new release: {newest.name} was rolled back from"
    if on_test is None or (on_test.release != newest.name and (running is None or running.release != newest.name)):
        return f"{newest.name} to be deployed to test (deploy)"
    if sign_off is None or sign_off.status == "superseded":
        return "a release to be deployed to test (deploy)"
    if sign_off.status == "open":
        due = f" by {sign_off.due.astimezone(ZoneInfo(customer.time_zone)):%Y-%m-%d}" if sign_off.due else ""
        return f"the sign-off of {sign_off.release} by {' or '.join(customer.approvers)}{due}"
    if sign_off.status == "rejected":
        return f"a new release: {sign_off.by} rejected {sign_off.release}"
    if sign_off.blocking:
        return f"a new release: {sign_off.by} approved {sign_off.release} with a blocking reservation"
    if running is None or running.release != sign_off.release:
        return f"the promotion of {sign_off.release}, signed off by {sign_off.by} (promote)"
    return "nothing"


def history(session: Session, *, customer: str) -> HistoryResult:
    """Every record of a customer in words, newest first."""
    dossier = session.dossier(customer, deciding=False)
    _fresh(session, dossier.customer.installations)
    records = tuple(
        {
            "id": record.id,
            "number": record.number,
            "at": f"{record.at:%Y-%m-%d %H:%M:%SZ}",
            "kind": record.kind,
            "what": sentence(record),
            "by": record.actor.key,
            "environment": record.environment,
            "release": record.release,
            "content": record.content,
            "outcome": record.outcome,
            "tickets": [ticket.id for ticket in record.tickets],
            "details": record.details,
        }
        for record in dossier.ledger.records()
    )
    return HistoryResult(
        changed=False, what=f"{len(records)} record(s) of {customer}", customer=customer, records=records
    )


def _states(session: Session, customers: list[str], at: date | datetime | None) -> Iterator[tuple[Customer, State]]:
    loaded = [session.workspace.customer(key).customer for key in customers]
    if at is not None:
        for one in loaded:
            instant = at if isinstance(at, datetime) else end_of_day(at, one).replace(second=59)
            if instant.tzinfo is None:
                instant = instant.replace(tzinfo=ZoneInfo(one.time_zone))
            ledger = Ledger(_fresh(session, one.installations), one.key)
            yield one, ledger.state_at(instant.astimezone(UTC))
        return
    # One git process a repository, however many customers it holds.
    names = {one.key: f"refs/heads/{one.key}/ledger:state.json" for one in loaded}
    by_repository: dict[str | None, list[str]] = {}
    for one in loaded:
        by_repository.setdefault(one.installations, []).append(names[one.key])
    found: dict[str, bytes | None] = {}
    for repository, wanted in by_repository.items():
        found |= _fresh(session, repository).read_many(wanted)
    for one in loaded:
        data = found[names[one.key]]
        state = parse_state(data, one.key) if data is not None else State(customer=one.key)
        yield one, state or Ledger(session.repository(one.installations), one.key).state()


def _fresh(session: Session, name: str | None) -> Repository:
    """The repository with what the remote has; where that cannot be reached, the mirror, and a word on how old it is."""
    repository = session.repository(name)
    if repository.remote is None:
        return repository
    try:
        repository.fetch()
    except Unreachable as error:
        seen = repository.fetched_at()
        age = f"{seen:%Y-%m-%d %H:%MZ}" if seen else "never"
        session.progress(f"note: {error.what}; this is the mirror of this machine, last fetched: {age}")
    return repository
