"""What keeps an installation's records sound: accepted migrations, erasure, verification, keys."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from pipeline.errors import NotKnown, Reason, Refused, UsageError
from pipeline.model import Draft
from pipeline.state import EVERY_SCRIPT, State
from pipeline.suggest import did_you_mean
from pipeline.workflow.databases import history_of, release_scripts
from pipeline.workflow.gathering import closing, hosts_of, release_manifest
from pipeline.workflow.session import Dossier, Result, Session


class MigrationAccepted(Result):
    """The edit that counts as harmless from now on: this old and this new checksum (``removed``: the script is gone).

    ``missing`` are, for a database that was replaced, the scripts that count as not applied from now on.
    """

    customer: str
    script: str
    old: str
    new: str
    missing: tuple[str, ...] = ()


class Erased(Result):
    """Which texts are gone, or would be: each by the record that names it."""

    customer: str
    count: int
    texts: tuple[dict[str, str], ...] = ()

    def lines(self) -> list[str]:
        return [self.what, *(f"  {text['record']}  {text['kind']}  {text['text']}" for text in self.texts)]


class Verified(Result):
    """Every finding of the verification; none when the ledger is sound."""

    customer: str
    records: int
    findings: tuple[dict[str, str | None], ...]

    def lines(self) -> list[str]:
        return [self.what, *(f"  - {Reason(f['text'] or '', f['source'])}" for f in self.findings)]


class KeyMade(Result):
    """Where the key pair is, and the public key for people.yaml."""

    person: str
    path: str
    public_key: str

    def lines(self) -> list[str]:
        return [self.what, f"  {self.public_key}"]


def accept_migration(
    session: Session,
    *,
    customer: str,
    script: str,
    reason: str,
    environment: str = "test",
    release: str | None = None,
    dry_run: bool = False,
) -> MigrationAccepted:
    """Records that an applied script's edit (as the release, the newest by default, has it) is harmless.

    Only this old and this new checksum are accepted; another edit stops everything again. ``script`` ``*`` records that
    the environment's database was replaced: what its history lacks counts as not applied there.
    """
    if not reason.strip():
        raise UsageError("accepting an edited migration needs a reason")
    dossier = session.dossier(customer)
    state = dossier.state()
    target = dossier.environment(environment)
    chosen = dossier.release(release, state)
    hosts = hosts_of(dossier, target)
    playbook = dossier.playbook.playbook
    with closing(hosts):
        rows = {row.script: row for row in history_of(dossier, target, hosts[target.hosts[0].name], playbook)}
    if script == EVERY_SCRIPT:
        return _accept_replaced(dossier, environment, reason, set(rows), dry_run=dry_run)
    held = {
        id: found.checksum
        for id, (found, _) in release_scripts(dossier, playbook, release_manifest(dossier, chosen), target).items()
    }
    if script not in rows:
        raise NotKnown(
            f"migration {script!r} has not run on {environment} of {customer}{did_you_mean(script, rows)}",
            next_commands=[f"invoke plan customer={customer} env={environment}"],
        )
    old, new = rows[script].checksum, held.get(script, "removed")
    result = MigrationAccepted(
        changed=False,
        what=f"migration {script} of {customer} is as it ran; there is nothing to accept",
        customer=customer,
        script=script,
        old=old,
        new=new,
        next_commands=(f"invoke plan customer={customer} release={chosen.name} env={environment}",),
    )
    known = any((a.script, a.old, a.new) == (script, old, new) for a in state.accepted)
    if old == new or known:
        return result
    run = session.new_run()

    def decide(state: State) -> list[Draft]:
        if any((a.script, a.old, a.new) == (script, old, new) for a in state.accepted):
            return []
        return [
            Draft(
                id=f"{run}-migration-accepted-1",
                run=run,
                kind="migration-accepted",
                at=session.now(),
                product=dossier.customer.product,
                environment=environment,
                release=chosen.name,
                configuration=dossier.configuration(environment),
                texts={"reason": reason, "people": dossier.people_used(session.actor.key)},
                details={"script": script, "old": old, "new": new, "algorithm": rows[script].algorithm},
            )
        ]

    if not dry_run:
        dossier.ledger.append(session.signer, decide)
    would = "would be" if dry_run else "is"
    return result.model_copy(
        update={
            "changed": not dry_run,
            "what": f"the edit of {script} for {customer} {would} accepted as harmless: {old[:12]} → {new[:12]}",
        }
    )


def _accept_replaced(
    dossier: Dossier, environment: str, reason: str, had: set[str], *, dry_run: bool
) -> MigrationAccepted:
    session, customer = dossier.session, dossier.key
    run = session.new_run()
    missing: list[str] = []

    def decide(state: State) -> list[Draft]:
        here = state.environment(environment)
        if here.running is not None:
            raise Refused(
                f"deployment {here.running.deployment} on {environment} of {customer} has no outcome yet",
                reasons=[Reason("what it applied is not recorded yet", here.running.record)],
                next_commands=[f"invoke status customer={customer}"],
            )
        missing[:] = sorted(set(here.applied) - had)
        if not missing:
            return []
        return [
            Draft(
                id=f"{run}-migration-accepted-1",
                run=run,
                kind="migration-accepted",
                at=session.now(),
                product=dossier.customer.product,
                environment=environment,
                configuration=dossier.configuration(environment),
                texts={"reason": reason, "people": dossier.people_used(session.actor.key)},
                details={"script": EVERY_SCRIPT, "missing": list(missing)},
            )
        ]

    if dry_run:
        decide(dossier.state())
    else:
        dossier.ledger.append(session.signer, decide)
    would = "would count" if dry_run else "count"
    what = f"the database of {environment} of {customer} "
    return MigrationAccepted(
        changed=bool(missing) and not dry_run,
        what=what + f"is accepted as a new one: {', '.join(missing)} {would} as not applied there"
        if missing
        else what + "has had every migration that was applied there; there is nothing to accept",
        customer=customer,
        script=EVERY_SCRIPT,
        old="",
        new="",
        missing=tuple(missing),
        next_commands=(f"invoke plan customer={customer} env={environment}",),
    )


def erase(
    session: Session,
    *,
    customer: str,
    reason: str,
    ticket: str | None = None,
    person: str | None = None,
    record: str | None = None,
    dry_run: bool = False,
) -> Erased:
    """Takes texts out for good: all that was written for a ticket, in a record, or where a person acted, decided or was asked.

    The records stay, with the hashes of what is gone, and verify as before. Pages written under ``var/`` go too; they can
    be written anew.
    """
    chosen = [name for name in (ticket, person, record) if name is not None]
    if len(chosen) != 1:
        raise UsageError(
            "say what to erase: ticket=, person= or record=" + (", one of them" if chosen else ""),
            next_commands=[f"invoke erase customer={customer} ticket=… reason=… --dry-run"],
        )
    dossier = session.dossier(customer)
    named: dict[str, dict[str, str]] = {}
    matched = False
    for one in dossier.ledger.records():
        about = (
            (ticket is not None and any(t.id == ticket for t in one.tickets))
            or (
                person is not None
                and person in {one.actor.key, one.details.get("by"), *one.details.get("approvers", ())}
            )
            or (record is not None and one.id == record)
        )
        if about:
            matched = True
            # Who acted is not what a ticket is about, but the page that showed it is, and the remarks made on it.
            named |= {
                hash: {"record": one.id, "kind": one.kind, "text": name}
                for name, hash in one.texts.items()
                if ticket is None or name != "people"
            }
    if not matched:
        raise NotKnown(
            f"no record of {customer} is about {chosen[0]!r}", next_commands=[f"invoke history customer={customer}"]
        )
    there = {hash for hash in named if dossier.ledger.text_bytes(hash) is not None}
    changed = bool(there) and not dry_run
    if changed:
        dossier.ledger.erase(
            session.signer,
            there,
            run=session.new_run(),
            at=session.now(),
            product=dossier.customer.product,
            texts={"reason": reason, "people": dossier.people_used(session.actor.key)},
            details={"count": len(there)},
        )
        shutil.rmtree(session.work / "sign-off" / customer, ignore_errors=True)
    would = "would be " if dry_run else ""
    what = next(f"{name}={one}" for name, one in (("ticket", ticket), ("person", person), ("record", record)) if one)
    again = f"invoke erase customer={customer} {what} reason={shlex.quote(reason)}"
    return Erased(
        changed=changed,
        what=f"{len(there)} text(s) of {customer} {would}erased",
        customer=customer,
        count=len(there),
        texts=tuple(text for hash, text in named.items() if hash in there),
        next_commands=(again if dry_run and there else f"invoke ledger.verify customer={customer}",),
    )


def verify_ledger(session: Session, *, customer: str) -> Verified:
    """Checks the whole chain of a customer; Refused (exit 4) with every finding and its place when it is not sound."""
    dossier = session.dossier(customer, deciding=False)
    dossier.repository.fetch()
    findings = dossier.ledger.verify(session.workspace.people)
    if findings:
        raise Refused(
            f"the ledger of {customer} does not verify: {len(findings)} finding(s)",
            reasons=findings,
            state="Nothing was changed; nothing should be decided on it.",
        )
    number = dossier.state().number
    return Verified(
        changed=False,
        what=f"the ledger of {customer} is sound: {number} record(s), every signature and link verified",
        customer=customer,
        records=number,
        findings=(),
    )


def create_key(session: Session, *, person: str, out: Path | None = None, dry_run: bool = False) -> KeyMade:
    """A signing key pair for a person of people.yaml: by default where ``signing_key`` of the workspace expects it."""
    from pipeline.signing import make_key

    known = session.workspace.people.find(person)
    if known is None:
        keys = [one.key for one in session.workspace.people.people]
        raise NotKnown(
            f"there is no {person!r} in environments/people.yaml{did_you_mean(person, keys)}",
            next_commands=["add the person to environments/people.yaml, then the same command again"],
        )
    reference = session.signing_key or session.workspace.settings.signing_key or ""
    if out is not None:
        path = session.workspace.path(str(out))
    elif reference.startswith("file:"):
        path = session.workspace.path(reference.removeprefix("file:"))
    else:
        path = Path.home() / ".config" / "tma" / "keys" / person
    if dry_run:
        return KeyMade(
            changed=False, what=f"would make {path} and {path}.pub", person=person, path=str(path), public_key=""
        )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    public = make_key(path, comment=person)
    return KeyMade(
        changed=True,
        what=f"signing key of {person}: private {path} (keep it to yourself), public {path}.pub",
        person=person,
        path=str(path),
        public_key=public,
        next_commands=("invoke status",)
        if any(key.public == f"file:{reference.removeprefix('file:')}.pub" for key in known.keys)
        else (f"add it to environments/people.yaml under {person}: keys: - public: {public}",),
    )
