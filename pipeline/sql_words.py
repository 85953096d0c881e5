"""The words of a script, statement by statement, for lint: tolerant, and never what is run or refused by the server. Pure.

Told apart from :mod:`pipeline.additive`, which proves and therefore refuses what it does not know, and from the engines'
own splitters. Literals are left out, and so is an ``INSERT`` that only brings rows, so that a large file of them costs
little; what stands in a comment, a string or the body of a function is never taken for a statement. The body of a
PostgreSQL ``DO`` runs at once: it is read like a script.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from pipeline.model import Engine


class Word(NamedTuple):
    """One token: ``kind`` is *word* (``text`` in lower case), *name* (quoted, without its quotes), *sign* or *body*.

    ``offset`` is where it begins in the script.
    """

    kind: str
    text: str
    offset: int

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these words, unquoted."""
        return self.kind == "word" and self.text in words

    @property
    def names(self) -> bool:
        """Whether it can be a name."""
        return self.kind in {"word", "name"}


Statement = list[Word]
"""The words of one statement, without what ends it; never empty."""

_MYSQL = frozenset({"mariadb", "mysql"})
_COMPOUND = frozenset({"function", "procedure", "trigger", "event", "package"})


def line_of(text: str, offset: int) -> int:
    """The line, from 1, of a place in the text."""
    return text.count("\n", 0, offset) + 1


def statements(text: str, engine: Engine) -> Iterator[Statement]:
    """The statements of a script in their order; after a ``DO`` of PostgreSQL, those of its body."""
    for statement in _split(text, 0, len(text), engine):
        yield statement
        if statement[0].is_word("do") and engine == "postgresql":
            for body in statement:
                if body.kind == "body":
                    inside = _split(text, body.offset, body.offset + len(body.text), engine)
                    yield from filter(None, map(_without_control, inside))


def begins(statement: Statement, *words: str) -> bool:
    """Whether the statement begins with these words."""
    return [word.text for word in statement[: len(words)] if word.kind == "word"] == list(words)


def defines_code(statement: Statement) -> bool:
    """Whether it creates a function, a trigger or the like: what is inside does not run now."""
    if not statement[0].is_word("create"):
        return False
    for word in statement[1:8]:
        if word.is_word("table", "index", "view", "type", "sequence", "schema", "as", "on"):
            return False
        if word.is_word(*_COMPOUND):
            return True
    return False


def name_at(statement: Statement, position: int) -> tuple[str, int]:
    """The name with its qualifiers that begins here, parts joined by dots, and the position after it; "" without one."""
    parts: list[str] = []
    while position < len(statement) and statement[position].names:
        parts.append(statement[position].text)
        position += 1
        if position >= len(statement) or statement[position].text != "." or statement[position].kind != "sign":
            break
        position += 1
    return ".".join(parts), position


def past(statement: Statement, position: int, *words: str) -> int:
    """The position after any of these words, as many as come next."""
    while position < len(statement) and statement[position].is_word(*words):
        position += 1
    return position


def not_in_a_transaction(text: str, engine: Engine) -> Statement | None:
    """The first statement that the engine does not run inside a transaction, None without one.

    ``ALTER TYPE … ADD VALUE`` is none: PostgreSQL 12 and later run it there, and a script for an older one says so itself.
    """
    lowered = text.lower()
    if not any(word in lowered for word in _PERHAPS_OUTSIDE):
        return None
    return next((statement for statement in statements(text, engine) if _outside(statement, engine)), None)


_PERHAPS_OUTSIDE = ("concurrently", "vacuum", "database", "tablespace", "subscription", "system", "discard")


def _outside(statement: Statement, engine: Engine) -> bool:
    words = [word.text if word.kind == "word" else "" for word in statement]
    if engine == "sqlite":
        return words[0] == "vacuum"
    if engine != "postgresql" or defines_code(statement):
        return False
    if words[0] == "reindex":
        return bool({"concurrently", "database", "system"} & set(words[1:5]))
    if words[0] in {"create", "drop"}:
        return "concurrently" in words[1:5] or words[1:2] in (["database"], ["tablespace"], ["subscription"])
    if words[:2] == ["alter", "table"]:
        return words[-1] == "concurrently"
    return words[0] == "vacuum" or words[:2] in (["alter", "system"], ["discard", "all"])


_UNTIL = {"if": "then", "elsif": "then", "elseif": "then", "when": "then"} | dict.fromkeys(
    ("for", "foreach", "while"), "loop"
)


def _without_control(statement: Statement) -> Statement:
    """The statement without the words of the block, the condition or the loop that it begins with."""
    while statement and statement[0].is_word("begin", "else", "loop", "exception", *_UNTIL):
        last = _UNTIL.get(statement[0].text, statement[0].text)
        at = next((at for at, word in enumerate(statement) if word.is_word(last)), len(statement))
        statement = statement[at + 1 :]
    return statement


_SPACE = r"[ \t\n\f\v\ufeff]++"

# Rows and nothing that could be read in two ways (a comment, a backslash, a dollar quote): most of what a large file holds.
_ROW = r"""(?:insert|replace)\b
    (?:[^;'"`$/\-\#\\\[]++ | '(?:[^'\\]++|'')*+' | "(?:[^"\\]++|"")*+" | `[^`\\]*+` | -(?!-) | /(?!\*))*+ ;"""
_ROWS = re.compile(_ROW, re.VERBOSE | re.IGNORECASE)
_MANY_ROWS = re.compile(rf"(?:{_ROW}[ \t\n]*+){{1,500}}+", re.VERBOSE | re.IGNORECASE)
_IN_ROWS = ("delete", "update", "truncate")


@cache
def _tokens(engine: Engine) -> re.Pattern[str]:
    """The pattern of one token of this engine."""
    if engine in _MYSQL:
        comments = r"--(?:[ \t][^\n]*+|(?=\n)|\Z)|\#[^\n]*+|/\*(?!!|M!)(?:(?!\*/).)*+(?:\*/|\Z)|/\*M?!\d*|\*/"
        string = r"(?:[nN]|[xX]|[bB])?(?:'(?:[^'\\]++|\\.|'')*+'?|\"(?:[^\"\\]++|\\.|\"\")*+\"?)"
        name, word = r"`(?:[^`]++|``)*+`?", r"[^\W\d]\w*+"  # no dollar: END$$ is END before its delimiter
    else:
        # A nested comment ends where the outer one does: PostgreSQL only, and the two-deep form is as far as lint looks.
        nested = r"/\*(?:(?!/\*|\*/).|/\*(?:(?!\*/).)*+\*/)*+(?:\*/|\Z)"
        plain = r"/\*(?:(?!\*/).)*+(?:\*/|\Z)"
        comments = rf"--[^\n]*+|{nested if engine == 'postgresql' else plain}"
        string = r"(?:[eE]'(?:[^'\\]++|\\.|'')*+'?|(?:[nNxXbB]|[uU]&)?'(?:[^']++|'')*+'?)"
        name, word = r"\"(?:[^\"]++|\"\")*+\"?", r"[^\W\d][\w$]*+"
        if engine == "sqlite":
            name += r"|`(?:[^`]++|``)*+`?|\[[^\]\n]*+\]"
            comments += r"|(?<![^\n])\.[a-z][^\n]*+"
        else:
            comments += r"|\\[^\n]*+"
    return re.compile(
        rf"""
          (?P<skip>(?:{_SPACE}|{comments})++)
        | (?P<dollar>\$(?:[^\W\d]\w*+)?\$)
        | (?P<string>{string}|[+-]?\d[\w.]*+)
        | (?P<name>{name})
        | (?P<word>{word})
        | (?P<sign>.)
        """,
        re.VERBOSE | re.DOTALL | re.IGNORECASE,
    )


_DELIMITER = re.compile(r"(?i)delimiter[ \t]+(\S+)[^\n]*+")
_COPIED = re.compile(r"(?m)^\\\.$|\Z")


def _split(text: str, position: int, end: int, engine: Engine) -> Iterator[Statement]:
    statement: Statement = []
    pattern, depth, delimiter, looked_at = _tokens(engine), 0, ";", position
    while position < end:
        if delimiter != ";" and text.startswith(delimiter, position):
            position += len(delimiter)
            if statement:
                yield statement
            statement, depth = [], 0
            continue
        if not statement and engine in _MYSQL and (declared := _DELIMITER.match(text, position, end)):
            delimiter, position = declared[1], declared.end()
            continue
        if not statement and delimiter == ";":
            many = _MANY_ROWS if position >= looked_at else _ROWS
            rows = many.match(text, position, end)
            if rows is not None and _only_rows(rows[0]):
                position = rows.end()
                continue
            if rows is not None and many is _MANY_ROWS:
                looked_at = rows.end()  # one by one up to here
                continue
        match = pattern.match(text, position, end)
        assert match is not None  # the last alternative takes anything
        start, position, kind = position, match.end(), match.lastgroup or ""
        if kind == "skip":
            continue
        if kind == "dollar":
            if engine != "postgresql":
                continue
            closing = text.find(match[0], position, end)
            closing = end if closing < 0 else closing
            statement.append(Word("body", text[position:closing], position))
            position = min(end, closing + len(match[0]))
        elif kind == "sign" and match[0] == ";" and delimiter == ";" and depth <= 0:
            if statement:
                yield statement
                if statement[0].is_word("copy") and any(word.is_word("stdin") for word in statement):
                    found = _COPIED.search(text, position)
                    position = found.end() if found else end
            statement, depth = [], 0
        elif kind == "word":
            statement.append(Word("word", match[0].lower(), start))
            depth += _deeper(statement)
        elif kind == "name":
            statement.append(Word("name", _unquoted(match[0]), start))
        elif kind == "sign" and match[0] in "().,;*=":
            statement.append(Word("sign", match[0], start))
    if statement:
        yield statement


def _deeper(statement: Statement) -> int:
    """How the last word changes the depth of the blocks in a statement that creates a function, a trigger or the like."""
    word, before = statement[-1], statement[-2] if len(statement) > 1 else None
    if not word.is_word("begin", "case", "end", "if", "loop", "while", "repeat") or not defines_code(statement):
        return 0
    if word.text == "end":
        return -1
    after_end = before is not None and before.is_word("end")
    if word.text in {"if", "loop", "while", "repeat"}:
        return int(after_end)  # END IF and its like close what was not counted
    return int(not after_end)


def _only_rows(text: str) -> bool:
    lowered = text.lower()
    return not any(word in lowered for word in _IN_ROWS)


def _unquoted(text: str) -> str:
    quote = text[0]
    inside = text[1:].removesuffix("]" if quote == "[" else quote)
    return inside if quote == "[" else inside.replace(quote * 2, quote)
