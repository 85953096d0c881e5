"""Who runs what, where, since when, waiting for whom; and everything that was ever recorded.

``status`` must be there at once, for one customer and for thousands: it reads the tips of the ledgers
(:mod:`pipeline.standing`) and the names of files (:mod:`pipeline.glance`), and imports neither the models nor Pydantic
unless something is not plainly right or an older pipeline wrote last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import Unreachable
from pipeline.glance import CustomerGlance, Glance, glance
from pipeline.repository import Repository
from pipeline.standing import Standing, Waiting, parsed, standing
from pipeline.workflow.session import Session, end_of_day

if TYPE_CHECKING:
    from pipeline.model import Customer
    from pipeline.settings import LoadedCustomer
    from pipeline.state import State

MANY = 100
"""Customers up to which each is told by itself; of more, only what needs attention is, and the rest is counted."""

_COUNTED = 40
_NOTES = 200


class _Looked(NamedTuple):
    """One customer as it was found."""

    key: str
    product: str
    environments: tuple[str, ...]
    where: Standing
    waits: str

    def rows(self) -> Iterator[dict[str, Any]]:
        for key in self.environments:
            here = self.where.installed.get(key)
            yield {
                "customer": self.key,
                "product": self.product,
                "environment": key,
                "release": here.release if here else None,
                "since": f"{here.at[:10]} {here.at[11:16]}Z" if here else None,
                "by": here.by if here else None,
                "deployment": here.deployment if here else None,
                "content": here.content if here else None,
                "tickets": list(here.tickets) if here else [],
                "note": self.where.notes.get(key, ""),
            }


@dataclass(frozen=True)
class Look:
    """The result of a verb that only looks; not a model, so that it costs no import."""

    what: str
    changed: bool = False

    @property
    def next_commands(self) -> tuple[str, ...]:
        """Nothing: a look leads to no command."""
        return ()

    in_order = False

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """The fields by name."""
        return dict(vars(self))


@dataclass(frozen=True)
class StatusResult(Look):
    """A row a customer and environment, then what each customer waits for."""

    at: str | None = None
    found: tuple[_Looked, ...] = ()

    @cached_property
    def rows(self) -> tuple[dict[str, Any], ...]:
        """What is installed on each environment of each customer, and what there needs attention."""
        return tuple(row for one in self.found for row in one.rows())

    @cached_property
    def waiting(self) -> dict[str, str]:
        """What each customer waits for, in words."""
        return {one.key: one.waits for one in self.found}

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "what": self.what, "changed": self.changed, "at": self.at, "rows": self.rows, "waiting": self.waiting
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The table, what needs attention, and who waits for what."""
        title = [f"as of {self.at}"] if self.at else []
        notes = [
            f"  {key} of {one.key}: {one.where.notes[key]}"
            for one in self.found
            for key in one.environments
            if key in one.where.notes
        ]
        if len(self.found) > MANY:
            return [*title, *self._counted(notes)]
        table: list[tuple[str, ...]] = [("customer", "product", "environment", "release", "since", "by", "deployment")]
        table += [tuple(row[name] or "—" for name in table[0]) for row in self.rows]
        waits = [f"  {customer}: {what}" for customer, what in self.waiting.items()]
        return [*title, *_columns(table), *_attention(notes), "", "waiting for:", *waits]

    def _counted(self, notes: Sequence[str]) -> list[str]:
        """As much as a person can read of thousands."""
        counts: Counter[tuple[str, str, str]] = Counter()
        for one in self.found:
            for key in one.environments:
                here = one.where.installed.get(key)
                counts[one.product, key, here.release if here else "—"] += 1
        kinds = Counter(WAITED[one.where.waiting.kind] for one in self.found)
        rows = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0]))
        table = [("product", "environment", "release", "customers")]
        table += [(*group, str(number)) for group, number in rows[:_COUNTED]]
        left = [f"… and {len(rows) - _COUNTED} more of these rows"] if len(rows) > _COUNTED else []
        hidden = [f"  … and {len(notes) - _NOTES} more"] if len(notes) > _NOTES else []
        waits = [f"  {number:>6} for {what}" for what, number in sorted(kinds.items(), key=_most)]
        return [
            self.what,
            "",
            *_columns(table),
            *left,
            *_attention([*notes[:_NOTES], *hidden]),
            "",
            "waiting, each for:",
            *waits,
            "",
            "one of them: invoke status customer=CUSTOMER      all: invoke status --json",
        ]


WAITED: Mapping[str, str] = {
    "line": "the line to be started",
    "release": "a first release",
    "rolled-back": "a new release, after a rollback",
    "deploy": "a deployment to test",
    "deploy-any": "a deployment to test",
    "sign-off": "the customer's sign-off",
    "rejected": "a new release, after a rejection",
    "blocking": "a new release, after a blocking reservation",
    "promote": "the promotion of what was signed off",
    "nothing": "nothing",
}
"""What customers wait for, in the words for a number of them."""


@dataclass(frozen=True)
class HistoryResult(Look):
    """Every record of a customer, newest first."""

    customer: str = ""
    records: tuple[dict[str, Any], ...] = ()

    def lines(self) -> list[str]:
        """Two lines a record."""
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
    seen = glance(session.folder)
    found = None if seen is None or at is not None else _at_a_glance(session, seen, customer)
    looked = tuple(found if found is not None else _in_full(session, customer, at))
    return StatusResult(what=f"{len(looked)} customer(s)", at=at.isoformat() if at else None, found=looked)


def waits_for(customer: Customer, state: State) -> str:
    """Who has to do what next for this customer, in words."""
    return standing(state).waiting.sentence(customer.approvers, customer.time_zone)


def history(session: Session, *, customer: str) -> HistoryResult:
    """Every record of a customer in words, newest first."""
    from pipeline.trackers.ledger import sentence

    dossier = session.dossier(customer, deciding=False)
    _fresh(session, dossier.repository, customer)
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
    return HistoryResult(what=f"{len(records)} record(s) of {customer}", customer=customer, records=records)


def _at_a_glance(session: Session, seen: Glance, only: str | None) -> list[_Looked] | None:
    """The customers without a model, or None where that cannot be done."""
    if only is not None:
        environments = seen.environments(only)
        customers = None if environments is None else {only: environments}
    else:
        customers = seen.customers()
    if not customers:
        return None
    # What customer.yaml adds (names, the clock) is worth a look where few are shown, and needed with several repositories.
    wanted = customers if len(customers) <= MANY or len(seen.installations) > 1 else ()
    said = {key: seen.customer(key) for key in wanted}
    if None in said.values():
        return None
    names = {key: one.installations or seen.installations[0].name for key, one in said.items() if one is not None}
    by_repository: dict[str, list[str]] = {}
    for key in customers:
        by_repository.setdefault(names.get(key, seen.installations[0].name), []).append(key)
    found: dict[str, Standing] = {}
    for entry in seen.installations:
        if entry.name in by_repository:
            repository = session.open_repository(entry.name, entry.path, entry.remote, seen.work)
            _fresh(session, repository, only)
            found |= _standings(repository, by_repository[entry.name])
    looked = []
    for key, environments in customers.items():
        one = _looked(seen, key, environments, found[key], said.get(key))
        if one is None:
            return None
        looked.append(one)
    return looked


def _looked(
    seen: Glance, key: str, environments: tuple[str, ...], where: Standing, said: CustomerGlance | None
) -> _Looked | None:
    if said is None and where.product is None:
        said = seen.customer(key)
        if said is None:
            return None
    try:
        waits = where.waiting.sentence(said.approvers, said.time_zone) if said else where.waiting.sentence()
    except (LookupError, ValueError, OSError):  # no such time zone: said in full by the full reading
        return None
    return _Looked(key, (said.product if said else where.product) or "", environments, where, waits)


def _standings(repository: Repository, customers: Sequence[str]) -> dict[str, Standing]:
    """Where these customers stand, by the tips of their ledgers; from the state where a tip does not say it."""
    refs = {key: f"refs/heads/{key}/ledger" for key in customers}
    # Git compares every ref with every pattern that it is given.
    messages = repository.messages(*(refs.values() if len(refs) <= MANY else ("refs/heads/*/ledger",)))
    found = {key: parsed(messages[ref]) for key, ref in refs.items() if ref in messages}
    silent = [key for key, where in found.items() if where is None]
    states = {key: standing(state) for key, state in _states(repository, silent)} if silent else {}
    nothing = Standing(None, {}, {}, Waiting("line"))
    return {key: states.get(key) or found.get(key) or nothing for key in customers}


def _states(repository: Repository, customers: Sequence[str]) -> Iterator[tuple[str, State]]:
    """The states of these customers, with one git process for all that were folded by this pipeline."""
    from pipeline.ledger import Ledger
    from pipeline.record_format import parse_state
    from pipeline.state import State

    names = {f"refs/heads/{key}/ledger:state.json": key for key in customers}
    for name, data in repository.read_stream(names):
        key = names[name]
        state = parse_state(data, key) if data is not None else State(customer=key)
        yield key, state or Ledger(repository, key).state()


def _in_full(session: Session, only: str | None, at: date | datetime | None) -> Iterator[_Looked]:
    """The customers by way of the whole configuration: at a past instant, or because something is to be complained of."""
    keys = [only] if only else list(session.workspace.customers)
    loaded = [session.workspace.customer(key) for key in keys]
    found: dict[str, Standing] = {}
    for name in dict.fromkeys(one.customer.installations for one in loaded):
        ours = [one.customer for one in loaded if one.customer.installations == name]
        repository = session.repository(name)
        _fresh(session, repository, only)
        if at is None:
            found |= _standings(repository, [customer.key for customer in ours])
        else:
            found |= {customer.key: standing(_state_at(repository, customer, at)) for customer in ours}
    for one in loaded:
        yield _from_configuration(one, found[one.customer.key])


def _from_configuration(loaded: LoadedCustomer, where: Standing) -> _Looked:
    customer = loaded.customer
    waits = where.waiting.sentence(customer.approvers, customer.time_zone)
    return _Looked(customer.key, customer.product, tuple(loaded.environments), where, waits)


def _state_at(repository: Repository, customer: Customer, at: date | datetime) -> State:
    from zoneinfo import ZoneInfo

    from pipeline.ledger import Ledger

    instant = at if isinstance(at, datetime) else end_of_day(at, customer).replace(second=59)
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=ZoneInfo(customer.time_zone))
    return Ledger(repository, customer.key).state_at(instant.astimezone(UTC))


def _fresh(session: Session, repository: Repository, customer: str | None = None) -> None:
    """Fetches what the remote has; where that cannot be reached, the mirror stays, with a word on how old it is."""
    if repository.remote is None:
        return
    try:
        repository.fetch(customer)
    except Unreachable as error:
        seen = repository.fetched_at()
        age = f"{seen:%Y-%m-%d %H:%MZ}" if seen else "never"
        session.progress(f"note: {error.what}; this is the mirror of this machine, last fetched: {age}")


def _columns(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _attention(notes: Iterable[str]) -> list[str]:
    listed = list(notes)
    return ["", "attention:", *listed] if listed else []


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
