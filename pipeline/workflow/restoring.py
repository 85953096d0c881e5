"""A way back that restores: announced before it begins, so that whoever goes on with the deployment only ever goes back."""

from __future__ import annotations

from typing import Any

from pipeline.lease import Held
from pipeline.model import Draft
from pipeline.state import State
from pipeline.workflow.gathering import Case
from pipeline.workflow.ground import Attempt


def announce(case: Case, attempt: Attempt, held: Held, backups: list[dict[str, Any]]) -> None:
    """Records that the way back of this attempt restores these backups; nothing of it is done yet."""
    dossier, session, key = case.dossier, case.dossier.session, case.environment.key

    def decide(state: State) -> list[Draft]:
        held.check()
        return [
            Draft(
                id=f"{attempt.run}-backup-restored-{attempt.fence}",
                run=attempt.run,
                kind="backup-restored",
                at=session.now(),
                product=dossier.customer.product,
                environment=key,
                release=case.release.name,
                content=case.content,
                tickets=dossier.tickets(case.tickets),
                texts={"people": dossier.people_used(session.actor.key)},
                details={"deployment": attempt.deployment, "purpose": case.purpose, "backups": backups},
            )
        ]

    dossier.ledger.append(session.signer, decide)
