"""Runs on the host beside ``host.py``: scripts, and what somebody says about them.

Never ``executescript``: it commits first. A transactional script cannot commit by itself: SQLite's authorizer denies it
before it runs. No script can leave its file or write to our own tables: that is denied as well.
"""

from __future__ import annotations

import os
import sqlite3
import time

from pipeline.databases.sqlite.host import (
    FORMAT,
    Trouble,
    claim,
    code_of,
    connect,
    exists,
    has_tables,
    is_busy,
    lock,
    note,
    now,
)
from pipeline.databases.sqlite.host import main as answer
from pipeline.databases.sqlite.host_plan import SETTING, TAKEN_BACK, VACUUM, Guard, Plan, plain, words_in, words_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ATTEMPTS = 5


def pause() -> None:
    """A moment until the next attempt, not the same for all who wait."""
    time.sleep(0.1 + os.urandom(1)[0] / 640)


# --- one script ----------------------------------------------------------------------------------------------------------


class Work:
    """One script on a connection: what ``request`` says of it, its text, and the text that verifies it."""

    def __init__(
        self, connection: sqlite3.Connection, request: dict[str, Any], text: bytes, verify: bytes | None
    ) -> None:
        self.connection = connection
        self.request = request
        self.script, self.checksum = request["script"], request["checksum"]
        self.plan = Plan(text.decode("utf-8"), request["transactional"])
        self.verifying = Plan(verify.decode("utf-8"), True, TAKEN_BACK) if verify is not None else None
        self.guard = Guard()
        self.known = 0

    def run(self) -> bool:
        """Whether it was applied now; the connection is in a transaction of ours that has checked the fence."""
        row = self.connection.execute(
            "SELECT checksum, state, statement, statements, resume, run FROM main.tma_migration_history WHERE script = ?",
            (self.script,),
        ).fetchone()
        going_on = row is not None and row[1] == "running"
        if row is not None:
            same = row[0] == self.checksum
            if going_on and not (row[4] and same):
                if not same and row[4]:
                    raise Trouble("edited", checksum=row[0])
                raise Trouble("blocked", statement=row[2], statements=row[3], run=row[5])
            if not going_on and same:
                return False
            if not going_on and self.request["kind"] != "repeatable":
                raise Trouble("edited", checksum=row[0])
        for trouble in (self.plan.trouble, self.verifying and self.verifying.trouble):
            if trouble:
                raise trouble
        if self.request["transactional"] and not going_on:
            self._whole(again=row is not None)
        else:
            self._stepwise(row[2] if going_on else 0, going_on, again=row is not None)
        return True

    def _whole(self, again: bool) -> None:
        """All of it with its row in the transaction that is open; once more as a whole when a lock was in the way."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.connection.execute("PRAGMA busy_timeout = {:d}".format(self.request["lock_timeout"] * 1000))
                self._each(self.plan, self._in_transaction)
                self._verify("SAVEPOINT tma_verify", "ROLLBACK TO tma_verify")
                self._done("reapplied" if again else "applied", 0, 0)
                self.connection.execute("COMMIT")
                return
            except (sqlite3.Error, Trouble) as error:
                cause = error.__cause__ if isinstance(error, Trouble) else error
                self.guard.on = False
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                if cause is None or not is_busy(cause) or self.guard.denied:
                    if isinstance(error, Trouble):
                        raise
                    raise Trouble("script", str(error), code=code_of(error)) from error
                if attempt == ATTEMPTS:
                    raise Trouble("busy", str(cause), attempts=ATTEMPTS, code=code_of(cause)) from error
            pause()
            claim(self.connection, self.request["fence"], self.request["run"])

    def _in_transaction(self, number: int, line: int) -> None:
        if not self.connection.in_transaction:
            # ON CONFLICT ROLLBACK and RAISE(ROLLBACK) end it without a statement that the authorizer sees.
            raise Trouble("escaped", number=number, line=line)

    def _stepwise(self, known: int, going_on: bool, again: bool) -> None:
        """Its row as running, then each statement by itself with the counter after it, then its row as done.

        Within a transaction of the script's own the counter belongs to it, and is taken back with it.
        """
        if not going_on:
            self._row("running", 0, self.plan.count, session=int(self.plan.session or self.request["session"]))
            note(self.connection, self.request, "started", self.script, self.checksum, statements=self.plan.count)
        else:
            # Nobody said yet what is to be done when it stops again.
            begun = self.plan.begun_before(known)
            known = begun - 1 if begun else known
            self._counter(known)
            if begun:
                self.connection.execute("COMMIT")
                raise Trouble("middle", stopped=True, number=begun, statement=known, statements=self.plan.count)
        self.connection.execute("COMMIT")
        self.known = known
        self.connection.execute("PRAGMA busy_timeout = {:d}".format(self.request["lock_timeout"] * 1000))
        self.guard = Guard(own_transactions=True)
        try:
            self._each(self.plan, lambda number, _: self._counter(number), known)
            if self.connection.in_transaction:
                raise Trouble("left-open")
            self._verify("BEGIN", "ROLLBACK")
        except Trouble as trouble:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            trouble.facts.update(stopped=True, **self._committed())
            raise
        self.connection.execute("PRAGMA busy_timeout = {:d}".format(int(self.request["patience"] * 1000)))
        try:
            claim(self.connection, self.request["fence"], self.request["run"])
            self._done("reapplied" if again and not going_on else "applied", self.plan.count, self.plan.count)
            self.connection.execute("COMMIT")
        except (Trouble, sqlite3.Error) as error:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            facts = {"number": self.plan.count, "statements": self.plan.count, "code": code_of(error)}
            raise Trouble("uncounted", str(error) or type(error).__name__, stopped=True, **facts) from error

    def _counter(self, number: int) -> None:
        """Writes it, for as long as a runner waits for another: its statement is committed, and nobody else knows."""
        deadline = time.monotonic() + self.request["patience"]
        attempt = 0
        while True:
            attempt += 1
            inside = self.connection.in_transaction
            try:
                self.connection.execute(
                    "UPDATE main.tma_migration_history SET statement = ?, resume = 0 WHERE script = ?",
                    (number, self.script),
                )
                self.known = self.known if inside else number
                return
            except sqlite3.Error as error:
                # Inside a transaction of the script's own a lock may never end, and the statement is taken back with it.
                again = attempt < ATTEMPTS or (not inside and time.monotonic() < deadline)
                if not (is_busy(error) and again):
                    message = str(error) if not inside else f"its counter cannot be written: {error}"
                    facts = {"number": number, "code": code_of(error)}
                    raise Trouble("script" if inside else "uncounted", message, **facts) from error
            pause()

    def _committed(self) -> dict[str, int]:
        try:
            row = self.connection.execute(
                "SELECT statement, statements FROM main.tma_migration_history WHERE script = ?", (self.script,)
            ).fetchone()
        except sqlite3.Error:
            # Another's lock again: what this process counted itself.
            row = (self.known, self.plan.count)
        return {"statement": row[0], "statements": row[1]}

    def _each(self, plan: Plan, after: Any, known: int = 0) -> None:
        """Every statement after the first ``known``; the one that fails ends it, with its number, line and first words."""
        guard = self.guard
        # Here, not before: setting it makes SQLite compile cached statements anew, a COMMIT of ours among them.
        self.connection.set_authorizer(guard)
        for number, line, statement in plan.statements():
            if number <= known and not SETTING.fullmatch(plain(statement)):
                continue
            # VACUUM works through an attached database of its own, which the authorizer cannot tell from another.
            guard.on = not (
                guard.own_transactions and statement[:6].lower() == "vacuum" and VACUUM.fullmatch(words_in(statement))
            )
            try:
                self._statement(statement)
            except (sqlite3.Error, sqlite3.Warning) as error:
                facts = {"number": number, "line": line, "words": words_of(statement)}
                if guard.denied:
                    raise Trouble(guard.kind, guard.denied, **facts) from error
                raise Trouble("script", str(error), code=code_of(error), **facts) from error
            finally:
                guard.on = False
            if number > known:
                after(number, line)

    def _statement(self, statement: str) -> None:
        alone = self.guard.own_transactions and not self.connection.in_transaction
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # Row by row: what a SELECT gives is nobody's here.
                for _ in self.connection.execute(statement):
                    pass
                return
            except sqlite3.OperationalError as error:
                if not (alone and is_busy(error)) or attempt == ATTEMPTS:
                    raise
                pause()

    def _verify(self, before: str, back: str) -> None:
        if self.verifying is None:
            return
        self.connection.execute(before)
        guard, self.guard = self.guard, Guard()
        try:
            self._each(self.verifying, self._in_transaction)
        except Trouble as trouble:
            trouble.facts["verify"] = True
            raise
        finally:
            self.guard = guard
        self.connection.execute(back)

    def _row(self, state: str, statement: int, count: int, session: int = 0) -> None:
        values = [self.request[name] for name in ("checksum", "algorithm", "fence", "run", "release")]
        self.connection.execute(
            "INSERT OR REPLACE INTO main.tma_migration_history (script, checksum, algorithm, fence, run, release,"
            " applied_at, state, statement, statements, session) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self.script, *values, now(), state, statement, count, session),
        )

    def _done(self, what: str, statement: int, count: int) -> None:
        self._row("done", statement, count)
        note(self.connection, self.request, what, self.script, self.checksum)
        take_in(self.connection, self.request, self.request["covers"], by=self.script)


def take_in(
    connection: sqlite3.Connection, request: dict[str, Any], scripts: list[list[str]], **details: Any
) -> list[str]:
    """The ids among ``scripts`` (id, checksum, algorithm) that had no row; they have one as baseline now."""
    taken = []
    for script, checksum, algorithm in scripts:
        cursor = connection.execute(
            "INSERT OR IGNORE INTO main.tma_migration_history (script, checksum, algorithm, fence, run, release,"
            " applied_at, state) VALUES (?, ?, ?, ?, ?, ?, ?, 'baseline')",
            (script, checksum, algorithm, request["fence"], request["run"], request["release"], now()),
        )
        if cursor.rowcount:
            taken.append(script)
            note(connection, request, "baselined", script, checksum, **details)
    return taken


# --- operations ----------------------------------------------------------------------------------------------------------


def opened(request: dict[str, Any]) -> sqlite3.Connection:
    """The database, made when missing, in a transaction of the one runner that has checked the fence."""
    lock(request["path"], request["patience"], make=True)
    connection = connect(request["path"], request["patience"], make=True)
    try:
        claim(connection, request["fence"], request["run"])
    except BaseException:
        connection.close()
        raise
    return connection


def apply(request: dict[str, Any], texts: list[bytes]) -> dict[str, Any]:
    """Applies one script with its row of the history, or says that it is in already."""
    connection = opened(request)
    try:
        if request["id"] in withdrawn(connection):
            raise Trouble("withdrawn", "whoever sent it was told that it will not run")
        return {"applied": Work(connection, request, texts[0], texts[1] if len(texts) > 1 else None).run()}
    finally:
        connection.close()


def withdraw(request: dict[str, Any], _: list[bytes]) -> dict[str, Any]:
    """Sees to it that the apply of this id, which may still be under way to the host, changes nothing when it arrives.

    Its answer comes only when no such process is at work: what the history says then stays true.
    """
    connection = opened(request)
    try:
        ids = [*withdrawn(connection), request["id"]][-20:]
        connection.execute("UPDATE main.tma_migration_fence SET script = ?", (" ".join(["withdrawn:", *ids]),))
        connection.execute("COMMIT")
        return {}
    finally:
        connection.close()


def withdrawn(connection: sqlite3.Connection) -> list[str]:
    """The ids that may not begin any more; kept in a column that this engine has no other use for."""
    (said,) = connection.execute("SELECT script FROM main.tma_migration_fence").fetchone()
    return said.split()[1:] if said and said.startswith("withdrawn:") else []


def baseline(request: dict[str, Any], _: list[bytes]) -> dict[str, Any]:
    """Counts scripts as applied without running them, all or none."""
    connection = opened(request)
    try:
        taken = take_in(connection, request, request["scripts"])
        connection.execute("COMMIT")
        return {"taken": taken}
    finally:
        connection.close()


def repair(request: dict[str, Any], _: list[bytes]) -> dict[str, Any]:
    """Ends the blocked state of a script, as somebody found it."""
    script, what, at = request["script"], request["what"], request["resume_at"]
    connection = opened(request)
    try:
        row = connection.execute(
            "SELECT checksum, state, statement, statements, session FROM main.tma_migration_history WHERE script = ?",
            (script,),
        ).fetchone()
        if row is None:
            raise Trouble("unknown-script")
        if row[1] != "running":
            raise Trouble("not-blocked", state=row[1])
        details = {"statement": row[2], "statements": row[3]}
        if what == "reverted":
            connection.execute("DELETE FROM main.tma_migration_history WHERE script = ?", (script,))
        elif what == "done":
            connection.execute(
                "UPDATE main.tma_migration_history SET state = 'done', statement = statements, resume = 0, applied_at = ?"
                " WHERE script = ?",
                (now(), script),
            )
        else:
            if row[4]:
                raise Trouble("session")
            if at is None or not 1 <= at <= row[3]:
                raise Trouble("no-such-statement", statements=row[3])
            details["resume_at"] = at
            connection.execute(
                "UPDATE main.tma_migration_history SET statement = ?, resume = 1 WHERE script = ?", (at - 1, script)
            )
        said = {"resume": "resumed", "done": "marked-done", "reverted": "marked-reverted"}[what]
        note(connection, request, said, script, row[0], **details)
        connection.execute("COMMIT")
        return {}
    finally:
        connection.close()


def rehearse(request: dict[str, Any], texts: list[bytes]) -> dict[str, Any]:
    """Applies scripts to a copy that SQLite keeps in a file without a name, so that nothing of it can stay."""
    copy = sqlite3.connect("", isolation_level=None)
    try:
        if exists(request["path"]):
            source = connect(request["path"], request["patience"])
            try:
                source.backup(copy)
            finally:
                source.close()
        outcomes: list[dict[str, Any]] = []
        fence = 0
        if has_tables(copy):
            fence, found = copy.execute("SELECT highest, format FROM tma_migration_fence").fetchone()
            if found > FORMAT:
                raise Trouble("newer", found=found)
        for script, text in zip(request["scripts"], texts):  # noqa: B905 (an argument that Python 3.7 does not know)
            work = dict(request, **script, fence=fence)
            try:
                claim(copy, fence, request["run"])
                outcomes.append({"ok": True, "applied": Work(copy, work, text, None).run()})
                if copy.in_transaction:
                    copy.execute("ROLLBACK")
            except Trouble as trouble:
                outcomes.append(dict(trouble.facts, ok=False, kind=trouble.kind, message=str(trouble)))
                break
        return {"outcomes": outcomes}
    finally:
        copy.close()


def main() -> None:
    """One request, one answer."""
    answer({"apply": apply, "withdraw": withdraw, "baseline": baseline, "repair": repair, "rehearse": rehearse})
