"""What a script says of itself in its first comment lines, in every layout alike. Pure.

``-- tma: transaction=no, phase=contract`` on one line or on several; an acceptance gives its reason in double quotes
(doubled inside): ``-- tma: accept=drop-table "empty since 2.0"``. What is not understood is wrong, never left out: a script
that asked to run outside a transaction, with a letter missing, would run inside one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from pipeline.errors import Reason
from pipeline.model import Engine
from pipeline.script_text import script_text
from pipeline.suggest import nearest

Client = Literal["psql", "mariadb", "mysql", "sqlite3"]

CLIENTS: Mapping[Engine, tuple[Client, ...]] = {
    "postgresql": ("psql",),
    "mariadb": ("mariadb", "mysql"),
    "mysql": ("mysql", "mariadb"),
    "sqlite": ("sqlite3",),
}
"""The clients of an engine, by the names that a header may use."""

_VALUES: Mapping[str, tuple[str, ...]] = {
    "transaction": ("no", "yes"),
    "phase": ("expand", "contract"),
    "client": get_args(Client),
    "session": ("yes", "no"),
    "accept": (),
}
_PERHAPS = re.compile(rb"(?i)tma(?:[^\n\r\w:]*+:|[^\n\r\w]*+(?:transaction|phase|client|session|accept))")
_MARK = re.compile(r"(?i)[ \t]*(?:--|#)[ \t]*tma[ \t]*:")
_ABOUT = rf"tma[^\S\n]*(?::|[^\w\s]?[^\S\n]*(?:{'|'.join(_VALUES)})[^\S\n]*=)"
_SAID = re.compile(rf"(?i){_ABOUT}")
_LATE = re.compile(rf"(?im)^[ \t]*(?P<line>(?:--|#)[ \t]*tma[ \t]*:)|(?P<mark>--+|\#|/\*+)[^\S\n]*(?P<about>{_ABOUT})")
_NEARLY = re.compile(rf"(?i)[^\S\n]*(?P<mark>--+|\#)[^\S\n]*(?P<about>{_ABOUT})")
_INSIDE = re.compile(rf"(?im)^[^\S\n]*(?P<mark>(?:--+|\#|\*)?[^\S\n]*{_ABOUT})")
_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`")
_TOP = re.compile(r"[ \t]*(?:(?:--|#)[^\n]*+)?(?:\n|\Z)|[ \t]*/\*(?![!M])(?:(?!\*/).)*+\*/", re.DOTALL)
_ITEM = re.compile(
    r'[ \t]*(?P<key>[^\s=,"]++)[ \t]*=[ \t]*(?P<value>[^\s,"]++)(?:[ \t]+"(?P<why>(?:[^"]|"")*+)")?[ \t]*'
)
_PHASE = re.compile(r"(?:[VRB]?[\d._-]*[._-])?(?P<phase>pre|post)[_-]")
_RULE = re.compile(r"(?:squawk:)?[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True)
class Header:
    """What a script says of itself; None where it says nothing. ``lines`` tells where each rule is accepted."""

    transaction: bool | None = None
    phase: Literal["expand", "contract"] | None = None
    client: Client | None = None
    session: bool | None = None
    accepted: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)


def read_header(data: bytes, path: str) -> tuple[Header, list[Reason]]:
    """The header of the script with these bytes, and what is wrong with it: reasons with ``path:line:column``."""
    if not _PERHAPS.search(data):
        return Header(), []
    text = script_text(data)
    reading = _Reading(path)
    end = 0
    while end < len(text) and (top := _TOP.match(text, end)):
        if mark := _MARK.match(top[0]):
            reading.line(text.count("\n", 0, end) + 1, top[0].rstrip("\n"), mark.end())
        elif "/*" in top[0]:
            _misplaced(reading, text, end, top.end())
        elif near := _NEARLY.match(top[0]):
            colon = ":" in near["about"]
            reading.at(text, end + near.start("mark"), _OWN_LINE if colon else _COLON)
        end = top.end()
    # Most large scripts say it at the top and never again, and the first look is the faster one.
    for late in _LATE.finditer(text, end) if _SAID.search(text, end) else ():
        if late["line"]:
            reading.blame(text.count("\n", 0, late.start("line")) + 1, 1, _FIRST)
        elif not _is_quoted(text, late.start("mark")):
            reading.at(text, late.start("mark"), _FIRST)
    said = reading.said
    client: Client | None = next((name for name in get_args(Client) if name == said.get("client")), None)
    header = Header(
        transaction=_flag(said.get("transaction")),
        phase="expand" if said.get("phase") == "expand" else "contract" if "phase" in said else None,
        client=client,
        session=_flag(said.get("session")),
        accepted=reading.accepted,
        lines=reading.lines,
    )
    return header, reading.wrong


_FIRST = "tma: stands in the first comment lines, or nowhere"
_OWN_LINE = "tma: stands in a line of its own that begins with -- or #"
_COLON = "a header has a colon after tma: -- tma: key=value"


def _misplaced(reading: _Reading, text: str, begin: int, end: int) -> None:
    """Notes each header in the block comment between these places."""
    opened = _LATE.match(text, text.index("/*", begin), end)
    if opened:
        reading.at(text, opened.start("mark"), _OWN_LINE)
    for inside in _INSIDE.finditer(text, begin, end):
        reading.at(text, inside.start("mark"), _OWN_LINE)


def _is_quoted(text: str, position: int) -> bool:
    """Whether a quote that is opened on the same line is still open here."""
    before = _QUOTED.sub("", text[text.rfind("\n", 0, position) + 1 : position])
    return any(quote in before for quote in "'\"`")


def _flag(value: str | None) -> bool | None:
    return None if value is None else value == "yes"


def phase_of(id: str) -> Literal["expand", "contract"] | None:
    """What ``pre_`` or ``post_`` says at the beginning of the script's name, or after its version or number.

    Not later: ``0004_add_post_title.sql`` is about posts. A script called ``up.sql`` has its folder's name.
    """
    *folders, name = id.split("/")
    match = _PHASE.match(folders[-1] if folders and name == "up.sql" else name)
    return None if match is None else "expand" if match["phase"] == "pre" else "contract"


class _Reading:
    """The header lines of one script, read one after the other."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.said: dict[str, str] = {}
        self.accepted: dict[str, str] = {}
        self.lines: dict[str, int] = {}
        self.wrong: list[Reason] = []

    def blame(self, line: int, column: int, text: str) -> None:
        """Notes what is wrong at this place, both from 1."""
        self.wrong.append(Reason(text, f"{self.path}:{line}:{column}"))

    def at(self, text: str, position: int, said: str) -> None:
        """As :meth:`blame`, at a position in the text, from 0."""
        self.blame(text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position), said)

    def line(self, number: int, text: str, position: int) -> None:
        """Takes one line from ``position`` on, where its ``tma:`` ends."""
        while True:
            item = _ITEM.match(text, position)
            column = len(text) - len(text[position:].lstrip()) + 1
            if item is None or (item.end() < len(text) and text[item.end()] != ","):
                column = column if item is None else item.end() + 1
                self.blame(number, column, 'here stands key=value, or accept=RULE "reason", with commas between')
                return
            self.item(number, column, item)
            if item.end() == len(text):
                return
            position = item.end() + 1

    def item(self, line: int, column: int, item: re.Match[str]) -> None:
        """Takes one ``key=value``."""
        key, value, why = item["key"], item["value"], item["why"]
        if key not in _VALUES:
            close = nearest(key, _VALUES)
            hint = f"did you mean {close}?" if close else f"known: {', '.join(_VALUES)}"
            self.blame(line, column, f"{key!r} is no word of a header; {hint}")
        elif key == "accept":
            self.accept(line, column, value, why)
        elif why is not None:
            self.blame(line, item.start("why"), f"a reason in quotes is for accept=, not for {key}=")
        elif value not in _VALUES[key]:
            self.blame(line, item.start("value") + 1, f"{key}= is {' or '.join(_VALUES[key])}, not {value!r}")
        elif key in self.said:
            self.blame(line, column, f"{key}= is said twice")
        else:
            self.said[key] = value

    def accept(self, line: int, column: int, rule: str, why: str | None) -> None:
        """Takes one acceptance."""
        reason = (why or "").replace('""', '"').strip()
        if not _RULE.fullmatch(rule):
            self.blame(line, column, f"{rule!r} is no name of a rule: words with hyphens between")
        elif not reason:
            self.blame(line, column, f'accept={rule} needs its reason in double quotes: accept={rule} "why"')
        elif any("\ud800" <= letter <= "\udfff" for letter in reason):
            self.blame(line, column, f"the reason for accept={rule} is not UTF-8")
        elif rule in self.accepted:
            self.blame(line, column, f"accept={rule} is said twice")
        else:
            self.accepted[rule] = reason
            self.lines[rule] = line
