"""Writes single objects into one Git repository, as git writes them: a file each, synchronised before it gets its name.

For the few small objects of a record, where starting git would cost more than the writing. Nothing refers to an object
until a ref moves, and moving refs is for git. A process killed here leaves at most a file ``tmp_obj_*``, which git ignores
and ``git gc`` removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import Failed

LARGEST = 1 << 20
"""Bytes of an object above which git is to write it, so that it is not in memory more than once."""

_ENTRY = re.compile(rb"([0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)
_FOLDER = b"40000"


class LooseObjects:
    """The folder of loose objects of the repository at ``path``."""

    def __init__(self, path: Path) -> None:
        self._objects = path / "objects"

    def write(self, kind: str, data: bytes) -> str:
        """The id of the object, which is on the disk when this returns. Raises :class:`Failed` for what the system says."""
        whole = b"%s %d\0" % (kind.encode(), len(data)) + data
        oid = hashlib.sha1(whole, usedforsecurity=False).hexdigest()
        place = self._objects / oid[:2] / oid[2:]
        try:
            if not _freshened(place):
                _put(place, zlib.compress(whole, 1))
        except OSError as error:
            raise Failed(
                f"an object could not be written into {self._objects}",
                reasons=[error.strerror or str(error)],
                state="No ref was moved.",
            ) from None
        return oid

    def write_tree(
        self, base: str | None, changes: Mapping[bytes, tuple[str, str] | None], read: Callable[[str], bytes]
    ) -> str:
        """The id of the tree ``base`` (None: empty) with the changes: path → (mode, blob id), or None to delete.

        ``read`` gives the bytes of a tree. Folders that become empty go. Paths are what a tree can hold, and none is a
        folder of another.
        """
        return self._tree(base, changes, read) or self.write("tree", b"")

    def _tree(
        self, base: str | None, changes: Mapping[bytes, tuple[str, str] | None], read: Callable[[str], bytes]
    ) -> str | None:
        entries = _entries(read(base)) if base is not None else {}
        below: dict[bytes, dict[bytes, tuple[str, str] | None]] = {}
        for path, change in changes.items():
            name, separator, rest = path.partition(b"/")
            if separator:
                below.setdefault(name, {})[rest] = change
            elif change is None:
                entries.pop(name, None)
            else:
                entries[name] = change[0].lstrip("0").encode(), bytes.fromhex(change[1])
        for name, inside in below.items():
            mode, oid = entries.get(name, (b"", b""))
            made = self._tree(oid.hex() if mode == _FOLDER else None, inside, read)
            if made is not None:
                entries[name] = _FOLDER, bytes.fromhex(made)
            elif mode == _FOLDER:
                del entries[name]
        if not entries:
            return None
        # Git orders a folder as if its name ended in a slash.
        order = sorted(entries.items(), key=lambda item: item[0] + b"/" if item[1][0] == _FOLDER else item[0])
        return self.write("tree", b"".join(b"%s %s\0%s" % (mode, name, oid) for name, (mode, oid) in order))


def _entries(tree: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    """Each name of a tree with its mode and the twenty bytes of its id."""
    found = {match[2]: (match[1], match[3]) for match in _ENTRY.finditer(tree)}
    if sum(len(name) + len(mode) + 22 for name, (mode, _) in found.items()) != len(tree):
        raise Failed("a tree of the installations repository cannot be read", state="No ref was moved.")
    return found


def _freshened(place: Path) -> bool:
    """Whether the object is there; then it is young again, so that no ``git gc`` takes it from under us."""
    try:
        os.utime(place)
    except OSError:
        return False
    return True


def _put(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    # A name that git knows for the unfinished object of a process that died.
    beside = place.with_name(f"tmp_obj_{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444), "wb") as file:
            file.write(data)
            file.flush()
            _synchronise(file.fileno())
        beside.rename(place)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _synchronise(handle: int) -> None:
    # As git's core.fsyncMethod=fsync: on macOS, fsync alone leaves the bytes in the disk's own cache.
    whole = getattr(fcntl, "F_FULLFSYNC", None)
    if whole is None:
        os.fsync(handle)
    else:
        fcntl.fcntl(handle, whole)
