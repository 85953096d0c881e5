"""What a host must be sent so that it comes to hold a release: only what differs from what it holds already.

A payload is made once for each pair of trees, for all hosts of all customers that go from the one to the other, and kept
under ``<work>/cache/payloads`` by the trees' object ids; the folder may be deleted. The host compares every byte that
arrives with the release's list, so that a payload is never believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Failed, Reason
from pipeline.model import Manifest, TreeFile
from pipeline.paths import path_bytes

Read = Callable[[Sequence[str]], Iterable[tuple[str, bytes | None]]]
"""Blob ids to (blob id, bytes) in any order, None where there is no such blob; asked for in batches."""

BATCH_FILES, BATCH_BYTES = 256, 8 * 1024 * 1024
KEPT = 12
"""Payloads that stay in the cache, the ones used last."""
PIECE = 256 * 1024

_ODD = re.compile(rb"[\\\n\t\r]")


@dataclass(frozen=True)
class TreeEntry:
    """One member of a tar: a file's bytes, or with mode 0o120000 a link's target; with 0o40000 and permissions a folder.

    ``path`` is the raw name.
    """

    path: bytes
    mode: int
    data: bytes


@dataclass(frozen=True)
class Payload:
    """``members``: a file with the tar members ``tree/…``, without the end of an archive.

    ``remove`` and ``rmdir`` are NUL-separated names that the tree laid under it has too many, to be taken away first;
    ``digest`` is that of the whole release's list, ``expected`` the list itself. ``whole``: nothing is laid under it.
    """

    members: Path
    remove: bytes
    rmdir: bytes
    digest: str
    expected: bytes
    whole: bool

    def pieces(self) -> Iterator[bytes]:
        """The members' bytes."""
        with self.members.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece


class Payloads:
    """The payloads of one run, made when first asked for; safe for several threads."""

    def __init__(self, folder: Path, read: Read) -> None:
        self._folder = folder
        self._read = read
        self._lock = threading.Lock()
        self._known: dict[tuple[str | None, str], Payload] = {}

    def get(self, release: Manifest, base: Manifest | None) -> Payload:
        """What leads from ``base`` (None: from nothing) to ``release``.

        Failed when the repository does not hold what the manifest says.
        """
        key = (base.tree if base else None, release.tree)
        with self._lock:
            found = self._known.get(key)
            if found is None or not found.members.exists():
                found = self._known[key] = self._make(release, base)
            return found

    def renew(self, spoilt: Payload, release: Manifest, base: Manifest | None) -> Payload:
        """As :meth:`get`, made anew: a host found that ``spoilt`` is not what it should be. Once for all that find it."""
        key = (base.tree if base else None, release.tree)
        with self._lock:
            if self._known.get(key) is spoilt:
                self._known[key] = self._make(release, base, anew=True)
        return self.get(release, base)

    def _make(self, release: Manifest, base: Manifest | None, *, anew: bool = False) -> Payload:
        before = {file.path: file for file in base.files} if base else {}
        after = {file.path for file in release.files}
        changed = [file for file in release.files if not _same(before.get(file.path), file)]
        gone = [path for path in before if path not in after]
        replaced = [file.path for file in changed if file.path in before]
        folders = _folders(gone) - _folders(after) if gone else set()
        expected = listing(release)
        path = self._folder / f"{base.tree if base else 'nothing'}-{release.tree}.tar"
        if anew or not path.exists():
            self._write(path, changed)
        with contextlib.suppress(OSError):
            os.utime(path)
        return Payload(
            members=path,
            remove=b"".join(b"./" + path_bytes(name) + b"\0" for name in (*gone, *replaced)),
            rmdir=b"".join(b"./" + name + b"\0" for name in sorted(folders, key=lambda one: (-one.count(b"/"), one))),
            digest=hashlib.sha256(expected).hexdigest(),
            expected=expected,
            whole=base is None,
        )

    def _write(self, path: Path, files: Sequence[TreeFile]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as out:
                for piece in members(self._entries(files)):
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        known = sorted(self._folder.glob("*.tar"), key=lambda one: one.stat().st_mtime, reverse=True)
        for old in known[KEPT:]:
            old.unlink(missing_ok=True)

    def _entries(self, files: Sequence[TreeFile]) -> Iterator[TreeEntry]:
        for batch in _batches(files):
            blobs = dict(self._read(sorted({file.blob for file in batch})))
            for file in batch:
                data = blobs.get(file.blob)
                if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
                    raise Failed(
                        "the installations repository does not hold what the release's manifest says.",
                        reasons=[Reason(f"{file.path} should have the SHA-256 {file.sha256}", f"blob {file.blob}")],
                    )
                yield TreeEntry(b"tree/" + path_bytes(file.path), int(file.mode, 8), data)


def listing(manifest: Manifest) -> bytes:
    """The lines that ``host_scripts/survey.sh`` must come to for this release, without STAT, in the order of its ``sort``."""
    return b"".join(sorted(_line(file) for file in manifest.files))


def listing_digest(manifest: Manifest) -> str:
    """SHA-256 of :func:`listing`, in hexadecimal."""
    return hashlib.sha256(listing(manifest)).hexdigest()


def shown_name(path: str) -> str:
    """How ``host_scripts/survey.sh`` writes this name: ``./path``, or ``x:HEX`` where it could not stand in a line."""
    raw = path_bytes(path)
    return f"x:{raw.hex()}" if _ODD.search(raw) else "./" + raw.decode("utf-8", "surrogateescape")


def _line(file: TreeFile) -> bytes:
    return f"{file.mode} {file.sha256}  {shown_name(file.path)}\n".encode("utf-8", "surrogateescape")


def members(entries: Iterable[TreeEntry]) -> Iterator[bytes]:
    """Tar members in GNU format, the one whose long names GNU tar, busybox and bsdtar all read; without an end."""
    now = int(time.time())  # not 0: web servers tell browsers that two files of equal size and date are the same
    for entry in entries:
        info = tarfile.TarInfo(entry.path.decode("utf-8", "surrogateescape"))
        info.mtime = now
        if entry.mode == 0o120000:
            target = entry.data.decode("utf-8", "surrogateescape")
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
            yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
            continue
        if entry.mode & 0o170000 == 0o40000:
            info.type, info.mode = tarfile.DIRTYPE, entry.mode & 0o777
            yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
            continue
        # A file's mode loses its type bits here; a link's is recognised by them.
        info.mode, info.size = entry.mode & 0o777, len(entry.data)
        yield info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        yield entry.data
        yield b"\0" * (-len(entry.data) % tarfile.BLOCKSIZE)


END = b"\0" * (2 * tarfile.BLOCKSIZE)
"""What ends a tar."""


def _same(before: TreeFile | None, after: TreeFile) -> bool:
    return before is not None and (before.mode, before.sha256) == (after.mode, after.sha256)


def _folders(paths: Iterable[str]) -> set[bytes]:
    folders: set[bytes] = set()
    for path in paths:
        above = path_bytes(path).rpartition(b"/")[0]
        while above and above not in folders:
            folders.add(above)
            above = above.rpartition(b"/")[0]
    return folders


def _batches(files: Iterable[TreeFile]) -> Iterator[list[TreeFile]]:
    batch: list[TreeFile] = []
    size = 0
    for file in files:
        if batch and (len(batch) >= BATCH_FILES or size + file.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch
