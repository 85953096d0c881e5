"""One answer over HTTP, from servers that mean it well and from others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from pipeline.errors import ConfigurationError
from pipeline.http_check import LARGEST, get
from pipeline.transports.local import LocalTransport

Serve = Callable[[socket.socket], object]


@contextlib.contextmanager
def serving(serve: Serve) -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server on loopback, and the requests that it has had."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError):
                        requests.append(client.recv(65536))
                        serve(client)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def asked(serve: Serve, path: str = "/", seconds: float = 20) -> tuple[int, str]:
    with serving(serve) as (address, _):
        return get(LocalTransport().dial, address + path, seconds)


def saying(*pieces: bytes) -> Serve:
    def serve(client: socket.socket) -> None:
        for piece in pieces:
            client.sendall(piece)

    return serve


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([HEAD + b"Content-Length: 5\r\n\r\nhello and more"], (200, "hello")),
        ([HEAD + b"\r\nhel", b"lo"], (200, "hello")),
        ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n", b"2;x=y\r\nlo\r\n0\r\n\r\n"], (200, "hello")),
        ([b"HTTP/1.0 503 Not yet\r\n\r\n"], (503, "")),
        ([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"], (204, "")),
        ([b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"], (302, "")),
        ([HEAD + b"\r\n\xff\xc3\xb6"], (200, "\ufffdö")),
    ],
)
def test_what_is_answered(pieces: list[bytes], expected: tuple[int, str]) -> None:
    assert asked(saying(*pieces)) == expected


@pytest.mark.parametrize("head", [b"\r\n", b"Content-Length: 900000\r\n\r\n"])
def test_of_a_long_answer_the_beginning(head: bytes) -> None:
    assert asked(saying(HEAD + head + b"x" * 900_000)) == (200, "x" * LARGEST)


def test_a_connection_that_stays_open_is_not_waited_for() -> None:
    done = threading.Event()

    def serve(client: socket.socket) -> None:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
        done.wait(60)

    with serving(serve) as (address, _):
        assert get(LocalTransport().dial, address, 60) == (200, "ok")
        assert not done.is_set()
        done.set()


@pytest.mark.parametrize(
    "pieces",
    [
        [b""],
        [b"SSH-2.0-OpenSSH_9.2\r\n"],
        [b"HTTP/1.1 abc\r\n\r\n"],
        [HEAD + b"Content-Length: 50\r\n\r\nshort"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\nshort"],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot hexadecimal\r\n"],
        [HEAD + b"X: " + b"x" * 70_000 + b"\r\n\r\n"],
        [HEAD + b"X: y\r\n" * 200 + b"\r\n"],
    ],
    ids=["nothing", "ssh", "status", "cut", "cut chunk", "no chunk", "long header", "many headers"],
)
def test_what_is_no_whole_answer_is_an_os_error(pieces: list[bytes]) -> None:
    with pytest.raises(OSError):
        asked(saying(*pieces))


@pytest.mark.parametrize("before", [b"", HEAD, HEAD + b"\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_server_that_drips_is_given_up_at_the_deadline(before: bytes) -> None:
    stop = threading.Event()

    def serve(client: socket.socket) -> None:
        client.sendall(before)
        # Each byte comes well within any timeout of a single read; all of them would take an hour.
        while not stop.wait(0.05):
            client.sendall(b"1")

    try:
        with pytest.raises(TimeoutError, match="within 1 seconds"):
            asked(serve, seconds=1)
    finally:
        stop.set()


def test_a_server_that_is_silent_is_given_up_at_the_deadline() -> None:
    stop = threading.Event()
    try:
        with pytest.raises(TimeoutError, match="no whole answer"):
            asked(lambda client: stop.wait(30), seconds=0.2)
    finally:
        stop.set()


def test_time_that_is_over_is_over_before_anything_is_sent() -> None:
    with serving(saying(HEAD + b"\r\n")) as (address, _), pytest.raises(TimeoutError):
        get(LocalTransport().dial, address, -1)


def test_the_request_is_what_the_url_says() -> None:
    with serving(saying(HEAD + b"\r\n")) as (address, requests):
        get(LocalTransport().dial, f"{address}/a b/%2Fö?q=ä&x=[1]#part", 20)
        port = address.rpartition(":")[2]
        lines = requests[0].decode("ascii").split("\r\n")
    assert lines[0] == "GET /a%20b/%2F%C3%B6?q=%C3%A4&x=%5B1%5D HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}" in lines
    assert "Connection: close" in lines


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "http://[::1",
        "http://127.0.0.1:x/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/",
        "https://127.0.0.1/",
        "/health",
        "http://user:word@127.0.0.1/",
        "http://a b/",
        "http://" + "ü" * 80 + "/",
    ],
)
def test_a_url_that_cannot_be_asked_is_a_configuration_error(url: str) -> None:
    def dial(address: str, port: int) -> socket.socket:
        raise AssertionError(address, port)

    with pytest.raises(ConfigurationError, match="cannot be asked"):
        get(dial, url, 5)


def test_nobody_there_is_an_os_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            get(LocalTransport().dial, f"http://127.0.0.1:{unused.getsockname()[1]}/", 5)
