"""Runs on the host, fed to its ``python3``: migration history, one script, a backup, or the fence of a SQLite database.

Self-contained: only the standard library of Python 3.7 or newer (annotations are never evaluated), nothing of this
package. One JSON request comes on standard input and one JSON answer leaves on standard output; ``{"ok": false, "kind":
…}`` is an answer too. Never ``executescript``: it commits first. A script cannot commit by itself: SQLite's authorizer
denies it before it runs. It denies writing to the history and the fence as well.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

FORMAT = 1
CREATE = (
    "CREATE TABLE tma_migration_history (script TEXT PRIMARY KEY, checksum TEXT NOT NULL, algorithm TEXT NOT NULL,"
    " fence INTEGER NOT NULL, run TEXT NOT NULL, release TEXT NOT NULL, applied_at TEXT NOT NULL)",
    "CREATE TABLE tma_migration_fence (id INTEGER PRIMARY KEY CHECK (id = 1), highest INTEGER NOT NULL,"
    " format INTEGER NOT NULL)",
)
OWN_TABLES = ("tma_migration_history", "tma_migration_fence")
FIRST, SECOND = 1, 2
# The authorizer's actions that write to a table, and which of its words names it: DELETE, DROP TABLE, INSERT, UPDATE;
# then CREATE INDEX, CREATE TEMP TRIGGER, CREATE TRIGGER, ALTER TABLE. https://www.sqlite.org/c3ref/c_alter_table.html
WRITES = {9: FIRST, 11: FIRST, 18: FIRST, 23: FIRST, 1: SECOND, 5: SECOND, 7: SECOND, 26: SECOND}
# What decides whether a semicolon ends a statement, as sqlite3_complete() reads it; what is not closed goes to the end.
TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?(?:\*/|\Z)|'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|;|\bend\b""",
    re.DOTALL | re.IGNORECASE,
)


class Trouble(Exception):
    """What the answer says instead: ``kind`` is read by the other side, ``facts`` go with it."""

    def __init__(self, kind: str, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.facts = facts


class Guard:
    """The authorizer: while on, it denies to end the transaction, to leave the file, and to write to our own tables.

    ``denied`` is what was denied, ``kind`` the answer's word for it.
    """

    def __init__(self) -> None:
        self.on = False
        self.denied: str | None = None
        self.kind = ""

    def __call__(self, action: int, first: Any, second: Any, *_: Any) -> int:
        """SQLITE_OK or SQLITE_DENY for one action of a statement that is being compiled."""
        if not self.on:
            return 0
        word = {22: first, 24: "ATTACH", 25: "DETACH"}.get(action)
        if word is not None:
            self.denied, self.kind = str(word), "own-commit"
            return 1
        table = {FIRST: first, SECOND: second}.get(WRITES.get(action, 0))
        if isinstance(table, str) and table.lower() in OWN_TABLES:
            self.denied, self.kind = table.lower(), "own-history"
            return 1
        return 0


def statements(text: str) -> list[tuple[int, str]]:
    """The script's statements with the line each begins on; SQLite itself says where one is complete.

    It is asked only where it may say yes, as it reads the statement anew each time: at a semicolon outside of strings
    and comments, and within a trigger's body only after an END.
    """
    found: list[tuple[int, str]] = []
    start = counted = 0
    line = 1
    ask = True

    def take(end: int) -> None:
        nonlocal counted, line
        piece = text[start:end]
        lead = beginning(piece)
        if lead < len(piece) and piece[lead:] != ";":
            line += text.count("\n", counted, start + lead)
            counted = start + lead
            found.append((line, piece[lead:]))

    for match in TOKEN.finditer(text):
        found_here = match.group()
        if found_here != ";":
            ask = ask or found_here.lower() == "end"
        elif ask:
            if sqlite3.complete_statement(text[start : match.end()]):
                take(match.end())
                start = match.end()
            else:
                ask = False
    take(len(text))
    return found


def beginning(piece: str) -> int:
    """Where the statement begins after blanks and comments; the length when there is none."""
    position = 0
    while position < len(piece):
        if piece[position].isspace():
            position += 1
        elif piece.startswith("--", position):
            end = piece.find("\n", position)
            position = len(piece) if end < 0 else end + 1
        elif piece.startswith("/*", position):
            end = piece.find("*/", position + 2)
            position = len(piece) if end < 0 else end + 2
        else:
            return position
    return position


def code_of(error: BaseException) -> str | None:
    """SQLite's name of the error where this Python knows it (3.11 or newer)."""
    return getattr(error, "sqlite_errorname", None)


def connect(path: str, patience: float, make: bool = False) -> sqlite3.Connection:
    """The database, with transactions left to us; made when missing only where asked.

    Not read-only even for reading: after a killed writer the first to come rolls its journal back.
    """
    uri = "file:" + quote(os.fsencode(path)) + "?mode=" + ("rwc" if make else "rw")
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=patience)


def begin(connection: sqlite3.Connection) -> None:
    """Takes the write lock; SQLite itself waits for another runner or the application as long as connect() said."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if "locked" in str(error) or "busy" in str(error):
            raise Trouble("locked", "another connection is writing to the database") from error
        raise


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether the history and the fence exist."""
    query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name LIKE 'tma\\_migration\\_%' ESCAPE '\\'"
    return bool(connection.execute(query).fetchone()[0] == len(CREATE))


def history(request: dict[str, Any]) -> dict[str, Any]:
    """Every row, oldest first; with ``settled`` only once no other connection is writing."""
    if not Path(request["path"]).exists():
        return {"rows": []}
    connection = connect(request["path"], request["patience"])
    try:
        if request.get("settled"):
            begin(connection)
        if not has_tables(connection):
            return {"rows": []}
        rows = connection.execute(
            "SELECT script, checksum, algorithm, fence, run, release, applied_at FROM tma_migration_history"
            " ORDER BY applied_at, rowid"
        ).fetchall()
        return {"rows": rows}
    finally:
        connection.close()


def apply(request: dict[str, Any]) -> dict[str, Any]:
    """Applies one script with its row of the history, or says that it is in already."""
    guard = Guard()
    connection = connect(request["path"], request["patience"], make=True)
    try:
        claim(connection, request["fence"])
        row = connection.execute(
            "SELECT checksum FROM tma_migration_history WHERE script = ?", (request["script"],)
        ).fetchone()
        if row is not None:
            if row[0] != request["checksum"]:
                raise Trouble("edited", checksum=row[0])
            return {"applied": False}
        text = base64.b64decode(request["sql"]).decode("utf-8")
        guard.on = True
        # Here, not before: setting it makes SQLite compile cached statements anew, a COMMIT of ours among them.
        connection.set_authorizer(guard)
        run_script(connection, guard, text)
        guard.on = False
        now = time.time()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000000):06d}Z"
        values = [request[name] for name in ("script", "checksum", "algorithm", "fence", "run", "release")]
        connection.execute("INSERT INTO main.tma_migration_history VALUES (?, ?, ?, ?, ?, ?, ?)", [*values, at])
        connection.execute("COMMIT")
        return {"applied": True}
    finally:
        connection.close()


def raise_fence(request: dict[str, Any]) -> dict[str, Any]:
    """Raises the fence and nothing else."""
    connection = connect(request["path"], request["patience"], make=True)
    try:
        claim(connection, request["fence"])
        return {}
    finally:
        connection.close()


def claim(connection: sqlite3.Connection, fence: int) -> None:
    """Begins the transaction for a script, under this fence.

    Making the tables and raising the fence have a transaction of their own, so that a script that fails takes neither
    back with it, and an older runner stays shut out.
    """
    begin(connection)
    if has_tables(connection) and check_fence(connection, fence) == fence:
        return
    if not has_tables(connection):
        for create in CREATE:
            connection.execute(create)
        connection.execute("INSERT INTO tma_migration_fence VALUES (1, 0, ?)", (FORMAT,))
    connection.execute("UPDATE tma_migration_fence SET highest = ?", (fence,))
    connection.execute("COMMIT")
    begin(connection)
    check_fence(connection, fence)


def check_fence(connection: sqlite3.Connection, fence: int) -> int:
    """The highest fence seen; refused when it is above this one, or the tables are of a newer format."""
    row = connection.execute("SELECT highest, format FROM tma_migration_fence").fetchone()
    if row is None:
        raise Trouble("unreadable", "tma_migration_fence has lost its row")
    if row[1] > FORMAT:
        raise Trouble("newer", found=row[1])
    if row[0] > fence:
        raise Trouble("stale", highest=row[0])
    return int(row[0])


def run_script(connection: sqlite3.Connection, guard: Guard, text: str) -> None:
    """Every statement in turn; the first that fails ends it, with its number, line and first words."""
    for number, (line, statement) in enumerate(statements(text), 1):
        try:
            connection.execute(statement).fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            words = " ".join(statement[:400].split()).rstrip("; ")
            facts = {"number": number, "line": line, "words": words if len(words) <= 60 else words[:59] + "…"}
            if guard.denied:
                raise Trouble(guard.kind, guard.denied, **facts) from error
            raise Trouble("script", str(error), code=code_of(error), **facts) from error
        if not connection.in_transaction:
            # ON CONFLICT ROLLBACK and RAISE(ROLLBACK) end it without a statement that the authorizer sees.
            raise Trouble("escaped", number=number, line=line)


def backup(request: dict[str, Any]) -> dict[str, Any]:
    """A copy by SQLite's backup API that passes ``integrity_check``; an existing one of the label is proven again."""
    os.umask(0o077)
    target = Path(request["target"])
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target if target.exists() else target.with_name(f"{target.name}.part.{os.getpid()}")
    try:
        if part != target:
            copy(Path(request["path"]), part, request["patience"])
        check = sqlite3.connect(str(part))
        try:
            verdict = check.execute("PRAGMA integrity_check").fetchone()[0]
            tables = check.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
        finally:
            check.close()
        if verdict != "ok":
            raise Trouble("unproven", "integrity_check of the backup: " + verdict.splitlines()[0])
        digest = hashlib.sha256()
        with part.open("rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                digest.update(piece)
            os.fsync(file.fileno())
        if part != target:
            part.replace(target)
            folder = os.open(str(target.parent), os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
    except BaseException:
        if part != target and part.exists():
            part.unlink()
        raise
    return {"path": str(target), "sha256": digest.hexdigest(), "size": target.stat().st_size, "tables": tables}


def copy(path: Path, part: Path, patience: float) -> None:
    """The database, or an empty one where there is none yet, copied into ``part``."""
    source = connect(str(path), patience) if path.exists() else sqlite3.connect(":memory:")
    try:
        into = sqlite3.connect(str(part))
        try:
            source.backup(into)
        finally:
            into.close()
    finally:
        source.close()


def main() -> None:
    """One request, one answer; the exit code is 0 whenever there is an answer."""
    request = json.loads(sys.stdin.buffer.read().decode("utf-8"))
    answer: dict[str, Any] = {"ok": True}
    try:
        operations = {"history": history, "apply": apply, "backup": backup, "claim": raise_fence}
        answer.update(operations[request["operation"]](request))
    except Trouble as trouble:
        answer = dict(trouble.facts, ok=False, kind=trouble.kind, message=str(trouble))
    except (sqlite3.Error, OSError) as error:
        answer = {"ok": False, "kind": "unreadable", "message": str(error), "code": code_of(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
