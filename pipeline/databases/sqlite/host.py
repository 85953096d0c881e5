"""Runs on the host, fed to its ``python3``: what every operation on a SQLite database needs, and those that only look.

Self-contained: only the standard library of Python 3.7 or newer (annotations are never evaluated), nothing of this
package but the parts that are sent along (``host_scripts.py``, ``host_backups.py``, ``host_catalogue.py``).
A request is one line of JSON on standard input, followed by the bytes of ``sizes``; one JSON answer leaves on standard
output; ``{"ok": false, "kind": …}`` is an answer too.

Who changes the database holds ``flock`` on its file until the process ends, so that there is one runner at a time even
between the statements of a script that commits each. The application is kept out by SQLite's own locks alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sqlite3
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    # pathlib, typing and urllib would take longer than the rest of the start: one of these a script.
    from collections.abc import Callable, Iterator
    from typing import Any

FORMAT = 2
HISTORY = (
    "script",
    "checksum",
    "algorithm",
    "fence",
    "run",
    "release",
    "applied_at",
    "state",
    "statement",
    "statements",
    "session",
)
EVENT = ("number", "what", "script", "checksum", "fence", "run", "release", "at", "details")
ADDED = {
    "tma_migration_history": (
        "state TEXT NOT NULL DEFAULT 'done'",
        "statement INTEGER NOT NULL DEFAULT 0",
        "statements INTEGER NOT NULL DEFAULT 0",
        # Ours alone: somebody said that it may go on; it depends on what its earlier statements did to the session.
        "resume INTEGER NOT NULL DEFAULT 0",
        "session INTEGER NOT NULL DEFAULT 0",
    ),
    "tma_migration_fence": ("script TEXT", "run TEXT"),
}
"""The columns that format 2 has and format 1 has not."""

CREATE_EVENTS = (
    "CREATE TABLE tma_migration_events (number INTEGER PRIMARY KEY, what TEXT NOT NULL, script TEXT,"
    " checksum TEXT, fence INTEGER NOT NULL, run TEXT NOT NULL, release TEXT NOT NULL, at TEXT NOT NULL,"
    " details TEXT NOT NULL)"
)
CREATE = (
    "CREATE TABLE tma_migration_history (script TEXT PRIMARY KEY, checksum TEXT NOT NULL, algorithm TEXT NOT NULL,"
    " fence INTEGER NOT NULL, run TEXT NOT NULL, release TEXT NOT NULL, applied_at TEXT NOT NULL, "
    + ", ".join(ADDED["tma_migration_history"])
    + ")",
    "CREATE TABLE tma_migration_fence (id INTEGER PRIMARY KEY CHECK (id = 1), highest INTEGER NOT NULL,"
    " format INTEGER NOT NULL, " + ", ".join(ADDED["tma_migration_fence"]) + ")",
    CREATE_EVENTS,
)
OWN_TABLES = ("tma_migration_history", "tma_migration_fence", "tma_migration_events")
# What decides whether a semicolon ends a statement, as sqlite3_complete() reads it; what is not closed goes to the end.
TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?(?:\*/|\Z)|'[^']*(?:'|\Z)|"[^"]*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|;|\bend\b""",
    re.DOTALL | re.IGNORECASE,
)
# The authorizer's actions of a statement that only reads: READ, SELECT, FUNCTION, RECURSIVE; a PRAGMA (19) by its name.
READING = {20, 21, 31, 33}
INFORMING = {"table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"}
INFORMING |= {"database_list", "collation_list", "compile_options", "user_version", "application_id", "schema_version"}
OUTSIDE = {"load_extension", "readfile", "writefile", "edit", "fsdir", "lsmode", "fts3_tokenizer", "zipfile", "csv"}
"""Functions and modules by which a statement could reach another file or program, where a build of SQLite has them."""


class Trouble(Exception):
    """What the answer says instead: ``kind`` is read by the other side, ``facts`` go with it."""

    def __init__(self, kind: str, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.facts = facts


# --- statements ----------------------------------------------------------------------------------------------------------


def statements(text: str) -> list[tuple[int, str]]:
    """The script's statements with the line each begins on; SQLite itself says where one is complete."""
    return list(each_statement(text))


def each_statement(text: str, strict: bool = False) -> Iterator[tuple[int, str]]:
    """As :func:`statements`, one after the other, so that a script of many megabytes is not held twice.

    ``strict``: Trouble at a comment or a quote without an end; SQLite itself takes the rest of the script for a part of it.
    SQLite is asked only where it may say yes, as it reads the statement anew each time: at a semicolon outside of
    strings and comments, and within a trigger's body only after an END.
    """
    start = counted = 0
    line = 1
    ask = True
    ends = TOKEN.finditer(text)
    while True:
        match = next(ends, None)
        if match is not None:
            found_here = match.group()
            if found_here != ";":
                if strict and not closed(found_here):
                    what = "comment" if found_here[0] == "/" else "quote"
                    raise Trouble(
                        "script",
                        f"a {what} that is opened here is never closed",
                        line=text.count("\n", 0, match.start()) + 1,
                    )
                ask = ask or found_here.lower() == "end"
                continue
            if not ask:
                continue
            if not sqlite3.complete_statement(text[start : match.end()]):
                ask = False
                continue
        end = len(text) if match is None else match.end()
        piece = text[start:end]
        lead = beginning(piece)
        if lead < len(piece) and piece[lead:] != ";":
            line += text.count("\n", counted, start + lead)
            counted = start + lead
            yield line, piece[lead:]
        if match is None:
            return
        start = end


def closed(token: str) -> bool:
    """Whether a comment or quote that :data:`TOKEN` found has its end."""
    if token.startswith("/*"):
        return len(token) > 3 and token.endswith("*/")
    end = {"'": "'", '"': '"', "`": "`", "[": "]"}.get(token[0])
    return end is None or (len(token) > 1 and token.endswith(end))


def uncommented(piece: str) -> str:
    """The piece with a blank for each comment; what stands in quotes is none."""
    return TOKEN.sub(lambda match: " " if match.group().startswith(("--", "/*")) else match.group(), piece)


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


# --- the database --------------------------------------------------------------------------------------------------------


def code_of(error: BaseException) -> str | None:
    """SQLite's name of the error where this Python knows it (3.11 or newer)."""
    return getattr(error, "sqlite_errorname", None)


def is_busy(error: BaseException) -> bool:
    """Whether another connection's lock was in the way."""
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))


def connect(path: str, patience: float, make: bool = False) -> sqlite3.Connection:
    """The database, with transactions left to us; made when missing only where asked.

    Not read-only even for reading: after a killed writer the first to come rolls its journal back.
    """
    uri = "file:" + "".join(f"%{byte:02x}" for byte in os.fsencode(path)) + "?mode=" + ("rwc" if make else "rw")
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=patience)


def real(path: str) -> str:
    """Where the file itself lies: SQLite keeps its journal and its log there, never beside a link to it."""
    return os.path.realpath(path)  # (without pathlib)


def exists(path: str) -> bool:
    """Whether there is such a file or folder."""
    return os.path.exists(path)  # noqa: PTH110 (without pathlib)


def lock(path: str, patience: float, make: bool = False) -> None:
    """Makes this process the one runner, before anything else is opened; the kernel lets go when the process ends.

    The descriptor is never closed: POSIX would drop SQLite's own locks on the file with it. On a file system without
    ``flock`` there remains SQLite's write lock, which is held for a transaction only.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o644)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Trouble("locked", "another run is at work here" + last_run(path)) from None
            time.sleep(0.1)
        except OSError:
            return


def last_run(path: str) -> str:
    """The run that raised the fence last, in words; nothing when it cannot be read."""
    try:
        connection = connect(path, 0.0)
        try:
            row = connection.execute("SELECT highest, run FROM main.tma_migration_fence").fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        return ""
    return f"; the last to begin was {row[1]} with the fence {row[0]}" if row and row[1] else ""


def begin(connection: sqlite3.Connection) -> None:
    """Takes the write lock; SQLite itself waits for the application as long as connect() said."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if is_busy(error):
            raise Trouble("locked", "another connection is writing to the database") from error
        raise


def has_tables(connection: sqlite3.Connection) -> bool:
    """Whether the history and the fence exist, in whatever format."""
    query = "SELECT count(*) FROM main.sqlite_master WHERE type = 'table' AND name IN (?, ?)"
    return bool(connection.execute(query, OWN_TABLES[:2]).fetchone()[0] == 2)


def now() -> str:
    """This moment, UTC, RFC 3339 with microseconds."""
    moment = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1000000):06d}Z"


def note(
    connection: sqlite3.Connection,
    request: dict[str, Any],
    what: str,
    script: str | None,
    checksum: str | None,
    **details: Any,
) -> None:
    """Adds an event, in the transaction of what it tells of; an event of the same moment comes after those before it."""
    connection.execute(
        "INSERT INTO main.tma_migration_events (what, script, checksum, fence, run, release, at, details)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(what, script, checksum, request["fence"], request["run"], request.get("release", "")),
            *(now(), json.dumps(details, sort_keys=True)),
        ),
    )


def claim(connection: sqlite3.Connection, fence: int, run: str) -> None:
    """Begins a transaction under this fence, in a history of this format.

    Making the tables and raising the fence have a transaction of their own, so that a script that fails takes neither
    back with it, and an older runner stays shut out.
    """
    begin(connection)
    there = has_tables(connection)
    if there and check_fence(connection, fence) == (fence, FORMAT):
        return
    if there:
        upgrade(connection)
    else:
        for create in CREATE:
            connection.execute(create)
        connection.execute("INSERT INTO tma_migration_fence (id, highest, format) VALUES (1, 0, ?)", (FORMAT,))
    connection.execute("UPDATE tma_migration_fence SET highest = ?, run = ?", (fence, run))
    connection.execute("COMMIT")
    begin(connection)
    check_fence(connection, fence)


def upgrade(connection: sqlite3.Connection) -> None:
    """Brings the tables of format 1 up to date, in the transaction that is open."""
    if connection.execute("SELECT format FROM main.tma_migration_fence").fetchone()[0] == FORMAT:
        return
    for table, columns in ADDED.items():
        for column in columns:
            connection.execute(f"ALTER TABLE main.{table} ADD COLUMN {column}")
    connection.execute(CREATE_EVENTS)
    connection.execute("UPDATE main.tma_migration_fence SET format = ?", (FORMAT,))


def check_fence(connection: sqlite3.Connection, fence: int) -> tuple[int, int]:
    """The highest fence seen, and the format; refused when it is above this one, or the tables are of a newer format."""
    row = connection.execute("SELECT highest, format FROM main.tma_migration_fence").fetchone()
    if row is None:
        raise Trouble("unreadable", "tma_migration_fence has lost its row")
    if row[1] > FORMAT:
        raise Trouble("newer", found=row[1])
    if row[0] > fence:
        raise Trouble("stale", highest=row[0])
    return int(row[0]), int(row[1])


# --- what only looks -----------------------------------------------------------------------------------------------------


def history(request: dict[str, Any], _: list[bytes]) -> dict[str, Any]:
    """Every row, oldest first; with ``settled`` only once no other connection is writing, and no runner is left."""
    return {"rows": rows_of(request, OWN_TABLES[0], HISTORY, "applied_at, rowid")}


def events(request: dict[str, Any], _: list[bytes]) -> dict[str, Any]:
    """Every event, oldest first."""
    return {"rows": rows_of(request, OWN_TABLES[2], EVENT, "number")}


def rows_of(request: dict[str, Any], table: str, names: tuple[str, ...], order: str) -> list[dict[str, Any]]:
    """The rows of one of our tables with those of the columns that its format has; none when it is not there."""
    if not exists(request["path"]):
        return []
    if request.get("settled"):
        lock(request["path"], request["patience"])
    connection = connect(request["path"], request["patience"])
    try:
        if request.get("settled"):
            begin(connection)
        there = {row[1] for row in connection.execute(f"PRAGMA main.table_info({table})")}
        known = [name for name in names if name in there]
        if not known:
            return []
        rows = connection.execute(f"SELECT {', '.join(known)} FROM main.{table} ORDER BY {order}")  # noqa: S608 (names of ours)
        return [{name: row[place] for place, name in enumerate(known)} for row in rows]
    finally:
        connection.close()


def query(request: dict[str, Any], texts: list[bytes]) -> dict[str, Any]:
    """The rows of one statement that can only read: SQLite is told so twice, and asked before each thing it would do."""
    if not exists(request["path"]):
        raise Trouble("unreadable", "the file does not exist yet")
    connection = connect(request["path"], request["patience"])
    try:
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        connection.set_authorizer(only_reading)
        rows = connection.execute(texts[0].decode("utf-8")).fetchall()
        return {"rows": [[packed(value) for value in row] for row in rows]}
    finally:
        connection.close()


def only_reading(action: int, first: Any, second: Any, *_: Any) -> int:
    """The authorizer of a query: SQLITE_OK for what reads this database, SQLITE_DENY for all else."""
    if action == 19:
        name = str(first).lower()
        return 0 if name in INFORMING and (second is None or not name.endswith(("_version", "_id"))) else 1
    if action == 31:
        return 1 if str(second).lower() in OUTSIDE else 0
    return 0 if action in READING else 1


def packed(value: Any) -> Any:
    """A value as JSON has it; bytes as an object with their hexadecimal digits."""
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def server(request: dict[str, Any], _: list[bytes]) -> dict[str, Any]:
    """The versions of SQLite and Python, and what this host lacks."""
    path = request["path"]
    lacks = []
    if sys.version_info < (3, 11):  # noqa: UP036 (the host's)
        lacks.append("errors have no code: python3 is older than 3.11, and SQLite's own words are shown alone")
    place = path if exists(path) else os.path.dirname(path)  # noqa: PTH120 (without pathlib)
    try:
        descriptor = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        pass  # another holds it, or nothing can be tried yet
    except OSError:
        lacks.append(
            "no flock on this file system: runners are kept apart by SQLite's write lock, a transaction at a time"
        )
    version = "SQLite {} through Python {}.{}.{}".format(sqlite3.sqlite_version, *sys.version_info[:3])
    return {"version": version, "substitutes": lacks}


def raise_fence(request: dict[str, Any], _: list[bytes]) -> dict[str, Any]:
    """Raises the fence and nothing else."""
    lock(request["path"], request["patience"], make=True)
    connection = connect(request["path"], request["patience"], make=True)
    try:
        claim(connection, request["fence"], request["run"])
        return {}
    finally:
        connection.close()


# --- request and answer --------------------------------------------------------------------------------------------------

LOOKING: dict[str, Callable[[dict[str, Any], list[bytes]], dict[str, Any]]] = {
    "history": history,
    "events": events,
    "query": query,
    "server": server,
    "claim": raise_fence,
}


def said_of(error: BaseException, path: str) -> str:
    """The error's words, and that the disk is full where it is: SQLite then only says that it cannot open a file."""
    folder = os.path.dirname(path)  # noqa: PTH120 (without pathlib)
    try:
        disk = os.statvfs(folder)
    except OSError:
        return str(error)
    # A few blocks and inodes may be left that nobody but root gets.
    full = disk.f_bavail * disk.f_frsize < 65536 or (disk.f_files > 0 and disk.f_favail == 0)
    return f"{error}: No space left on the disk of {folder}" if full else str(error)


def received(request: dict[str, Any]) -> list[bytes]:
    """The bytes after the request, in the sizes that it names; Trouble before anything began when some are missing."""
    texts = [sys.stdin.buffer.read(size) for size in request.get("sizes", [])]
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text)
    if texts and digest.hexdigest() != request["sha256"]:
        raise Trouble("cut", "what was sent did not arrive whole")
    return texts


def main(operations: dict[str, Any] = LOOKING) -> None:
    """One request, one answer; the exit code is 0 whenever there is an answer."""
    request = json.loads(sys.stdin.buffer.readline().decode("utf-8"))
    request["path"] = real(request["path"])
    answer: dict[str, Any] = {"ok": True}
    try:
        answer.update(operations[request["operation"]](request, received(request)))
    except Trouble as trouble:
        message = said_of(trouble, request["path"]) if trouble.kind == "script" else str(trouble)
        answer = dict(trouble.facts, ok=False, kind=trouble.kind, message=message)
    except (sqlite3.Error, sqlite3.Warning, OSError) as error:
        message = said_of(error, request["path"])
        answer = {"ok": False, "kind": "unreadable", "message": message, "code": code_of(error)}
    sys.stdout.write(json.dumps(answer) + "\n")
