"""The deployment journal on a host: immutable files, one an entry, each with the SHA-256 of the one before.

It is the auditor's second source: it shows a ledger that was cut short. It is never cleaned.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from typing import Annotated

import rfc8785
from pydantic import Field, StringConstraints

from pipeline.errors import OVERTAKEN, Failed, Reason, Refused
from pipeline.model import Instant, Key, Noun, Outcome, Sha256
from pipeline.transports import Result

JOURNAL_SCHEMA = 2
"""Since 2 an entry names the step that it is about; entries of 1 stay as they were written."""
RACED = 93
ATTEMPTS = 5
FILE_NAME = re.compile(r"journal/(\d{6})-([a-z0-9-]+)\.json")


class JournalEntry(Noun):
    """One entry; its bytes are the RFC 8785 form. ``number`` and ``previous`` are filled in when it is appended.

    ``what`` says what happened, in words of letters and hyphens (``deployment-started``); ``record`` and
    ``record_sha256`` name the ledger's record; ``attested_by`` is reserved for a result that a person reports. ``step``
    and ``inputs`` (of ``step-started``, ``step-finished``, and on the way back ``back-started``, ``back-finished``) are
    the action's number in the plan and the SHA-256 of what it was done with.
    """

    schema_version: int = JOURNAL_SCHEMA
    number: int = Field(0, ge=0, le=999_999)
    previous: Sha256 | None = None
    run: str
    fence: int = Field(ge=0)
    customer: Key
    environment: str
    release: str | None = None
    content: Sha256 | None = None
    at: Instant
    what: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
    outcome: Outcome | None = None
    record: str | None = None
    record_sha256: Sha256 | None = None
    attested_by: str | None = None
    step: int | None = Field(None, ge=0, le=99_999)
    inputs: Sha256 | None = None

    @property
    def file_name(self) -> str:
        """``000001-deployment-started.json``."""
        return f"{self.number:06d}-{self.what}.json"

    def data(self) -> bytes:
        """The canonical bytes."""
        new = {"step", "inputs"} if self.schema_version < 2 else set()
        return rfc8785.dumps(self.model_dump(mode="json", exclude=new))

    def common(self) -> tuple[str, str]:
        """What all entries of one attempt have in common, as the two parts of RFC 8785 text that ``steps.sh`` fills in.

        They stand after ``at``, and between ``previous`` and ``step``, in the order of RFC 8785 (3.2.3).
        """
        values = json.loads(self.data())

        def part(*names: str) -> str:
            return rfc8785.dumps({name: values[name] for name in names}).decode()[1:-1]

        return (
            part("attested_by", "content", "customer", "environment", "fence"),
            part("record", "record_sha256", "release", "run", "schema_version"),
        )


class Journal:
    """Reads and appends, through a host's ``run(script, *arguments, what=, …)``."""

    def __init__(self, run: Callable[..., Result], host: str) -> None:
        self._run = run
        self._host = host

    def entries(self) -> list[JournalEntry]:
        """All entries, oldest first.

        Raises Failed, with every finding, when one was changed, removed or slipped in; Refused, naming the version
        needed, when one was written by a newer version of this tool.
        """
        findings: list[Reason] = []
        entries: list[JournalEntry] = []
        previous = None
        for position, (name, data) in enumerate(self._files(), 1):
            place = f"{self._host}:{name}"
            match = FILE_NAME.fullmatch(name)
            entry = parse_entry(data, place)
            if match is None or entry is None:
                findings.append(Reason("it is no journal entry", place))
            else:
                if entry.data() != data:
                    findings.append(Reason("its bytes are not in canonical form", place))
                if f"journal/{entry.file_name}" != name or entry.number != position:
                    findings.append(Reason(f"entry {position} was expected here", place))
                if entry.previous != previous:
                    findings.append(Reason("the entry before is not the one that this entry was written after", place))
                entries.append(entry)
            previous = hashlib.sha256(data).hexdigest()
        if findings:
            raise Failed(
                f"the deployment journal on {self._host} is not as it was written.", reasons=findings, state=""
            )
        return entries

    def append(self, entry: JournalEntry) -> JournalEntry:
        """The entry as written, with its number and the hash of the one before.

        Refused when the host has seen a higher fence, also for an entry that is there already: another attempt has
        taken over. An entry of the same run, record, fence, ``what`` and outcome is given back instead of written, so
        that it can be done again after a crash; a later attempt of the run has its own record and raises the fence.
        """
        for _ in range(ATTEMPTS):
            entries = self.entries()
            highest = max((known.fence for known in entries), default=0)
            if highest > entry.fence:
                raise Refused(
                    f"run {entry.run} was overtaken: {self._host} has seen a later one.",
                    reasons=[
                        Reason(
                            f"fence {highest} is above this run's {entry.fence}", f"journal of {self._host}", OVERTAKEN
                        )
                    ],
                    state="This run must not change anything any more.",
                )
            for known in entries:
                if _same(known, entry):
                    return known
            last = entries[-1] if entries else None
            written = entry.model_copy(
                update={
                    "number": last.number + 1 if last else 1,
                    "previous": hashlib.sha256(last.data()).hexdigest() if last else None,
                }
            )
            result = self._run(
                "append_journal",
                written.file_name,
                last.file_name if last else "",
                stdin=written.data(),
                accepted=(0, RACED),
                what="writing the deployment journal",
            )
            if result.exit_code != RACED:
                return written
        raise Failed(f"somebody else keeps writing the deployment journal on {self._host}.")

    def _files(self) -> list[tuple[str, bytes]]:
        packed = self._run("journal", what="reading the deployment journal").stdout
        if not packed:
            return []
        files = []
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() or member.islnk() else None
                if not member.isdir():
                    files.append((member.name, content.read() if content else b""))
        return sorted(files)


def _same(known: JournalEntry, entry: JournalEntry) -> bool:
    return all(getattr(known, name) == getattr(entry, name) for name in ("run", "record", "fence", "what", "outcome"))


def parse_entry(data: bytes, place: str) -> JournalEntry | None:
    """The entry of these bytes, None when it is none; Refused, naming the version needed, when it is a newer one."""
    try:
        value = json.loads(data)
        schema = value["schema_version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if isinstance(schema, int) and schema > JOURNAL_SCHEMA:
        raise Refused(
            "the deployment journal was written by a newer version of this tool.",
            reasons=[Reason(f"schema {schema} is needed, this version knows {JOURNAL_SCHEMA}", place)],
            next_commands=["install a version of tma-pipeline that knows it"],
        )
    try:
        entry = JournalEntry.model_validate_json(data)
        entry.data()
    except ValueError:  # pydantic's, or a value that has no canonical form
        return None
    return entry


def newest_entry(
    name: str, line: bytes, sha256: str, previous: str | None, host: str
) -> tuple[JournalEntry | None, str | None]:
    """The newest entry as ``host_scripts/inspect.sh`` prints it, and what is wrong with it.

    ``previous`` is the SHA-256 of the entry before, None when there is none. An entry that is damaged is not given.
    """
    place = f"journal/{name}"
    # The line was made fit for a line: what is not its bytes any more never was an entry.
    if hashlib.sha256(line).hexdigest() != sha256:
        return None, f"{place} is no journal entry"
    try:
        entry = parse_entry(line, f"{host}:{place}")
    except Refused as newer:
        return None, f"{place}: {newer.what} {newer.reasons[0].text}"
    if entry is None or entry.data() != line:
        return None, f"{place} is no journal entry"
    if entry.file_name != name:
        return None, f"{place} holds entry {entry.number}, {entry.what}"
    if entry.previous != previous:
        return None, f"{place} was not written after the entry that now stands before it"
    return entry, None
