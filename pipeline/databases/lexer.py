"""Where the statements of a MariaDB, MySQL or SQLite script begin and end: these engines leave that to the client.

MariaDB's rules are those of its own client: the delimiter of the moment, ``DELIMITER`` at the beginning of a line, strings
with backslashes (unless the session says otherwise), backticks, comments that do not nest, ``/*! … */`` as text that the
server runs. SQLite's are those of ``sqlite3_complete``: a trigger ends with ``END;``. Both are tested against the real
programs. A statement is kept as its place in the text, never as a copy, so that a script of megabytes costs little more
than itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache

SPACE = " \t\n\v\f\r"

_WORDS = """CHARSET CLEAR CONNECT DELIMITER EDIT EGO EXIT GO HELP NOPAGER NOTEE NOWARNING PAGER PRINT PROMPT QUIT REHASH
RESETCONNECTION SANDBOX SOURCE STATUS SYSTEM TEE WARNINGS"""
CLIENT_WORDS = frozenset(_WORDS.split())
"""First words that MariaDB's client takes for itself; none of them begins a statement of the server."""


class Unclear(Exception):
    """The script cannot be split: ``why`` is a sentence without a stop, ``line`` counts from 1."""

    def __init__(self, why: str, line: int) -> None:
        super().__init__(why)
        self.why, self.line = why, line


@dataclass(frozen=True, slots=True)
class Part:
    """One statement: its ``number`` and ``line``, both from 1, and where its text stands.

    ``words`` are its first words in capitals, those in executable comments too; ``variables`` says that it reads or sets
    a variable of the user's (``@x``); ``executable`` that a part of it stands in an executable comment; ``several`` that
    there is a semicolon in it, so that it may be more than one statement to the server (``DELIMITER``).
    """

    number: int
    line: int
    source: str
    start: int
    end: int
    words: tuple[str, ...]
    variables: bool = False
    executable: bool = False
    several: bool = False

    @property
    def text(self) -> str:
        """The statement without its delimiter."""
        return self.source[self.start : self.end]

    @property
    def first_words(self) -> str:
        """Its beginning on one line, at most 60 characters: enough to find it, not its data."""
        line = " ".join(self.source[self.start : min(self.end, self.start + 400)].split())
        return line if len(line) <= 60 else line[:59] + "…"


_LONGEST_HEAD = 8


@lru_cache(maxsize=64)
def _tokens(delimiter: str, backslashes: bool, ansi_quotes: bool) -> Callable[[str, int], re.Match[str] | None]:
    """The matcher of one token for a delimiter and the session's ways of quoting."""
    stop = re.escape(delimiter)
    single = r"'(?:[^'\\]++|\\.)*+'" if backslashes else r"'[^']*+'"
    double = r'"(?:[^"\\]++|\\.)*+"' if backslashes and not ansi_quotes else r'"[^"]*+"'
    first = re.escape(delimiter[0])
    # What can mean nothing else: no quote, no comment, no variable, no backslash, no delimiter.
    dull = rf"(?:[^'\"`#\-/\\@{first}\s\w$]|{single}|{double}|`[^`]*+`|(?!{stop})(?:-(?!-)|/(?!\*)))"
    return re.compile(
        rf"""
          (?P<space>[ \t\n\v\f\r]++)
        | (?P<slash>\\.?)
        | (?P<end>{stop})
        | (?P<comment>\#[^\n]*+|--(?=[ \t\n\v\f\r]|\Z)[^\n]*+)
        | (?P<executable>/\*M?!\d*)
        | (?P<block>/\*)
        | (?P<word>(?:(?!{stop})[\w$])++)
        | (?P<variable>@@?)
        | (?P<dull>{dull}++)
        | (?P<open>['"`])
        | (?P<other>.)
        """,
        re.VERBOSE | re.DOTALL,
    ).match


@lru_cache(maxsize=64)
def _rest(delimiter: str, backslashes: bool, ansi_quotes: bool) -> Callable[[str, int], re.Match[str] | None]:
    """The matcher of everything up to the next place that could matter; after a statement's first words."""
    stop = re.escape(delimiter)
    single = r"'(?:[^'\\]++|\\.)*+'" if backslashes else r"'[^']*+'"
    double = r'"(?:[^"\\]++|\\.)*+"' if backslashes and not ansi_quotes else r'"[^"]*+"'
    first = re.escape(delimiter[0])
    return re.compile(
        rf"(?:[^'\"`#\-/\\@{first}]++|{single}|{double}|`[^`]*+`|(?!{stop})(?:-(?!-)|/(?!\*)|{first}(?![#\-/\\'\"`@])))++"
        if delimiter[0] not in "'\"`#-/\\@"
        else rf"(?:[^'\"`#\-/\\@{first}]++)++",
        re.DOTALL,
    ).match


# Nothing of it can be tried twice: a line of a literal may be megabytes of blanks.
_LINE_COMMAND = re.compile(
    r"[ \t\v\f\r]*+(?P<word>(?i:DELIMITER|USE))(?:[ \t]++(?P<rest>[^\n]*+)|[ \t\v\f\r]*+)(?:\n|\Z)"
)
_ACCOUNT = re.compile(r"[\w$'\"`]")


def mysql_statements(
    text: str, *, backslashes: bool = True, ansi_quotes: bool = False
) -> Generator[Part, None, tuple[str, bool]]:
    """The statements of a script as MariaDB's client would send them; ``DELIMITER`` lines are none of them.

    What the generator returns in the end: the delimiter of the moment, and whether the last statement came without one.
    ``backslashes``: no ``NO_BACKSLASH_ESCAPES`` in the session's sql_mode; ``ansi_quotes``: ``ANSI_QUOTES`` in it. Raises
    :class:`Unclear` at what the client would take for a command of its own, and at a quote or comment without an end.
    """
    delimiter = ";"
    position, number, line, counted = 0, 0, 1, 0
    size = len(text)
    token, rest = _tokens(delimiter, backslashes, ansi_quotes), _rest(delimiter, backslashes, ansi_quotes)
    start: int | None = None
    last = 0
    words: list[str] = []
    variables = executable = False

    def line_of(place: int) -> int:
        nonlocal line, counted
        line += text.count("\n", counted, place)
        counted = place
        return line

    def parts() -> Iterator[Part]:
        nonlocal number, start, words, variables, executable
        assert start is not None
        end, several = last, delimiter != ";"
        if several:
            # As the server does; a semicolon alone is no statement to it.
            end = start + len(text[start:end].rstrip(SPACE + ";"))
            several = text.find(";", start, end) >= 0
        if end > start:
            number += 1
            made = Part(number, line_of(start), text, start, end, tuple(words), variables, executable, several)
            if words and words[0] in CLIENT_WORDS:
                raise Unclear(f"{words[0]} is a command of the client's own, not a statement", made.line)
            yield made
        start, words, variables, executable = None, [], False, False

    fresh = True  # at the beginning of a line, and nothing of a statement before it
    while position < size:
        if start is None and fresh:
            fresh = False
            command = _LINE_COMMAND.match(text, position)
            word = command["word"].upper() if command else ""
            argument = (command["rest"] or "").rstrip(SPACE) if command else ""
            if command and word == "DELIMITER":
                wanted = _delimiter(argument)
                if wanted is None:
                    raise Unclear("DELIMITER needs a delimiter without a backslash", line_of(command.start("word")))
                delimiter, position, fresh = wanted, command.end(), True
                token = _tokens(delimiter, backslashes, ansi_quotes)
                rest = _rest(delimiter, backslashes, ansi_quotes)
                continue
            if command and argument and word == "USE" and delimiter not in command[0] and "\\g" not in command[0]:
                # The client runs it as soon as the line ends.
                start, last, words = command.start("word"), command.start("rest") + len(argument), ["USE"]
                yield from parts()
                position, fresh = command.end(), True
                continue
        if start is not None and len(words) >= _LONGEST_HEAD and (bulk := rest(text, position)):
            position = bulk.end()
            last = position
            continue
        match = token(text, position)
        assert match is not None
        kind, begin, position = match.lastgroup, position, match.end()
        if kind == "space":
            fresh = start is None and "\n" in match[0]
            if fresh:
                position = begin + match[0].rindex("\n") + 1
        elif kind == "comment":
            pass
        elif kind == "block":
            closing = text.find("*/", position)
            if closing < 0:
                raise Unclear("a comment that is opened here is never closed", line_of(begin))
            position = closing + 2
        elif kind == "end":
            if start is not None:
                yield from parts()
        elif kind == "slash" and match[0] != "\\N":
            raise Unclear(f"{match[0]} is a command of the client's own, not a statement", line_of(begin))
        elif kind == "open":
            raise Unclear("a quote that is opened here is never closed", line_of(begin))
        elif start is None and text.startswith("--", begin):
            # The client takes every line that begins so for a comment, with or without the space after it.
            position = _line_end(text, begin)
        else:
            if start is None:
                start = begin
            last = position
            if kind == "word" and len(words) < _LONGEST_HEAD:
                words.append(match[0].upper())
            elif kind == "variable":
                variables |= match[0] == "@" and not (begin and _ACCOUNT.match(text[begin - 1]))
            elif kind == "executable":
                executable = True
    unended = start is not None
    if unended:
        yield from parts()
    return delimiter, unended


def _line_end(text: str, position: int) -> int:
    found = text.find("\n", position)
    return len(text) if found < 0 else found


def _delimiter(argument: str) -> str | None:
    """The delimiter that a ``DELIMITER`` line sets: its first word, out of quotes if there are any."""
    argument = argument.strip(SPACE)
    if argument[:1] in {"'", '"', "`"}:
        argument = argument[1:].split(argument[0], 1)[0]
    else:
        argument = argument.split(None, 1)[0] if argument else ""
    return argument if argument and "\\" not in argument and len(argument) <= 15 else None


_SQLITE = re.compile(
    r"""
      (?P<space>[ \t\n\f\r]++|--[^\n]*+)
    | (?P<block>/\*)
    | (?P<string>'[^']*+'|"[^"]*+"|`[^`]*+`|\[[^\]]*+\])
    | (?P<end>;)
    | (?P<word>[\w$]++)
    | (?P<open>['"`\[])
    | (?P<other>[^\s\w$'"`\[;/\-]++|.)
    """,
    re.VERBOSE | re.DOTALL,
)


# What a token is to SQLite's sqlite3_complete(), and which state follows which: 0 at the beginning, 1 in a statement, 2 after
# EXPLAIN, 3 after CREATE, 4 in a trigger, 5 after a semicolon in it, 6 after the END behind that.
_SQLITE_WORDS = {"EXPLAIN": 2, "CREATE": 3, "TEMP": 4, "TEMPORARY": 4, "TRIGGER": 5, "END": 6}
_SQLITE_STATES = (
    # other, explain, create, temp, trigger, end
    (1, 2, 3, 1, 1, 1),
    (1, 1, 1, 1, 1, 1),
    (2, 1, 3, 1, 1, 1),
    (1, 1, 1, 3, 4, 1),
    (4, 4, 4, 4, 4, 4),
    (4, 4, 4, 4, 4, 6),
    (4, 4, 4, 4, 4, 4),
)


def sqlite_statements(text: str) -> Iterator[Part]:
    """The statements of a script as SQLite's own client splits them: a ``CREATE TRIGGER`` ends with ``END;``.

    Raises :class:`Unclear` at a dot-command of the client's and at a quote or comment without an end.
    """
    position = number = counted = state = last = 0
    line = 1
    start: int | None = None
    words: list[str] = []
    while match := _SQLITE.match(text, position):
        kind, begin, position = match.lastgroup, position, match.end()
        if kind == "space":
            continue
        if kind == "block":
            closing = text.find("*/", position)
            if closing < 0:
                raise Unclear("a comment that is opened here is never closed", text.count("\n", 0, begin) + 1)
            position = closing + 2
            continue
        if kind == "open":
            raise Unclear("a quote that is opened here is never closed", text.count("\n", 0, begin) + 1)
        if kind == "end":
            if state in {4, 5}:
                state, last = 5, position
            elif start is not None:
                number += 1
                line += text.count("\n", counted, start)
                counted = start
                yield Part(number, line, text, start, last, tuple(words))
                start, words, state = None, [], 0
            continue
        if start is None:
            if match[0][0] == "." and (begin == 0 or text[begin - 1] == "\n"):
                command = text[begin : _line_end(text, begin)].split(maxsplit=1)[0]
                raise Unclear(
                    f"{command} is a command of the client's own, not a statement", text.count("\n", 0, begin) + 1
                )
            start = begin
        last = position
        word = match[0].upper() if kind == "word" else ""
        if word and len(words) < _LONGEST_HEAD:
            words.append(word)
        state = _SQLITE_STATES[state][max(0, _SQLITE_WORDS.get(word, 1) - 1)]
    if start is not None:
        number += 1
        line += text.count("\n", counted, start)
        yield Part(number, line, text, start, last, tuple(words))
