"""Runs on the host beside ``host.py``: a script looked through before it runs, and the authorizer that watches it."""

from __future__ import annotations

import re

from pipeline.databases.sqlite.host import OUTSIDE, OWN_TABLES, Trouble, each_statement, uncommented

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

FIRST, SECOND = 1, 2
# The authorizer's actions that write to a table, and which of its words names it: DELETE, DROP TABLE, INSERT, UPDATE;
# then CREATE INDEX, CREATE TEMP TRIGGER, CREATE TRIGGER, ALTER TABLE. https://www.sqlite.org/c3ref/c_alter_table.html
WRITES = {9: FIRST, 11: FIRST, 18: FIRST, 23: FIRST, 1: SECOND, 5: SECOND, 7: SECOND, 26: SECOND}
BEGINS = re.compile(r"begin( (deferred|immediate|exclusive))?( transaction)?", re.IGNORECASE)
ENDS = re.compile(r"(commit|end)( transaction)?", re.IGNORECASE)
TAKEN_BACK = re.compile(r"(commit|end|rollback)( transaction)?", re.IGNORECASE)
ROLLBACK = re.compile(r"rollback( transaction)?", re.IGNORECASE)
TRIGGER = re.compile(r"create (temp |temporary )?trigger\b", re.IGNORECASE)
OWN = re.compile("|".join(OWN_TABLES), re.IGNORECASE)
VACUUM = re.compile(r"vacuum( \w+)?", re.IGNORECASE)
# What SQLite refuses within a transaction, or silently ignores there.
OUTSIDE_ONLY = re.compile(
    r"vacuum\b.*|pragma (?:\w+ ?\. ?)?(?:foreign_keys|journal_mode|synchronous|locking_mode) ?[=(].*"
    r"|pragma (?:\w+ ?\. ?)?wal_checkpoint\b.*",
    re.IGNORECASE | re.DOTALL,
)
# Settings of the connection: they are made again where a script goes on in the middle.
SETTING = re.compile(
    r"pragma (?:foreign_keys|legacy_alter_table|recursive_triggers|ignore_check_constraints|case_sensitive_like|synchronous"
    r"|cache_size|temp_store|trusted_schema|automatic_index|mmap_size|secure_delete) ?[=(].*",
    re.IGNORECASE | re.DOTALL,
)
SESSION = re.compile(r"create temp(orary)? .*", re.IGNORECASE | re.DOTALL)


class Guard:
    """The authorizer: while on, it denies to leave the file, to write to our own tables and to end the transaction.

    ``own_transactions``: the script may begin and end transactions itself. ``denied`` is what was denied, ``kind`` the
    answer's word for it.
    """

    def __init__(self, own_transactions: bool = False) -> None:
        self.on = False
        self.own_transactions = own_transactions
        self.denied: str | None = None
        self.kind = ""

    def __call__(self, action: int, first: Any, second: Any, *_: Any) -> int:
        """SQLITE_OK or SQLITE_DENY for one action of a statement that is being compiled."""
        if not self.on:
            return 0
        if action == 22 and not self.own_transactions:
            return self._deny("own-commit", first)
        if action in {24, 25}:
            return self._deny(
                "outside" if self.own_transactions else "own-commit", "ATTACH" if action == 24 else "DETACH"
            )
        if action in {29, 31} and str(second).lower() in OUTSIDE:
            return self._deny("outside", second)
        if action == 19 and str(first).lower() in {"temp_store_directory", "data_store_directory"}:
            return self._deny("outside", "PRAGMA " + first)
        if action == 19 and str(first).lower() == "writable_schema" and second is not None:
            return self._deny("schema", "PRAGMA " + first)
        table = {FIRST: first, SECOND: second}.get(WRITES.get(action, 0))
        if isinstance(table, str) and table.lower() in OWN_TABLES:
            return self._deny("own-history", table.lower())
        return 0

    def _deny(self, kind: str, what: Any) -> int:
        self.kind, self.denied = kind, str(what)
        return 1


class Plan:
    """A script looked through before anything runs: how many statements, whether one pair of BEGIN and COMMIT is around
    it, whether it depends on its session, and ``trouble``, for which it cannot run."""

    def __init__(self, text: str, transactional: bool, pair_ends: Any = ENDS) -> None:
        self.text = text
        self.pair = self.session = False
        self.trouble: Trouble | None = None
        self.count = self.line = 0
        self.first = self.last = ""
        # Its own transactions: the statements that begin and end each.
        self.spans: list[tuple[int, int]] = []
        self._begun = 0
        try:
            for number, (line, statement) in enumerate(each_statement(text, strict=True), 1):
                self._look(number, line, statement, transactional)
        except Trouble as trouble:
            self.trouble = trouble
        if transactional and BEGINS.fullmatch(self.first) and pair_ends.fullmatch(self.last) and self.count > 1:
            self.pair = True
        if not transactional and self.trouble is None and self.spans == [(1, self.count)]:
            self.trouble = Trouble("contradicts", line=self.line)

    def _look(self, number: int, line: int, statement: str, transactional: bool) -> None:
        words = self.last = plain(statement)
        if number == 1:
            self.first, self.line = words, line
        self.count = number
        self.session = self.session or bool(SESSION.fullmatch(words))
        if BEGINS.fullmatch(words):
            self._begun = number
        elif self._begun and (ENDS.fullmatch(words) or ROLLBACK.fullmatch(words)):
            self.spans.append((self._begun, number))
            self._begun = 0
        if self.trouble is not None:
            return
        facts = {"number": number, "line": line, "words": words_of(statement)}
        if statement.startswith("."):
            self.trouble = Trouble("client-command", statement.split(maxsplit=1)[0], **facts)
        elif transactional and OUTSIDE_ONLY.fullmatch(words):
            self.trouble = Trouble("not-in-transaction", words_of(statement), **facts)
        elif TRIGGER.match(words) and (own := OWN.search(uncommented(statement))):
            # It would write with the application's next statement, when nobody asks the authorizer.
            self.trouble = Trouble("own-history", own.group().lower(), **facts)

    def begun_before(self, number: int) -> int:
        """The statement that begins the script's own transaction in the middle of which ``number`` is the last that ran; 0
        when it is in none."""
        return next((first for first, last in self.spans if first <= number < last), 0)

    def statements(self) -> Iterator[tuple[int, int, str]]:
        """Number, line and text of each statement that runs; the pair around them does not."""
        for number, (line, statement) in enumerate(each_statement(self.text), 1):
            if not (self.pair and number in {1, self.count}):
                yield number, line, statement


def plain(statement: str) -> str:
    """The beginning of a statement without comments, blanks as one, without its semicolon.

    Of most statements this is the beginning of their first 400 characters; comments and blanks can hide nothing in it.
    """
    head = " ".join(statement[:400].split())
    if len(head) < 100 or "--" in head or "/*" in head:
        head = " ".join(uncommented(statement).split())
    return head.rstrip("; ")


def words_in(statement: str) -> str:
    """All of a statement without comments, blanks as one, without its semicolon."""
    return " ".join(uncommented(statement).split()).rstrip("; ")


def words_of(statement: str) -> str:
    """The beginning of a statement on one line, at most 60 characters: enough to find it, not its data."""
    words = " ".join(statement[:400].split()).rstrip("; ")
    return words if len(words) <= 60 else words[:59] + "…"
