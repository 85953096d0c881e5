"""How each operation of a plan is done: by the host itself, as a step of a job, or through it, by the controller.

A new operation is one class in :mod:`pipeline.operations` and one function here, in :data:`HOST_ACTS` or
:data:`THROUGH`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.content import settings_digest
from pipeline.databases import BackupTaken, Catalogue, Database
from pipeline.errors import Failed, PartlyDone, PipelineError, Reason, Refused, Unreachable
from pipeline.host import Host, sentences
from pipeline.host_journal import JournalEntry
from pipeline.http_check import get
from pipeline.job import DIFFERENT, REFUSED, Direction, JobStep, StepTold
from pipeline.model import Manifest, Outcome, Script
from pipeline.operations import Backup, Command, Http, Migrate, Operation, Probe, Render, Restore, Switch, Upload
from pipeline.payload import Payload, Payloads
from pipeline.playbook import Action, Plan
from pipeline.shared_backup import SharedBackups
from pipeline.transports import TIMED_OUT, LineCut

ATTEMPT_SECONDS = 10.0
"""After so long one question of a check is given up and asked anew: who was starting may answer the next."""


@dataclass(frozen=True)
class Ground:
    """What a run stands on: the hosts by key, the database, the release's files, and what to write in the journal.

    ``database`` opens the environment's database from one host, with ``proof=`` where a backup is to be proven otherwise
    than its settings say; ``shared`` gives the backups of a host's ``shared/``. ``restoring`` is told of the backups that
    the way back is about to restore, before it begins; ``payloads`` gives what a host must be sent; ``base`` the
    release that serves on a host, with its files, where its list there is whole; ``render`` the bytes of one template of
    the release for one host; ``conceal`` a text without any secret that was resolved (a product's own command may print
    one). ``record`` is the id and ``record_sha256`` the digest of the ledger's record that this attempt was announced with.
    ``scripts`` are the release's migrations with their bytes, ``verify`` the texts that must run after some of them, and
    ``covers`` what counts as applied with the full schema of a new database.
    ``clean`` names the releases that a host no longer needs once it is done. ``still_ours`` raises when another run has
    taken the environment.
    """

    hosts: Mapping[str, Host]
    database: Callable[..., Database] | None
    manifest: Manifest
    payloads: Payloads
    render: Callable[[str, str], bytes]
    scripts: Mapping[str, tuple[Script, bytes]]
    run: str
    fence: int
    customer: str
    environment: str
    content: str | None
    record: str
    record_sha256: str
    progress: Callable[[str], None]
    base: Callable[[str], tuple[str, Manifest] | None] = lambda host: None
    clean: Callable[[str], tuple[str, ...]] = lambda host: ()
    verify: Mapping[str, bytes] = field(default_factory=dict)
    covers: tuple[Script, ...] = ()
    conceal: Callable[[str], str] = str
    still_ours: Callable[[], None] = lambda: None
    shared: Callable[[Host], SharedBackups] | None = None
    restoring: Callable[[list[dict[str, Any]]], None] = lambda backups: None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def entry(self, release: str) -> JournalEntry:
        """What every journal entry of this attempt has in common."""
        return JournalEntry(
            run=self.run,
            fence=self.fence,
            customer=self.customer,
            environment=self.environment,
            release=release,
            content=self.content,
            at=self.clock(),
            what="deployment-started",
            record=self.record,
            record_sha256=self.record_sha256,
        )

    def told(self, action: Action, error: Exception) -> PipelineError:
        """The error as one of ours; of an unexpected one only its type and its first words."""
        if isinstance(error, PipelineError):
            return error
        words = " ".join(self.conceal(str(error)).split())[:200]
        return Failed(
            f"{action.title} ended unexpectedly on {action.host}: {type(error).__name__}",
            reasons=[Reason(words, action.host)] if words else (),
            state="",
            details={"exception": type(error).__name__},
        )


@dataclass
class Report:
    """What became of a run. ``error`` is what failed, ``trouble`` what failed on the way back (then quarantined).

    ``left`` names hosts that finished and keep the new release although others failed (``on_failure: leave``).
    ``half_done`` are migrations that were begun and not finished, or may have been; ``catalogue`` is what the schema was
    made of ``before`` the first migration and ``after`` the last one of this attempt. ``backups`` are those made, or made
    by an earlier attempt and proven again; ``restored`` those that were put back.
    """

    outcome: Outcome = "ok"
    done: list[Action] = field(default_factory=list)
    failed: Action | None = None
    error: PipelineError | None = None
    back: list[Action] = field(default_factory=list)
    trouble: PipelineError | None = None
    scripts: list[str] = field(default_factory=list)
    half_done: list[str] = field(default_factory=list)
    catalogue: dict[str, Catalogue] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    backups: list[dict[str, Any]] = field(default_factory=list)
    restored: list[dict[str, Any]] = field(default_factory=list)
    past_return: bool = False
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A step of a job, with what it brings along."""

    step: JobStep
    payload: Payload | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def host_does(action: Action) -> bool:
    """Whether the host does this by itself."""
    return type(action.what) in HOST_ACTS


@dataclass(frozen=True)
class How:
    """``whole`` sends all files, whatever the host holds; ``back``: Switch and Render mean their opposites.

    ``spoilt`` is what was sent before, and was not what it should be: it is made anew. ``copy``: the new release shares
    no file with the old one. ``nth``: how many actions before this one do the same on this host.
    """

    whole: bool = False
    back: bool = False
    spoilt: Payload | None = None
    copy: bool = False
    nth: int = 0


def host_step(action: Action, plan: Plan, ground: Ground, how: How) -> Part:
    """The step of a job."""
    return HOST_ACTS[type(action.what)](action, plan, ground, how)


def controller_step(
    action: Action,
    plan: Plan,
    ground: Ground,
    how: How,
    direction: Direction,
    outcome: Literal["ok", "failed"] | None = None,
) -> JobStep:
    """What is written down on the host about an action that the controller does itself."""
    inputs = _inputs(action, plan, how, record=ground.record)
    return JobStep(action.number, inputs, of="controller", direction=direction, outcome=outcome)


def through(action: Action, plan: Plan, ground: Ground, report: Report, perhaps: set[str]) -> None:
    """Does an action through the host. ``perhaps`` gets the migrations of which nobody knows whether they are applied."""
    THROUGH[type(action.what)](action, plan, ground, report, perhaps)


def serving_inputs(action: Action, plan: Plan, record: str, nth: int) -> str:
    """The inputs with which the attempt of this record wrote down that it stops or starts the application."""
    return _inputs(action, plan, How(nth=nth), record=record)


def note(action: Action, outcome: Literal["ok", "failed"], report: Report) -> None:
    """Adds the outcome of a check of the new release to the report."""
    if isinstance(action.what, Http | Probe) and not action.old:
        report.checks.append({"title": action.title, "host": action.host, "outcome": outcome})


NOT_ALONE = Failed("what the host holds is not what the payload was made for")
"""What :func:`trouble_of` gives where the files must be sent whole."""


def trouble_of(action: Action, told: StepTold, ground: Ground) -> PipelineError:
    """Why the host's step failed, in words."""
    lines = [ground.conceal(line) for line in told.output]
    reasons = [Reason(line, action.host) for line in lines[-5:]]
    what = action.what
    if told.code == REFUSED:
        return Refused(f"{action.title} on {action.host} was refused.", reasons=reasons)
    if isinstance(what, Upload):
        if told.code == DIFFERENT and not lines:
            return NOT_ALONE
        if told.code == DIFFERENT:
            found = sentences("\n".join(told.output).encode("utf-8", "surrogateescape"))
            return Failed(
                f"the release did not arrive whole on {action.host}.",
                reasons=[Reason(sentence, action.host) for sentence in found],
                state="The upload was removed again; what serves was not touched.",
            )
    if isinstance(what, Command | Probe):
        said = f"{' '.join(what.argv)} ended with {told.code} on {action.host}"
        if told.code == TIMED_OUT:
            limit = what.seconds if isinstance(what, Command) else what.within
            reasons.insert(0, Reason(f"it took longer than {limit} seconds", action.host))
        return Failed(f"check failed on {action.host}: {said}" if isinstance(what, Probe) else said, reasons=reasons)
    return Failed(f"{action.title} on {action.host} did not work (exit code {told.code}).", reasons=reasons)


def _inputs(action: Action, plan: Plan, how: How, **more: str) -> str:
    """SHA-256 of what an action is done with; with the attempt's record where it is to be done anew by each attempt.

    The action's number is no part of it: a migration that is applied is no longer in the plan of the next attempt.
    """
    what = action.what.model_dump(mode="json")
    return settings_digest({"release": plan.release, "what": what, "nth": how.nth, **more})


# --- what a host does by itself ---------------------------------------------------------------------------------------


def _upload(action: Action, plan: Plan, ground: Ground, how: How) -> Part:
    base = None if how.whole else ground.base(action.host)
    there = base[1] if base else None
    payload = ground.payloads.get(ground.manifest, there)
    more = {"base": base[0] if base else ""}
    if how.spoilt is not None:
        payload = ground.payloads.renew(how.spoilt, ground.manifest, there)
        more["anew"] = ground.record
    inputs = _inputs(action, plan, how, digest=payload.digest, **more)
    words = (plan.release, payload.digest, base[0] if base else "", "copy" if how.copy else "link")
    return Part(JobStep(action.number, inputs, "upload", words), payload)


def _render(action: Action, plan: Plan, ground: Ground, how: How) -> Part:
    assert isinstance(action.what, Render)
    inputs = _inputs(action, plan, how, record=ground.record)
    if how.back:
        return Part(JobStep(action.number, inputs, "restore"))
    files = {
        f"{action.number}/{path}": ground.render(action.host, template)
        for template, path in action.what.templates.items()
    }
    return Part(JobStep(action.number, inputs, "render", (str(action.number),)), files=files)


def _switch(action: Action, plan: Plan, ground: Ground, how: How) -> Part:
    to = (plan.installed or "") if how.back else plan.release
    return Part(JobStep(action.number, _inputs(action, plan, how, to=to), "switch", (to,)))


def _command(action: Action, plan: Plan, ground: Ground, how: How) -> Part:
    what = action.what
    assert isinstance(what, Command)
    folder = "current" if what.folder == "current" else f"releases/{plan.release}"
    words = (str(what.seconds), folder, *what.argv)
    # What stops, starts or takes out of the load balancer may be undone between two attempts, and may be done again.
    again = {"record": ground.record} if what.serving or what.traffic else {}
    inputs = _inputs(action, plan, how, **again)
    return Part(JobStep(action.number, inputs, "command", words, what.seconds, environment=_environment(plan)))


def _probe(action: Action, plan: Plan, ground: Ground, how: How) -> Part:
    what = action.what
    assert isinstance(what, Probe)
    words = (str(what.within), "current", *what.argv)
    inputs = _inputs(action, plan, how, record=ground.record)
    return Part(JobStep(action.number, inputs, "probe", words, 2 * what.within + 10, environment=_environment(plan)))


def _environment(plan: Plan) -> dict[str, str]:
    return {"TMA_CUSTOMER": plan.customer, "TMA_ENVIRONMENT": plan.environment, "TMA_RELEASE": plan.release}


HOST_ACTS: dict[type[Operation], Callable[[Action, Plan, Ground, How], Part]] = {
    Upload: _upload,
    Render: _render,
    Switch: _switch,
    Command: _command,
    Probe: _probe,
}


# --- what is done through a host ----------------------------------------------------------------------------------------


def _backup(action: Action, plan: Plan, ground: Ground, report: Report, perhaps: set[str]) -> None:
    what = action.what
    assert isinstance(what, Backup)
    host = ground.hosts[action.host].guarded(ground.fence)
    if what.database:
        assert ground.database is not None
        database = ground.database(host, proof=what.proof) if what.proof else ground.database(host)
        try:
            label = backup_label(action, plan, ground, database)
            taken = database.backup(label)
        finally:
            database.close()
        report.backups.append(noted(action, "database", label, taken))
    if what.shared:
        assert ground.shared is not None
        label = _first_label(action, plan, ground.run)
        report.backups.append(noted(action, "shared", label, ground.shared(host).take(label)))


def noted(action: Action, what: Literal["database", "shared"], label: str, taken: BackupTaken) -> dict[str, Any]:
    """A backup as records keep it; ``step`` is the action that made it."""
    return {"step": action.number, "what": what, "label": label, "host": action.host} | asdict(taken)


def _first_label(action: Action, plan: Plan, run: str) -> str:
    """The name of the backup that this action makes: the run's, and with a number where it makes several."""
    same = [a.number for a in plan.actions if isinstance(a.what, Backup) and a.host == action.host]
    nth = same.index(action.number) + 1
    return run if nth == 1 else f"{run}.{nth}"


def placed(backups: Sequence[dict[str, Any]], plan: Plan, run: str) -> list[dict[str, Any]]:
    """Backups of an earlier attempt with the numbers that the actions which made them have in this plan."""
    made = {(a.host, _first_label(a, plan, run)): a.number for a in plan.actions if isinstance(a.what, Backup)}
    return [
        {**backup, "step": made.get((backup["host"], backup["label"].partition(".attempt-")[0]), 0)}
        for backup in backups
    ]


def backup_label(action: Action, plan: Plan, ground: Ground, database: Database) -> str:
    """The name of the backup that this attempt makes, or has from an earlier attempt of its run.

    What the way back may restore must be as new as can be: as long as no script of the run is in the database, each
    attempt makes its own. From then on the last one counts, which has the database as it was before.
    """
    first = _first_label(action, plan, ground.run)
    if action.number not in plan.restore_from.values():
        return first
    again = f"{first}.attempt-"
    numbers = [
        0 if found.label == first else int(found.label.removeprefix(again))
        for found in database.backups()
        if found.label == first or (found.label.startswith(again) and found.label.removeprefix(again).isdecimal())
    ]
    if not numbers:
        return first
    if any(row.run == ground.run for row in database.history()):
        return f"{again}{max(numbers)}" if max(numbers) else first
    return f"{again}{ground.fence}"


def _restore(action: Action, plan: Plan, ground: Ground, report: Report, perhaps: set[str]) -> None:
    what = action.what
    assert isinstance(what, Restore)
    host = ground.hosts[action.host].guarded(ground.fence)
    for backup in report.backups:
        if backup["step"] != what.step or not (what.database if backup["what"] == "database" else what.shared):
            continue
        ground.progress(f"    {backup['label']}")
        if backup["what"] == "database":
            assert ground.database is not None
            database = ground.database(host)
            try:
                restore_database(database, backup["label"], backup["sha256"], ground.fence, ground.run)
                with suppress(PipelineError, LineCut):
                    report.catalogue["after"] = database.catalogue()
            finally:
                database.close()
        else:
            assert ground.shared is not None
            ground.shared(host).restore(backup["label"], sha256=backup["sha256"], run=ground.run)
        report.restored.append(backup)


def restore_database(database: Database, label: str, sha256: str | None, fence: int, run: str) -> None:
    """Restores, unless this run has: whoever has written to the database since is not to lose it a second time."""
    if not any(event.what == "restored" and event.run == run for event in database.events()):
        database.restore(label, sha256=sha256, fence=fence, run=run)


def _migrate(action: Action, plan: Plan, ground: Ground, report: Report, perhaps: set[str]) -> None:
    assert isinstance(action.what, Migrate)
    assert ground.database is not None
    after_switch = plan.point_of_no_return is not None and action.number >= plan.point_of_no_return
    database = ground.database(ground.hosts[action.host].guarded(ground.fence))
    try:
        if "before" not in report.catalogue:
            report.catalogue["before"] = database.catalogue()
        try:
            for name in action.what.scripts:
                _apply(name, plan, ground, report, perhaps, database, after_switch=after_switch)
        except PipelineError:
            # Also of what failed: the next look at the schema compares with it. What failed is what is told.
            with suppress(PipelineError, LineCut):
                report.catalogue["after"] = database.catalogue()
            raise
        report.catalogue["after"] = database.catalogue()
    finally:
        database.close()


def _apply(
    name: str,
    plan: Plan,
    ground: Ground,
    report: Report,
    perhaps: set[str],
    database: Database,
    *,
    after_switch: bool,
) -> None:
    script, sql = ground.scripts[name]
    ground.progress(f"    {name}")
    try:
        if database.apply(
            script,
            sql,
            fence=ground.fence,
            run=ground.run,
            release=plan.release,
            verify=ground.verify.get(name),
            covers=ground.covers if script.kind == "initial" else (),
        ):
            report.scripts.append(name)
    except Exception as error:
        # It may have been applied, or a part of it, so the old code may not run any more.
        if isinstance(error, PartlyDone) or not isinstance(error, PipelineError):
            report.past_return = report.past_return or after_switch
            report.half_done.append(name)
            perhaps.add(name)
        raise
    report.past_return = report.past_return or after_switch


def _http(action: Action, plan: Plan, ground: Ground, report: Report, perhaps: set[str]) -> None:
    what = action.what
    assert isinstance(what, Http)
    seen = "it was not asked"
    deadline = time.monotonic() + what.within
    while True:
        try:
            left = min(ATTEMPT_SECONDS, max(1.0, deadline - time.monotonic()))
            status, body = get(ground.hosts[action.host].transport.dial, what.url, left)
            if status != what.status:
                seen = f"it answered with status {status}, not {what.status}"
            elif what.contains is not None and what.contains not in body:
                seen = f"its answer does not contain {what.contains!r}: {ground.conceal(body)[:200]!r}"
            else:
                return
        except (OSError, Unreachable) as error:
            said = error.what if isinstance(error, PipelineError) else str(error)
            seen = f"it did not answer: {ground.conceal(said)}"
        if time.monotonic() >= deadline:
            raise Failed(f"check failed on {action.host}: {what.url}", reasons=[Reason(seen, action.host)])
        time.sleep(0.2)


THROUGH: dict[type[Operation], Callable[[Action, Plan, Ground, Report, set[str]], None]] = {
    Backup: _backup,
    Restore: _restore,
    Migrate: _migrate,
    Http: _http,
}
