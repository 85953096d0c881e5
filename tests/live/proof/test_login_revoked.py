"""The login is revoked, or the host key exchanged, in the middle of a deployment: it stops at once and says why."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.live.over_ssh import ready_path
from tests.live.proof import report
from tests.live.proof.driver import Controllers
from tests.live.proof.stage import NEW, OLD, Stage, again, verdict_is_wrong
from tests.servers.faulty_line import FaultyLine, faulty_line
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.slow]

Undo = Callable[[], None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySshd]:
    server = ThrowawaySshd(tmp_path_factory.mktemp("server"), environment=ready_path() | {"SHLVL": "2"})
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def line(plain: ThrowawaySshd) -> Iterator[FaultyLine]:
    with faulty_line(plain.port) as running:
        yield running


@pytest.fixture(scope="module")
def stage(plain: ThrowawaySshd, line: FaultyLine, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), [plain]).over(plain, line).ready()


def login_revoked(server: ThrowawaySshd, folder: Path) -> Undo:
    keys = server.folder / "authorized_keys"
    before = keys.read_text()
    keys.write_text("")
    return lambda: keys.write_text(before) and None


def other_host_key(server: ThrowawaySshd, folder: Path) -> Undo:
    """Somebody else answers: sshd reads its key for each connection that it forks, once it is told to read all anew."""
    key, kept = server.folder / "host_key", folder / "host_key"
    shutil.copy(key, kept)
    key.unlink()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    again_read(server)

    def undo() -> None:
        shutil.copy(kept, key)
        again_read(server)

    return undo


def again_read(server: ThrowawaySshd) -> None:
    os.kill(int((server.folder / "sshd.pid").read_text()), signal.SIGHUP)
    time.sleep(0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [(login_revoked, "did not let"), (other_host_key, "host key")],
    ids=["login revoked", "another host key"],
)
def test_it_stops_at_once_and_says_why(
    stage: Stage,
    plain: ThrowawaySshd,
    line: FaultyLine,
    controllers: Controllers,
    change: Callable[[ThrowawaySshd, Path], Undo],
    words: str,
    tmp_path: Path,
) -> None:
    stage.restore()
    line.arm(None)
    assert controllers.do(stage.folder, "deploy", customer="acme", release=NEW).ok
    total = line.passed
    stage.restore()
    line.arm(total * 2 // 3, "away")
    running = controllers.begin(stage.folder, "deploy", customer="acme", release=NEW)
    while not line.failed:
        time.sleep(0.01)
    undo = change(plain, tmp_path)
    asked = line.taken
    line.mend()
    try:
        first = running.wait()
    finally:
        undo()
    assert words in first.words, first.words
    assert first.error == "PartlyDone"
    assert verdict_is_wrong(first, stage.truth(), OLD, NEW) is None
    # It is not asked again and again: a server may shut out who knocks too often.
    assert line.taken - asked <= 3
    assert again(stage, controllers, "deploy", customer="acme", release=NEW)[-1].ok
    assert stage.truth().complaints(NEW) == []
    report(words, points=1, wrong=0)
