"""What a MariaDB script consists of: units that are done as a whole or not at all, as far as the engine can do that. Pure.

*dml*: one statement that changes rows: it and its counter are one transaction. *block*: from ``START TRANSACTION`` to its
``COMMIT``, where nothing between commits by itself: the counter stands before the ``COMMIT``. *ddl*, *set* and *other*: one
statement, the counter after it. *locked*: from ``LOCK TABLES`` to ``UNLOCK TABLES``, where the counter's table cannot be
written: it jumps after the last statement. A block in which something commits by itself is none: its ``START
TRANSACTION`` and ``COMMIT`` are left out, and each statement in it counts for itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.databases.lexer import Part, Unclear
from pipeline.databases.script_errors import ScriptErrors
from pipeline.model import Script

Kind = Literal["dml", "ddl", "set", "other", "block", "locked"]

_DML = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE"})
_DDL = frozenset({"ALTER", "CREATE", "DROP", "RENAME", "TRUNCATE", "GRANT", "REVOKE"})
_COMMITS = (
    _DDL
    | frozenset(
        [
            "ANALYZE",
            "BACKUP",
            "CACHE",
            "CHANGE",
            "CHECK",
            "FLUSH",
            "INSTALL",
            "LOAD",
            "LOCK",
            "OPTIMIZE",
            "REPAIR",
            "RESET",
        ]
    )
    | frozenset(["STOP", "UNINSTALL", "UNLOCK"])
)
# These may run statements of any kind, and commit between them.
_RUNS_OTHERS = frozenset({"CALL", "EXECUTE", "BEGIN", "DECLARE", "IF", "CASE", "WHILE", "FOR", "LOOP", "REPEAT"})
_ROUTINES = frozenset({"PROCEDURE", "FUNCTION", "TRIGGER", "EVENT", "PACKAGE"})

_STRINGS = re.compile(
    r"""'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+"|`[^`]*+`|(?P<comment>/\*(?!!|M!).*?\*/|#[^\n]*|--\s[^\n]*)""",
    re.DOTALL,
)
_OWN = re.compile(r"tma_migration_\w*", re.IGNORECASE)
# Where a statement may begin inside of one that the delimiter of the moment holds together.
_BEGINNINGS = re.compile(r";|\b(?:BEGIN|ATOMIC|THEN|ELSE|DO|LOOP|REPEAT)\b|(?<=\w):|/\*M?!\d*|\*/", re.IGNORECASE)
_PLAIN_SET = re.compile(r"(?:/\*M?!\d*\s*)?SET\s[^;()]*?(?:\*/)?\s*", re.IGNORECASE)
_NO_SETTING = re.compile(r"\bGLOBAL\b|\bPERSIST(?:_ONLY)?\b|\bSET\s+(?:STATEMENT|TRANSACTION)\b", re.IGNORECASE)
_SETS = re.compile(r"\bSET\b", re.IGNORECASE)
_OF_BEFORE = re.compile(r"\b(ROW_COUNT|FOUND_ROWS)\s*\(", re.IGNORECASE)
_LAST_ID = re.compile(r"\bLAST_INSERT_ID\s*\(\s*\)", re.IGNORECASE)
_LOCKS = re.compile(r"\b(RELEASE_ALL_LOCKS|RELEASE_LOCK|GET_LOCK)\s*\(", re.IGNORECASE)
_AUTOCOMMIT = re.compile(r"\bautocommit\b`?\s*:?=\s*(?!1\b|on\b|true\b|@)", re.IGNORECASE)
_QUOTING = re.compile(
    r"\bsql_mode\b.*\b(ANSI|ANSI_QUOTES|NO_BACKSLASH_ESCAPES|ORACLE|MSSQL|DB2|POSTGRESQL|MAXDB)\b", re.I | re.S
)


class Unfit(Exception):
    """A script that cannot run here: why, as a sentence without a stop, and at which statement.

    ``what`` tells which error it is: *commit*, *history* or *other*.
    """

    def __init__(self, part: Part, why: str, what: Literal["commit", "history", "other"] = "other") -> None:
        super().__init__(why)
        self.part, self.why, self.what = part, why, what


@dataclass(frozen=True)
class Reading:
    """What a first look through a script found.

    ``session``: why it cannot be resumed in the middle, or None. ``broken``: the first statement's number of each block
    that is none. ``dirty``: it may leave something in the session.
    """

    statements: int
    session: str | None
    broken: frozenset[int]
    dirty: bool


@dataclass(frozen=True)
class Unit:
    """Statements that go together. ``counted``: the counter may stand in their own transaction, before the last one."""

    kind: Kind
    parts: tuple[Part, ...]
    counted: bool = False

    @property
    def first(self) -> int:
        """The number of its first statement."""
        return self.parts[0].number

    @property
    def last(self) -> int:
        """The number of its last statement."""
        return self.parts[-1].number

    @property
    def exact(self) -> bool:
        """Whether its statements and its counter commit together."""
        return self.kind == "dml" or (self.kind == "block" and self.counted)


def kind_of(part: Part) -> Kind:
    """What one statement is by itself."""
    word = part.words[0] if part.words else ""
    if part.executable or part.several:
        return "other"
    if word in _DML:
        return "dml"
    if word in _DDL:
        return "ddl"
    return "set" if word == "SET" and part.words[1:2] not in {("PASSWORD",), ("STATEMENT",)} else "other"


def commits_by_itself(part: Part) -> bool:
    """Whether the server commits the transaction before or after this statement, or may do so."""
    word, *more = part.words or ("",)
    if part.several or word in _RUNS_OTHERS or word == "XA" or _begins(part):
        return True
    if part.executable and part.source.startswith("/*", part.start):
        return True  # its first word may be in a comment that this server skips
    if word == "SET":
        return more[:1] in (["PASSWORD"], ["STATEMENT"])
    if word in {"CREATE", "DROP"} and _temporary(part) and not part.executable:
        return False
    return word in _COMMITS or (word == "START" and not _begins(part))


def _temporary(part: Part) -> bool:
    words = part.words[1:]
    return words[:1] == ("TEMPORARY",) or words[:3] == ("OR", "REPLACE", "TEMPORARY")


def brackets(part: Part) -> bool:
    """Whether it only begins or ends a transaction, and so gives exactly one answer."""
    return _begins(part) or _ends(part) or part.words[:1] in {("START",), ("COMMIT",), ("ROLLBACK",)}


def _begins(part: Part) -> bool:
    return part.words[:2] == ("START", "TRANSACTION") or part.words in {("BEGIN",), ("BEGIN", "WORK")}


def _ends(part: Part) -> bool:
    word, *more = part.words or ("",)
    return word == "COMMIT" or (word == "ROLLBACK" and "TO" not in more[:2])


def _locks(part: Part) -> bool:
    words = part.words
    flushed = words[:1] == ("FLUSH",) and (("READ" in words and "LOCK" in words) or "EXPORT" in words)
    return flushed or (words[:1] == ("LOCK",) and words[1:2] in {("TABLES",), ("TABLE",)})


def read(parts: Iterable[Part], database: str) -> Reading:
    """A first look through the whole script. Unfit where it cannot run on this engine, before anything is sent."""
    session: str | None = None
    dirty = False
    broken: set[int] = set()
    block: Part | None = None
    locked = False
    count = 0
    for part in parts:
        count = part.number
        _check(part, database)
        body = part.words[:1] == ("CREATE",) and not _ROUTINES.isdisjoint(part.words)
        reason = None if body else _session(part)
        session = session or reason
        kind = kind_of(part)
        if locked:
            locked = part.words[:1] != ("UNLOCK",)
        elif _locks(part):
            locked = True
            if block is not None:
                broken.add(block.number)
        elif block is None and _begins(part):
            block = part
        elif part.words[:1] in {("END",), ("ABORT",)}:
            raise Unfit(part, "no statement of this engine", "commit")
        elif block is None and _ends(part):
            raise Unfit(part, "there is no START TRANSACTION before it in the script", "commit")
        elif block is not None and _ends(part):
            if block.number in broken and part.words[0] == "ROLLBACK":
                raise Unfit(part, "what stands before it in its transaction was committed by a statement that commits")
            block = None
        elif block is not None and commits_by_itself(part):
            broken.add(block.number)
        # A transaction leaves nothing in the session; what is not known well may.
        dirty |= bool(reason) or (kind in {"set", "other"} and not (_begins(part) or _ends(part)))
    if block is not None:
        raise Unfit(block, "its transaction is never committed in the script", "commit")
    return Reading(count, session, frozenset(broken), dirty)


def looked_through(errors: ScriptErrors, script: Script, parts: Iterable[Part], database: str) -> Reading:
    """As :func:`read`; Failed, with the place in the script, where it cannot run or its statements cannot be told apart."""
    try:
        return read(parts, database)
    except Unclear as unclear:
        raise errors.failed(script, unclear.why, line=unclear.line) from None
    except Unfit as unfit:
        part = unfit.part
        if unfit.what == "commit":
            raise errors.own_commit(script, f"{part.first_words}: {unfit.why}", line=part.line) from None
        if unfit.what == "history":
            raise errors.own_history(script, unfit.why, line=part.line) from None
        raise errors.failed(script, unfit.why, number=part.number, line=part.line, words=part.first_words) from None


def _check(part: Part, database: str) -> None:
    word, *more = part.words or ("",)
    source, start, end = part.source, part.start, part.end
    # One SELECT reads and no more.
    reads = word == "SELECT" and not part.several and not part.executable
    if not reads and _OWN.search(source, start, end) and (found := _OWN.search(_STRINGS.sub(_uncommented, part.text))):
        # In a text it may be run, in a body it will be.
        raise Unfit(part, found[0].lower(), "history")
    if _OF_BEFORE.search(source, start, end) or _LOCKS.search(source, start, end):
        text = _STRINGS.sub(" ", part.text)
        body = word == "CREATE" and not _ROUTINES.isdisjoint(more)
        if not body and (found := _OF_BEFORE.search(text)):
            raise Unfit(part, f"{found[1].upper()}() tells of the statement before it, and that is the runner's own")
        if found := _LOCKS.search(text):
            raise Unfit(part, f"{found[1].upper()}() would take away or be the runner's own lock")
    _check_statement(part, word, part.text, database)
    if (part.several or part.executable) and not (word == "CREATE" and not _ROUTINES.isdisjoint(more)):
        for piece in _BEGINNINGS.split(_STRINGS.sub(_kept_strings, part.text)):
            first = piece.split(None, 1)[:1]
            _check_statement(part, first[0].upper() if first else "", piece.strip(), database)


def _check_statement(part: Part, word: str, text: str, database: str) -> None:
    """``text``: the statement, or one of several that are sent together as ``part``."""
    if word == "XA":
        raise Unfit(part, "XA transactions commit outside the history")
    if word == "USE":
        wanted = text[3:].strip().strip("`").rstrip(";").strip()
        if wanted != database:
            raise Unfit(part, f"the history of {wanted} is another one: migrate it as an environment of its own")
    if word == "SET" and _AUTOCOMMIT.search(text):
        raise Unfit(part, "write START TRANSACTION and COMMIT around what belongs together", "commit")
    if word == "SET" and _QUOTING.search(text):
        raise Unfit(part, "it changes how quotes are read, so that the statements cannot be told apart")


def _uncommented(match: re.Match[str]) -> str:
    return " " if match["comment"] is not None else match[0]


def _kept_strings(match: re.Match[str]) -> str:
    """Without what could be taken for the beginning of a statement."""
    return " " if match["comment"] is not None else re.sub(r"[;:]|/\*|\*/", " ", match[0])


def _session(part: Part) -> str | None:
    word, *more = part.words or ("",)
    if part.variables:
        return "it uses variables of the session"
    if _locks(part):
        return "it locks tables"
    if word == "CREATE" and "TEMPORARY" in more[:3]:
        return "it makes temporary tables"
    if (word == "SET" or part.several or part.executable) and _sets(part) and not replayed(part):
        return "it sets what cannot be set again"
    if word in {"PREPARE", "EXECUTE", "HANDLER"}:
        return f"it uses {word}"
    if _LAST_ID.search(part.source, part.start, part.end):
        return "it uses LAST_INSERT_ID()"
    return None


def _sets(part: Part) -> bool:
    """Whether it may change a setting of the session for the statements after it."""
    word, *more = part.words or ("",)
    if word == "SET" and not part.executable:
        return more[:1] not in (["STATEMENT"], ["PASSWORD"]) or part.several
    if (
        word in {"UPDATE", "INSERT", "ALTER", "CREATE"}
        and not part.several
        and not part.source.startswith("/*", part.start)
    ):
        return False
    return bool(_SETS.search(_STRINGS.sub(" ", part.text)))


def replayed(part: Part) -> bool:
    """Whether a script that goes on behind this statement runs it again: ``USE``, or ``SET`` of plain values in the session."""
    if part.words[:1] == ("USE",):
        return True
    if part.words[:1] != ("SET",) or part.words[1:2] in {("STATEMENT",), ("PASSWORD",)}:
        return False
    if part.variables or part.several or kind_of(part) not in {"set", "other"}:
        return False
    return _PLAIN_SET.fullmatch(part.text) is not None and not _NO_SETTING.search(part.text)


def units(parts: Iterable[Part], broken: frozenset[int]) -> Iterator[Unit]:
    """The units of a script in their order; ``broken`` as :func:`read` found it. Memory: that of one unit."""
    waiting: list[Part] = []
    until: Literal["commit", "unlock", ""] = ""
    in_broken = False
    for part in parts:
        if until:
            waiting.append(part)
            if until == "unlock" and part.words[:1] == ("UNLOCK",):
                yield Unit("locked", tuple(waiting))
                waiting, until = [], ""
            elif until == "commit" and _ends(part):
                # In a read-only transaction the counter cannot be written, and one that is rolled back takes it along.
                counted = part.words[0] == "COMMIT" and "ONLY" not in waiting[0].words
                yield Unit("block", tuple(waiting), counted)
                waiting, until = [], ""
        elif _locks(part):
            waiting, until = [part], "unlock"
        elif _begins(part) and part.number not in broken:
            waiting, until = [part], "commit"
        elif _begins(part) or (in_broken and _ends(part)):
            in_broken = not in_broken
            yield Unit("set", (part,), counted=True)  # left out; see omitted()
        else:
            yield Unit(kind_of(part), (part,))
    if waiting:
        yield Unit("locked", tuple(waiting))


def omitted(unit: Unit) -> bool:
    """Whether the unit is the beginning or the end of a block that is none: it is counted, and not sent."""
    return unit.kind == "set" and unit.counted


def clean_failure(unit: Unit, number: int) -> bool:
    """Whether a statement of this unit that failed with this error number left nothing of itself behind.

    Rows are rolled back (the caller looks whether that worked); most DDL is atomic; a script's syntax is checked first.
    """
    part = unit.parts[0]
    word, *more = part.words or ("",)
    if unit.kind in {"dml", "block"}:
        return True
    if unit.kind == "locked" or part.several or part.executable or word in _RUNS_OTHERS or more[:1] == ["BEGIN"]:
        return False  # what it ran before the error is not known
    if word == "SET" and more[:1] == ["STATEMENT"]:
        return False
    if number in {1064, 1149}:
        return True
    if unit.kind == "ddl":
        if more[:2] == ["OR", "REPLACE"] and not {"TABLE", "SEQUENCE"}.isdisjoint(more[2:4]):
            return False  # the old one is dropped first
        if not {"DATABASE", "SCHEMA"}.isdisjoint(more[:3]):
            return False
        # Several names are dropped or renamed one after the other.
        return word in {"CREATE", "ALTER", "TRUNCATE"} or "," not in part.text
    return unit.kind == "set" and "," not in part.text
