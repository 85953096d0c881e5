"""The transport to this machine itself: the same contract as over SSH, through ``sh`` in a process group of its own."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import Unreachable
from pipeline.transports import (
    KEPT_ERRORS,
    PIECE,
    SILENCE,
    TIMED_OUT,
    LineCut,
    Lines,
    Output,
    Result,
    Take,
    check_command,
)
from pipeline.transports.relay import listening

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ")
"""What a script sees of our environment: as over SSH, nothing else, so that no secret of ours reaches a product."""

GRACE = 2.0
"""Seconds without a byte after which output held open by a background process is no longer waited for."""

LONGEST_GRACE = 10.0
"""Seconds after which it is not waited for even if it goes on printing."""

DIAL_TIMEOUT = 10.0
LONGEST_WAIT = 1e6 if hasattr(os, "pidfd_open") else 0.1
"""Seconds; where the system does not tell when a process ends, we look."""


class LocalTransport:
    """This machine as a host. ``environment`` adds to (or replaces) what a script sees."""

    def __init__(self, name: str = "this machine", *, environment: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._environment = {key: os.environ[key] for key in KEPT if key in os.environ} | dict(environment or {})

    @property
    def name(self) -> str:
        """For messages."""
        return self._name

    def connect(self) -> None:
        """Nothing to connect."""

    def run(
        self,
        script: str,
        arguments: Sequence[str] = (),
        *,
        stdin: bytes | Iterable[bytes] = b"",
        timeout: float = 120,
        keep: int | None = None,
    ) -> Result:
        """See :meth:`pipeline.transports.Transport.run`."""
        out, wrong = Output(keep), Output(keep)
        conversation = self._start(
            script, arguments, stdin, lambda is_wrong, data: (wrong if is_wrong else out).add(data)
        )
        code = conversation.finish(timeout=timeout)
        assert code is not None
        return Result(code, out.last(), wrong.last(), conversation.timed_out, out.cut)

    def stream(
        self,
        script: str,
        arguments: Sequence[str] = (),
        *,
        stdin: bytes | Iterable[bytes] = b"",
        on_line: Callable[[str], None],
        silence: float = SILENCE,
    ) -> Result:
        """See :meth:`pipeline.transports.Transport.stream`."""
        lines, wrong = Lines(on_line), Output(KEPT_ERRORS)
        conversation = self._start(
            script, arguments, stdin, lambda is_wrong, data: (wrong if is_wrong else lines).add(data)
        )
        code = conversation.finish(silence=silence)
        if code is None:
            raise LineCut(f"nothing was heard from a command on {self.name} for {silence:g} seconds")
        lines.end()
        return Result(code, b"", wrong.last())

    def _start(
        self, script: str, arguments: Sequence[str], stdin: bytes | Iterable[bytes], take: Take
    ) -> _Conversation:
        check_command(script, arguments)
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", *arguments],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=self._environment,
                cwd="/",
            )
        except OSError as error:
            raise Unreachable(f"no command can be run on {self.name}.", reasons=[str(error)]) from error
        return _Conversation(process, stdin, take)

    def dial(self, address: str, port: int) -> socket.socket:
        """See :meth:`pipeline.transports.Transport.dial`."""
        connection = socket.create_connection((address, port), timeout=DIAL_TIMEOUT)
        connection.settimeout(None)
        return connection

    def forward(self, address: str, port: int) -> AbstractContextManager[Path]:
        """See :meth:`pipeline.transports.Transport.forward`."""
        what = f"{address}:{port} as seen from {self.name}"
        return listening(lambda: self.dial(address, port), port, what)

    def close(self) -> None:
        """Nothing is held open."""


class _Conversation:
    """One process; the calling thread feeds it and reads from it."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes | Iterable[bytes], take: Take) -> None:
        self.process = process
        self.timed_out = False
        self._take = take
        self._chunks = iter((stdin,) if isinstance(stdin, bytes) else stdin)
        self._rest: memoryview | None = None
        self._moved = time.monotonic()
        self._ended: float | None = None

    def finish(self, *, timeout: float | None = None, silence: float | None = None) -> int | None:
        """The exit code, 128 + n for signal n; None after ``silence`` seconds without a byte either way."""
        process = self.process
        deadline = float("inf") if timeout is None else self._moved + timeout
        with selectors.DefaultSelector() as selector, ExitStack() as pipes:
            for pipe, event in ((process.stdin, "in"), (process.stdout, "out"), (process.stderr, "wrong")):
                assert pipe
                pipes.callback(_close, pipe)
                os.set_blocking(pipe.fileno(), False)
                mask = selectors.EVENT_WRITE if event == "in" else selectors.EVENT_READ
                selector.register(pipe, mask, event)
            end = _end_of(process)
            if end is not None:
                pipes.callback(os.close, end)
                selector.register(end, selectors.EVENT_READ, "end")
            try:
                while self._turn(selector, deadline, silence):
                    pass
            except BaseException:
                self._end()
                raise
            code = process.poll()
        if code is None:
            self._end()
            return None
        return TIMED_OUT if self.timed_out else 128 - code if code < 0 else code

    def _turn(self, selector: selectors.BaseSelector, deadline: float, silence: float | None) -> bool:
        """Waits for the next thing and deals with it; False when there is nothing more to wait for."""
        now = time.monotonic()
        ended = self.process.poll() is not None
        if ended:
            if not {key.data for key in selector.get_map().values()} & {"out", "wrong"}:
                return False
            self._ended = self._ended or now
            deadline = self._ended + LONGEST_GRACE
        until = min(deadline, self._moved + (GRACE if ended else silence or float("inf")))
        for key, _ in selector.select(max(0.0, min(until - now, LONGEST_WAIT))):
            self._deal_with(selector, key)
            until = min(deadline, self._moved + (GRACE if ended else silence or float("inf")))
        if time.monotonic() < until:
            return True
        if not ended and deadline <= until:
            self.timed_out = True
            self._end()
            return True
        return False

    def _deal_with(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        if key.data == "end":
            # What is still to be read was written before; only a process left behind writes later.
            selector.unregister(key.fileobj)
            self.process.wait()
        elif key.data == "in":
            if self.process.returncode is not None or not self._feed(key.fd):
                selector.unregister(key.fileobj)
                _close(key.fileobj)
        else:
            data = os.read(key.fd, 65536)
            if data:
                self._take(key.data == "wrong", data)
            else:
                selector.unregister(key.fileobj)
        self._moved = time.monotonic()

    def _feed(self, pipe: int) -> bool:
        """Writes what the pipe takes; False at the end of the input. A chunk goes before the next is asked for."""
        if self._rest is None:
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._rest = memoryview(chunk)
        if len(self._rest):
            try:
                self._rest = self._rest[os.write(pipe, self._rest[:PIECE]) :]
            except BlockingIOError:
                return True
            except OSError:
                return False  # a process that stopped reading is not our error: its exit code says why
        if not len(self._rest):
            self._rest = None
        return True

    def _end(self) -> None:
        """Asks the process group to end, and after five seconds makes it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                return


def _end_of(process: subprocess.Popen[bytes]) -> int | None:
    """A file descriptor that can be read once the process has ended; None where the system has none."""
    try:
        return os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return None


def _close(pipe: Any) -> None:
    with suppress(OSError):
        pipe.close()
