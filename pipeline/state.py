"""What a customer's records add up to: the fold from records to a state, pure.

``apply(state, record)`` gives the state after one more record; ``fold`` does it for a whole ledger. The state is kept as
``state.json`` at the ledger's tip so that reading needs no history; it can always be rebuilt from the records, and
``ledger.verify`` compares the two.
"""

# No annotations from __future__ here: Pydantic would compile each from its text, which takes a third of this import.

from collections.abc import Collection, Iterable
from typing import Any, Literal

from pydantic import Field

from pipeline.environment_state import Deployed, EnvironmentState, Running
from pipeline.model import Decision, Instant, Noun, ObjectId, Record, Sha256, TicketRef

__all__ = [
    "EVERY_SCRIPT",
    "STATE_SCHEMA",
    "Acceptance",
    "Deployed",
    "EnvironmentState",
    "PatchState",
    "ReleaseState",
    "Running",
    "SignOff",
    "State",
    "Ticket",
    "apply",
    "fold",
]

STATE_SCHEMA = 7
"""Raise it with every change of these models or of the fold: a state.json of an older schema is folded anew."""

EVERY_SCRIPT = "*"
"""What ``migration-accepted`` names where a database was replaced: the scripts that it lacks count as not applied."""


class ReleaseState(Noun):
    """One release of this customer."""

    name: str
    version: str
    commit: ObjectId
    made_at: Instant
    made_by: str
    record: str
    tickets: tuple[TicketRef, ...] = ()
    patches: tuple[str, ...] = ()
    number: int = Field(0, description="of the record that made it")


class PatchState(Noun):
    """A fix: ``commit`` is on the line since; a release contains the patch when the commit is its ancestor."""

    id: str
    commit: ObjectId
    release: str
    base: str
    record: str


SignOffStatus = Literal["open", "approved", "approved-with-reservations", "rejected", "superseded"]


class SignOff(Noun):
    """One request for sign-off and its fate. ``settings`` is the digest of what differs between the environments."""

    request: str
    release: str
    content: Sha256
    settings: Sha256
    deployment: str
    requested_at: Instant
    requested_by: str
    due: Instant | None = None
    page: Sha256 | None = Field(None, description="SHA-256 of the page that was put before the customer last")
    planned: Instant | None = None
    tickets: tuple[TicketRef, ...] = ()
    status: SignOffStatus = "open"
    reason: str | None = None
    record: str | None = None
    by: str | None = None
    entered_by: str | None = None
    decided_at: Instant | None = None
    blocking: bool = False

    @property
    def approved(self) -> bool:
        """Whether this decision lets the release into production."""
        return self.status in {"approved", "approved-with-reservations"} and not self.blocking


class Ticket(Noun):
    """A ticket of the embedded tracker; the texts' hashes lead to the texts (None once erased)."""

    id: str
    state: Literal["new", "closed"] = "new"
    opened_at: Instant
    opened_by: str
    record: str
    texts: dict[str, Sha256] = Field(default_factory=dict)


class Acceptance(Noun):
    """An edit of an applied migration that was judged harmless: this old and this new checksum, nothing else."""

    script: str
    old: str
    new: str
    record: str
    at: Instant
    by: str
    reason: Sha256 | None = None


class State(Noun):
    """Everything that the rules ask about one customer, as of record ``number`` (0: no record yet)."""

    schema_version: int = STATE_SCHEMA
    customer: str
    product: str | None = None
    number: int = 0
    head: Sha256 | None = None
    version: str | None = None
    deployments: int = 0
    refs: dict[str, ObjectId] = Field(default_factory=dict)
    releases: dict[str, ReleaseState] = Field(default_factory=dict)
    patches: tuple[PatchState, ...] = ()
    environments: dict[str, EnvironmentState] = Field(default_factory=dict)
    sign_offs: tuple[SignOff, ...] = ()
    tickets: dict[str, Ticket] = Field(default_factory=dict)
    accepted: tuple[Acceptance, ...] = ()

    def environment(self, key: str) -> EnvironmentState:
        """The environment's state; an empty one where nothing was ever deployed."""
        return self.environments.get(key, EnvironmentState())

    @property
    def sign_off(self) -> SignOff | None:
        """The newest request, whatever became of it."""
        return self.sign_offs[-1] if self.sign_offs else None

    def newest_release(self) -> ReleaseState | None:
        """The release made last, in the order of the records: clocks of several machines need not agree."""
        return max(self.releases.values(), key=lambda release: release.number, default=None)


def fold(customer: str, records: Iterable[tuple[Record, str]]) -> State:
    """The state after ``records``: pairs of a record and the SHA-256 of its bytes, oldest first."""
    state = State(customer=customer)
    for record, digest in records:
        state = apply(state, record, digest)
    return state


def apply(state: State, record: Record, digest: str) -> State:
    """The state after one more record, whose canonical bytes have this SHA-256."""
    refs = dict(state.refs)
    for move in record.moves:
        if move.new is None:
            refs.pop(move.ref, None)
        else:
            refs[move.ref] = move.new
    changes: dict[str, Any] = {
        "number": record.number,
        "head": digest,
        "product": record.product,
        "refs": refs,
    }
    change = _CHANGES.get(record.kind)
    if change is not None:
        changes |= change(state, record)
    return state.model_copy(update=changes)


def _line_started(state: State, record: Record) -> dict[str, Any]:
    return {"version": record.details["version"]}


def _release_made(state: State, record: Record) -> dict[str, Any]:
    assert record.release is not None
    release = ReleaseState(
        name=record.release,
        version=record.details["version"],
        commit=record.details["commit"],
        made_at=record.at,
        made_by=record.actor.key,
        record=record.id,
        tickets=record.tickets,
        patches=tuple(record.details.get("patches", ())),
        number=record.number,
    )
    changes: dict[str, Any] = {"releases": {**state.releases, release.name: release}}
    if record.kind == "release-made":
        changes["version"] = record.details["version"]
    return changes


def _patch_made(state: State, record: Record) -> dict[str, Any]:
    assert record.release is not None
    patch = PatchState(
        id=record.details["patch"],
        commit=record.details["commit"],
        release=record.release,
        base=record.details["base"],
        record=record.id,
    )
    # A sign-off asked for, or given, before this fix existed is for a release that would take the fix away again.
    sign_offs = _superseded(state.sign_offs, f"patch {patch.id} ({patch.release}) is not in it", {patch.release})
    return _release_made(state, record) | {"patches": (*state.patches, patch), "sign_offs": sign_offs}


def _superseded(sign_offs: tuple[SignOff, ...], reason: str, kept: set[str]) -> tuple[SignOff, ...]:
    return tuple(
        sign_off
        if sign_off.release in kept or sign_off.status in {"rejected", "superseded"}
        else sign_off.model_copy(update={"status": "superseded", "reason": reason})
        for sign_off in sign_offs
    )


def _ticket_opened(state: State, record: Record) -> dict[str, Any]:
    ticket = Ticket(
        id=record.tickets[0].id, opened_at=record.at, opened_by=record.actor.key, record=record.id, texts=record.texts
    )
    return {"tickets": {**state.tickets, ticket.id: ticket}}


def _ticket_closed(state: State, record: Record) -> dict[str, Any]:
    ticket = state.tickets[record.tickets[0].id]
    return {"tickets": {**state.tickets, ticket.id: ticket.model_copy(update={"state": "closed"})}}


def _with_environment(state: State, key: str, **update: Any) -> dict[str, EnvironmentState]:
    return {**state.environments, key: state.environment(key).model_copy(update=update)}


def _deployment_started(state: State, record: Record) -> dict[str, Any]:
    assert record.environment is not None
    assert record.release is not None
    assert record.content is not None
    before = state.environment(record.environment).running
    running = Running(
        run=record.run,
        deployment=record.details["deployment"],
        purpose=record.details["purpose"],
        release=record.release,
        content=record.content,
        settings=record.details.get("settings"),
        record=record.id,
        at=record.at,
        by=record.actor.key,
        tickets=record.tickets,
        partly=before.partly if before is not None and before.run == record.run else {},
        restoring=before.restoring if before is not None and before.run == record.run else (),
    )
    return {
        "deployments": max(state.deployments, int(running.deployment)),
        "environments": _with_environment(state, record.environment, running=running),
    }


def _deployment_partly_done(state: State, record: Record) -> dict[str, Any]:
    """The deployment stays open: the same command goes on where it stopped, and a rollback brings it back."""
    assert record.environment is not None
    running = state.environment(record.environment).running
    if running is None or running.run != record.run:
        return {}
    running = running.model_copy(update={"partly": record.details["hosts"]})
    return {"environments": _with_environment(state, record.environment, running=running)}


def _deployed(record: Record) -> Deployed:
    """What the record says is installed on its environment now."""
    assert record.release is not None
    assert record.content is not None
    return Deployed(
        release=record.release,
        content=record.content,
        settings=record.details.get("settings"),
        deployment=record.details["deployment"],
        purpose=record.details["purpose"],
        record=record.id,
        at=record.at,
        by=record.actor.key,
        commit=next((move.new for move in record.moves if "/env/" in move.ref), None),
        tickets=record.tickets,
        checks=tuple(record.details.get("checks", ())),
    )


def _deployment_finished(state: State, record: Record) -> dict[str, Any]:
    assert record.environment is not None
    assert record.release is not None
    assert record.content is not None
    before = state.environment(record.environment)
    update: dict[str, Any] = {"running": None, **_migrated(before, record)}
    if record.outcome == "ok":
        installed = _deployed(record)
        if before.installed is not None:
            update["earlier"] = (*before.earlier, before.installed)
        update["installed"] = installed
        update["quarantined"] = None
        update["failed"] = None
        update["left"] = before.left_after(installed.release, installed.purpose)
    else:
        update["failed"] = f"{record.details['deployment']} of {record.release}"
        if record.details.get("quarantined"):
            update["quarantined"] = record.details["deployment"]
        update["restoring"] = record.details.get("restore_unfinished", before.restoring)
    changes: dict[str, Any] = {"environments": _with_environment(state, record.environment, **update)}
    if record.environment == "production" and record.outcome == "ok" and record.details["purpose"] == "rollback":
        assert before.installed is not None
        changes["sign_offs"] = _rolled_back_from(state, before.installed.release, to=record.release)
    return changes


def _rolled_back_from(state: State, left: str, *, to: str) -> tuple[SignOff, ...]:
    """The sign-offs, of which what was rolled back from production needs a new one."""
    return tuple(
        sign_off.model_copy(update={"status": "superseded", "reason": "production was rolled back from it"})
        if sign_off.release == left != to and sign_off.status not in {"rejected", "superseded"}
        else sign_off
        for sign_off in state.sign_offs
    )


def _sign_off_requested(state: State, record: Record) -> dict[str, Any]:
    assert record.release is not None
    assert record.content is not None
    details = record.details
    sign_off = SignOff(
        request=record.id,
        release=record.release,
        content=record.content,
        settings=details["settings"],
        deployment=details["deployment"],
        requested_at=record.at,
        requested_by=record.actor.key,
        due=details["due"],
        tickets=record.tickets,
    )
    earlier = _superseded(state.sign_offs, f"deployment {sign_off.deployment} put {sign_off.release} on test", set())
    return {"sign_offs": (*earlier, sign_off)}


def _sign_off_page_written(state: State, record: Record) -> dict[str, Any]:
    details = record.details
    return {
        "sign_offs": tuple(
            SignOff.model_validate(
                sign_off.model_dump()
                | {"page": details["page"], "due": details["due"], "planned": details.get("planned")}
            )
            if sign_off.request == details["request"]
            else sign_off
            for sign_off in state.sign_offs
        )
    }


def _sign_off_recorded(state: State, record: Record) -> dict[str, Any]:
    details = record.details
    decision: Decision = details["decision"]
    reservations = details.get("reservations", ())
    decided = {
        "status": decision,
        "record": record.id,
        "by": details["by"],
        "entered_by": record.actor.key,
        "decided_at": record.at,
        "blocking": any(reservation.get("severity") == "blocking" for reservation in reservations),
    }
    # Only the newest request can be decided; superseded stays superseded, whatever is recorded afterwards.
    return {
        "sign_offs": tuple(
            sign_off.model_copy(update=decided)
            if sign_off.request == details["request"] and sign_off == state.sign_off and sign_off.status != "superseded"
            else sign_off
            for sign_off in state.sign_offs
        )
    }


def _migration_accepted(state: State, record: Record) -> dict[str, Any]:
    details = record.details
    if details["script"] == EVERY_SCRIPT:
        assert record.environment is not None
        missing = set(details["missing"])
        return {"environments": _with_environment(state, record.environment, **_without(state, record, missing))}
    acceptance = Acceptance(
        script=details["script"],
        old=details["old"],
        new=details["new"],
        record=record.id,
        at=record.at,
        by=record.actor.key,
        reason=record.texts.get("reason"),
    )
    return {"accepted": (*state.accepted, acceptance)}


def _migrations_baselined(state: State, record: Record) -> dict[str, Any]:
    """Scripts that count as applied there from now on, and were not run by us."""
    assert record.environment is not None
    before, details = state.environment(record.environment), record.details
    # Of what the database's own history had, a file that was written for it may have been run by hand.
    said = details.get("asserted", sorted(set(details["scripts"]) - set(details.get("known", ()))))
    # Said once more of what a deployment ran here: that stays true.
    asserted = [s for s in said if before.applied.get(s) != details["scripts"][s] or s in before.asserted]
    changed = before.with_applied(details["scripts"], asserted=asserted)
    return {"environments": _with_environment(state, record.environment, **changed)}


def _migration_repaired(state: State, record: Record) -> dict[str, Any]:
    """What somebody found about a script that was begun and not finished: *resume* leaves it open."""
    assert record.environment is not None
    details = record.details
    before = state.environment(record.environment)
    changed: dict[str, Any] = {}
    if details["what"] == "done":
        changed = before.with_applied({details["script"]: details["checksum"]}, asserted=[details["script"]])
    elif details["what"] == "reverted":
        changed = _without(state, record, {details["script"]})
    return {"environments": _with_environment(state, record.environment, **changed)}


def _backup_restored(state: State, record: Record) -> dict[str, Any]:
    assert record.environment is not None
    update = state.environment(record.environment).with_restored(record)
    return {"environments": _with_environment(state, record.environment, **update)}


def _migrated(before: EnvironmentState, record: Record) -> dict[str, Any]:
    """What a record of an outcome says of the environment's database."""
    details = record.details
    asserted = details.get("asserted", ())
    changed = before.with_applied(details.get("scripts", {}), details.get("covered", ()), asserted)
    after = details.get("catalogue", {}).get("after")
    return changed | ({"catalogue": after} if after else {})


def _without(state: State, record: Record, scripts: Collection[str]) -> dict[str, Any]:
    assert record.environment is not None
    here = state.environment(record.environment)
    return {
        "applied": {script: checksum for script, checksum in here.applied.items() if script not in scripts},
        "covered": tuple(script for script in here.covered if script not in scripts),
        "asserted": tuple(script for script in here.asserted if script not in scripts),
    }


def _lock_released(state: State, record: Record) -> dict[str, Any]:
    """``ends`` says what is let go: a ``lease`` (nothing here), a ``quarantine``, or a ``deployment`` that stays as it is."""
    assert record.environment is not None
    before = state.environment(record.environment)
    ends = record.details["ends"]
    if ends == "lease":
        return {}
    update: dict[str, Any] = {"quarantined": None, "restoring": None, **_migrated(before, record)}
    if ends == "deployment":
        update["running"] = None
    changes: dict[str, Any] = {}
    if any("/env/" in move.ref for move in record.moves):
        installed = update["installed"] = _deployed(record)
        # What is kept of an open deployment is what that deployment was for.
        purpose = before.running.purpose if ends == "deployment" and before.running is not None else installed.purpose
        update["failed"] = None
        update["left"] = before.left_after(installed.release, purpose)
        if before.installed is not None:
            update["earlier"] = (*before.earlier, before.installed)
            if record.environment == "production" and purpose == "rollback":
                changes["sign_offs"] = _rolled_back_from(state, before.installed.release, to=installed.release)
    return changes | {"environments": _with_environment(state, record.environment, **update)}


_CHANGES = {
    "line-started": _line_started,
    "release-made": _release_made,
    "patch-made": _patch_made,
    "ticket-opened": _ticket_opened,
    "ticket-closed": _ticket_closed,
    "deployment-started": _deployment_started,
    "deployment-partly-done": _deployment_partly_done,
    "deployment-finished": _deployment_finished,
    "sign-off-requested": _sign_off_requested,
    "sign-off-page-written": _sign_off_page_written,
    "sign-off-recorded": _sign_off_recorded,
    "migration-accepted": _migration_accepted,
    "migrations-baselined": _migrations_baselined,
    "migration-repaired": _migration_repaired,
    "backup-restored": _backup_restored,
    "lock-released": _lock_released,
}
