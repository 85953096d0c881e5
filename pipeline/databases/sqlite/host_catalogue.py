"""Runs on the host beside ``host.py``: what a SQLite schema is made of, in the shape of ``catalogues.py``.

What the PRAGMAs tell is taken from them; the rest (CHECK, COLLATE, generated columns, AUTOINCREMENT) from the text of CREATE
TABLE, without regard to blanks, comments, quotes and case. Neither the order of columns nor how a table came to its shape
makes a difference.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import Any

from pipeline.databases.sqlite.host import OWN_TABLES, connect, exists
from pipeline.databases.sqlite.host import main as answer

TOKEN = re.compile(
    r"""--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|[^\W\d][\w$]*|\d[\w.]*|\S""",
    re.DOTALL,
)
PLAIN = re.compile(r"[^\W\d][\w$]*")


def tokens(text: str) -> list[str]:
    """The text's words and signs: names in small letters and without quotes that they do not need."""
    found = []
    for token in TOKEN.findall(text):
        if token.startswith(("--", "/*")):
            continue
        if token[0] in '"`[':
            inner = token[1:-1].replace(token[0] * 2, token[0])
            token = inner.lower() if PLAIN.fullmatch(inner) else '"' + inner.replace('"', '""') + '"'
        elif token[0] != "'":
            token = token.lower()
        found.append(token)
    return found


def parts_of(words: list[str]) -> tuple[list[list[str]], list[str]]:
    """What stands between the outermost brackets, cut at its commas, and what follows them."""
    parts: list[list[str]] = [[]]
    depth = 0
    for place, word in enumerate(words):
        depth += {"(": 1, ")": -1}.get(word, 0)
        if depth == 0 and word == ")":
            return parts, words[place + 1 :]
        if depth == 1 and word == ",":
            parts.append([])
        elif depth > 1 or (depth == 1 and word != "("):
            parts[-1].append(word)
    return parts, []


def bracketed(words: list[str], after: str) -> Iterator[str]:
    """What stands in the brackets after each word ``after``."""
    for place, word in enumerate(words):
        if word == after and words[place + 1 : place + 2] == ["("]:
            depth, end = 0, place + 1
            while end < len(words):
                depth += {"(": 1, ")": -1}.get(words[end], 0)
                end += 1
                if depth == 0:
                    break
            yield " ".join(words[place + 2 : end - 1])


def of_table(connection: sqlite3.Connection, table: str, sql: str) -> dict[str, Any]:
    """Columns, constraints and indexes of one table."""
    words = tokens(sql)
    parts, options = parts_of(words)
    own = {part[0]: part[1:] for part in parts if part}
    quoted = '"' + table.replace('"', '""') + '"'
    columns: dict[str, Any] = {}
    key: list[tuple[int, str]] = []
    for _, name, kind, not_null, default, in_key, hidden in connection.execute(f"PRAGMA main.table_xinfo({quoted})"):
        said = own.get(name.lower(), own.get('"' + name.replace('"', '""') + '"', []))
        column = {"type": kind.lower(), "nullable": not not_null, "default": default}
        if "collate" in said[:-1]:
            column["collation"] = said[said.index("collate") + 1]
        if hidden:
            column["generated"] = {2: "virtual", 3: "stored"}.get(hidden, "hidden")
            column["expression"] = next(bracketed(said, "as"), None)
        columns[name] = column
        if in_key:
            key.append((in_key, name))
    constraints: dict[str, str] = {}
    if key:
        rising = " AUTOINCREMENT" if "autoincrement" in words else ""
        constraints["primary key"] = "PRIMARY KEY ({})".format(", ".join(name for _, name in sorted(key))) + rising
    for check in sorted({check for part in parts for check in bracketed(part, "check")}):
        constraints["check " + check] = "CHECK (" + check + ")"
    constraints.update(foreign_keys(connection, quoted))
    indexes: dict[str, str] = {}
    for _, name, unique, origin, _ in connection.execute(f"PRAGMA main.index_list({quoted})").fetchall():
        columns_of = index_columns(connection, name)
        if origin == "u":
            constraints["unique " + columns_of] = "UNIQUE (" + columns_of + ")"
        elif origin == "c":
            (text,) = connection.execute("SELECT sql FROM main.sqlite_master WHERE name = ?", (name,)).fetchone()
            said = tokens(text)
            where = " WHERE " + " ".join(said[said.index("where") + 1 :]) if "where" in said else ""
            if "(" in columns_of:
                columns_of = " , ".join(" ".join(part) for part in parts_of(said)[0])
            indexes[name] = ("UNIQUE (" if unique else "(") + columns_of + ")" + where
    kind = "virtual table" if words[1:2] == ["virtual"] else "table"
    made: dict[str, Any] = {"kind": kind, "columns": columns, "constraints": constraints, "indexes": indexes}
    if kind == "table":
        made["options"] = ", ".join(sorted(" ".join(options).replace(" , ", ",").split(",")))
    else:
        made["definition"] = " ".join(words[words.index("using") :])
    return made


def foreign_keys(connection: sqlite3.Connection, quoted: str) -> dict[str, str]:
    """The foreign keys of a table, by their own text."""
    found: dict[int, list[Any]] = {}
    rows = connection.execute(f"PRAGMA main.foreign_key_list({quoted})").fetchall()
    for number, place, other, column, referred, update, delete, _ in rows:
        found.setdefault(number, [other, update, delete, []])[3].append((place, column, referred or ""))
    keys = {}
    for other, update, delete, pairs in found.values():
        ours = ", ".join(column for _, column, _ in sorted(pairs))
        theirs = ", ".join(referred for _, _, referred in sorted(pairs) if referred)
        text = f"FOREIGN KEY ({ours}) REFERENCES {other}" + (f" ({theirs})" if theirs else "")
        keys[f"foreign key {ours} to {other}"] = text + f" ON UPDATE {update} ON DELETE {delete}"
    return keys


def index_columns(connection: sqlite3.Connection, index: str) -> str:
    """The columns of an index in their order, with what is not the default; an expression as ``(expression)``."""
    quoted = '"' + index.replace('"', '""') + '"'
    found = []
    for _, _, name, falling, collation, in_key in connection.execute(f"PRAGMA main.index_xinfo({quoted})"):
        if in_key:
            order = (collation or "binary").upper()
            other = "" if order == "BINARY" else " COLLATE " + order
            found.append((name or "(expression)") + other + (" DESC" if falling else ""))
    return ", ".join(found)


def catalogue_of(connection: sqlite3.Connection) -> dict[str, Any]:
    """The whole schema, without our own tables and SQLite's."""
    made: dict[str, Any] = {"tables": {}, "views": {}}
    connection.text_factory = str
    rows = connection.execute(
        "SELECT type, name, tbl_name, sql FROM main.sqlite_master WHERE sql IS NOT NULL"
    ).fetchall()
    for kind, name, table, sql in rows:
        if name.lower().startswith("sqlite_") or table in OWN_TABLES:
            continue
        if kind == "table":
            made["tables"].setdefault(name, {"triggers": {}}).update(of_table(connection, name, sql))
        elif kind == "view":
            made["views"].setdefault(name, {"triggers": {}})["definition"] = definition(sql)
    for kind, name, table, sql in rows:
        if kind == "trigger" and table not in OWN_TABLES:
            owner = made["tables"].get(table) or made["views"].get(table)
            if owner is not None:
                owner["triggers"][name] = definition(sql)
    return made


def definition(sql: str) -> str:
    """The text of CREATE VIEW or CREATE TRIGGER, with one blank between its words."""
    return " ".join(tokens(sql))


def counts_of(connection: sqlite3.Connection) -> dict[str, int]:
    """The rows of every table, our own too."""
    counts = {}
    for (name,) in connection.execute(
        "SELECT name FROM main.sqlite_master WHERE type = 'table' ORDER BY name"
    ).fetchall():
        quoted = '"' + name.replace('"', '""') + '"'
        counts[name] = connection.execute(f"SELECT count(*) FROM main.{quoted}").fetchone()[0]  # noqa: S608 (quoted)
    return counts


def catalogue(request: dict[str, Any], _: list[bytes]) -> dict[str, Any]:
    """The schema now; that of an empty database where there is no file yet."""
    if not exists(request["path"]):
        return {"catalogue": {"tables": {}, "views": {}}}
    connection = connect(request["path"], request["patience"])
    try:
        connection.execute("BEGIN")
        return {"catalogue": catalogue_of(connection)}
    finally:
        connection.close()


def main() -> None:
    """One request, one answer."""
    answer({"catalogue": catalogue})
