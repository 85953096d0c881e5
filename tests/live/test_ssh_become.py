"""Becoming another user: real sudo with users, passwords and rules of a machine of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import Unreachable
from pipeline.model import Become, Host
from pipeline.transports import LineCut
from pipeline.transports.ssh import SshTransport
from tests.servers.sudo import PASSWORD, SudoSshd, sudo_sshd

__all__ = ["sudo_sshd"]

pytestmark = pytest.mark.live

As = Callable[..., SshTransport]


@pytest.fixture
def as_app(sudo_sshd: SudoSshd, tmp_path: Path) -> Iterator[As]:
    """A transport that logs in as ``user`` and becomes app, with a password or without."""
    opened: list[SshTransport] = []

    def connect(user: str, password: str | None = None) -> SshTransport:
        config = tmp_path / f"config_{user}"
        config.write_text(sudo_sshd.ssh_config_text(user))
        become = Become(user="app", password="env:PASSWORD" if password else None)
        host = Host(name="app1", address=user, folder="/srv/app", become=become)
        opened.append(SshTransport(host, ssh_config=config, secret=lambda _: password or ""))
        return opened[-1]

    yield connect
    for transport in opened:
        transport.close()


@pytest.mark.parametrize(("user", "password"), [("free", None), ("free", PASSWORD), ("asked", PASSWORD)])
def test_a_script_runs_as_the_other_user_and_reads_only_its_own_input(
    as_app: As, user: str, password: str | None
) -> None:
    transport = as_app(user, password)
    data = os.urandom(300_000)
    for _ in range(2):  # the second time sudo might remember the first
        result = transport.run('id -un >&2; printf "%s|" "$@"; cat', ["a b", "$(id)"], stdin=iter([data[:5], data[5:]]))
        assert result.stdout == b"a b|$(id)|" + data
        assert result.stderr.splitlines()[-1] == b"app"
        assert result.exit_code == 0
    lines: list[str] = []
    assert transport.stream("id -un; cat; exit 3", stdin=b"one\ntwo", on_line=lines.append).exit_code == 3
    assert lines == ["app", "one", "two"]
    assert transport.stream("kill -9 $$", on_line=print).exit_code == 137


def test_no_process_list_shows_the_password(as_app: As) -> None:
    listed = as_app("asked", PASSWORD).run("cat /proc/*/cmdline /proc/self/environ 2>/dev/null").stdout
    assert b"sudo" in listed
    assert PASSWORD.encode() not in listed


@pytest.mark.parametrize(
    ("user", "password", "said"),
    [
        ("asked", None, "a password is required"),
        ("asked", "wrong", "incorrect password"),
        ("nobodys", None, "a password is required"),
        ("nobodys", PASSWORD, "not in the sudoers file"),
    ],
)
def test_who_is_not_let_through_is_told_why_and_the_input_stays_here(
    as_app: As, user: str, password: str | None, said: str
) -> None:
    asked_for_more: list[int] = []

    def stdin() -> Iterator[bytes]:
        asked_for_more.append(1)
        yield b"data"

    transport = as_app(user, password)
    with pytest.raises(Unreachable, match=f"{user} may not become app") as caught:
        transport.run("cat", stdin=stdin())
    assert said in caught.value.render()
    assert "wrong" not in caught.value.render()
    assert PASSWORD not in caught.value.render()
    if password is not None:
        assert not asked_for_more
    with pytest.raises(Unreachable, match="may not become"):
        transport.stream("cat", on_line=print)


def test_a_script_out_of_time_is_ended_as_the_other_user_too(as_app: As) -> None:
    result = as_app("asked", PASSWORD).run("echo begun; sleep 600", timeout=2)
    assert (result.exit_code, result.timed_out, result.stdout) == (124, True, b"begun\n")


def test_silence_is_a_cut_line_as_the_other_user_too(as_app: As) -> None:
    with pytest.raises(LineCut):
        as_app("asked", PASSWORD).stream("sleep 30", on_line=print, silence=4)


def test_dialling_needs_no_sudo(as_app: As, sudo_sshd: SudoSshd) -> None:
    with as_app("nobodys").dial("127.0.0.1", sudo_sshd.port) as connection:
        assert connection.recv(4) == b"SSH-"
