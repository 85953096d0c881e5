"""Commits to write, and the words in which ``git fast-import`` is told of them. Runs nothing.

A path is text here, escaped as :mod:`pipeline.paths` writes it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline.errors import Refused
from pipeline.paths import path_bytes

NULL = "0" * 40
"""The object id that means "no such ref" to Git."""

_QUOTED = re.compile(rb'[\x00-\x1f"\\\x7f]')
_IDENTITY = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True)
class NewCommit:
    """A commit to write: ``changes`` on the tree ``base`` (of an object id; None: the empty tree).

    A change is path → the bytes of a plain file, (mode, bytes or blob id), or None to delete. A parent, or ``base``,
    that is a number means the commit of the batch at that position, from 0; such a base must be the first parent.
    """

    base: str | int | None
    changes: Mapping[str, bytes | tuple[str, str | bytes] | None]
    parents: Sequence[str | int]
    message: str
    author: str
    at: datetime


def signature(author: str, at: datetime) -> bytes:
    """``key <key@people.invalid> SECONDS +0000``; the product's own author passes with its domain."""
    if author == "product":
        return f"product <product@product.invalid> {int(at.timestamp())} +0000".encode()
    if not _IDENTITY.fullmatch(author):
        raise Refused(f"{author!r} is not a key that can be written as an author")
    return f"{author} <{author}@people.invalid> {int(at.timestamp())} +0000".encode()


def raw_path(path: str) -> bytes:
    """The bytes of a path; raises :class:`Refused` for text that is none."""
    try:
        raw = path_bytes(path)
    except ValueError:
        raise Refused(f"{path!r} is not the text of a file name") from None
    if b"\0" in raw:
        raise Refused(f"'{path}' holds a NUL, which no file name can")
    return raw


def _quoted(path: str) -> bytes:
    """A path as fast-import reads it, always quoted, in the style of C."""
    return b'"%s"' % _QUOTED.sub(lambda found: b"\\%03o" % found[0][0], raw_path(path))


def overlap(commit: NewCommit) -> bool:
    """Whether a changed path is a folder of another, so that the order of the changes matters."""
    paths = set(commit.changes)
    return any(path[:position] in paths for path in paths for position, sign in enumerate(path) if sign == "/")


def import_stream(commits: Sequence[NewCommit], tree_of: Callable[[str], str]) -> bytes:
    """What ``git fast-import`` reads to write the commits; it answers with their ids, a line each, and no ref moves."""
    # fast-import wants a branch for each commit; one that is taken back at the end leaves no ref behind.
    branch = f"refs/writing/{secrets.token_hex(8)}".encode()
    stream: list[bytes] = []
    marks = len(commits)
    for number, commit in enumerate(commits, start=1):
        lines: list[bytes] = []
        for path, change in commit.changes.items():
            mode, content = change if isinstance(change, tuple) else ("100644", change)
            if content is None:
                lines.append(b"D " + _quoted(path))
                continue
            if isinstance(content, bytes):
                marks += 1
                stream.append(b"blob\nmark :%d\ndata %d\n%s\n" % (marks, len(content), content))
                content = f":{marks}"
            lines.append(f"M {mode} {content} ".encode() + _quoted(path))
        who, message = signature(commit.author, commit.at), commit.message.encode()
        parents = [f":{p + 1}" if isinstance(p, int) else p for p in commit.parents]
        base = commit.base
        if isinstance(base, int):
            # The first parent's tree is where fast-import starts from.
            if not parents or parents[0] != f":{base + 1}":
                raise ValueError("a base within the batch must be the first parent")
            start = b""
        else:
            start = b"deleteall\n" + (b"" if base is None else b'M 040000 %s ""\n' % tree_of(base).encode())
        # Without this, a commit without parents would follow the branch's commit before it.
        stream.append(b"reset %s\n\n" % branch)
        stream.append(b"commit %s\nmark :%d\nauthor %s\ncommitter %s\n" % (branch, number, who, who))
        stream.append(b"data %d\n%s\n" % (len(message), message))
        stream += [
            b"%s %s\n" % (b"merge" if position else b"from", parent.encode()) for position, parent in enumerate(parents)
        ]
        stream += [start, b"".join(line + b"\n" for line in lines), b"\n"]
    stream += [b"get-mark :%d\n" % (number + 1) for number in range(len(commits))]
    stream += [b"reset %s\nfrom %s\n\ndone\n" % (branch, NULL.encode())]
    return b"".join(stream)
