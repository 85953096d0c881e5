"""The embedded tracker: tickets in the customer's own ledger, so that the pipeline works with nothing installed.

A ticket's history is every record that names it: a deployment or a decision needs no second entry to be on its ticket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.ledger import Ledger
from pipeline.model import Customer, Noun, Record
from pipeline.state import EVERY_SCRIPT, State


class TicketView(Noun):
    """A ticket with its texts (None where there is none or it was erased) and its events, oldest first."""

    id: str
    state: str
    title: str | None
    text: str | None
    changed: str | None
    how_to_test: str | None
    events: tuple[dict[str, Any], ...]


class LedgerTracker:
    """Tickets of one customer. Ids are the customer's prefix and a number: ``ACME-7``."""

    name = "ledger"

    def __init__(self, customer: Customer) -> None:
        self.customer = customer

    def next_id(self, state: State) -> str:
        """The id that the next ticket gets."""
        prefix = self.customer.ticket_prefix or self.customer.key.replace("-", "").upper()[:8]
        return f"{prefix}-{len(state.tickets) + 1}"

    def unknown(self, state: State, ids: Sequence[str]) -> list[str]:
        """Those of ``ids`` that this tracker does not have."""
        return [id for id in ids if id not in state.tickets]

    def get(self, state: State, ledger: Ledger, id: str) -> TicketView:
        """The ticket; KeyError when it is not known."""
        ticket = state.tickets[id]

        def text(name: str) -> str | None:
            return ledger.text(ticket.texts[name]) if name in ticket.texts else None

        records = [r for r in reversed(ledger.records()) if any(reference.id == id for reference in r.tickets)]
        return TicketView(
            id=id,
            state=ticket.state,
            title=text("title"),
            text=text("text"),
            changed=text("changed"),
            how_to_test=text("test"),
            events=tuple({"at": f"{r.at:%Y-%m-%dT%H:%M:%SZ}", "record": r.id, "what": sentence(r)} for r in records),
        )


def sentence(record: Record) -> str:
    """One record in words, as a ticket's history and ``history`` show it."""
    details, by = record.details, record.actor.key
    match record.kind:
        case "line-started":
            return f"{by} started the line from {record.product} {details['version']}"
        case "release-made":
            return f"{by} made release {record.release}"
        case "patch-made":
            return f"{by} made patch {details['patch']} on {details['base']}: release {record.release}"
        case "ticket-opened":
            return f"{by} opened ticket {record.tickets[0].id}"
        case "ticket-closed":
            return f"{by} closed ticket {record.tickets[0].id}"
        case "deployment-started":
            return f"{by} began {_deployment(record)}"
        case "deployment-partly-done":
            hosts = ", ".join(f"{host} runs {release or 'nothing'}" for host, release in details["hosts"].items())
            return f"{_deployment(record)}: partly done; {hosts}"
        case "deployment-finished":
            outcome = {"ok": "done", "failed": "failed", "unknown": "outcome unknown"}[record.outcome or "unknown"]
            tail = ""
            if record.outcome == "failed":
                back = details.get("back_to")
                tail = f"; {back} serves again" if back else "; nothing was installed before"
                if details.get("quarantined"):
                    tail = "; the way back failed: quarantined"
                elif details.get("restored"):
                    tail += " on the database as it was before"
            return f"{_deployment(record)}: {outcome}{tail}"
        case "sign-off-requested":
            return f"{by} asked for the sign-off of {record.release}"
        case "sign-off-page-written":
            return f"{by} wrote the sign-off page of {record.release}"
        case "sign-off-recorded":
            return f"{details['by']} decided on {record.release}: {details['decision']} (entered by {by})"
        case "migration-accepted" if details["script"] == EVERY_SCRIPT:
            return f"{by} accepted that the database of {record.environment} was replaced"
        case "migration-accepted":
            return f"{by} accepted the edit of migration {details['script']}"
        case "migrations-baselined":
            return f"{by} had {len(details['scripts'])} migration(s) count as applied on {record.environment}"
        case "migration-repaired":
            found = {"resume": "to be resumed", "done": "done", "reverted": "reverted"}[details["what"]]
            return f"{by} found migration {details['script']} of {record.environment} {found}"
        case "backup-made":
            return f"{by} made backup {details['label']} of {record.environment}"
        case "backup-proven":
            return f"{by} proved backup {details['label']} of {record.environment}"
        case "backup-restored" if "deployment" in details:
            return f"{_deployment(record)}: the way back restores backup {details['backups'][0]['label']}"
        case "backup-restored":
            outcome = {"ok": "restored", "failed": "could not restore", None: "began to restore"}[record.outcome]
            return f"{by} {outcome} backup {details['label']} on {record.environment}"
        case "lock-released":
            return f"{by} released the lock of {record.environment}"
        case "erased":
            return f"{by} had {details.get('count', 0)} text(s) erased"


def _deployment(record: Record) -> str:
    details = record.details
    return f"deployment {details['deployment']} ({details['purpose']}) of {record.release} on {record.environment}"
