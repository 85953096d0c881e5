"""What somebody changes on a host is found, whatever kind of change it is, and however well it is hidden."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.proof import report
from tests.live.proof.driver import Controllers
from tests.live.proof.stage import Stage
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.slow]

Change = Callable[[Path], None]


def same_size_and_date(host: Path) -> None:
    """A byte, with the size and the date that it had."""
    file = host / "current/app.txt"
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def link_instead(host: Path) -> None:
    file = host / "current/a.txt"
    file.rename(host / "shared/a.txt")
    file.symlink_to("../../shared/a.txt")


def folder_instead(host: Path) -> None:
    (host / "current/a.txt").unlink()
    (host / "current/a.txt").mkdir()


def link_retargeted(host: Path) -> None:
    (host / "current/link").unlink()
    (host / "current/link").symlink_to("static/deep/b.txt")


def file_instead(host: Path) -> None:
    (host / "current/link").unlink()
    (host / "current/link").write_text("a.txt")


def other_release(host: Path) -> None:
    (host / "releases/by-hand").mkdir()
    (host / "current").unlink()
    (host / "current").symlink_to("releases/by-hand")


def journal_changed(host: Path) -> None:
    entry = sorted((host / "journal").iterdir())[-2]
    entry.chmod(0o644)
    entry.write_bytes(entry.read_bytes().replace(b'"outcome":"ok"', b'"outcome":"failed"'))


CHANGES: dict[str, tuple[Change, str]] = {
    # The first: nothing but the content tells this one, as long as the files are those that were deployed.
    "another content of the same size and date": (same_size_and_date, "app.txt was changed"),
    "another content": (lambda host: Path(host / "current/a.txt").write_text("2\n") and None, "a.txt was changed"),
    "another mode": (lambda host: (host / "current/a.txt").chmod(0o755), "a.txt has another mode"),
    "a mode that Git does not have": (lambda host: (host / "current/a.txt").chmod(0o600), "a.txt has another mode"),
    "missing": (lambda host: (host / "current/static/deep/b.txt").unlink(), "static/deep/b.txt is missing"),
    "too many": (lambda host: Path(host / "current/same/7.txt").write_text("x") and None, "same/7.txt does not belong"),
    "an empty folder": (lambda host: (host / "current/static/empty").mkdir(), "static/empty"),
    "a link that points elsewhere": (link_retargeted, "link is another kind of file or points elsewhere"),
    "a file in the place of a link": (file_instead, "link is another kind of file"),
    "a link in the place of a file": (link_instead, "a.txt is another kind of file"),
    "a folder in the place of a file": (folder_instead, "a.txt"),
    "a named pipe": (lambda host: os.mkfifo(host / "current/pipe"), "pipe"),
    "current points elsewhere": (other_release, "current is by-hand, but the record says 1.0.0+1"),
    "the configuration": (
        lambda host: Path(host / "shared/app.conf").write_text("") and None,
        "shared/app.conf was changed",
    ),
    "the configuration is gone": (lambda host: (host / "shared/app.conf").unlink(), "shared/app.conf is missing"),
    "an entry of the journal": (journal_changed, "journal/"),
}


@pytest.fixture(scope="module")
def stage(server: ThrowawaySshd, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), [server]).ready()


def test_every_kind_of_drift_is_found(stage: Stage, controllers: Controllers) -> None:
    wrong: list[str] = []
    untouched = controllers.do(stage.folder, "drift", customer="acme", environment="test")
    assert untouched.ok, untouched.words
    for kind, (change, words) in CHANGES.items():
        change(stage.host("test"))
        found = controllers.do(stage.folder, "drift", customer="acme", environment="test")
        if found.error != "Refused" or words not in found.words:
            wrong.append(f"{kind}: {found.error}\n{found.words}")
        stage.restore()
    report("kinds of drift", points=len(CHANGES), wrong=len(wrong))
    assert not wrong, "\n\n".join(wrong)
