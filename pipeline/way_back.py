"""The way back: which actions bring the old release back after a step has failed. Pure.

The runner performs them; a way back that fails quarantines the environment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from pipeline.operations import Backup, Command, Http, Probe, Render, Restore, Switch
from pipeline.playbook import Action, Plan, Playbook
from pipeline.steps import AnyStep, RestartStep, StartStep, StopStep


def way_back(
    plan: Plan,
    done: Sequence[Action],
    before: Plan | None,
    *,
    failed: Collection[int] = (),
    leave: Collection[str] = (),
    backups: Collection[tuple[int, str]] = (),
) -> tuple[Action, ...]:
    """The actions that bring the old release back on every host that ``done`` has touched, in the order to do them.

    ``done`` holds the failed actions as well, whose numbers are in ``failed``: each may have done part of its work.
    ``before`` is the plan of the release that was installed, made from the playbook frozen with it (None when nothing
    was). ``leave`` names hosts that keep the new release, see :func:`finished`. The wave that failed goes first, then the
    finished ones backwards; hosts of one wave go back at the same time. ``backups`` are those that are restored, each by
    the number of the plan's action that made it and of what it is (*database*, *shared*): when every host has stopped, and
    before any host's code goes back.

    On each host: out of the load balancer, where it was back in it; then what the new release started or ran is undone,
    while ``current`` still is the new release; then the code: switch, then the earlier files of ``shared/``; then the old
    release's serving commands, then its checks, and only then back into the load balancer. An application that was
    neither stopped nor started is not started again. ``Switch`` and ``Render`` mean their opposites here: the runner is
    told that it is on the way back.
    """
    back: list[Action] = []

    def then(actions: Iterable[Action]) -> None:
        back.extend(action.model_copy(update={"wave": wave}) for action in actions)

    def of(host: str) -> list[Action]:
        return [action for action in done if action.host == host]

    restored = [one for action in plan.actions if (one := _restore(action, backups)) is not None]
    wave = 1
    if restored:
        for host in dict.fromkeys(action.host for action in done):
            then(_undone(plan, host, of(host), before, failed, restoring=True))
        wave = back[-1].wave + 1 if back else 1
        then(restored)
    for hosts in _backwards(done):
        wave = back[-1].wave + 1 if back else 1
        for host in hosts:
            if host not in leave:
                if not restored:
                    then(_undone(plan, host, of(host), before, failed))
                then(_as_before(plan, host, of(host), before))
    return tuple(
        action.model_copy(update={"number": number, "undo": None}) for number, action in enumerate(back, start=1)
    )


def finished(plan: Plan, succeeded: Sequence[Action]) -> tuple[str, ...]:
    """The hosts that have done all their part of ``plan`` and run its release, where others are not so far.

    A playbook with ``on_failure: leave`` leaves them as they are. Nothing when every host is finished: then it was no host
    among several that failed, and all of them go back.
    """
    numbers = {action.number for action in succeeded}
    hosts = list(dict.fromkeys(action.host for action in plan.actions))
    whole = [
        host
        for host in hosts
        if all(action.number in numbers for action in plan.actions if action.rolling and action.host == host)
    ]
    return tuple(whole) if len(whole) < len(hosts) else ()


def with_starter(old: Playbook, new: Playbook, *, stops: bool = False) -> Playbook:
    """The old release's playbook; where it starts no application, by the steps with which the new one does.

    What the new playbook has stopped would else stay so. Its starting steps, or else what undoes its stopping ones, come
    after the switch, and count as a start alone: an application that nobody stopped is not started again. ``stops``:
    it may be running, so the new playbook's stopping steps come before the switch.
    """
    if starts(old.steps):
        return old
    stopping = [step for step in new.steps if isinstance(step, StopStep)]
    starting = [
        StartStep(command=step.command, seconds=step.seconds)
        for step in new.steps
        if isinstance(step, StartStep | RestartStep)
    ] or [StartStep(command=step.undo, seconds=step.seconds) for step in stopping if step.undo]
    if not stops or not starting or any(step.kind == "stop" for step in old.steps):
        stopping = []
    steps: list[AnyStep] = []
    for step in old.steps:
        steps += [*stopping, step, *starting] if step.kind == "switch" else [step]
    return old.model_copy(update={"steps": tuple(steps)})


def starts(steps: Iterable[AnyStep]) -> bool:
    """Whether any of these steps starts the application."""
    return any(step.kind in {"start", "restart"} for step in steps)


def leaves_stopped(began: Iterable[Action], before: Plan | None) -> bool:
    """Whether the way back from these actions, which stop an installed application, has nothing that starts it again."""
    if before is None or any(_serves(action) in {"start", "restart"} for action in before.actions):
        return False
    return any(_serves(action) == "stop" for action in began)


def _backwards(done: Sequence[Action]) -> Iterator[list[str]]:
    """The hosts of ``done`` by their last wave, newest first. What one host did for all of them moves it in no wave."""
    last: dict[str, int] = {}
    for action in done:
        wave = action.wave if action.rolling else 0
        last[action.host] = max(last.get(action.host, 0), wave)
    for wave in sorted(set(last.values()), reverse=True):
        yield [host for host in last if last[host] == wave]


def _restore(action: Action, backups: Collection[tuple[int, str]]) -> Action | None:
    """Puts back what this action has backed up, as far as it is among ``backups``."""
    database, shared = (action.number, "database") in backups, (action.number, "shared") in backups
    if not isinstance(action.what, Backup) or not (database or shared):
        return None
    what = Restore(step=action.number, database=database, shared=shared)
    named = " and ".join(["the database"] * what.database + ["shared/"] * what.shared)
    title = f"restore {named} from the backup made in step {action.number}"
    return action.model_copy(update={"title": title, "what": what, "rolling": False})


def _undone(
    plan: Plan,
    host: str,
    mine: Sequence[Action],
    before: Plan | None,
    failed: Collection[int],
    *,
    restoring: bool = False,
) -> Iterator[Action]:
    """What is undone while ``current`` still is the new release; ``restoring``: nobody may write any more afterwards."""
    traffic = [action for action in mine if _traffic(action)]
    there = [action for action in before.actions if action.host == host] if before is not None else []
    # An undrain that failed left the host out, and what would drain it is what does not work: the code goes first.
    if before is not None and traffic and _traffic(traffic[-1]) == "undrain" and traffic[-1].number not in failed:
        yield from (action for action in plan.actions if action.host == host and _traffic(action) == "drain")
    if restoring or (before is not None and not any(_serves(action) == "restart" for action in there)):
        yield from _stopped(mine)
    for action in reversed(mine):
        taken_back_below = before is not None and (_serves(action) or _traffic(action))
        if isinstance(action.what, Command) and action.what.undo and not taken_back_below:
            yield _undo(action)


def _as_before(plan: Plan, host: str, mine: Sequence[Action], before: Plan | None) -> Iterator[Action]:
    """The old code, its configuration, its application; then its checks, and the load balancer."""
    serving = [action for action in mine if _serves(action)]
    switched = [action for action in mine if isinstance(action.what, Switch)]
    rendered = [action for action in mine if isinstance(action.what, Render)]
    traffic = [action for action in mine if _traffic(action)]
    there = [action for action in before.actions if action.host == host] if before is not None else []
    old = [action.model_copy(update={"old": True}) for action in there]
    yield from (
        action.model_copy(update={"title": f"switch back to {plan.installed or 'nothing'}"}) for action in switched
    )
    yield from (action.model_copy(update={"title": "put back the earlier files of shared/"}) for action in rendered)
    touched = serving or switched or rendered
    if touched:
        yield from (a for a in old if _serves(a) == "restart" or (_serves(a) == "start" and serving))
    if touched or traffic:
        yield from (action for action in old if isinstance(action.what, Http | Probe))
    if before is not None and traffic:
        again = [action for action in old if _traffic(action) == "undrain"]
        yield from again or (a for a in plan.actions if a.host == host and _traffic(a) == "undrain")


def _serves(action: Action) -> str | None:
    return action.what.serving if isinstance(action.what, Command) else None


def _traffic(action: Action) -> str | None:
    return action.what.traffic if isinstance(action.what, Command) else None


def _stopped(mine: Sequence[Action]) -> list[Action]:
    """What stops the new release's application where it may run: its starter's undo, else the same plan's stop command.

    An old release that is *started* needs this; a *restart* puts the old application in the place of the new one.
    """
    starters = [action for action in mine if _serves(action) in {"start", "restart"}][-1:]
    if any(isinstance(action.what, Command) and action.what.undo for action in starters):
        return [_undo(action) for action in starters]
    return [action for action in mine if _serves(action) == "stop"][-1:] if starters else []


def _undo(action: Action) -> Action:
    assert isinstance(action.what, Command)
    serving = "stop" if action.what.serving else None
    what = action.what.model_copy(update={"argv": action.what.undo, "undo": (), "serving": serving, "traffic": None})
    return action.model_copy(update={"title": " ".join(what.argv), "what": what})
