"""The embedded tracker's minimum: open, show, close."""

from __future__ import annotations

from typing import Any

from pipeline import wiring
from pipeline.errors import NotKnown, Refused, UsageError
from pipeline.model import Draft
from pipeline.state import State
from pipeline.suggest import did_you_mean
from pipeline.workflow.session import Dossier, Result, Session


class TicketResult(Result):
    """One ticket with its texts (None where erased) and its events, oldest first."""

    customer: str
    ticket: str
    state: str
    title: str | None
    text: str | None = None
    changed_text: str | None = None
    how_to_test: str | None = None
    events: tuple[dict[str, Any], ...] = ()

    def lines(self) -> list[str]:
        erased = "(erased)"
        lines = [] if self.what == f"ticket {self.ticket}" else [self.what]
        lines.append(f"{self.ticket}  {self.state}  {self.title or erased}")
        if self.text:
            lines.append(f"  {self.text}")
        if self.changed_text:
            lines.append(f"  what changed: {self.changed_text}")
        if self.how_to_test:
            lines.append(f"  how to test:  {self.how_to_test}")
        lines += [f"  {event['at']}  {event['what']}  [{event['record']}]" for event in self.events]
        return lines


def open_ticket(
    session: Session,
    *,
    customer: str,
    title: str,
    text: str = "",
    changed: str = "",
    test: str = "",
    dry_run: bool = False,
) -> TicketResult:
    """A new ticket: ``changed`` says what the release changes for it, ``test`` how the customer can try that."""
    dossier = session.dossier(customer)
    if not title.strip():
        raise UsageError("a ticket needs a title", next_commands=[f"invoke ticket.open customer={customer} title=…"])
    tracker = wiring.tracker_for(dossier.customer)
    run = session.new_run()
    made: list[str] = []

    def decide(state: State) -> list[Draft]:
        number = tracker.next_id(state)
        made[:] = [number]
        texts = {"title": title, "text": text, "changed": changed, "test": test}
        return [
            Draft(
                id=f"{run}-ticket-opened-1",
                run=run,
                kind="ticket-opened",
                at=session.now(),
                product=dossier.customer.product,
                tickets=dossier.tickets([number]),
                texts={name: value for name, value in texts.items() if value}
                | {"people": dossier.people_used(session.actor.key)},
            )
        ]

    if dry_run:
        decide(dossier.state())
    else:
        dossier.ledger.append(session.signer, decide)
    return TicketResult(
        changed=not dry_run,
        what=f"ticket {made[0]} {'would be ' if dry_run else ''}opened for {customer}",
        customer=customer,
        ticket=made[0],
        state="new",
        title=title,
        text=text or None,
        changed_text=changed or None,
        how_to_test=test or None,
        next_commands=(f"invoke release customer={customer} version=… ticket={made[0]}",),
    )


def show_ticket(session: Session, *, customer: str, ticket: str) -> TicketResult:
    """A ticket with everything that was recorded for it."""
    dossier = session.dossier(customer, deciding=False)
    return _shown(dossier, ticket, changed=False, what=f"ticket {ticket}")


def close_ticket(session: Session, *, customer: str, ticket: str, dry_run: bool = False) -> TicketResult:
    """Closes a ticket; closing it twice changes nothing."""
    dossier = session.dossier(customer)
    _known(dossier, dossier.state(), ticket)
    run = session.new_run()

    def decide(state: State) -> list[Draft]:
        if state.tickets[ticket].state == "closed":
            return []
        for key, environment in state.environments.items():
            running = environment.running
            if running is not None and any(reference.id == ticket for reference in running.tickets):
                raise Refused(f"ticket {ticket} cannot be closed: deployment {running.deployment} on {key} names it")
        return [
            Draft(
                id=f"{run}-ticket-closed-1",
                run=run,
                kind="ticket-closed",
                at=session.now(),
                product=dossier.customer.product,
                tickets=dossier.tickets([ticket]),
                texts={"people": dossier.people_used(session.actor.key)},
            )
        ]

    if dry_run:
        changed = bool(decide(dossier.state()))
        outcome = "would be closed" if changed else "is closed already"
        return _shown(dossier, ticket, changed=False, what=f"ticket {ticket} {outcome}")
    changed = bool(dossier.ledger.append(session.signer, decide))
    shown = _shown(
        dossier, ticket, changed=changed, what=f"ticket {ticket} is closed" + ("" if changed else " already")
    )
    return shown.model_copy(update={"next_commands": (f"invoke status customer={customer}",)})


def _known(dossier: Dossier, state: State, ticket: str) -> None:
    if ticket not in state.tickets:
        raise NotKnown(
            f"{dossier.key} has no ticket {ticket!r}{did_you_mean(ticket, state.tickets)}",
            next_commands=[f"invoke ticket.open customer={dossier.key} title=…"],
        )


def _shown(dossier: Dossier, ticket: str, *, changed: bool, what: str) -> TicketResult:
    state = dossier.state()
    _known(dossier, state, ticket)
    found = wiring.tracker_for(dossier.customer).get(state, dossier.ledger, ticket)
    return TicketResult(
        changed=changed,
        what=what,
        customer=dossier.key,
        ticket=ticket,
        state=found.state,
        title=found.title,
        text=found.text,
        changed_text=found.changed,
        how_to_test=found.how_to_test,
        events=found.events,
    )
