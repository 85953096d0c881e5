"""The port to a host: run a script there, open a TCP connection from there.

Two adapters pass the same contract suite (``tests/contracts/test_transports.py``): :mod:`pipeline.transports.ssh` and
:mod:`pipeline.transports.local`. Only :mod:`pipeline.wiring` imports them. A new transport is one file here.

What every adapter keeps: a script is POSIX ``sh``, its data comes as ``"$1"`` … or on standard input, never spliced
into the script; standard input is the bytes given and then its end; output is bytes; a process that the script leaves
behind in the background does not hold the call up.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.errors import Unreachable, UsageError

PIECE = 32 * 1024
"""Bytes a write: Paramiko's ``sendall`` is quadratic in what it is given at once (40 MB took 16.5 s)."""

TIMED_OUT = 124
"""Exit code of a script that was ended because its time was up, as GNU ``timeout`` gives it."""

SILENCE = 60.0
"""Seconds without a word of a script that should speak every few seconds. A line that is cut, or a server that is frozen,
is noticed within 15 seconds without it; but a loaded machine may keep a script from its turn for long."""

KEPT_ERRORS = 64 * 1024
"""Bytes kept of the error output of :meth:`Transport.stream`."""

LARGEST_COMMAND = 120_000
"""Bytes of script and arguments together; Linux takes 131,072 in one argument (``MAX_ARG_STRLEN``)."""


Take = Callable[[bool, bytes], None]
"""Given output as it comes: whether it is error output, and the bytes."""


@dataclass(frozen=True)
class Result:
    """How a script ended. ``exit_code`` is 128 + n when signal n ended it; ``timed_out``: we ended it, out of time.

    ``cut``: the beginning of ``stdout`` is missing, as more came than was to be kept.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool = False
    cut: bool = False

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0


class Output:
    """What a script printed: all of it, or the last ``keep`` bytes. Filled by one thread."""

    def __init__(self, keep: int | None) -> None:
        self._keep = keep
        self._data = bytearray()
        self.cut = False

    def add(self, data: bytes) -> None:
        """Takes the next bytes; what is too old goes in large steps, so that the cost stays linear."""
        self._data += data
        if self._keep is not None and len(self._data) > 2 * self._keep:
            del self._data[: -self._keep]
            self.cut = True

    def last(self) -> bytes:
        """What is kept; a background process may still be adding to it."""
        data = bytes(self._data)
        if self._keep is None or len(data) <= self._keep:
            return data
        self.cut = True
        return data[-self._keep :]


class Lines:
    """Bytes in, whole lines out; the half line at the end waits for its other half."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._half = bytearray()

    def add(self, data: bytes) -> None:
        """Takes the next bytes."""
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._half += line
            text = self._half.decode("utf-8", "surrogateescape")
            self._half.clear()
            self._on_line(text)
        self._half += rest

    def end(self) -> None:
        """No more bytes come: what is left is a line too."""
        if self._half:
            self.add(b"\n")


class LineCut(Exception):
    """The connection was lost while a script ran: it may have done all, some or nothing of its work.

    Not one of :mod:`pipeline.errors`: the runner turns it into the outcome ``unknown`` and asks the host's journal.
    """


class TurnedAway(Unreachable):
    """The host answers, but does not let us in, or is not the one that we know: asking again would change nothing."""


class Transport(Protocol):
    """One host that can be spoken to. Connects when first used; a lost connection is opened anew by the next call."""

    @property
    def name(self) -> str:
        """For messages, for instance ``app1 (deploy@10.0.0.1:22)``."""

    def connect(self) -> None:
        """Connects now, so that the first use need not; Unreachable when that does not work, as the first use would."""

    def run(
        self,
        script: str,
        arguments: Sequence[str] = (),
        *,
        stdin: bytes | Iterable[bytes] = b"",
        timeout: float = 120,
        keep: int | None = None,
    ) -> Result:
        """The result of the POSIX ``sh`` script, whatever its exit code.

        After ``timeout`` seconds the script is ended on the host (where it has the ``timeout`` program) and the
        result says ``timed_out``. ``keep``: of the output and of the error output only the last so many bytes are
        collected; all of it when None. An exception out of the ``stdin`` iterable ends the script and is raised here.
        Raises :class:`LineCut` when the outcome is not known, :class:`pipeline.errors.Unreachable` when the script
        was not started.
        """

    def stream(
        self,
        script: str,
        arguments: Sequence[str] = (),
        *,
        stdin: bytes | Iterable[bytes] = b"",
        on_line: Callable[[str], None],
        silence: float = SILENCE,
    ) -> Result:
        """As :meth:`run`, but each line of standard output goes to ``on_line`` as it comes, and no time limit holds.

        A line is UTF-8 (other bytes as ``surrogateescape`` has them), without its newline; a last line without one
        counts. ``stdout`` of the result is empty, ``stderr`` the last 64 KiB. The script must print something every
        few seconds: :class:`LineCut` is raised when the line is cut, and when for ``silence`` seconds neither a byte of
        output came nor a byte of the input was taken; the script may go on on the host then. Everything happens in the
        calling thread: ``stdin`` must not wait for what never comes. An exception of ``on_line`` or of ``stdin`` is
        raised.
        """

    def dial(self, address: str, port: int) -> socket.socket:
        """A connected socket to ``address:port`` as seen from the host.

        Raises OSError when the other end does not answer there, Unreachable when the host itself cannot be asked.
        """

    def forward(self, address: str, port: int) -> AbstractContextManager[Path]:
        """A folder (mode 0700) with a unix socket ``.s.PGSQL.<port>``; each connection to it is dialled as above.

        The name is the one that libpq looks for when it is given a folder as ``host``. When the block ends in an
        error of the client's and the last dial had failed, Unreachable says so instead.
        """

    def close(self) -> None:
        """Ends the connection; calling it twice is fine."""


def check_command(script: str, arguments: Sequence[str]) -> None:
    """Nothing; raises UsageError for what no ``sh`` can be given: a NUL, or more than fits one command line."""
    words = (script, *arguments)
    if any("\0" in word for word in words):
        raise UsageError("a command or argument for a host holds a NUL character, which no program can be given.")
    size = sum(len(word.encode()) for word in words)
    if size > LARGEST_COMMAND:
        raise UsageError(
            f"a command for a host is {size} bytes long, more than the {LARGEST_COMMAND} that fit a command line.",
            reasons=["long data belongs into a file of the release or into the environment"],
        )


def pieces(data: bytes | Iterable[bytes]) -> Iterator[memoryview]:
    """The data in pieces of at most :data:`PIECE` bytes, without copying it."""
    for chunk in (data,) if isinstance(data, bytes) else data:
        view = memoryview(chunk)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]
