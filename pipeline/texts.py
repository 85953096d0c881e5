"""What a person may ask to have erased: names, mails, ticket texts, remarks, attachments.

They lie outside the ledger, on the branch ``refs/heads/<customer>/texts``: one parentless commit that is overwritten, a
file per text, named by the SHA-256 of a fresh 16-byte salt and the text's bytes. The ledger holds only these names, so
that a text can be erased and every chain of records stays verifiable; the salt keeps a short text from being guessed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.content import canonical

if TYPE_CHECKING:
    from pipeline.repository import Repository

SALT_BYTES = 16
HASH = re.compile(r"[0-9a-f]{64}")
LEFTOVER_AGE = 3600.0
"""Seconds after which an unfinished pack counts as left by a killed process; a slow fetch still writes to a newer one."""


@dataclass(frozen=True)
class Text:
    """One text as it lies on the branch: ``value`` is what was given, ``hash`` the file's name."""

    customer: str
    salt: bytes
    value: str | bytes

    @property
    def data(self) -> bytes:
        """The text as bytes; UTF-8 when it was given as ``str``."""
        return self.value.encode() if isinstance(self.value, str) else self.value

    @property
    def hash(self) -> str:
        """SHA-256 of the salt and the bytes: all that the ledger holds of it."""
        return hashlib.sha256(self.salt + self.data).hexdigest()

    def encode(self) -> bytes:
        """The file's bytes: RFC 8785 JSON with the customer, the salt and the text."""
        document: dict[str, Any] = {"customer": self.customer, "salt": self.salt.hex()}
        if isinstance(self.value, str):
            document["text"] = self.value
        else:
            document["base64"] = base64.b64encode(self.value).decode("ascii")
        return canonical(document)


def new_text(customer: str, value: str | bytes) -> Text:
    """A text with a fresh salt. Never reuse one: a salt that was erased must not come back."""
    return Text(customer=customer, salt=secrets.token_bytes(SALT_BYTES), value=value)


def decode(data: bytes) -> Text | None:
    """The text in a file's bytes, or None when they are not the form of :meth:`Text.encode`."""
    try:
        document = json.loads(data)
        value = document["text"] if "text" in document else base64.b64decode(document["base64"], validate=True)
        text = Text(customer=document["customer"], salt=bytes.fromhex(document["salt"]), value=value)
        return text if text.encode() == data else None
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return None


def copies_of(repository: Repository, customer: str, hashes: Collection[str], known: Iterable[Text]) -> list[str]:
    """Ids of blobs that no ref leads to and that are one of these hashes, or hold the bytes of a ``known`` text.

    A run that was killed, or that lost a race, left them. Call it before the refs move: a writer that prepared the same
    text meanwhile loses its race then and writes it under a fresh salt, so that removing what is listed here never
    takes a text from a record.
    """
    blobs = unreachable_blobs(repository)
    found: dict[str, Text] = {}
    for oid, data in repository.read_stream(blobs):
        text = decode(data) if data is not None else None
        if text is not None and text.customer == customer:
            found[oid] = text
    same = {text.data for text in known} | {text.data for text in found.values() if text.hash in hashes}
    return [oid for oid, text in found.items() if text.hash in hashes or text.data in same]


def unreachable_blobs(repository: Repository) -> list[str]:
    """Ids of every blob of the repository that no ref leads to."""
    listed = repository.git(
        "cat-file", "--batch-all-objects", "--batch-check=%(objecttype) %(objectname)", "--unordered"
    )
    reached = repository.git("rev-list", "--objects", "--no-object-names", "--all").stdout.decode().split()
    blobs = {line[5:] for line in listed.stdout.decode().splitlines() if line.startswith("blob ")}
    return sorted(blobs.difference(reached))


def remove_leftover_packs(repository: Repository) -> None:
    """Removes the unfinished packs and objects of writers that were killed: they can hold texts that nothing names."""
    oldest = time.time() - LEFTOVER_AGE
    for pattern in ("pack/tmp_*", "??/tmp_obj_*"):
        for path in (repository.path / "objects").glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()
