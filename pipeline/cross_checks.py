"""What a file of the workspace must agree with beyond its own shape: other files, time zones, keys, times.

Each check yields a Reason with its place for every fault that it finds, so that one error names them all.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pipeline.errors import Reason
from pipeline.model import RESERVED_NAMES, Customer, Environment, People, WorkspaceSettings
from pipeline.strict_yaml import Source
from pipeline.suggest import did_you_mean

_MAX_SMALL_FILE = 64 * 1024
_ED25519_BLOB = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"
_WRITTEN_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def check_workspace(settings: WorkspaceSettings, source: Source) -> Iterator[Reason]:
    """Repositories of installations have names of their own, and each is either a path or a remote."""
    yield from _twice([repository.name for repository in settings.installations], source, "installations", "name")
    for number, repository in enumerate(settings.installations):
        if (repository.path is None) == (repository.remote is None):
            yield Reason("a repository has either path: or remote:", source.position("installations", number))


def check_people(people: People, source: Source, folder: Path) -> Iterator[Reason]:
    """Keys of people are their own, signing keys are Ed25519 keys of one person only, and valid forwards in time."""
    yield from _twice([person.key for person in people.people], source, "people", "key")
    owners: dict[bytes, str] = {}
    for number, person in enumerate(people.people):
        for index, key in enumerate(person.keys):
            at = ("people", number, "keys", index)
            if key.valid_from and key.valid_until and key.valid_until < key.valid_from:
                yield Reason("valid_until is before valid_from", source.position(*at, "valid_until"))
            public: str | None = key.public
            if key.public.startswith("file:"):
                path = folder / Path(key.public[5:]).expanduser()
                if not os.path.lexists(path):
                    continue
                public = public_key(path)
            blob = _blob(public or "")
            if blob is None:
                what = f"{key.public[5:]} holds" if key.public.startswith("file:") else "this is"
                yield Reason(f"{what} no Ed25519 public key of OpenSSH", source.position(*at, "public"))
            elif owners.setdefault(blob, person.key) != person.key:
                yield Reason(f"{owners[blob]} has this key too", source.position(*at, "public"))


def check_customer(
    customer: Customer, source: Source, *, people: People, settings: WorkspaceSettings, products: Sequence[str]
) -> Iterator[Reason]:
    """Name, time zone, product, repository, approvers and team exist; approvers have the role and serve the customer."""
    if customer.key in RESERVED_NAMES:
        yield Reason(f"'{customer.key}' is a reserved name; rename the folder", source.position())
    if not _is_time_zone(customer.time_zone):
        from zoneinfo import available_timezones

        near = did_you_mean(customer.time_zone, available_timezones())
        yield Reason(f"there is no time zone '{customer.time_zone}'{near}", source.position("time_zone"))
    if customer.product not in products:
        near = did_you_mean(customer.product, products)
        yield Reason(f"there is no playbooks/{customer.product}.yaml{near}", source.position("product"))
    names = [repository.name for repository in settings.installations]
    if customer.installations is not None and customer.installations not in names:
        near = did_you_mean(customer.installations, names)
        yield Reason(
            f"environments/workspace.yaml has no installations repository '{customer.installations}'{near}",
            source.position("installations"),
        )
    for field, listed in (("approvers", customer.approvers), ("team", customer.team)):
        yield from _twice(listed, source, field)
        for number, key in enumerate(listed):
            for fault in _unfit(people, key, customer.key, approver=field == "approvers"):
                yield Reason(fault, source.position(field, number))


def _unfit(people: People, key: str, customer: str, *, approver: bool) -> Iterator[str]:
    person = people.find(key)
    if person is None:
        known = [other.key for other in people.people if not approver or "approver" in other.roles]
        yield f"environments/people.yaml has no '{key}'{did_you_mean(key, known)}"
        return
    if approver and "approver" not in person.roles:
        yield f"'{key}' has not the role approver in environments/people.yaml"
    if not person.serves(customer):
        yield f"'{key}' does not list the customer {customer} in environments/people.yaml"


def check_environment(environment: Environment, source: Source, *, relative: bool) -> Iterator[Reason]:
    """Hosts have names of their own and a full folder, the database what its engine needs, times go forwards.

    ``relative``: folders relative to the workspace are good over ssh too, since this machine may stand for the hosts.
    """
    yield from _twice([host.name for host in environment.hosts], source, "hosts", "name")
    for number, host in enumerate(environment.hosts):
        if environment.transport == "ssh" and not relative and not host.folder.startswith("/"):
            yield Reason(
                "folder: must be absolute on a host reached by ssh", source.position("hosts", number, "folder")
            )
        if ".." in host.folder.split("/"):
            yield Reason("folder: must not hold '..'", source.position("hosts", number, "folder"))
    database = environment.database
    if database is not None:
        needed = ("path",) if database.engine == "sqlite" else ("name", "user")
        for field in needed:
            if getattr(database, field) is None:
                yield Reason(f"{field} is missing, {database.engine} needs it", source.position("database"))
        if database.scratch is not None and database.scratch == database.name:
            yield Reason(
                "scratch: is another database than name:, since rehearsals destroy what is in it",
                source.position("database", "scratch"),
            )
        if database.engine != "sqlite" and database.backup.proof == "restore" and database.scratch is None:
            yield Reason(
                "proof: restore needs scratch:, the database into which a backup is restored on trial",
                source.position("database", "backup", "proof"),
            )
        if database.tls_ca is not None and database.tls == "off":
            yield Reason("tls_ca: is for tls: verify-full", source.position("database", "tls_ca"))
    for number, window in enumerate(environment.windows):
        at = ("windows", number)
        if window.start == window.until:
            yield Reason("a window ends at another time than it starts", source.position(*at, "until"))
        for field in ("start", "until"):
            if getattr(window, field).tzinfo is not None:
                yield Reason(
                    f"{field}: is a time in the customer's zone, without an offset", source.position(*at, field)
                )
    for number, freeze in enumerate(environment.freezes):
        at = ("freezes", number)
        for field in ("start", "until"):
            # A text of digits only would count as seconds since 1970: a freeze that silently never holds.
            if not _WRITTEN_DATE.match(str(source.value["freezes"][number][field])):
                yield Reason(
                    f"{field}: expected an instant, for instance 2026-11-22T20:00:00Z", source.position(*at, field)
                )
        if freeze.until <= freeze.start:
            yield Reason("until is not after start", source.position(*at, "until"))


def public_key(path: Path) -> str | None:
    """The OpenSSH Ed25519 public key in the first line of this file, None when there is none."""
    text, _ = small_text(path)
    line = text.strip().split("\n")[0].strip()
    return line if _blob(line) is not None else None


def small_text(path: Path) -> tuple[str, str | None]:
    """A small file's text, and why it could not be read; the reason never holds a part of the text."""
    try:
        if not path.is_file():
            return "", "the file does not exist" if not os.path.lexists(path) else "it is not a plain file"
        with path.open("rb") as file:
            data = file.read(_MAX_SMALL_FILE + 1)
    except (OSError, ValueError) as error:
        return "", f"the file cannot be read: {getattr(error, 'strerror', None) or 'not a file name'}"
    if len(data) > _MAX_SMALL_FILE:
        return "", f"the file is larger than {_MAX_SMALL_FILE // 1024} KiB"
    try:
        return data.decode("utf-8"), None
    except UnicodeDecodeError:
        return "", "the file is not UTF-8 text"


def _twice(names: Iterable[str], source: Source, field: str, within: str | None = None) -> Iterator[Reason]:
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            place = (field, number, within) if within else (field, number)
            yield Reason(f"'{name}' is there twice", source.position(*place))
        seen.add(name)


def _blob(public: str) -> bytes | None:
    """The key's bytes (RFC 8709: name, then 32 bytes), None when this is no Ed25519 public key."""
    words = public.split()
    if len(words) < 2 or words[0] != "ssh-ed25519":
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    return blob if blob.startswith(_ED25519_BLOB) and len(blob) == len(_ED25519_BLOB) + 32 else None


def _is_time_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True
