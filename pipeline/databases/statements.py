"""Where the statements of a PostgreSQL script begin, for error messages and for refusing ``COMMIT`` beforehand.

The server splits and runs the script, never this scanner: at worst a message names a wrong line. The lexical rules are
those of PostgreSQL's manual, chapter 4.1: dollar quoting, nested comments, doubled quotes, ``E''`` with backslashes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
      (?P<comment>--[^\n]*+)
    | (?P<block>/\*)
    | (?P<string>[eE]'(?:[^'\\]++|\\.|'')*+'? | '(?:[^']++|'')*+'? | "(?:[^"]++|"")*+"?)
    | (?P<dollar>\$(?:[^\W\d]\w*+)?\$)
    | (?P<word>[^\W\d][\w$]*+)
    | (?P<end>;)
    | (?P<other>\S)
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_EDGE = re.compile(r"/\*|\*/")


@dataclass(frozen=True)
class Statement:
    """One statement: its number from 1, the line on which it begins (from 1), its first words on one line."""

    number: int
    line: int
    first_words: str
    keywords: tuple[str, ...]

    @property
    def ends_transaction(self) -> bool:
        """Whether it is a ``COMMIT`` or ``ROLLBACK`` in any spelling except ``END``.

        ``END`` also closes a ``BEGIN ATOMIC`` body, so it is left to the server's own check.
        """
        words = tuple(word for word in self.keywords if word not in {"WORK", "TRANSACTION"})
        if words[:1] == ("ROLLBACK",):
            return words[1:2] != ("TO",)
        return words[:1] in {("COMMIT",), ("ABORT",)} or self.keywords[:2] == ("PREPARE", "TRANSACTION")


def statements(text: str) -> list[Statement]:
    """The statements of a script in their order; empty ones (only comments, a lone semicolon) do not count."""
    found: list[Statement] = []
    start: int | None = None
    words: list[str] = []
    line, counted = 1, 0
    position = 0
    while match := _TOKEN.search(text, position):
        kind, position = match.lastgroup, match.end()
        if kind == "comment":
            continue
        if kind == "block":
            position = _after_block(text, position)
            continue
        if kind == "end":
            if start is not None:
                line += text.count("\n", counted, start)
                counted = start
                found.append(_statement(len(found) + 1, line, text[start : match.start()], words))
            start, words = None, []
            continue
        start = match.start() if start is None else start
        if kind == "dollar":
            closing = text.find(match[0], position)
            position = len(text) if closing < 0 else closing + len(match[0])
        elif kind == "word" and len(words) < 4:
            words.append(match[0].upper())
    if start is not None:
        line += text.count("\n", counted, start)
        found.append(_statement(len(found) + 1, line, text[start:], words))
    return found


def line_at(text: str, position: int) -> int:
    """The line, from 1, of a character position from 1 as the server gives it."""
    return text.count("\n", 0, max(0, position - 1)) + 1


def first_words(text: str) -> str:
    """The beginning of a statement on one line, at most 60 characters: enough to find it, not its data."""
    line = " ".join(text[:400].split())
    return line if len(line) <= 60 else line[:59] + "…"


def _statement(number: int, line: int, text: str, words: list[str]) -> Statement:
    return Statement(number, line, first_words(text), tuple(words))


def _after_block(text: str, position: int) -> int:
    """The position after a block comment that opened just before ``position``; PostgreSQL's comments nest."""
    depth = 1
    while depth:
        edge = _BLOCK_EDGE.search(text, position)
        if edge is None:
            return len(text)
        depth += 1 if edge[0] == "/*" else -1
        position = edge.end()
    return position
