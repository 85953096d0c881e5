"""Runs on the host beside ``host.py``: scripts, and what somebody says about them.

Never ``executescript``: it commits first. A transactional script cannot commit by itself: SQLite's authorizer denies it
before it runs. No script can leave its file or write to our own tables: that is denied as well.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time

from pipeline.databases.sqlite.host import (
    FORMAT,
    OUTSIDE,
    OWN_TABLES,
    Trouble,
    claim,
    code_of,
    connect,
    each_statement,
    exists,
    has_tables,
    is_busy,
    lock,
    note,
    now,
)
from pipeline.databases.sqlite.host import main as answer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

ATTEMPTS = 5
FIRST, SECOND = 1, 2
# The authorizer's actions that write to a table, and which of its words names it: DELETE, DROP TABLE, INSERT, UPDATE;
# then CREATE INDEX, CREATE TEMP TRIGGER, CREATE TRIGGER, ALTER TABLE. https://www.sqlite.org/c3ref/c_alter_table.html
WRITES = {9: FIRST, 11: FIRST, 18: FIRST, 23: FIRST, 1: SECOND, 5: SECOND, 7: SECOND, 26: SECOND}
COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
BEGINS = re.compile(r"begin( (deferred|immediate|exclusive))?( transaction)?", re.IGNORECASE)
ENDS = re.compile(r"(commit|end)( transaction)?", re.IGNORECASE)
TAKEN_BACK = re.compile(r"(commit|end|rollback)( transaction)?", re.IGNORECASE)
VACUUM = re.compile(r"vacuum( \w+)?", re.IGNORECASE)
# What SQLite refuses within a transaction, or silently ignores there.
OUTSIDE_ONLY = re.compile(
    r"vacuum\b.*|pragma (?:\w+ ?\. ?)?(?:foreign_keys|journal_mode|synchronous|locking_mode) ?[=(].*"
    r"|pragma (?:\w+ ?\. ?)?wal_checkpoint\b.*",
    re.IGNORECASE | re.DOTALL,
)
# Settings of the connection: they are made again where a script goes on in the middle.
SETTING = re.compile(
    r"pragma (?:foreign_keys|legacy_alter_table|recursive_triggers|ignore_check_constraints|case_sensitive_like|synchronous"
    r"|cache_size|temp_store|writable_schema|trusted_schema|automatic_index|mmap_size|secure_delete) ?[=(].*",
    re.IGNORECASE | re.DOTALL,
)
SESSION = re.compile(r"create temp(orary)? .*", re.IGNORECASE | re.DOTALL)


class Guard:
    """The authorizer: while on, it denies to leave the file, to write to our own tables and to end the transaction.

    ``own_transactions``: the script may begin and end transactions itself. ``denied`` is what was denied, ``kind`` the
    answer's word for it.
    """

    def __init__(self, own_transactions: bool = False) -> None:
        self.on = False
        self.own_transactions = own_transactions
        self.denied: str | None = None
        self.kind = ""

    def __call__(self, action: int, first: Any, second: Any, *_: Any) -> int:
        """SQLITE_OK or SQLITE_DENY for one action of a statement that is being compiled."""
        if not self.on:
            return 0
        if action == 22 and not self.own_transactions:
            return self._deny("own-commit", first)
        if action in {24, 25}:
            return self._deny(
                "outside" if self.own_transactions else "own-commit", "ATTACH" if action == 24 else "DETACH"
            )
        if action in {29, 31} and str(second).lower() in OUTSIDE:
            return self._deny("outside", second)
        if action == 19 and str(first).lower() in {"temp_store_directory", "data_store_directory"}:
            return self._deny("outside", "PRAGMA " + first)
        table = {FIRST: first, SECOND: second}.get(WRITES.get(action, 0))
        if isinstance(table, str) and table.lower() in OWN_TABLES:
            return self._deny("own-history", table.lower())
        return 0

    def _deny(self, kind: str, what: Any) -> int:
        self.kind, self.denied = kind, str(what)
        return 1


class Plan:
    """A script looked through before anything runs: how many statements, whether one pair of BEGIN and COMMIT is around
    it, whether it depends on its session, and ``trouble``, for which it cannot run."""

    def __init__(self, text: str, transactional: bool, pair_ends: Any = ENDS) -> None:
        self.text = text
        self.pair = self.session = False
        self.trouble: Trouble | None = None
        self.count = 0
        first = last = ""
        for number, (line, statement) in enumerate(each_statement(text), 1):
            last = plain(statement)
            first = first if number > 1 else last
            self.count = number
            self.session = self.session or bool(SESSION.fullmatch(last))
            if self.trouble is None:
                facts = {"number": number, "line": line, "words": words_of(statement)}
                if statement.startswith("."):
                    self.trouble = Trouble("client-command", statement.split()[0], **facts)
                elif transactional and OUTSIDE_ONLY.fullmatch(last):
                    self.trouble = Trouble("not-in-transaction", words_of(statement), **facts)
        if transactional and BEGINS.fullmatch(first) and pair_ends.fullmatch(last) and self.count > 1:
            self.pair = True

    def statements(self) -> Iterator[tuple[int, int, str]]:
        """Number, line and text of each statement that runs; the pair around them does not."""
        for number, (line, statement) in enumerate(each_statement(self.text), 1):
            if not (self.pair and number in {1, self.count}):
                yield number, line, statement


def plain(statement: str) -> str:
    """The beginning of a statement without comments, blanks as one, without its semicolon."""
    return " ".join(COMMENT.sub(" ", statement[:400]).split()).rstrip("; ")


def pause() -> None:
    """A moment until the next attempt, not the same for all who wait."""
    time.sleep(0.1 + os.urandom(1)[0] / 640)


def words_of(statement: str) -> str:
    """The beginning of a statement on one line, at most 60 characters: enough to find it, not its data."""
    words = " ".join(statement[:400].split()).rstrip("; ")
    return words if len(words) <= 60 else words[:59] + "…"


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
            self._counter(known)
        self.connection.execute("COMMIT")
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
        claim(self.connection, self.request["fence"], self.request["run"])
        self._done("reapplied" if again and not going_on else "applied", self.plan.count, self.plan.count)
        self.connection.execute("COMMIT")

    def _counter(self, number: int) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.connection.execute(
                    "UPDATE main.tma_migration_history SET statement = ?, resume = 0 WHERE script = ?",
                    (number, self.script),
                )
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error) or attempt == ATTEMPTS:
                    raise Trouble("script", f"its counter cannot be written: {error}", code=code_of(error)) from error

    def _committed(self) -> dict[str, int]:
        row = self.connection.execute(
            "SELECT statement, statements FROM main.tma_migration_history WHERE script = ?", (self.script,)
        ).fetchone()
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
            guard.on = not (guard.own_transactions and VACUUM.fullmatch(plain(statement)))
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
        return {"applied": Work(connection, request, texts[0], texts[1] if len(texts) > 1 else None).run()}
    finally:
        connection.close()


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
    answer({"apply": apply, "baseline": baseline, "repair": repair, "rehearse": rehearse})
