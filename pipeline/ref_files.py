"""Reads the refs of one bare repository from its files, as git does, without a process; nothing is kept between two looks.

A ref is a file of its own (``refs/heads/…``: 40 hexadecimal digits) or a line of ``packed-refs``; the file counts. Files are
looked at first, since ``git pack-refs`` writes the line before it removes the file. Writing is for git.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_LOOSE = re.compile(rb"([0-9a-f]{40})\s*")
_LINE = re.compile(rb"([0-9a-f]{40}) (refs/[^\n]+)\n")


class Unusual(Exception):
    """A file is not as expected (a symbolic ref, a broken one): git is to be asked. Never shown."""


class RefFiles:
    """The refs of the repository at ``path``, which keeps them in files (not in a reftable)."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def one(self, name: str) -> str | None:
        """The id that the full name names, None where there is no such ref. Raises :class:`Unusual`."""
        return self._loose(name) or next((oid for packed, oid in self._packed(name) if packed == name), None)

    def below(self, prefixes: Sequence[str]) -> dict[str, str]:
        """Every ref that is one of the prefixes or lies below one, sorted by name. Raises :class:`Unusual`."""
        loose = {name: oid for prefix in prefixes for name, oid in self._walk(prefix)}
        packed = {
            name: oid
            for prefix in prefixes
            for name, oid in self._packed(prefix)
            if name == prefix or name.startswith(f"{prefix}/")
        }
        return dict(sorted((packed | loose).items()))

    def _loose(self, name: str) -> str | None:
        try:
            with (self._path / name).open("rb") as file:
                match = _LOOSE.fullmatch(file.read(256))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise Unusual(name) from error
        if match is None:
            raise Unusual(name)
        return match[1].decode()

    def _walk(self, name: str) -> Iterator[tuple[str, str]]:
        try:
            inside = sorted(entry.name for entry in os.scandir(self._path / name))
        except FileNotFoundError:
            return
        except NotADirectoryError:
            found = self._loose(name)
            if found is not None:
                yield name, found
            return
        for part in inside:
            if not part.startswith(".") and not part.endswith(".lock"):
                yield from self._walk(f"{name}/{part}")

    def _packed(self, prefix: str) -> Iterator[tuple[str, str]]:
        """The lines whose name begins with ``prefix``. The file is replaced as a whole, never written to."""
        wanted = prefix.encode()
        with contextlib.suppress(FileNotFoundError), (self._path / "packed-refs").open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as lines:
                header = lines[: lines.find(b"\n") + 1]
                ordered = header.startswith(b"# pack-refs with:") and b" sorted " in header
                start = _first(lines, wanted, len(header)) if ordered else 0
                while start < len(lines):
                    line = lines[start : lines.find(b"\n", start) + 1]
                    start += len(line)
                    match = _LINE.fullmatch(line)
                    if match is None:
                        if not line.startswith((b"^", b"#")):
                            raise Unusual("packed-refs")
                    elif match[2].startswith(wanted):
                        yield match[2].decode("utf-8", "surrogateescape"), match[1].decode()
                    elif ordered:
                        return


def _first(lines: mmap.mmap, wanted: bytes, low: int) -> int:
    """Where the first line begins whose name is not below ``wanted``; the lines from ``low`` on are sorted by name."""
    high = len(lines)
    while low < high:
        start = lines.rfind(b"\n", low, (low + high) // 2) + 1 or low
        # A line with '^' is what the tag on the line before it names.
        if lines[start] == ord("^"):
            start = lines.rfind(b"\n", low, start - 1) + 1 or low
        end = lines.find(b"\n", start) + 1 or len(lines)
        if end < len(lines) and lines[end] == ord("^"):
            end = lines.find(b"\n", end) + 1 or len(lines)
        if lines[start + 41 : end].partition(b"\n")[0] < wanted:
            low = end
        else:
            high = start
    return low
