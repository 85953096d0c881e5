"""MariaDB, and MySQL 8 by the same adapter (not live-tested): PyMySQL through the transport, one unit of a script at a time.

DDL commits by itself on these engines, so every script has a *running* row before its first statement and a counter behind each.
Statements that change rows commit together with their counter; so does a script's own ``START TRANSACTION … COMMIT`` around
such statements, which counts as one unit: it is done or it is not. A block in which something commits by itself is no
transaction on this engine, so its statements count one by one (:mod:`pipeline.databases.mysql.units`). A statement that fails
leaves what was counted before it committed; where that is nothing at all, the script failed as a whole and its row goes.

The lock (``GET_LOCK``) is held while a script runs. Before each unit the server itself checks, in the same message and where
there is a transaction in it, that the fence is still the highest and the lock still ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import pymysql

from pipeline.databases import BackupFound, BackupTaken, Catalogue, Rehearsed, Repair, Server
from pipeline.databases.lexer import Part, Unclear, mysql_statements
from pipeline.databases.mysql.backup import MysqlBackups
from pipeline.databases.mysql.catalogue import catalogue
from pipeline.databases.mysql.fence import Fence
from pipeline.databases.mysql.history import LONGEST_ID, RESTORE_TABLE, History, Row, applied, event, row
from pipeline.databases.mysql.rehearsal import rehearse
from pipeline.databases.mysql.run import ScriptRun
from pipeline.databases.mysql.server import described
from pipeline.databases.mysql.session import Command, Lost, Session, Trouble
from pipeline.databases.mysql.units import Reading, looked_through
from pipeline.databases.mysql.verify import checked
from pipeline.databases.script_errors import ScriptErrors, only_by_hand
from pipeline.errors import Failed, PipelineError, Reason, Refused, UsageError
from pipeline.model import Applied, DatabaseSettings, HistoryEvent, Script
from pipeline.transports import Transport

_PATIENCE = 30.0

_READING = frozenset({"SELECT", "SHOW", "WITH", "EXPLAIN", "DESCRIBE", "DESC", "TABLE", "VALUES", "CHECKSUM"})

_T = TypeVar("_T")


class MysqlDatabase:
    """A customer's MariaDB or MySQL database as seen from a host; opened when first used.

    ``backups`` is a folder on the host; ``passphrase`` seals backups. ``patience``: seconds to wait for another runner.
    """

    def __init__(
        self,
        transport: Transport,
        settings: DatabaseSettings,
        password: str | None,
        *,
        backups: str,
        customer: str = "CUSTOMER",
        environment: str = "ENVIRONMENT",
        patience: float = _PATIENCE,
        passphrase: str | None = None,
    ) -> None:
        place = f"database {settings.name} on {settings.host}:{settings.reached_at}, through {transport.name}"
        self.engine: str = settings.engine
        self._transport = transport
        self._settings = settings
        self._password = password
        self._patience = patience
        self._errors = ScriptErrors(place, customer, environment, password)
        self._session = Session(transport, settings, password, self._errors)
        self._history = History(settings.name or "", self._session.lock)
        self._fence = Fence(self._session, self._history, self._errors, patience)
        self._backups = MysqlBackups(transport, settings, password, backups, self._errors, passphrase=passphrase)

    # --- looking ------------------------------------------------------------------------------------------------------

    def history(self) -> list[Applied]:
        """See :meth:`pipeline.databases.Database.history`."""
        return self._reading(lambda: [applied(each) for each in self._rows_of(self._history.rows)])

    def events(self) -> list[HistoryEvent]:
        """See :meth:`pipeline.databases.Database.events`."""
        return self._reading(lambda: [event(each) for each in self._rows_of(self._history.events)])

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """See :meth:`pipeline.databases.Database.query`.

        On a connection of its own that takes one statement a message, so that nothing can end the transaction.
        """
        try:
            parts = list(mysql_statements(statement))
        except Unclear as unclear:
            raise self._not_run(unclear.why) from None
        if len(parts) != 1 or parts[0].words[:1] == () or parts[0].words[0] not in _READING or parts[0].several:
            raise self._not_run("it is not one statement that only reads")
        with ExitStack() as stack:
            connection = self._session.connect(stack)
            cursor = connection.cursor()
            try:
                cursor.execute("START TRANSACTION READ ONLY")
                cursor.execute(parts[0].text)
                return list(cursor.fetchall())
            except pymysql.Error as error:
                message = str(error.args[1]) if len(error.args) > 1 else str(error)
                raise self._not_run(f"{message} [{error.args[0] if error.args else ''}]") from None

    def catalogue(self) -> Catalogue:
        """See :meth:`pipeline.databases.Database.catalogue`. What an AUTO_INCREMENT has reached is no part of it."""
        return self._reading(lambda: catalogue(self._session.ask, self._settings.name or ""))

    def server(self) -> Server:
        """See :meth:`pipeline.databases.Database.server`."""
        return self._reading(lambda: described(self._session))

    # --- migrating ----------------------------------------------------------------------------------------------------

    def apply(
        self,
        script: Script,
        sql: bytes,
        *,
        fence: int,
        run: str,
        release: str,
        verify: bytes | None = None,
        covers: Sequence[Script] = (),
    ) -> bool:
        """See :meth:`pipeline.databases.Database.apply`."""
        text = self._errors.text(script, sql, in_transaction=False)
        self._fit(script)
        dirty = True
        try:
            if self._fence.claimed != fence:
                self._fence.claim(fence, run)
            self._session.connection()
            reading = self._look_through(script, text)
            check = self._verify(script, verify)
            run_of = ScriptRun(
                self._session, self._history, self._errors, script, text, reading, fence=fence, run=run, release=release
            )
            done = self._apply(run_of, check, covers)
            dirty = done and reading.dirty
        except Lost as lost:
            return self._ask_again(script, text, run, str(lost))
        except Trouble as trouble:
            raise self._unreadable(trouble) from None
        finally:
            # What the script may have left in the session goes with it.
            if dirty:
                self._session.close()
            else:
                self._session.let_go()
        return done

    def claim(self, fence: int, run: str) -> None:
        """See :meth:`pipeline.databases.Database.claim`."""
        self._settled(lambda: self._fence.claim(fence, run))

    def baseline(self, scripts: Sequence[Script], *, fence: int, run: str, release: str) -> list[str]:
        """See :meth:`pipeline.databases.Database.baseline`."""
        for script in scripts:
            self._fit(script)

        def work() -> list[str]:
            self._fence.claim(fence, run)
            (rows,) = self._fence.locked(fence, [self._history.rows])
            known = {applied(each).script for each in rows}
            new = [script for script in scripts if script.id not in known]
            if new:
                inserted = [each for script in new for each in self._history.baseline(script, fence, run, release)]
                self._fence.write(fence, inserted)
            return [script.id for script in new]

        return self._settled(work)

    def repair(
        self, script: str, what: Repair, *, fence: int, run: str, release: str, resume_at: int | None = None
    ) -> None:
        """See :meth:`pipeline.databases.Database.repair`."""

        def work() -> None:
            self._fence.claim(fence, run)
            (rows,) = self._fence.locked(fence, [self._history.row_of(script)])
            found = row(rows)
            if found is None:
                raise self._errors.no_row(script)
            if found.state != "running":
                raise self._errors.not_blocked(script)
            history, details = self._history, {"statement": found.statement, "statements": found.statements}
            if what == "reverted":
                commands = [history.remove(script)]
            elif what == "done":
                commands = [history.settle(script, state="done", statement=found.statements, resume=False)]
            else:
                if found.session:
                    raise self._errors.not_resumable(script)
                if resume_at is None or not 1 <= resume_at <= found.statements:
                    raise self._errors.no_statement(script, resume_at, found.statements)
                details["resume_at"] = resume_at
                commands = [history.settle(script, state="running", statement=resume_at - 1, resume=True)]
            told = {"resume": "resumed", "done": "marked-done", "reverted": "marked-reverted"}[what]
            self._fence.write(fence, [*commands, history.event(told, script, fence, run, release, details)])

        self._settled(work)

    def rehearse(self, scripts: Sequence[tuple[Script, bytes]], *, run: str) -> list[Rehearsed]:
        """See :meth:`pipeline.databases.Database.rehearse`: on a copy of the schema, without its rows."""
        scratch = self._scratch("a rehearsal")
        try:
            return self._reading(lambda: self._rehearse(scratch, scripts, run))
        finally:
            scratch.close()

    def _rehearse(self, scratch: MysqlDatabase, scripts: Sequence[tuple[Script, bytes]], run: str) -> list[Rehearsed]:
        self._fence.whole()
        return rehearse(self._session, self._settings, scratch, scripts, run, self._errors)

    # --- backups ------------------------------------------------------------------------------------------------------

    def backup(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.backup`."""
        label = self._errors.label(label)
        return self._backups.take(label, self._facts, self._scratch_or_none())

    def backups(self) -> list[BackupFound]:
        """See :meth:`pipeline.databases.Database.backups`."""
        return self._backups.found()

    def prove(self, label: str) -> BackupTaken:
        """See :meth:`pipeline.databases.Database.prove`."""
        label = self._errors.label(label)
        return self._backups.prove(label, self._scratch_or_none())

    def restore(self, label: str, *, sha256: str | None, fence: int, run: str) -> None:
        """See :meth:`pipeline.databases.Database.restore`.

        Not one transaction on this engine: the file is proven first, then everything goes and the backup is loaded. While it
        is, the runner's lock is held by this session; and a mark in the database, which goes last, keeps everything but
        another restore away from what one that was interrupted left.
        """
        label = self._errors.label(label)
        history = self._history

        def work() -> None:
            # Under one lock from the look at the fence to the end.
            self._fence.claim(fence, run, keep=True)
            highest = self._fence.highest(fence)
            mark = history.begin_restore(highest, label, run)
            taken, changed = self._backups.restore(label, sha256, self._session, mark)
            details = {"label": label, "sha256": taken.sha256, **changed}
            commands = [*history.create, history.raise_fence(highest, run), history.end_restore]
            # Without its event a restore is made again by the same run; with the mark alone nothing would.
            commands.append(history.event("restored", None, highest, run, "", details))
            self._fence.claimed = None
            try:
                self._session.send(commands)
            except (Lost, Trouble) as error:
                raise self._backups.not_finished(
                    label, f"its history could not be brought up to date: {error}"
                ) from None

        self._settled(work)

    def close(self) -> None:
        """See :meth:`pipeline.databases.Database.close`."""
        self._fence.claimed = None
        self._session.close()

    # --- a script -----------------------------------------------------------------------------------------------------

    def _fit(self, script: Script) -> None:
        """Refused for what this adapter cannot do, before anything is sent."""
        if self._settings.way == "client" or script.client:
            raise Refused(
                f"migration {script.id} cannot run through the engine's own client.",
                reasons=[Reason(f"way: client and client: are not there for {self.engine} yet", script.id)],
                next_commands=[
                    "say way: tunnel in the environment's file, and take client: out of the script's header"
                ],
            )
        if len(script.id.encode()) > LONGEST_ID:
            raise UsageError(
                f"the id of migration {script.id[:60]}… is too long.",
                reasons=[Reason(f"at most {LONGEST_ID} bytes fit the history", script.id)],
            )

    def _look_through(self, script: Script, text: str) -> Reading:
        """What a first look found; Failed before anything is sent for what cannot run."""
        session = self._session

        def parts() -> Iterator[Part]:
            for part in mysql_statements(text, backslashes=session.backslashes, ansi_quotes=session.ansi_quotes):
                if (
                    part.end - part.start + 100 > session.largest // 4
                    and len(part.text.encode()) + 100 > session.largest
                ):
                    raise Unclear(
                        f"a statement of {len(part.text.encode())} bytes is longer than the server takes"
                        f" (max_allowed_packet is {session.largest})",
                        part.line,
                    )
                yield part

        return looked_through(self._errors, script, parts(), self._settings.name or "")

    def _verify(self, script: Script, verify: bytes | None) -> list[str] | None:
        """The statements of the script's verify; Failed before anything ran where it cannot be one."""
        if verify is None:
            return None
        session = self._session
        return checked(self._errors, script, verify, backslashes=session.backslashes, ansi_quotes=session.ansi_quotes)

    def _apply(self, run_of: ScriptRun, verify: list[str] | None, covers: Sequence[Script]) -> bool:
        script, errors = run_of.script, self._errors
        (rows,) = self._fence.locked(run_of.fence, [self._history.row_of(script.id)])
        found = row(rows)
        if found is not None and found.state == "running":
            if not found.resume:
                raise _not_past_its_end(errors.blocked(script, found.statement, found.statements), found)
            if found.checksum != script.checksum:
                raise errors.edited(script, found.checksum)
        elif found is not None:
            if found.checksum == script.checksum:
                return False
            if script.kind != "repeatable":
                raise errors.edited(script, found.checksum)
        run_of.go(found, verify, covers)
        return True

    def _ask_again(self, script: Script, text: str, run: str, said: str) -> bool:
        """What the history says after the connection broke: once the lock is free, the old session is over."""
        self._session.close()
        self._fence.claimed = None
        try:
            (names,) = self._session.send([self._history.exists])
            rows = (
                self._session.take_lock(self._patience, [self._history.row_of(script.id)])[0] if _whole(names) else []
            )
            found = row(rows)
        except Lost:
            raise self._errors.unknown(script, self._errors.not_let_in("the connection was lost again")) from None
        except Trouble as trouble:
            raise self._errors.unknown(script, self._unreadable(trouble)) from None
        except PipelineError as error:
            raise self._errors.unknown(script, error) from None
        finally:
            self._session.let_go()
        if found is None or (found.state == "running" and found.resume):
            raise self._errors.not_applied(script)
        if found.state == "running":
            raise self._stopped(script, text, found, said)
        if found.checksum != script.checksum:
            if script.kind == "repeatable":
                raise self._errors.not_applied(script)
            raise self._errors.edited(script, found.checksum)
        return found.run == run

    def _stopped(self, script: Script, text: str, found: Row, said: str) -> PipelineError:
        session = self._session
        parts = mysql_statements(text, backslashes=session.backslashes, ansi_quotes=session.ansi_quotes)
        part = next((each for each in parts if each.number > found.statement), None)
        error = self._errors.stopped(
            script,
            f"the connection was lost: {said}",
            number=found.statement + 1,
            statements=found.statements,
            line=part.line if part else None,
            words=part.first_words if part else None,
            uncertain=found.statement < found.statements,
        )
        return _not_past_its_end(error, found)

    # --- asking -------------------------------------------------------------------------------------------------------

    def _rows_of(self, command: Command) -> list[tuple[Any, ...]]:
        (names,) = self._session.send([self._history.exists])
        return self._session.send([command])[0] if _whole(names) else []

    def _facts(self) -> Session:
        self._session.connection()
        self._fence.whole()
        return self._session

    def _reading(self, work: Callable[[], _T]) -> _T:
        """What ``work`` reads, a second time on a new connection when the first had been lost; errors of ours."""
        for attempt in (1, 2):
            try:
                return work()
            except Lost as lost:
                self._session.close()
                self._fence.claimed = None
                if attempt == 2:
                    raise self._errors.not_let_in(str(lost)) from None
            except Trouble as trouble:
                raise self._unreadable(trouble) from None
        raise AssertionError("unreachable")

    def _settled(self, work: Callable[[], _T]) -> _T:
        """What ``work`` gives, which writes the history only; doing it again is safe."""
        try:
            return work()
        except Lost as lost:
            self._session.close()
            self._fence.claimed = None
            raise self._errors.not_claimed(str(lost)) from None
        except Trouble as trouble:
            raise self._unreadable(trouble) from None
        finally:
            self._session.let_go()

    def _scratch(self, what: str) -> MysqlDatabase:
        found = self._scratch_or_none()
        if found is None:
            raise Refused(
                f"{what} needs a scratch database.",
                reasons=[Reason("the environment's database has no scratch:", self._errors.place)],
                next_commands=[
                    f"name one in environments/{self._errors.customer}/{self._errors.environment}.yaml (scratch:)"
                ],
            )
        return found

    def _scratch_or_none(self) -> MysqlDatabase | None:
        settings = self._settings
        if settings.scratch is None:
            return None
        return MysqlDatabase(
            self._transport,
            settings.model_copy(update={"name": settings.scratch, "scratch": None}),
            self._password,
            backups="/nonexistent",
            customer=self._errors.customer,
            environment=self._errors.environment,
            patience=self._patience,
        )

    @property
    def session(self) -> Session:
        """The session, for this engine's own modules."""
        return self._session

    def _not_run(self, why: str) -> Failed:
        return Failed(
            f"the question cannot be asked of {self._errors.place}.",
            reasons=[Reason(self._errors.clean(why), self._errors.place)],
        )

    def _unreadable(self, trouble: Trouble) -> PipelineError:
        return self._errors.unreadable(trouble.message, code=str(trouble.number))


def _whole(names: list[tuple[Any, ...]]) -> bool:
    return len({str(row[0]) for row in names} - {RESTORE_TABLE}) == 3


def _not_past_its_end(error: PipelineError, found: Row) -> PipelineError:
    """Without the command to go on where all statements are committed, or where what it depends on is gone."""
    return only_by_hand(error) if found.statement == found.statements or found.session else error
