"""One attempt at a deployment: announced, carried out, recorded.

An attempt is recorded before the first host is touched, and its outcome after the last. Between the two it is *open*: a
run that was interrupted is adopted by the next run of the same command, under the same run id.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline import rules, runner
from pipeline.errors import Failed, Locked, PipelineError, Reason, Refused, overtaken
from pipeline.lease import WAIT, Held, hold
from pipeline.model import Draft, Record
from pipeline.state import Running, State
from pipeline.transports import LineCut
from pipeline.workflow import failures
from pipeline.workflow.databases import history_of
from pipeline.workflow.gathering import Case
from pipeline.workflow.ground import Attempt, ground_for
from pipeline.workflow.outcomes import Migrated, asks, migrated_in, write_outcome, write_partly
from pipeline.workflow.plans import against_bringing_back, command, past_return, resume_commands
from pipeline.workflow.restoring import announce
from pipeline.workflow.session import Result


class DeploymentResult(Result):
    """One finished deployment, or (``changed: false``) what is installed already."""

    customer: str
    environment: str
    release: str
    installed_before: str | None
    deployment: str | None
    content: str
    tickets: tuple[str, ...]
    migrations: tuple[str, ...] = ()
    checks: tuple[dict[str, Any], ...] = ()
    record: str | None = None
    sign_off_requested: bool = False

    def lines(self) -> list[str]:
        lines = [self.what, f"  content {self.content}"]
        if self.deployment:
            lines.append(f"  deployment {self.deployment}, tickets {', '.join(self.tickets)}, record {self.record}")
        if self.migrations:
            lines.append(f"  migrations applied: {', '.join(self.migrations)}")
        lines += [f"  {check['title']} on {check['host']}: {check['outcome']}" for check in self.checks]
        return lines


def carry_out(case: Case) -> DeploymentResult:
    """Refuses, or does it: under the environment's lease, between the record of the attempt and that of its outcome."""
    session, key = case.dossier.session, case.environment.key
    if case.refusals:
        raise failures.refused(case)
    files = _rendered(case)
    running = case.state.environment(key).running
    run = running.run if running is not None and case.resumes else session.new_run()
    mends = rules.ends_quarantine(case.facts)
    with _held(case, run, command(case)) as held:
        attempt = _announce(case, run, held)
        session.progress(
            f"deployment {attempt.deployment} ({case.purpose}) of {case.release.name} on {key} of {case.customer}"
            + (" is resumed" if case.resumes else "")
        )
        ground = replace(ground_for(case, attempt, files, held.check), restoring=partial(announce, case, attempt, held))
        try:
            report = runner.run(
                case.plan,
                ground,
                case.before,
                # What a quarantine left is no state to go back to.
                past_return=mends or past_return(case, run),
                applied=[row.script for row in case.history if row.run == run],
                resumed=case.resumes,
                kept=[host for host, release in running.partly.items() if release == case.release.name]
                if running is not None
                else (),
            )
            migrated = migrated_in(case, run)
        except (KeyboardInterrupt, SystemExit):
            raise failures.interrupted(case, attempt.deployment) from None
        except (LineCut, PipelineError) as error:
            if overtaken(error):
                raise
            raise failures.unknown(case, attempt.deployment, error) from error
        if report.outcome == "unknown" and mends:
            report.outcome = "failed"
            report.trouble = Failed(
                f"not every host could be brought to {case.release.name}, and nothing is taken back"
            )
        if report.outcome == "unknown":
            raise failures.past_the_point(case, attempt.deployment, report)
        if report.left and report.trouble is None:
            write_partly(case, attempt, report, held)
            raise failures.left_partly(case, attempt.deployment, report)
        return _finished(case, attempt, report, migrated, held)


def bring_back(case: Case, running: Running) -> DeploymentResult:
    """Ends an open deployment by the way back: what was installed before serves again, and the attempt failed.

    ``case`` is the open deployment's own, with the playbook that it began with. Refused past the point of no return, and
    where only a restore of the backup would bring the old release back.
    """
    key = case.environment.key
    reasons = against_bringing_back(case, running)
    if reasons:
        raise Refused(
            f"deployment {running.deployment} of {running.release} on {key} of {case.customer} cannot be brought back.",
            reasons=reasons,
            next_commands=[
                *resume_commands(case.customer, key, running),
                f"invoke lock.release customer={case.customer} env={key} installed={running.release} reason=…",
            ],
        )
    again = f"invoke rollback customer={case.customer} env={key}"
    with _held(case, running.run, again) as held:
        attempt = _announce(case, running.run, held, _began_with(case, running))
        try:
            ground = ground_for(case, attempt, {}, held.check)
            report = runner.bring_back(case.plan, ground, case.before, running.restoring)
            migrated = migrated_in(case, running.run)
        except (KeyboardInterrupt, SystemExit):
            raise failures.interrupted(case, attempt.deployment) from None
        except (LineCut, PipelineError) as error:
            if overtaken(error):
                raise
            raise failures.unknown(case, attempt.deployment, error) from error
        finished = write_outcome(case, attempt, report, migrated, held)
        if report.trouble is not None:
            raise failures.brought_back(case, attempt.deployment, report, finished)
        back = "nothing is installed, as before"
        if case.plan.installed:
            back = failures.serves_again(case, case.plan.actions)
        if report.restored:
            back += f"; the backup {report.restored[0]['label']} is restored"
        return DeploymentResult(
            changed=True,
            what=f"deployment {attempt.deployment} of {running.release} on {key} of {case.customer} is brought back: {back}",
            customer=case.customer,
            environment=key,
            release=case.plan.installed or "",
            installed_before=case.plan.installed,
            deployment=attempt.deployment,
            content=case.content,
            tickets=case.tickets,
            migrations=tuple(migrated.scripts),
            record=finished,
            next_commands=(f"invoke status customer={case.customer}",),
        )


def restore_first(case: Case) -> tuple[Reason, ...]:
    """Why a quarantined environment's database must be restored before the installed release can run on it again."""
    dossier, key = case.dossier, case.environment.key
    if not rules.ends_quarantine(case.facts):
        return ()
    needed: dict[tuple[str, str], tuple[str, Record]] = {}
    for record in dossier.ledger.records():
        if record.environment != key or record.kind not in {"deployment-finished", "lock-released"}:
            continue
        if record.outcome == "ok" or record.details.get("ends") in {"quarantine", "deployment"}:
            break
        for script, kind in record.details.get("restore_needed", {}).items():
            needed[record.run, script] = kind, record
    if not needed:
        return ()
    rows = history_of(dossier, case.environment, case.hosts[case.environment.hosts[0].name], dossier.playbook.playbook)
    labels = {
        run: next((b["label"] for b in record.details.get("backups", ()) if b.get("what") == "database"), "…")
        for (run, _), (_, record) in needed.items()
    }
    return tuple(
        Reason(
            f"{row.script} ({needed[row.run, row.script][0]}) is applied: only a restore of the backup lets "
            f"{case.release.name} run again; restore it (invoke backup.restore customer={case.customer} env={key} "
            f"backup={labels[row.run]} reason=…), then give the same command, or keep "
            f"{needed[row.run, row.script][1].release} with lock.release installed=",
            needed[row.run, row.script][1].id,
        )
        for row in rows
        if (row.run, row.script) in needed
    )


@contextmanager
def _held(case: Case, run: str, again: str) -> Iterator[Held]:
    """The environment's lease; ``again`` is the command that was given, which can wait for it."""
    session = case.dossier.session
    with ExitStack() as stack:
        try:
            held = stack.enter_context(
                hold(
                    case.dossier.repository,
                    case.customer,
                    case.environment.key,
                    run=run,
                    actor=session.signer.key,
                    at=session.now(),
                    purpose=case.purpose,
                    work=session.work,
                    release=case.release.name,
                    clock=session.now,
                )
            )
        except Locked as error:
            error.next_commands = tuple(f"{again} --wait" if one == WAIT else one for one in error.next_commands)
            raise
        yield held


def _rendered(case: Case) -> dict[tuple[str, str], bytes]:
    """Every configuration file for every host, filled in before anything is announced."""
    rendered: dict[tuple[str, str], bytes] = {}
    for action in case.plan.actions:
        if action.what.operation == "render":
            for template in action.what.templates:
                rendered[action.host, template] = case.render(action.host, template)
    return rendered


def _began_with(case: Case, running: Running) -> dict[str, bytes]:
    """The configuration of the attempt before, so that one more attempt at the way back finds it too."""
    ledger = case.dossier.ledger
    record = ledger.record(running.record)
    named = record.configuration if record else {}
    return {name: data for name, sha256 in named.items() if (data := ledger.configuration(sha256)) is not None}


def _announce(case: Case, run: str, held: Held, configuration: dict[str, bytes] | None = None) -> Attempt:
    """The record of one attempt; ``configuration`` is what it goes by, by default what there is now."""
    session, key = case.dossier.session, case.environment.key
    started: dict[str, Any] = {}
    reasons = {"accept-drift": case.facts.accept_drift} if case.accepted_drift and case.facts.accept_drift else {}

    def decide(state: State) -> list[Draft]:
        held.check()
        here = state.environment(key)
        if here.running is not None and here.running.run != run:
            raise Locked(
                f"deployment {here.running.deployment} on {key} of {case.customer} has begun meanwhile",
                reasons=[
                    Reason(
                        f"{here.running.purpose} of {here.running.release} by {here.running.by}", here.running.record
                    )
                ],
                next_commands=[f"{command(case)} --wait", f"invoke status customer={case.customer}"],
            )
        if _decisive(state) != _decisive(case.state):
            raise Refused(
                f"something changed for {case.customer} while this was being decided",
                reasons=[Reason(f"records {case.state.number + 1} to {state.number} were written meanwhile")],
                next_commands=[f"invoke plan customer={case.customer} env={key}"],
            )
        deployment = here.running.deployment if here.running else f"{state.deployments + 1:04d}"
        started["deployment"] = deployment
        # Each attempt of the same run is announced, and raises the fence.
        attempt = state.number + 1
        return [
            Draft(
                id=f"{run}-deployment-started-{attempt}",
                run=run,
                kind="deployment-started",
                at=session.now(),
                product=case.dossier.customer.product,
                environment=key,
                release=case.release.name,
                content=case.content,
                tickets=case.dossier.tickets(case.tickets),
                configuration=configuration or case.dossier.configuration(key),
                texts={"people": case.dossier.people_used(session.actor.key)} | reasons,
                details={
                    "deployment": deployment,
                    "purpose": case.purpose,
                    **({"accepted_drift": case.accepted_drift} if case.accepted_drift else {}),
                    "settings": here.running.settings if here.running else case.settings,
                    "from": case.plan.installed,
                    "version": case.release.version,
                    "resumed": here.running is not None,
                },
            )
        ]

    [record] = case.dossier.ledger.append(session.signer, decide)
    digest = case.dossier.ledger.record_sha256(record.id)
    assert digest is not None
    return Attempt(run, started["deployment"], record.id, digest, record.number)


def _decisive(state: State) -> tuple[object, ...]:
    """What a deployment was decided on; tickets opened and releases made meanwhile do not matter."""
    return (state.environments, state.sign_offs, state.patches, state.accepted)


def _finished(case: Case, attempt: Attempt, report: runner.Report, migrated: Migrated, held: Held) -> DeploymentResult:
    finished_id = write_outcome(case, attempt, report, migrated, held)
    if report.outcome != "ok":
        raise failures.brought_back(case, attempt.deployment, report, finished_id)
    key, asked = case.environment.key, asks(case)
    verb = {"deploy": "holds", "promote": "runs", "rollback": "is back on"}[case.purpose]
    after: tuple[str, ...]
    if asked:
        after = (f"invoke signoff.page customer={case.customer}",)
    elif case.purpose == "promote":
        after = (f"invoke status customer={case.customer}", f"invoke history customer={case.customer}")
    else:
        after = (f"invoke status customer={case.customer}",)
    return DeploymentResult(
        changed=True,
        what=f"{key} of {case.customer} {verb} {case.release.name} (before: {case.plan.installed or 'nothing'})"
        if not rules.ends_quarantine(case.facts)
        else f"every host of {key} of {case.customer} is on {case.release.name} again; the quarantine is over"
        + (
            ", and the application is left stopped: no playbook says how it is started" if case.leaves_stopped() else ""
        ),
        customer=case.customer,
        environment=key,
        release=case.release.name,
        installed_before=case.plan.installed,
        deployment=attempt.deployment,
        content=case.content,
        tickets=case.tickets,
        migrations=tuple(migrated.scripts),
        checks=tuple(report.checks),
        record=finished_id,
        sign_off_requested=asked,
        next_commands=after,
    )
