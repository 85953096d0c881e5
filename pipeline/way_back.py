"""The way back: which actions bring the old release back after a step has failed. Pure.

The runner performs them; a way back that fails quarantines the environment.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.operations import Command, Http, Probe, Render, Switch
from pipeline.playbook import Action, Plan


def way_back(plan: Plan, done: Sequence[Action], before: Plan | None) -> tuple[Action, ...]:
    """The actions that bring the old release back on every host that ``done`` has touched, in the order to do them.

    ``before`` is the plan of the release that was installed, made from the playbook frozen with it (None when nothing
    was). First what the new release started or ran is undone, while ``current`` still is the new release; then the code:
    switch, then the earlier files of ``shared/``; then the old release's serving commands, then its checks. An
    application that was neither stopped nor started is not started again. ``Switch`` and ``Render`` mean their opposites
    here: the runner is told that it is on the way back.
    """
    back: list[Action] = []
    for host in reversed(list(dict.fromkeys(action.host for action in done))):
        mine = [action for action in done if action.host == host]
        serving = [action for action in mine if _serves(action)]
        switched = [action for action in mine if isinstance(action.what, Switch)]
        rendered = [action for action in mine if isinstance(action.what, Render)]
        there = [action for action in before.actions if action.host == host] if before is not None else []
        if before is not None and not any(_serves(action) == "restart" for action in there):
            back += _stopped(mine)
        for action in reversed(mine):
            if isinstance(action.what, Command) and action.what.undo and (before is None or not _serves(action)):
                back.append(_undo(action))
        back += [
            action.model_copy(update={"title": f"switch back to {plan.installed or 'nothing'}"}) for action in switched
        ]
        back += [action.model_copy(update={"title": "put back the earlier files of shared/"}) for action in rendered]
        if serving or switched or rendered:
            old = [action.model_copy(update={"old": True}) for action in there]
            back += [a for a in old if _serves(a) == "restart" or (_serves(a) == "start" and serving)]
            back += [action for action in old if isinstance(action.what, Http | Probe)]
    return tuple(
        action.model_copy(update={"number": number, "undo": None}) for number, action in enumerate(back, start=1)
    )


def _serves(action: Action) -> str | None:
    return action.what.serving if isinstance(action.what, Command) else None


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
    what = action.what.model_copy(update={"argv": action.what.undo, "undo": (), "serving": serving})
    return action.model_copy(update={"title": " ".join(what.argv), "what": what})
