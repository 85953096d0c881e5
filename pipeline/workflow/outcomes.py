"""What became of an attempt, written into the ledger: what is installed now, and what was done to the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any
from zoneinfo import ZoneInfo

from pipeline import runner
from pipeline.content import canonical
from pipeline.errors import PartlyDone, Reason, Refused
from pipeline.host import Host
from pipeline.lease import Held
from pipeline.model import Draft, HistoryEvent, RefMove
from pipeline.state import State
from pipeline.steps import Unproven
from pipeline.workflow.databases import migrates, open_database
from pipeline.workflow.gathering import Case
from pipeline.workflow.ground import Attempt
from pipeline.workflow.session import end_of_day

CATALOGUES = {"before": "catalogue-before.json", "after": "catalogue.json"}
"""The names under which a record keeps what the schema was made of before and after its migrations."""


@dataclass(frozen=True)
class Migrated:
    """What the database itself says that one run, in all its attempts, has done to it.

    ``scripts`` are applied, with their checksums; of these ``covered`` did not run, since a new database's full schema
    stands for them, nor did ``asserted`` to their end: somebody said that they count. ``half_done`` were begun and not
    finished. ``events`` are those of the history, as JSON values.
    """

    scripts: dict[str, str]
    covered: tuple[str, ...] = ()
    asserted: tuple[str, ...] = ()
    half_done: tuple[str, ...] = ()
    events: tuple[dict[str, Any], ...] = ()


def migrated_in(case: Case, run: str) -> Migrated:
    """What this run has done to the database, as the database says."""
    if case.purpose == "rollback" or not migrates(case.environment, case.playbook):
        return Migrated({})
    first: Host = case.hosts[case.environment.hosts[0].name]
    database = open_database(case.dossier, case.environment, first)
    try:
        rows = [row for row in database.history() if row.run == run]
        events = database.events() if rows else []
    finally:
        database.close()
    last = {event.script: event.what for event in events}
    return Migrated(
        scripts={row.script: row.checksum for row in rows if row.state != "running"},
        covered=tuple(row.script for row in rows if row.state == "baseline"),
        asserted=tuple(row.script for row in rows if row.state == "done" and last.get(row.script) == "marked-done"),
        half_done=tuple(row.script for row in rows if row.state == "running"),
        events=tuple(mirrored(event) for event in events if event.run == run),
    )


def mirrored(event: HistoryEvent) -> dict[str, Any]:
    """An event of a database's history as the ledger keeps it."""
    return {"number": event.number, "what": event.what, "script": event.script, "checksum": event.checksum}


def _restore_needed(case: Case, migrated: Migrated) -> dict[str, Unproven]:
    """The scripts of this run after which only a restore lets the old code run, with the reason."""
    touched = {*migrated.scripts, *migrated.half_done}
    needed: dict[str, Unproven] = {s: kind for s, kind in case.plan.restore_needed.items() if s in touched}
    half: dict[str, Unproven] = {s: "unknown" for s in case.plan.restore_if_half if s in migrated.half_done}
    return half | needed


def write_partly(case: Case, attempt: Attempt, report: runner.Report, held: Held) -> None:
    """Records which host runs which release, where the playbook leaves the finished ones; the deployment stays open."""
    session, key = case.dossier.session, case.environment.key
    hosts = {name: case.release.name if name in report.left else case.plan.installed for name in case.hosts}
    assert report.error is not None
    error = session.conceal(report.error.render())

    def decide(state: State) -> list[Draft]:
        held.check()
        return [
            Draft(
                id=f"{attempt.run}-deployment-partly-done-{attempt.fence}",
                run=attempt.run,
                kind="deployment-partly-done",
                at=session.now(),
                product=case.dossier.customer.product,
                environment=key,
                release=case.release.name,
                content=case.content,
                tickets=case.dossier.tickets(case.tickets),
                texts={"people": case.dossier.people_used(session.actor.key), "error": error},
                details={
                    "deployment": attempt.deployment,
                    "purpose": case.purpose,
                    "started": attempt.record,
                    "hosts": hosts,
                },
            )
        ]

    case.dossier.ledger.append(session.signer, decide)


def write_outcome(case: Case, attempt: Attempt, report: runner.Report, migrated: Migrated, held: Held) -> str:
    """The id of the record of the outcome; with it move the environment's branch and, on test, the request."""
    dossier, session, key = case.dossier, case.dossier.session, case.environment.key
    ok = report.outcome == "ok"
    finished_id = f"{attempt.run}-deployment-finished-1"
    customer = dossier.customer
    catalogue = {when: canonical(seen) for when, seen in report.catalogue.items()}
    listed = {
        "covered": migrated.covered,
        "asserted": migrated.asserted,
        "half_done": migrated.half_done,
        "events": migrated.events,
    }
    due = end_of_day(
        session.now().astimezone(ZoneInfo(customer.time_zone)).date() + timedelta(days=customer.sign_off_days), customer
    )

    def decide(state: State) -> list[Draft]:
        held.check()
        now = state.environment(key).running
        if (now is None or now.record != attempt.record) and dossier.ledger.record(finished_id) is None:
            raise PartlyDone(
                f"deployment {attempt.deployment} on {key} of {case.customer} was taken out of this run's hands meanwhile",
                reasons=[Reason("it is no longer open in the ledger", f"record {state.number}")],
                state=f"This run had ended with: {report.outcome}. The ledger says nothing of it.",
                next_commands=[f"invoke plan customer={case.customer} env={key}"],
            )
        common: dict[str, Any] = {
            "run": attempt.run,
            "at": session.now(),
            "product": customer.product,
            "environment": key,
            "release": case.release.name,
            "content": case.content,
            "tickets": dossier.tickets(case.tickets),
        }
        details: dict[str, Any] = {
            "deployment": attempt.deployment,
            "purpose": case.purpose,
            "started": attempt.record,
            "from": case.plan.installed,
            "version": case.release.version,
            "patches": list(case.release.patches),
            "settings": case.settings,
            "scripts": migrated.scripts,
            "checks": report.checks,
            "backups": report.backups,
            **({"restored": report.restored} if report.restored else {}),
            "hosts": sorted(case.hosts),
            **{name: list(value) for name, value in listed.items() if value},
            **(
                {"catalogue": {when: sha256(data).hexdigest() for when, data in catalogue.items()}} if catalogue else {}
            ),
        }
        texts: dict[str, str | bytes] = {"people": dossier.people_used(session.actor.key)}
        moves: tuple[RefMove, ...] = ()
        if ok:
            move = dossier.installation.deployed(
                key,
                case.release.commit,
                dossier.repository.ref(dossier.installation.env_ref(key)),
                title=f"{case.purpose} {case.release.name} on {key} (deployment {attempt.deployment})",
                author=session.signer.key,
                at=session.now(),
                trailers={
                    "Record-Id": finished_id,
                    "Environment": key,
                    "Release": case.release.name,
                    "Product-Version": case.release.version,
                    "Ticket": ", ".join(case.tickets),
                    "Content-SHA256": case.content,
                },
            )
            moves = (move,)
        else:
            assert report.error is not None
            details |= {
                "failed_action": report.failed.title if report.failed else None,
                "failed_host": report.failed.host if report.failed else None,
                "back_to": case.plan.installed,
                "quarantined": report.trouble is not None,
            }
            if needed := _restore_needed(case, migrated):
                details["restore_needed"] = needed
            begun = now.restoring if now is not None else ()
            if len(report.restored) < len(begun) and not isinstance(report.trouble, Refused):
                # What it has left of the database nobody knows: the old code must not run on it.
                details["restore_unfinished"] = begun[0]["label"]
            texts["error"] = session.conceal(report.error.render())
            if report.trouble is not None:
                texts["trouble"] = session.conceal(report.trouble.render())
        drafts = [
            Draft(
                id=finished_id,
                kind="deployment-finished",
                outcome=report.outcome,
                moves=moves,
                texts=texts,
                details=details,
                configuration=dossier.configuration(key) | {CATALOGUES[when]: data for when, data in catalogue.items()},
                **common,
            )
        ]
        if ok and asks(case):
            drafts.append(
                Draft(
                    id=f"{attempt.run}-sign-off-requested-1",
                    kind="sign-off-requested",
                    texts={"people": dossier.people_used(session.actor.key, *customer.approvers)},
                    details={
                        "settings": case.settings,
                        "deployment": attempt.deployment,
                        "due": f"{due:%Y-%m-%dT%H:%M:%SZ}",
                        "approvers": list(customer.approvers),
                        "version": case.release.version,
                        "accepted_edits": [edit.applied.script for edit in case.comparison.accepted],
                        "scripts": [s.id for s, _ in case.scripts.values()],
                        "differences": [difference.model_dump() for difference in case.differences],
                    },
                    configuration=dossier.configuration(
                        *(k for k in ("test", "production") if k in dossier.loaded.environments)
                    ),
                    **common,
                )
            )
        return drafts

    dossier.ledger.append(session.signer, decide)
    return finished_id


def asks(case: Case) -> bool:
    """Whether a sign-off is asked for when this is done."""
    return case.environment.key == "test" and case.purpose != "rollback"
