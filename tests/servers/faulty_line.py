"""A line to a server that fails once, after so many bytes: it ends, or it falls silent and nobody is told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Literal

Fault = Literal["cut", "away", "frozen", "frozen away"]
"""``cut``: every connection ends, new ones work. ``away``: new ones do not either, until :meth:`FaultyLine.mend`.
``frozen``, ``frozen away``: the same, but without a word to either end."""


class FaultyLine:
    """A proxy on loopback to the port ``target``. ``passed``: bytes so far, both ways together; ``port`` is its own.

    ``taken``: connections that were passed on.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.passed = self.taken = 0
        self.failed = False
        self._after: int | None = None
        self._fault: Fault = "cut"
        self._away = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._dead: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def arm(self, after: int | None, fault: Fault = "cut") -> None:
        """From now on bytes are counted anew; with the byte number ``after`` the line fails."""
        with self._lock:
            self.passed, self._after, self._fault, self.failed = 0, after, fault, False

    def mend(self) -> None:
        """New connections work again; those that had fallen silent end."""
        with self._lock:
            self._away, self._after = False, None
            self._end(self._dead)

    def close(self) -> None:
        """Ends everything."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        with self._lock:
            self._end(self._open | self._dead)

    def _end(self, lines: set[socket.socket]) -> None:
        for line in list(lines):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()
            self._open.discard(line)
            self._dead.discard(line)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    if self._away and self._fault == "frozen away":
                        self._dead.add(client)
                        continue
                    if self._away:
                        client.close()
                        continue
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self.taken += 1
                    self._open |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                with self._lock:
                    if source in self._dead:
                        return  # silent: what it says is lost
                    before, self.passed = self.passed, self.passed + len(data)
                    fails = self._after is not None and not self.failed and self.passed >= self._after
                    if fails:
                        assert self._after is not None
                        data, self.failed = data[: self._after - before], True
                        self._away = "away" in self._fault
                if not data and not fails:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
                if fails:
                    with self._lock:
                        if self._fault.startswith("frozen"):
                            self._dead |= self._open
                            self._open.clear()
                        else:
                            self._end(self._open)
                    return


@contextlib.contextmanager
def faulty_line(target: int) -> Iterator[FaultyLine]:
    """A line that is closed in the end."""
    line = FaultyLine(target)
    try:
        yield line
    finally:
        line.close()
