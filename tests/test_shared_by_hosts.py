"""What hosts share that were once read for each: the ssh_config, known_hosts; and what is computed while they are asked."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.model import Host
from pipeline.transports.known_hosts import trust_for
from pipeline.transports.ssh import SshTransport
from pipeline.workflow.ahead import Meanwhile

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43


def transport(name: str, config: Path) -> SshTransport:
    return SshTransport(Host(name=name, address=name, folder="/srv"), ssh_config=config)


def test_hosts_share_the_ssh_config_and_none_changes_it(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host a\n  User anna\n  Port 2201\nHost b\n  HostName 192.0.2.2\n  User bert\n")
    one, other = transport("a", config), transport("b", config)
    assert (one.name, other.name) == ("a (anna@a:2201)", "b (bert@192.0.2.2:22)")
    shared = one._connection.config
    assert shared is other._connection.config
    assert not shared._modifications
    config.write_text(config.read_text().replace("2201", "22011"))
    assert transport("a", config).name == "a (anna@a:22011)"


def test_known_hosts_are_read_anew_when_they_were_changed(tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(f"# nobody\n\na {KEY}\n")
    assert [key.source for key in trust_for("a", [known]).accepted] == [f"{known}:3"]
    assert not trust_for("b", [known]).accepted
    known.write_text(f"@revoked a {KEY}\nb {KEY}\n")
    trusts = [trust_for(name, [known]) for name in ("a", "b", "a")]
    assert [(len(trust.accepted), len(trust.revoked)) for trust in trusts] == [(0, 1), (1, 0), (0, 1)]


def test_what_is_computed_meanwhile_gives_its_result_or_its_error() -> None:
    going = threading.Event()
    later = Meanwhile(lambda: going.wait(20) and "done")
    going.set()
    assert later.result() == "done"

    def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        Meanwhile(fail).result()
