"""How a deployment that did not go through is told: what, every reason, the state things are in, the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pipeline import runner
from pipeline.errors import Failed, Interrupted, PartlyDone, PipelineError, Reason, Refused
from pipeline.migration_rules import baseline_commands
from pipeline.playbook import Action
from pipeline.workflow.databases import repair_commands
from pipeline.workflow.gathering import Case
from pipeline.workflow.plans import command, resume_commands
from pipeline.workflow.session import Result


def refused(case: Case) -> PipelineError:
    """Every reason against the deployment, and what to do about it."""
    key = case.environment.key
    running = case.state.environment(key).running
    rule_names = {reason.rule for reason in case.refusals}
    next_commands: list[str] = []
    if case.state.environment(key).quarantined is not None:
        return Refused(
            f"release {case.release.name} cannot go to {key} of {case.customer}.",
            reasons=case.refusals,
            next_commands=_out_of_quarantine(case)[case.purpose == "rollback" :],
        )
    if any(host.drift for host in (*case.facts.hosts, *case.facts.test_hosts)):
        if not any(host.drift for host in case.facts.test_hosts) and not _serves_it(case):
            return Refused(
                f"release {case.release.name} cannot go to {key} of {case.customer}.",
                reasons=case.refusals,
                state="Nothing was changed. What was changed on the server can be brought into the customer's line for "
                "review, or gone over for a reason that is recorded.",
                next_commands=[
                    f"invoke drift customer={case.customer} env={key}",
                    *(
                        f"invoke drift.adopt customer={case.customer} env={key} host={host.name} ticket=…"
                        for host in case.facts.hosts
                        if host.drift
                    ),
                    f"{command(case)} accept-drift=…",
                ],
            )
        # A release that serves is never overwritten in place; leaving it and coming back does.
        where = "test" if any(host.drift for host in case.facts.test_hosts) else key
        next_commands.append(f"invoke rollback customer={case.customer} env={where}")
        if where != "production":
            next_commands.append(f"invoke deploy customer={case.customer} release={case.release.name} env={where}")
        return Refused(
            f"release {case.release.name} cannot go to {key} of {case.customer}.",
            reasons=case.refusals,
            state="Nothing was changed. Put the files back on the server, or leave the release and come back to it.",
            next_commands=next_commands,
            in_order=True,
        )
    if "nobody_else_is_deploying" in rule_names:
        next_commands += resume_commands(case.customer, key, running)
        next_commands.append(f"invoke rollback customer={case.customer} env={key}")
    if {"signed_off", "test_still_holds_it"} & rule_names:
        sign_off = case.state.sign_off
        if sign_off is not None and sign_off.status == "open" and sign_off.release == case.release.name:
            written = sign_off.page is not None
            page = f"invoke signoff.page customer={case.customer}"
            next_commands.append(case.dossier.decision_command(sign_off.release) if written else page)
        else:
            next_commands.append(f"invoke deploy customer={case.customer} release={case.release.name}")
    next_commands += repair_commands(case.customer, key, case.look)
    next_commands += _another_schema_on_test(case) if "rehearsed_on_test" in rule_names else ()
    if case.facts.unknown_schema:
        next_commands += [f"{command} --dry-run" for command in baseline_commands(case.facts)]
    if case.facts.edited:
        script = case.facts.edited[0]
        next_commands.append(f"invoke migrate.accept customer={case.customer} script={script} env={key} reason=…")
    if case.facts.vanished and not case.facts.lost:
        next_commands.append(
            f"invoke migrate.accept customer={case.customer} script={next(iter(case.facts.vanished))} env={key} "
            f"release={case.release.name} reason=…"
        )
    return Refused(
        f"release {case.release.name} cannot go to {key} of {case.customer}.",
        reasons=case.refusals,
        next_commands=next_commands or [f"invoke plan customer={case.customer} env={key}"],
    )


def _serves_it(case: Case) -> bool:
    return any(host.drift and host.current == case.release.name for host in case.facts.hosts)


def _another_schema_on_test(case: Case) -> list[str]:
    """What says that a new database may have this full schema, where test, which is no new one, had an earlier text of it."""
    ran = case.state.environment("test").applied
    return [
        f"invoke migrate.accept customer={case.customer} script={shlex.quote(script.id)} env=test "
        f"release={case.release.name} reason=…"
        for script in case.comparison.pending
        if script.kind == "initial" and ran.get(script.id, script.checksum) != script.checksum
    ]


def _out_of_quarantine(case: Case) -> list[str]:
    """The rollback to what is installed first; where nothing is, only keeping what the hosts hold."""
    named = f"customer={case.customer} env={case.environment.key}"
    back = [f"invoke rollback {named}"] if case.plan.installed else []
    return [*back, f"invoke lock.release {named} installed=… reason=…"]


def interrupted(case: Case, deployment: str) -> PipelineError:
    """A person or a signal stopped the run; it is open."""
    return Interrupted(
        f"deployment {deployment} of {case.release.name} on {case.environment.key} of {case.customer} was interrupted",
        state=_OPEN,
        next_commands=_finish_or_bring_back(case),
    )


def unknown(case: Case, deployment: str, error: Exception) -> PipelineError:
    """A line was cut, or something answered that we cannot judge; it is open."""
    reasons = [Reason(error.what), *_told(error)] if isinstance(error, PipelineError) else [Reason(str(error))]
    return PartlyDone(
        f"deployment {deployment} of {case.release.name} on {case.environment.key} of {case.customer}: outcome unknown",
        reasons=reasons,
        state=_OPEN,
        next_commands=[*_repair(error), *_finish_or_bring_back(case)],
    )


_OPEN = "It is open: what was done stays, nothing was guessed. The same command resumes it; rollback brings it back."


def _repair(error: BaseException | None) -> list[str]:
    """What the database says to do about a script that was begun and not finished."""
    named = error.next_commands if isinstance(error, PipelineError) else ()
    return [command for command in named if command.startswith("invoke migrate.repair ")]


def _told(error: PipelineError) -> list[Reason]:
    """The error's reasons, and of a script that was begun and not finished what is committed."""
    return [*error.reasons, *([Reason(error.state)] if error.state and _repair(error) else [])]


def _finish_or_bring_back(case: Case) -> list[str]:
    back = f"invoke rollback customer={case.customer} env={case.environment.key}"
    return [command(case)] if case.purpose == "rollback" else [command(case), back]


def left_partly(case: Case, deployment: str, report: runner.Report) -> PipelineError:
    """Some hosts failed and went back, the finished ones stay (``on_failure: leave``); it is open."""
    assert report.error is not None
    others = [name for name in case.hosts if name not in report.left]
    return PartlyDone(
        f"deployment {deployment} of {case.release.name} on {case.environment.key} of {case.customer} is partly done",
        reasons=[Reason(report.error.what, report.failed.host if report.failed else None), *_told(report.error)],
        state=f"{', '.join(report.left)}: {case.release.name}; {', '.join(others)}: {case.plan.installed or 'nothing'}. "
        "It is open: the same command goes on with the others, rollback brings all of them back.",
        next_commands=_finish_or_bring_back(case),
    )


def past_the_point(case: Case, deployment: str, report: runner.Report) -> PipelineError:
    """A failure after the point of no return; it is open."""
    assert report.error is not None
    return PartlyDone(
        f"deployment {deployment} of {case.release.name} on {case.environment.key} of {case.customer} "
        "failed after the point of no return",
        reasons=[Reason(report.error.what), *_told(report.error)],
        state=f"{case.release.name} serves; {', '.join(report.scripts) or 'an earlier migration'} is applied and the old "
        "code may not run on it. The deployment is open: mend the cause, then the same command resumes it.",
        next_commands=[*_repair(report.error), command(case)],
    )


def brought_back(case: Case, deployment: str, report: runner.Report, record: str) -> PipelineError:
    """A failure after which what was there before serves again, or (quarantined) does not."""
    assert report.error is not None
    key = case.environment.key
    title, host = (report.failed.title, report.failed.host) if report.failed else ("the way back", None)
    what = f"deployment {deployment} of {case.release.name} on {key} of {case.customer}: {title}"
    told = report.error.reasons if report.restored else _told(report.error)
    reasons = [Reason(report.error.what, host), *told]
    if report.trouble is None:
        began = case.plan.actions if case.resumes else (*report.done, *([report.failed] if report.failed else []))
        back = serves_again(case, began) if case.plan.installed else "nothing was installed before, and nothing is now"
        applied = f" Applied migrations stay: {', '.join(report.scripts)}." if report.scripts else ""
        if report.restored:
            labels = ", ".join(dict.fromkeys(backup["label"] for backup in report.restored))
            applied = f" The data is as it was before: restored from the backup {labels}."
        elif report.half_done:
            applied += (
                f" Of {', '.join(report.half_done)} a part may be applied; nothing is deployed until it is repaired."
            )
        return Failed(
            what,
            reasons=reasons,
            state=f"Brought back by itself: {back}.{applied} It is recorded as failed ({record}).",
            next_commands=[*_repair(report.error), f"invoke history customer={case.customer}"],
        )
    done = "; ".join(f"{action.host}: {action.title}" for action in report.back) or "nothing"
    return PartlyDone(
        what,
        reasons=[*reasons, Reason(f"the way back failed: {report.trouble.what}"), *report.trouble.reasons],
        state=f"{key} of {case.customer} is quarantined: nothing further happens by itself. Of the way back was done: {done}."
        + (f" {', '.join(report.left)}: left on {case.release.name}." if report.left else "")
        + (f" rollback brings every host to {case.plan.installed}." if case.plan.installed else ""),
        next_commands=[*_repair(report.error), *_restore(case, report), *_out_of_quarantine(case)],
    )


def serves_again(case: Case, began: Iterable[Action]) -> str:
    """What became of the release that was installed before, once the way back from these actions is gone."""
    if case.leaves_stopped(began):
        return f"{case.plan.installed} is installed again, and left stopped: no playbook says how it is started"
    return f"{case.plan.installed} serves again"


def _restore(case: Case, report: runner.Report) -> list[str]:
    """What restores the backup by hand, where something was applied that the code alone does not bring back from."""
    touched = {*report.scripts, *report.half_done, *(row.script for row in case.history)}
    if report.restored or touched.isdisjoint({*case.plan.restore_needed, *case.plan.restore_if_half}):
        return []
    return [
        f"invoke backup.restore customer={case.customer} env={case.environment.key} backup={backup['label']} reason=…"
        for backup in report.backups
        if backup["what"] == "database"
    ][:1]


def went_back(case: Case, done: Result, record: str | None) -> PipelineError:
    """A deployment that had failed before it was interrupted, and whose way back has been finished now."""
    return Failed(
        done.what,
        reasons=[
            Reason("it had failed, and was interrupted on its way back, which it has now gone to its end", record)
        ],
        state="Brought back; it is recorded as failed.",
        next_commands=[f"invoke history customer={case.customer}"],
    )
