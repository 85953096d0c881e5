"""Who is let in and who is trusted: real OpenSSH servers, direct and behind a jump host."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.demo.sshd import ThrowawaySshd
from pipeline.errors import ConfigurationError, Unreachable
from pipeline.model import Host
from pipeline.transports import LineCut
from pipeline.transports.ssh import SshTransport

pytestmark = pytest.mark.live

Connect = Callable[..., SshTransport]


@pytest.fixture
def connect() -> Iterator[Connect]:
    opened: list[SshTransport] = []

    def make(address: str, config: Path, host_key: str | None = None, **options: Any) -> SshTransport:
        host = Host(name="app1", address=address, host_key=host_key, folder="/srv/app")
        opened.append(SshTransport(host, ssh_config=config, **options))
        return opened[-1]

    yield make
    for transport in opened:
        transport.close()


@pytest.fixture(scope="module")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A host key that is not the server's."""
    path = tmp_path_factory.mktemp("key") / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySshd]:
    server = ThrowawaySshd(tmp_path_factory.mktemp("jump"))
    yield server.start()
    server.stop()


def config_with(tmp_path: Path, sshd: ThrowawaySshd, *known: str) -> Path:
    """An ssh_config for ``app1`` whose known_hosts has exactly these lines."""
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("".join(f"{line}\n" for line in known))
    config = tmp_path / "ssh_config"
    config.write_text(sshd.ssh_config_text("app1", known_hosts=known_hosts))
    return config


def fingerprint(key: str) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(key.split()[1])).digest()).decode().rstrip("=")


def name_of(sshd: ThrowawaySshd) -> str:
    return f"[127.0.0.1]:{sshd.port}"


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


# --- accepted ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["plain", "list", "wildcard", "hashed"])
def test_a_known_key_is_accepted_however_it_is_listed(
    style: str, sshd: ThrowawaySshd, tmp_path: Path, connect: Connect, other_key: str
) -> None:
    name = name_of(sshd)
    listed = {
        "plain": name,
        "list": f"elsewhere,{name}",
        "wildcard": f"[127.0.0.?]:*,!{name}9",
        "hashed": hashed(name),
    }[style]
    config = config_with(
        tmp_path,
        sshd,
        "# a comment",
        "not a key line",
        f"@cert-authority *.example.com {other_key}",
        f"@revoked * {other_key}",
        f"{listed} {sshd.host_key} a comment",
    )
    assert connect("app1", config).run("echo in").stdout == b"in\n"


def test_a_pinned_key_is_accepted_without_known_hosts(sshd: ThrowawaySshd, tmp_path: Path, connect: Connect) -> None:
    assert connect("app1", config_with(tmp_path, sshd), sshd.host_key).run("echo in").stdout == b"in\n"


def test_the_known_hosts_of_the_workspace_beats_that_of_the_ssh_config(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect, other_key: str
) -> None:
    config = config_with(tmp_path, sshd, f"{name_of(sshd)} {other_key}")
    assert connect("app1", config, known_hosts=sshd.known_hosts_file).run("true").ok


def test_files_in_the_ssh_config_count_from_its_folder(sshd: ThrowawaySshd, tmp_path: Path, connect: Connect) -> None:
    config = tmp_path / "ssh_config"
    (tmp_path / "known_hosts").write_text(sshd.known_hosts_file.read_text())
    (tmp_path / "key").write_bytes(sshd.identity_file.read_bytes())
    config.write_text(
        f"Host app1\n HostName 127.0.0.1\n Port {sshd.port}\n IdentityFile key\n UserKnownHostsFile known_hosts\n"
    )
    assert connect("app1", config).run("true").ok


# --- refused -------------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_its_fingerprint_and_what_to_add(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    with pytest.raises(Unreachable) as caught:
        connect("app1", config_with(tmp_path, sshd), hint="invoke demo.start").run("true")
    text = caught.value.render()
    assert fingerprint(sshd.host_key) in text
    assert f"{name_of(sshd)} {sshd.host_key}" in text
    assert str(tmp_path / "known_hosts") in text
    assert "invoke demo.start" in text
    assert (tmp_path / "known_hosts").read_text() == ""


@pytest.mark.parametrize("pinned", [False, True])
def test_a_wrong_key_is_refused_with_both_fingerprints(
    pinned: bool, sshd: ThrowawaySshd, tmp_path: Path, connect: Connect, other_key: str
) -> None:
    if pinned:
        transport = connect("app1", config_with(tmp_path, sshd, f"{name_of(sshd)} {sshd.host_key}"), other_key)
    else:
        transport = connect("app1", config_with(tmp_path, sshd, f"{name_of(sshd)} {other_key}"))
    with pytest.raises(Unreachable, match="not trusted") as caught:
        transport.run("true")
    text = caught.value.render()
    assert fingerprint(sshd.host_key) in text
    assert fingerprint(other_key) in text


def test_a_revoked_key_is_refused_even_where_it_is_known_and_pinned(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    config = config_with(tmp_path, sshd, f"{name_of(sshd)} {sshd.host_key}", f"@revoked * {sshd.host_key}")
    for pinned in (None, sshd.host_key):
        with pytest.raises(Unreachable) as caught:
            connect("app1", config, pinned).run("true")
        assert f"revoked: somebody else may hold it ({tmp_path / 'known_hosts'}:2)" in caught.value.render()


def test_a_revoked_line_that_cannot_be_read_stops_everything(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    config = config_with(tmp_path, sshd, f"{name_of(sshd)} {sshd.host_key}", "@revoked * ssh-ed25519 AAAA")
    with pytest.raises(ConfigurationError, match="known_hosts:2"):
        connect("app1", config)


def test_only_a_certificate_authority_is_refused_and_says_why(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect, other_key: str
) -> None:
    with pytest.raises(Unreachable, match="host certificate would be trusted"):
        connect("app1", config_with(tmp_path, sshd, f"@cert-authority * {other_key}")).run("true")


def test_the_key_of_an_authority_is_no_host_key(sshd: ThrowawaySshd, tmp_path: Path, connect: Connect) -> None:
    with pytest.raises(Unreachable):
        connect("app1", config_with(tmp_path, sshd, f"@cert-authority * {sshd.host_key}")).run("true")


@pytest.mark.parametrize(
    "pattern", ["127.0.0.1", "[127.0.0.1]:1", "[127.0.0.?]:*,!{name}", "![127.0.0.9]:22", hashed("[127.0.0.1]:1")]
)
def test_a_key_listed_for_another_name_is_not_known(
    pattern: str, sshd: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    line = f"{pattern.format(name=name_of(sshd))} {sshd.host_key}"
    with pytest.raises(Unreachable, match="no key is known"):
        connect("app1", config_with(tmp_path, sshd, line)).run("true")


# --- behind a jump host ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known_jump", "known_target", "said"), [(True, True, None), (False, True, "jump"), (True, False, "target")]
)
def test_every_hop_must_be_known(
    known_jump: bool,
    known_target: bool,
    said: str | None,
    sshd: ThrowawaySshd,
    jump: ThrowawaySshd,
    tmp_path: Path,
    connect: Connect,
    other_key: str,
) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(
        f"{name_of(jump)} {jump.host_key if known_jump else other_key}\n"
        f"{name_of(sshd)} {sshd.host_key if known_target else other_key}\n"
    )
    config = tmp_path / "ssh_config"
    config.write_text(
        sshd.ssh_config_text("app1", known_hosts=known, proxy_jump="jump")
        + jump.ssh_config_text("jump", known_hosts=known)
    )
    transport = connect("app1", config)
    if said is None:
        assert transport.run("echo in").stdout == b"in\n"
        return
    wrong = jump if said == "jump" else sshd
    with pytest.raises(Unreachable) as caught:
        transport.run("true")
    assert f"host key of {name_of(wrong)} is not trusted" in caught.value.render()
    assert fingerprint(wrong.host_key) in caught.value.render()


def test_a_pinned_key_speaks_for_the_target_only(
    sshd: ThrowawaySshd, jump: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    config = tmp_path / "ssh_config"
    empty = tmp_path / "known_hosts"
    empty.write_text("")
    config.write_text(
        sshd.ssh_config_text("app1", known_hosts=empty, proxy_jump="jump")
        + jump.ssh_config_text("jump", known_hosts=empty)
    )
    with pytest.raises(Unreachable) as caught:
        connect("app1", config, sshd.host_key).run("true")
    assert f"no key is known for {name_of(jump)}" in caught.value.render()


def test_a_jump_that_leads_back_is_a_configuration_error(
    sshd: ThrowawaySshd, jump: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(sshd.ssh_config_text("app1", proxy_jump="jump") + jump.ssh_config_text("jump", proxy_jump="app1"))
    with pytest.raises(ConfigurationError, match="leads back"):
        connect("app1", config)


# --- not let in, not there, cut ----------------------------------------------------------------------------------------------


def test_a_key_that_is_not_let_in_is_named(
    sshd: ThrowawaySshd, jump: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    config = tmp_path / "ssh_config"
    config.write_text(sshd.ssh_config_text("app1").replace(str(sshd.identity_file), str(jump.identity_file)))
    with pytest.raises(Unreachable, match="did not let") as caught:
        connect("app1", config).run("true")
    assert str(jump.identity_file) in caught.value.render()


def test_nobody_there(sshd: ThrowawaySshd, tmp_path: Path, connect: Connect) -> None:
    config = tmp_path / "ssh_config"
    config.write_text("Host app1\n HostName 127.0.0.1\n Port 1\n")
    with pytest.raises(Unreachable, match="cannot be reached"):
        connect("app1", config).run("true")


def test_an_ssh_config_that_cannot_be_read(tmp_path: Path, connect: Connect) -> None:
    with pytest.raises(ConfigurationError):
        connect("app1", tmp_path / "absent")
    (tmp_path / "wrong").write_text("Host app1\n Port seven\n")
    with pytest.raises(ConfigurationError):
        connect("app1", tmp_path / "wrong")


class Relay:
    """A line to the server that can drop its first connections, and be cut."""

    def __init__(self, target: int, drop: int = 0) -> None:
        self.target, self.drop, self.seen = target, drop, 0
        self.lines: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.seen += 1
                if self.seen <= self.drop:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self.target))
                self.lines += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for line in self.lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()
        self.lines.clear()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()


@contextlib.contextmanager
def relayed(sshd: ThrowawaySshd, tmp_path: Path, drop: int = 0) -> Iterator[tuple[Relay, Path]]:
    relay = Relay(sshd.port, drop)
    config = tmp_path / "ssh_config"
    config.write_text(sshd.ssh_config_text("app1").replace(f"Port {sshd.port}", f"Port {relay.port}"))
    yield relay, config
    relay.close()


def test_connections_dropped_before_the_banner_are_tried_again(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    with relayed(sshd, tmp_path, drop=2) as (relay, config):
        assert connect("app1", config, sshd.host_key).run("true").ok
        assert relay.seen == 3


def test_a_refused_key_is_not_tried_again(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect, other_key: str
) -> None:
    with relayed(sshd, tmp_path) as (relay, config):
        with pytest.raises(Unreachable):
            connect("app1", config, other_key).run("true")
        assert relay.seen == 1


def test_a_line_cut_under_a_command_is_an_unknown_outcome_and_the_next_call_connects_again(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    done = tmp_path / "done"
    with relayed(sshd, tmp_path) as (relay, config):
        transport = connect("app1", config, sshd.host_key)

        def cut_when_begun() -> Iterator[bytes]:
            yield b"begin\n"
            while not done.exists():
                yield b""
            relay.cut()

        with pytest.raises(LineCut):
            transport.run('read line; echo "$line" >"$1"; sleep 30', [str(done)], stdin=cut_when_begun())
        assert transport.run('cat "$1"', [str(done)]).stdout == b"begin\n"


def test_a_connection_that_died_while_idle_is_opened_again(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect
) -> None:
    with relayed(sshd, tmp_path) as (relay, config):
        transport = connect("app1", config, sshd.host_key)
        assert transport.run("true").ok
        relay.cut()
        assert transport.run("true").ok


def test_a_host_that_goes_silent_is_an_unknown_outcome(
    sshd: ThrowawaySshd, tmp_path: Path, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport = connect("app1", config_with(tmp_path, sshd, f"{name_of(sshd)} {sshd.host_key}"))
    monkeypatch.setattr(transport, "overtime", -4.0)  # we lose patience while the host still works
    with pytest.raises(LineCut):
        transport.run("sleep 5", timeout=5)


def test_only_strong_algorithms_are_offered(sshd: ThrowawaySshd, tmp_path: Path, connect: Connect) -> None:
    connect("app1", config_with(tmp_path, sshd, f"{name_of(sshd)} {sshd.host_key}")).run("true")
    server = ThrowawaySshd(tmp_path / "old", settings=("Ciphers aes128-cbc,3des-cbc",))
    server.start()
    try:
        config = tmp_path / "old_config"
        config.write_text(server.ssh_config_text("old"))
        with pytest.raises(Unreachable, match="outdated cryptography"):
            connect("old", config).run("true")
    finally:
        server.stop()


def test_a_server_that_forbids_forwarding_says_so(tmp_path: Path, connect: Connect) -> None:
    server = ThrowawaySshd(tmp_path / "strict", settings=("AllowTcpForwarding no",)).start()
    try:
        config = tmp_path / "strict_config"
        config.write_text(server.ssh_config_text("strict"))
        with pytest.raises(Unreachable, match="AllowTcpForwarding"):
            connect("strict", config).dial("127.0.0.1", server.port)
    finally:
        server.stop()
