"""A line to a server that a test can delay, cut, freeze, or cut after so many bytes."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.demo.sshd import ThrowawaySshd


class Line:
    """A proxy on loopback to ``target`` (a port of it, too).

    ``drop``: so many connections are closed at once. ``delay``: seconds each way. ``cut_after``: bytes, counted both
    ways together, after which every connection is cut. Attributes: ``port``, ``seen`` (connections), ``passed`` (bytes),
    ``turns`` (times that the client spoke after it had heard something: with a delay, the round trips that it waited).
    """

    def __init__(self, target: int, *, drop: int = 0, delay: float = 0.0, cut_after: int | None = None) -> None:
        self.target, self.drop, self.delay, self.cut_after = target, drop, delay, cut_after
        self.seen = self.passed = self.turns = 0
        self._heard = True
        self._open: list[socket.socket] = []
        self._count = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Little room, as on a real line: what is sent waits at the sender.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Both ends see the connection end."""
        for line in self._open:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()
        self._open.clear()

    def freeze(self) -> None:
        """Nothing is passed on any more, and nobody is told; new connections are frozen as well."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Goes on with what was frozen."""
        self._flowing.set()

    def close(self) -> None:
        """Ends it, and every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        self._flowing.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.seen += 1
                if self.seen <= self.drop:
                    client.close()
                    continue
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        # A connection costs a round trip: its two packets of ours, on their way and back.
        time.sleep(2 * self.delay)
        try:
            server = socket.create_connection(("127.0.0.1", self.target))
        except OSError:
            client.close()
            return
        self._open += [client, server]
        for line in (client, server):
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((client, server), (server, client)):
            under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            of_client = source is client
            threading.Thread(target=self._take, args=(source, under_way, of_client), daemon=True).start()
            threading.Thread(target=self._give, args=(under_way, sink, of_client), daemon=True).start()

    def _take(self, source: socket.socket, under_way: queue.SimpleQueue[tuple[float, bytes]], of_client: bool) -> None:
        data = b"x"
        while data:
            try:
                self._flowing.wait()
                data = source.recv(65536)
            except OSError:
                data = b""
            if of_client and data:
                self.turns += self._heard
                self._heard = False
            under_way.put((time.monotonic() + self.delay, data))

    def _give(self, under_way: queue.SimpleQueue[tuple[float, bytes]], sink: socket.socket, of_client: bool) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = under_way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                self._flowing.wait()
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                with self._count:
                    room = len(data) if self.cut_after is None else max(0, self.cut_after - self.passed)
                    self.passed += min(room, len(data))
                if not of_client:
                    self._heard = True
                sink.sendall(data[:room])
                if room < len(data):
                    self.cut()
                    return


@contextlib.contextmanager
def line_to(
    server: ThrowawaySshd, folder: Path, *, alias: str = "app1", drop: int = 0, delay: float = 0.0
) -> Iterator[tuple[Line, Path]]:
    """A line to ``server``, and an ssh_config in ``folder`` under which ``alias`` is reached over it."""
    line = Line(server.port, drop=drop, delay=delay)
    known = folder / "known_hosts_of_the_line"
    known.write_text(f"[127.0.0.1]:{line.port} {server.host_key}\n")
    config = folder / "ssh_config"
    text = server.ssh_config_text(alias, known_hosts=known)
    config.write_text(text.replace(f"Port {server.port}", f"Port {line.port}"))
    try:
        yield line, config
    finally:
        line.close()
