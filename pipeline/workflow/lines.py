"""The customer's line: the product as this customer runs it, customisations included."""

from __future__ import annotations

from pathlib import Path

from pipeline.model import Draft
from pipeline.state import State
from pipeline.workflow.session import Result, Session


class LineResult(Result):
    """The line's product version and where it is."""

    customer: str
    version: str
    commit: str
    folder: str | None = None


def start_line(session: Session, *, customer: str, version: str, dry_run: bool = False) -> LineResult:
    """The line begins as the product version was delivered; customisations are ordinary commits on it from then on."""
    dossier = session.dossier(customer)
    product = dossier.customer.product
    run = session.new_run()
    made: list[tuple[str, bool]] = []

    def decide(_: State) -> list[Draft]:
        prepared = dossier.installation.start(product, version, author=session.signer.key, at=session.now())
        made[:] = [(prepared.commit, prepared.changed)]
        if not prepared.changed:
            return []
        return [
            Draft(
                id=f"{run}-line-started-1",
                run=run,
                kind="line-started",
                at=session.now(),
                product=product,
                moves=prepared.moves,
                configuration=dossier.configuration(),
                texts={"people": dossier.people_used(session.actor.key)},
                details={"version": version, "commit": prepared.commit},
            )
        ]

    if dry_run:
        decide(dossier.state())
    else:
        dossier.ledger.append(session.signer, decide)
    commit, changed = made[0]
    would = "would start" if dry_run else "starts"
    return LineResult(
        changed=changed and not dry_run,
        what=f"the line of {customer} {would} from {product} {version}"
        if changed
        else f"the line of {customer} is there",
        customer=customer,
        version=version,
        commit=commit,
        next_commands=(
            f"invoke line.checkout customer={customer}",
            f"invoke ticket.open customer={customer} title=…",
        ),
    )


def checkout_line(session: Session, *, customer: str, folder: Path | None = None, dry_run: bool = False) -> LineResult:
    """A work tree of the line, whose ``git push`` goes back to the installations repository."""
    dossier = session.dossier(customer)
    target = session.folder / folder if folder is not None else session.work / "lines" / customer
    version, _ = dossier.installation.held_version()
    tip = dossier.installation.line_tip()
    assert tip is not None
    path = target
    if not dry_run:
        target.parent.mkdir(parents=True, exist_ok=True)
        path = dossier.installation.checkout(target)
    return LineResult(
        changed=not dry_run,
        what=f"the line of {customer} ({dossier.customer.product} {version}) {'would be' if dry_run else 'is'} in {path}",
        customer=customer,
        version=version,
        commit=tip,
        folder=str(path),
        next_commands=(f"cd {path}, change, git commit, git push; then: invoke release customer={customer} …",),
    )
