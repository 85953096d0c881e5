"""The fence of one database: raised by each run, and looked at under the runner's lock before anything is written.

A restore that was begun and not finished leaves a mark (:data:`pipeline.databases.mysql.history.RESTORE_TABLE`): the fence may
still be raised then, for the restore that comes next, and nothing else is written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pipeline.databases import HISTORY_FORMAT
from pipeline.databases.mysql.history import RESTORE_TABLE, History
from pipeline.databases.mysql.session import Command, Session, Trouble
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import Reason, Refused

_NO_SUCH_TABLE = 1146


class Fence:
    """The fence as one session sees it. ``patience``: seconds to wait for another runner's lock."""

    def __init__(self, session: Session, history: History, errors: ScriptErrors, patience: float) -> None:
        self._session, self._history, self._errors, self._patience = session, history, errors, patience
        self.claimed: int | None = None
        """The fence that this session raised; None when it is not known to be raised."""

    def claim(self, fence: int, run: str, *, keep: bool = False) -> None:
        """Makes the tables when missing and raises the fence; the lock is given back unless ``keep``.

        Where a restore was not finished, the fence of its mark is raised.
        """
        session, history = self._session, self._history
        try:
            (found,) = session.take_lock(self._patience, [history.exists])
            names = {str(row[0]) for row in found}
            if RESTORE_TABLE in names and (highest := self._restoring()) is not None:
                if highest > fence:
                    raise self._errors.stale(fence, highest)
                commands = [history.raise_restoring(fence)]
            else:
                if len(names - {RESTORE_TABLE}) < 3:
                    session.send(history.create)
                (look,) = session.send([history.look])
                self._current(fence, look, restoring=True)
                commands = [history.raise_fence(fence, run)]
            session.send([*commands, *([] if keep else [session.release])])
            if not keep:
                session.released()
            self.claimed = fence
        except BaseException:
            session.let_go()
            raise

    def locked(self, fence: int, commands: Sequence[Command]) -> list[list[tuple[Any, ...]]]:
        """Takes the lock and gives the answers to ``commands``; Refused when the fence is stale by then."""
        try:
            look, *answers = self._session.take_lock(self._patience, [self._history.look, *commands])
        except Trouble as trouble:
            if trouble.number == _NO_SUCH_TABLE:
                self.whole()
            raise
        self._current(fence, look)
        return answers

    def whole(self) -> None:
        """Refused when a restore was begun and not finished."""
        (found,) = self._session.send([self._history.exists])
        if any(str(row[0]) == RESTORE_TABLE for row in found):
            raise self.half_restored()

    def highest(self, fence: int) -> int:
        """The highest fence seen, before a restore; Refused when it is above ``fence``. The lock is held."""
        (found,) = self._session.send([self._history.exists])
        names = {str(row[0]) for row in found}
        highest = self._restoring() if RESTORE_TABLE in names else None
        if highest is None:
            (look,) = self._session.send([self._history.look])
            self._current(fence, look, restoring=True)
            return fence
        if highest > fence:
            raise self._errors.stale(fence, highest)
        return fence

    def write(self, fence: int, commands: Sequence[Command]) -> None:
        """Writes the history in one transaction, under the fence."""
        begin = Command("START TRANSACTION")
        try:
            self._session.send([begin, self._history.guard(fence), *commands, Command("COMMIT")])
        except Trouble as trouble:
            self._session.roll_back()
            if trouble.command.role == "guard" and trouble.number == 1690:
                (look,) = self._session.send([self._history.look])
                raise self._errors.stale(fence, int(look[0][0])) from None
            raise

    def half_restored(self) -> Refused:
        """A database that holds a part of a backup."""
        errors = self._errors
        rows: list[tuple[Any, ...]] = []
        with contextlib.suppress(Trouble):
            (rows,) = self._session.send([self._history.restoring])
        label = rows[0][1].decode(errors="replace") if rows else "LABEL"
        command = f"invoke backup.restore customer={errors.customer} env={errors.environment} backup={label} reason=…"
        return Refused(
            f"a restore of {errors.place} was begun and not finished.",
            reasons=[Reason(f"it holds nothing or a part of the backup {label}", errors.place)],
            state="Nothing but a restore may change it.",
            next_commands=[command],
            details={"label": label},
        )

    def _restoring(self) -> int | None:
        """The highest fence that the mark knows; None when the restore had not begun to empty."""
        (rows,) = self._session.send([self._history.restoring])
        if not rows:
            return None
        return int(rows[0][0])

    def _current(self, fence: int, look: list[tuple[Any, ...]], *, restoring: bool = False) -> None:
        if not look:
            raise self._errors.unreadable("tma_migration_fence has lost its row")
        highest, form, mark = (int(value) for value in look[0])
        if form > HISTORY_FORMAT:
            raise self._errors.newer(form)
        if highest > fence:
            raise self._errors.stale(fence, highest)
        if mark and not restoring:
            raise self.half_restored()


__all__ = ("Fence",)
