"""Runs on the host beside ``host.py`` and ``host_catalogue.py``: the stream of a backup, its proof, a restore.

Called by the functions of ``backup_files.py`` with the folder that holds ``request`` (JSON) and ``facts``; the clear backup
goes over standard output and input. It is the database file's own bytes, read while SQLite's lock keeps them still: the
same moment as the backup API gives, but a stream, so that a sealed backup is nowhere in the clear. A restore goes the other
way through the backup API: other connections see the old database or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.databases.sqlite.host import (
    CREATE,
    FORMAT,
    Trouble,
    begin,
    check_fence,
    connect,
    has_tables,
    is_busy,
    lock,
    note,
    real,
    said_of,
    upgrade,
)
from pipeline.databases.sqlite.host_catalogue import catalogue_of, counts_of

PIECE = 1 << 20


# --- the stream ----------------------------------------------------------------------------------------------------------


def dump(request: dict[str, Any], folder: Path) -> None:
    """The database's bytes on standard output, and in ``facts`` what they were made from."""
    path = request["path"]
    if not Path(path).exists():
        facts(folder, connection=sqlite3.connect(":memory:"), counts=True, clear=hashlib.sha256().hexdigest())
        return
    connection = connect(path, request["patience"])
    if request["sealed"]:
        # An open backup is looked at itself; of a sealed one only the bytes can be compared.
        check(connection)
    keep_still(connection, path, request["patience"])
    digest = hashlib.sha256()
    # Never closed while SQLite has the file: POSIX would drop its locks with it.
    source = os.open(path, os.O_RDONLY)
    left = page_bytes(connection)
    while left:
        piece = os.read(source, min(PIECE, left))
        if not piece:
            raise Trouble("unreadable", "the database file is shorter than it says itself")
        left -= len(piece)
        digest.update(piece)
        sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()
    facts(folder, connection=connection, counts=request["restore"], clear=digest.hexdigest())


def page_bytes(connection: sqlite3.Connection) -> int:
    """The size of the database itself: a killed writer may have left its file longer."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int(pages) * int(size)


def keep_still(connection: sqlite3.Connection, path: str, patience: float) -> None:
    """Begins a transaction in which nobody writes to the file.

    With a rollback journal a reader's lock is enough. With a write-ahead log the log is brought into the file, and the
    write lock keeps it empty.
    """
    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM main.sqlite_master").fetchone()
        return
    deadline = time.monotonic() + patience
    log = Path(path + "-wal")
    while True:
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        begin(connection)
        if not busy and (not log.exists() or log.stat().st_size == 0):
            return
        connection.execute("ROLLBACK")
        if time.monotonic() > deadline:
            raise Trouble("locked", "a reader keeps the write-ahead log from being brought into the database")
        time.sleep(0.1)


def facts(folder: Path, *, connection: sqlite3.Connection, counts: bool, clear: str) -> None:
    """Writes what a backup is compared with later: its clear bytes' SHA-256, the catalogue, and the rows of each table."""
    known: dict[str, Any] = {"clear": clear, "catalogue": catalogue_of(connection)}
    known.update(broken_keys=broken_keys(connection), counts=counts_of(connection) if counts else None)
    (folder / "facts").write_text(json.dumps(known, sort_keys=True) + "\n", encoding="utf-8")


def broken_keys(connection: sqlite3.Connection) -> int:
    """The rows whose foreign key leads nowhere: the customer's own state, which a backup must have as it is."""
    try:
        return sum(1 for _ in connection.execute("PRAGMA main.foreign_key_check"))
    except sqlite3.OperationalError:
        return -1  # a key to a table that has no fitting index: SQLite cannot say


def check(connection: sqlite3.Connection) -> int:
    """The number of tables of a database that passes ``integrity_check``."""
    verdict = connection.execute("PRAGMA main.integrity_check").fetchone()[0]
    if verdict != "ok":
        raise Trouble("unproven", "integrity_check: " + str(verdict).splitlines()[0])
    return int(connection.execute("SELECT count(*) FROM main.sqlite_master WHERE type = 'table'").fetchone()[0])


# --- the proof -----------------------------------------------------------------------------------------------------------


def prove(request: dict[str, Any], folder: Path) -> None:
    """Reads the backup back: its bytes and, where it is open or a trial restore is wanted, the database that they are."""
    known = noted(folder)
    if request["restore"]:
        connection = laid_out(request["path"], known)
        try:
            print(compared(connection, known))
        finally:
            connection.close()
        return
    digest = hashlib.sha256()
    for piece in iter(lambda: sys.stdin.buffer.read(PIECE), b""):
        digest.update(piece)
    same_bytes(digest.hexdigest(), known)
    if request["open"]:
        connection = still(request["open"])
        try:
            print(f"SQLite's integrity_check of the copy, {check(connection)} tables")
        finally:
            connection.close()
    else:
        print("its bytes, opened again, are those of the database, which passed SQLite's integrity_check")


def noted(folder: Path) -> dict[str, Any]:
    """What was written down when the backup was made; nothing for one of an earlier version."""
    path = folder / "facts"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() and path.stat().st_size else {}


def same_bytes(digest: str, known: dict[str, Any]) -> None:
    """Trouble unless these are the bytes that were read from the database."""
    if known.get("clear", digest) != digest:
        raise Trouble("unproven", "its bytes are not those that were read from the database")


def compared(connection: sqlite3.Connection, known: dict[str, Any]) -> str:
    """What proves the restored database, in words; Trouble when it is not what the backup was made from."""
    tables = check(connection)
    if not known:
        return f"a trial restore: integrity_check, {tables} tables; nothing was noted to compare it with"
    if broken_keys(connection) != known["broken_keys"]:
        raise Trouble("unproven", "a trial restore has another number of broken foreign keys")
    if catalogue_of(connection) != known["catalogue"]:
        raise Trouble("unproven", "a trial restore has another schema")
    if known["counts"] is None:
        return f"a trial restore: integrity_check, the same schema with {tables} tables"
    for table, count in counts_of(connection).items():
        if known["counts"].get(table) != count:
            raise Trouble("unproven", f"a trial restore has {count} rows in {table}, not {known['counts'].get(table)}")
    return f"a trial restore: integrity_check, the same schema and the same rows in each of {tables} tables"


def still(path: str) -> sqlite3.Connection:
    """A database file that nobody writes to, without a lock or a journal beside it."""
    return sqlite3.connect(
        "file:" + path.replace("%", "%25").replace("?", "%3f").replace("#", "%23") + "?immutable=1", uri=True
    )


def laid_out(path: str, known: dict[str, Any]) -> sqlite3.Connection:
    """The backup from standard input as a database beside the real one, in a file that has lost its name already.

    So nothing of it stays, whatever happens; what a killed process left before that is swept up.
    """
    beside = Path(path).parent
    for old in beside.glob(f".{Path(path).name}.tma-trial.*"):
        if not Path("/proc/" + old.name.rpartition(".")[2]).exists():
            old.unlink()
    trial = beside / f".{Path(path).name}.tma-trial.{os.getpid()}"
    digest = hashlib.sha256()
    descriptor = os.open(str(trial), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "r+b") as file:
            for piece in iter(lambda: sys.stdin.buffer.read(PIECE), b""):
                digest.update(piece)
                file.write(piece)
            same_bytes(digest.hexdigest(), known)
            if file.tell() >= 100:
                # Not a write-ahead log of its own: the real database keeps its own way when it is overwritten.
                file.seek(18)
                file.write(b"\x01\x01")
        connection = sqlite3.connect(str(trial), isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute("SELECT count(*) FROM main.sqlite_master").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        trial.unlink()


# --- the way back ----------------------------------------------------------------------------------------------------------


def restore(request: dict[str, Any], folder: Path) -> None:
    """Puts the backup in the place of the database in one step, with the fence and the event in it already."""
    path, patience = request["path"], request["patience"]
    connection = None
    lock(path, patience, make=True)
    live = connect(path, patience, make=True)
    try:
        begin(live)
        highest = check_fence(live, request["fence"])[0] if has_tables(live) else 0
        live.execute("ROLLBACK")
        connection = laid_out(path, noted(folder))
        check(connection)
        prepare(connection, request, max(highest, request["fence"]))
        put_in_place(connection, live, patience)
        print(json.dumps({"kind": "restored"}))
    finally:
        for opened in (connection, live):
            if opened is not None:
                opened.close()


def prepare(connection: sqlite3.Connection, request: dict[str, Any], fence: int) -> None:
    """Raises the fence in the backup's own tables, and adds the event."""
    connection.execute("BEGIN")
    if not has_tables(connection):
        for create in CREATE:
            connection.execute(create)
        connection.execute("INSERT INTO tma_migration_fence (id, highest, format) VALUES (1, 0, ?)", (FORMAT,))
    else:
        upgrade(connection)
    connection.execute("UPDATE tma_migration_fence SET highest = max(highest, ?), run = ?", (fence, request["run"]))
    note(connection, request, "restored", None, None, backup=request["label"])
    connection.execute("COMMIT")


def put_in_place(source: sqlite3.Connection, live: sqlite3.Connection, patience: float) -> None:
    """Copies all pages in one transaction of the real database, as soon as no other connection is reading."""
    deadline = time.monotonic() + patience

    def wait(status: int, *_: int) -> None:
        # 5 and 6: SQLITE_BUSY and SQLITE_LOCKED.
        if status in {5, 6} and time.monotonic() > deadline:
            raise Trouble("locked", "another connection is using the database")

    source.backup(live, progress=wait, sleep=0.1)


# --- called by backup_files.py -------------------------------------------------------------------------------------------


def main() -> None:
    """``dump``, ``prove`` or ``restore``; the exit code is 1 with the reason on standard error, 0 with JSON for a restore."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    request = json.loads((folder / "request").read_text(encoding="utf-8"))
    request["path"] = real(request["path"])
    if len(sys.argv) > 3:
        request["open"] = sys.argv[3]
    try:
        {"dump": dump, "prove": prove, "restore": restore}[what](request, folder)
    except (Trouble, sqlite3.Error, OSError) as error:
        if what != "restore":
            sys.exit(said_of(error, request["path"]))
        # To its end: the program that opens a sealed backup would otherwise say that it cannot write.
        for _ in iter(lambda: sys.stdin.buffer.read(PIECE), b""):
            pass
        kind = error.kind if isinstance(error, Trouble) else "locked" if is_busy(error) else "unreadable"
        found = error.facts if isinstance(error, Trouble) else {}
        print(json.dumps(dict(found, kind=kind, message=said_of(error, request["path"]))))
