"""Where the statements of a PostgreSQL script begin and end, and what can be known of them beforehand.

A script that is one transaction is split and run by the server: at worst a message names a wrong line. A script that runs
statement by statement is split here, by the rules of psql: a semicolon ends a statement unless it stands in parentheses or
in a body of ``BEGIN ATOMIC``. The lexical rules are those of PostgreSQL's manual, chapter 4.1: dollar quoting, nested
comments, doubled quotes, ``E''`` with backslashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKENS = r"""
      (?P<comment>--[^\n\r]*+)
    | (?P<block>/\*)
    | (?P<string>[eE]'(?:[^'\\]++|\\.|'')*+'? | '(?:[^']++|'')*+'? | "(?:[^"]++|"")*+"?)
    | (?P<dollar>\$(?:[^\W\d]\w*+)?\$)
    | (?P<end>;)
    | (?P<paren>[()])
    | (?P<variable>:(?:'\w+'|"\w+"|[^\W\d]\w*+))
    | (?P<meta>\\\S*+)
"""
_WORDS = re.compile(_TOKENS + r"| (?P<cast>::|:=) | (?P<word>[^\W\d][\w$]*+) | (?P<other>\S)", re.VERBOSE | re.DOTALL)
# Past the words that matter a run of everything harmless is one match, so that megabytes of INSERT are read in seconds.
_HARMLESS = r"| (?P<other>(?:::|:=|[^\w'\"$;()/\-:\\]++|(?![eE]')\w[\w$]*+|-(?!-)|/(?!\*))++ | \S)"
_FAST = re.compile(_TOKENS + _HARMLESS, re.VERBOSE | re.DOTALL)
_QUOTED = re.compile(r"'(?:[^']|'')*'?")
_BLOCK_EDGE = re.compile(r"/\*|\*/")
_KEPT_WORDS = 8
_OF_ROWS = {"INSERT", "UPDATE", "DELETE", "SELECT", "WITH", "COPY", "VALUES"}

_OUTSIDE = (
    re.compile(r"VACUUM\b"),
    re.compile(r"CREATE (UNIQUE )?INDEX CONCURRENTLY\b"),
    re.compile(r"DROP INDEX CONCURRENTLY\b"),
    re.compile(r"REINDEX (\w+ )*?CONCURRENTLY\b"),
    re.compile(r"REINDEX (\w+ )*?(DATABASE|SYSTEM|SCHEMA)\b"),
    re.compile(r"ALTER TABLE (\w+ )*?DETACH PARTITION (\w+ )*?CONCURRENTLY\b"),
    re.compile(r"ALTER SYSTEM\b"),
    re.compile(r"(CREATE|DROP) (DATABASE|TABLESPACE)\b"),
)
_OF_THE_SESSION = re.compile(
    r"SET (?!LOCAL\b|CONSTRAINTS\b|TRANSACTION\b)|RESET\b|PREPARE (?!TRANSACTION\b)|LISTEN\b|DECLARE\b|LOAD\b|DISCARD\b"
    r"|CREATE (LOCAL |GLOBAL )?(TEMP|TEMPORARY)\b|CREATE OR REPLACE (TEMP|TEMPORARY)\b"
)
# What a SELECT leaves in the session, and what lets its locks go, looked for in the text of a statement.
_LEAVES = re.compile(r"\bset_config\s*\(|\bINTO\s+(LOCAL\s+|GLOBAL\s+)?TEMP", re.IGNORECASE)
_LETS_GO = re.compile(r"\A\s*DISCARD\s+ALL\b|\bpg_advisory_unlock_all\b", re.IGNORECASE)
_ENCODING = re.compile(
    r"\A\s*SET\s+(?:SESSION\s+|LOCAL\s+)?(?:client_encoding\b|NAMES\b)(?P<to>.*)|\bset_config\s*\(\s*'client_encoding'(?P<by>.*)",
    re.IGNORECASE | re.DOTALL,
)
_UTF8 = re.compile(r"\s*(?:=|\bTO\b|,)?\s*['\"]?(?:utf_?-?8|unicode)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement: its number from 1, the line on which it begins (from 1), its first words on one line without values.

    ``keywords``: its first words that are not quoted, in capitals. It is ``text[start:end]``, without its semicolon.
    ``client`` is the first thing in it that only psql understands, and its line; ``unclosed`` says what is opened in it and
    never closed, with its line: to the server the rest of the script would be a part of it. ``leaves``: what it selects stays
    in the session, as a setting or a temporary table.
    """

    number: int
    line: int
    first_words: str
    keywords: tuple[str, ...]
    start: int
    end: int
    client: tuple[str, int] | None = None
    unclosed: tuple[str, int] | None = None
    leaves: bool = False

    @property
    def ends_transaction(self) -> bool:
        """Whether it is a ``COMMIT`` or ``ROLLBACK`` in any spelling except ``END``.

        ``END`` also closes a ``BEGIN ATOMIC`` body, so it is left to the server's own check.
        """
        words = tuple(word for word in self.keywords if word not in {"WORK", "TRANSACTION"})
        if words[:1] == ("ROLLBACK",):
            return words[1:2] != ("TO",)
        return words[:1] in {("COMMIT",), ("ABORT",)} or self.keywords[:2] == ("PREPARE", "TRANSACTION")

    @property
    def of_a_transaction(self) -> bool:
        """Whether it begins or ends one, in any spelling."""
        return self.ends_transaction or self.keywords[:1] in {("BEGIN",), ("START",), ("END",)}

    @property
    def commits_inside(self) -> bool:
        """Whether it may commit while it runs, so that a part of it stays when it fails."""
        return self.keywords[:1] in {("DO",), ("CALL",)}

    @property
    def outside_transactions(self) -> bool:
        """Whether the server refuses it inside a transaction."""
        words = " ".join(self.keywords)
        return any(pattern.match(words) for pattern in _OUTSIDE)

    @property
    def waits_for_all(self) -> bool:
        """Whether it waits for every transaction there is, while it keeps nobody from working: no time limit for locks then."""
        return "CONCURRENTLY" in self.keywords

    @property
    def of_the_session(self) -> bool:
        """Whether it leaves something in the session that later statements may need."""
        return self.leaves or bool(_OF_THE_SESSION.match(" ".join(self.keywords) + " "))

    def lets_locks_go(self, text: str) -> bool:
        """Whether it takes the session's locks away, that of the run with them."""
        return bool(_LETS_GO.search(text[self.start : self.end]))

    def encoding(self, text: str) -> bool:
        """Whether it says that what comes is in another encoding than UTF-8, which it is not."""
        if self.keywords[:1] not in {("SET",), ("SELECT",)}:
            return False
        found = _ENCODING.search(text[self.start : self.end])
        return found is not None and not _UTF8.match(
            found["to"] if found["to"] is not None else found["by"].lstrip("'")
        )


def statements(text: str) -> list[Statement]:
    """The statements of a script in their order; empty ones (only comments, a lone semicolon) do not count."""
    return list(scan(text))


def scan(text: str) -> Iterator[Statement]:
    """As :func:`statements`, one at a time: a large script has too many of them to be kept."""
    number, start, counted, line = 0, None, 0, 1
    words: list[str] = []
    depth = body = 0
    client: tuple[str, int] | None = None
    unclosed: tuple[str, int] | None = None
    position = 0
    last = 0
    search = _WORDS.search
    while match := search(text, position):
        kind, position = match.lastgroup, match.end()
        if kind in {"other", "string"}:
            if kind == "string" and position == len(text) and not _ended(match[0]):
                unclosed = ("quote", line_at(text, match.start() + 1))
            start = match.start() if start is None else start
            last = position
            continue
        if kind == "comment":
            continue
        if kind == "block":
            after = _after_block(text, position)
            if after is not None:
                position = after
                continue
            unclosed = ("comment", line_at(text, match.start() + 1))
            start = match.start() if start is None else start
            last = position = len(text)
            continue
        if kind == "end" and not depth and not body:
            if start is not None:
                line += text.count("\n", counted, start)
                counted = start
                number += 1
                first = first_words(_QUOTED.sub("'…'", text[start : min(last, start + 400)]))
                yield Statement(
                    number,
                    line,
                    first,
                    tuple(words[:_KEPT_WORDS]),
                    start,
                    last,
                    client,
                    None,
                    _leaves(text, words, start, last),
                )
            start, client, search = None, None, _WORDS.search
            words = []
            continue
        start = match.start() if start is None else start
        if kind == "dollar":
            closing = text.find(match[0], position)
            unclosed = ("dollar quote", line_at(text, match.start() + 1)) if closing < 0 else None
            position = len(text) if closing < 0 else closing + len(match[0])
        elif kind == "paren":
            depth = max(0, depth + (1 if match[0] == "(" else -1))
        elif kind == "word":
            word = match[0].upper()
            if len(words) < _KEPT_WORDS:
                words.append(word)
            if not _has_body(words):
                # Of a statement about rows one word says all.
                search = _FAST.search if len(words) >= _KEPT_WORDS or words[0] in _OF_ROWS else search
            elif not depth:
                # As psql counts them: CASE has its END only inside of a body.
                body += (word == "BEGIN") + (word == "CASE" and body > 0) - (word == "END" and body > 0)
        elif client is None and (kind == "meta" or (kind == "variable" and _is_variable(text, match.start()))):
            client = (first_words(match[0]), line_at(text, match.start() + 1))
        last = position
    if start is not None:
        line += text.count("\n", counted, start)
        first = first_words(_QUOTED.sub("'…'", text[start : min(last, start + 400)]))
        yield Statement(
            number + 1,
            line,
            first,
            tuple(words[:_KEPT_WORDS]),
            start,
            last,
            client,
            unclosed,
            _leaves(text, words, start, last),
        )


def line_at(text: str, position: int) -> int:
    """The line, from 1, of a character position from 1 as the server gives it."""
    return text.count("\n", 0, max(0, position - 1)) + 1


def first_words(text: str) -> str:
    """The beginning of a statement on one line, at most 60 characters: enough to find it, not its data."""
    line = " ".join(text[:400].split())
    return line if len(line) <= 60 else line[:59] + "…"


def _leaves(text: str, words: list[str], start: int, end: int) -> bool:
    return words[:1] in (["SELECT"], ["WITH"]) and _LEAVES.search(text, start, end) is not None


def _has_body(words: list[str]) -> bool:
    """Whether these words begin what may have a body of ``BEGIN ATOMIC``."""
    return words[:1] == ["CREATE"] and not {"FUNCTION", "PROCEDURE"}.isdisjoint(words[1:4])


def _is_variable(text: str, position: int) -> bool:
    """Whether the colon there begins a variable of psql's, and is not the middle of an array's slice."""
    return position == 0 or text[position - 1] in " \t\r\n(,=+-*/<>|"


def _ended(string: str) -> bool:
    """Whether a string or quoted name that goes to the end of the script ends there."""
    rest = string[1:] if string[0] in "eE" else string
    quote, inside = rest[0], rest[1:]
    if string[0] in "eE":
        inside = re.sub(r"(?s)\\.", "", inside)
    return inside.replace(quote * 2, "").endswith(quote)


def _after_block(text: str, position: int) -> int | None:
    """The position after a block comment that opened just before ``position``, None without its end; comments nest."""
    depth = 1
    while depth:
        edge = _BLOCK_EDGE.search(text, position)
        if edge is None:
            return None
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position
