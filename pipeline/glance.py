"""The little of a workspace that a look at it needs, read without the models: where the ledgers are, which customers there are.

Loading the models costs more than all the rest of ``status``. So the files are read by the same strict reader, and a look is
content only with what is plainly right: every key known, every value a text of the right form. Whatever else it meets it
leaves (None) to :mod:`pipeline.settings`, which then says what is wrong and where; nothing is passed over in silence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.strict_yaml import MAX_BYTES, parse

ENVIRONMENTS = ("test", "integration", "production")
"""The keys that an environment can have, in the order in which they are shown."""

WORKSPACE_KEYS = frozenset(
    {"installations", "ssh_config", "known_hosts", "signing_key", "work", "hint_unreachable", "local_while"}
)
CUSTOMER_TEXTS = frozenset(
    {"key", "name", "language", "time_zone", "product", "party", "installations", "ticket_prefix", "tracker"}
)
CUSTOMER_KEYS = CUSTOMER_TEXTS | {"approvers", "team", "sign_off_days"}

_KEY = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_REFERENCE = re.compile(r"(env|file):.+")
_FILES = frozenset({"customer.yaml", *(f"{key}.yaml" for key in ENVIRONMENTS)})


@dataclass(frozen=True)
class Installations:
    """One installations repository as workspace.yaml names it; ``path`` or ``remote`` is None."""

    name: str
    path: str | None
    remote: str | None


@dataclass(frozen=True)
class CustomerGlance:
    """Of one customer.yaml: the product, who may sign off, the clock, and the repository where one is named."""

    product: str
    approvers: tuple[str, ...]
    time_zone: str
    installations: str | None


class Glance:
    """A workspace at a glance; made by :func:`glance`. ``work`` is the folder for mirrors, as written."""

    def __init__(self, folder: Path, work: str, installations: tuple[Installations, ...]) -> None:
        self.folder = folder
        self.work = work
        self.installations = installations

    def customers(self) -> dict[str, tuple[str, ...]] | None:
        """Every customer's key with those of its environments, sorted; None where a file in a folder is no environment."""
        found: dict[str, tuple[str, ...]] = {}
        for key in sorted(os.listdir(self.folder / "environments")):  # noqa: PTH208 (thousands: a Path each is slow)
            if not key.endswith(".yaml"):
                environments = self.environments(key)
                if environments is not None:
                    found[key] = environments
                elif os.path.isfile(f"{self.folder}/environments/{key}/customer.yaml"):  # noqa: PTH113
                    return None
        return found

    def environments(self, customer: str) -> tuple[str, ...] | None:
        """The keys of one customer's environments, by the names of their files; None for what is no plain customer."""
        if not _KEY.fullmatch(customer):
            return None
        try:
            names = os.listdir(f"{self.folder}/environments/{customer}")  # noqa: PTH208
        except OSError:
            return None
        if "customer.yaml" not in names:
            return None
        if any(name not in _FILES and name.endswith((".yaml", ".yml")) for name in names):
            return None
        return tuple(key for key in ENVIRONMENTS if f"{key}.yaml" in names)

    def customer(self, key: str) -> CustomerGlance | None:
        """What customer.yaml says; None where it is not plainly right."""
        value = _plainly(self.folder, f"environments/{key}/customer.yaml")
        if value is None or not CUSTOMER_KEYS.issuperset(value) or value.get("key", key) != key:
            return None
        if any(not isinstance(value[name], str) for name in CUSTOMER_TEXTS.intersection(value)):
            return None
        approvers = value.get("approvers")
        if not isinstance(approvers, list) or not approvers or not all(_is_key(name) for name in approvers):
            return None
        if not {"name", "language", "time_zone"}.issubset(value) or not _is_key(value.get("product")):
            return None
        named = value.get("installations")
        if named is not None and named not in {entry.name for entry in self.installations}:
            return None
        return CustomerGlance(value["product"], tuple(approvers), value["time_zone"], named)


def glance(folder: Path) -> Glance | None:
    """The workspace in ``folder``; None where its workspace.yaml is not plainly right."""
    value = _plainly(folder, "environments/workspace.yaml")
    if value is None or not WORKSPACE_KEYS.issuperset(value):
        return None
    if not all(isinstance(value[key], str) for key in value if key != "installations"):
        return None
    entries, key = value.get("installations"), value.get("signing_key", "file:x")
    if not isinstance(entries, list) or not entries or not _REFERENCE.fullmatch(key):
        return None
    found = []
    for entry in entries:
        if not isinstance(entry, dict) or not {"name", "path", "remote"}.issuperset(entry):
            return None
        if not all(isinstance(text, str) for text in entry.values()) or ("path" in entry) == ("remote" in entry):
            return None
        found.append(Installations(entry.get("name", "main"), entry.get("path"), entry.get("remote")))
    names = [entry.name for entry in found]
    if len(set(names)) != len(names) or not all(map(_is_key, names)):
        return None
    return Glance(folder, value.get("work", "var"), tuple(found))


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def _plainly(folder: Path, name: str) -> Mapping[str, Any] | None:
    """The keys and values of a file in which the strict reader finds no fault."""
    try:
        with (folder / name).open("rb") as file:
            data = file.read() if os.fstat(file.fileno()).st_size <= MAX_BYTES else b""
    except OSError:
        return None
    source = parse(name, data)
    return source.value if not source.problems and isinstance(source.value, dict) else None
