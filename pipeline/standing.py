"""Where one customer stands, in the few words that ``status`` shows: pure, and in two forms.

As a :class:`Standing`, and as trailers of the ledger's newest commit, which say the same: so ``status`` of thousands of
customers is one look at the tips of their ledgers, without a file of configuration or a ``state.json``. The trailers are a
cache of the state, written with every record; a tip without them, or with those of another schema, is read from the state.
This module imports no Pydantic, since ``status`` does without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pipeline.state import EnvironmentState, State

SCHEMA = "1"
"""Raise it with every change of what a trailer means; trailers of another schema are not read."""

_SCHEMA_KEY, _INSTALLED, _NOTE, _WAITING = "Standing", "Installed-", "Note-", "Waiting"


class Installed(NamedTuple):
    """One release as it is installed; ``at`` is an instant in UTC as the records write it."""

    release: str
    deployment: str
    at: str
    by: str
    content: str
    tickets: tuple[str, ...] = ()


class Waiting(NamedTuple):
    """What a customer waits for: a ``kind`` of :data:`WAITING`, the release meant, who decided, until when (UTC)."""

    kind: str
    release: str = ""
    by: str = ""
    due: str = ""

    def sentence(self, approvers: tuple[str, ...] = (), time_zone: str | None = None) -> str:
        """In words. Who may sign off and the day on the customer's clock are configuration: without it, neither the
        names are said, and the instant in UTC instead of the day."""
        due = self.due
        if due and time_zone is not None:
            from zoneinfo import ZoneInfo

            due = f"{datetime.fromisoformat(due).astimezone(ZoneInfo(time_zone)):%Y-%m-%d}"
        return WAITING[self.kind].format(
            release=self.release,
            by=self.by,
            whom=f" by {' or '.join(approvers)}" if approvers else "",
            due=f" by {due}" if due else "",
        )


WAITING: Mapping[str, str] = {
    "line": "its line to be started (line.start)",
    "release": "a first release (release)",
    "rolled-back": "a new release: {release} was rolled back from",
    "deploy": "{release} to be deployed to test (deploy)",
    "deploy-any": "a release to be deployed to test (deploy)",
    "sign-off": "the sign-off of {release}{whom}{due}",
    "rejected": "a new release: {by} rejected {release}",
    "blocking": "a new release: {by} approved {release} with a blocking reservation",
    "promote": "the promotion of {release}, signed off by {by} (promote)",
    "nothing": "nothing",
}
"""Everything that a customer can wait for."""


class Standing(NamedTuple):
    """What is installed on each environment, what there needs attention, and what the customer waits for."""

    product: str | None
    installed: Mapping[str, Installed]
    notes: Mapping[str, str]
    waiting: Waiting


def standing(state: State) -> Standing:
    """Where the customer stands after these records."""
    installed = {}
    for key, here in state.environments.items():
        if here.installed is not None:
            installed[key] = Installed(
                release=here.installed.release,
                deployment=here.installed.deployment,
                at=_instant(here.installed.at),
                by=here.installed.by,
                content=here.installed.content,
                tickets=tuple(ticket.id for ticket in here.installed.tickets),
            )
    notes = {key: note for key, here in state.environments.items() if (note := _note(here))}
    return Standing(state.product, installed, notes, waiting(state))


def _note(here: EnvironmentState) -> str:
    if here.quarantined:
        return f"quarantined since deployment {here.quarantined}"
    if here.running and here.running.partly:
        serve = ", ".join(f"{host} runs {release or 'nothing'}" for host, release in here.running.partly.items())
        return f"deployment {here.running.deployment} of {here.running.release} is partly done: {serve}"
    if here.running:
        return f"deployment {here.running.deployment} of {here.running.release} has no outcome yet"
    return f"deployment {here.failed} failed" if here.failed else ""


def waiting(state: State) -> Waiting:
    """Who has to do what next."""
    newest, sign_off = state.newest_release(), state.sign_off
    on_test, running = state.environment("test").installed, state.environment("production").installed
    if state.version is None:
        return Waiting("line")
    if newest is None:
        return Waiting("release")
    if newest.name in {*state.environment("test").left, *state.environment("production").left}:
        return Waiting("rolled-back", newest.name)
    if on_test is None or (on_test.release != newest.name and (running is None or running.release != newest.name)):
        return Waiting("deploy", newest.name)
    if sign_off is None or sign_off.status == "superseded":
        return Waiting("deploy-any")
    if sign_off.status == "open":
        return Waiting("sign-off", sign_off.release, due=_instant(sign_off.due) if sign_off.due else "")
    if sign_off.status == "rejected":
        return Waiting("rejected", sign_off.release, by=sign_off.by or "")
    if sign_off.blocking:
        return Waiting("blocking", sign_off.release, by=sign_off.by or "")
    if running is None or running.release != sign_off.release:
        return Waiting("promote", sign_off.release, by=sign_off.by or "")
    return Waiting("nothing")


def _instant(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def trailers(where: Standing) -> dict[str, str]:
    """The trailers of a commit that say this; :func:`parsed` reads them again.

    ``Installed-test: RELEASE DEPLOYMENT INSTANT WHO CONTENT [TICKET …]``, ``Note-test: SENTENCE``,
    ``Waiting: KIND [release=…] [by=…] [due=…]``; ``Standing: SCHEMA PRODUCT`` comes first.
    """
    written = {_SCHEMA_KEY: f"{SCHEMA} {where.product}"}
    for key, here in where.installed.items():
        words = (here.release, here.deployment, here.at, here.by, here.content, *here.tickets)
        written[_INSTALLED + key] = " ".join(map(_word, words))
    written |= {_NOTE + key: note for key, note in where.notes.items()}
    waits = where.waiting
    named = (("release", waits.release), ("by", waits.by), ("due", waits.due))
    written[_WAITING] = " ".join([waits.kind, *(f"{name}={_word(value)}" for name, value in named if value)])
    return written


def parsed(message: str) -> Standing | None:
    """The standing that a commit's message tells in its last paragraph; None unless it does, in this schema."""
    # Thousands are read at once: only the lines from the schema on are looked at.
    _, found, last = message.rpartition(f"\n{_SCHEMA_KEY}: {SCHEMA} ")
    if not found or "\n\n" in last:
        return None
    product, *lines = last.splitlines()
    installed: dict[str, Installed] = {}
    notes: dict[str, str] = {}
    waits: Waiting | None = None
    try:
        for line in lines:
            key, _, value = line.partition(": ")
            if key.startswith(_INSTALLED):
                words = value.split(" ") if "%" not in value else [_plain(word) for word in value.split(" ")]
                release, deployment, at, by, content, *tickets = words
                installed[key[len(_INSTALLED) :]] = Installed(release, deployment, at, by, content, tuple(tickets))
            elif key.startswith(_NOTE):
                notes[key[len(_NOTE) :]] = value
            elif key == _WAITING:
                waits = _waiting(value)
    except (ValueError, TypeError):
        return None
    return Standing(product, installed, notes, waits) if waits is not None else None


@lru_cache(maxsize=10_000)
def _waiting(value: str) -> Waiting | None:
    kind, *named = value.split(" ")
    told = {name: _plain(text) for name, _, text in (word.partition("=") for word in named)}
    return Waiting(kind, **told) if kind in WAITING else None


def _word(text: str) -> str:
    """``text`` without a blank or line end: what is not a plain word has each of its bytes as a percent sign and two digits."""
    if text.isascii() and text.isprintable() and not ("%" in text or " " in text):
        return text
    return "".join(f"%{byte:02X}" for byte in text.encode())


def _plain(word: str) -> str:
    return bytes.fromhex(word.replace("%", "")).decode() if "%" in word else word
