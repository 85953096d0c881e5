"""A backup restored by hand, after an incident or out of a quarantine: stop, restore, start, check.

It is announced in the ledger before anything is done, and what became of it is recorded with what the database has had
then, since its history goes back with it. Until it has succeeded nothing is deployed there; the same command goes on with
it, and restores no second time what was restored already. On production what lies there now is backed up first.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from pipeline import runner
from pipeline.acts import Ground
from pipeline.content import canonical
from pipeline.errors import Failed, Interrupted, PartlyDone, PipelineError, Reason, Refused, UsageError
from pipeline.lease import Held
from pipeline.model import Environment, Manifest, Record
from pipeline.operations import Backup, Operation, Restore
from pipeline.payload import Payloads
from pipeline.playbook import Action, Plan, Target
from pipeline.state import State
from pipeline.steps import AnyStep
from pipeline.transports import LineCut
from pipeline.workflow.backups import Known, Place, digests_of, held, known_backups, lying, opened, written
from pipeline.workflow.databases import open_database
from pipeline.workflow.gathering import frozen_environment, frozen_playbook
from pipeline.workflow.outcomes import CATALOGUES
from pipeline.workflow.plans import resume_commands
from pipeline.workflow.session import Result, Session


class BackupRestored(Result):
    """What was restored, or (``--dry-run``) what would be done, in order. ``kept`` names the backup of what lay there before."""

    customer: str
    environment: str
    label: str
    actions: tuple[dict[str, Any], ...] = ()
    restored: tuple[dict[str, Any], ...] = ()
    kept: str | None = None
    checks: tuple[dict[str, Any], ...] = ()
    migrations: tuple[str, ...] = ()
    record: str | None = None
    refusals: tuple[dict[str, Any], ...] = ()

    def lines(self) -> list[str]:
        lines = [self.what]
        lines += [f"  {a['number']:>2}. {a['host']}: {a['title']}" for a in self.actions]
        if self.kept:
            lines.append(f"  what lay there before is kept as backup {self.kept}")
        lines += [f"  {check['title']} on {check['host']}: {check['outcome']}" for check in self.checks]
        return lines


def restore(
    session: Session, *, customer: str, environment: str, backup: str, reason: str, dry_run: bool = False
) -> BackupRestored:
    """The database and ``shared/`` as this backup has them; whatever was put into them since is lost.

    The installed release's own playbook says how its application is stopped and started. Refused while a deployment is
    open, and for bytes that the ledger does not know. Where the environment is quarantined, the application stays stopped.
    """
    if not reason.strip():
        raise UsageError("a restore needs a reason")
    with opened(session, customer, environment, deciding=True) as place:
        chosen = _chosen(place, backup)
        unfinished = _unfinished(place, backup)
        if unfinished is None:
            # Before the application is stopped for it; what is gone on with may be restored already.
            _as_known(place, chosen)
        plan = _plan(place, chosen)
        result = BackupRestored(
            changed=False,
            what=f"backup {backup} would be restored on {environment} of {customer}; what was put there since would be lost",
            customer=customer,
            environment=environment,
            label=backup,
            actions=tuple({"number": a.number, "host": a.host, "title": a.title} for a in plan.actions),
            next_commands=(f"invoke backup.restore {place.named} backup={backup} reason=…",),
        )
        if dry_run:
            return result
        run = unfinished.run if unfinished is not None else session.new_run()
        backups = [_as_noted(one, number) for number, one in _numbered(plan, chosen)]
        with held(place, run, "backup.restore") as lease:

            def check(state: State) -> None:
                _nothing_open(place, state)
                if state.environment(environment).applied != place.state.environment(environment).applied:
                    raise Refused(
                        f"{environment} of {customer} has changed while this was being looked at",
                        next_commands=[f"invoke status customer={customer}"],
                    )

            begun = {"label": backup}
            announced = written(place, lease, run, "backup-restored", begun, reason, check=check)
            session.progress(f"restore of backup {backup} on {environment} of {customer}")
            try:
                ground = _ground(place, announced, lease)
                report = runner.carry(plan, ground, backups)
                whole = len(report.restored) == len(backups)
                unchanged = not whole and not report.restored and isinstance(report.error, Refused)
                if unchanged:
                    # Nothing was put back, so what was stopped for it goes on.
                    runner.carry(_again(plan), ground)
                scripts = place.history() if whole else {}
            except (KeyboardInterrupt, SystemExit):
                raise Interrupted(
                    f"the restore of backup {backup} on {environment} of {customer} was interrupted",
                    state=_OPEN,
                    next_commands=result.next_commands,
                ) from None
            except (LineCut, PipelineError) as error:
                said = (
                    [Reason(error.what), *error.reasons] if isinstance(error, PipelineError) else [Reason(str(error))]
                )
                raise PartlyDone(
                    f"the restore of backup {backup} on {environment} of {customer}: outcome unknown",
                    reasons=[Reason(session.conceal(one.text), one.source) for one in said],
                    state=_OPEN,
                    next_commands=result.next_commands,
                ) from error
            kept = [one for one in report.backups if one not in backups]
            details: dict[str, Any] = {
                "label": backup,
                "restored": report.restored,
                "backups": kept,
                "checks": report.checks,
                "unchanged": unchanged,
                "began": announced.id,
            }
            if any(one["what"] == "database" for one in report.restored) and whole:
                covered = place.state.environment(environment).covered
                details |= {"scripts": scripts, "covered": [script for script in covered if script in scripts]}
            files: dict[str, bytes] = {}
            if whole and "after" in report.catalogue:
                data = files[CATALOGUES["after"]] = canonical(report.catalogue["after"])
                details["catalogue"] = {"after": sha256(data).hexdigest()}
            if report.error is not None:
                details["failed_action"] = report.failed.title if report.failed else None
            record = written(
                place, lease, run, "backup-restored", details, reason, outcome="ok" if whole else "failed", files=files
            )
        done = result.model_copy(
            update={
                "changed": True,
                "what": f"backup {backup} is restored on {environment} of {customer}",
                "actions": (),
                "restored": tuple(report.restored),
                "kept": kept[0]["label"] if kept else None,
                "checks": tuple(report.checks),
                "migrations": tuple(scripts),
                "record": record.id,
                "next_commands": _next(place),
            }
        )
        if report.error is not None:
            raise _failed(done, report, record, whole=whole, unchanged=unchanged, again=result.next_commands)
        return done


_OPEN = "It was begun: nothing is deployed there until it has succeeded. The same command goes on with it."


# --- deciding -----------------------------------------------------------------------------------------------------------


def _chosen(place: Place, label: str) -> list[Known]:
    """What of this label is restored: what lies on the hosts, as the ledger knows it."""
    _nothing_open(place, place.state)
    known = known_backups(place)
    there = lying(place, label)
    chosen = [known[what, host, label] for what, host in there if (what, host, label) in known]
    if len(chosen) < len(there):
        raise Refused(
            f"backup {label} of {place.key} of {place.dossier.key} is not in the ledger",
            reasons=[Reason("whose it is, and whether its bytes are as they were, is not known")],
            next_commands=[f"invoke backup.prove {place.named} backup={label}"],
        )
    return chosen


def _as_known(place: Place, chosen: Sequence[Known]) -> None:
    """Refused where the bytes of one of these backups are not those that the ledger knows."""
    changed: list[Reason] = []
    for one in chosen:
        paths = [found.path for found in place.found(one.what, one.host) if found.label == one.label]
        changed += [
            Reason(f"{path}: its SHA-256 is {sha256}, and the ledger has {one.sha256}: it was changed", one.record)
            for path, sha256 in digests_of(place.hosts[one.host], paths).items()
            if sha256 != one.sha256
        ]
    if changed:
        raise Refused(
            f"backup {chosen[0].label} was not restored on {place.key} of {place.dossier.key}",
            reasons=changed,
            state="Nothing was stopped and nothing was put back.",
            next_commands=[f"invoke backup.list {place.named}"],
        )


def _nothing_open(place: Place, state: State) -> None:
    running = state.environment(place.key).running
    if running is not None:
        raise Refused(
            f"deployment {running.deployment} on {place.key} of {place.dossier.key} has no outcome yet",
            reasons=[Reason(f"{running.purpose} of {running.release}", running.record)],
            next_commands=[
                *resume_commands(place.dossier.key, place.key, running),
                f"invoke rollback customer={place.dossier.key} env={place.key}",
            ],
        )


def _unfinished(place: Place, label: str) -> Record | None:
    """The record of a restore of this backup that has not succeeded: its run is gone on with."""
    if place.state.environment(place.key).restoring != label:
        return None
    for record in place.dossier.ledger.records():
        mine = record.environment == place.key and record.kind == "backup-restored"
        if mine and record.details.get("label") == label:
            return record
    # It was the way back of a deployment, which is over.
    return None


def _plan(place: Place, chosen: Sequence[Known]) -> Plan:
    """Stop, on production back up what is there, restore, start, check."""
    here = place.state.environment(place.key)
    actions: list[Action] = []

    def wave(host: str, title: str, what: Operation, number: int) -> None:
        actions.append(Action(number=len(actions) + 1, title=title, host=host, what=what, wave=number))

    steps, target = _steps(place)
    stops: list[AnyStep] = [step for step in steps if step.kind == "stop"]
    if here.quarantined is not None and not stops:
        # It may be the new release that runs, which the playbook of now knows how to stop.
        stops = [step for step in place.dossier.playbook.playbook.steps if step.kind == "stop"]
    for step in stops:
        _each(place, step, target, wave, kinds={"stop"}, number=1)
    if place.key == "production":
        for host in dict.fromkeys(one.host for one in chosen):
            kinds = {one.what for one in chosen if one.host == host}
            backup = Backup(database="database" in kinds, shared="shared" in kinds)
            wave(host, f"back up {' and '.join(map(_named, sorted(kinds)))} as it is now", backup, 2)
    for one in chosen:
        what_, number = one.what, len(actions) + 1
        restore_ = Restore(step=number, database=what_ == "database", shared=what_ == "shared")
        wave(one.host, f"restore {_named(what_)} from backup {one.label}", restore_, 3)
    if here.quarantined is None:
        for step in steps:
            _each(place, step, target, wave, kinds={"start", "restart", "check"}, number=4)
    release = here.installed.release if here.installed is not None else "none"
    return Plan(
        customer=place.dossier.key,
        environment=place.key,
        release=release,
        installed=release if here.installed is not None else None,
        actions=tuple(actions),
    )


def _steps(place: Place) -> tuple[Sequence[AnyStep], Target | None]:
    """The installed release's own steps, and what they are filled in with; nothing where nothing is installed."""
    installed = place.state.environment(place.key).installed
    if installed is None:
        return (), None
    release = place.dossier.release(installed.release, place.state)
    environment: Environment = frozen_environment(place.dossier, installed, place.environment)
    target = Target(
        customer=place.dossier.customer,
        environment=environment,
        release=release.name,
        version=release.version,
        installed=release.name,
    )
    return frozen_playbook(place.dossier, installed).steps, target


def _each(place: Place, step: AnyStep, target: Target | None, wave: Any, *, kinds: set[str], number: int) -> None:
    if step.kind not in kinds or target is None:
        return
    for host in target.environment.hosts:
        operation = step.operation(target, host)
        if operation is not None:
            title = step.title(target, operation)
            wave(host.name, title, operation, number)


def _named(what: str) -> str:
    return "the database" if what == "database" else "shared/"


def _numbered(plan: Plan, chosen: Sequence[Known]) -> list[tuple[int, Known]]:
    numbers = [action.number for action in plan.actions if isinstance(action.what, Restore)]
    return list(zip(numbers, chosen, strict=True))


def _as_noted(one: Known, number: int) -> dict[str, Any]:
    noted = {"step": number, "what": one.what, "label": one.label, "host": one.host, "path": one.path}
    return noted | {"sha256": one.sha256, "size": one.size}


def _again(plan: Plan) -> Plan:
    """What is left to do where nothing was restored: the application starts again."""
    after = [action for action in plan.actions if action.wave == 4]
    return plan.model_copy(update={"actions": tuple(after)})


# --- acting -------------------------------------------------------------------------------------------------------------


def _ground(place: Place, announced: Record, lease: Held) -> Ground:
    dossier, session = place.dossier, place.dossier.session
    digest = dossier.ledger.record_sha256(announced.id)
    assert digest is not None
    installed = place.state.environment(place.key).installed
    return Ground(
        hosts=place.hosts,
        database=lambda host, proof=None: open_database(dossier, place.environment, host, proof),
        manifest=Manifest(tree="0" * 40, files=()),
        payloads=Payloads(session.work / "cache" / "payloads", dossier.repository.read_stream),
        render=lambda host, template: b"",
        scripts={},
        run=announced.run,
        fence=announced.number,
        customer=dossier.key,
        environment=place.key,
        content=installed.content if installed is not None else None,
        record=announced.id,
        record_sha256=digest,
        progress=session.progress,
        conceal=session.conceal,
        shared=place.shared,
        still_ours=lease.check,
        clock=session.now,
    )


def _next(place: Place) -> tuple[str, ...]:
    if place.state.environment(place.key).quarantined is not None:
        installed = place.state.environment(place.key).installed
        back = [f"invoke rollback {place.named}"] if installed is not None else []
        return (*back, f"invoke lock.release {place.named} installed=… reason=…")
    return (f"invoke status customer={place.dossier.key}",)


def _failed(
    done: BackupRestored,
    report: runner.Report,
    record: Record,
    *,
    whole: bool,
    unchanged: bool,
    again: Sequence[str],
) -> PipelineError:
    assert report.error is not None
    where = report.failed.host if report.failed else None
    reasons = [Reason(report.error.what, where), *report.error.reasons]
    if unchanged:
        return Refused(
            f"backup {done.label} was not restored on {done.environment} of {done.customer}",
            reasons=reasons,
            state=f"Nothing was put back; the application goes on as it was. It is recorded ({record.id}).",
            next_commands=[f"invoke backup.list customer={done.customer} env={done.environment}"],
        )
    if whole:
        return Failed(
            f"backup {done.label} is restored on {done.environment} of {done.customer}, and the application does not serve",
            reasons=reasons,
            state=f"The data is as the backup has it. It is recorded ({record.id}).",
            next_commands=done.next_commands,
        )
    return PartlyDone(
        f"backup {done.label} was not restored whole on {done.environment} of {done.customer}",
        reasons=reasons,
        state=f"{report.error.state} The application is stopped, and nothing is deployed until a restore has succeeded "
        f"({record.id}).",
        next_commands=again,
    )
