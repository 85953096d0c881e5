"""How each operation of a plan is done: by the host itself, as a step of a job, or through it, by the controller.

A new operation is one class in :mod:`pipeline.operations` and one function here, in :data:`HOST_ACTS` or
:data:`THROUGH`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.content import settings_digest
from pipeline.databases import Database
from pipeline.errors import Failed, PartlyDone, PipelineError, Reason, Refused, Unreachable
from pipeline.host import Host, sentences
from pipeline.host_journal import JournalEntry
from pipeline.http_check import get
from pipeline.job import DIFFERENT, REFUSED, Direction, JobStep, StepTold
from pipeline.model import Manifest, Outcome, Script
from pipeline.operations import Backup, Command, Http, Migrate, Operation, Probe, Render, Switch, Upload
from pipeline.payload import Payload, Payloads
from pipeline.playbook import Action, Plan
from pipeline.transports import TIMED_OUT

ATTEMPT_SECONDS = 10.0
"""After so long one question of a check is given up and asked anew: who was starting may answer the next."""


@dataclass(frozen=True)
class Ground:
    """What a run stands on: the hosts by key, the database, the release's files, and what to write in the journal.

    ``database`` opens the environment's database from one host; ``payloads`` gives what a host must be sent; ``base`` the
    release that serves on a host, with its files, where its list there is whole; ``render`` the bytes of one template of
    the release for one host; ``conceal`` a text without any secret that was resolved (a product's own command may print
    one). ``record`` is the id and ``record_sha256`` the digest of the ledger's record that this attempt was announced with.
    ``clean`` names the releases that a host no longer needs once it is done. ``still_ours`` raises when another run has
    taken the environment.
    """

    hosts: Mapping[str, Host]
    database: Callable[[Host], Database] | None
    manifest: Manifest
    payloads: Payloads
    render: Callable[[str, str], bytes]
    scripts: Mapping[str, tuple[Script, bytes]]
    run: str
    fence: int
    customer: str
    environment: str
    content: str
    record: str
    record_sha256: str
    progress: Callable[[str], None]
    base: Callable[[str], tuple[str, Manifest] | None] = lambda host: None
    clean: Callable[[str], tuple[str, ...]] = lambda host: ()
    conceal: Callable[[str], str] = str
    still_ours: Callable[[], None] = lambda: None
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
    """

    outcome: Outcome = "ok"
    done: list[Action] = field(default_factory=list)
    failed: Action | None = None
    error: PipelineError | None = None
    back: list[Action] = field(default_factory=list)
    trouble: PipelineError | None = None
    scripts: list[str] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    backups: list[dict[str, Any]] = field(default_factory=list)
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
    assert ground.database is not None
    database = ground.database(ground.hosts[action.host].guarded(ground.fence))
    try:
        taken = database.backup(ground.run)
    finally:
        database.close()
    report.backups.append({"host": action.host, "path": taken.path, "sha256": taken.sha256, "size": taken.size})


def _migrate(action: Action, plan: Plan, ground: Ground, report: Report, perhaps: set[str]) -> None:
    assert isinstance(action.what, Migrate)
    assert ground.database is not None
    after_switch = plan.point_of_no_return is not None and action.number >= plan.point_of_no_return
    database = ground.database(ground.hosts[action.host].guarded(ground.fence))
    try:
        for name in action.what.scripts:
            script, sql = ground.scripts[name]
            ground.progress(f"    {name}")
            try:
                if database.apply(script, sql, fence=ground.fence, run=ground.run, release=plan.release):
                    report.scripts.append(name)
            except Exception as error:
                # It may have been applied, so the old code may not run any more.
                if isinstance(error, PartlyDone) or not isinstance(error, PipelineError):
                    report.past_return = report.past_return or after_switch
                    perhaps.add(name)
                raise
            report.past_return = report.past_return or after_switch
    finally:
        database.close()


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
    Migrate: _migrate,
    Http: _http,
}
