"""The customer is told what waits on test, and decides: the page, and the record of the decision."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

from pipeline import rules, wiring
from pipeline.errors import NotKnown, Reason, Refused, UsageError
from pipeline.model import Decision, Draft, Severity, Verdict
from pipeline.sign_off.page import (
    AcceptedEdit,
    CheckShown,
    Contact,
    Difference,
    SchemaChange,
    SignOffPage,
    TicketShown,
    render_page,
)
from pipeline.sign_off.schema_changes import schema_changes
from pipeline.state import Deployed, SignOff, State
from pipeline.suggest import did_you_mean, nearest
from pipeline.workflow.databases import release_scripts
from pipeline.workflow.gathering import release_manifest
from pipeline.workflow.schema_drift import recorded_catalogue
from pipeline.workflow.session import Dossier, Result, Session, end_of_day


class PageWritten(Result):
    """Where the page is, and the SHA-256 of its bytes, which the ledger keeps."""

    customer: str
    release: str
    content: str
    path: str
    sha256: str
    due: str
    planned: str | None
    approvers: tuple[str, ...]

    def lines(self) -> list[str]:
        return [
            self.what,
            f"  {self.path}",
            f"  for {', '.join(self.approvers)}, due {self.due}, content {self.content}",
        ]


class DecisionRecorded(Result):
    """The decision as it stands in the ledger, bound to customer, release and content hash."""

    customer: str
    release: str
    content: str
    decision: str
    by: str
    record: str
    evidence_sha256: str


def write_page(
    session: Session,
    *,
    customer: str,
    due: date | None = None,
    planned: datetime | None = None,
    out: Path | None = None,
    dry_run: bool = False,
) -> PageWritten:
    """The sign-off page of exactly what is on test, in the customer's language; the ledger keeps its hash and its bytes.

    ``planned`` without a time zone is on the customer's clock. The same page again writes no new record.
    """
    dossier = session.dossier(customer)
    state = dossier.state()
    request = _request(dossier, state)
    if planned is not None and planned.tzinfo is None:
        planned = planned.replace(tzinfo=ZoneInfo(dossier.customer.time_zone))
    until = end_of_day(due, dossier.customer) if due is not None else request.due
    for name, moment in (("due", until if due is not None else None), ("planned", planned)):
        if moment is not None and moment < session.now():
            raise UsageError(f"{name}= is in the past: {moment:%Y-%m-%d %H:%M %Z}")
    running = state.environment("production").installed
    asked = (request.release, request.content, request.settings)
    if running is not None and (running.release, running.content, running.settings) == asked:
        raise Refused(
            f"{request.release} is in production of {customer} already: there is nothing left to decide",
            next_commands=[f"invoke status customer={customer}"],
        )
    page = sign_off_page(dossier, state, request, due=until, planned=planned or request.planned)
    text = render_page(page, dossier.customer.language, overrides=session.folder / "templates").encode()
    digest = hashlib.sha256(text).hexdigest()
    path = session.folder / out if out is not None else session.work / "sign-off" / customer / f"{request.release}.html"
    changed = request.page != digest or not path.is_file() or path.read_bytes() != text
    run = session.new_run()

    def decide(state: State) -> list[Draft]:
        current = _request(dossier, state)
        if current.request != request.request:
            raise Refused(f"another release was put on test of {customer} meanwhile: {current.release}")
        if current.page == digest:
            return []
        return [
            Draft(
                id=f"{run}-sign-off-page-written-1",
                run=run,
                kind="sign-off-page-written",
                at=session.now(),
                product=dossier.customer.product,
                environment="test",
                release=request.release,
                content=request.content,
                tickets=request.tickets,
                texts={"page": text, "people": dossier.people_used(session.actor.key, *dossier.customer.approvers)},
                details={
                    "request": request.request,
                    "page": digest,
                    "language": dossier.customer.language,
                    # So that erasing a person finds the pages that name them.
                    "approvers": list(dossier.customer.approvers),
                    "due": f"{page.due:%Y-%m-%dT%H:%M:%SZ}",
                    "planned": f"{page.planned:%Y-%m-%dT%H:%M:%SZ}" if page.planned else None,
                },
            )
        ]

    if not dry_run:
        dossier.ledger.append(session.signer, decide)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return PageWritten(
        changed=changed and not dry_run,
        what=f"sign-off page of {request.release} for {dossier.customer.name}"
        + (" would be written" if dry_run else ""),
        customer=customer,
        release=request.release,
        content=request.content,
        path=str(path),
        sha256=digest,
        due=f"{page.due.astimezone(ZoneInfo(dossier.customer.time_zone)):%Y-%m-%d %H:%M %Z}",
        planned=f"{page.planned:%Y-%m-%dT%H:%M:%SZ}" if page.planned else None,
        approvers=dossier.customer.approvers,
        next_commands=(dossier.decision_command(request.release),),
    )


def sign_off_page(
    dossier: Dossier, state: State, request: SignOff, *, due: datetime | None, planned: datetime | None
) -> SignOffPage:
    """Everything that the page of this request says, from the ledger and the release."""
    session, customer = dossier.session, dossier.customer
    release = state.releases[request.release]
    running = state.environment("production").installed
    on_test = state.environment("test").installed
    assert on_test is not None
    record = dossier.ledger.record(request.request)
    assert record is not None
    playbook = dossier.playbook.playbook
    manifest = release_manifest(dossier, release)
    applied = set(state.environment("production").applied)
    scripts = [script for script in release_scripts(dossier, playbook, manifest) if script not in applied]
    accepted = [a for a in state.accepted if a.script in set(record.details["accepted_edits"])]
    tracker = wiring.tracker_for(customer)
    known = [
        tracker.get(state, dossier.ledger, reference.id)
        for reference in request.tickets
        if reference.id in state.tickets
    ]
    issues: list[str] = []
    if playbook.known_issues is not None:
        blob = next((file.blob for file in manifest.files if file.path == playbook.known_issues), None)
        lines = ((dossier.repository.read(blob) or b"").decode("utf-8", "replace") if blob else "").splitlines()
        issues = [line[2:].strip() for line in lines if line.startswith("- ")]
    return SignOffPage(
        customer=customer.name,
        product=playbook.name,
        time_zone=customer.time_zone,
        from_version=state.releases[running.release].version if running else None,
        from_release=running.release if running else None,
        to_version=release.version,
        to_release=release.name,
        asked_by=_contact(session, request.requested_by),
        approvers=tuple(_contact(session, key) for key in customer.approvers),
        due=due or request.requested_at,
        planned=planned,
        tickets=tuple(
            TicketShown(id=t.id, title=t.title or "—", changed=t.changed or t.text, how_to_test=t.how_to_test)
            for t in known
        ),
        migrations=tuple(scripts),
        schema_changes=_schema_changes(dossier, running),
        accepted_edits=tuple(
            AcceptedEdit(
                script=a.script,
                reason=(dossier.ledger.text(a.reason) if a.reason else None) or "—",
                by=a.by,
                at=a.at,
            )
            for a in accepted
        ),
        checks=tuple(
            CheckShown(title=f"{check['title']} ({check['host']})", outcome=check["outcome"])
            for check in on_test.checks
        ),
        url=dossier.environment("test").url,
        known_issues=tuple(issues),
        differences=tuple(
            Difference(what=d["what"], test=_or_none(d["test"]), production=_or_none(d["production"]))
            for d in record.details["differences"]
        ),
        content=request.content,
        deployment=request.deployment,
        deployed_at=on_test.at,
    )


def _schema_changes(dossier: Dossier, running: Deployed | None) -> tuple[SchemaChange, ...]:
    """What changed in test's database since production got its release, by the catalogues that the records keep."""
    since = dossier.ledger.record(running.record) if running is not None else None
    records = [
        record.details["catalogue"]
        for record in dossier.ledger.records()
        if record.environment == "test"
        and "catalogue" in record.details
        and record.number > (since.number if since is not None else 0)
    ]
    if not records:
        return ()
    before = recorded_catalogue(dossier, records[-1].get("before"))
    after = recorded_catalogue(dossier, records[0].get("after"))
    return schema_changes(before, after) if before is not None and after is not None else ()


def record_decision(
    session: Session,
    *,
    customer: str,
    decision: str,
    by: str,
    evidence: Path,
    release: str | None = None,
    verdicts: Mapping[str, str] | None = None,
    remarks: Mapping[str, str] | None = None,
    reservations: tuple[dict[str, str], ...] = (),
    reasons: str = "",
    dry_run: bool = False,
) -> DecisionRecorded:
    """The customer's decision on what is on test, entered by the actor for the approver ``by``.

    ``release`` is the one that the customer decided on: Refused when another is on test by now. ``verdicts`` and
    ``remarks`` are by ticket; a reservation has ``severity``, ``date`` (ISO) and ``text``. The file ``evidence`` (the
    signed page, the mail) is kept with the texts, its SHA-256 in the record. A decision made anew is a new record; the
    same decision by the same person again changes nothing.
    """
    dossier = session.dossier(customer)
    state = dossier.state()
    _well_formed(state, decision, verdicts or {}, reservations, reasons)
    path = session.workspace.path(str(evidence))
    try:
        kept = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"the evidence {evidence} cannot be read", reasons=[Reason(error.strerror or "unreadable", str(path))]
        ) from None
    if not kept.strip():
        raise UsageError(f"the evidence {evidence} is empty", reasons=[Reason("there is nothing in it", str(path))])
    asked = _request(dossier, state)
    if release is not None and dossier.release(release, state).name != asked.release:
        raise Refused(
            f"the decision is on {release}, and test of {customer} holds {asked.release} by now",
            reasons=[Reason(f"asked for with deployment {asked.deployment}", asked.request)],
            next_commands=[f"invoke signoff.page customer={customer}"],
        )
    digest = hashlib.sha256(kept).hexdigest()
    run, made = session.new_run(), list[DecisionRecorded]()
    places = {
        "approvers": dossier.loaded.sources["customer"].position("approvers"),
        "people": "environments/people.yaml",
    }

    def decide(state: State) -> list[Draft]:
        approver = session.workspace.people.find(by)
        refused = tuple(rules.decision_refusals(state, dossier.customer, approver, by, session.actor, places))
        if refused:
            raise Refused(
                f"the decision of {by} for {customer} cannot be recorded.",
                reasons=refused,
                next_commands=[_instead(dossier, state, by)],
            )
        request = _request(dossier, state)
        if request.request != asked.request:
            raise Refused(
                f"another deployment to test of {customer} asks for {request.release} meanwhile",
                next_commands=[f"invoke signoff.page customer={customer}"],
            )
        record_id = f"{run}-sign-off-recorded-1"
        made[:] = [_decided(customer, request, decision, by, record_id, digest)]
        if request.status == decision and request.by == by and _same(dossier, request, digest):
            made[:] = [_decided(customer, request, decision, by, request.record or "", digest, changed=False)]
            return []
        texts: dict[str, str | bytes] = {
            "evidence": kept,
            "evidence_name": path.name,
            "people": dossier.people_used(session.actor.key, by),
        }
        texts |= {f"remark-{ticket}": remark for ticket, remark in (remarks or {}).items() if remark}
        texts |= {f"reservation-{n}": reservation["text"] for n, reservation in enumerate(reservations, 1)}
        if reasons:
            texts["reasons"] = reasons
        return [
            Draft(
                id=record_id,
                run=run,
                kind="sign-off-recorded",
                at=session.now(),
                product=dossier.customer.product,
                environment="test",
                release=request.release,
                content=request.content,
                tickets=request.tickets,
                configuration=dossier.configuration(),
                texts=texts,
                details={
                    "request": request.request,
                    "decision": decision,
                    "by": by,
                    "entered": "by an engineer, from evidence given outside",
                    "settings": request.settings,
                    "deployment": request.deployment,
                    "page": request.page,
                    "evidence_sha256": digest,
                    "verdicts": dict(verdicts or {}),
                    "reservations": [{"severity": r["severity"], "date": r["date"]} for r in reservations],
                },
            )
        ]

    if dry_run:
        decide(state)
        return made[0].model_copy(update={"changed": False, "what": f"would record: {made[0].what}"})
    dossier.ledger.append(session.signer, decide)
    return made[0]


def _decided(
    customer: str, request: SignOff, decision: str, by: str, record: str, digest: str, *, changed: bool = True
) -> DecisionRecorded:
    goes = decision != "rejected"
    return DecisionRecorded(
        changed=changed,
        what=f"{by} decided on {request.release} for {customer}: {decision}"
        + ("" if changed else " (recorded already)"),
        customer=customer,
        release=request.release,
        content=request.content,
        decision=decision,
        by=by,
        record=record,
        evidence_sha256=digest,
        next_commands=(f"invoke promote customer={customer}",) if goes else (f"invoke history customer={customer}",),
    )


def _instead(dossier: Dossier, state: State, by: str) -> str:
    """What to type after a decision was refused: what comes before it, or the decision by whoever was meant."""
    request, installed = state.sign_off, state.environment("test").installed
    if request is None or request.status == "superseded":
        return f"invoke deploy customer={dossier.key}"
    if installed is None or installed.release != request.release:
        return f"invoke deploy customer={dossier.key} release={request.release}"
    if request.page is None:
        return f"invoke signoff.page customer={dossier.key}"
    meant = None if by in dossier.customer.approvers else nearest(by, dossier.customer.approvers)
    return dossier.decision_command(request.release, meant) if meant else f"invoke status customer={dossier.key}"


def _same(dossier: Dossier, request: SignOff, digest: str) -> bool:
    record = dossier.ledger.record(request.record) if request.record else None
    return record is not None and record.details["evidence_sha256"] == digest


def _well_formed(
    state: State,
    decision: str,
    verdicts: Mapping[str, str],
    reservations: tuple[dict[str, str], ...],
    reasons: str,
) -> None:
    """UsageError for a decision that contradicts itself, NotKnown for a ticket that was not put before the customer."""
    decisions, known_verdicts, severities = get_args(Decision), get_args(Verdict), get_args(Severity)
    if decision not in decisions:
        raise UsageError(
            f"{decision!r} is no decision{did_you_mean(decision, decisions)}; it is one of {', '.join(decisions)}"
        )
    problems: list[str] = []
    for ticket, verdict in verdicts.items():
        if verdict not in known_verdicts:
            problems.append(f"{ticket}: {verdict!r} is no verdict; it is one of {', '.join(known_verdicts)}")
    for number, reservation in enumerate(reservations, 1):
        if reservation.get("severity") not in severities:
            problems.append(f"reservation {number}: the severity is one of {', '.join(severities)}")
        try:
            date.fromisoformat(reservation.get("date", ""))
        except ValueError:
            problems.append(f"reservation {number}: {reservation.get('date')!r} is no date, for instance 2026-12-24")
        if not reservation.get("text", "").strip():
            problems.append(f"reservation {number} has no text")
    if decision == "approved" and reservations:
        problems.append("approved has no reservations: say approved-with-reservations")
    if decision == "approved" and "does-not-work" in verdicts.values():
        problems.append("approved, while a ticket does not work: say approved-with-reservations or rejected")
    if decision == "approved-with-reservations" and not reservations:
        problems.append("approved-with-reservations needs reservations=severity:date:text")
    if decision == "rejected" and not reasons.strip():
        problems.append("rejected needs reasons=…")
    if problems:
        raise UsageError("this is not a decision that can be recorded", reasons=problems)
    asked = {reference.id for reference in state.sign_off.tickets} if state.sign_off else set()
    strange = [ticket for ticket in verdicts if ticket not in asked]
    if strange:
        raise NotKnown(
            f"ticket {', '.join(strange)} is not part of what was put before the customer{did_you_mean(strange[0], asked)}",
            reasons=[Reason(f"asked about: {', '.join(sorted(asked)) or 'nothing'}")],
        )


def _request(dossier: Dossier, state: State) -> SignOff:
    """The request for what is on test now; Refused when nothing is, or it is superseded."""
    request = state.sign_off
    if request is None:
        raise Refused(
            f"nothing is on test of {dossier.key} to be signed off",
            next_commands=[f"invoke deploy customer={dossier.key}"],
        )
    if request.status == "superseded":
        raise Refused(
            f"the request for {request.release} of {dossier.key} is superseded",
            reasons=[Reason(request.reason or "superseded", request.request)],
            next_commands=[f"invoke deploy customer={dossier.key}"],
        )
    installed = state.environment("test").installed
    if installed is None or installed.release != request.release:
        raise Refused(
            f"test of {dossier.key} no longer holds {request.release}, whose sign-off was asked for",
            reasons=[Reason(f"test holds {installed.release}", installed.record)] if installed else [],
            next_commands=[f"invoke deploy customer={dossier.key} release={request.release}"],
        )
    return request


def _contact(session: Session, key: str) -> Contact:
    person = session.workspace.people.find(key)
    return Contact(name=person.name, mail=person.mail) if person else Contact(name=key)


def _or_none(text: str) -> str | None:
    return None if text == "—" else text
