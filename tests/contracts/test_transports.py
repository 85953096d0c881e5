"""One suite for every transport: what is written in ``pipeline/transports/__init__.py`` holds for each."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import Unreachable, UsageError
from pipeline.model import Become, Host
from pipeline.transports import LineCut, Transport
from pipeline.transports.local import LocalTransport
from pipeline.transports.ssh import SshTransport

HARD = [
    "",
    " ",
    "a b",
    "$(touch /tmp/tma-injected)",
    "`id`",
    "; id",
    "'",
    '"',
    "\\",
    "é\n\tü",
    "-n",
    "*",
    "!x",
    "~",
    "%s",
]


@pytest.fixture(
    scope="module",
    params=[
        "local",
        pytest.param("ssh", marks=pytest.mark.live),
        pytest.param("ssh and sudo", marks=pytest.mark.live),
    ],
)
def transport(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Transport]:
    if request.param == "local":
        yield LocalTransport("app1 (this machine)")
        return
    server = request.getfixturevalue("sshd")
    config = tmp_path_factory.mktemp("ssh") / "config"
    config.write_text(server.ssh_config_text("app1"))
    become = None
    if request.param == "ssh and sudo":
        if os.geteuid() != 0 or not shutil.which("sudo"):
            pytest.skip("only root may become itself everywhere without being asked; and sudo is needed")
        become = Become(user="root")
    ssh = SshTransport(Host(name="app1", address="app1", folder="/srv/app", become=become), ssh_config=config)
    yield ssh
    ssh.close()


@contextlib.contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A server on loopback that reads one request's first bytes, answers and closes; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    with client:
                        client.recv(65536)
                        client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_name_tells_which_host(transport: Transport) -> None:
    assert "app1" in transport.name


def test_output_errors_and_exit_code_come_back_as_bytes(transport: Transport) -> None:
    result = transport.run(r"printf 'a\377\000b'; echo wrong >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"a\xff\x00b", b"wrong\n")
    assert not result.ok
    assert transport.run("true").ok


def test_arguments_arrive_as_they_are(transport: Transport) -> None:
    result = transport.run("""printf '%s\\0' "$@" """, HARD)
    assert result.stdout.decode().split("\0")[:-1] == HARD
    assert not Path("/tmp/tma-injected").exists()


@pytest.mark.parametrize("arguments", [["a\0b"], ["x" * 130_000]])
def test_what_no_shell_can_be_given_is_refused_before_it_is_sent(transport: Transport, arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        transport.run("true", arguments)


def test_standard_input_is_the_bytes_and_then_its_end(transport: Transport) -> None:
    assert transport.run("cat", stdin=b"\x00\xff\r\n").stdout == b"\x00\xff\r\n"
    assert transport.run("cat; echo end").stdout == b"end\n"


def test_a_stream_larger_than_every_buffer_goes_in_and_out(transport: Transport) -> None:
    chunks = [bytes([number]) * 300_000 for number in range(20)]
    result = transport.run("cat; head -c 1000000 /dev/zero >&2", stdin=iter(chunks))
    assert result.stdout == b"".join(chunks)
    assert len(result.stderr) == 1_000_000


def test_of_much_output_the_end_is_kept_where_asked(transport: Transport) -> None:
    script = "head -c 300000 /dev/zero; echo end; head -c 70000 /dev/zero >&2; echo worse >&2; exit 3"
    result = transport.run(script, keep=100_000)
    assert result.stdout == bytes(100_000 - 4) + b"end\n"
    assert result.stderr == bytes(70_000) + b"worse\n"
    assert (result.exit_code, result.cut) == (3, True)
    exactly = transport.run("head -c 100000 /dev/zero", keep=100_000)
    assert (len(exactly.stdout), exactly.cut) == (100_000, False)


def test_a_script_that_does_not_read_its_input_still_gives_its_exit_code(transport: Transport) -> None:
    assert transport.run("exit 7", stdin=iter([b"x" * 1_000_000] * 8)).exit_code == 7


@pytest.mark.parametrize("error", [KeyError("blob"), OSError("disk")])
def test_an_error_of_the_stream_is_raised_and_ends_the_script(transport: Transport, error: Exception) -> None:
    def stream() -> Iterator[bytes]:
        yield b"first"
        raise error

    with pytest.raises(type(error)):
        transport.run("cat; sleep 60", stdin=stream())


def test_a_script_out_of_time_is_ended_on_the_host(
    transport: Transport, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pid_file = tmp_path_factory.mktemp("timeout") / "pid"
    result = transport.run('echo begun; echo $$ >"$1"; sleep 600; echo never', [str(pid_file)], timeout=1)
    assert (result.exit_code, result.timed_out, result.stdout) == (124, True, b"begun\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_a_script_that_prints_without_end_is_ended_too(transport: Transport) -> None:
    result = transport.run("yes", timeout=1, keep=1000)
    assert (result.exit_code, result.timed_out, len(result.stdout)) == (124, True, 1000)


def test_an_exit_code_of_124_is_not_taken_for_a_timeout(transport: Transport) -> None:
    result = transport.run("exit 124")
    assert (result.exit_code, result.timed_out) == (124, False)


def test_a_killed_script_gives_128_and_the_signal(transport: Transport) -> None:
    assert transport.run("kill -9 $$").exit_code == 137


def test_a_process_left_behind_does_not_hold_the_call_up(transport: Transport) -> None:
    result = transport.run("sleep 300 & echo $!", timeout=60)
    os.kill(int(result.stdout), 15)
    assert result.ok


# --- stream --------------------------------------------------------------------------------------------------------------


def test_lines_come_while_the_script_still_runs(transport: Transport, tmp_path_factory: pytest.TempPathFactory) -> None:
    go = tmp_path_factory.mktemp("stream") / "go"
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line == "first":
            go.touch()

    script = (
        """echo first; while ! [ -e "$1" ]; do sleep .05; done; printf 'é \\377\\n\\nlast'; echo wrong >&2; exit 5"""
    )
    result = transport.stream(script, [str(go)], on_line=on_line)
    assert lines == ["first", "é \udcff", "", "last"]
    assert (result.exit_code, result.stdout, result.stderr) == (5, b"", b"wrong\n")


def test_a_stream_gives_128_and_the_signal(transport: Transport) -> None:
    assert transport.stream("kill -9 $$", on_line=print).exit_code == 137
    assert transport.stream("kill -TERM $$", on_line=print).exit_code == 143


def test_a_stream_takes_arguments_and_large_input_and_gives_many_lines(transport: Transport) -> None:
    chunks = [bytes([65 + number]) * 299_999 + b"\n" for number in range(20)]
    lines: list[str] = []
    result = transport.stream(
        """printf '%s\\n' "$1"; cat; head -c 1000000 /dev/zero >&2""",
        ["$(id) 'x'"],
        stdin=iter(chunks),
        on_line=lines.append,
    )
    assert result.ok
    assert lines == ["$(id) 'x'", *(chunk.decode()[:-1] for chunk in chunks)]
    assert result.stderr == bytes(64 * 1024)


def test_a_chunk_of_input_goes_before_the_next_is_asked_for(
    transport: Transport, tmp_path_factory: pytest.TempPathFactory
) -> None:
    seen = tmp_path_factory.mktemp("stream") / "seen"

    def stdin() -> Iterator[bytes]:
        yield b"one\n"
        while not seen.exists():
            threading.Event().wait(0.02)
        yield b"two\n"

    lines: list[str] = []
    transport.stream('read x; touch "$1"; echo "$x"; cat', [str(seen)], stdin=stdin(), on_line=lines.append)
    assert lines == ["one", "two"]


@pytest.mark.parametrize("error", [KeyError("x"), OSError("disk"), EOFError("y"), KeyboardInterrupt()])
@pytest.mark.parametrize("of", ["stdin", "on_line"])
def test_an_error_of_the_callers_is_raised_out_of_a_stream(transport: Transport, of: str, error: BaseException) -> None:
    def stdin() -> Iterator[bytes]:
        yield b"first\n"
        if of == "stdin":
            raise error

    def on_line(line: str) -> None:
        if of == "on_line":
            raise error

    with pytest.raises(type(error)):
        transport.stream("cat; sleep 20", stdin=stdin(), on_line=on_line)
    assert transport.stream("echo again", on_line=print).ok


def test_a_script_that_says_nothing_is_a_cut_line_and_one_that_beats_is_not(transport: Transport) -> None:
    lines: list[str] = []
    beating = "for x in 1 2 3 4 5 6 7 8; do echo beat; sleep .25; done"
    assert transport.stream(beating, on_line=lines.append, silence=1).ok
    assert lines == ["beat"] * 8
    with pytest.raises(LineCut):
        transport.stream("echo once; sleep 20", on_line=lines.append, silence=1)
    assert lines[-1] == "once"


def test_a_host_that_takes_no_input_is_a_cut_line(transport: Transport) -> None:
    with pytest.raises(LineCut):
        transport.stream("sleep 20", stdin=iter([b"x" * 1_000_000] * 8), on_line=print, silence=1)


def test_a_stream_waits_for_no_process_left_behind(transport: Transport) -> None:
    lines: list[str] = []
    assert transport.stream("sleep 300 & echo $!", on_line=lines.append).ok
    os.kill(int(lines[0]), 15)


def test_our_environment_does_not_reach_the_script(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMA_CANARY", "secret-canary")
    assert b"secret-canary" not in transport.run("env").stdout


def test_dial_speaks_http(transport: Transport) -> None:
    body = b"x" * 200_000
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body
    with answering(answer) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.sock = transport.dial("127.0.0.1", port)
        connection.request("GET", "/")
        assert connection.getresponse().read() == body
        connection.close()


def test_dial_to_a_closed_port_is_an_os_error(transport: Transport) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError):
            transport.dial("127.0.0.1", unused.getsockname()[1])


def test_forward_gives_a_private_folder_with_a_socket_that_libpq_finds(transport: Transport) -> None:
    with answering(b"pong") as port:
        with transport.forward("127.0.0.1", port) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            for _ in range(2):
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(folder / f".s.PGSQL.{port}"))
                    client.sendall(b"ping")
                    assert client.recv(10) == b"pong"
                    assert client.recv(10) == b""
        assert not folder.exists()


def test_forward_says_that_nothing_answers(transport: Transport) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(Unreachable, match="nothing answers"), transport.forward("127.0.0.1", port) as folder:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(folder / f".s.PGSQL.{port}"))
                assert client.recv(1) == b""
            raise ValueError("what a client makes of it")


def test_close_twice_and_go_on(transport: Transport) -> None:
    transport.close()
    transport.close()
    assert transport.run("echo again").stdout == b"again\n"
