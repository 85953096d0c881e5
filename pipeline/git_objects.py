"""The git program and the objects of one bare repository: reading and writing them.

Nothing that a user typed reaches a command line unchecked: refs pass an allow-list, object ids are 40 hexadecimal
digits, paths travel on standard input. Hooks, replacements, prompts and ``ext::`` remotes are off. Objects that no ref
names are invisible to everybody, so writing them first is safe. SHA-1 object ids only.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from pipeline.errors import Failed, NotKnown, Reason, Refused, UsageError

NULL = "0" * 40
"""The object id that means "no such ref" to Git."""

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

OID = re.compile(r"[0-9a-f]{40}")
_REF_PART = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z._+-]*[0-9A-Za-z_+-])?")
_TRAILER = re.compile(r"([A-Za-z][A-Za-z0-9-]*): (.*)")
_IDENTITY = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")


@dataclass(frozen=True)
class TreeEntry:
    """One entry of a recursive listing; ``mode`` as Git writes it (``160000`` is a submodule)."""

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


def _signature(author: str, at: datetime) -> bytes:
    """``key <key@people.invalid> SECONDS +0000``; the product's own author passes with its domain."""
    if author == "product":
        return f"product <product@product.invalid> {int(at.timestamp())} +0000".encode()
    if not _IDENTITY.fullmatch(author):
        raise Refused(f"{author!r} is not a key that can be written as an author")
    return f"{author} <{author}@people.invalid> {int(at.timestamp())} +0000".encode()


def _quoted(path: str) -> bytes:
    """A path as fast-import reads it, always quoted."""
    if any(ord(character) < 32 for character in path):
        raise Refused(f"{path!r} holds a control character")
    return b'"' + path.encode().replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


def without_credentials(text: str) -> str:
    """``text`` with the user and password of every URL taken out."""
    return re.sub(r"://[^/@\s]+@", "://", text)


class GitObjects:
    """The objects of one bare repository at ``path``; :class:`pipeline.repository.Repository` adds refs and the remote."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        """The bytes of ``oid``, ``ref``, ``oid:path`` or ``ref:path``; None when there is no such object."""
        return self.read_many([name])[name]

    def read_many(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """As :meth:`read`, for many names with one process."""
        return dict(self.read_stream(names))

    def read_stream(self, names: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        """As :meth:`read_many`, in the order given, with one object in memory at a time."""
        for name, found in self._objects(names):
            yield name, None if found is None else found[2]

    def _objects(self, names: Iterable[str]) -> Iterator[tuple[str, tuple[str, str, bytes] | None]]:
        """Each name with (id, type, bytes), or None."""
        asked = list(names)
        for name in asked:
            head, separator, path = name.partition(":")
            object_name(head.removesuffix("^{tree}"))
            if separator and any(character in path for character in "\n\r\0"):
                raise Refused(f"{path!r} holds a control character")
        if not asked:
            return
        # The questions come from a file, so that the two pipes cannot both fill up.
        with tempfile.TemporaryFile() as questions:
            questions.write("".join(f"{name}\n" for name in asked).encode())
            questions.seek(0)
            process = subprocess.Popen(
                self._command(["cat-file", "--batch", "--buffer"]),
                stdin=questions,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self.environment(),
            )
            assert process.stdout is not None
            try:
                for name in asked:
                    header = process.stdout.readline()
                    words = header.rsplit(b" ", 2)
                    if not header.endswith(b"\n"):
                        raise Failed(f"git cat-file ended early in {self.path}")
                    if len(words) != 3 or not OID.fullmatch(words[0].decode("latin-1")):
                        yield name, None
                        continue
                    data = process.stdout.read(int(words[2]))
                    process.stdout.read(1)
                    yield name, (words[0].decode(), words[1].decode(), data)
            finally:
                process.stdout.close()
                if process.poll() is None:
                    process.terminate()
                process.wait()

    def tree_of(self, commitish: str) -> str:
        """The id of the tree of a commit, tag, tree or ref; raises :class:`NotKnown` when there is none."""
        name = object_name(commitish)
        done = self.git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{tree}}", accept=(0, 1, 128))
        if done.returncode:
            raise NotKnown(f"{commitish} is not a tree, and names none, in {self.path}")
        return done.stdout.decode().strip()

    def commit_of(self, commitish: str) -> str | None:
        """The id of the commit that a commit, tag or ref names; None when it names none."""
        name = object_name(commitish)
        done = self.git(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", accept=(0, 1, 128)
        )
        return done.stdout.decode().strip() or None

    def entries(self, treeish: str) -> list[TreeEntry]:
        """Every file below the tree, sorted by the bytes of the path; raises :class:`Refused` when one is not UTF-8."""
        done = self.git("ls-tree", "-r", "-z", "--full-tree", "--end-of-options", object_name(treeish))
        found: list[TreeEntry] = []
        for line in done.stdout.split(b"\0")[:-1]:
            head, path = line.split(b"\t", 1)
            mode, _, oid = head.decode().split(" ")
            found.append(TreeEntry(mode, oid, utf8_path(path)))
        return sorted(found, key=lambda entry: entry.path.encode())

    def commit_info(self, oid: str) -> CommitInfo:
        """One commit (a tag is followed to its commit); raises :class:`NotKnown` when there is none."""
        commit = self.commit_of(oid)
        if commit is None:
            raise NotKnown(f"{oid} is not a commit of {self.path}")
        return next(self._commits([commit]))

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
        return [(words[i].decode(), utf8_path(words[i + 1])) for i in range(0, len(words), 2)]

    # --- writing

    def write_blob(self, data: bytes) -> str:
        """The id of the blob, written."""
        return self._write("blob", data)

    def _write(self, kind: str, data: bytes) -> str:
        return self.git("hash-object", "-w", "-t", kind, "--stdin", stdin=data).stdout.decode().strip()

    def write_tree(self, base: str | None, changes: Mapping[str, tuple[str, str] | None]) -> str:
        """The id of the tree ``base`` (None: empty) with the changes: path → (mode, blob id), or None to delete."""
        with tempfile.TemporaryDirectory(prefix="tma-index-") as folder:
            index = {"GIT_INDEX_FILE": f"{folder}/index"}
            lines = [
                f"0 {NULL}\t{path}" if change is None else f"{change[0]} {change[1]}\t{path}"
                for path, change in changes.items()
            ]
            steps: list[tuple[list[str], bytes]] = [
                (
                    ["update-index", "--add", "--replace", "-z", "--index-info"],
                    "".join(f"{x}\0" for x in lines).encode(),
                ),
                (["write-tree"], b""),
            ]
            if base is not None:
                steps.insert(0, (["read-tree", "--end-of-options", object_name(base)], b""))
            for arguments, stdin in steps:
                done = self.git(*arguments, stdin=stdin, extra=index)
            return done.stdout.decode().strip()

    def write_commit(self, tree: str, parents: Sequence[str], message: str, *, author: str, at: datetime) -> str:
        """The id of the commit; author and committer are ``key <key@people.invalid>`` at the instant, in UTC."""
        who = _signature(author, at)
        lines = [b"tree " + tree.encode(), *(b"parent " + parent.encode() for parent in parents)]
        head = b"\n".join([*lines, b"author " + who, b"committer " + who])
        return self._write("commit", head + b"\n\n" + message.encode())

    def write_commits(self, commits: Sequence[NewCommit]) -> list[str]:
        """The ids of the commits, all written with one ``fast-import``; no ref moves."""
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
            who, message = _signature(commit.author, commit.at), commit.message.encode()
            parents = [f":{p + 1}" if isinstance(p, int) else p for p in commit.parents]
            base = commit.base
            if isinstance(base, int):
                # The first parent's tree is where fast-import starts from.
                if not parents or parents[0] != f":{base + 1}":
                    raise ValueError("a base within the batch must be the first parent")
                start = b""
            else:
                start = b"deleteall\n" + (b"" if base is None else b'M 040000 %s ""\n' % self.tree_of(base).encode())
            # Without this, a commit without parents would follow the branch's commit before it.
            stream.append(b"reset %s\n\n" % branch)
            stream.append(b"commit %s\nmark :%d\nauthor %s\ncommitter %s\n" % (branch, number, who, who))
            stream.append(b"data %d\n%s\n" % (len(message), message))
            stream += [
                b"%s %s\n" % (b"merge" if position else b"from", parent.encode())
                for position, parent in enumerate(parents)
            ]
            stream += [start, b"".join(line + b"\n" for line in lines), b"\n"]
        stream += [b"get-mark :%d\n" % (number + 1) for number in range(len(commits))]
        stream += [b"reset %s\nfrom %s\n\ndone\n" % (branch, NULL.encode())]
        done = self.git("fast-import", "--quiet", "--done", "--date-format=raw", "--force", stdin=b"".join(stream))
        return done.stdout.decode().split()

    def write_tag(self, name: str, target: str, message: str, *, author: str, at: datetime) -> str:
        """The id of an annotated tag object of the commit ``target``; no ref moves. ``name`` without ``refs/tags/``."""
        ref_name(f"refs/tags/{name}")
        head = f"object {target}\ntype commit\ntag {name}\n".encode() + b"tagger " + _signature(author, at)
        return self._write("tag", head + b"\n\n" + message.encode())


def utf8_path(path: bytes) -> str:
    """A path as text; raises :class:`Refused` with the name when it is not UTF-8."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise Refused(
            f"the file name {path!r} is not UTF-8", next_commands=["rename the file in the product"]
        ) from None


def words_of(stderr: bytes) -> list[str]:
    """What git said on standard error: up to eight lines, without credentials."""
    lines = without_credentials(stderr.decode("utf-8", "replace")).splitlines()
    return [line.strip() for line in lines if line.strip()][:8]
