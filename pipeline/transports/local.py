"""The transport to this machine itself: the same contract as over SSH, through ``sh`` in a process group of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO

from pipeline.errors import Unreachable
from pipeline.transports import TIMED_OUT, Output, Result, check_command, pieces
from pipeline.transports.relay import listening

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ")
"""What a script sees of our environment: as over SSH, nothing else, so that no secret of ours reaches a product."""

GRACE = 2.0
"""Seconds without a byte after which output held open by a background process is no longer waited for."""

DIAL_TIMEOUT = 10.0


class LocalTransport:
    """This machine as a host. ``environment`` adds to (or replaces) what a script sees."""

    def __init__(self, name: str = "this machine", *, environment: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._environment = {key: os.environ[key] for key in KEPT if key in os.environ} | dict(environment or {})

    @property
    def name(self) -> str:
        """For messages."""
        return self._name

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
        check_command(script, arguments)
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", script, "sh", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=self._environment,
                cwd="/",
            )
        except OSError as error:
            raise Unreachable(f"no command can be run on {self.name}.", reasons=[str(error)]) from error
        return _Conversation(process, keep).finish(stdin, timeout)

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
    """One process and the three threads that keep its pipes from filling up."""

    def __init__(self, process: subprocess.Popen[bytes], keep: int | None) -> None:
        self.process = process
        self.stdout, self.stderr = Output(keep), Output(keep)
        self.heard = time.monotonic()
        self.failure: list[BaseException] = []

    def finish(self, stdin: bytes | Iterable[bytes], timeout: float) -> Result:
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        readers = [
            threading.Thread(target=self._read, args=(pipe, into), daemon=True)
            for pipe, into in ((process.stdout, self.stdout), (process.stderr, self.stderr))
        ]
        feeder = threading.Thread(target=self._feed, args=(process.stdin, stdin), daemon=True)
        for thread in (*readers, feeder):
            thread.start()
        timed_out = False
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            self._end()
        except BaseException:
            self._end()
            raise
        self.heard = time.monotonic()
        for reader in readers:
            while reader.is_alive() and time.monotonic() - self.heard < GRACE:
                reader.join(0.05)
        feeder.join(GRACE)
        # A reader still waiting belongs to a background process that keeps the pipe; its thread closes it at the end.
        if self.failure:
            raise self.failure[0]
        code = process.returncode
        stdout, stderr = self.stdout.last(), self.stderr.last()
        code = TIMED_OUT if timed_out else 128 - code if code < 0 else code
        return Result(code, stdout, stderr, timed_out, self.stdout.cut)

    def _read(self, pipe: IO[bytes], into: Output) -> None:
        with pipe, suppress(OSError, ValueError):
            while data := os.read(pipe.fileno(), 65536):
                into.add(data)
                self.heard = time.monotonic()

    def _feed(self, pipe: IO[bytes], stdin: bytes | Iterable[bytes]) -> None:
        source = pieces(stdin)
        # A process that stopped reading is not our error: its exit code says why.
        with suppress(OSError), pipe:
            while True:
                try:
                    piece = next(source, None)
                except BaseException as error:
                    self.failure.append(error)
                    self._end()
                    return
                if piece is None:
                    return
                pipe.write(piece)

    def _end(self) -> None:
        """Asks the process group to end, and after five seconds makes it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
                return
