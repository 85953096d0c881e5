"""What lies on a host and is not ours to read: it is told, never passed over. As another user where tests run as root."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.host import Host
from pipeline.transports import Result
from pipeline.transports.local import LocalTransport
from tests.jobs import FILES, entry, installed, outcomes, put, release_of

OTHER = 65534
"""The user nobody, by number."""


class AsUser(LocalTransport):
    """This machine as a user who is not root."""

    def run(
        self, script: str, arguments: Sequence[str] = (), *, stdin: bytes | Iterable[bytes] = b"", **more: Any
    ) -> Result:
        return super().run(*self._down(script, arguments), stdin=stdin, **more)

    def stream(
        self, script: str, arguments: Sequence[str] = (), *, stdin: bytes | Iterable[bytes] = b"", **more: Any
    ) -> Result:
        return super().stream(*self._down(script, arguments), stdin=stdin, **more)

    def _down(self, script: str, arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
        if os.geteuid() != 0:
            return script, arguments
        step_down = f'exec setpriv --reuid={OTHER} --regid={OTHER} --clear-groups sh -c "$@"'
        return step_down, [script, "sh", *arguments]


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: only its owner may enter that.
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed, and root may read everything")
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    for name in ("app", "tmp", "payloads"):
        (base / name).mkdir()
        if os.geteuid() == 0:
            os.chown(base / name, OTHER, OTHER)
    yield base / "app"
    for path in base.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(base)


@pytest.fixture
def host(folder: Path) -> Host:
    return Host(AsUser(environment={"TMPDIR": str(folder.parent / "tmp")}), "app1", str(folder))


@pytest.fixture
def there(host: Host, folder: Path) -> Path:
    installed(host)
    return folder / "releases" / "2.4.0+1"


def theirs(path: Path, mode: int) -> None:
    """Makes it somebody else's, whom we are not; run by a normal user it is merely closed."""
    path.chmod(mode if os.geteuid() == 0 else 0)
    if os.geteuid() == 0:
        os.chown(path, 0, 0)


def differences(host: Host) -> list[str]:
    found = host.verify("2.4.0+1", release_of(FILES)[0])
    # Quickly too, as far as it is another size, date, mode or inode.
    assert list(host.inspect().drift or ()) == found
    return found


def test_nothing_differs_when_all_can_be_read(host: Host, there: Path) -> None:
    assert differences(host) == []


def test_an_extra_file_that_only_root_reads_is_a_difference(host: Host, there: Path) -> None:
    (there / "evil.php").write_text("<?php")
    theirs(there / "evil.php", 0o600)
    assert differences(host) == ["evil.php cannot be read by us"]


def test_a_file_of_the_release_that_cannot_be_read_is_a_difference(host: Host, there: Path) -> None:
    theirs(there / "app.py", 0o600)
    assert differences(host) == ["app.py cannot be read by us"]


@pytest.mark.parametrize("mode", [0o700, 0o744, 0o711])
def test_an_extra_folder_that_cannot_be_searched_is_a_difference(host: Host, there: Path, mode: int) -> None:
    (there / "bin" / "sub").mkdir()
    (there / "bin" / "sub" / "evil.php").write_text("<?php")
    theirs(there / "bin" / "sub", mode)
    assert "bin/sub cannot be read by us" in differences(host)


def test_a_link_after_a_folder_that_cannot_be_searched_is_still_compared(host: Host, there: Path) -> None:
    (there / "-closed").mkdir()
    theirs(there / "-closed", 0o700)
    (there / "bin" / "link").unlink()
    (there / "bin" / "link").symlink_to("/etc/passwd")
    (there / "pipe").mkdir()
    assert differences(host) == [
        "-closed cannot be read by us",
        "bin/link is another kind of file or points elsewhere",
        "pipe does not belong to the release",
    ]


def test_a_release_that_cannot_be_read_at_all_is_not_the_release(host: Host, there: Path) -> None:
    theirs(there, 0o711)
    assert "some of the release cannot be read by us" in differences(host)


def test_a_journal_that_cannot_be_read_is_damage(host: Host, folder: Path) -> None:
    host.append_journal(entry())
    host.append_journal(entry(run="run-2"))
    theirs(folder / "journal" / "000001-deployment-started.json", 0o400)
    assert "cannot be read" in (host.inspect().journal_damage or "")
    theirs(folder / "journal", 0o711)
    assert "journal cannot be read" in (host.inspect().journal_damage or "")


def test_somebody_else_s_file_in_the_old_release_does_not_become_part_of_the_new_one(
    host: Host, there: Path, folder: Path
) -> None:
    (there / "evil.php").write_text("<?php")
    theirs(there / "evil.php", 0o600)
    new = {**FILES, b"app.py": ("100644", b"new")}
    assert outcomes(put(host, "2.5.0+1", new, base=("2.4.0+1", FILES), fence=2)) == {1: "failed 92"}
    assert outcomes(put(host, "2.5.0+1", new, fence=3)) == {1: "ok"}
    assert host.verify("2.5.0+1", release_of(new)[0]) == []
