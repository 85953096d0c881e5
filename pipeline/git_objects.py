"""The git program and the objects of one bare repository: reading and writing them.

Nothing that a user typed reaches a command line unchecked: refs pass an allow-list, object ids are 40 hexadecimal
digits, paths travel on standard input, with NUL between them. Hooks, replacements, prompts and ``ext::`` remotes are off.
Objects that no ref names are invisible to everybody, so writing them first is safe. SHA-1 object ids only. A path is text
here, escaped as :mod:`pipeline.paths` writes it. Few small objects are read through one process that stays
(:mod:`pipeline.object_reader`) and written without one (:mod:`pipeline.loose_objects`).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import Failed, NotKnown, Reason, Refused, UsageError
from pipeline.loose_objects import LARGEST, LooseObjects
from pipeline.new_commits import NULL, NewCommit, import_stream, overlap, raw_path, signature
from pipeline.object_reader import STAYING, STREAMING, Found, ObjectReader, stream
from pipeline.paths import path_text

_CONFIG = (
    "core.hooksPath=/dev/null",
    "core.fsync=committed,reference",
    "core.attributesFile=/dev/null",
    "core.logAllRefUpdates=false",
    "protocol.ext.allow=never",
    "gc.auto=0",
    "maintenance.auto=false",
    # A merge must come out the same on every machine, whatever its owner prefers.
    "merge.renames=true",
    "merge.directoryRenames=false",
    "merge.renormalize=false",
    "merge.conflictStyle=merge",
    "diff.algorithm=myers",
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=60",
)
# How to reach a remote stays the user's own; everything else that GIT_* variables can redirect is dropped.
_KEPT_VARIABLES = ("GIT_SSH", "GIT_ASKPASS", "GIT_SSL_", "GIT_HTTP_", "GIT_PROXY_", "GIT_CONFIG_GLOBAL", "GIT_TRACE")

_FEW = 64
"""Objects that are asked for one by one; more go through a process of their own, or one ``fast-import``."""

_SMALL = 1 << 20
"""Bytes that may go through the process that stays, which answers one thread at a time."""

_KEPT = 1024
"""Objects that never change (a commit, the tree of one) of which the answer is kept."""

OID = re.compile(r"[0-9a-f]{40}")
_REF_PART = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z._+-]*[0-9A-Za-z_+-])?")
_TRAILER = re.compile(r"([A-Za-z][A-Za-z0-9-]*): (.*)")
# Such a repository is one that git alone reads and writes: modes of its own, refs in a table, settings from elsewhere.
_UNUSUAL = re.compile(r"^\s*(\[\s*include|(sharedrepository|refstorage)\s*=)", re.IGNORECASE | re.MULTILINE)
_UNSAFE_PARTS = (b"", b".", b"..", b".git")


@dataclass(frozen=True)
class TreeEntry:
    """One entry of a recursive listing; ``mode`` as Git writes it (``160000`` is a submodule), ``path`` escaped."""

    mode: str
    oid: str
    path: str


@dataclass(frozen=True)
class CommitInfo:
    """A commit; ``at`` is the committer's instant in UTC, ``trailers`` those of the last paragraph (last one wins)."""

    oid: str
    tree: str
    parents: tuple[str, ...]
    author: str
    message: str
    trailers: dict[str, str]
    at: datetime


def ref_name(name: str) -> str:
    """``name`` itself when it is a full ref name that we accept; raises :class:`Refused` otherwise.

    Narrower than ``git check-ref-format``: ASCII letters, digits and ``._+-``, each part starting with a letter or digit.
    """
    parts = name.split("/")
    fine = (
        len(name) <= 240
        and len(parts) >= 3
        and parts[0] == "refs"
        and all(_REF_PART.fullmatch(part) and ".." not in part and not part.endswith(".lock") for part in parts)
    )
    if not fine:
        raise Refused(f"{name!r} is not a name that a ref of the installations repository can have")
    return name


def object_name(name: str) -> str:
    """``name`` itself when it is an object id or a ref name that we accept; raises :class:`Refused` otherwise."""
    return name if OID.fullmatch(name) else ref_name(name)


def parse_trailers(message: str) -> dict[str, str]:
    """The ``Key: value`` lines of the last paragraph; empty when any line of it is something else."""
    matches = [_TRAILER.fullmatch(line) for line in message.rstrip("\n").rpartition("\n\n")[2].splitlines()]
    return {match[1]: match[2] for match in matches if match} if all(matches) else {}


def with_trailers(text: str, trailers: Mapping[str, str | None]) -> str:
    """A commit message: ``text``, then the trailers that have a value, each on one line."""
    lines = [f"{key}: {' '.join(value.split())}" for key, value in trailers.items() if value]
    return text.rstrip("\n") + "\n" + ("\n" + "\n".join(lines) + "\n" if lines else "")


def without_credentials(text: str) -> str:
    """``text`` with the user and password of every URL taken out."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def _question(name: str) -> bytes:
    """What ``cat-file`` is asked for an object id, a ref, or one of both with ``:path``."""
    head, separator, path = name.partition(":")
    object_name(head.removesuffix("^{tree}"))
    return head.encode() + separator.encode() + raw_path(path)


def _keep(known: dict[str, Any], name: str, answer: Any) -> None:
    if len(known) >= _KEPT:
        known.clear()
    known[name] = answer


class GitObjects:
    """The objects of one bare repository at ``path``; :class:`pipeline.repository.Repository` adds refs and the remote."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = ObjectReader(path, self._command(STAYING), self.environment)
        self._loose = LooseObjects(path)
        self._trees: dict[str, str] = {}
        self._commit_infos: dict[str, CommitInfo] = {}

    @cached_property
    def plain(self) -> bool:
        """Whether the repository's files are as git writes them unless told otherwise, so that we may do so ourselves."""
        return _UNUSUAL.search((self.path / "config").read_text(encoding="utf-8", errors="replace")) is None

    # --- the git program

    def _command(self, arguments: Sequence[str], *, bare: bool = True) -> list[str]:
        command = ["git"]
        for setting in _CONFIG:
            command += ["-c", setting]
        return [*command, *([f"--git-dir={self.path}"] if bare else []), *arguments]

    @staticmethod
    def environment() -> dict[str, str]:
        """The environment in which every git command runs."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("GIT_") or key.startswith(_KEPT_VARIABLES)
        }
        return kept | {
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_ATTR_NOSYSTEM": "1",
        }

    def git(
        self,
        *arguments: str,
        stdin: bytes = b"",
        bare: bool = True,
        accept: Sequence[int] = (0,),
        timeout: float | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """One git command, ended; raises :class:`Failed` for an exit code that is not accepted."""
        try:
            done = subprocess.run(
                self._command(arguments, bare=bare),
                input=stdin,
                capture_output=True,
                env=self.environment() | dict(extra or {}),
                timeout=timeout,
                check=False,
            )
        except FileNotFoundError:
            raise UsageError("the git program is not installed, or not on PATH") from None
        if done.returncode not in accept:
            raise self.failed(arguments[0], done)
        return done

    def failed(self, verb: str, done: subprocess.CompletedProcess[bytes]) -> Failed:
        return Failed(
            f"git {verb} failed in {self.path}",
            reasons=[Reason(line, f"git, exit {done.returncode}") for line in words_of(done.stderr)],
            state="No ref was moved.",
        )

    # --- reading
    def read(self, name: str) -> bytes | None:
        """The bytes of ``oid``, ``ref``, ``oid:path`` or ``ref:path`` (escaped); None when there is no such object."""
        return self.read_many([name])[name]

    def read_many(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """As :meth:`read`, for many names at once."""
        return dict(self.read_stream(names))

    def read_stream(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """As :meth:`read_many`, in the order given; with one object in memory at a time where they are many or large."""
        asked = list(names)
        questions = [_question(name) for name in asked]
        if len(asked) <= _FEW:
            heads = self._reader.headers(questions)
            if sum(head.size for head in heads if head) <= _SMALL:
                # By id from here on: the ref of a name may move in between.
                oids = list({head.oid: None for head in heads if head})
                found = dict(zip(oids, self._reader.contents([oid.encode() for oid in oids]), strict=True))
                for name, head in zip(asked, heads, strict=True):
                    object = found[head.oid] if head else None
                    yield name, object.data if object else None
                return
        answers = stream(self._command(STREAMING), self.environment(), self.path, questions)
        for name, object in zip(asked, answers, strict=True):
            yield name, object.data if object else None

    def _head(self, question: str) -> Found | None:
        return self._reader.headers([question.encode()])[0]

    def forget_packs(self) -> None:
        """Lets go of packs that were removed, which a running process could still read."""
        self._reader.close()

    def tree_of(self, commitish: str) -> str:
        """The id of the tree of a commit, tag, tree or ref; raises :class:`NotKnown` when there is none."""
        name = object_name(commitish)
        known = self._trees.get(name)
        if known is None:
            head = self._head(f"{name}^{{tree}}")
            if head is None:
                raise NotKnown(f"{commitish} is not a tree, and names none, in {self.path}")
            known = head.oid
            if OID.fullmatch(name):
                _keep(self._trees, name, known)
        return known

    def commit_of(self, commitish: str) -> str | None:
        """The id of the commit that a commit, tag or ref names; None when it names none."""
        name = object_name(commitish)
        if name in self._commit_infos:
            return name
        head = self._head(f"{name}^{{commit}}")
        return head.oid if head else None

    def entries(self, treeish: str) -> list[TreeEntry]:
        """Every file below the tree, sorted by the bytes of the path."""
        done = self.git("ls-tree", "-r", "-z", "--full-tree", "--end-of-options", object_name(treeish))
        found: list[tuple[bytes, str, str]] = []
        for line in done.stdout.split(b"\0")[:-1]:
            head, path = line.split(b"\t", 1)
            mode, _, oid = head.decode().split(" ")
            found.append((path, mode, oid))
        return [TreeEntry(mode, oid, path_text(path)) for path, mode, oid in sorted(found)]

    def commit_info(self, oid: str) -> CommitInfo:
        """One commit (a tag is followed to its commit); raises :class:`NotKnown` when there is none."""
        commit = self.commit_of(oid)
        if commit is None:
            raise NotKnown(f"{oid} is not a commit of {self.path}")
        found = self._commit_infos.get(commit)
        if found is None:
            found = next(self._commits([commit]))
            _keep(self._commit_infos, commit, found)
        return found

    def _commits(self, oids: Sequence[str]) -> Iterator[CommitInfo]:
        for oid, data in self.read_stream(oids):
            if data is None:
                raise NotKnown(f"{oid} is not a commit of {self.path}")
            head, _, body = data.partition(b"\n\n")
            lines = head.decode("utf-8", "replace").splitlines()
            message = body.decode("utf-8", "replace")
            committer = next(line for line in lines if line.startswith("committer "))
            author = next(line for line in lines if line.startswith("author "))
            yield CommitInfo(
                oid=oid,
                tree=lines[0].removeprefix("tree "),
                parents=tuple(line.removeprefix("parent ") for line in lines if line.startswith("parent ")),
                author=author.removeprefix("author ").rsplit(" ", 2)[0],
                message=message,
                trailers=parse_trailers(message),
                at=datetime.fromtimestamp(int(committer.rsplit(" ", 2)[1]), UTC),
            )

    def first_parents(self, oid: str) -> Iterator[CommitInfo]:
        """The commit and its first parents, newest first."""
        done = self.git("rev-list", "--first-parent", "--end-of-options", object_name(oid))
        oids = iter(done.stdout.decode().split())
        while chunk := list(islice(oids, 64)):
            yield from self._commits(chunk)

    def is_ancestor(self, ancestor: str, descendant: str) -> bool:
        """Whether ``ancestor`` is reachable from ``descendant``, or is it; False when either is absent."""
        names = [object_name(ancestor), object_name(descendant)]
        return self.git("merge-base", "--is-ancestor", "--end-of-options", *names, accept=(0, 1, 128)).returncode == 0

    def diff(self, old_tree: str, new_tree: str) -> list[tuple[str, str]]:
        """(status, path) of what differs: ``A`` added, ``M`` modified, ``D`` deleted, ``T`` other type; no renames."""
        names = [object_name(old_tree), object_name(new_tree)]
        done = self.git("diff-tree", "-r", "-z", "--no-renames", "--name-status", "--end-of-options", *names)
        words = done.stdout.split(b"\0")[:-1]
        return [(words[i].decode(), path_text(words[i + 1])) for i in range(0, len(words), 2)]

    # --- writing

    def write_blob(self, data: bytes) -> str:
        """The id of the blob, written."""
        return self._write("blob", data)

    def _write(self, kind: str, data: bytes) -> str:
        if self.plain and len(data) <= LARGEST:
            return self._loose.write(kind, data)
        return self.git("hash-object", "-w", "-t", kind, "--stdin", stdin=data).stdout.decode().strip()

    def write_tree(self, base: str | None, changes: Mapping[str, tuple[str, str] | None]) -> str:
        """The id of the tree ``base`` (None: empty) with the changes: path → (mode, blob id), or None to delete."""
        with tempfile.TemporaryDirectory(prefix="tma-index-") as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            lines = [
                b"%s\t%s\0" % ((f"0 {NULL}" if change is None else f"{change[0]} {change[1]}").encode(), raw_path(path))
                for path, change in changes.items()
            ]
            steps: list[tuple[list[str], bytes]] = [
                (["update-index", "--add", "--replace", "-z", "--index-info"], b"".join(lines)),
                (["write-tree"], b""),
            ]
            if base is not None:
                steps.insert(0, (["read-tree", "--end-of-options", object_name(base)], b""))
            for arguments, stdin in steps:
                done = self.git(*arguments, stdin=stdin, extra=index)
            return done.stdout.decode().strip()

    def write_commit(self, tree: str, parents: Sequence[str], message: str, *, author: str, at: datetime) -> str:
        """The id of the commit; author and committer are ``key <key@people.invalid>`` at the instant, in UTC."""
        who = signature(author, at)
        lines = [b"tree " + tree.encode(), *(b"parent " + parent.encode() for parent in parents)]
        head = b"\n".join([*lines, b"author " + who, b"committer " + who])
        return self._write("commit", head + b"\n\n" + message.encode())

    def write_commits(self, commits: Sequence[NewCommit]) -> list[str]:
        """The ids of the commits, all written; no ref moves. Many or large changes go through one ``fast-import``."""
        made = self._written_loose(commits)
        return self._imported(commits) if made is None else made

    def _written_loose(self, commits: Sequence[NewCommit]) -> list[str] | None:
        """The ids of the commits, written as loose objects; None for what ``fast-import`` is to write, or to refuse."""
        changes = [(raw_path(path), change) for commit in commits for path, change in commit.changes.items()]
        contents = [change[1] if isinstance(change, tuple) else change for _, change in changes]
        named = {oid for oid in contents if isinstance(oid, str)}
        parents = {parent for commit in commits for parent in commit.parents if isinstance(parent, str)}
        if (
            not self.plain
            or len(changes) > _FEW
            or sum(len(data) for data in contents if isinstance(data, bytes)) > _SMALL
            or any(part.lower() in _UNSAFE_PARTS for path, _ in changes for part in path.split(b"/"))
            or any(overlap(commit) for commit in commits)
            or not all(OID.fullmatch(oid) for oid in named | parents)
            or any(self.commit_of(parent) != parent for parent in parents)
            or any(
                head is None or head.kind != "blob" for head in self._reader.headers([oid.encode() for oid in named])
            )
        ):
            return None
        made: list[tuple[str, str]] = []
        for commit in commits:
            if isinstance(commit.base, int):
                if not commit.parents or commit.parents[0] != commit.base:
                    raise ValueError("a base within the batch must be the first parent")
                base: str | None = made[commit.base][1]
            else:
                base = None if commit.base is None else self.tree_of(commit.base)
            blobs: dict[bytes, tuple[str, str] | None] = {}
            for path, change in commit.changes.items():
                mode, content = change if isinstance(change, tuple) else ("100644", change)
                oid = self.write_blob(content) if isinstance(content, bytes) else content
                blobs[raw_path(path)] = None if oid is None else (mode, oid)
            tree = self._loose.write_tree(base, blobs, self._tree_bytes)
            before = [made[parent][0] if isinstance(parent, int) else parent for parent in commit.parents]
            made.append((self.write_commit(tree, before, commit.message, author=commit.author, at=commit.at), tree))
        return [oid for oid, _ in made]

    def _tree_bytes(self, oid: str) -> bytes:
        data = self.read(oid)
        if data is None:
            raise Failed(f"the tree {oid} is missing in {self.path}", state="No ref was moved.")
        return data

    def _imported(self, commits: Sequence[NewCommit]) -> list[str]:
        stdin = import_stream(commits, self.tree_of)
        done = self.git("fast-import", "--quiet", "--done", "--date-format=raw", "--force", stdin=stdin)
        return done.stdout.decode().split()

    def write_tag(self, name: str, target: str, message: str, *, author: str, at: datetime) -> str:
        """The id of an annotated tag object of the commit ``target``; no ref moves. ``name`` without ``refs/tags/``."""
        ref_name(f"refs/tags/{name}")
        head = f"object {target}\ntype commit\ntag {name}\n".encode() + b"tagger " + signature(author, at)
        return self._write("tag", head + b"\n\n" + message.encode())


def words_of(stderr: bytes) -> list[str]:
    """What git said on standard error: up to eight lines, without credentials."""
    lines = without_credentials(stderr.decode("utf-8", "replace")).splitlines()
    return [line.strip() for line in lines if line.strip()][:8]
