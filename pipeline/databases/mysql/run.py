"""One run of one script: its units sent in messages, the counter behind each, and what to say when one does not work."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

from pipeline.databases.lexer import Part, mysql_statements
from pipeline.databases.mysql.history import History, Row, row
from pipeline.databases.mysql.session import LOCK_WAIT, Command, Lost, Session, Trouble
from pipeline.databases.mysql.units import (
    Reading,
    Unit,
    brackets,
    clean_failure,
    kind_of,
    omitted,
    replayed,
    units,
)
from pipeline.databases.script_errors import ScriptErrors, only_by_hand
from pipeline.errors import PartlyDone, PipelineError, Reason, Refused
from pipeline.model import Script

ATTEMPTS = 5
"""How often a unit is tried that another one's lock keeps out."""


class ScriptRun:
    """A script that is about to run, under the runner's lock; ``text`` is what of it runs."""

    def __init__(
        self,
        session: Session,
        history: History,
        errors: ScriptErrors,
        script: Script,
        text: str,
        reading: Reading,
        *,
        fence: int,
        run: str,
        release: str,
    ) -> None:
        self.script, self.fence = script, fence
        self._session, self._history, self._errors = session, history, errors
        self._text, self._reading = text, reading
        self._run, self._release = run, release
        self._unit: Unit | None = None

    def go(self, before: Row | None, verify: list[str] | None, covers: Sequence[Script]) -> None:
        """Runs what is left of it, verifies it and writes that it is done.

        Failed when nothing of it is committed, PartlyDone when some is; Lost when the connection broke.
        """
        history, script, statements = self._history, self.script, self._reading.statements
        about = {"fence": self.fence, "run": self._run, "release": self._release}
        resumed = before is not None and before.state == "running"
        again = before is not None and not resumed
        done = before.statement if resumed and before is not None else 0
        if resumed:
            self._check_beginning(done)
        opening: list[Command] = [Command("START TRANSACTION"), history.guard(self.fence)]
        if resumed:
            opening += [history.go_on(script, **about)]  # type: ignore[arg-type]
        else:
            session = script.session or self._reading.session is not None
            opening += history.begin(script, statements, session=session, **about)  # type: ignore[arg-type]
        opening.append(Command("COMMIT"))
        finish: list[Command] = [Command("START TRANSACTION"), history.guard(self.fence)]
        finish += history.finish(script, covers, statements, again=again, **about)  # type: ignore[arg-type]
        finish += [Command("COMMIT"), self._session.release]
        attempt = 1
        while True:
            try:
                # One message where the script is small: the row, the statements, the end.
                for _ in self._session.stream(self._commands(done, opening, [] if verify is not None else finish)):
                    pass
                break
            except Trouble as trouble:
                clean = self._session.roll_back()
                done, retry = self._after(trouble, clean, attempt, before)
                attempt, opening = attempt + retry, []
        if verify is not None:
            self._verify(verify)
            try:
                self._session.send(finish)
            except Trouble as trouble:
                self._session.roll_back()
                self._after(trouble, True, ATTEMPTS, before)
        self._session.released()

    def _check_beginning(self, done: int) -> None:
        """Refused when the statement to go on with stands inside of what is done as a whole."""
        for unit in units(self._parts(), self._reading.broken):
            if unit.first <= done < unit.last:
                raise Refused(
                    f"migration {self.script.id} cannot go on with statement {done + 1}.",
                    reasons=[
                        Reason(f"statements {unit.first} to {unit.last} are done as a whole or not", self.script.id)
                    ],
                    next_commands=self._errors.repairs(self.script.id, unit.first)[:1],
                )

    # --- commands ------------------------------------------------------------------------------------------------------

    def _parts(self) -> Iterator[Part]:
        return mysql_statements(
            self._text, backslashes=self._session.backslashes, ansi_quotes=self._session.ansi_quotes
        )

    def _commands(self, done: int, opening: list[Command], finish: list[Command]) -> Iterator[Command]:
        yield from opening
        # The lexer is told the session's mode once: a script that would change it is refused before it runs.
        for unit in units(self._parts(), self._reading.broken):
            self._unit = unit
            if unit.last <= done:
                for part in unit.parts if done else ():
                    if replayed(part):
                        yield self._statement(part)
                continue
            yield from self._commands_of(unit, done)
        yield from finish

    def _commands_of(self, unit: Unit, done: int) -> Iterator[Command]:
        counter = self._history.count(self.script, unit.last)
        if omitted(unit):
            yield counter
        elif unit.kind == "dml":
            yield Command("START TRANSACTION")
            yield self._guard(unit)
            yield self._statement(unit.parts[0])
            yield counter
            yield Command("COMMIT")
        elif unit.kind == "block":
            first, *inner, last = unit.parts
            yield self._statement(first)
            yield self._guard(unit)
            for part in inner:
                yield self._statement(part)
            if unit.counted:
                yield counter
            yield self._statement(last)
            if not unit.counted:
                yield counter
        else:
            yield self._guard(unit, shared=False)
            for part in unit.parts:
                yield self._statement(part)
            if unit.kind == "locked":
                yield Command("UNLOCK TABLES")
            yield counter

    def _guard(self, unit: Unit, *, shared: bool = True) -> Command:
        return self._history.guard(self.fence, shared=shared, script=self.script.id, counted=unit.first - 1)

    def _statement(self, part: Part) -> Command:
        alone = kind_of(part) == "other" and not brackets(part)
        return Command(part.text, "statement", part.number, alone)

    # --- when something fails ------------------------------------------------------------------------------------------

    def _after(self, trouble: Trouble, clean: bool, attempt: int, before: Row | None) -> tuple[int, int]:
        """How many statements are done when the unit may be tried again, and 1 when that counts as an attempt.

        Else the error is raised; ``clean``: the transaction was rolled back without a rest.
        """
        session, script = self._session, self.script
        look, rows = session.send([self._history.look, self._history.row_of(script.id)])
        now = row(rows)
        if trouble.command.role == "guard" and trouble.number == 1690:
            self._overtaken(int(look[0][0]) if look else 0, now, begun=trouble.command.number is not None)
        if now is None or now.state != "running" or now.run != self._run:
            if now is None and trouble.command.role == "own" and trouble.command.number is None:
                raise trouble
            raise self._errors.escaped(script)
        unit = self._failing_unit(trouble.command.number or now.statement + 1)
        if trouble.command.role == "counter" and trouble.command.number and unit is not None and not unit.exact:
            # The statement ran: it is never run again for its counter's sake.
            if trouble.number in LOCK_WAIT and self._counted(unit):
                return unit.last, 0
            raise self._said(trouble, unit, now, False, before)
        certain = unit is not None and clean and clean_failure(unit, trouble.number)
        if trouble.number in LOCK_WAIT and unit is not None and clean and unit.kind in {"dml", "block", "ddl"}:
            if attempt < ATTEMPTS:
                time.sleep(random.uniform(0.1, 0.5) * attempt)  # noqa: S311
                return now.statement, 1
            certain = True
        error = self._said(trouble, unit, now, certain, before)
        raise only_by_hand(error) if self.script.session or self._reading.session else error

    def _counted(self, unit: Unit) -> bool:
        """Whether the counter alone could be written after all."""
        counter = self._history.count(self.script, unit.last)
        for attempt in range(1, ATTEMPTS):
            time.sleep(random.uniform(0.1, 0.5) * attempt)  # noqa: S311
            begin = [Command("START TRANSACTION"), self._history.guard(self.fence)]
            try:
                self._session.send([*begin, counter, Command("COMMIT")])
            except Trouble as trouble:
                self._session.roll_back()
                if trouble.number not in LOCK_WAIT:
                    return False
            else:
                return True
        return False

    def _failing_unit(self, number: int) -> Unit | None:
        found = units(self._parts(), self._reading.broken)
        return next((unit for unit in found if unit.first <= number <= unit.last), None)

    def _overtaken(self, highest: int, now: Row | None, *, begun: bool) -> None:
        if highest > self.fence:
            error = self._errors.stale(self.fence, highest)
            if now is not None and now.state == "running" and now.statement:
                error.state = f"Statements 1 to {now.statement} of {self.script.id} are committed, the others are not."
            raise error
        if begun and (now is None or now.state != "running" or now.run != self._run):
            raise self._errors.escaped(self.script)
        raise Lost("the runner's lock was lost")

    def _said(self, trouble: Trouble, unit: Unit | None, now: Row, certain: bool, before: Row | None) -> PipelineError:
        script, errors = self.script, self._errors
        number = trouble.command.number or now.statement + 1
        part = next((each for each in (unit.parts if unit else ()) if each.number == number), None)
        message = trouble.message
        if trouble.command.role == "counter":
            message = f"its counter in the history cannot be written: {message}"
        hint = None
        if trouble.number in LOCK_WAIT:
            hint = self._session.blockers()
        elif trouble.number == 1064 and part is not None and part.words[:1] == ("CREATE",) and not part.several:
            hint = "a body with semicolons in it needs DELIMITER before it"
        place = {"number": number, "line": part.line if part else None}
        about = {"words": part.first_words if part else None, "code": str(trouble.number) if trouble.number else None}
        if certain and now.statement == 0:
            self._forget(before)
            return errors.failed(script, message, hint=hint, **place, **about)  # type: ignore[arg-type]
        error = errors.stopped(
            script,
            message,
            statements=self._reading.statements,
            uncertain=not certain,
            hint=hint,
            **place,  # type: ignore[arg-type]
            **about,  # type: ignore[arg-type]
        )
        if number == now.statement + 1 and unit is not None and unit.first == unit.last:
            return error
        return self._of_a_unit(error, now, number, certain)

    def _of_a_unit(self, error: PartlyDone, now: Row, number: int, certain: bool) -> PartlyDone:
        """The error of a statement inside a unit: what is committed ends before the unit, not before the statement."""
        known = {0: "No statement is known to be committed", 1: "Statement 1 is committed"}
        said = known.get(now.statement, f"Statements 1 to {now.statement} are committed")
        rest = "the others are not" if certain else f"statements {now.statement + 1} to {number} may be"
        return PartlyDone(
            error.what,
            reasons=error.reasons,
            state=f"{said}, {rest}.",
            next_commands=self._errors.repairs(self.script.id, now.statement + 1),
            details=error.details,
        )

    def _forget(self, before: Row | None) -> None:
        """Nothing of the script is committed: its row goes, or is again what it was."""
        back = self._history.restore_row(self.script, before) if before is not None else None
        if back is not None and before is not None and before.state == "running":
            back = None
        commands = [back or self._history.remove(self.script.id)]
        commands.append(
            self._history.event("failed", self.script, self.fence, self._run, self._release, {"statement": 1})
        )
        self._session.send([Command("START TRANSACTION"), *commands, Command("COMMIT")])

    # --- verify --------------------------------------------------------------------------------------------------------

    def _verify(self, statements: list[str]) -> None:
        try:
            self._session.send([Command("START TRANSACTION")])
            for number, statement in enumerate(statements, start=1):
                self._session.send([Command(statement, "statement", number, alone=True)])
        except Trouble as trouble:
            raise self._not_verified(trouble.message, str(trouble.number)) from None
        finally:
            self._session.roll_back()

    def _not_verified(self, message: str, code: str | None = None) -> PipelineError:
        return self._errors.not_verified(self.script, message, code=code, statements=self._reading.statements)
