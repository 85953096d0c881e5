"""Logging in: key files, an agent, certificates, old servers; real OpenSSH on both sides."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.demo.sshd import ThrowawaySshd
from pipeline.errors import Unreachable
from pipeline.model import Host
from pipeline.transports.ssh import SshTransport
from pipeline.transports.ssh_session import Session

pytestmark = pytest.mark.live


def keygen(*words: object) -> None:
    subprocess.run(["ssh-keygen", "-q", *map(str, words)], check=True, stdin=subprocess.DEVNULL, capture_output=True)


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    keygen("-t", kind, "-N", passphrase, "-f", path)
    return path


def public(key: Path) -> str:
    return key.with_name(key.name + ".pub").read_text()


class Place:
    """One server, and an ssh_config to it with the lines of a test's own."""

    def __init__(self, server: ThrowawaySshd, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.opened: list[SshTransport] = []

    def let_in(self, *keys: str) -> None:
        (self.server.folder / "authorized_keys").write_text("".join(keys))

    def connect(self, *lines: str) -> SshTransport:
        config = self.folder / "ssh_config"
        head = [f"Host app1\n HostName 127.0.0.1\n Port {self.server.port}"]
        head.append(f"UserKnownHostsFile {self.server.known_hosts_file}")
        config.write_text("\n ".join([*head, *lines]) + "\n")
        self.opened.append(SshTransport(Host(name="app1", address="app1", folder="/srv/app"), ssh_config=config))
        return self.opened[-1]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings = (f"TrustedUserCAKeys {tmp_path / 'ca.pub'}",)
    make_key(tmp_path / "ca")
    server = ThrowawaySshd(tmp_path / "server", settings=settings).start()
    place = Place(server, tmp_path)
    yield place
    for transport in place.opened:
        transport.close()
    server.stop()


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """A real ssh-agent; called with a key, it gets it."""
    where = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", where], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not where.exists():
        assert process.poll() is None
    monkeypatch.setenv("SSH_AUTH_SOCK", str(where))

    def add(key: Path) -> None:
        subprocess.run(["ssh-add", "-q", key], check=True, stdin=subprocess.DEVNULL, capture_output=True)

    yield add
    process.terminate()
    process.wait()


@pytest.fixture(autouse=True)
def nobody_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_key_file_of_each_kind(kind: str, place: Place, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", kind)
    place.let_in(public(key))
    assert place.connect(f"IdentityFile {key}").run("echo in").stdout == b"in\n"


def test_the_usual_files_where_none_is_named(place: Place, tmp_path: Path) -> None:
    make_key(tmp_path / "home/.ssh/id_ed25519")
    place.let_in(public(make_key(tmp_path / "home/.ssh/id_rsa", "rsa")))
    assert place.connect().run("echo in").stdout == b"in\n"


def test_the_second_file_is_tried_when_the_first_is_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[bool] = []
    opened = Session.opened
    # A session that was asked for together with the first key is never answered: it must not be waited for.
    monkeypatch.setattr(Session, "opened", lambda *args: answered.append(opened(*args)) or answered[-1])
    first, second = make_key(tmp_path / "first"), make_key(tmp_path / "second", "ecdsa")
    place.let_in(public(second))
    assert place.connect(f"IdentityFile {first}", f"IdentityFile {second}").run("echo in").stdout == b"in\n"
    assert answered and all(answered)
    place.let_in("")
    with pytest.raises(Unreachable, match="none of 2 keys"):
        place.connect(f"IdentityFile {first}", f"IdentityFile {second}", "IdentitiesOnly yes").run("true")


def test_a_key_that_was_renewed_is_read_again(place: Place, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    place.let_in(public(key))
    assert place.connect(f"IdentityFile {key}").run("true").ok
    key.unlink()
    make_key(key, "ecdsa")
    place.let_in(public(key))
    assert place.connect(f"IdentityFile {key}").run("true").ok


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_an_agent(kind: str, place: Place, tmp_path: Path, agent: Callable[[Path], None]) -> None:
    key = make_key(tmp_path / "key", kind)
    agent(key)
    place.let_in(public(key))
    assert place.connect().run("echo in").stdout == b"in\n"
    with pytest.raises(Unreachable):  # only what files name, and there is none
        place.connect("IdentitiesOnly yes").run("true")


def test_a_locked_key_serves_through_the_agent_only(
    place: Place, tmp_path: Path, agent: Callable[[Path], None]
) -> None:
    for number in range(7):  # more than the server lets be tried
        agent(make_key(tmp_path / f"other{number}"))
    key = make_key(tmp_path / "key")
    agent(key)
    keygen("-p", "-P", "", "-N", "passphrase", "-f", key)
    place.let_in(public(key))
    for lines in ((), ("IdentitiesOnly yes",)):
        assert place.connect(f"IdentityFile {key}", *lines).run("echo in").stdout == b"in\n"
    os.environ["SSH_AUTH_SOCK"] = "/nowhere"
    with pytest.raises(Unreachable, match="locked by a passphrase") as caught:
        place.connect(f"IdentityFile {key}").run("true")
    assert "ssh-add" in caught.value.render()


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
@pytest.mark.parametrize("through", ["file", "agent"])
def test_a_certificate(kind: str, through: str, place: Place, tmp_path: Path, agent: Callable[[Path], None]) -> None:
    key = make_key(tmp_path / "key", kind)
    place.let_in("")
    keygen("-s", tmp_path / "ca", "-I", "test", "-n", place.server.user, "-V", "+1h", f"{key}.pub")
    if through == "agent":
        agent(key)
        assert place.connect().run("echo in").stdout == b"in\n"
    else:
        assert place.connect(f"IdentityFile {key}").run("echo in").stdout == b"in\n"


def test_a_certificate_that_is_out_of_date_or_for_somebody_else(place: Place, tmp_path: Path) -> None:
    for number, words in enumerate((["-n", place.server.user, "-V", "-2h:-1h"], ["-n", "somebody", "-V", "+1h"])):
        key = make_key(tmp_path / f"key{number}")
        place.let_in("")
        keygen("-s", tmp_path / "ca", "-I", "test", *words, f"{key}.pub")
        with pytest.raises(Unreachable, match="did not let"):
            place.connect(f"IdentityFile {key}").run("true")


def test_no_key_at_all_says_where_was_looked(place: Place) -> None:
    with pytest.raises(Unreachable, match="no key to log in with") as caught:
        place.connect().run("true")
    assert "~/.ssh/id_*, agent" in caught.value.render()


def test_a_server_that_wants_more_than_a_key(place: Place, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    server = ThrowawaySshd(
        tmp_path / "strict",
        settings=("AuthenticationMethods publickey,keyboard-interactive", "KbdInteractiveAuthentication yes"),
    ).start()
    try:
        strict = Place(server, tmp_path)
        strict.let_in(public(key))
        with pytest.raises(Unreachable, match="the server also wants: keyboard-interactive"):
            strict.connect(f"IdentityFile {key}").run("true")
    finally:
        server.stop()


# --- old servers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["host key", "exchange"])
def test_a_server_with_sha_1_only_is_told_its_substitute(what: str, tmp_path: Path) -> None:
    key = make_key(tmp_path / "old_host_key", "rsa")
    settings = {
        "host key": (f"HostKey {key}", "HostKeyAlgorithms ssh-rsa"),
        "exchange": ("KexAlgorithms diffie-hellman-group14-sha1",),
    }[what]
    server = ThrowawaySshd(tmp_path / "old", settings=settings).start()
    try:
        with pytest.raises(Unreachable, match="outdated cryptography") as caught:
            Place(server, tmp_path).connect().run("true")
        assert "Ed25519 host key (ssh-keygen -A there" in caught.value.render()
    finally:
        server.stop()


def test_a_server_that_takes_rsa_keys_with_sha_1_only_is_told_its_substitute(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", "rsa")
    server = ThrowawaySshd(tmp_path / "old", settings=("PubkeyAcceptedAlgorithms ssh-rsa",)).start()
    try:
        old = Place(server, tmp_path)
        old.let_in(public(key))
        with pytest.raises(Unreachable, match="did not let") as caught:
            old.connect(f"IdentityFile {key}").run("true")
        assert "SHA-1 only, which is broken, needs an Ed25519 key" in caught.value.render()
    finally:
        server.stop()
