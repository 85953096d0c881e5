"""The doctor over real SSH: keys read before they are trusted, on every hop, without logging in."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.demo.sshd import ThrowawaySshd
from pipeline.errors import Unreachable
from pipeline.model import Host
from pipeline.transports.ssh import SshTransport
from pipeline.workflow import doctor
from tests.live.over_ssh import SshSample

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def jump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySshd]:
    server = ThrowawaySshd(tmp_path_factory.mktemp("jump"))
    yield server.start()
    server.stop()


def key_of(server: ThrowawaySshd) -> str:
    return f"[127.0.0.1]:{server.port} {server.host_key}"


def config(folder: Path, text: str, *known: str) -> Path:
    (folder / "known").write_text("".join(f"{line}\n" for line in known))
    path = folder / "config"
    path.write_text(text)
    return path


def transport(path: Path) -> SshTransport:
    return SshTransport(Host(name="app1", address="app1", folder="/srv/app"), ssh_config=path)


def over_jump(folder: Path, sshd: ThrowawaySshd, jump: ThrowawaySshd, *known: str) -> SshTransport:
    file = folder / "known"
    text = jump.ssh_config_text("jump", known_hosts=file) + sshd.ssh_config_text("app1", known_hosts=file)
    return transport(config(folder, text.replace("Host app1\n", "Host app1\n  ProxyJump jump\n"), *known))


def test_a_key_is_read_before_it_is_trusted_and_the_line_makes_it_so(sshd: ThrowawaySshd, tmp_path: Path) -> None:
    path = config(tmp_path, sshd.ssh_config_text("app1", known_hosts=tmp_path / "known"))
    [offered] = transport(path).offered_keys()
    assert offered.unknown
    assert offered.objections
    assert offered.line == key_of(sshd)
    (tmp_path / "known").write_text(f"{offered.line}\n")
    trusting = transport(path)
    [offered] = trusting.offered_keys()
    assert (offered.objections, offered.unknown) == ((), False)
    try:
        assert trusting.run("echo in").stdout == b"in\n"
    finally:
        trusting.close()


def test_behind_a_jump_host_the_first_untrusted_key_ends_it(
    sshd: ThrowawaySshd, jump: ThrowawaySshd, tmp_path: Path
) -> None:
    [first] = over_jump(tmp_path, sshd, jump).offered_keys()
    assert (first.line, first.unknown) == (key_of(jump), True)
    both = over_jump(tmp_path, sshd, jump, key_of(jump))
    try:
        before, own = both.offered_keys()
    finally:
        both.close()
    assert (before.objections, before.line, own.line, own.unknown) == ((), key_of(jump), key_of(sshd), True)


def test_a_wrong_key_is_no_key_to_add(sshd: ThrowawaySshd, jump: ThrowawaySshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    other = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    path = config(
        tmp_path,
        sshd.ssh_config_text("app1", known_hosts=tmp_path / "known"),
        f"[127.0.0.1]:{sshd.port} {other}",
    )
    [offered] = transport(path).offered_keys()
    assert not offered.unknown
    assert "expected is" in " ".join(map(str, offered.objections))
    (tmp_path / "known").write_text(f"@revoked * {sshd.host_key}\n")
    [offered] = transport(path).offered_keys()
    assert not offered.unknown


def test_the_doctor_says_what_to_add_then_that_all_is_well(sshd: ThrowawaySshd, tmp_path: Path) -> None:
    sample = SshSample(tmp_path, {"test": [sshd], "production": [sshd]})
    sample.write("ssh_config", sshd.ssh_config_text("server1", known_hosts=tmp_path / "known_hosts"))
    (tmp_path / "known_hosts").write_text("")
    with pytest.raises(Unreachable, match="4 trouble") as unreachable:
        doctor.doctor(sample.session(), customer="acme")
    assert any(key_of(sshd) in command for command in unreachable.value.next_commands)
    said = "\n".join(sample.lines)
    assert "NOT TRUSTED" in said
    assert f"its line in known_hosts: {key_of(sshd)}" in said
    assert f"host_key: {sshd.host_key}" in said
    (tmp_path / "known_hosts").write_text(f"{key_of(sshd)}\n")
    found = doctor.doctor(sample.session(), customer="acme")
    assert found.what == "all is well with 2 host(s) and 2 database(s) of acme"
    assert ", trusted" in "\n".join(found.lines())


def test_a_server_that_is_not_there_is_said(sshd: ThrowawaySshd, tmp_path: Path) -> None:
    sample = SshSample(tmp_path, {"test": [sshd], "production": [sshd]})
    text = (tmp_path / "ssh_config").read_text()
    sample.write("ssh_config", text.replace(f"Port {sshd.port}", "Port 9"))
    with pytest.raises(Unreachable) as unreachable:
        doctor.doctor(sample.session(), customer="acme", environment="test")
    assert "cannot be reached" in str(unreachable.value.reasons[0])
