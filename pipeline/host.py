"""One host's folder, over any transport: releases beside each other, ``shared/``, ``current``, the journal.

::

    <folder>/releases/<release>/      the files of a release, exactly its tree
    <folder>/current -> releases/…    what serves; switched in one rename
    <folder>/shared/                  what belongs to this environment: rendered configuration, the application's data
    <folder>/lists/<release>          every file of the release as it was verified last (``host_scripts/survey.sh``)
    <folder>/journal/000001-….json    see :mod:`pipeline.host_journal`; never cleaned
    <folder>/backups/<run>/           what was there before
    <folder>/incoming/<run>.…/        a job: received whole, then run (:mod:`pipeline.job`)

The work is done by the POSIX ``sh`` scripts in ``host_scripts/``. Every change is part of a job, and is safe to repeat
after a crash at any point. Errors: Refused (the host holds what we did not put there), Failed (a script did not work, with
its words), Unreachable and :class:`pipeline.transports.LineCut` from the transport.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pipeline.errors import OVERTAKEN as OVERTAKEN_RULE
from pipeline.errors import Failed, Locked, PipelineError, Reason, Refused, Unreachable, UsageError
from pipeline.host_journal import Journal, JournalEntry, newest_entry
from pipeline.job import BUSY, INCOMPLETE, OVERTAKEN, RELEASE, Job, Told, library, script_text
from pipeline.model import Manifest
from pipeline.paths import path_text
from pipeline.payload import listing
from pipeline.transports import LineCut, Result, Transport, TurnedAway

BEGIN = b"tma-pipeline:begin\n"
REFUSED = 91

ABSENT = "the release is not there"
"""What :meth:`Host.verify` says when the whole folder is missing."""

KILLED = 128
"""An exit code above: ended by the signal of that number more."""

PATIENCE = 60.0
"""Seconds for which a host whose line was cut is asked again what became of its job."""

PARTS = {
    "append_journal": ("locks",),
    "journal": ("locks",),
    "inspect": ("locks", "survey"),
    "verify": ("survey",),
}
"""What of the library each script needs."""


@dataclass(frozen=True)
class HostFacts:
    """What :meth:`Host.inspect` found. ``free_*`` are None when the host does not tell.

    ``foreign`` lists what we did not put there, as sentences; ``ours``: there is a deployment journal;
    ``clock_offset_seconds``: the host's clock minus ours, to about a second; ``current`` is the release that serves.
    ``journal_*`` are of the newest entry; None when there is none, or when ``journal_damage`` says, as a sentence, what
    is wrong with it, with the entry before or with the numbers. Only :meth:`Host.journal` looks at every entry.
    """

    exists: bool
    ours: bool
    current: str | None
    releases: tuple[str, ...]
    foreign: tuple[str, ...]
    writable: bool
    user: str
    free_bytes: int | None
    free_inodes: int | None
    missing_tools: tuple[str, ...]
    clock_offset_seconds: float
    journal_number: int
    journal_sha256: str | None
    journal_customer: str | None = None
    journal_environment: str | None = None
    journal_record: str | None = None
    journal_record_sha256: str | None = None
    journal_fence: int | None = None
    journal_damage: str | None = None
    drift: tuple[str, ...] | None = None
    list_sha256: str | None = None
    substitutes: tuple[str, ...] = ()


class Host:
    """One host's folder. ``data`` names what else may lie in it: folders of the application's own, for its data."""

    def __init__(self, transport: Transport, name: str, folder: str, *, data: Sequence[str] = ()) -> None:
        if not folder.startswith("/") or any(part in ("", ".", "..") for part in folder[1:].split("/")):
            raise UsageError(
                f"the folder of host {name} must be absolute and without '..', '//' or a '/' at its end: {folder!r}."
            )
        self.transport = transport
        self.name = name
        self.folder = folder
        self._data = frozenset(data)
        self._journal = Journal(self.ask, name)

    # --- looking ------------------------------------------------------------------------------------------------------

    def inspect(self) -> HostFacts:
        """The host's folder as it is now; changes nothing."""
        before = time.time()
        result = self.ask("inspect", what="looking at the host's folder")
        ours_clock = (before + time.time()) / 2
        facts: dict[str, list[str]] = {}
        # Not splitlines(): a name may hold other characters that it takes for the end of a line.
        for line in result.stdout.decode("utf-8", "replace").split("\n"):
            name, _, value = line.partition(" ")
            facts.setdefault(name, []).append(value)
        free_bytes, free_inodes = _free(facts)
        foreign = facts.get("foreign", [])
        foreign += [f"{name} was not put there by us" for name in facts.get("other", []) if name not in self._data]
        drift = [line[6:] for line in result.stdout.split(b"\n") if line.startswith(b"drift ")]
        number, digest, newest = 0, None, None
        damage = facts.get("journal_damage", [None])[0]
        if "journal" in facts:
            name, digest = facts["journal"][0].rsplit(" ", 1)
            number = int(name[:6])
            if damage is None:
                data = next(data[14:] for data in result.stdout.split(b"\n") if data.startswith(b"journal_entry "))
                previous = facts.get("journal_previous", [None])[0]
                newest, damage = newest_entry(name, data, digest, previous, self.name)
        elif damage is None:
            foreign += [
                f"{name} is there, and no deployment journal" for name in facts.get("other", []) if name in self._data
            ]
            foreign += [f"releases/{name} is there, and no deployment journal" for name in facts.get("release", [])]
        return HostFacts(
            exists="exists" in facts,
            ours=digest is not None or damage is not None,
            current=facts.get("current", [None])[0],
            releases=tuple(facts.get("release", [])),
            foreign=tuple(foreign),
            writable="unwritable" not in facts,
            user=facts["user"][0],
            free_bytes=free_bytes,
            free_inodes=free_inodes,
            missing_tools=tuple(facts.get("missing", [])),
            clock_offset_seconds=round(int(facts["now"][0]) - ours_clock, 1),
            journal_number=number,
            journal_sha256=digest,
            journal_customer=newest.customer if newest else None,
            journal_environment=newest.environment if newest else None,
            journal_record=newest.record if newest else None,
            journal_record_sha256=newest.record_sha256 if newest else None,
            journal_fence=newest.fence if newest else None,
            journal_damage=damage,
            drift=tuple(sentences(b"\n".join(drift))) if "compared" in facts else None,
            list_sha256=facts.get("list", [None])[0],
            substitutes=tuple(facts.get("substitute", [])),
        )

    def verify(self, release: str, manifest: Manifest) -> list[str]:
        """How the files of an installed release differ from ``manifest``, by content; empty when they do not.

        One sentence a file: changed, missing, not of the release, another mode, another link target.
        """
        result = self.ask(
            "verify", _name(release), stdin=listing(manifest), timeout=900, what=f"comparing release {release}"
        )
        return sentences(result.stdout)

    def verify_shared(self) -> list[str]:
        """How the files that we rendered into ``shared/`` differ from what we wrote there, one sentence a file."""
        lines = self.ask("verify_shared", what="comparing the configuration").stdout.decode("utf-8", "replace")
        found = (line.partition(" ") for line in lines.splitlines() if line)
        said = {"missing": "is missing", "changed": "was changed"}
        return [f"shared/{name} {said.get(word, word)}" for word, _, name in found]

    # --- changing -----------------------------------------------------------------------------------------------------

    def carry(
        self,
        job: Job,
        *,
        on_step: Callable[[int], None] = lambda number: None,
        on_trouble: Callable[[str], None] = lambda text: None,
        patience: float = PATIENCE,
    ) -> Told:
        """What became of the job's steps, as the host tells. A failed one is among them, not an error.

        A line that is cut changes nothing on the host: the same job is sent again, finds what is done in the journal, and
        waits for what still runs. So it is, once, when the job is killed on the host. LineCut when the host cannot be asked
        for ``patience`` seconds: the outcome is not known. Refused when a later run has taken over; Locked when another
        run's step does not end; Failed when the job itself cannot run there.
        """
        job.check()
        run = job.entry.run
        asked_until = None
        incomplete = 0
        killed = False
        while True:
            told = Told(on_step, lambda: on_trouble(f"{self.name}: waiting for a step that still runs there"))
            try:
                result = self.transport.stream(
                    library("receive"),
                    (self.folder, run, f"{job.limit:.0f}"),
                    stdin=job.stream(),
                    on_line=told.line,
                )
                # The way back finds the room that was kept for it at the second try.
                incomplete += result.exit_code == INCOMPLETE
                if result.exit_code > KILLED and told.silent and not killed:
                    killed = True
                    on_trouble(
                        f"the job on {self.name} was killed there (exit code {result.exit_code}); it is sent again"
                    )
                    continue
                if result.exit_code != INCOMPLETE or incomplete > (job.direction == "back"):
                    return self._judged(told, result)
                continue
            except LineCut as cut:
                trouble: Exception = cut
            except Unreachable as unreachable:
                # At the first try nothing was begun; later the host is just not back yet.
                if asked_until is None:
                    raise
                trouble = unreachable
            if asked_until is None or told.heard:
                asked_until = time.monotonic() + patience
            if time.monotonic() >= asked_until or isinstance(trouble, TurnedAway):
                raise trouble if isinstance(trouble, LineCut) else LineCut(str(trouble))
            said = trouble.what if isinstance(trouble, PipelineError) else str(trouble)
            on_trouble(f"{said}; asking {self.name} what became of it")
            with suppress(Exception):
                self.transport.close()
            time.sleep(1)

    def guarded(self, fence: int) -> Host:
        """This host for a run with this fence: its transport runs nothing once a later run has taken over.

        For what is done through the host rather than by a job of its own. Each script holds the host's lock while it
        runs. Refused when overtaken, Locked when another run's step does not end.
        """
        host = Host(self.transport, self.name, self.folder, data=tuple(self._data))
        host.transport = _Guarded(self.transport, self.name, self.folder, fence)
        return host

    def _judged(self, told: Told, result: Result) -> Told:
        if told.overtaken is not None:
            raise _overtaken(self.name, f"its journal holds the fence {told.overtaken}")
        if told.busy:
            raise _busy(self.name)
        if told.refusals:
            raise Refused(
                f"{self.folder} on {self.transport.name} cannot be deployed to.",
                reasons=[Reason(text, self.name) for text in told.refusals],
            )
        if result.exit_code == INCOMPLETE:
            raise Failed(
                f"what was sent did not arrive whole on {self.name}.",
                reasons=[Reason(line, self.name) for line in _last_words(result)],
                state="It was removed again; nothing was begun.",
            )
        if told.silent:
            raise Failed(
                f"the job on {self.name} did not end as it should (exit code {result.exit_code}).",
                reasons=[Reason(line, self.name) for line in _last_words(result)],
                state="It may have been done in part; doing it again is safe.",
            )
        return told

    def journal(self) -> list[JournalEntry]:
        """See :meth:`pipeline.host_journal.Journal.entries`."""
        return self._journal.entries()

    def append_journal(self, entry: JournalEntry) -> JournalEntry:
        """See :meth:`pipeline.host_journal.Journal.append`."""
        return self._journal.append(entry)

    # --- speaking -----------------------------------------------------------------------------------------------------

    def ask(
        self,
        script: str,
        *arguments: str,
        what: str,
        stdin: bytes | Iterable[bytes] = b"",
        timeout: float = 120,
        accepted: Sequence[int] = (0,),
    ) -> Result:
        """The result of one of our scripts that changes nothing of a release; ``what`` it is doing, for errors.

        Refused or Failed unless its exit code is among ``accepted``.
        """
        words = (self.folder, *arguments)
        result = self.transport.run(library(*PARTS.get(script, ()), script), words, stdin=stdin, timeout=timeout)
        result = replace(result, stdout=result.stdout.partition(BEGIN)[2])
        if result.exit_code in accepted:
            return result
        said = _last_words(result)
        if result.exit_code == REFUSED:
            raise Refused(f"{what} on {self.name} was refused.", reasons=[Reason(line, self.name) for line in said])
        if result.timed_out:
            said.insert(0, f"it took longer than {timeout:g} seconds and was ended")
        raise Failed(
            f"{what} on {self.name} did not work (exit code {result.exit_code}).",
            reasons=[Reason(line, self.name) for line in said],
            state="It may have been done in part; doing it again is safe.",
        )


class _Guarded:
    """A transport whose scripts run under the host's lock, and only while no later run has taken over."""

    def __init__(self, transport: Transport, host: str, folder: str, fence: int) -> None:
        self._transport, self._host, self._folder, self._fence = transport, host, folder, fence
        self.name, self.dial, self.forward = transport.name, transport.dial, transport.forward
        self.stream, self.close, self.connect = transport.stream, transport.close, transport.connect

    def run(self, script: str, arguments: Sequence[str] = (), **options: Any) -> Result:
        words = (self._folder, str(self._fence), script, *arguments)
        result = self._transport.run(_guard(), words, **options)
        if result.exit_code == OVERTAKEN:
            raise _overtaken(self._host, f"its journal holds a fence above {self._fence}")
        if result.exit_code == BUSY:
            raise _busy(self._host)
        return result


@cache
def _guard() -> str:
    return "\n".join(script_text(part) for part in ("locks", "guard"))


def _overtaken(host: str, said: str) -> Refused:
    return Refused(
        f"this run was overtaken: {host} has seen a later one.",
        reasons=[Reason(said, host, OVERTAKEN_RULE)],
        state="This run must not change anything any more.",
    )


def _busy(host: str) -> Locked:
    return Locked(f"a step of another run still works on {host}.", state="Nothing was begun on it.")


def _last_words(result: Result) -> list[str]:
    return [line for line in result.stderr.decode("utf-8", "replace").splitlines() if line.strip()][-8:]


def _name(text: str) -> str:
    if not RELEASE.fullmatch(text):
        raise UsageError(f"{text!r} cannot be the name of a release or run on a host.")
    return text


def _free(facts: dict[str, list[str]]) -> tuple[int | None, int | None]:
    """Free bytes and inodes of which ``stat -f`` or else ``df`` tells; None for what it does not, or has no number of."""
    told = [int(word) if word.isdecimal() else -1 for word in facts.get("free", [""])[0].split()]
    if len(told) == 5:
        blocks, block_size, all_blocks, inodes, all_inodes = told
        # What makes inodes as they are needed counts none; nothing is counted where nothing is stored.
        return (
            blocks * block_size if blocks >= 0 and block_size > 0 and all_blocks > 0 else None,
            inodes if inodes >= 0 and all_inodes > 0 else None,
        )
    return (
        _available(facts.get("df_kilobytes", [""])[0], 1024),
        _available(facts.get("df_inodes", [""])[0], 1),
    )


def _available(df_line: str, unit: int) -> int | None:
    """The number before the percentage in a line of ``df -P`` (POSIX), in units of ``unit``."""
    found = re.search(r" (\d+) +\d+% ", df_line)
    return int(found[1]) * unit if found else None


def sentences(differences: bytes) -> list[str]:
    """What ``host_scripts/survey.sh`` found to differ (its lines ``< …`` and ``> …``), one sentence a name."""
    lines = [line for line in differences.split(b"\n") if line]
    if lines == [b"absent"]:
        return [ABSENT]
    sides: dict[bytes, dict[str, tuple[str, str]]] = {b"<": {}, b">": {}}
    for line in lines:
        mode, digest, name = (*line[2:].split(b" ", 2), b"", b"")[:3]
        name = name.removeprefix(b" ")
        raw = bytes.fromhex(name[2:].decode()) if name.startswith(b"x:") else name.removeprefix(b"./")
        sides[line[:1]][path_text(raw)] = (mode.decode(), digest.decode())
    expected, found = sides[b"<"], sides[b">"]
    return [_sentence(name, expected.get(name), found.get(name)) for name in sorted(expected.keys() | found.keys())]


def _sentence(name: str, expected: tuple[str, str] | None, found: tuple[str, str] | None) -> str:
    if found is None:
        return f"{name} is missing"
    if found[0] == "unreadable":
        return f"{'some of the release' if name == '.' else name} cannot be read by us"
    if expected is None:
        return f"{name} does not belong to the release"
    if "120000" in (found[0], expected[0]) or found[0] in ("folder", "other"):
        return f"{name} is another kind of file or points elsewhere"
    if found[1] == expected[1]:
        return f"{name} has another mode than {expected[0][2:]}"
    return f"{name} was changed"
