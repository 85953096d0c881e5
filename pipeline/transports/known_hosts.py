"""Which host keys are trusted: ``known_hosts`` files (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT") read by us.

Paramiko's own reader fails on ``@cert-authority`` and ``@revoked`` lines and knows no wildcards, so the decision is
made here, on bytes, and Paramiko is only asked which key the server proved to have.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from pipeline.errors import ConfigurationError, Reason


@dataclass(frozen=True)
class HostKey:
    """One public host key: its type, its wire form, and the place that names it."""

    kind: str
    blob: bytes
    source: str

    @property
    def fingerprint(self) -> str:
        """As ``ssh-keygen -l`` prints it: ``SHA256:`` and base64 without padding."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def line(self) -> str:
        """``ssh-ed25519 AAAA…``."""
        return f"{self.kind} {base64.b64encode(self.blob).decode()}"


@dataclass
class Trust:
    """What is known about one host: keys to accept, keys revoked, and lines that we cannot use."""

    host: str
    accepted: list[HostKey] = field(default_factory=list)
    revoked: list[HostKey] = field(default_factory=list)
    authorities: list[HostKey] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    pinned: bool = False

    @property
    def kinds(self) -> list[str]:
        """Types of the accepted keys, so that the server is asked for one of these."""
        return list(dict.fromkeys(key.kind for key in self.accepted))

    def objections(self, offered: HostKey) -> list[Reason]:
        """Why the key that the server offered is not trusted; empty when it is.

        A revoked key is refused even where it is pinned or listed as known.
        """
        what = f"the server offered {offered.kind} {offered.fingerprint}"
        for key in self.revoked:
            if key.blob == offered.blob:
                return [Reason(what), Reason("this key was revoked: somebody else may hold it", key.source)]
        if any(key.blob == offered.blob for key in self.accepted):
            return []
        reasons = [Reason(what)]
        if self.accepted:
            reasons += [Reason(f"expected is {key.kind} {key.fingerprint}", key.source) for key in self.accepted]
            reasons.append(
                Reason("either the host was set up anew, or somebody is between you and it: ask who runs the host")
            )
            return reasons
        if self.authorities:
            reasons += [
                Reason("a host certificate would be trusted, but this tool checks keys only: list the key", key.source)
                for key in self.authorities
            ]
        else:
            looked = ", ".join(self.sources) or "no known_hosts file"
            reasons.append(Reason(f"no key is known for {self.host}, and unknown keys are never accepted", looked))
        return reasons


def parse_key(text: str, source: str) -> HostKey:
    """The key of ``ssh-ed25519 AAAA… [comment]``; raises ConfigurationError when it is none."""
    words = text.split()
    try:
        kind, blob = words[0], base64.b64decode(words[1], validate=True)
        length = int.from_bytes(blob[:4], "big")
        if blob[4 : 4 + length] != kind.encode() or len(blob) <= 4 + length:
            raise ValueError("the key's data are of another type")
    except (IndexError, ValueError, binascii.Error) as error:
        raise ConfigurationError(
            "a host key is not in OpenSSH form: 'ssh-ed25519 AAAA…'.", reasons=[Reason(str(error), source)]
        ) from error
    return HostKey(kind, blob, source)


def host_name(address: str, port: int) -> str:
    """The name under which known_hosts lists it: ``address`` on port 22, else ``[address]:port``."""
    return address.lower() if port == 22 else f"[{address.lower()}]:{port}"


def trust_for(host: str, files: Iterable[Path], *, pinned: str | None = None, pinned_source: str = "host_key") -> Trust:
    """What is known about ``host`` (a :func:`host_name`).

    ``pinned`` is then the only key accepted; the files are still read for revocations. A file that does not exist is
    passed over; a line that cannot be read is passed over like ``ssh`` does, except a ``@revoked`` one, which raises
    ConfigurationError: passing it over would accept the key.
    """
    trust = Trust(host)
    if pinned is not None:
        trust.pinned = True
        trust.accepted.append(parse_key(pinned, pinned_source))
    for path in files:
        try:
            stat = path.stat()
            lines = _lines(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except FileNotFoundError:
            trust.sources.append(f"{path}, which does not exist")
            continue
        except OSError as error:
            raise ConfigurationError("a known_hosts file cannot be read.", reasons=[str(error)]) from error
        trust.sources.append(str(path))
        for number, words in lines:
            _read_line(trust, words, f"{path}:{number}")
    return trust


@lru_cache(maxsize=8)
def _lines(path: Path, *_stamps: int) -> list[tuple[int, list[str]]]:
    """The words of each line that has some, with the line's number; a file is read once for all hosts."""
    lines = enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
    return [(number, words) for number, line in lines if (words := line.split()) and not words[0].startswith("#")]


def _read_line(trust: Trust, words: list[str], source: str) -> None:
    marker = words[0] if words[0].startswith("@") else ""
    if marker:
        words = words[1:]
    if not words or not _matches(words[0], trust.host):
        return
    try:
        key = parse_key(" ".join(words[1:3]), source)
    except ConfigurationError:
        if marker == "@revoked":
            raise
        return
    if marker == "@revoked":
        trust.revoked.append(key)
    elif marker == "@cert-authority":
        trust.authorities.append(key)
    elif not marker and not trust.pinned:
        trust.accepted.append(key)


def _matches(patterns: str, host: str) -> bool:
    """sshd(8): comma-separated, ``*`` and ``?``, a matching ``!pattern`` says no, or one hashed name ``|1|salt|hash``."""
    if patterns.startswith("|"):
        parts = patterns.split("|")
        if len(parts) != 4 or parts[1] != "1":
            return False
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in parts[2:])
        except binascii.Error:
            return False
        return hmac.compare_digest(hmac.new(salt, host.encode(), hashlib.sha1).digest(), digest)
    found = False
    for pattern in patterns.lower().split(","):
        wanted = pattern.removeprefix("!")
        # In these patterns brackets are the port's, never a set of characters.
        if host == wanted or (("*" in wanted or "?" in wanted) and fnmatchcase(host, wanted.replace("[", "[[]"))):
            if pattern.startswith("!"):
                return False
            found = True
    return found
