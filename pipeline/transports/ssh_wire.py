"""What a connection is carried by, watched: a socket or a jump host's channel on which silence is noticed.

The kernel notices a dead line only while data is under way (``TCP_USER_TIMEOUT``), and never that a server is frozen or
that the line is cut behind a jump host. So the other end is asked for an answer whenever nothing was heard for a while.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

ASK_AFTER = 3.0
"""Seconds without a byte after which the other end is asked for one."""

ANSWER_WITHIN = 9.0
"""Seconds that it has for its answer, and that it may take no byte while we have some to give."""

LOOK_EVERY = 0.5
"""Seconds that one wait for bytes lasts; Paramiko's own tenth of a second costs CPU with many hosts."""


class Wire:
    """Passes on what Paramiko does with a socket; raises OSError when the other end gives no sign of life."""

    def __init__(self, carrier: Any) -> None:
        self._carrier = carrier
        self._heard = time.monotonic()
        self._asked: float | None = None
        self._stuck: float | None = None
        self._closed = False  # Paramiko looks at a socket's
        self.ask: Callable[[], object] | None = None
        """Makes the other end answer; None as long as it cannot be asked."""

    @property
    def quiet(self) -> float:
        """Seconds since something was heard."""
        return time.monotonic() - self._heard

    def ended(self) -> bool:
        """Whether the other end has closed it, even if the thread that reads has not come to know it yet."""
        if not isinstance(self._carrier, socket.socket) or not hasattr(select, "POLLRDHUP") or self._closed:
            return self._closed
        poll = select.poll()
        poll.register(self._carrier, select.POLLRDHUP)
        return bool(poll.poll(0))

    def settimeout(self, seconds: float) -> None:
        """Paramiko's wish for a short wait is not granted."""
        self._carrier.settimeout(max(seconds, LOOK_EVERY))

    def recv(self, size: int) -> bytes:
        """As of a socket; TimeoutError after a while, so that Paramiko can look whether it was closed."""
        try:
            data: bytes = self._carrier.recv(size)
        except TimeoutError:
            self._watch()
            raise
        self._heard = time.monotonic()
        self._asked = None
        return data

    def send(self, data: bytes) -> int:
        """As of a socket."""
        try:
            sent = int(self._carrier.send(data))
        except TimeoutError:
            now = time.monotonic()
            self._stuck = self._stuck or now
            if now - self._stuck > ANSWER_WITHIN:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the other end takes no more data") from None
            raise
        self._stuck = None
        return sent

    def close(self) -> None:
        """Ends it, for good; a thread that waits for bytes wakes up, which closing alone does not bring about."""
        self._closed = True
        with suppress(Exception):
            self._carrier.shutdown(socket.SHUT_RDWR)
        self._carrier.close()

    def getpeername(self) -> Any:
        """As of a socket."""
        return self._carrier.getpeername()

    def _watch(self) -> None:
        if self.ask is None or self._stuck is not None:
            return
        now = time.monotonic()
        if self._asked is None:
            if now - self._heard >= ASK_AFTER:
                self._asked = now
                self.ask()
        elif now - self._asked > ANSWER_WITHIN:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the other end does not answer any more")
