"""Lines that are cut without a word, servers that freeze, storms at the door: real OpenSSH servers behind a proxy."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.demo.sshd import ThrowawaySshd
from pipeline.errors import Unreachable
from pipeline.model import Host
from pipeline.transports import LineCut, ssh_connection, ssh_wire
from pipeline.transports.ssh import SshTransport
from tests.servers.line import Line, line_to

pytestmark = pytest.mark.live

BEATING = "trap 'exit' PIPE; while :; do echo beat; sleep .2; done"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same limits, shorter: the suite need not wait for the real ones."""
    monkeypatch.setattr(ssh_wire, "ASK_AFTER", 0.5)
    monkeypatch.setattr(ssh_wire, "ANSWER_WITHIN", 2.0)


@pytest.fixture
def connect() -> Iterator[Callable[..., SshTransport]]:
    opened: list[SshTransport] = []

    def connect(config: Path, host_key: str | None = None) -> SshTransport:
        host = Host(name="app1", address="app1", folder="/srv/app", host_key=host_key)
        opened.append(SshTransport(host, ssh_config=config))
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


def behind_a_jump(sshd: ThrowawaySshd, jump: ThrowawaySshd, line: Line, folder: Path) -> Path:
    """An ssh_config in which app1 is reached through a jump host, and the line to app1 lies behind that."""
    known = folder / "known_both"
    known.write_text(f"[127.0.0.1]:{line.port} {sshd.host_key}\n[127.0.0.1]:{jump.port} {jump.host_key}\n")
    text = sshd.ssh_config_text("app1", known_hosts=known, proxy_jump="jump")
    config = folder / "jump_config"
    config.write_text(
        text.replace(f"Port {sshd.port}", f"Port {line.port}") + jump.ssh_config_text("jump", known_hosts=known)
    )
    return config


@pytest.fixture(params=["direct", "behind a jump host"])
def frozen_line(
    request: pytest.FixtureRequest, sshd: ThrowawaySshd, tmp_path: Path, impatient: None
) -> Iterator[tuple[Line, Path]]:
    with line_to(sshd, tmp_path) as (line, config):
        if request.param == "direct":
            yield line, config
            return
        jump = ThrowawaySshd(tmp_path / "jump").start()
        try:
            yield line, behind_a_jump(sshd, jump, line, tmp_path)
        finally:
            jump.stop()


def test_a_silent_line_under_a_stream_is_noticed(
    frozen_line: tuple[Line, Path], connect: Callable[..., SshTransport]
) -> None:
    line, config = frozen_line
    transport = connect(config)

    def freeze(text: str) -> None:
        if text == "beat":
            line.freeze()

    with pytest.raises(LineCut):
        transport.stream(BEATING, on_line=freeze, silence=60)
    line.thaw()
    assert transport.run("echo again").stdout == b"again\n"


def test_a_silent_line_under_a_run_is_noticed(
    frozen_line: tuple[Line, Path], connect: Callable[..., SshTransport], tmp_path: Path
) -> None:
    line, config = frozen_line
    begun = tmp_path / "begun"

    def stdin() -> Iterator[bytes]:
        yield b"x"
        while not begun.exists():
            time.sleep(0.02)
        line.freeze()

    with pytest.raises(LineCut):
        connect(config).run('touch "$1"; sleep 60', [str(begun)], stdin=stdin(), timeout=120)


def test_a_silent_line_under_an_upload_is_noticed(
    frozen_line: tuple[Line, Path], connect: Callable[..., SshTransport]
) -> None:
    line, config = frozen_line

    def stdin() -> Iterator[bytes]:
        yield b"x" * 100_000
        line.freeze()
        while True:
            yield b"x" * 1_000_000

    with pytest.raises(LineCut):
        connect(config).run("cat >/dev/null", stdin=stdin(), timeout=120)


def test_a_silent_line_under_a_dialled_connection_is_its_end(
    frozen_line: tuple[Line, Path], connect: Callable[..., SshTransport]
) -> None:
    line, config = frozen_line
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = connect(config).dial("127.0.0.1", listener.getsockname()[1])
        theirs, _ = listener.accept()
        with ours, theirs:
            ours.sendall(b"ping")
            assert theirs.recv(10) == b"ping"
            line.freeze()
            assert ours.recv(10) == b""


def test_a_frozen_server_is_noticed(tmp_path: Path, connect: Callable[..., SshTransport], impatient: None) -> None:
    server = ThrowawaySshd(tmp_path / "frozen").start()
    try:
        config = tmp_path / "config"
        config.write_text(server.ssh_config_text("app1"))
        stopped: list[int] = []

        def freeze(text: str) -> None:
            if text.startswith("pid ") and not stopped:
                stopped.append(int(text.split()[1]))
                os.kill(stopped[0], signal.SIGSTOP)

        transport = connect(config)
        with pytest.raises(LineCut):
            # The script's parent is the server's process of this connection.
            transport.stream(f"echo pid $PPID; {BEATING}", on_line=freeze, silence=60)
        os.kill(stopped[0], signal.SIGKILL)
        assert transport.run("echo again").stdout == b"again\n"
    finally:
        server.stop()


def test_a_line_that_is_quiet_but_whole_is_left_alone(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Callable[..., SshTransport], impatient: None
) -> None:
    with line_to(sshd, tmp_path) as (line, config):
        assert connect(config).run("sleep 4; echo done").stdout == b"done\n"
        assert line.seen == 1


def test_a_server_that_says_nothing_at_the_door_is_not_tried_again(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Callable[..., SshTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_connection, "CONNECT_TIMEOUT", 1)
    with line_to(sshd, tmp_path) as (line, config):
        line.freeze()
        with pytest.raises(Unreachable, match="cannot be reached"):
            connect(config).run("true")
        assert line.seen == 1


def test_few_round_trips(sshd: ThrowawaySshd, tmp_path: Path, connect: Callable[..., SshTransport]) -> None:
    # Without the cares: 9 turns until the first command has answered, and 3 for each further one.
    with line_to(sshd, tmp_path, delay=0.1) as (line, config):
        transport = connect(config)
        transport.run("echo in")
        first = line.turns
        assert first <= 6
        lines: list[str] = []
        transport.stream("cat", stdin=b"x\n", on_line=lines.append)
        transport.stream("cat", stdin=b"y\n", on_line=lines.append)
        assert lines == ["x", "y"]
        assert line.turns - first <= 3


def test_a_line_that_takes_nothing_more_is_noticed(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Callable[..., SshTransport], impatient: None
) -> None:
    with line_to(sshd, tmp_path) as (line, config):
        transport = connect(config)
        assert transport.run("true").ok
        # So little that our own system has no room left long before the server's grant is used up.
        carrier = transport._connection.transport.wire._carrier
        carrier.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # the kernel's own protection, which a jump host's channel has not
            carrier.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)

        def stdin() -> Iterator[bytes]:
            line.freeze()
            while True:
                yield b"x" * 30_000

        with pytest.raises(LineCut):
            transport.stream("cat >/dev/null", stdin=stdin(), on_line=print, silence=60)


def test_input_larger_than_what_is_sent_unasked_arrives_whole(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Callable[..., SshTransport]
) -> None:
    data = os.urandom(1_000_000)
    with line_to(sshd, tmp_path, delay=0.05) as (_, config):
        transport = connect(config)
        for _ in range(2):
            assert transport.run("sleep 1; cat", stdin=iter([data] * 6)).stdout == data * 6


def test_a_server_that_opens_one_session_at_a_time_is_enough(
    tmp_path: Path, connect: Callable[..., SshTransport]
) -> None:
    server = ThrowawaySshd(tmp_path / "one", settings=("MaxSessions 1",)).start()
    try:
        config = tmp_path / "config"
        config.write_text(server.ssh_config_text("app1"))
        transport = connect(config)
        for number in range(4):
            assert transport.run(f"echo {number}").stdout == f"{number}\n".encode()
    finally:
        server.stop()


# --- at the door ---------------------------------------------------------------------------------------------------------


def test_a_storm_at_the_door_is_weathered(tmp_path: Path) -> None:
    server = ThrowawaySshd(tmp_path / "storm", settings=("PerSourceMaxStartups 2",)).start()
    try:
        with line_to(server, tmp_path) as (line, config), contextlib.ExitStack() as crowd:
            for _ in range(2):
                other = crowd.enter_context(socket.create_connection((server.address, server.port)))
                assert other.recv(4) == b"SSH-"
            outcomes: list[bytes] = []

            def one() -> None:
                transport = SshTransport(Host(name="app1", address="app1", folder="/srv/app"), ssh_config=config)
                outcomes.append(transport.run("echo in").stdout)
                transport.close()

            threads = [threading.Thread(target=one) for _ in range(2)]
            for thread in threads:
                thread.start()
            while line.seen < 4:
                time.sleep(0.02)
            crowd.close()
            for thread in threads:
                thread.join()
            assert outcomes == [b"in\n"] * 2
    finally:
        server.stop()


def test_a_login_revoked_in_the_middle_is_a_clear_stop(tmp_path: Path, connect: Callable[..., SshTransport]) -> None:
    server = ThrowawaySshd(tmp_path / "revoking").start()
    try:
        with line_to(server, tmp_path) as (line, config):
            transport = connect(config)
            assert transport.run("true").ok
            (server.folder / "authorized_keys").write_text("")
            line.cut()
            seen = line.seen
            for _ in range(2):
                with pytest.raises(Unreachable, match="did not let") as caught:
                    transport.run("true")
            assert "the key was not accepted" in caught.value.render()
            assert line.seen == seen + 2
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)
