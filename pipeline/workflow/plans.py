"""What a deployment would do, before it does anything: the case looked at, and the plan printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from pydantic import Field

from pipeline import rules
from pipeline.acts import placed
from pipeline.errors import Reason
from pipeline.operations import Command
from pipeline.playbook import Action, contract_scripts, restore_needed
from pipeline.script_text import running_text
from pipeline.state import Deployed, ReleaseState, Running, State
from pipeline.way_back import way_back
from pipeline.workflow.databases import release_scripts, repair_commands, running_bytes
from pipeline.workflow.gathering import Case, closing, frozen_playbook, gather, hosts_of, release_manifest
from pipeline.workflow.hosts import connecting
from pipeline.workflow.session import Dossier, Result, Session


class PlanResult(Result):
    """The numbered actions, what undoes each, and every reason why it would be refused."""

    customer: str
    environment: str
    release: str
    installed: str | None
    content: str
    tickets: tuple[str, ...]
    actions: tuple[dict[str, Any], ...]
    point_of_no_return: int | None
    restore_needed: dict[str, str] = Field(default_factory=dict)
    restore_from: dict[str, int] = Field(default_factory=dict)
    migrations: tuple[str, ...]
    scripts: tuple[dict[str, Any], ...] = ()
    findings: tuple[dict[str, Any], ...] = ()
    accepted_edits: tuple[str, ...]
    stays_applied: tuple[str, ...]
    differences: tuple[dict[str, str], ...]
    refusals: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...] = ()
    nothing_to_do: bool = False

    def lines(self) -> list[str]:
        lines = [self.what, f"  content {self.content}", f"  tickets {', '.join(self.tickets) or 'none'}", ""]
        if self.nothing_to_do:
            return [*lines[:-1], "Installed already: there is nothing to do."]
        for action in self.actions:
            if action["number"] == self.point_of_no_return:
                lines.append("  --- point of no return ---")
            lines.append(f"  {action['number']:>2}. {action['host']}: {action['title']}")
            if action["undo"]:
                lines.append(f"      undo: {action['undo']}")
        if self.restore_needed:
            lines.append("")
            lines += [
                f"If it fails after {script} ({kind}), the backup made in step {self.restore_from[script]} is restored."
                if script in self.restore_from
                else f"If it fails after {script} ({kind}), a restore of the backup would be needed; the deployment would be "
                "quarantined."
                for script, kind in self.restore_needed.items()
            ]
        if self.scripts:
            lines += ["", "Migrations, in this order:"]
            lines += [
                f"  {script['script']}" + (f" ({', '.join(script['notes'])})" if script["notes"] else "")
                for script in self.scripts
            ]
        for heading, accepted in (("The lint finds:", False), ("The lint finds, and it was accepted:", True)):
            here = [finding for finding in self.findings if (finding["accepted"] is not None) == accepted]
            if here:
                lines += ["", heading, *(f"  {_finding(finding)}" for finding in here)]
        if self.stays_applied:
            lines += ["", "Migrations that stay applied: " + ", ".join(self.stays_applied)]
        if self.accepted_edits:
            lines += ["", "Edited after they ran, and accepted: " + ", ".join(self.accepted_edits)]
        if self.differences:
            lines += ["", "Differs on purpose between test and production:"]
            lines += [f"  {d['what']}: {d['test']} → {d['production']}" for d in self.differences]
        if self.warnings:
            lines += ["", *(f"Warning: {warning}" for warning in self.warnings)]
        lines.append("")
        if self.refusals:
            lines.append("It would be refused:")
            lines += [f"  - {Reason(r['text'], r['source'])}" for r in self.refusals]
        else:
            lines.append("Nothing speaks against it.")
        return lines


def _finding(finding: dict[str, Any]) -> str:
    where = f"{finding['script']}:{finding['line']}: {finding['rule']}: {finding['said']}"
    return where if finding["accepted"] is None else f"{where} (accepted: {finding['accepted']})"


def plan(session: Session, *, customer: str, environment: str | None = None, release: str | None = None) -> PlanResult:
    """What ``deploy`` (or ``promote``, for production) would do now, and every reason against it; writes nothing."""
    dossier = session.dossier(customer, deciding=False)
    dossier.repository.fetch()
    key = environment or "test"
    state = dossier.state()
    purpose: rules.Purpose = "promote" if key == "production" else "deploy"
    chosen = chosen_release(dossier, state, release, purpose)
    with looked_at(dossier, state, key, purpose, chosen, tickets_of(dossier, state, chosen)) as case:
        return planned(case)


@contextmanager
def looked_at(
    dossier: Dossier,
    state: State,
    environment: str,
    purpose: rules.Purpose,
    release: ReleaseState,
    tickets: tuple[str, ...],
    frozen: Deployed | Running | None = None,
    accept_drift: str | None = None,
) -> Iterator[Case]:
    """The case for this deployment, its connections closed at the end."""
    hosts = hosts_of(dossier, dossier.environment(environment))
    test_hosts = hosts_of(dossier, dossier.environment("test")) if purpose == "promote" and frozen is None else {}
    with closing(hosts, test_hosts):
        connecting(hosts, test_hosts)
        yield gather(
            dossier,
            state,
            environment=environment,
            purpose=purpose,
            release=release,
            tickets=tickets,
            hosts=hosts,
            test_hosts=test_hosts,
            frozen=frozen,
            accept_drift=accept_drift,
        )


def chosen_release(dossier: Dossier, state: State, release: str | None, purpose: rules.Purpose) -> ReleaseState:
    """The release by name; without a name what was put before the customer (promotion), else the newest."""
    if release is None and purpose == "promote" and state.sign_off is not None:
        return dossier.release(state.sign_off.release, state)
    return dossier.release(release, state)


def tickets_of(dossier: Dossier, state: State, release: ReleaseState, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The release's tickets and those of the releases that it carries along, since production got its own."""
    running = state.environment("production").installed
    carried = dossier.installation.commits_since(
        release.commit, state.releases[running.release].commit if running else None
    )
    along = [other for other in state.releases.values() if other.commit in carried]
    return tuple(dict.fromkeys([t.id for r in (release, *along) for t in r.tickets] + list(more)))


def planned(case: Case) -> PlanResult:
    """The case as the ``plan`` verb and ``--dry-run`` show it."""
    going = {"deploy": "deploy", "promote": "promote", "rollback": "roll back to"}[case.purpose]
    # A rollback does not ask the database, which may be what is broken: the records say what ran here.
    back = case.purpose == "rollback"
    ran = case.state.environment(case.environment.key).applied if back else [r.script for r in case.comparison.ahead]
    ahead = [script for script in ran if script not in case.scripts]
    idle = not back and nothing_to_do(case)
    return PlanResult(
        changed=False,
        nothing_to_do=idle,
        warnings=(*(_warnings(case, ahead) if back else ()), *_left_stopped(case), *case.warnings),
        what=f"plan: {going} {case.release.name} on {case.environment.key} of {case.customer} "
        f"(now {case.plan.installed or 'nothing'})",
        customer=case.customer,
        environment=case.environment.key,
        release=case.release.name,
        installed=case.plan.installed,
        content=case.content,
        tickets=case.tickets,
        actions=() if idle else _listed(_as_undone(case)),
        point_of_no_return=case.plan.point_of_no_return,
        restore_needed={} if idle else dict(case.plan.restore_needed),
        restore_from={} if idle else dict(case.plan.restore_from),
        migrations=() if back else tuple(script.id for script in case.comparison.pending),
        scripts=() if back or idle else tuple(_scripts(case)),
        findings=() if back or idle else tuple(asdict(finding) for finding in case.findings),
        accepted_edits=tuple(edit.applied.script for edit in case.comparison.accepted),
        stays_applied=tuple(ahead),
        differences=tuple(difference.model_dump() for difference in case.differences),
        refusals=_refused(case.refusals),
        next_commands=_after(case) if case.refusals or idle else (command(case),),
    )


def _scripts(case: Case) -> Iterator[dict[str, Any]]:
    """The pending migrations with what is worth knowing of each, in ``notes``."""
    pending = case.comparison.pending
    late = set(contract_scripts(case.playbook, pending))
    unproven = dict(restore_needed(case.playbook, running_bytes(case.look, pending)))
    for script in pending:
        covers = case.comparison.covers if script.kind == "initial" else ()
        kind = {"versioned": None, "repeatable": "repeatable", "initial": "the full schema"}[script.kind]
        if covers:
            kind = f"the full schema, after which {len(covers)} script(s) count as applied"
        notes = (
            kind,
            "contract: after the switch" if script.id in late else None,
            None if script.transactional else "not in a transaction",
            "by the engine's own client" if script.client else None,
            unproven.get(script.id),
        )
        yield {
            "script": script.id,
            "kind": script.kind,
            "phase": "contract" if script.id in late else "expand",
            "transactional": script.transactional,
            "leaves": unproven.get(script.id),
            "covers": [one.id for one in covers],
            "notes": [note for note in notes if note is not None],
        }


def against_bringing_back(case: Case, running: Running) -> tuple[Reason, ...]:
    """Every reason why an open deployment (its own case) cannot be brought back by ``rollback``."""
    reasons = rules.refusals(replace(case.facts, purpose="rollback", resumes=True))
    if running.restoring:
        # Its way back has begun with a restore, after which the old code may run: it is only ever finished.
        return reasons
    reasons += tuple(
        Reason(
            f"{row.script} ({case.plan.restore_needed[row.script]}) was applied by deployment {running.deployment} while the "
            "application was stopped: only a restore of the backup brings the old release back; mend the cause and finish "
            f"it, or if it cannot be finished, keep it as it is with lock.release installed={running.release}",
            running.record,
        )
        for row in case.history
        if row.run == running.run and row.script in case.plan.restore_needed
    )
    if past_return(case, running.run):
        reasons += (
            Reason(
                f"a migration past the point of no return was applied by deployment {running.deployment}; the old code may "
                "not run on it: mend the cause and finish it, or if it cannot be finished, keep it as it is with "
                f"lock.release installed={running.release}",
                running.record,
            ),
        )
    return reasons


def past_return(case: Case, run: str) -> bool:
    """Whether an earlier attempt of this run has already applied a migration that comes after the switch."""
    ran = [case.scripts[row.script][0] for row in case.history if row.run == run and row.script in case.scripts]
    return bool(contract_scripts(case.playbook, ran))


def planned_back(case: Case, running: Running) -> PlanResult:
    """The way back of an open deployment (its own case), as ``rollback --dry-run`` shows it; any action may be done."""
    reasons = against_bringing_back(case, running)
    named = f"customer={case.customer} env={case.environment.key}"
    return PlanResult(
        changed=False,
        what=f"plan: bring back deployment {running.deployment} of {running.release} on {case.environment.key} of "
        f"{case.customer} (to {case.plan.installed or 'nothing'})",
        customer=case.customer,
        environment=case.environment.key,
        release=case.plan.installed or "",
        installed=case.plan.installed,
        content=case.content,
        tickets=case.tickets,
        actions=_listed(way_back(case.plan, case.plan.actions, case.before, backups=_restored_steps(case, running))),
        point_of_no_return=None,
        migrations=(),
        accepted_edits=(),
        stays_applied=tuple(row.script for row in case.history if row.run == running.run),
        differences=(),
        refusals=_refused(reasons),
        warnings=(*_left_stopped(case), *case.warnings),
        next_commands=tuple(resume_commands(case.customer, case.environment.key, running))
        if reasons
        else (f"invoke rollback {named}",),
    )


def _restored_steps(case: Case, running: Running) -> set[tuple[int, str]]:
    """The backups that the way back that was begun restores."""
    return {(backup["step"], backup["what"]) for backup in placed(running.restoring, case.plan, running.run)}


def _after(case: Case) -> tuple[str, ...]:
    """Where what was changed on the hosts is listed in full, if that is in the way; how a blocked script is repaired."""
    key = case.environment.key
    drifted = any(host.drift for host in case.facts.hosts)
    listed = [f"invoke drift customer={case.customer} env={key}"] if drifted else []
    return (*listed, *repair_commands(case.customer, key, case.look))


def _listed(actions: Sequence[Action]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"number": a.number, "host": a.host, "title": a.title, "undo": a.undo, "operation": a.what.operation}
        for a in actions
    )


def _refused(reasons: Sequence[Reason]) -> tuple[dict[str, Any], ...]:
    return tuple({"text": r.text, "source": r.source, "rule": r.rule} for r in reasons)


def _warnings(case: Case, ahead: Sequence[str]) -> Iterator[str]:
    """What a rollback cannot take back: migrations that ran after a switch, for which the old code was not made."""
    here = case.state.environment(case.environment.key).installed
    if here is None:
        return
    playbook = frozen_playbook(case.dossier, here)
    manifest = release_manifest(case.dossier, case.state.releases[here.release])
    scripts = release_scripts(case.dossier, playbook, manifest, case.environment)
    after = contract_scripts(playbook, [script for id, (script, _) in scripts.items() if id in ahead])
    record = case.dossier.ledger.record(here.record)
    made = record.details.get("backups", ()) if record else ()
    texts = {
        id: running_text(script, data).encode("utf-8", "surrogateescape")
        for id, (script, data) in scripts.items()
        if id in ahead and id not in after
    }
    label = next((one["label"] for one in made if one.get("what") == "database" and "label" in one), "…")
    for script, kind in restore_needed(playbook, texts):
        yield (
            f"{script} is applied and {kind}: the code of {case.release.name} is not known to run on the database as it "
            "is now, and a rollback takes no data back; only the restore of a backup does (invoke backup.restore "
            f"customer={case.customer} env={case.environment.key} backup={label} reason=…)"
        )
    if not after:
        return
    backups = [backup["path"] for backup in made]
    yield (
        f"{', '.join(after)} ran after the switch to {here.release}: the code of {case.release.name} may not run on the "
        "database as it is now, and a rollback takes no data back"
        + (f" (the backup made before that deployment: {', '.join(backups)})" if backups else "")
    )


def _left_stopped(case: Case) -> Iterator[str]:
    """That the application is not started again, since neither the old release's playbook nor the new one says how."""
    if not case.leaves_stopped():
        return
    if rules.ends_quarantine(case.facts):
        yield f"{case.release.name} is left stopped: no playbook says how it is started"
    else:
        yield f"if it fails or is brought back, {case.plan.installed} is left stopped: no playbook says how it is started"


def _as_undone(case: Case) -> Sequence[Action]:
    """The plan's actions, those that stop the application with what becomes of it."""
    if not case.plan.installed or not case.leaves_stopped():
        return case.plan.actions
    return [
        action.model_copy(update={"undo": "nothing starts it again: left stopped"})
        if isinstance(action.what, Command) and action.what.serving == "stop"
        else action
        for action in case.plan.actions
    ]


def nothing_to_do(case: Case) -> bool:
    """Whether the environment holds exactly this already; on test, also with a request that stands."""
    here = case.state.environment(case.environment.key)
    return (
        here.installed is not None
        and here.running is None
        and here.quarantined is None
        and here.restoring is None
        and here.installed.release == case.release.name
        and here.installed.content == case.content
        and here.installed.settings == case.settings
        and not case.plan_has_migrations()
        and all(host.current == case.release.name and not host.drift for host in case.facts.hosts)
        and (case.environment.key != "test" or _request_stands(case))
    )


def _request_stands(case: Case) -> bool:
    sign_off = case.state.sign_off
    return (
        sign_off is not None
        and sign_off.release == case.release.name
        and sign_off.content == case.content
        and sign_off.settings == case.settings
        and sign_off.status in {"open", "approved", "approved-with-reservations"}
    )


def command(case: Case) -> str:
    """The command that carries this case out, or resumes it."""
    if case.purpose == "promote":
        return f"invoke promote customer={case.customer} release={case.release.name}"
    if case.purpose == "rollback":
        return f"invoke rollback customer={case.customer} env={case.environment.key}"
    return f"invoke deploy customer={case.customer} release={case.release.name} env={case.environment.key}"


def resume_commands(customer: str, environment: str, running: Running | None) -> list[str]:
    """The command that resumes an open deployment; a look at the status when there is none."""
    if running is None:
        return [f"invoke status customer={customer}"]
    verb = running.purpose
    release = "" if verb == "rollback" else f" release={running.release}"
    env = "" if verb == "promote" else f" env={environment}"
    return [f"invoke {verb} customer={customer}{release}{env}"]
