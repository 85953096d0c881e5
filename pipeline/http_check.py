"""One HTTP answer, asked for through any dialled socket, within a time and a size that hold whatever the server does."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

from pipeline.errors import ConfigurationError, Reason

LARGEST = 64 * 1024
"""Bytes of an answer's body that are looked at."""

Dial = Callable[[str, int], socket.socket]
"""See :meth:`pipeline.transports.Transport.dial`."""


def get(dial: Dial, url: str, deadline_seconds: float) -> tuple[int, str]:
    """Status and the first 64 KiB of the answer to one GET, as text; bytes that are not UTF-8 become U+FFFD.

    The whole exchange is over after ``deadline_seconds``, however slowly the server drips; only ``dial`` has its own
    limit. Nothing is followed. Raises ConfigurationError for a URL that cannot be asked; OSError, in words, when nobody
    answers, in time, in full and in HTTP; what ``dial`` raises passes through.
    """
    address, port, request = _request(url)
    deadline = time.monotonic() + deadline_seconds
    connection = dial(address, port)
    try:
        timed = _Timed(connection, deadline, deadline_seconds)
        timed.send(request)
        return _answer(timed)
    finally:
        connection.close()


def _request(url: str) -> tuple[str, int, bytes]:
    try:
        parts = urlsplit(url)
        port = 80 if parts.port is None else parts.port
        address = parts.hostname or ""
        if parts.scheme != "http" or not address or port == 0 or parts.username is not None:
            raise ValueError("it must look like http://127.0.0.1:8080/health")
        host = address.encode("idna" if not address.isascii() else "ascii").decode()
        if quote(host, safe="-._~:") != host:
            raise ValueError("its address holds a character that no address has")
    except ValueError as error:
        raise ConfigurationError(f"{url!r} cannot be asked.", reasons=[Reason(str(error))]) from None
    name = f"[{host}]" if ":" in host else host
    # RFC 3986: what must not stand in a request line is percent-encoded, what is encoded already stays.
    safe = "/%:@!$&'()*+,;=~?"
    path = quote(parts.path or "/", safe=safe) + (f"?{quote(parts.query, safe=safe)}" if parts.query else "")
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {name}" + ("" if parts.port is None else f":{port}"),
        "User-Agent: tma-pipeline",
        "Accept-Encoding: identity",
        "Connection: close",
    ]
    return host, port, "".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii")


def _answer(timed: _Timed) -> tuple[int, str]:
    # With its TLS and mail it is among the slowest imports, and most commands ask no address.
    from http.client import HTTPException, HTTPResponse

    answer = HTTPResponse(timed)  # type: ignore[arg-type]  # it only calls makefile()
    try:
        answer.begin()
        body = answer.read(LARGEST)
        if len(body) < LARGEST and answer.length:
            raise ConnectionError(f"the answer ended {answer.length} bytes too early")
    except (HTTPException, ValueError) as error:
        # Not its text alone: http.client quotes what the server sent, which may be anything.
        raise ConnectionError(f"the answer is not HTTP: {type(error).__name__} {str(error)[:100]!r}") from None
    finally:
        answer.close()
    return answer.status, body.decode("utf-8", "replace")


class _Timed(io.RawIOBase):
    """A connection's bytes until the deadline; the ``socket`` that ``http.client`` reads from."""

    def __init__(self, connection: socket.socket, deadline: float, seconds: float) -> None:
        super().__init__()
        self._connection = connection
        self._deadline = deadline
        self._seconds = seconds

    def makefile(self, *_: Any) -> io.BufferedReader:
        """What ``http.client`` asks a socket for."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._limit()
        try:
            return self._connection.recv_into(buffer)
        except TimeoutError:
            raise self._late() from None

    def send(self, data: bytes) -> None:
        """Sends all of it."""
        self._limit()
        try:
            self._connection.sendall(data)
        except TimeoutError:
            raise self._late() from None

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._late()
        self._connection.settimeout(left)

    def _late(self) -> TimeoutError:
        return TimeoutError(f"no whole answer within {self._seconds:.0f} seconds")
