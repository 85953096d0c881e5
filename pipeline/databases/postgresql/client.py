"""The other way to a PostgreSQL server: ``psql`` on the host, one process for a whole run, where nothing is forwarded.

It is a :class:`pipeline.databases.postgresql.session.Session`, so a script, its history and its event are the same as through
a tunnel. What is sent is fed to psql's standard input piece by piece, a piece a statement, each between lines of ours::

    \\if :tma_ok                     nothing runs after a statement that failed, as the server has it with a message
    \\restrict KEY                   from here psql takes no backslash command
    …one statement…;
    \\unrestrict KEY
    \\echo MARK number :ERROR        how it ended

(``ON_ERROR_STOP`` would end psql with the first statement that fails, and with it the lock; the first line does its work.)
MARK, KEY and the separators of the output are made of chance for each process, so no script and no row can look like them.
Where psql does not know ``\\restrict``, a text that holds a backslash anywhere is refused: without one there is no
backslash command, whatever the quoting. SQL never becomes a part of a shell script, nor an argument.

The password goes over standard input into a file (0600) that is removed as soon as psql has connected.
"""

from __future__ import annotations

import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.databases.postgresql.programs import REACH, Reach
from pipeline.databases.postgresql.session import Answer, Lost, StatementFailed, Trouble
from pipeline.databases.postgresql.statements import Statement, first_words, line_at, scan
from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import PipelineError
from pipeline.model import DatabaseSettings
from pipeline.transports import LineCut, Result, Transport

_OLDEST = 11
"""Major version of psql: ``:ERROR`` and ``\\gdesc``."""

_FOR_EVER = 1e9
_OPENED_WITHIN = 60.0
_PIECE = 256 * 1024
_MISSING = 86

_SHELL = (
    REACH
    + r"""
umask 077
export LC_ALL=C
private= client=
trap 'rm -rf ${private:+"$private"}' EXIT
trap '[ -z "$client" ] || kill "$client" 2>/dev/null; exit 143' HUP INT TERM
private=$(mktemp -d /dev/shm/tma.XXXXXX 2>/dev/null || mktemp -d "${TMPDIR:-/tmp}/tma.XXXXXX") || exit 1
for file in password ca; do
  IFS= read -r count
  while [ "$count" -gt 0 ]; do
    IFS= read -r line && printf '%s\n' "$line" >> "$private/$file"
    count=$((count - 1))
  done
done
need psql 2>&1 || exit 86
[ "$(major psql)" -ge "$6" ] || { echo "psql is of version $(major psql), and $6 is the oldest that will do"; exit 86; }
reach "$1" "$2" "$3" "$4" "$5"
# Without this a process in the background gets no standard input.
exec 3<&0
psql -X -q -A -P footer=off -P pager=off -v VERBOSITY=verbose -v connected="$private/connected" -f - <&3 2>&1 3<&- &
client=$!
exec 3<&- </dev/null
while kill -0 "$client" 2>/dev/null && [ ! -e "$private/connected" ]; do sleep 0.05 2>/dev/null || sleep 1; done
rm -rf "$private"
wait "$client"
"""
)

_ERROR = re.compile(r"^psql:<stdin>:\d+: (?:ERROR|FATAL|PANIC):  ([0-9A-Z]{5}): (.*)$", re.MULTILINE)
_OWN_ERROR = re.compile(r"^psql:<stdin>:\d+: error: (.*)$", re.MULTILINE)
_LINE = re.compile(r"^LINE (\d+): ", re.MULTILINE)
_FIELD = re.compile(r"^(HINT|CONSTRAINT NAME):  (.*)$", re.MULTILINE)
_TOKEN = re.compile(
    r"""--[^\n\r]*+ | (?P<block>/\*) | (?P<string>[eE]'(?:[^'\\]++|\\.|'')*+(?P<e>'?) | '(?:[^']++|'')*+(?P<s>'?)
    | "(?:[^"]++|"")*+(?P<d>"?)) | (?P<dollar>\$(?:[^\W\d]\w*+)?\$) | (?P<paren>[()]) | \w[\w$]*+ | .""",
    re.VERBOSE | re.DOTALL,
)
_LEXER = re.compile(r"standard_conforming_strings|client_encoding|set\s+names\b", re.IGNORECASE)
_ENDLESS = "a quote, a bracket or a comment in it has no end"
_COPY_IN = re.compile(r"\bFROM\b.*\bSTDIN\b", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class _Piece:
    """One statement as psql is given it; ``start`` is its place in the message, ``data`` what follows a COPY."""

    text: str
    start: int
    keywords: tuple[str, ...] = ()
    data: str = ""
    ending: str = "\n;"
    trouble: Trouble | None = None


def open_client(
    transport: Transport, settings: DatabaseSettings, password: str | None, errors: ScriptErrors
) -> ClientSession:
    """A session with ``psql`` on the host; Unreachable when it is not there, is too old, or the server does not let it in."""
    return ClientSession(transport, settings, password, errors)


class ClientSession:
    """See :class:`pipeline.databases.postgresql.session.Session`.

    A statement's place is known to the line, not the character. ``COPY … FROM stdin`` may have its data in the message, up
    to a line with ``\\.``, where psql knows ``\\restrict``.
    """

    process = 0
    """Not known: psql does not say which one it was given."""

    def __init__(
        self, transport: Transport, settings: DatabaseSettings, password: str | None, errors: ScriptErrors
    ) -> None:
        reach = Reach(settings, password)
        self._mark, self._key = secrets.token_hex(16), secrets.token_hex(16)
        self._title, self._column, self._row, self._null = (secrets.token_hex(8) for _ in range(4))
        self._given: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._heard: list[str] = []
        self._waiting = False
        self._ended = False
        self._result: Result | BaseException | None = None
        self._restricts = True
        self.idle = True
        self._opening = b"".join(_counted(reach.files().get(name, b"")) for name in ("password", "ca"))
        arguments = [*reach.arguments(), str(_OLDEST)]
        self._thread = threading.Thread(
            target=self._run, args=(transport, arguments), name="psql on the host", daemon=True
        )
        self._thread.start()
        try:
            self._restricts, self.version = self._greet()
        except Lost:
            self.close()
            raise self._not_let_in(errors, settings) from None

    @property
    def closed(self) -> bool:
        return self._ended

    def exchange(self, message: str, *, rows: bool = True) -> list[Answer]:
        pieces = list(_pieces(message, self._restricts))
        refused = next((number for number, piece in enumerate(pieces) if piece.trouble), None)
        if refused is not None:
            return [*(Answer() for _ in range(refused)), Answer(trouble=pieces[refused].trouble)]
        return self._answers(pieces, rows) if pieces else [Answer()]

    def fetch(self, statement: str) -> list[tuple[Any, ...]]:
        from psycopg.adapt import Transformer

        pieces = list(_pieces(statement, self._restricts))
        if len(pieces) != 1:
            raise StatementFailed(Trouble("one statement is expected here, and no more", "42601"))
        if pieces[0].trouble:
            raise StatementFailed(pieces[0].trouble)
        # \gdesc cannot be under \restrict: the types of a text with backslashes stay unknown, and its values text.
        describe = [] if "\\" in statement else [_Piece(pieces[0].text, 0, pieces[0].keywords, ending="\n\\gdesc")]
        answers = self._answers([*describe, *pieces], True)
        if answers and answers[-1].trouble:
            raise StatementFailed(answers[-1].trouble)
        types = [row[1] or "" for row in answers[0].rows] if describe else []
        transformer = Transformer()
        loaders = [transformer.get_loader(_oid(name), 0).load for name in types]  # type: ignore[arg-type]
        return [
            tuple(
                value if value is None or number >= len(loaders) else loaders[number](value.encode())
                for number, value in enumerate(row)
            )
            for row in answers[-1].rows
        ]

    def close(self) -> None:
        self._given.put(None)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        # psql rolls back and goes when its input ends; one in the middle of a statement is not waited for.
        self._thread.join(5)

    # --- what psql is given and says ------------------------------------------------------------------------------------

    def _greet(self) -> tuple[bool, int]:
        """Whether psql knows ``\\restrict``, and the server's version."""
        text = (
            f"\\o :connected\n\\o\n\\unset connected\n\\pset title {self._title}\n\\pset fieldsep {self._column}\n"
            f"\\pset recordsep {self._row}\n\\pset null {self._null}\n"
            f"\\restrict {self._key}\n\\echo open\n\\unrestrict {self._key}\n"
            "SELECT pg_catalog.current_setting('server_version_num');\n"
        )
        # While it is restricted \echo does nothing; where there is no \restrict it speaks.
        said = self._say(text.encode(), within=_OPENED_WITHIN)
        heading, _, rows = "\n".join(said).rpartition(self._title)
        version = rows.split(self._row)[-1]
        if not version.isdigit():
            raise Lost
        return "open" not in heading.splitlines(), int(version)

    def _answers(self, pieces: list[_Piece], rows: bool) -> list[Answer]:
        text = ["\\set tma_ok true\n"]
        guard, unguard = (f"\\restrict {self._key}\n", f"\\unrestrict {self._key}\n") if self._restricts else ("", "")
        for number, piece in enumerate(pieces):
            described = piece.ending != "\n;"
            text.append(
                f"\\if :tma_ok\n{'' if described else guard}{piece.text}{piece.ending}\n{piece.data}"
                f"{'' if described else unguard}\\echo {self._mark} {number} :ERROR\n"
                "\\if :ERROR\n\\set tma_ok false\n\\endif\n\\endif\n"
            )
        answers: list[Answer] = []
        block: list[str] = []
        for line in self._say("".join(text).encode()):
            mark, _, rest = line.partition(" ")
            if mark != self._mark:
                block.append(line)
                continue
            piece = pieces[int(rest.split()[0])]
            answers.append(self._answer(piece, "\n".join(block), rest.endswith("true"), rows))
            block.clear()
            if answers[-1].trouble is None:
                self._follow(piece.keywords)
        own = _OWN_ERROR.search("\n".join(block))
        if own or (answers and answers[-1].trouble and answers[-1].trouble.code is None):
            # Something of the text was a command of psql's after all: it did not run, and what did is not what was meant.
            self.close()
        return answers

    def _answer(self, piece: _Piece, said: str, failed: bool, rows: bool) -> Answer:
        heading, found, body = said.rpartition(self._title + self._row)
        trouble = _trouble(piece, said if not found else heading, failed)
        # psql is too quiet to say the tag; a transaction's end is what somebody may ask for.
        tag = {"END": "COMMIT", "ABORT": "ROLLBACK"}.get(piece.keywords[0], piece.keywords[0]) if piece.keywords else ""
        if trouble or not found:
            return Answer("" if trouble else tag, trouble=trouble)
        header, *records = body.split(self._row)
        columns = tuple(header.split(self._column)) if header else ()
        if not rows:
            return Answer(tag, columns)
        return Answer(
            tag,
            columns,
            tuple(
                tuple(None if value == self._null else value for value in record.split(self._column)) if columns else ()
                for record in records
            ),
        )

    def _follow(self, keywords: tuple[str, ...]) -> None:
        """Whether a transaction is open after a statement with these words that worked."""
        first = keywords[:1]
        if first in {("BEGIN",), ("START",)} or "CHAIN" in keywords:
            self.idle = False
        elif (
            first in {("COMMIT",), ("END",), ("ABORT",)}
            or keywords[:2] == ("PREPARE", "TRANSACTION")
            or (first == ("ROLLBACK",) and "TO" not in keywords)
        ):
            self.idle = True

    def _say(self, text: bytes, *, within: float = _FOR_EVER) -> list[str]:
        """The lines that psql prints for the text. Raises :class:`Lost` when it ends instead."""
        if self._ended:
            raise Lost
        end = f"{self._mark} end"
        with self._changed:
            self._heard = []
            self._waiting = True
        for start in range(0, len(text), _PIECE):
            self._given.put(text[start : start + _PIECE])
        self._given.put(f"\\echo {end}\n".encode())
        deadline = time.monotonic() + within
        with self._changed:
            while not self._heard or self._heard[-1] != end:
                if self._ended or time.monotonic() > deadline:
                    raise Lost
                self._changed.wait(1.0)
            self._waiting = False
            return self._heard[:-1]

    # --- the thread that holds psql -------------------------------------------------------------------------------------

    def _run(self, transport: Transport, arguments: list[str]) -> None:
        try:
            self._result = transport.stream(
                _SHELL, arguments, stdin=self._input(), on_line=self._hear, silence=_FOR_EVER
            )
        except (LineCut, PipelineError) as error:
            self._result = error
        except Exception as error:
            self._result = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _input(self) -> Iterator[bytes]:
        """What psql is fed. The transport reads psql's words in the same thread: while they are awaited it must not wait here."""
        yield self._opening
        pause = 0.0005
        while True:
            try:
                given = self._given.get(block=not self._waiting, timeout=0.2)
            except queue.Empty:
                if self._waiting:
                    time.sleep(pause)
                    pause = min(0.02, pause * 1.2)
                if self._ended:
                    return
                yield b""
                continue
            if given is None:
                return
            pause = 0.0005
            yield given

    def _hear(self, line: str) -> None:
        with self._changed:
            self._heard.append(line)
            if line.startswith(self._mark):
                self._changed.notify_all()

    def _not_let_in(self, errors: ScriptErrors, settings: DatabaseSettings) -> PipelineError:
        result = self._result
        if isinstance(result, PipelineError):
            return result
        said = "\n".join(self._heard).strip()
        if isinstance(result, Result):
            said = said or result.stderr.decode(errors="replace").strip()
            if result.exit_code == _MISSING:
                return errors.not_let_in(said, reasons=("install PostgreSQL's client programs on the host",))
        reasons: tuple[str, ...] = ()
        if settings.tls == "off" and ("no encryption" in said or "SSL" in said):
            reasons = ("the server demands TLS (hostssl), which takes tls: verify-full in the environment's file",)
        elif "password authentication failed" in said or "no password supplied" in said:
            reasons = ("the user or the password is wrong; the password's reference is in the environment's file",)
        return errors.not_let_in(said or "psql on the host said nothing", reasons=reasons)


def statements_of(text: str) -> Iterator[Statement]:
    """The statements of a script for psql, without the data of its COPY."""
    for number, piece in enumerate(_pieces(text, True), 1):
        if piece.text:
            words = first_words(piece.text)
            end = piece.start + len(piece.text)
            yield Statement(number, line_at(text, piece.start + 1), words, piece.keywords, piece.start, end)


def _pieces(message: str, restricts: bool) -> Iterator[_Piece]:
    """The statements, each as a piece; a piece with ``trouble`` is the last, and must not be sent."""
    if "\\" in message and not restricts:
        yield _Piece(
            "",
            0,
            trouble=Trouble(
                "psql on the host is too old to be kept from running commands (\\restrict came with 13.22, 14.19, 15.14,"
                " 16.10 and 17.6), so a script with a backslash in it cannot run there"
            ),
        )
        return
    position = 0
    while position < len(message):
        rest = message[position:] if position else message
        after, last = None, 0
        for found in scan(rest):
            last = found.end
            text, start = rest[found.start : found.end], position + found.start
            trouble = _not_for_psql(text, found.client)
            data = ""
            if trouble is None and found.keywords[:1] == ("COPY",) and _COPY_IN.search(_unquoted(text)):
                line = rest.find("\n", found.end)
                end = re.compile(r"^\\\.$", re.MULTILINE).search(rest, line + 1) if line >= 0 else None
                if end is None or rest[found.end : line].strip() != ";":
                    trouble = Trouble("COPY with the client's own data", copied=True)
                else:
                    after = end.end() + 1
                    data = rest[line + 1 : after] + ("" if rest[end.end() : after] else "\n")
            yield _Piece(text, start, found.keywords, data, trouble=trouble)
            if trouble is not None:
                return
            if after is not None:
                break
        if after is None:
            if not _whole(rest[last:]):
                yield _Piece("", position + last, trouble=Trouble(_ENDLESS, "42601"))
            return
        position += after


def _not_for_psql(text: str, client: tuple[str, int] | None) -> Trouble | None:
    """What psql would not take as the server does, or would wait for the end of."""
    if client is not None and client[0].startswith("\\"):
        return Trouble(f"{client[0]} is a command of psql's, and none of them runs in a script", "42601")
    if _LEXER.search(text):
        return Trouble("standard_conforming_strings and client_encoding cannot be changed in psql on the host", "0A000")
    if not _whole(text):
        return Trouble(_ENDLESS, "42601")
    return None


def _whole(text: str) -> bool:
    """Whether psql finds an end to everything that begins in the statement."""
    position = depth = 0
    while match := _TOKEN.match(text, position):
        position = match.end()
        if match["string"] and not (match["e"] or match["s"] or match["d"]):
            return False
        if match["paren"]:
            depth = max(0, depth + (1 if match[0] == "(" else -1))
        elif match["dollar"]:
            closing = text.find(match[0], position)
            if closing < 0:
                return False
            position = closing + len(match[0])
        elif match["block"]:
            open_ones = 1
            for edge in re.compile(r"/\*|\*/").finditer(text, position):
                open_ones += 1 if edge[0] == "/*" else -1
                if not open_ones:
                    position = edge.end()
                    break
            else:
                return False
    return depth == 0


def _unquoted(text: str) -> str:
    """The statement without its strings and comments."""
    return re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n\r]*|/\*.*?\*/", " ", text, flags=re.DOTALL)


def _trouble(piece: _Piece, said: str, failed: bool) -> Trouble | None:
    found = next(reversed(list(_ERROR.finditer(said))), None)
    if not failed:
        own = _OWN_ERROR.search(said)
        return Trouble(own[1]) if own else None
    if found is None:
        return Trouble(said.strip() or "psql did not say what was wrong", "XX000")
    if found[1].startswith("57P"):
        raise Lost
    rest = said[found.end() :]
    fields = {match[1]: match[2] for match in _FIELD.finditer(rest)}
    line = _LINE.search(rest)
    begin = piece.start
    for _ in range(int(line[1]) - 1 if line else 0):
        begin = piece.start + piece.text.find("\n", begin - piece.start) + 1
    return Trouble(found[2], found[1], begin + 1, fields.get("HINT"), fields.get("CONSTRAINT NAME"))


def _counted(data: bytes) -> bytes:
    """Lines for the shell: how many, then they."""
    lines = data.splitlines()
    return b"".join(line + b"\n" for line in (str(len(lines)).encode(), *lines))


def _oid(name: str) -> int:
    """The number of a type as psql names it, ``character varying(20)``; 0 for one that is not built in."""
    from psycopg import adapters

    plain = re.sub(r"\([^)]*\)", "", name)
    found = adapters.types.get(plain.removesuffix("[]"))
    if found is None:
        return 0
    return found.array_oid if plain.endswith("[]") else found.oid
