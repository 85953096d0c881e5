"""Whether one host can take a release: what was seen there, and every reason against it, before anything is done.

Pure. :mod:`pipeline.rules` refuses a deployment with these reasons; ``doctor`` shows them for every host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import Reason

MARGIN_BYTES = 16 * 1024 * 1024
MARGIN_INODES = 200
"""Free beyond what the release itself takes, for the journal, the configuration and the folders."""

CLOCK_WARNING, CLOCK_REFUSAL = 5.0, 300.0
"""Seconds between the host's clock and ours: records and journals are compared, and certificates expire, by them."""


@dataclass(frozen=True)
class HostFacts:
    """What was seen on one host: ``current`` release, what lies there that we did not put, and drift.

    ``journal`` says what in its deployment journal does not agree with the ledger. ``releases`` are there, beside
    ``current``. ``free_*`` are None where the host does not tell; ``clock_offset_seconds`` is its clock minus ours.
    ``substitutes`` are sentences: a protection that the host lacks, and what is done instead. ``list_sha256`` is that of
    the list of what serves there, None where the host keeps no such list.
    """

    name: str
    current: str | None
    foreign: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    missing_tools: tuple[str, ...] = ()
    journal: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    user: str = "the user"
    writable: bool = True
    free_bytes: int | None = None
    free_inodes: int | None = None
    clock_offset_seconds: float = 0.0
    substitutes: tuple[str, ...] = ()
    list_sha256: str | None = None


@dataclass(frozen=True)
class DatabaseFacts:
    """What the database's server is: ``version`` in its own words, ``substitutes`` for what it lacks, ``refusals``.

    ``substitutes`` are sentences as for a host; ``refusals`` are the reasons for which no migration may run there.
    """

    version: str
    substitutes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Need:
    """What a release takes on a host: its name, bytes and files."""

    release: str
    size: int = 0
    files: int = 0


def not_ours(host: HostFacts) -> Iterator[Reason]:
    """The folder holds what we did not put there, or programs that we need are missing."""
    if host.foreign:
        yield Reason("the folder holds what this pipeline did not put there: " + ", ".join(host.foreign), host.name)
    if host.missing_tools:
        yield Reason("programs are missing on the host: " + ", ".join(host.missing_tools), host.name)


def not_writable(host: HostFacts) -> Iterator[Reason]:
    """The user that we log in as may not write to the folder."""
    if not host.writable:
        yield Reason(f"{host.user} may not write to the folder", host.name)


def no_room(host: HostFacts, need: Need) -> Iterator[Reason]:
    """Too few free bytes or inodes: what is sent is spooled and then unpacked, so that a release takes twice its size."""
    there = need.release in host.releases
    size = MARGIN_BYTES + (0 if there else 2 * need.size)
    inodes = MARGIN_INODES + (0 if there else 2 * need.files)
    if host.free_bytes is not None and host.free_bytes < size:
        yield Reason(f"{in_words(host.free_bytes)} are free, and {need.release} needs {in_words(size)}", host.name)
    if host.free_inodes is not None and host.free_inodes < inodes:
        yield Reason(f"{host.free_inodes} inodes are free, and {need.release} needs {inodes}", host.name)


def clock_is_wrong(host: HostFacts) -> Iterator[Reason]:
    """The host's clock and ours are minutes apart; which one is wrong is not known."""
    if abs(host.clock_offset_seconds) >= CLOCK_REFUSAL:
        yield Reason(
            f"its clock is {_apart(host.clock_offset_seconds)} ours; set the wrong one of the two right", host.name
        )


def objections(host: HostFacts, need: Need | None) -> tuple[Reason, ...]:
    """Everything that speaks against deploying to this host; without ``need`` its room is not looked at."""
    return (
        *not_ours(host),
        *not_writable(host),
        *(no_room(host, need) if need else ()),
        *clock_is_wrong(host),
        *(Reason(line, host.name) for line in host.journal),
    )


def warnings(host: HostFacts) -> tuple[str, ...]:
    """What refuses nothing, and is worth knowing."""
    found = [f"{host.name}: {substitute}" for substitute in host.substitutes]
    if CLOCK_WARNING <= abs(host.clock_offset_seconds) < CLOCK_REFUSAL:
        found.append(f"{host.name}: its clock is {_apart(host.clock_offset_seconds)} ours")
    return tuple(found)


def in_words(size: int) -> str:
    """Bytes for a person: ``12 bytes``, ``3.4 MB``."""
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _apart(offset: float) -> str:
    side = "ahead of" if offset > 0 else "behind"
    seconds = abs(offset)
    return f"{seconds:.0f} seconds {side}" if seconds < 120 else f"{seconds / 60:.0f} minutes {side}"
