"""Runs a plan on its hosts: step by step, and back again when a step fails.

Three outcomes, never two: *ok*; *failed*, and then what was there before serves again; *unknown*, when a line was cut or
the run stopped past the point of no return: then nothing is guessed, and the same command resumes. A way back that fails
quarantines the environment. The runner decides nothing: which actions there are, and the order of the way back, come
from :mod:`pipeline.playbook` and :mod:`pipeline.way_back`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.databases import Database
from pipeline.errors import Failed, PartlyDone, PipelineError, Reason, Unreachable
from pipeline.host import Host
from pipeline.host_journal import JournalEntry
from pipeline.http_check import get
from pipeline.model import Manifest, Outcome, Script
from pipeline.operations import Backup, Command, Http, Migrate, Operation, Probe, Render, Switch, Upload
from pipeline.playbook import Action, Plan
from pipeline.transports import LineCut, Result
from pipeline.way_back import way_back

ATTEMPT_SECONDS = 10.0
"""After so long one question of a check is given up and asked anew: who was starting may answer the next."""


@dataclass(frozen=True)
class Ground:
    """What a run stands on: the hosts by key, the database, the release's files, and what to write in the journal.

    ``database`` opens the environment's database from one host; ``read`` streams blobs of the release by object id;
    ``render`` gives the bytes of one template of the release for one host, ``conceal`` a text without any secret that was
    resolved (a product's own command may print one). ``record`` is the id and ``record_sha256`` the
    digest of the ledger's record that this attempt was announced with.
    """

    hosts: Mapping[str, Host]
    database: Callable[[Host], Database] | None
    manifest: Manifest
    read: Callable[..., Any]
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
    conceal: Callable[[str], str] = str
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)


@dataclass
class Report:
    """What became of a run. ``error`` is what failed, ``trouble`` what failed on the way back (then quarantined)."""

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


def run(plan: Plan, ground: Ground, before: Plan | None, *, past_return: bool = False) -> Report:
    """Does every action of ``plan``; on a failure goes the way back to ``before``.

    ``past_return`` says that an earlier attempt of this run has already applied a migration past the point of no return.
    LineCut, KeyboardInterrupt and SystemExit pass through: the attempt stays open and can be resumed. Any other
    exception, also one that nobody thought of, is a failed action.
    """
    report = Report(past_return=past_return)
    for name in dict.fromkeys(action.host for action in plan.actions):
        ground.hosts[name].prepare()
        _journal(ground, plan.release, name, "deployment-started", None)
    total = len(plan.actions)
    for action in plan.actions:
        ground.progress(f"[{action.number}/{total}] {action.host}: {action.title}")
        try:
            _do(action, plan, ground, report)
        except LineCut:
            raise
        except Exception as error:
            report.outcome, report.failed, report.error = "failed", action, _told(ground, action, error)
            break
        report.done.append(action)
    else:
        for name in dict.fromkeys(action.host for action in plan.actions):
            _journal(ground, plan.release, name, "deployment-finished", "ok")
        return report
    if report.past_return:
        report.outcome = "unknown"
        return report
    # The failed action may have done part of its work, so it is taken back as well.
    _go_back(plan, ground, before, report, [*report.done, report.failed])
    return report


def bring_back(plan: Plan, ground: Ground, before: Plan | None) -> Report:
    """The way back from a run that was left open: as if every action had been done, since any of them may have been."""
    report = Report(outcome="failed", error=Failed("it was left open, and is brought back by rollback"))
    for name in dict.fromkeys(action.host for action in plan.actions):
        ground.hosts[name].prepare()
        _journal(ground, plan.release, name, "deployment-started", None)
    _go_back(plan, ground, before, report, list(plan.actions))
    return report


def _go_back(plan: Plan, ground: Ground, before: Plan | None, report: Report, done: list[Action]) -> None:
    actions = way_back(plan, done, before)
    ground.progress(f"failed: {report.error.what if report.error else ''}")
    for action in actions:
        ground.progress(f"[back {action.number}/{len(actions)}] {action.host}: {action.title}")
        try:
            if isinstance(action.what, Switch):
                ground.hosts[action.host].unswitch(plan.installed)
            elif isinstance(action.what, Render):
                ground.hosts[action.host].restore_shared(ground.run)
            else:
                _do(action, before if action.old and before is not None else plan, ground, Report())
        except LineCut as error:
            report.trouble = Unreachable(str(error))
            break
        except Exception as error:
            report.trouble = _told(ground, action, error)
            break
        report.back.append(action)
    for name in dict.fromkeys(action.host for action in done):
        try:
            _journal(ground, plan.release, name, "deployment-finished", "failed")
        except Exception as error:
            report.trouble = report.trouble or Unreachable(f"the journal of {name} could not be written: {error}")


def _told(ground: Ground, action: Action, error: Exception) -> PipelineError:
    """The error as one of ours; of an unexpected one only its type and its first words."""
    if isinstance(error, PipelineError):
        return error
    words = " ".join(ground.conceal(str(error)).split())[:200]
    return Failed(
        f"{action.title} ended unexpectedly on {action.host}: {type(error).__name__}",
        reasons=[Reason(words, action.host)] if words else (),
        state="",
        details={"exception": type(error).__name__},
    )


def _journal(ground: Ground, release: str, host: str, what: str, outcome: Outcome | None) -> None:
    ground.hosts[host].append_journal(
        JournalEntry(
            run=ground.run,
            fence=ground.fence,
            customer=ground.customer,
            environment=ground.environment,
            release=release,
            content=ground.content,
            at=ground.clock(),
            what=what,
            outcome=outcome,
            record=ground.record,
            record_sha256=ground.record_sha256,
        )
    )


def _do(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
    _OPERATIONS[type(action.what)](action, plan, ground, report)


def _backup(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
    assert ground.database is not None
    database = ground.database(ground.hosts[action.host])
    try:
        taken = database.backup(ground.run)
    finally:
        database.close()
    report.backups.append({"host": action.host, "path": taken.path, "sha256": taken.sha256, "size": taken.size})


def _upload(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
    ground.hosts[action.host].upload(plan.release, ground.manifest, ground.read, run=ground.run)


def _render(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
    assert isinstance(action.what, Render)
    files = {path: ground.render(action.host, template) for template, path in action.what.templates.items()}
    ground.hosts[action.host].write_shared(files, ground.run)


def _migrate(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
    assert isinstance(action.what, Migrate)
    assert ground.database is not None
    after_switch = plan.point_of_no_return is not None and action.number >= plan.point_of_no_return
    database = ground.database(ground.hosts[action.host])
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
                raise
            report.past_return = report.past_return or after_switch
    finally:
        database.close()


def _switch(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
    ground.hosts[action.host].switch(plan.release)


def _command(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
    assert isinstance(action.what, Command)
    done = ground.hosts[action.host].command(
        action.what.argv,
        cwd="current" if action.what.folder == "current" else f"releases/{plan.release}",
        environment=_environment(plan),
        timeout=action.what.seconds,
    )
    if done.exit_code != 0:
        raise Failed(
            f"{' '.join(action.what.argv)} ended with {done.exit_code} on {action.host}",
            reasons=[Reason(line, action.host) for line in _last_lines(ground, done)],
        )


def _environment(plan: Plan) -> dict[str, str]:
    return {"TMA_CUSTOMER": plan.customer, "TMA_ENVIRONMENT": plan.environment, "TMA_RELEASE": plan.release}


def _http(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
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
                break
        except (OSError, Unreachable) as error:
            said = error.what if isinstance(error, PipelineError) else str(error)
            seen = f"it did not answer: {ground.conceal(said)}"
        if time.monotonic() >= deadline:
            report.checks.append({"title": action.title, "host": action.host, "outcome": "failed"})
            raise Failed(f"check failed on {action.host}: {what.url}", reasons=[Reason(seen, action.host)])
        time.sleep(0.2)
    report.checks.append({"title": action.title, "host": action.host, "outcome": "ok"})


def _probe(action: Action, plan: Plan, ground: Ground, report: Report) -> None:
    what = action.what
    assert isinstance(what, Probe)
    deadline = time.monotonic() + what.within
    while True:
        done = ground.hosts[action.host].command(what.argv, environment=_environment(plan), timeout=what.within)
        if done.exit_code == 0:
            break
        if time.monotonic() >= deadline:
            report.checks.append({"title": action.title, "host": action.host, "outcome": "failed"})
            raise Failed(
                f"check failed on {action.host}: {' '.join(what.argv)} ended with {done.exit_code}",
                reasons=[Reason(line, action.host) for line in _last_lines(ground, done)],
            )
        time.sleep(0.2)
    report.checks.append({"title": action.title, "host": action.host, "outcome": "ok"})


def _last_lines(ground: Ground, done: Result, count: int = 5) -> list[str]:
    output = (done.stderr.strip() or done.stdout.strip()).decode("utf-8", "replace")
    return ground.conceal(output).splitlines()[-count:]


_OPERATIONS: dict[type[Operation], Callable[[Action, Plan, Ground, Report], None]] = {
    Backup: _backup,
    Upload: _upload,
    Render: _render,
    Migrate: _migrate,
    Switch: _switch,
    Command: _command,
    Http: _http,
    Probe: _probe,
}
