"""A database as it is now, beside what the ledger says of it: its schema, and its migration history."""

from __future__ import annotations

import json
from collections.abc import Iterator

from pipeline.databases import Catalogue
from pipeline.databases.catalogues import differences
from pipeline.errors import NotKnown, Reason, Refused
from pipeline.workflow.databases import committed
from pipeline.workflow.migrations import Place, opened
from pipeline.workflow.outcomes import mirrored
from pipeline.workflow.session import Dossier, Result, Session

SHOWN = 50
"""Differences that an error names; ``--json`` has all."""


class SchemaDrift(Result):
    """That nothing differs; ``compared`` says with what the schema was compared, None where nothing is recorded yet."""

    customer: str
    environment: str
    compared: str | None
    scripts: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        return [self.what, *(f"  note: {note}" for note in self.notes)]


def schema_drift(session: Session, *, customer: str, environment: str, against: str | None = None) -> SchemaDrift:
    """That the database is as the last deployment left it; Refused (exit 4) with every difference. Changes nothing.

    Compared are the schema with the catalogue that was recorded after the last deployment with migrations there (or on the
    environment ``against``), and the history with what the ledger says was applied. NotKnown where ``against`` has none.
    """
    with opened(session, customer, environment, None, deciding=False) as place:
        dossier, state = place.dossier, place.state
        if against is not None:
            dossier.environment(against)
        recorded = recorded_catalogue(dossier, state.environment(against or environment).catalogue)
        if against is not None and recorded is None:
            raise NotKnown(
                f"of {against} of {customer} no schema is recorded: no deployment there had migrations",
                next_commands=[f"invoke migrate.drift customer={customer} env={environment}"],
            )
        found = list(differences(recorded, place.database.catalogue())) if recorded is not None else []
        histories = [] if against is not None else [*_rows(place), *_events(place)]
        rows = len(place.history)
    there = f"as recorded of {against}" if against else "as the last deployment with migrations left it"
    if found or histories:
        reasons = [Reason(line, "schema") for line in found] + [Reason(line, "history") for line in histories]
        more = len(reasons) - SHOWN
        unknown = any("the ledger does not know" in line for line in histories)
        raise Refused(
            f"the database of {environment} of {customer} is not {there}: {len(reasons)} difference(s).",
            reasons=[*reasons[:SHOWN], *([Reason(f"and {more} more, which --json lists")] if more > 0 else [])],
            next_commands=[f"invoke migrate.baseline customer={customer} env={environment} reason=…"]
            if unknown
            else [f"invoke plan customer={customer} env={environment}"],
            details={"environment": environment, "schema": found, "history": histories},
        )
    notes = () if recorded is not None else ("no schema is recorded yet: the next deployment with migrations does",)
    return SchemaDrift(
        changed=False,
        what=f"the database of {environment} of {customer} is {there}: {rows} script(s) in its history",
        customer=customer,
        environment=environment,
        compared=there if recorded is not None else None,
        scripts=rows,
        notes=notes,
    )


def recorded_catalogue(dossier: Dossier, sha256: str | None) -> Catalogue | None:
    """A catalogue that a record keeps, by its SHA-256; None where there is none."""
    data = dossier.ledger.configuration(sha256) if sha256 else None
    found: Catalogue | None = None if data is None else json.loads(data)
    return found


def _rows(place: Place) -> Iterator[str]:
    """What the history's rows and the ledger's mirror of them do not agree on."""
    mirror = place.state.environment(place.environment.key).applied
    rows = {row.script: row for row in place.history}
    for script, row in rows.items():
        if row.state == "running":
            yield f"{script} was begun and not finished: {committed(row)}"
        elif script not in mirror:
            yield f"{script} is in the database's history ({row.release}, {row.state}), and the ledger does not know of it"
        elif mirror[script] != row.checksum:
            yield f"{script} is {row.checksum[:12]} in the database's history, and {mirror[script][:12]} in the ledger"
    for script in mirror:
        if script not in rows:
            yield f"{script} was applied as the ledger says, and is not in the database's history"


def _events(place: Place) -> Iterator[str]:
    """Events that a record of a deployment there names, and that the database's history lacks, or has otherwise.

    What a restore rewound is missing too: it is said by the rows.
    """
    there = {event.number: mirrored(event) for event in place.database.events()}
    if any(event["what"] == "restored" for event in there.values()):
        return
    for record in place.dossier.ledger.records():
        if record.environment != place.environment.key:
            continue
        for event in record.details.get("events", ()):
            seen = there.get(event["number"])
            if seen != event:
                said = "lacks it" if seen is None else f"has {seen['what']} {seen['script']} instead"
                yield f"event {event['number']} ({event['what']} {event['script']}): the database's history {said}"
