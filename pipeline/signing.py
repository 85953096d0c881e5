"""Who signs a record: Ed25519 keys in OpenSSH form, matched to ``environments/people.yaml``.

The actor of a record is whoever's private key signs it; nobody types a name. A signature is the 64 raw bytes of
RFC 8032 over :data:`RECORD_CONTEXT` followed by the record's bytes, so that a signature made for something else never
fits a record.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.errors import ConfigurationError, Reason, UsageError
from pipeline.model import Actor, People, Person, SigningKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

RECORD_CONTEXT = b"tma-pipeline record 1\0"
"""Comes before the record's bytes in what is signed."""

PEOPLE = "environments/people.yaml"
MAKE_KEY = "invoke key.create person=KEY"
"""The next command of every error that a key would cure."""


@dataclass(frozen=True)
class Signer:
    """A person or service with the private key at hand: the actor of the records that it signs.

    ``key`` is the key in people.yaml, ``public_key`` the OpenSSH form without a comment. The private key is shown
    nowhere, not even in ``repr``.
    """

    key: str
    kind: Literal["person", "service"]
    public_key: str
    private: Ed25519PrivateKey = field(repr=False, compare=False)

    @property
    def actor(self) -> Actor:
        """The actor as records name it."""
        return Actor(key=self.key, kind=self.kind, public_key=self.public_key)

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of exactly these bytes; callers put :data:`RECORD_CONTEXT` first."""
        return self.private.sign(data)


def load_signer(path: Path, people: People, on: date, *, passphrase: bytes | None = None) -> Signer:
    """The signer whose private key is in this file; ``on`` is the day (UTC) on which the key must be valid.

    Raises :class:`UsageError` with the command that makes a key when there is none, when others can read it (the rule
    of OpenSSH), or when nobody in people.yaml has it.
    """
    try:
        status = path.stat()
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            "there is no signing key, and every record is signed",
            reasons=[Reason(error.strerror or "cannot be read", str(path))],
            next_commands=[MAKE_KEY],
        ) from None
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        raise UsageError(
            "the signing key can be read by others",
            reasons=[Reason(f"its mode is {status.st_mode & 0o777:04o}; only its owner may read it", str(path))],
            next_commands=[f"chmod 600 {path}"],
        )
    return signer_from(data, people, on, source=str(path), passphrase=passphrase)


def signer_from(data: bytes, people: People, on: date, *, source: str, passphrase: bytes | None = None) -> Signer:
    """The signer for a private key in OpenSSH form, as :func:`load_signer`; ``source`` names where it comes from."""
    private = _private_key(data, source, passphrase)
    public = _public_text(private.public_key())
    holders = list(_holders(people, public))
    in_their_dates = [person for person, key in holders if _valid(key, on)]
    if len({person.key for person in in_their_dates}) > 1:
        names = ", ".join(sorted({person.key for person in in_their_dates}))
        raise ConfigurationError("one signing key belongs to several people", reasons=[Reason(names, PEOPLE)])
    if in_their_dates:
        person = in_their_dates[0]
        return Signer(key=person.key, kind=person.kind, public_key=public, private=private)
    if holders:
        reasons = [Reason(f"the key of {person.key} is valid {_dates(key)}", PEOPLE) for person, key in holders]
        raise UsageError(f"this signing key is not valid on {on.isoformat()}", reasons=reasons)
    raise UsageError(
        "nobody is known by this signing key",
        reasons=[Reason(f"{public} is under no person's keys", PEOPLE), Reason("this key was used", source)],
        next_commands=[f"add it under the keys of your entry in {PEOPLE}: - public: {public}"],
    )


def make_key(path: Path, *, comment: str = "") -> str:
    """The public key (one OpenSSH line) of a new key pair: private at ``path`` (mode 0600), public at ``path.pub``.

    The private key has no passphrase, since a queue signs without asking. Raises :class:`UsageError` when one of the
    two files exists: a key is never overwritten.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public_path = path.with_name(path.name + ".pub")
    for existing in (path, public_path):
        if existing.exists():
            raise UsageError("a key is never overwritten", reasons=[Reason("there is one already", str(existing))])
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    line = _public_text(private.public_key()) + (f" {' '.join(comment.split())}" if comment.strip() else "")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for target, data, mode in ((path, pem, 0o600), (public_path, line.encode() + b"\n", 0o644)):
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
    except OSError as error:
        raise UsageError(
            "the key cannot be written", reasons=[Reason(error.strerror or str(error), str(error.filename or path))]
        ) from None
    return line


def verify(public_key: str, data: bytes, signature: bytes) -> bool:
    """Whether this is the signature of these bytes by the key (OpenSSH form); False for anything malformed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = _raw(public_key)
    if raw is None:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def doubts(people: People, actor: Actor, on: date) -> list[str]:
    """Every reason to doubt that this actor could sign on this day (UTC); [] when there is none.

    A person who left stays in people.yaml with ``valid_until``, so that old records stay verifiable.
    """
    person = people.find(actor.key)
    if person is None:
        return [f"{actor.key} is not in {PEOPLE}"]
    found = []
    if person.kind != actor.kind:
        found.append(f"{actor.key} is a {person.kind} in {PEOPLE}, a {actor.kind} in the record")
    keys = [key for owner, key in _holders(people, actor.public_key) if owner.key == actor.key]
    if not keys:
        found.append(f"the key that signed is none of {actor.key}'s keys in {PEOPLE}")
    elif not any(_valid(key, on) for key in keys):
        found.append(f"the key of {actor.key} is valid {_dates(keys[0])}, and signed on {on.isoformat()}")
    return found


def same_key(one: str, other: str) -> bool:
    """Whether two lines in OpenSSH form are the same Ed25519 public key, whatever their comments."""
    raw = _raw(one)
    return raw is not None and raw == _raw(other)


def _holders(people: People, public_key: str) -> Iterator[tuple[Person, SigningKey]]:
    for person in people.people:
        for key in person.keys:
            if same_key(key.public, public_key):
                yield person, key


def _valid(key: SigningKey, on: date) -> bool:
    return (key.valid_from is None or key.valid_from <= on) and (key.valid_until is None or on <= key.valid_until)


def _dates(key: SigningKey) -> str:
    parts = []
    if key.valid_from is not None:
        parts.append(f"from {key.valid_from.isoformat()}")
    if key.valid_until is not None:
        parts.append(f"until {key.valid_until.isoformat()}")
    return " ".join(parts) or "always"


def _private_key(data: bytes, source: str, passphrase: bytes | None) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        # A secret from an environment variable often lost its final newline, which the OpenSSH form needs.
        private = load_ssh_private_key(data.strip() + b"\n", passphrase)
    except TypeError:
        raise UsageError(
            "the signing key has a passphrase, and nobody can be asked for it here",
            reasons=[Reason("use a key without one, readable by its owner only", source)],
        ) from None
    except (ValueError, UnsupportedAlgorithm) as error:
        what = "the passphrase is wrong, or this" if passphrase else "this"
        raise UsageError(
            f"{what} is no private key in OpenSSH form", reasons=[Reason(str(error).rstrip("."), source)]
        ) from None
    if not isinstance(private, Ed25519PrivateKey):
        raise UsageError(
            "the signing key is not an Ed25519 key",
            reasons=[Reason("records are signed with Ed25519 only", source)],
            next_commands=[MAKE_KEY],
        )
    return private


def _public_text(public: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii")


_PREFIX = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"


def _raw(public_key: str) -> bytes | None:
    """The 32 bytes of an OpenSSH public key line (RFC 4253 section 6.6, RFC 8709), or None for anything else."""
    words = public_key.split()
    if len(words) < 2 or words[0] != "ssh-ed25519":
        return None
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        return None
    return blob[len(_PREFIX) :] if blob.startswith(_PREFIX) and len(blob) == len(_PREFIX) + 32 else None
