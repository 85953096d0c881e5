"""One command on a host: a channel on which the calling thread feeds and reads by itself, without threads of its own.

Paramiko's channel needs a thread for each of its streams; with 50 hosts these cost more than the work. Here the one
thread that Paramiko has a connection puts everything that happens (output, room for input, the end) under one
condition, and the caller waits for that alone. Only :mod:`pipeline.transports.ssh_line` opens one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import paramiko
from paramiko.common import cMSG_CHANNEL_REQUEST, cMSG_CHANNEL_WINDOW_ADJUST

from pipeline.transports import PIECE, Take

GRACE = 2.0
"""Seconds without a byte after which output held open by a background process is no longer waited for."""

LENT = 512 * 1024
"""Bytes of input that OpenSSH takes at once: it grants 2 MiB the moment it has read the request to run a command, but the
news of it costs a round trip. If it refuses the command, it drops them."""

LONGEST_GRACE = 10.0
"""Seconds after which it is not waited for even if it goes on printing."""

SIGNALS = {"ABRT": 6, "ALRM": 14, "FPE": 8, "HUP": 1, "ILL": 4, "INT": 2, "KILL": 9, "PIPE": 13, "QUIT": 3}
SIGNALS |= {"SEGV": 11, "TERM": 15, "USR1": 10, "USR2": 12}
"""Names of RFC 4254, 6.10."""

END: Any = object()

LONGEST_WAIT = 1e6
"""Seconds; a condition cannot wait for infinity."""

LOST = (paramiko.SSHException, EOFError, OSError)
"""What Paramiko raises when the connection is gone; the condition that the caller waits for says it as well."""


class Session(paramiko.Channel):
    """A session channel that is perhaps still being opened; one thread uses it, for one command."""

    transport: Any  # Paramiko sets it when the channel is known to the connection

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._arrived: list[tuple[bool, bytes]] = []
        self._lent = 0
        self.started = False
        """Whether the server said that it runs the command."""
        self.refused = False
        """Whether the server said that it opens no session, or runs no command, for us."""

    # --- called by the connection's thread ----------------------------------------------------------------------------

    def _note(self) -> None:
        with self.lock:
            self.out_buffer_cv.notify_all()

    def _feed(self, message: Any) -> None:
        with self.lock:
            self._arrived.append((False, message.get_binary()))
            self.out_buffer_cv.notify_all()

    def _feed_extended(self, message: Any) -> None:
        if message.get_int() == 1:
            with self.lock:
                self._arrived.append((True, message.get_binary()))
                self.out_buffer_cv.notify_all()

    def _window_adjust(self, message: Any) -> None:
        granted = message.get_int()
        with self.lock:
            paid = min(self._lent, granted)
            self._lent -= paid
            self.out_window_size += granted - paid
            self.out_buffer_cv.notify_all()

    def _handle_request(self, message: Any) -> None:
        beginning = message.packet.tell()
        kind, _ = message.get_text(), message.get_boolean()
        if kind == "exit-signal":
            # Paramiko knows only exit-status; without this a killed command looks like a cut line.
            self.exit_status = 128 + SIGNALS.get(message.get_text(), 0)
        else:
            message.packet.seek(beginning)
            super()._handle_request(message)  # type: ignore[misc]
        self._note()

    def _handle_eof(self, message: Any) -> None:
        super()._handle_eof(message)  # type: ignore[misc]
        self._note()

    def _request_success(self, message: Any) -> None:
        self.started = True

    def _request_failed(self, message: Any) -> None:
        self.refused = True
        super()._request_failed(message)  # type: ignore[misc]

    def _set_remote_channel(self, *values: int) -> None:
        super()._set_remote_channel(*values)  # type: ignore[misc]
        self._note()

    def set(self) -> None:
        """The server answered to the opening, or the connection is gone: what Paramiko calls on an event."""
        with self.lock:
            if not self.active and not self.closed:
                self.refused = bool(self.transport.is_active())
                self._set_closed()  # type: ignore[attr-defined]

    # --- called by the thread that wants something done ---------------------------------------------------------------

    def opened(self, timeout: float) -> bool:
        """Waits until the server answered; False when it refused, died, or took longer than ``timeout`` seconds."""
        with self.lock:
            self.out_buffer_cv.wait_for(lambda: self.active or self.closed, timeout)
            return bool(self.active) and not self.closed

    def start(self, line: str) -> None:
        """Asks for the command; does not wait for the answer, as what follows may be sent on its heels.

        Raises what the connection raises when it is lost; the server was not asked then.
        """
        request = paramiko.Message()
        request.add_byte(cMSG_CHANNEL_REQUEST)
        request.add_int(self.remote_chanid)
        request.add_string("exec")
        request.add_boolean(True)
        request.add_string(line)
        if self.transport.is_openssh:
            # Before the request goes: the server's answer must find it noted.
            with self.lock:
                self._lent = LENT
                self.out_window_size += LENT
        self.transport.send_surely(request)

    def finish(
        self,
        stdin: bytes | Iterable[bytes | None],
        take: Take,
        *,
        timeout: float | None = None,
        silence: float | None = None,
    ) -> int | None:
        """Feeds the command and passes on what it says until it has ended; its exit code, closing the channel.

        A chunk of the input that is None means: ask again when something was heard.
        None when the outcome is not known: the line was lost, ``timeout`` seconds are over, or for ``silence`` seconds
        nothing came and nothing of the input was taken. Exceptions of ``stdin`` and ``take`` end it and are raised.
        """
        try:
            return self._converse(stdin, take, timeout, silence)
        finally:
            self.discard()

    def discard(self) -> None:
        """Closes the channel, whatever state it and the connection are in."""
        with suppress(*LOST):
            self.close()

    def _converse(
        self, stdin: bytes | Iterable[bytes | None], take: Take, timeout: float | None, silence: float | None
    ) -> int | None:
        moved = time.monotonic()
        deadline = float("inf") if timeout is None else moved + timeout
        silence = float("inf") if silence is None else silence
        chunks = iter((stdin,) if isinstance(stdin, bytes) else stdin)
        rest: memoryview | None = None
        fed = waiting = False
        ended: float | None = None
        while True:
            with self.lock:
                arrived, self._arrived = self._arrived, []
                known = self.exit_status >= 0
                if not arrived and (self.closed or (known and self.eof_received)):
                    return int(self.exit_status) if known else None
                now = time.monotonic()
                if known:
                    deadline = min(deadline, (ended := ended or now) + LONGEST_GRACE)
                until = min(deadline, moved + (GRACE if known else silence))
                if now >= (deadline if arrived else until):
                    return int(self.exit_status) if known else None
                room = not (fed or waiting or known or self.closed) and self.out_window_size > 0
                if not arrived and not room:
                    self.out_buffer_cv.wait(until - now if until - now < LONGEST_WAIT else None)
                    continue
            for wrong, data in arrived:
                take(wrong, data)
            if arrived:
                waiting = False
                self._make_room(sum(len(data) for _, data in arrived))
            if room:
                # One chunk is on its way before the next is asked for: the input may wait for what the command does.
                if rest is None:
                    chunk = next(chunks, END)
                    waiting = chunk is None
                    if chunk is END:
                        fed = True
                        with suppress(*LOST):
                            self.shutdown_write()
                    elif chunk:
                        rest = memoryview(chunk)
                if rest is not None:
                    rest = rest[self._send_some(rest) :]
                    rest = rest if len(rest) else None
            moved = time.monotonic()

    def _send_some(self, data: memoryview) -> int:
        """How many bytes of ``data`` went; all of it when the command takes no more."""
        if not len(data):
            return 0
        try:
            return int(self.send(bytes(data[:PIECE]))) or len(data)
        except LOST:
            return len(data)  # it stopped reading, or the line was cut: its exit code says which

    def _make_room(self, size: int) -> None:
        """Tells the server that it may send ``size`` bytes more, when that has come to something."""
        granted = self._check_add_window(size)  # type: ignore[attr-defined]
        if granted > 0:
            message = paramiko.Message()
            message.add_byte(cMSG_CHANNEL_WINDOW_ADJUST)
            message.add_int(self.remote_chanid)
            message.add_int(granted)
            with suppress(*LOST):
                self._send_message(message)

    def _send_message(self, message: paramiko.Message) -> None:
        self.transport._send_user_message(message)
