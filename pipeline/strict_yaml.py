"""YAML read strictly: a value that is exactly what a person reads in the file, and the place of each part of it.

What another reading could turn into something else is refused with its place and the form to write instead: unquoted
``1.10``, ``no``, ``0123``, ``12:30:00`` and dates, keys given twice, tags, anchors and aliases (so nothing expands),
a second document, invisible characters. Size and depth are bounded. The tree is built from the parser's events, without
recursion, by libyaml where PyYAML has it. YAML 1.1 and 1.2 disagree on many plain scalars; text that either of them
takes for something else needs quotes here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml
from yaml import events

from pipeline.errors import ConfigurationError, Reason

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 24

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}
_TRAPS = frozenset(
    form(word)
    for word in ("yes", "no", "on", "off", "true", "false", "null")
    for form in (str.lower, str.capitalize, str.upper)
) - {"true", "false", "null"} | {"<<", "="}
_KEYS_THAT_ARE_WORDS = frozenset({"on"})
"""Fields of ours that YAML 1.1 takes for a truth value; as a key there is nothing to mistake them for."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_NUMBER_TO_SOMEBODY = re.compile(
    r"""[-+]?0[box][0-9a-fA-F_]+                                    # 0b1, 0o17, 0x1f
      | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?            # base 60: 12:30:00
      | [-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?
      | [-+]?\.(?:inf|Inf|INF) | \.(?:nan|NaN|NAN)""",
    re.VERBOSE,
)
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:.*)?", re.DOTALL)
_CLOCK_WITH_A_DOT = re.compile(r"((?:[01]?[0-9]|2[0-4]))\.([0-5][0-9])")
_CLOCK = re.compile(r"[0-9]{1,2}:[0-5][0-9](?::[0-5][0-9])?")
_BEGINS_LIKE_NO_TEXT = frozenset("0123456789-+.")

# What an editor does not show, or what YAML counts as a line end and an editor does not (so that lines would be wrong).
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff]")
_NOT_IN_A_VALUE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_CONFIDENTIAL = re.compile(r"passw|secret|token|credential|signing_key", re.IGNORECASE)

SAFE_INTEGER = 2**53 - 1
"""Largest integer that RFC 8785 (and so every hash of ours) can hold exactly."""


class Place:
    """Where one value stands in its file; lines and columns count from 1, columns in characters."""

    __slots__ = ("children", "column", "confidential", "key", "line", "plain")

    def __init__(self, line: int, column: int, key: tuple[int, int] | None, confidential: bool) -> None:
        self.line = line
        self.column = column
        self.key = key
        self.confidential = confidential
        self.plain: str | None = None
        self.children: dict[str | int, Place] = {}


class Source:
    """One file as read: ``path`` relative to the workspace, its bytes, its value, its ``problems``, and every place.

    ``value`` holds only ``str``, ``int``, ``float``, ``bool``, ``None``, ``list`` and ``dict`` with text keys, so that it
    is JSON as it stands. ``whole`` is False when the file could not be read to its end; ``value`` is then None.
    """

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.data = data
        self.value: Any = None
        self.whole = False
        self._root = Place(1, 1, None, False)
        self._problems: list[tuple[int, int, str]] = []

    def __repr__(self) -> str:
        return f"Source({self.path!r}, {len(self.data)} bytes)"

    @property
    def problems(self) -> tuple[Reason, ...]:
        """What the strict reading refused, in the order of the file."""
        return tuple(Reason(text, f"{self.path}:{line}:{column}") for line, column, text in sorted(self._problems))

    def refuse(self, line: int, column: int, text: str) -> None:
        """Note one more problem at this place."""
        self._problems.append((line, column, text))

    def refused_at(self, place: Place) -> bool:
        """Whether the strict reading already refused the value at ``place``."""
        return any((line, column) == (place.line, place.column) for line, column, _ in self._problems)

    def find(self, *loc: str | int) -> tuple[Place, bool]:
        """The place of the value at ``loc``, else of the nearest value around it; and whether it is the value itself.

        A word right behind a list's position that is not a key there is passed over: it is the tag of a union.
        """
        place = self._root
        in_list = False
        exact = True
        for element in loc:
            child = place.children.get(element)
            if child is not None:
                place, in_list, exact = child, isinstance(element, int), True
            elif in_list and isinstance(element, str):
                in_list = False
            else:
                return place, False
        return place, exact

    def position(self, *loc: str | int) -> str:
        """``file:line:column`` of the value at ``loc``, else of the nearest value around it."""
        place, _ = self.find(*loc)
        return f"{self.path}:{place.line}:{place.column}"

    def key_position(self, *loc: str | int) -> str:
        """``file:line:column`` of the key that holds the value at ``loc``."""
        place, _ = self.find(*loc)
        line, column = place.key or (place.line, place.column)
        return f"{self.path}:{line}:{column}"


def read(path: str, data: bytes, *, dated: Iterable[str] = ()) -> Source:
    """``data`` as a :class:`Source` without a problem, or one ConfigurationError with every problem of the file.

    Below a key in ``dated`` an unquoted date, instant or time of day is taken as the text that it is.
    """
    source = parse(path, data, dated=dated)
    if source.problems:
        raise wrong(source, ())
    return source


def wrong(source: Source, reasons: Iterable[Reason]) -> ConfigurationError:
    """The one error of a file: what the strict reading refused, and ``reasons``, in the order of the file."""

    def order(reason: Reason) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r":(\d+)", (reason.source or "")[len(source.path) :]))

    every = sorted(dict.fromkeys((*source.problems, *reasons)), key=order)
    first = order(every[0])[0] if every and order(every[0]) else 1
    return ConfigurationError(
        f"{source.path} is not right.", reasons=every, next_commands=[f"${{EDITOR:-vi}} +{first} {source.path}"]
    )


def parse(path: str, data: bytes, *, dated: Iterable[str] = ()) -> Source:
    """``data`` as a :class:`Source`, its problems collected in it; raises nothing whatever the bytes are."""
    source = Source(path, data)
    text = _text(source)
    if text is None:
        return source
    try:
        loader = _Loader(text)
        try:
            _Builder(source, frozenset(dated)).build(loader)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        _syntax(source, text, error)
    except (yaml.YAMLError, ValueError, OverflowError):
        # PyYAML's own scanner lets the conversion of an impossible \U escape or %YAML number through.
        source.refuse(1, 1, "this is not YAML")
    if not source.whole:
        source.value = None
    return source


def _text(source: Source) -> str | None:
    if len(source.data) > MAX_BYTES:
        source.refuse(1, 1, f"the file is larger than {MAX_BYTES // 1024} KiB")
        return None
    try:
        text = source.data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = source.data[: error.start].decode("utf-8")
        source.refuse(*_line_and_column(before.removeprefix("\ufeff")), "this is not UTF-8; save the file as UTF-8")
        return None
    text = text.removeprefix("\ufeff")
    found = _INVISIBLE.search(text)
    if found:
        place = _line_and_column(text[: found.start()])
        source.refuse(*place, f"invisible character U+{ord(found.group()):04X}; remove it")
        return None
    return text


def _line_and_column(before: str) -> tuple[int, int]:
    lines = re.split(r"\r\n|\r|\n", before)
    return len(lines), len(lines[-1]) + 1


def _syntax(source: Source, text: str, error: yaml.MarkedYAMLError) -> None:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    said = ", ".join(part for part in (error.context, error.problem) if part) or "this is not YAML"
    lines = re.split(r"\r\n|\r|\n", text)
    if line <= len(lines) and "\t" in lines[line - 1][: column + 1]:
        said += "; indent with spaces, not with a tab"
    elif "mapping values are not allowed" in said:
        said += "; a text that holds ': ' needs quotes"
    source.refuse(line, column, said)


class _Builder:
    """Makes the value and the places of one document out of the parser's events."""

    def __init__(self, source: Source, dated: frozenset[str]) -> None:
        self.source = source
        self.dated = dated
        # Per open collection: its value, its place, and for a mapping the key that waits for its value.
        self.open: list[tuple[Any, Place]] = []
        self.waiting: list[tuple[str, Place] | None] = []

    def build(self, loader: Any) -> None:
        documents = 0
        while loader.check_event():
            event = loader.get_event()
            if isinstance(event, events.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, events.CollectionStartEvent):
                if len(self.open) >= MAX_DEPTH:
                    self._refuse(event, f"nested deeper than {MAX_DEPTH} levels")
                    return
                self._collection(event)
            elif isinstance(event, events.CollectionEndEvent):
                self.open.pop()
                self.waiting.pop()
            elif isinstance(event, events.AliasEvent):
                self._refuse(event, "an alias (*…) is not accepted; write the value itself")
                self._put(None, self._place(event))
            elif isinstance(event, events.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "a second document (---) is not accepted; one file, one document")
                    return
        if documents == 0:
            self.source.refuse(1, 1, "the file is empty")
            return
        self.source.whole = True

    def _refuse(self, event: Any, text: str) -> None:
        self.source.refuse(event.start_mark.line + 1, event.start_mark.column + 1, text)

    def _key_waits(self) -> tuple[str, Place] | None:
        return self.waiting[-1] if self.waiting else None

    def _is_key(self) -> bool:
        return bool(self.open) and isinstance(self.open[-1][0], dict) and self.waiting[-1] is None

    def _place(self, event: Any) -> Place:
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        waits = self._key_waits()
        around = bool(self.open) and self.open[-1][1].confidential
        if waits is None:
            return Place(line, column, None, around)
        key, at = waits
        return Place(line, column, (at.line, at.column), around or bool(_CONFIDENTIAL.search(key)))

    def _plain_faults(self, event: Any) -> None:
        if event.anchor is not None and not isinstance(event, events.AliasEvent):
            self._refuse(event, "an anchor (&…) is not accepted; write the value where it is needed")
        if event.tag is not None:
            self._refuse(event, "a tag (!…) is not accepted; quote the value where it is text")

    def _collection(self, event: Any) -> None:
        self._plain_faults(event)
        place = self._place(event)
        value: Any = {} if isinstance(event, events.MappingStartEvent) else []
        if self._is_key():
            self._refuse(event, "a key is a text, not a list or mapping")
            self.waiting[-1] = (f"?{place.line}:{place.column}", place)
        else:
            self._put(value, place)
        self.open.append((value, place))
        self.waiting.append(None)

    def _scalar(self, event: Any) -> None:
        self._plain_faults(event)
        text: str = event.value
        if _NOT_IN_A_VALUE.search(text):
            self._refuse(event, "this text holds a control character")
            text = _NOT_IN_A_VALUE.sub("?", text)
        plain = not event.style
        if self._is_key():
            self._key(event, text, plain)
            return
        place = self._place(event)
        value: Any = text
        if plain:
            place.plain = text
            waits = self._key_waits()
            dated = waits is not None and waits[0] in self.dated
            value, trap = meaning(text, dated=dated)
            clock = _CLOCK_WITH_A_DOT.fullmatch(text) if dated else None
            if clock is not None:
                hours, minutes = clock.groups()
                self._refuse(event, f"a time of day has a colon: write {quoted(f'{hours:0>2}:{minutes}')}, not {text}")
            elif trap is not None:
                self._refuse(event, refusal(trap, None if place.confidential else text))
            elif text == "" and place.key:
                # The mark of a value that is not there is wherever the next thing begins.
                place.line, place.column = place.key
        self._put(value, place)

    def _key(self, event: Any, text: str, plain: bool) -> None:
        place = Place(event.start_mark.line + 1, event.start_mark.column + 1, None, False)
        if plain and text not in _KEYS_THAT_ARE_WORDS:
            value, trap = meaning(text)
            if trap is not None:
                self._refuse(event, refusal(trap, text))
            elif not isinstance(value, str):
                self._refuse(event, refusal(_as_yaml_says(value), text))
        holder, around = self.open[-1]
        if text in holder:
            first = around.children[text].key
            line = first[0] if first else around.line
            self._refuse(event, f"key '{shorten(text)}' is given twice, first in line {line}")
        self.waiting[-1] = (text, place)

    def _put(self, value: Any, place: Place) -> None:
        if not self.open:
            self.source.value = value
            self.source._root = place
            return
        holder, around = self.open[-1]
        if isinstance(holder, list):
            around.children[len(holder)] = place
            holder.append(value)
            return
        waits = self.waiting[-1]
        if waits is None:
            # An alias where a key belongs: it was refused, its value has no key to go under.
            self.waiting[-1] = (f"?{place.line}:{place.column}", place)
            return
        key, _ = waits
        if key not in holder:
            holder[key] = value
            around.children[key] = place
        self.waiting[-1] = None


def meaning(text: str, *, dated: bool = False) -> tuple[Any, str | None]:
    """The value of a plain (unquoted) scalar, and None; or the text itself and what YAML would make of it.

    Only a number written in the one way in which it would be printed is a number.
    """
    if text in _WORDS:
        return _WORDS[text], None
    if text in _TRAPS:
        return text, _said_by_yaml(text)
    if text[0] not in _BEGINS_LIKE_NO_TEXT:
        return text, None
    if dated and (_DATE.fullmatch(text) or _CLOCK.fullmatch(text)):
        return text, None
    if _INTEGER.fullmatch(text):
        if len(text) <= 17 and abs(int(text)) <= SAFE_INTEGER:
            return int(text), None
        return text, "a number too large to be kept exactly"
    if _DECIMAL.fullmatch(text) and len(text) <= 40 and repr(float(text)) == text:
        return float(text), None
    if _NUMBER_TO_SOMEBODY.fullmatch(text):
        return text, _said_by_yaml(text)
    if _DATE.fullmatch(text):
        return text, "a date"
    return text, None


def refusal(read_as: str, text: str | None) -> str:
    """The sentence for an unquoted ``text`` that YAML reads as ``read_as``; without the text where it may be a secret."""
    if text is None:
        return f"this unquoted value is {read_as} to YAML; put it in quotes"
    return f"unquoted {shorten(text)} is {read_as} to YAML; write {quoted(text)}"


def quoted(text: str) -> str:
    """``text`` as a single-quoted YAML scalar."""
    return "'" + shorten(text).replace("'", "''") + "'"


def shorten(text: str) -> str:
    """``text``, cut where it is too long for a message."""
    return text if len(text) <= 60 else text[:57] + "…"


def _said_by_yaml(text: str) -> str:
    if text in {"<<", "="}:
        return "a special sign"
    try:
        value = yaml.safe_load(text) if len(text) <= 40 else None
    except (yaml.YAMLError, ValueError, OverflowError):
        value = None
    if value is None and text.lower() != "null":
        return "a number"
    return "either a number or a text" if isinstance(value, str) else _as_yaml_says(value)


def _as_yaml_says(value: Any) -> str:
    if value is None:
        return "empty (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"the number {value}"
