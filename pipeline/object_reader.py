"""Reads objects of one Git repository through ``git cat-file``: a process that stays for small ones, one of its own else.

To start a process costs a hundred times what an answer of a running one does. The one that stays sees refs that move and
packs that arrive after it was started; packs that go away it may hold open, so that :meth:`ObjectReader.close` is called
when bytes have to be gone.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pipeline.errors import Failed, UsageError

STAYING = ("cat-file", "--batch-command", "--buffer", "-z")
"""The words of git that :class:`ObjectReader` runs."""

STREAMING = ("cat-file", "--batch", "--buffer", "-z")
"""The words of git that :func:`stream` runs."""

_OID = re.compile(rb"[0-9a-f]{40}")


@dataclass(frozen=True)
class Found:
    """An object: its id, its type (``blob``, ``tree``, ``commit``, ``tag``), its size in bytes; ``data`` where asked for."""

    oid: str
    kind: str
    size: int
    data: bytes = b""


class ObjectReader:
    """The process that stays. Started with the first question, again when it died; ends with this object or with Python.

    Several threads may ask, one at a time is answered: ask for the contents of small objects only. After a fork the
    child has a process of its own. ``command`` is the whole command line, with :data:`STAYING` at its end.
    """

    def __init__(self, place: Path, command: Sequence[str], environment: Callable[[], Mapping[str, str]]) -> None:
        self._place, self._command, self._environment = place, command, environment
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._whole = True
        self._ending: weakref.finalize[[subprocess.Popen[bytes]], ObjectReader] | None = None
        _READERS.add(self)

    def headers(self, questions: Sequence[bytes]) -> list[Found | None]:
        """What each name (as ``git rev-parse`` reads it) stands for, without its bytes; None where there is no object."""
        return self._ask(b"info", questions)

    def contents(self, questions: Sequence[bytes]) -> list[Found | None]:
        """As :meth:`headers`, with the bytes. Raises :class:`Failed` when git does not get to the end of an answer."""
        return self._ask(b"contents", questions)

    def close(self) -> None:
        """Ends the process, if there is one; the next question starts another."""
        with self._lock:
            self._end()

    def _ask(self, verb: bytes, questions: Sequence[bytes]) -> list[Found | None]:
        if not questions:
            return []
        told = b"".join(b"%s %s\0" % (verb, question) for question in questions) + b"flush\0"
        with self._lock:
            for _ in range(2):
                # What an interrupted question left in the pipe would be taken for the answer to this one.
                if self._process is None or not self._whole:
                    self._end()
                    self._start()
                assert self._process is not None and self._process.stdin is not None
                assert self._process.stdout is not None
                self._whole = False
                with contextlib.suppress(OSError, EOFError):
                    # It answers nothing before the flush, so that the two pipes cannot both fill up.
                    self._process.stdin.write(told)
                    self._process.stdin.flush()
                    found = list(_answers(self._process.stdout, questions, with_data=verb == b"contents"))
                    self._whole = True
                    return found
            self._end()
        raise _ended_early(self._place)

    def _start(self) -> None:
        self._process = _popen(self._command, self._environment(), subprocess.PIPE)
        self._whole = True
        self._ending = weakref.finalize(self, _end, self._process)

    def _end(self) -> None:
        if self._ending is not None:
            self._ending()
        self._process = self._ending = None

    def _forked(self) -> None:
        """In the child of a fork: the process is the parent's, and so is what stands in its pipes."""
        self._lock = threading.Lock()
        if self._ending is not None:
            self._ending.detach()
        if self._process is not None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None and not pipe.closed:
                    os.dup2(nowhere, pipe.fileno(), inheritable=False)
            os.close(nowhere)
            # Not a child of ours: nobody waits for it here.
            self._process.returncode = 0
        self._process = self._ending = None


_READERS: weakref.WeakSet[ObjectReader] = weakref.WeakSet()


def _after_fork() -> None:
    for reader in list(_READERS):
        reader._forked()


os.register_at_fork(after_in_child=_after_fork)


def stream(
    command: Sequence[str], environment: Mapping[str, str], place: Path, questions: Sequence[bytes]
) -> Iterator[Found | None]:
    """Every object with its bytes, in the order of the questions, one at a time in memory; a process of its own.

    ``command`` is the whole command line, with :data:`STREAMING` at its end. Raises :class:`Failed` when git does not get
    to the end of an answer.
    """
    if not questions:
        return
    # The questions come from a file, so that the two pipes cannot both fill up.
    with tempfile.TemporaryFile() as asked:
        asked.write(b"".join(b"%s\0" % question for question in questions))
        asked.seek(0)
        process = _popen(command, environment, asked)
        assert process.stdout is not None
        try:
            yield from _answers(process.stdout, questions, with_data=True)
        except EOFError:
            raise _ended_early(place) from None
        finally:
            _end(process)


def _popen(command: Sequence[str], environment: Mapping[str, str], stdin: int | IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=dict(environment)
        )
    except FileNotFoundError:
        raise UsageError("the git program is not installed, or not on PATH") from None


def _answers(stdout: IO[bytes], questions: Sequence[bytes], *, with_data: bool) -> Iterator[Found | None]:
    """The answers of ``cat-file``; EOFError where they end too early."""
    for question in questions:
        header = stdout.readline()
        if not header.endswith(b"\n"):
            raise EOFError
        words = header[:-1].rsplit(b" ", 2)
        if len(words) != 3 or not _OID.fullmatch(words[0]):
            # The answer repeats the name, which may go over several lines.
            for _ in range(question.count(b"\n")):
                stdout.readline()
            yield None
            continue
        size = int(words[2])
        data = stdout.read(size) if with_data else b""
        if with_data and (len(data) != size or stdout.read(1) != b"\n"):
            raise EOFError
        yield Found(words[0].decode(), words[1].decode(), size, data)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdout, process.stdin):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    process.wait()


def _ended_early(place: Path) -> Failed:
    return Failed(f"git cat-file ended early in {place}", next_commands=[f"git --git-dir={place} fsck"])
