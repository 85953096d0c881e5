"""Logging in with a key: from files (with their certificates), from an agent; as few round trips as there can be.

Paramiko's client tries each file as each kind of key for each connection, and waits for the server's word that it may
log in before it does. Here a key is read once, and the wish and the signature go together (RFC 4252 allows it).
"""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import paramiko
from paramiko.auth_handler import AuthHandler
from paramiko.pkey import PublicBlob
from paramiko.ssh_exception import (
    AuthenticationException,
    BadAuthenticationType,
    PasswordRequiredException,
    SSHException,
)

CLASSES = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
USUAL = ("id_ed25519", "id_ecdsa", "id_rsa")


class Login:
    """Whom and what to log in with; one object a connection, usable again.

    ``files`` are private keys; beside one may lie ``…-cert.pub`` (a certificate) and ``….pub`` (then an agent's key
    serves for a locked or absent private one). Without files the usual ones in ``~/.ssh`` count. ``only``: of an
    agent's keys none that is not named by a file.
    """

    def __init__(self, user: str, files: Sequence[Path], *, only: bool) -> None:
        self.user = user
        self.files = list(files)
        self.only = only

    def describe(self) -> str:
        """Which keys are tried, for messages."""
        files = ", ".join(map(str, self.files)) or "~/.ssh/id_*"
        return files if self.only else f"{files}, agent"

    def authenticate(self, transport: Any) -> list[str]:
        """Tries one key after the other; raises Paramiko's AuthenticationException when none is let in.

        The name is Paramiko's, which calls it for its client's ``auth_strategy``.
        """
        agent = _Agent()
        try:
            return self._authenticate(transport, agent)
        finally:
            agent.close()

    def _authenticate(self, transport: Any, agent: _Agent) -> list[str]:
        handler = _Handler(transport)
        locked: list[Path] = []
        tried, rsa = 0, False
        for key in self._keys(agent, locked):
            tried += 1
            try:
                more = handler.try_key(self.user, key, transport.open_ahead)
            except BadAuthenticationType:
                raise
            except AuthenticationException as error:
                if transport.is_active():
                    transport.forget_ahead()
                    rsa = rsa or key.get_name().startswith("ssh-rsa")
                    continue
                if tried > 1:
                    raise AuthenticationException(f"the server hung up after {tried} keys") from error
                raise SSHException("the connection was lost while logging in") from error
            if more:
                raise AuthenticationException(f"the key alone is not enough, the server also wants: {', '.join(more)}")
            return []
        if locked and not tried:
            raise PasswordRequiredException(str(locked[0]))
        refused = {0: "there is no key to log in with", 1: "the key was not accepted"}
        reason = refused.get(tried, f"none of {tried} keys was accepted")
        if locked:
            reason += f"; {locked[0]} is locked by a passphrase, and no agent has it"
        if rsa:
            reason += "; a server that takes RSA keys with SHA-1 only, which is broken, needs an Ed25519 key"
        raise AuthenticationException(reason)

    def _keys(self, agent: _Agent, locked: list[Path]) -> Iterator[paramiko.PKey]:
        """Each key once; those of files first, an agent asked only when it is needed."""
        seen: set[bytes] = set()
        for path in self.files or [Path.home() / ".ssh" / name for name in USUAL]:
            key, public = None, None
            try:
                key = _read_key(str(path), *_stamps(path))
            except PasswordRequiredException:
                locked.append(path)
                public = _public_blobs(path)
            except OSError:
                public = _public_blobs(path)
            except SSHException:
                continue
            if key is not None:
                seen.add(key.asbytes())
                yield key
            for found in agent.offered() if public else []:
                if found.blob in (public or ()) and found.blob not in seen:
                    seen.add(found.blob)
                    with suppress(ValueError):
                        locked.remove(path)
                    yield found
        if not self.only:
            yield from (key for key in agent.offered() if key.blob not in seen)


class _Agent:
    """The agent's keys, asked for once, and only when they are needed."""

    def __init__(self) -> None:
        self._agent: Any = None
        self._found: list[Any] | None = None

    def offered(self) -> list[Any]:
        """Its keys and certificates; none where there is no agent."""
        if self._found is None and not Path(os.environ.get("SSH_AUTH_SOCK") or "/nowhere").exists():
            self._found = []
        if self._found is None:
            try:
                self._agent = paramiko.Agent()
                self._found = list(self._agent.get_keys())
                for key in self._found:
                    # Paramiko offers the bare key of an RSA certificate.
                    if "-cert-" in key.name:
                        key.public_blob = PublicBlob(key.name, key.blob)
            except (SSHException, OSError):
                self._found = []
        return self._found

    def close(self) -> None:
        """Lets go of it."""
        if self._agent is not None:
            self._agent.close()


class _Handler(AuthHandler):
    """Paramiko's dialogue, with the wish to log in and the proof in one go."""

    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self._wished = False

    def try_key(self, user: str, key: paramiko.PKey, meanwhile: Callable[[], object]) -> list[str]:
        """What the server wants besides; empty when it is content. ``meanwhile`` is called while it thinks."""
        done = threading.Event()
        self.transport.saved_exception = None
        self.transport.auth_handler = self
        self.auth_publickey(user, key, done)
        meanwhile()
        if not done.wait(self.transport.auth_timeout):
            raise SSHException(f"no answer to the login within {self.transport.auth_timeout:g} seconds")
        return list(self.wait_for_response(done))

    def _request_auth(self) -> None:
        if not self._wished:
            self._wished = True
            super()._request_auth()  # type: ignore[misc]
        accept = paramiko.Message()
        accept.add_string("ssh-userauth")
        accept.rewind()
        super()._parse_service_accept(accept)  # type: ignore[misc]

    def _parse_service_accept(self, message: Any) -> None:
        """Nothing: what would be sent now was sent before."""


def _stamps(path: Path) -> tuple[tuple[int, int], ...]:
    """What changes when a key or its certificate is renewed; OSError when there is no key."""
    found = [path.stat()]
    with suppress(OSError):
        found.append(_beside(path, "-cert.pub").stat())
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in found)


@lru_cache(maxsize=64)
def _read_key(path: str, *_stamps: tuple[int, int]) -> paramiko.PKey:
    """The private key in a file, with its certificate; read once for all hosts that are logged in to with it."""
    wrong: SSHException | None = None
    for kind in CLASSES:
        try:
            key = kind.from_private_key_file(path)
        except PasswordRequiredException:
            raise
        except (SSHException, ValueError, IndexError) as error:
            wrong = SSHException(str(error))
            continue
        certificate = _beside(Path(path), "-cert.pub")
        if certificate.is_file():
            with suppress(ValueError, OSError):
                key.load_certificate(str(certificate))
        return key
    raise wrong or SSHException("no key")


def _public_blobs(path: Path) -> set[bytes]:
    """The public key and certificate beside a private key, as an agent knows them."""
    blobs = set()
    for ending in (".pub", "-cert.pub"):
        with suppress(OSError, ValueError, IndexError, UnicodeDecodeError):
            blobs.add(base64.b64decode(_beside(path, ending).read_text().split()[1]))
    return blobs


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name.removesuffix(".pub") + ending)
