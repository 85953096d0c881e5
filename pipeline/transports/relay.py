"""Sockets that pass bytes on: what both transports use for ``dial`` and ``forward``. Standard library only."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from pipeline.errors import PipelineError, Unreachable
from pipeline.transports import PIECE


class Stream(Protocol):
    """What a socket and a Paramiko channel have in common."""

    def recv(self, size: int, /) -> bytes:
        """At most ``size`` bytes; empty at the end."""

    def sendall(self, data: bytes, /) -> object:
        """Sends all of ``data``."""

    def shutdown(self, how: int, /) -> object:
        """Ends one direction, or both."""

    def close(self) -> object:
        """Closes it."""


# Paramiko raises EOFError and its own SSHException on a dead connection; both mean "this stream is over" here. Only
# Exception covers them without importing Paramiko for the local transport.
_OVER = Exception


def _pass_on(source: Stream, sink: Stream) -> None:
    try:
        while data := source.recv(PIECE):
            sink.sendall(data)
    except _OVER:
        # A broken connection must not look like a clean end: close both ways.
        for stream in (source, sink):
            with suppress(_OVER):
                stream.shutdown(socket.SHUT_RDWR)
    else:
        with suppress(_OVER):
            sink.shutdown(socket.SHUT_WR)


def join(one: Stream, other: Stream) -> None:
    """Passes bytes both ways until both directions have ended, then closes both; blocks."""
    back = threading.Thread(target=_pass_on, args=(other, one), name="relay back", daemon=True)
    back.start()
    _pass_on(one, other)
    back.join()
    for stream in (one, other):
        with suppress(_OVER):
            stream.close()


def as_socket(stream: Stream) -> socket.socket:
    """A real socket that speaks for ``stream``.

    A Paramiko channel is only nearly a socket: ``http.client`` closes it under the reader's feet, ``ssl`` and libpq
    cannot use it at all.
    """
    ours, theirs = socket.socketpair()
    threading.Thread(target=join, args=(ours, stream), name="relay", daemon=True).start()
    return theirs


@contextmanager
def listening(dial: Callable[[], Stream], port: int, what: str) -> Iterator[Path]:
    """The folder of :meth:`pipeline.transports.Transport.forward`; ``dial`` opens one connection to the other end."""
    folder = Path(tempfile.mkdtemp(prefix="tma-"))  # mkdtemp: mode 0700
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    refused: list[Exception] = []
    open_streams: set[Stream] = set()

    def serve(client: socket.socket) -> None:
        try:
            far = dial()
        except Exception as error:
            refused[:] = [error]
            client.close()
            return
        refused.clear()
        both = (client, far)
        open_streams.update(both)
        join(client, far)
        open_streams.difference_update(both)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), name=f"forward {what}", daemon=True).start()

    try:
        listener.bind(str(folder / f".s.PGSQL.{port}"))
        listener.listen(16)
        acceptor = threading.Thread(target=accept, name=f"forward {what}", daemon=True)
        acceptor.start()
        try:
            yield folder
        except PipelineError:
            raise
        except Exception as error:
            if refused:
                raise Unreachable(f"nothing answers at {what}.", reasons=[str(refused[0])]) from error
            raise
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() alone does not
        listener.close()
        for stream in list(open_streams):
            with suppress(_OVER):
                stream.shutdown(socket.SHUT_RDWR)
        shutil.rmtree(folder, ignore_errors=True)
