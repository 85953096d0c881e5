"""Runs a plan on its hosts: wave by wave, and back again when a step fails.

Three outcomes, never two: *ok*; *failed*, and then what was there before serves again; *unknown*, when a host cannot be
asked any more or the run stopped past the point of no return: then nothing is guessed, and the same command resumes. After
what the code alone does not bring back, the way back restores the run's own backup, if nothing that was written since can be
lost. A way back that fails quarantines the environment, as does a failure after which nothing is restored by itself. The
runner decides nothing: which actions there are, and the order of the way back, come from :mod:`pipeline.playbook` and
:mod:`pipeline.way_back`. How an action is done is in :mod:`pipeline.acts`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Literal

from pipeline import acts
from pipeline.acts import Ground, How, Report
from pipeline.errors import Failed, PipelineError, Unreachable, overtaken
from pipeline.job import DIFFERENT, Direction, Job, JobStep
from pipeline.operations import Command
from pipeline.playbook import Action, Plan, waves
from pipeline.transports import LineCut
from pipeline.way_back import finished, way_back

__all__ = ["Ground", "Report", "bring_back", "carry", "run"]

AT_ONCE = 50
"""Hosts that are spoken to at the same time, at the most."""


def run(
    plan: Plan,
    ground: Ground,
    before: Plan | None,
    *,
    past_return: bool = False,
    applied: Collection[str] = (),
    resumed: bool = False,
    kept: Collection[str] = (),
) -> Report:
    """Does every action of ``plan``; on a failure goes the way back to ``before``.

    ``past_return`` says that an earlier attempt of this run has already applied a migration past the point of no return,
    ``applied`` names all that earlier attempts have applied. ``resumed``: an earlier attempt may have done any of it, so
    all of it is taken back; ``kept`` names the hosts that it left with the new release (``on_failure: leave``).
    LineCut (a host cannot be asked what became of its job),
    KeyboardInterrupt and SystemExit pass through: the attempt stays open and can be resumed. So does the error of a run
    that was overtaken, which must not even go back. Any other exception, also one that nobody thought of, is a failed
    action.
    """
    report = Report(past_return=past_return)
    going = _Going(plan, ground, report, plan.actions, "step")
    failures = going.through()
    if not failures:
        return report
    report.outcome = "failed"
    report.failed, report.error = failures[0]
    if report.past_return:
        report.outcome = "unknown"
        return report
    touched = {*report.scripts, *applied, *going.perhaps}
    needed = {
        name: f"{name} is {kind}, and was applied" for name, kind in plan.restore_needed.items() if name in touched
    }
    needed |= {
        name: f"of {name} a part may be applied, and only the whole is known to leave a schema for the old code"
        for name in plan.restore_if_half
        if name in report.half_done and name not in needed
    }
    backups: list[dict[str, Any]] = []
    if needed:
        backups, against = _to_restore(plan, ground, report, needed, resumed=resumed)
        if against:
            report.trouble = Failed(
                "only a restore of the backup brings the old release back",
                reasons=[*needed.values(), against],
                state="The application is stopped.",
            )
            return report
        ground.restoring(backups)
    # A failed action may have done part of its work, so it is taken back as well.
    numbers = {action.number for action, _ in failures}
    began = {action.number: action for action in (*report.done, *(action for action, _ in failures), *going.begun)}
    if plan.on_failure == "leave" and not backups:
        touched = {action.host for action in began.values()}
        report.left = (*finished(plan, report.done), *(host for host in kept if host not in touched))
    back = list(plan.actions) if resumed else [began[number] for number in sorted(began)]
    _go_back(plan, ground, before, report, back, numbers, going.concluding, backups)
    return report


def bring_back(plan: Plan, ground: Ground, before: Plan | None, backups: Sequence[dict[str, Any]] = ()) -> Report:
    """The way back from a run that was left open: as if every action had been done, since any of them may have been.

    ``backups`` are those that it was about to restore when it was interrupted.
    """
    report = Report(outcome="failed", error=Failed("it was left open, and is brought back by rollback"))
    if backups:
        report.error = Failed("it had failed, and was interrupted on its way back")
        backups = acts.placed(backups, plan, ground.run)
        report.backups += backups
    _go_back(plan, ground, before, report, list(plan.actions), (), backups=backups)
    return report


def carry(plan: Plan, ground: Ground, backups: Sequence[dict[str, Any]] = ()) -> Report:
    """Does every action of a plan from which there is no way back, such as a restore by hand: the rest is left undone."""
    report = Report(backups=list(backups))
    failures = _Going(plan, ground, report, plan.actions, "step").through()
    if failures:
        report.outcome = "failed"
        report.failed, report.error = failures[0]
    return report


def _to_restore(
    plan: Plan, ground: Ground, report: Report, needed: Collection[str], *, resumed: bool
) -> tuple[list[dict[str, Any]], str]:
    """The backups that bring the old release back after these scripts; or else why none of them is restored by itself."""
    without = [name for name in needed if name not in plan.restore_from]
    if without:
        return [], (
            f"no backup that was made while the application was stopped, and has been since, comes before {without[0]}: "
            "what was written after it would be lost, so nothing is restored by itself"
        )
    number = min(plan.restore_from[name] for name in needed)
    databases = (backup for backup in report.backups if backup["what"] == "database")
    made = next((backup for backup in databases if backup["step"] == number), None)
    if made is None:
        return [], "this attempt did not come to prove the backup, so nothing is restored by itself"
    if resumed and not plan.restore_always and _served_before(plan, ground):
        return [], (
            f"an earlier attempt had begun to start the application after the backup {made['label']} was made: what was "
            "written since would be lost, so nothing is restored by itself"
        )
    shared = [backup for backup in report.backups if backup["what"] == "shared" and backup["step"] in plan.shared_from]
    return [made, *shared], ""


def _served_before(plan: Plan, ground: Ground) -> bool:
    """Whether an earlier attempt of this run has begun to start the application anywhere; True where nobody can say."""
    nth = _nth(plan.actions)
    starts = [a for a in plan.actions if isinstance(a.what, Command) and a.what.serving in {"start", "restart"}]
    try:
        return any(
            entry.inputs == acts.serving_inputs(action, plan, entry.record or "", nth[action.number])
            for host in {action.host for action in starts}
            for entry in ground.hosts[host].journal()
            if entry.run == ground.run and entry.what == "step-started" and entry.record != ground.record
            for action in starts
            if action.host == host
        )
    except PipelineError:
        return True


def _go_back(
    plan: Plan,
    ground: Ground,
    before: Plan | None,
    report: Report,
    done: Sequence[Action],
    failed: Collection[int],
    concluding: dict[str, list[JobStep]] | None = None,
    backups: Sequence[dict[str, Any]] = (),
) -> None:
    ground.progress(f"failed: {report.error.what if report.error else ''}")
    restored = {(int(backup["step"]), str(backup["what"])) for backup in backups}
    actions = way_back(plan, done, before, failed=failed, leave=report.left, backups=restored)
    going = _Going(plan, ground, report, actions, "back", before, concluding)
    try:
        failures = going.through()
        report.trouble = failures[0][1] if failures else None
    except LineCut as error:
        report.trouble = Unreachable(str(error))
    for host in dict.fromkeys(action.host for action in done):
        if host in report.left:
            continue
        try:
            steps = tuple(going.concluding.pop(host, ()))
            job = Job(ground.entry(plan.release), steps, "back", finish="failed")
            ground.hosts[host].carry(job, on_trouble=ground.progress)
        except Exception as error:
            if overtaken(error):
                raise
            report.trouble = report.trouble or Unreachable(f"the journal of {host} could not be written: {error}")


Failure = tuple[Action, PipelineError]


@dataclass
class _Ended:
    """How a host's part of a wave has ended."""

    failure: Failure | None = None
    error: BaseException | None = None


class _Going:
    """One way through actions, forward or back."""

    def __init__(
        self,
        plan: Plan,
        ground: Ground,
        report: Report,
        actions: Sequence[Action],
        direction: Direction,
        before: Plan | None = None,
        concluding: dict[str, list[JobStep]] | None = None,
    ) -> None:
        self.plan, self.ground, self.report, self.before = plan, ground, report, before
        self.actions, self.direction = actions, direction
        self.begun: list[Action] = []
        self.perhaps: set[str] = set()
        self.concluding = concluding if concluding is not None else {}
        self._last = {action.host: action.number for action in actions}
        self._how = How(back=direction == "back", copy=any(_writes_early(action) for action in plan.actions))
        self._nth = _nth(actions)
        self._lock = threading.Lock()

    def through(self) -> list[Failure]:
        """Wave after wave, until one has a failure: all failures of that wave, the first one first."""
        for hosts in waves(self.actions):
            ended = [_Ended() for _ in hosts]
            work = [partial(self._end, one, actions) for one, actions in zip(ended, hosts.values(), strict=True)]
            _at_once(work)
            # Overtaken or cut off: nothing may be done, or nothing is known, also where another host has failed.
            stopped = [one.error for one in ended if one.error is not None]
            for error in sorted(stopped, key=lambda error: not overtaken(error)):
                raise error
            if failures := [one.failure for one in ended if one.failure is not None]:
                return failures
        return []

    def _end(self, ended: _Ended, actions: list[Action]) -> None:
        try:
            ended.failure = self._lane(actions)
        except Exception as error:
            if isinstance(error, LineCut) or overtaken(error):
                ended.error = error
                return
            own = {done.number for done in self._own()}
            action = next((one for one in actions if one.number not in own), actions[-1])
            ended.failure = action, self.ground.told(action, error)
        except BaseException as error:
            # Raised again by whoever waits for the wave: a thread would swallow it.
            ended.error = error

    def _lane(self, actions: list[Action]) -> Failure | None:
        """What one host does in one wave: by itself as far as it can, in one job, then what is done through it."""
        name, rest = actions[0].host, list(actions)
        while rest:
            mine = []
            while rest and acts.host_does(rest[0]):
                mine.append(rest.pop(0))
            through = rest.pop(0) if rest else None
            failure = self._job(name, mine, through)
            if failure is None and through is not None:
                failure = self._through(through)
                if failure is None and self._ends(through):
                    failure = self._job(name, [], None, after=through)
            if failure is not None:
                return failure
        return None

    def _ends(self, action: Action | None) -> bool:
        """Whether the host's part of the plan is over with this action."""
        return self.direction == "step" and action is not None and action.number == self._last[action.host]

    def _job(
        self, name: str, mine: list[Action], through: Action | None, after: Action | None = None
    ) -> Failure | None:
        """One job: ``mine``, and what is to be written down before ``through`` and ``after`` what was done through it."""
        host, ground = self.ground.hosts[name], self.ground
        before = tuple(self.concluding.pop(name, ()))
        announced = () if through is None else (self._written(through),)
        ends = through is None and self._ends(mine[-1] if mine else after)
        how = self._how
        while True:
            ground.still_ours()
            parts = [
                acts.host_step(action, self._plan(action), ground, replace(how, nth=self._nth[action.number]))
                for action in mine
            ]
            job = Job(
                entry=ground.entry(self.plan.release),
                steps=(*before, *(part.step for part in parts), *announced),
                direction=self.direction,
                finish="ok" if ends else None,
                payload=next((part.payload for part in parts if part.payload is not None), None),
                files={path: data for part in parts for path, data in part.files.items()},
                clean=ground.clean(name) if ends else (),
            )
            told = host.carry(job, on_step=partial(self._tell_of, mine), on_trouble=ground.progress)
            for action in mine:
                one = told.steps.get(action.number)
                if one is None or one.outcome != "ok":
                    break
                acts.note(action, "ok", self.report)
                self._done(action)
            else:
                return None
            if one is None:
                raise LineCut(f"{host.transport.name} does not say what became of step {action.number}")
            trouble = acts.trouble_of(action, one, ground)
            if trouble is acts.NOT_ALONE and not how.whole:
                # What lies there is not what the payload was made for: everything is sent.
                ground.progress(f"{name}: nothing can be built on the release that serves; sending all files")
                how = replace(how, whole=True)
                mine = mine[mine.index(action) :]
                continue
            if one.code == DIFFERENT and job.payload is not None and how.spoilt is None:
                ground.progress(f"{name}: what was sent is not the release; it is made anew")
                how = replace(how, whole=True, spoilt=job.payload)
                mine = mine[mine.index(action) :]
                continue
            acts.note(action, "failed", self.report)
            return action, trouble

    def _own(self) -> list[Action]:
        return self.report.done if self.direction == "step" else self.report.back

    def _done(self, action: Action) -> None:
        with self._lock:
            self._own().append(action)

    def _written(self, action: Action, outcome: Literal["ok", "failed"] | None = None) -> JobStep:
        how = replace(self._how, nth=self._nth[action.number])
        return acts.controller_step(action, self._plan(action), self.ground, how, self.direction, outcome)

    def _through(self, action: Action) -> Failure | None:
        """One action that is done through the host: a migration, a backup, a check over HTTP."""
        self._tell(action)
        failure: Failure | None = None
        try:
            self.ground.still_ours()
            acts.through(action, self._plan(action), self.ground, self.report, self.perhaps)
        except LineCut:
            raise
        except Exception as error:
            if overtaken(error):
                raise
            failure = action, self.ground.told(action, error)
        outcome: Literal["ok", "failed"] = "failed" if failure else "ok"
        acts.note(action, outcome, self.report)
        self.concluding.setdefault(action.host, []).append(self._written(action, outcome))
        if failure is None:
            self._done(action)
        return failure

    def _tell_of(self, actions: list[Action], number: int) -> None:
        for action in actions:
            if action.number == number:
                self._tell(action)

    def _tell(self, action: Action) -> None:
        with self._lock:
            self.begun.append(action)
        mark = f"[{action.number}/{len(self.actions)}]"
        if self.direction == "back":
            mark = f"[back {action.number}/{len(self.actions)}]"
        self.ground.progress(f"{mark} {action.host}: {action.title}")

    def _plan(self, action: Action) -> Plan:
        """Whose release the action is of: on the way back that of the release that was installed before."""
        if self.direction == "back" and action.old and self.before is not None:
            return self.before
        return self.plan


def _writes_early(action: Action) -> bool:
    """Whether a program of the product's own runs in the new release before it serves."""
    what = action.what
    return isinstance(what, Command) and what.folder == "release" and what.traffic is None


def _nth(actions: Sequence[Action]) -> dict[int, int]:
    """Of each action, by number, how many before it do the same on the same host."""
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for action in actions:
        same = action.host, action.what.model_dump_json()
        found[action.number] = seen[same]
        seen[same] += 1
    return found


def _at_once(work: Sequence[Callable[[], None]]) -> None:
    """Does all of ``work``, each in a thread, at the most :data:`AT_ONCE` at a time; a single one in this thread.

    The threads are daemons: an interrupted controller does not wait for what a host does by itself anyway.
    """
    if len(work) == 1:
        work[0]()
        return
    queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
    for one in work:
        queue.put(one)

    def next_ones() -> None:
        with suppress(Empty):
            while True:
                queue.get_nowait()()

    threads = [threading.Thread(target=next_ones, daemon=True) for _ in range(min(AT_ONCE, len(work)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
