"""The rules, one function each: from a script that was looked at to what it found there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from pipeline.additive import is_additive
from pipeline.model import Engine, Script
from pipeline.sql_words import Statement, Word, begins, defines_code, name_at, not_in_a_transaction, past


class Found(NamedTuple):
    """What a rule found: where, as an offset in the script's text, and what, as a sentence without a final stop."""

    offset: int
    said: str


@dataclass(frozen=True)
class Looked:
    """A script as the rules see it: ``text`` is what runs of it, with its lines where they are in the file.

    ``declared``: it says its phase itself, in its header or its name.
    """

    script: Script
    text: str
    statements: tuple[Statement, ...]
    engine: Engine
    still_read: Callable[[str], Sequence[str]]
    declared: bool

    def running(self) -> Iterator[Statement]:
        """The statements that run now: none that only creates a function or a trigger."""
        return (statement for statement in self.statements if not defines_code(statement))


Rule = Callable[[Looked], Iterator[Found]]

_STARTS = frozenset({"analyze", "verbose"})
"""Words of ``EXPLAIN`` after which a statement can begin that runs."""

_OBJECTS = ("table", "view", "function", "procedure", "schema", "database", "type", "domain", "sequence")
_NOT_COLUMNS = frozenset(
    {
        "constraint",
        "index",
        "key",
        "primary",
        "foreign",
        "check",
        "partition",
        "default",
        "not",
        "identity",
        "expression",
    }
    | {"system", "period", "unique"}
)


def without_where(looked: Looked) -> Iterator[Found]:
    """UPDATE or DELETE of every row."""
    for statement in looked.running():
        for position, word in enumerate(statement):
            if not word.is_word("update", "delete") or not _starts(statement, position):
                continue
            rest = _same_level(statement, position)
            if word.text == "update":
                whole = any(later.is_word("set") for later in rest[1:])
            else:
                whole = any(later.is_word("from") for later in rest[1:])
            if whole and not _chooses(statement, rest):
                yield Found(word.offset, f"{word.text.upper()} without WHERE changes every row")


def _chooses(statement: Statement, rest: list[Word]) -> bool:
    """Whether a WHERE at this level looks at anything: ``WHERE 1`` and ``WHERE true`` do not."""
    where = next((word for word in rest if word.is_word("where")), None)
    if where is None:
        return False
    depth = 0
    for word in statement[statement.index(where) + 1 :]:
        if word.kind == "sign":
            depth += {"(": 1, ")": -1}.get(word.text, 0)
            if depth < 0:
                break
        elif word.is_word("returning", "order", "limit"):
            break
        elif not word.is_word("true", "and", "or"):
            return True
    return False


def truncate(looked: Looked) -> Iterator[Found]:
    """TRUNCATE of a table or of a partition."""
    for statement in looked.running():
        for offset, what in _partitions(statement, "truncate"):
            yield Found(offset, f"TRUNCATE PARTITION empties {what}")
        for position, word in enumerate(statement[:-1]):
            if word.is_word("truncate") and _starts(statement, position) and statement[position + 1].text != "(":
                name, _ = name_at(statement, past(statement, position + 1, "table", "only"))
                yield Found(word.offset, f"TRUNCATE empties {name}")


def drop_table(looked: Looked) -> Iterator[Found]:
    """DROP TABLE, except of a table that the script itself creates; and all else by which a table's rows go with it."""
    made: set[str] = set()
    for statement in looked.running():
        yield from _tables_gone(looked, statement, made)
        made |= _created(statement, "table", surely=True)
        for position, word in enumerate(statement):
            if not word.is_word("drop") or not _starts(statement, position):
                continue
            at = past(statement, position + 1, "temporary")
            if at >= len(statement) or not statement[at].is_word("table"):
                continue
            for name in _listed(statement, past(statement, at + 1, "if", "exists")):
                if name.lower() not in made:
                    yield Found(word.offset, f"DROP TABLE loses {name} with its rows{_read(looked, name)}")


def _tables_gone(looked: Looked, statement: Statement, made: set[str]) -> Iterator[Found]:
    """A database, a schema or a partition that is dropped; a table that is created in the place of another."""
    at = statement[0].offset
    if begins(statement, "create", "or", "replace", "table"):
        name, _ = name_at(statement, 4)
        if name.lower() not in made:
            yield Found(at, f"CREATE OR REPLACE TABLE loses {name} with its rows{_read(looked, name)}")
    elif statement[0].is_word("drop") and len(statement) > 1 and statement[1].is_word("database", "schema"):
        # PostgreSQL drops a schema that is not empty only with CASCADE.
        empty = looked.engine == "postgresql" and statement[1].text == "schema" and not statement[-1].is_word("cascade")
        for name in () if empty else _listed(statement, past(statement, 2, "if", "exists")):
            yield Found(at, f"DROP {statement[1].text.upper()} loses {name} with all of its tables")
    for offset, what in _partitions(statement, "drop"):
        yield Found(offset, f"DROP PARTITION loses {what} with its rows")


def _partitions(statement: Statement, verb: str) -> Iterator[tuple[int, str]]:
    """The partitions of which an ALTER TABLE drops or empties the rows: an offset, and their names."""
    if begins(statement, "alter", "table"):
        for at, (word, after) in enumerate(pairwise(statement)):
            if word.is_word(verb) and after.is_word("partition"):
                yield word.offset, ", ".join(_listed(statement, past(statement, at + 2, "if", "exists")))


def read_column(looked: Looked) -> Iterator[Found]:
    """A column goes, or gets another name, that the installed code still reads."""
    for statement in looked.running():
        for offset, name, what in _columns_gone(statement):
            if looked.still_read(name):
                yield Found(offset, f"{what} {name}{_read(looked, name)}")


def lock_timeout(looked: Looked) -> Iterator[Found]:
    """A script for the engine's client that waits for strong locks as long as it takes; our own runner sets the time."""
    if not looked.script.client or looked.engine == "sqlite":
        return
    settings = ("lock_timeout", "lock_wait_timeout", "innodb_lock_wait_timeout")
    for statement in looked.running():
        if statement[0].is_word("set") and any(word.is_word(*settings) for word in statement):
            return
        if any(word.is_word("set_config") for word in statement):
            return
        if _locks(statement):
            said = f"{statement[0].text.upper()} waits for its lock without an end, and others wait behind it"
            yield Found(statement[0].offset, f"{said}; {_set_timeout(looked.engine)} before it")
            return


def contract_before_switch(looked: Looked) -> Iterator[Found]:
    """What takes something from the old code, in a script that runs while the old code still does."""
    if looked.script.phase != "expand":
        return
    made = {name for one in looked.statements for kind in _OBJECTS[1:] for name in _created(one, kind)}
    for statement in looked.running():
        made |= _created(statement, "table", surely=True)
        for _, name, what in _columns_gone(statement):
            yield Found(statement[0].offset, f"{what} {name} before the switch: the old code still runs")
        if begins(statement, "rename", "table") or (begins(statement, "alter") and _renames(statement)):
            yield Found(statement[0].offset, "RENAME before the switch: the old code still knows the old name")
        elif statement[0].is_word("drop"):
            at = past(statement, 1, "temporary", "materialized")
            if at < len(statement) and statement[at].is_word(*_OBJECTS):
                gone = [n for n in _listed(statement, past(statement, at + 1, "if", "exists")) if n.lower() not in made]
                if gone:
                    what = f"DROP {statement[at].text.upper()} {', '.join(gone)}"
                    yield Found(statement[0].offset, f"{what} before the switch: the old code still runs")


def not_repeatable(looked: Looked) -> Iterator[Found]:
    """CREATE in a repeatable script that would fail the second time."""
    if looked.script.kind != "repeatable":
        return
    dropped: set[str] = set()
    for statement in looked.statements:
        if statement[0].is_word("drop"):
            at = next((i for i, word in enumerate(statement[:5]) if word.is_word("exists")), None)
            if at is not None:
                dropped |= {name.lower() for name in _listed(statement, at + 1)}
        elif statement[0].is_word("create"):
            words = [word.text for word in statement if word.kind == "word"][:10]
            again = words[1:3] == ["or", "replace"] or any(
                words[i : i + 3] == ["if", "not", "exists"] for i in range(len(words))
            )
            temporary = bool({"temp", "temporary"} & set(words[1:4]))
            names = {word.text.lower() for word in statement[:8] if word.names}
            if not again and not temporary and not names & {name.rsplit(".", 1)[-1] for name in dropped}:
                said = (
                    "CREATE fails when this script runs again: OR REPLACE, IF NOT EXISTS or DROP … IF EXISTS before it"
                )
                yield Found(statement[0].offset, said)


def outside_transaction(looked: Looked) -> Iterator[Found]:
    """A statement that no transaction takes, in a script that does not say so."""
    if looked.script.transactional and not looked.script.client:
        found = not_in_a_transaction(looked.text, looked.engine)
        if found is not None:
            words = " ".join(word.text.upper() for word in found[:2])
            yield Found(
                found[0].offset, f"{words} does not run inside a transaction: -- tma: transaction=no in the first lines"
            )


def no_verify(looked: Looked) -> Iterator[Found]:
    """A script outside a transaction, with nothing that would say afterwards whether all of it is there."""
    if not looked.script.transactional and looked.script.verify is None:
        yield Found(0, "runs outside a transaction and has no verify: half of it could stay unseen")


def unknown(looked: Looked) -> Iterator[Found]:
    """A script that neither says its phase nor is proven to add only."""
    versioned = looked.script.kind == "versioned"
    if versioned and not looked.declared and not is_additive(looked.text, looked.engine):
        yield Found(0, "is not proven to add only, and says no phase: going back past it means a restore")


RULES: Mapping[str, Rule] = {
    "update-without-where": lambda looked: _only(without_where(looked), "UPDATE"),
    "delete-without-where": lambda looked: _only(without_where(looked), "DELETE"),
    "truncate": truncate,
    "drop-table": drop_table,
    "drop-of-read-column": read_column,
    "missing-lock-timeout": lock_timeout,
    "contract-before-switch": contract_before_switch,
    "not-repeatable": not_repeatable,
    "needs-no-transaction": outside_transaction,
    "no-verify": no_verify,
    "unknown": unknown,
}
"""Every rule by its name, which a header's ``accept=`` may say."""


def _only(found: Iterator[Found], word: str) -> Iterator[Found]:
    return (one for one in found if one.said.startswith(word))


def _starts(statement: Statement, position: int) -> bool:
    """Whether a statement can begin here: at the front, in parentheses, or after what introduces one."""
    if not position:
        return True
    before = statement[position - 1]
    return before.text in {"(", ")"} if before.kind == "sign" else before.is_word(*_STARTS)


def _same_level(statement: Statement, position: int) -> list[Word]:
    """The words from here on that are in the same parentheses, without those in deeper ones."""
    found: list[Word] = []
    depth = 0
    for word in statement[position:]:
        if word.kind == "sign" and word.text in "()":
            depth += 1 if word.text == "(" else -1
            if depth < 0:
                break
        elif not depth:
            found.append(word)
    return found


def _listed(statement: Statement, position: int) -> list[str]:
    """The names from here on, with commas between."""
    names: list[str] = []
    while True:
        name, position = name_at(statement, position)
        if name:
            names.append(name)
        if position >= len(statement) or statement[position].text != ",":
            return names
        position += 1


def _created(statement: Statement, kind: str, *, surely: bool = False) -> set[str]:
    """The name, in lower case, of the object of this kind that it creates; with ``surely`` not where one may be there."""
    if not statement[0].is_word("create"):
        return set()
    at = past(
        statement, 1, "or", "replace", "temp", "temporary", "global", "local", "unlogged", "materialized", "recursive"
    )
    if at >= len(statement) or not statement[at].is_word(kind):
        return set()
    after = past(statement, at + 1, "if", "not", "exists")
    name, _ = name_at(statement, after)
    perhaps = after > at + 1 or any(word.is_word("replace") for word in statement[1:at])
    return set() if surely and perhaps else {name.lower()} - {""}


def _columns_gone(statement: Statement) -> Iterator[tuple[int, str, str]]:
    """The columns that an ALTER TABLE drops or renames: offset, name, and what becomes of them."""
    if not begins(statement, "alter", "table"):
        return
    _, position = name_at(statement, past(statement, 2, "if", "exists", "only", "ignore"))
    depth, fresh = 0, True
    for at in range(position, len(statement)):
        word = statement[at]
        if word.kind == "sign":
            depth += {"(": 1, ")": -1}.get(word.text, 0)
            fresh = word.text in ",*" and not depth
            continue
        if fresh and word.is_word("drop", "rename", "change"):
            named = at + 1
            after = past(statement, named, "column")
            after = past(statement, after, "if", "exists")
            name, behind = name_at(statement, after)
            if name and (after > named or not statement[after].is_word(*_NOT_COLUMNS, "to", "as")):
                if word.text == "drop":
                    yield word.offset, name, "DROP COLUMN"
                elif word.text == "rename" and statement[behind : behind + 1] and statement[behind].is_word("to"):
                    yield word.offset, name, "RENAME COLUMN"
                elif word.text == "change" and name_at(statement, behind)[0].lower() != name.lower():
                    yield word.offset, name, "CHANGE of COLUMN"
        fresh = False


def _renames(statement: Statement) -> bool:
    """Whether an ALTER gives the object itself another name, or another schema."""
    for before, word in pairwise(statement[1:]):
        if before.is_word("rename") and word.is_word("to", "as", "value", "attribute"):
            return not statement[1].is_word("index")
        if before.is_word("set") and word.is_word("schema"):
            return True
    return False


def _read(looked: Looked, name: str) -> str:
    """Where the installed code still reads this, as the end of a sentence; "" where it does not."""
    places = list(looked.still_read(name.rsplit(".", 1)[-1]))
    if not places:
        return ""
    shown = ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
    return f", which the installed release still reads: {shown}"


def _locks(statement: Statement) -> bool:
    """Whether the statement takes a lock that stops readers or writers of a table that is in use."""
    first = statement[0]
    if first.is_word("create"):
        words = {word.text for word in statement[1:5] if word.kind == "word"}
        return bool(words & {"index", "trigger"}) and "concurrently" not in words
    if first.is_word("drop", "reindex"):
        return not any(word.is_word("concurrently") for word in statement[1:5])
    if first.is_word("vacuum"):
        return any(word.is_word("full") for word in statement[1:6])
    if first.is_word("refresh"):
        return not any(word.is_word("concurrently") for word in statement)
    return first.is_word("alter", "truncate", "lock", "cluster", "rename", "optimize")


def _set_timeout(engine: Engine) -> str:
    return "SET lock_timeout = '5s'" if engine == "postgresql" else "SET SESSION lock_wait_timeout = 5"
