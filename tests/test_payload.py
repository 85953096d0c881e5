"""What a host is sent: made once for a pair of trees, and laid over the old release without touching it."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from pipeline import payload as payload_module
from pipeline.errors import Failed
from pipeline.host import Host
from pipeline.payload import END, Payload, Payloads, TreeEntry, listing, listing_digest, members
from pipeline.transports.local import LocalTransport
from tests.jobs import FILES, Files, busybox_tools, installed, outcomes, payload_of, put, release_of, snapshot

OLD: Files = {
    b"app.py": ("100644", b"print('app')\n"),
    b"bin/start": ("100755", b"#!/bin/sh\n"),
    b"bin/link": ("120000", b"../app.py"),
    b"plain/inner": ("100644", b"inner\n"),
    b"file": ("100644", b"file\n"),
    b"deep/er/est/x": ("100644", b"x\n"),
    b"kept/by/neighbour": ("100644", b"n\n"),
    b"kept/gone": ("100644", b"g\n"),
    **{name: value for name, value in FILES.items() if name not in (b"app.py", b"bin/start", b"bin/link")},
}

CHANGES: dict[str, Files] = {
    "content": {b"app.py": ("100644", b"print('new')\n")},
    "mode only": {b"app.py": ("100755", b"print('app')\n"), b"bin/start": ("100644", b"#!/bin/sh\n")},
    "added": {b"a/new/one": ("100644", b"1"), b"-rf": ("100755", b"2"), b"n\xff\n": ("100644", b"3")},
    "deleted": {b"deep/er/est/x": ("", b""), b"kept/gone": ("", b""), b"-n": ("", b""), b"end\n": ("", b"")},
    "deleted, odd folder": {b"new\nline/in\nboth": ("", b""), b"lat\xe9n/\xff\xfe": ("", b"")},
    "file to folder": {b"file": ("", b""), b"file/inner/x": ("100644", b"x")},
    "folder to file": {b"plain/inner": ("", b""), b"plain": ("100644", b"now a file\n")},
    "folder to link": {b"plain/inner": ("", b""), b"plain": ("120000", b"bin")},
    "link to folder": {b"bin/link": ("", b""), b"bin/link/x": ("100644", b"x")},
    "link to file": {b"bin/link": ("100644", b"../app.py")},
    "file to link": {b"app.py": ("120000", b"bin/start")},
    "link retargeted": {b"bin/link": ("120000", b"start")},
    "odd names changed": {name: ("100755", data + b"!") for name, (mode, data) in FILES.items() if mode == "100644"},
    "nothing": {},
}


def changed(files: Files, change: Files) -> dict[bytes, tuple[str, bytes]]:
    return {name: value for name, value in {**files, **change}.items() if value[0]}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(LocalTransport(), "app1", str(tmp_path / "app 1"))


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_patch_makes_the_new_release_and_never_touches_the_old_one(change: str, host: Host, tmp_path: Path) -> None:
    new = changed(OLD, CHANGES[change])
    installed(host, "1.0+1", OLD)
    before = snapshot(tmp_path / "app 1/releases/1.0+1")
    told = put(host, "2.0+1", new, base=("1.0+1", OLD), fence=2)
    assert outcomes(told) == {1: "ok"}, told
    assert host.verify("2.0+1", release_of(new)[0]) == []
    assert snapshot(tmp_path / "app 1/releases/1.0+1") == before
    assert host.inspect().drift == ()
    # And back again, onto what is there, and as a patch.
    told = put(host, "3.0+1", OLD, base=("2.0+1", new), fence=3)
    assert outcomes(told) == {1: "ok"}, told
    assert host.verify("3.0+1", release_of(OLD)[0]) == []
    assert host.verify("2.0+1", release_of(new)[0]) == []


@pytest.mark.parametrize("change", ["file to folder", "folder to link", "deleted, odd folder", "odd names changed"])
def test_a_patch_under_busybox(change: str, tmp_path: Path) -> None:
    path = busybox_tools(tmp_path / "busybox")
    host = Host(LocalTransport(environment={"PATH": path}), "app1", str(tmp_path / "app 1"))
    new = changed(OLD, CHANGES[change])
    installed(host, "1.0+1", OLD)
    before = snapshot(tmp_path / "app 1/releases/1.0+1")
    told = put(host, "2.0+1", new, base=("1.0+1", OLD), fence=2)
    assert outcomes(told) == {1: "ok"}, told
    assert host.verify("2.0+1", release_of(new)[0]) == []
    assert snapshot(tmp_path / "app 1/releases/1.0+1") == before


def test_unchanged_files_are_shared_and_changed_ones_are_not(host: Host, tmp_path: Path) -> None:
    installed(host, "1.0+1", OLD)
    put(host, "2.0+1", changed(OLD, CHANGES["content"]), base=("1.0+1", OLD), fence=2)
    one, two = (tmp_path / "app 1/releases" / name for name in ("1.0+1", "2.0+1"))
    assert (one / "data.bin").stat().st_ino == (two / "data.bin").stat().st_ino
    assert (one / "app.py").stat().st_ino != (two / "app.py").stat().st_ino


DRIFTED = {
    "changed": lambda there: (there / "data.bin").write_bytes(b"theirs"),
    "extra": lambda there: (there / "extra").touch(),
    "missing": lambda there: (there / "data.bin").unlink(),
    "mode": lambda there: (there / "data.bin").chmod(0o666),
    "in the way of what is added": lambda there: (there / "added").mkdir(),
    "in the way of what is removed": lambda there: (there / "deep/er/extra").touch(),
    "away": lambda there: there.rename(there.parent / "away"),
}


@pytest.mark.parametrize("kind", list(DRIFTED))
def test_nothing_is_built_on_a_release_that_was_changed(kind: str, host: Host, tmp_path: Path) -> None:
    installed(host, "1.0+1", OLD)
    new = changed(OLD, {b"added": ("100644", b"a"), b"deep/er/est/x": ("", b""), b"app.py": ("100644", b"2")})
    DRIFTED[kind](tmp_path / "app 1/releases/1.0+1")
    told = put(host, "2.0+1", new, base=("1.0+1", OLD), fence=2)
    assert outcomes(told) == {1: "failed 92"}
    assert told.steps[1].output == []  # so that the runner sends everything
    assert not (tmp_path / "app 1/releases/2.0+1").exists()
    assert outcomes(put(host, "2.0+1", new, fence=3)) == {1: "ok"}
    assert host.verify("2.0+1", release_of(new)[0]) == []


def test_bytes_that_are_not_the_release_s_never_get_its_name(host: Host, tmp_path: Path) -> None:
    payload = payload_of(tmp_path / "payloads", OLD)
    payload.members.write_bytes(payload.members.read_bytes().replace(b"print('app')", b"print('apq')"))
    told = put(host, "1.0+1", OLD)
    assert outcomes(told) == {1: "failed 92"}
    assert any("./app.py" in line for line in told.steps[1].output)
    assert list((tmp_path / "app 1/releases").iterdir()) == []
    payload.members.unlink()
    assert outcomes(put(host, "1.0+1", OLD, fence=2)) == {1: "ok"}


# --- the cache ------------------------------------------------------------------------------------------------------------


class Counting:
    """Reads blobs, and counts how often it is asked."""

    def __init__(self, files: Files) -> None:
        self.manifest, self._read = release_of(files)
        self.asked: list[str] = []

    def __call__(self, names: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        self.asked += names
        return self._read(names)


def test_only_what_differs_is_read_and_sent(tmp_path: Path) -> None:
    read = Counting(changed(OLD, CHANGES["content"]))
    payload = Payloads(tmp_path, read).get(read.manifest, release_of(OLD)[0])
    assert len(read.asked) == 1
    with tarfile.open(fileobj=io.BytesIO(b"".join(payload.pieces()) + END)) as tar:
        assert tar.getnames() == ["tree/app.py"]
    assert (payload.remove, payload.rmdir, payload.whole) == (b"./app.py\0", b"", False)
    assert payload.digest == listing_digest(read.manifest)


def test_folders_that_empty_go_from_the_inside_out(tmp_path: Path) -> None:
    payload = payload_of(tmp_path, {b"x": ("100644", b"")}, {b"x": ("100644", b""), b"a/b/c": ("100644", b"")})
    assert (payload.remove, payload.rmdir) == (b"./a/b/c\0", b"./a/b\0./a\0")


def test_many_hosts_at_once_and_later_runs_share_one_payload(tmp_path: Path) -> None:
    read = Counting(OLD)
    payloads, got, begin = Payloads(tmp_path / "cache", read), [], threading.Barrier(16)

    def work() -> None:
        begin.wait()
        got.append(payloads.get(read.manifest, None))

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 16 and len(set(map(id, got))) == 1
    assert sorted(read.asked) == sorted({file.blob for file in read.manifest.files})
    read.asked.clear()
    assert Payloads(tmp_path / "cache", read).get(read.manifest, None) == got[0]
    assert read.asked == []
    # The folder may be deleted at any time.
    got[0].members.unlink()
    assert payloads.get(read.manifest, None) == got[0] and read.asked != []
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".tar"]


def test_a_spoilt_payload_is_made_anew_once_for_all_that_find_it(tmp_path: Path) -> None:
    read = Counting(OLD)
    payloads = Payloads(tmp_path / "cache", read)
    spoilt = payloads.get(read.manifest, None)
    spoilt.members.write_bytes(b"spoilt")
    read.asked.clear()
    made = [payloads.renew(spoilt, read.manifest, None) for _ in range(3)]
    assert made[0].members.read_bytes() != b"spoilt"
    assert sorted(read.asked) == sorted({file.blob for file in read.manifest.files})
    assert all(one is made[0] is payloads.get(read.manifest, None) for one in made)


def test_pairs_of_trees_have_payloads_of_their_own(tmp_path: Path) -> None:
    one, two = OLD, changed(OLD, CHANGES["content"])
    made = {payload_of(tmp_path, new, base).members for new, base in ((one, None), (two, None), (two, one), (one, two))}
    assert len(made) == 4


def test_the_ones_used_last_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "KEPT", 3)
    kept: list[Payload] = []
    for number in range(6):
        kept.append(payload_of(tmp_path, {b"v": ("100644", str(number).encode())}))
        for age, payload in enumerate(reversed(kept)):
            if payload.members.exists():
                os.utime(payload.members, (1000 - age, 1000 - age))
        os.utime(kept[0].members, (5000, 5000))
    assert [payload.members.exists() for payload in kept] == [True, False, False, False, True, True]


def test_blobs_that_do_not_match_the_manifest_are_not_sent(tmp_path: Path) -> None:
    manifest, read = release_of(FILES)
    with pytest.raises(Failed, match="does not hold what"):
        Payloads(tmp_path, lambda names: [(name, data + b"!") for name, data in read(names)]).get(manifest, None)
    with pytest.raises(Failed, match="does not hold what"):
        Payloads(tmp_path, lambda names: []).get(manifest, None)
    assert list(tmp_path.iterdir()) == []


def test_blobs_are_read_in_batches_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "BATCH_BYTES", 1000)
    manifest, read = release_of({str(n).encode(): ("100644", bytes([n]) * 400) for n in range(9)})
    sizes: list[int] = []

    def counting(names: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        sizes.append(len(names))
        return read(names)

    Payloads(tmp_path, counting).get(manifest, None)
    assert sizes == [2, 2, 2, 2, 1]


@pytest.mark.slow
def test_a_large_payload_arrives(host: Host, tmp_path: Path) -> None:
    files = {b"big": ("100644", os.urandom(1 << 20) * 48)}
    files |= {f"many/{n}".encode(): ("100644", str(n).encode()) for n in range(3000)}
    assert outcomes(put(host, "1.0+1", files)) == {1: "ok"}
    assert host.verify("1.0+1", release_of(files)[0]) == []


def test_members_are_a_tar_that_python_reads_too() -> None:
    entries = [TreeEntry(b"tree/" + path, int(mode, 8), data) for path, (mode, data) in [*FILES.items(), *OLD.items()]]
    with tarfile.open(
        fileobj=io.BytesIO(b"".join(members(entries)) + END), encoding="utf-8", errors="surrogateescape"
    ) as tar:
        found = [(os.fsencode(one.name), one.mode, one.linkname) for one in tar]
    assert [name for name, _, _ in found] == [entry.path for entry in entries]
    assert all(bool(target) is (entry.mode == 0o120000) for (_, _, target), entry in zip(found, entries, strict=True))
    assert listing(release_of({})[0]) == b""
