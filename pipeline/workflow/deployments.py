"""Plan, deploy, promote, roll back: one way for all of them, gather → decide → announce → act → record.

An attempt is recorded before the first host is touched, and its outcome after the last. Between the two it is *open*: a
run that was interrupted is adopted by the next run of the same command, under the same run id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from pipeline import rules, runner
from pipeline.errors import (
    Failed,
    Interrupted,
    Locked,
    NotKnown,
    PartlyDone,
    PipelineError,
    Reason,
    Refused,
    Unreachable,
)
from pipeline.host import Host
from pipeline.lease import hold, read_lease
from pipeline.lease import release_lock as release_lease
from pipeline.model import Draft, RefMove
from pipeline.state import Deployed, ReleaseState, Running, State
from pipeline.transports import LineCut
from pipeline.workflow.gathering import Case, closing, gather, history_of, hosts_of
from pipeline.workflow.session import Dossier, Result, Session, end_of_day

_VERBS: Mapping[rules.Purpose, str] = {"deploy": "deploy", "promote": "promote", "rollback": "rollback"}


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
    migrations: tuple[str, ...]
    accepted_edits: tuple[str, ...]
    stays_applied: tuple[str, ...]
    differences: tuple[dict[str, str], ...]
    refusals: tuple[dict[str, Any], ...]

    def lines(self) -> list[str]:
        lines = [self.what, f"  content {self.content}", f"  tickets {', '.join(self.tickets) or 'none'}", ""]
        for action in self.actions:
            if action["number"] == self.point_of_no_return:
                lines.append("  --- point of no return ---")
            lines.append(f"  {action['number']:>2}. {action['host']}: {action['title']}")
            if action["undo"]:
                lines.append(f"      undo: {action['undo']}")
        if self.stays_applied:
            lines += ["", "Migrations of later releases stay applied: " + ", ".join(self.stays_applied)]
        if self.accepted_edits:
            lines += ["", "Edited after they ran, and accepted: " + ", ".join(self.accepted_edits)]
        if self.differences:
            lines += ["", "Differs on purpose between test and production:"]
            lines += [f"  {d['what']}: {d['test']} → {d['production']}" for d in self.differences]
        lines.append("")
        if self.refusals:
            lines.append("It would be refused:")
            lines += [f"  - {Reason(r['text'], r['source'])}" for r in self.refusals]
        else:
            lines.append("Nothing speaks against it.")
        return lines


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


class LockReleased(Result):
    """What was let go."""

    customer: str
    environment: str
    deployment: str | None


def plan(session: Session, *, customer: str, environment: str | None = None, release: str | None = None) -> PlanResult:
    """What ``deploy`` (or ``promote``, for production) would do now, and every reason against it; writes nothing."""
    dossier = session.dossier(customer, deciding=False)
    dossier.repository.fetch()
    key = environment or "test"
    state = dossier.state()
    purpose: rules.Purpose = "promote" if key == "production" else "deploy"
    chosen = _chosen(dossier, state, release, purpose)
    with _looked_at(dossier, state, key, purpose, chosen, _tickets_of(dossier, state, chosen)) as case:
        return _planned(case)


def deploy(
    session: Session,
    *,
    customer: str,
    release: str | None = None,
    environment: str = "test",
    tickets: tuple[str, ...] = (),
    dry_run: bool = False,
) -> DeploymentResult | PlanResult:
    """Puts a release (the newest by default) on test or integration; on test, writes the sign-off request's record."""
    if environment == "production":
        raise Refused(
            "deploy does not touch production.",
            reasons=[Reason("production gets only what the customer has signed off, through promote")],
            next_commands=[f"invoke promote customer={customer}"],
        )
    dossier = session.dossier(customer)
    dossier.environment(environment)
    state = dossier.state()
    chosen = _chosen(dossier, state, release, "deploy")
    named = _tickets_of(dossier, state, chosen, tickets)
    with _looked_at(dossier, state, environment, "deploy", chosen, named) as case:
        if dry_run:
            return _planned(case)
        if _nothing_to_do(case) and (environment != "test" or _request_stands(case)):
            return _unchanged(case)
        return _carry_out(case)


def promote(
    session: Session, *, customer: str, release: str | None = None, dry_run: bool = False
) -> DeploymentResult | PlanResult:
    """Puts on production exactly what the customer signed off on test; everything else is Refused."""
    dossier = session.dossier(customer)
    dossier.environment("production")
    state = dossier.state()
    chosen = _chosen(dossier, state, release, "promote")
    with _looked_at(dossier, state, "production", "promote", chosen, _tickets_of(dossier, state, chosen)) as case:
        if dry_run:
            return _planned(case)
        if _nothing_to_do(case):
            return _unchanged(case)
        return _carry_out(case)


def rollback(
    session: Session, *, customer: str, environment: str, tickets: tuple[str, ...] = (), dry_run: bool = False
) -> DeploymentResult | PlanResult:
    """Back to the release before, skipping any that was rolled back from; with the playbook frozen with that release."""
    dossier = session.dossier(customer)
    dossier.environment(environment)
    state = dossier.state()
    here = state.environment(environment)
    target = _resumed_rollback(state, environment) or _release_before(state, environment)
    if here.installed is None or target is None:
        raise Refused(
            f"there is no release before {here.installed.release if here.installed else 'the first'} "
            f"on {environment} of {customer}",
            reasons=[Reason(f"rolled back from before: {name}") for name in here.left],
            next_commands=[f"invoke history customer={customer}"],
        )
    named = tickets or tuple(ticket.id for ticket in here.installed.tickets)
    chosen = dossier.release(target.release, state)
    with _looked_at(dossier, state, environment, "rollback", chosen, named, frozen=target) as case:
        if dry_run:
            return _planned(case)
        return _carry_out(case)


def release_lock(
    session: Session, *, customer: str, environment: str, reason: str, dry_run: bool = False
) -> LockReleased:
    """Lets go of a deployment that nobody will finish, and ends a quarantine; only when every host holds what is recorded.

    A host that is half-way is first brought to the recorded release: by running the open command again, or by hand.
    """
    dossier = session.dossier(customer)
    target = dossier.environment(environment)
    state = dossier.state()
    here = state.environment(environment)
    lease = read_lease(dossier.repository, customer, environment)
    if here.running is None and here.quarantined is None and lease is None:
        return LockReleased(
            changed=False,
            what=f"{environment} of {customer} is not locked",
            customer=customer,
            environment=environment,
            deployment=None,
        )
    hosts = hosts_of(dossier, target)
    recorded = here.installed.release if here.installed else None
    with closing(hosts):
        astray = [
            Reason(f"current is {seen or 'nothing'}, the record says {recorded or 'nothing'}", name)
            for name, seen in ((name, host.inspect().current) for name, host in hosts.items())
            if seen != recorded
        ]
    if astray:
        raise Refused(
            f"the lock of {environment} of {customer} cannot be released while hosts hold something else",
            reasons=astray,
            next_commands=_resume_commands(customer, environment, here.running),
        )
    deployment = here.running.deployment if here.running else here.quarantined
    if not dry_run:
        run = session.new_run()
        release_lease(dossier.repository, customer, environment)
        dossier.ledger.append(
            session.signer,
            lambda _: [
                Draft(
                    id=f"{run}-lock-released-1",
                    run=run,
                    kind="lock-released",
                    at=session.now(),
                    product=dossier.customer.product,
                    environment=environment,
                    release=recorded,
                    details={"deployment": deployment},
                    texts={"reason": reason, "people": dossier.people_used(session.actor.key)},
                )
            ],
        )
    return LockReleased(
        changed=not dry_run,
        what=f"the lock of {environment} of {customer} is released; {recorded or 'nothing'} is installed",
        customer=customer,
        environment=environment,
        deployment=deployment,
    )


# --- which release, which tickets ------------------------------------------------------------------------------------


def _chosen(dossier: Dossier, state: State, release: str | None, purpose: rules.Purpose) -> ReleaseState:
    if release is None and purpose == "promote" and state.sign_off is not None:
        return dossier.release(state.sign_off.release, state)
    return dossier.release(release, state)


def _tickets_of(dossier: Dossier, state: State, release: ReleaseState, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The release's tickets and those of the releases that it carries along, since production got its own."""
    running = state.environment("production").installed
    carried = dossier.installation.commits_since(
        release.commit, state.releases[running.release].commit if running else None
    )
    along = [other for other in state.releases.values() if other.commit in carried]
    return tuple(dict.fromkeys([t.id for r in (release, *along) for t in r.tickets] + list(more)))


def _release_before(state: State, environment: str) -> Deployed | None:
    here = state.environment(environment)
    if here.installed is None:
        return None
    skipped = {*here.left, here.installed.release}
    return next((earlier for earlier in reversed(here.earlier) if earlier.release not in skipped), None)


def _resumed_rollback(state: State, environment: str) -> Deployed | None:
    here = state.environment(environment)
    if here.running is None or here.running.purpose != "rollback":
        return None
    wanted = here.running.release
    return next((earlier for earlier in reversed(here.earlier) if earlier.release == wanted), None)


# --- nothing to do -----------------------------------------------------------------------------------------------------


def _nothing_to_do(case: Case) -> bool:
    here = case.state.environment(case.environment.key)
    return (
        here.installed is not None
        and here.running is None
        and here.installed.release == case.release.name
        and here.installed.content == case.content
        and not case.plan_has_migrations()
        and all(host.current == case.release.name and not host.drift for host in case.facts.hosts)
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


def _unchanged(case: Case) -> DeploymentResult:
    return DeploymentResult(
        changed=False,
        what=f"{case.environment.key} of {case.customer} holds {case.release.name} already",
        customer=case.customer,
        environment=case.environment.key,
        release=case.release.name,
        installed_before=case.release.name,
        deployment=None,
        content=case.content,
        tickets=case.tickets,
    )


def _planned(case: Case) -> PlanResult:
    going = {"deploy": "deploy", "promote": "promote", "rollback": "roll back to"}[case.purpose]
    return PlanResult(
        changed=False,
        what=f"plan: {going} {case.release.name} on {case.environment.key} of {case.customer} "
        f"(now {case.plan.installed or 'nothing'})",
        customer=case.customer,
        environment=case.environment.key,
        release=case.release.name,
        installed=case.plan.installed,
        content=case.content,
        tickets=case.tickets,
        actions=tuple(
            {"number": a.number, "host": a.host, "title": a.title, "undo": a.undo, "operation": a.what.operation}
            for a in case.plan.actions
        ),
        point_of_no_return=case.plan.point_of_no_return,
        migrations=tuple(script.id for script in case.comparison.pending),
        accepted_edits=tuple(edit.applied.script for edit in case.comparison.accepted),
        stays_applied=tuple(row.script for row in case.comparison.ahead),
        differences=tuple(difference.model_dump() for difference in case.differences),
        refusals=tuple({"text": r.text, "source": r.source, "rule": r.rule} for r in case.refusals),
        next_commands=() if case.refusals else (_command(case),),
    )


def _command(case: Case) -> str:
    if case.purpose == "promote":
        return f"invoke promote customer={case.customer} release={case.release.name}"
    if case.purpose == "rollback":
        return f"invoke rollback customer={case.customer} env={case.environment.key}"
    return f"invoke deploy customer={case.customer} release={case.release.name} env={case.environment.key}"


def _resume_commands(customer: str, environment: str, running: Running | None) -> list[str]:
    if running is None:
        return [f"invoke status customer={customer}"]
    verb = running.purpose
    release = "" if verb == "rollback" else f" release={running.release}"
    env = "" if verb == "promote" else f" env={environment}"
    return [f"invoke {verb} customer={customer}{release}{env}"]


# --- acting --------------------------------------------------------------------------------------------------------------


@contextmanager
def _looked_at(
    dossier: Dossier,
    state: State,
    environment: str,
    purpose: rules.Purpose,
    release: ReleaseState,
    tickets: tuple[str, ...],
    frozen: Deployed | None = None,
) -> Iterator[Case]:
    """The case for this deployment, its connections closed at the end."""
    hosts = hosts_of(dossier, dossier.environment(environment))
    test_hosts = hosts_of(dossier, dossier.environment("test")) if purpose == "promote" else {}
    with closing(hosts, test_hosts):
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
        )


@dataclass(frozen=True)
class _Attempt:
    """One attempt, announced in the ledger: ``fence`` is the number of its record, so that it only rises."""

    run: str
    deployment: str
    record: str
    record_sha256: str
    fence: int


def _carry_out(case: Case) -> DeploymentResult:
    """Refuses, or does it: under the environment's lease, between the record of the attempt and that of its outcome."""
    session, key = case.dossier.session, case.environment.key
    if case.refusals:
        raise _refused(case)
    files = _rendered(case)
    running = case.state.environment(key).running
    run = running.run if running is not None and case.resumes else session.new_run()
    with hold(
        case.dossier.repository,
        case.customer,
        key,
        run=run,
        actor=session.signer.key,
        at=session.now(),
        purpose=case.purpose,
        work=session.work,
        release=case.release.name,
    ):
        attempt = _announce(case, run)
        session.progress(
            f"deployment {attempt.deployment} ({case.purpose}) of {case.release.name} on {key} of {case.customer}"
            + (" is resumed" if case.resumes else "")
        )
        ground = _ground(case, attempt, files)
        try:
            report = runner.run(case.plan, ground, case.before, past_return=_past_return(case, run))
            applied = _applied_in(case, run)
        except (KeyboardInterrupt, SystemExit):
            raise Interrupted(
                f"deployment {attempt.deployment} of {case.release.name} on {key} of {case.customer} was interrupted",
                state="It is open: what was done stays, nothing was guessed. The same command resumes it.",
                next_commands=[_command(case)],
            ) from None
        except (LineCut, Unreachable) as error:
            raise PartlyDone(
                f"deployment {attempt.deployment} of {case.release.name} on {key} of {case.customer}: outcome unknown",
                reasons=[Reason(error.what if isinstance(error, PipelineError) else str(error))],
                state="It is open: what was done stays, nothing was guessed. The same command resumes it.",
                next_commands=[_command(case)],
            ) from error
        if report.outcome == "unknown":
            raise _past_the_point(case, attempt, report)
        return _record_outcome(case, attempt, report, applied)


def _refused(case: Case) -> PipelineError:
    key = case.environment.key
    running = case.state.environment(key).running
    rule_names = {reason.rule for reason in case.refusals}
    next_commands: list[str] = []
    if "nobody_else_is_deploying" in rule_names:
        next_commands += _resume_commands(case.customer, key, running)
        next_commands.append(f"invoke lock.release customer={case.customer} env={key} reason=…")
    if {"signed_off", "test_still_holds_it"} & rule_names:
        sign_off = case.state.sign_off
        if sign_off is not None and sign_off.status == "open" and sign_off.release == case.release.name:
            next_commands.append(f"invoke signoff.page customer={case.customer}")
        else:
            next_commands.append(f"invoke deploy customer={case.customer} release={case.release.name}")
    if case.facts.edited:
        script = case.facts.edited[0]
        next_commands.append(f"invoke migrate.accept customer={case.customer} script={script} env={key} reason=…")
    return Refused(
        f"release {case.release.name} cannot go to {key} of {case.customer}.",
        reasons=case.refusals,
        next_commands=next_commands or [f"invoke plan customer={case.customer} env={key}"],
    )


def _rendered(case: Case) -> dict[tuple[str, str], bytes]:
    """Every configuration file for every host, filled in before anything is announced."""
    rendered: dict[tuple[str, str], bytes] = {}
    for action in case.plan.actions:
        if action.what.operation == "render":
            for template in action.what.templates:
                rendered[action.host, template] = case.render(action.host, template)
    return rendered


def _announce(case: Case, run: str) -> _Attempt:
    session, key = case.dossier.session, case.environment.key
    started: dict[str, Any] = {}

    def decide(state: State) -> list[Draft]:
        here = state.environment(key)
        if here.running is not None and here.running.run != run:
            raise Locked(
                f"deployment {here.running.deployment} on {key} of {case.customer} has begun meanwhile",
                reasons=[
                    Reason(
                        f"{here.running.purpose} of {here.running.release} by {here.running.by}", here.running.record
                    )
                ],
                next_commands=[f"invoke status customer={case.customer}"],
            )
        if state.environment(key).installed != case.state.environment(key).installed or (
            state.sign_offs != case.state.sign_offs or state.patches != case.state.patches
        ):
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
                configuration=case.dossier.configuration(key),
                texts={"people": case.dossier.people_used(session.actor.key)},
                details={
                    "deployment": deployment,
                    "purpose": case.purpose,
                    "from": case.plan.installed,
                    "version": case.release.version,
                    "resumed": here.running is not None,
                },
            )
        ]

    [record] = case.dossier.ledger.append(session.signer, decide)
    digest = case.dossier.ledger.record_sha256(record.id)
    assert digest is not None
    return _Attempt(run, started["deployment"], record.id, digest, record.number)


def _ground(case: Case, attempt: _Attempt, files: Mapping[tuple[str, str], bytes]) -> runner.Ground:
    session = case.dossier.session
    return runner.Ground(
        hosts=case.hosts,
        database=case.database,
        manifest=case.manifest,
        read=case.dossier.repository.read_stream,
        render=lambda host, template: files[host, template],
        scripts=case.scripts,
        run=attempt.run,
        fence=attempt.fence,
        customer=case.customer,
        environment=case.environment.key,
        content=case.content,
        record=attempt.record,
        record_sha256=attempt.record_sha256,
        progress=session.progress,
        conceal=session.conceal,
        clock=session.now,
    )


def _past_return(case: Case, run: str) -> bool:
    """Whether an earlier attempt of this run has already applied a migration that comes after the switch."""
    applied = {row.script for row in case.history if row.run == run}
    kinds = [step.kind for step in case.playbook.steps]
    from pipeline.migrations import select

    return any(
        script.id in applied
        for step in case.playbook.steps[kinds.index("switch") :]
        if step.kind == "migrate"
        for script in select([script for script, _ in case.scripts.values()], step.only, step.except_)
    )


def _applied_in(case: Case, run: str) -> list[str]:
    """The migrations that this run applied in any of its attempts, as the database itself says."""
    if case.purpose == "rollback":
        return []
    first: Host = case.hosts[case.environment.hosts[0].name]
    rows = history_of(case.dossier, case.environment, first, case.playbook)
    return [row.script for row in rows if row.run == run]


def _past_the_point(case: Case, attempt: _Attempt, report: runner.Report) -> PipelineError:
    assert report.error is not None
    return PartlyDone(
        f"deployment {attempt.deployment} of {case.release.name} on {case.environment.key} of {case.customer} "
        "failed after the point of no return",
        reasons=[Reason(report.error.what), *report.error.reasons],
        state=f"{case.release.name} serves; {', '.join(report.scripts) or 'an earlier migration'} is applied and the old "
        "code may not run on it. The deployment is open: mend the cause, then the same command resumes it.",
        next_commands=[_command(case)],
    )


def _record_outcome(case: Case, attempt: _Attempt, report: runner.Report, applied: list[str]) -> DeploymentResult:
    dossier, session, key = case.dossier, case.dossier.session, case.environment.key
    ok = report.outcome == "ok"
    finished_id = f"{attempt.run}-deployment-finished-1"
    asks = ok and key == "test" and case.purpose != "rollback"
    customer = dossier.customer
    due = end_of_day(
        session.now().astimezone(ZoneInfo(customer.time_zone)).date() + timedelta(days=customer.sign_off_days), customer
    )

    def decide(state: State) -> list[Draft]:
        common: dict[str, Any] = {
            "run": attempt.run,
            "at": session.now(),
            "product": customer.product,
            "environment": key,
            "release": case.release.name,
            "content": case.content,
            "tickets": dossier.tickets(case.tickets),
        }
        details: dict[str, Any] = {
            "deployment": attempt.deployment,
            "purpose": case.purpose,
            "started": attempt.record,
            "from": case.plan.installed,
            "version": case.release.version,
            "patches": list(case.release.patches),
            "settings": case.settings,
            "scripts": applied,
            "checks": report.checks,
            "backups": report.backups,
            "hosts": sorted(case.hosts),
        }
        texts: dict[str, str | bytes] = {"people": dossier.people_used(session.actor.key)}
        moves: tuple[RefMove, ...] = ()
        if ok:
            move = dossier.installation.deployed(
                key,
                case.release.commit,
                dossier.repository.ref(dossier.installation.env_ref(key)),
                title=f"{case.purpose} {case.release.name} on {key} (deployment {attempt.deployment})",
                author=session.signer.key,
                at=session.now(),
                trailers={
                    "Record-Id": finished_id,
                    "Environment": key,
                    "Release": case.release.name,
                    "Product-Version": case.release.version,
                    "Ticket": ", ".join(case.tickets),
                    "Content-SHA256": case.content,
                },
            )
            moves = (move,)
        else:
            assert report.error is not None
            assert report.failed is not None
            details |= {
                "failed_action": report.failed.title,
                "failed_host": report.failed.host,
                "back_to": case.plan.installed,
                "quarantined": report.trouble is not None,
            }
            texts["error"] = session.conceal(report.error.render())
            if report.trouble is not None:
                texts["trouble"] = session.conceal(report.trouble.render())
        drafts = [
            Draft(
                id=finished_id,
                kind="deployment-finished",
                outcome=report.outcome,
                moves=moves,
                texts=texts,
                details=details,
                configuration=dossier.configuration(key),
                **common,
            )
        ]
        if asks:
            drafts.append(
                Draft(
                    id=f"{attempt.run}-sign-off-requested-1",
                    kind="sign-off-requested",
                    texts={"people": dossier.people_used(session.actor.key, *customer.approvers)},
                    details={
                        "settings": case.settings,
                        "deployment": attempt.deployment,
                        "due": f"{due:%Y-%m-%dT%H:%M:%SZ}",
                        "approvers": list(customer.approvers),
                        "version": case.release.version,
                        "accepted_edits": [edit.applied.script for edit in case.comparison.accepted],
                        "scripts": [s.id for s, _ in case.scripts.values()],
                        "differences": [difference.model_dump() for difference in case.differences],
                    },
                    configuration=dossier.configuration(
                        *(k for k in ("test", "production") if k in dossier.loaded.environments)
                    ),
                    **common,
                )
            )
        return drafts

    dossier.ledger.append(session.signer, decide)
    if not ok:
        raise _brought_back(case, attempt, report, finished_id)
    verb = {"deploy": "holds", "promote": "runs", "rollback": "is back on"}[case.purpose]
    after: tuple[str, ...]
    if asks:
        after = (f"invoke signoff.page customer={case.customer}",)
    elif case.purpose == "promote":
        after = (f"invoke status customer={case.customer}", f"invoke history customer={case.customer}")
    else:
        after = (f"invoke status customer={case.customer}",)
    return DeploymentResult(
        changed=True,
        what=f"{key} of {case.customer} {verb} {case.release.name} (before: {case.plan.installed or 'nothing'})",
        customer=case.customer,
        environment=key,
        release=case.release.name,
        installed_before=case.plan.installed,
        deployment=attempt.deployment,
        content=case.content,
        tickets=case.tickets,
        migrations=tuple(applied),
        checks=tuple(report.checks),
        record=finished_id,
        sign_off_requested=asks,
        next_commands=after,
    )


def _brought_back(case: Case, attempt: _Attempt, report: runner.Report, record: str) -> PipelineError:
    assert report.error is not None
    assert report.failed is not None
    key = case.environment.key
    what = f"deployment {attempt.deployment} of {case.release.name} on {key} of {case.customer}: {report.failed.title}"
    reasons = [Reason(report.error.what, report.failed.host), *report.error.reasons]
    if report.trouble is None:
        back = (
            f"{case.plan.installed} serves again"
            if case.plan.installed
            else "nothing was installed before, and nothing is now"
        )
        applied = f" Applied migrations stay: {', '.join(report.scripts)}." if report.scripts else ""
        return Failed(
            what,
            reasons=reasons,
            state=f"Brought back by itself: {back}.{applied} It is recorded as failed ({record}).",
            next_commands=[f"invoke history customer={case.customer}"],
        )
    done = "; ".join(f"{action.host}: {action.title}" for action in report.back) or "nothing"
    return PartlyDone(
        what,
        reasons=[*reasons, Reason(f"the way back failed: {report.trouble.what}"), *report.trouble.reasons],
        state=f"{key} of {case.customer} is quarantined: nothing further happens by itself. Of the way back was done: {done}.",
        next_commands=[
            f"invoke plan customer={case.customer} env={key}",
            f"invoke lock.release customer={case.customer} env={key} reason=…",
        ],
    )


def known_environment(dossier: Dossier, state: State, environment: str) -> Deployed:
    """What is installed there; NotKnown when nothing is."""
    installed = state.environment(environment).installed
    if installed is None:
        raise NotKnown(
            f"nothing is installed on {environment} of {dossier.key}",
            next_commands=[
                f"invoke deploy customer={dossier.key}"
                if environment != "production"
                else f"invoke promote customer={dossier.key}"
            ],
        )
    return installed
