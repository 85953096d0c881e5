"""One bare installations repository: its refs, merging, and the remote that it may mirror.

Objects are written first and are invisible until a ref names them; refs move by compare-and-swap only, all those of a
decision in one transaction. With a remote, the local repository is its mirror: a decision fetches, writes objects here,
and pushes. Needs Git 2.38 or newer (``merge-tree --write-tree``).
"""

from __future__ import annotations

import contextlib
import fcntl
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pipeline.errors import ConfigurationError, Failed, NotKnown, Reason, Refused, Unreachable
from pipeline.git_objects import (
    OID,
    CommitInfo,
    GitObjects,
    TreeEntry,
    object_name,
    parse_trailers,
    ref_name,
    with_trailers,
    without_credentials,
    words_of,
)
from pipeline.new_commits import NULL, NewCommit
from pipeline.paths import path_text
from pipeline.ref_files import RefFiles, Unusual

if TYPE_CHECKING:
    from pipeline.model import RefMove

__all__ = [
    "NULL",
    "CommitInfo",
    "Conflict",
    "Merge",
    "NewCommit",
    "Raced",
    "Repository",
    "TreeEntry",
    "object_name",
    "parse_trailers",
    "ref_name",
    "with_trailers",
    "without_credentials",
]

REMOTE_TIMEOUT = 900
"""Seconds after which a fetch or a push is given up."""

LEFTOVER_AGE = 2.0
"""Seconds a foreign ``.lock`` file must be old before it counts as left by a killed process; an engineer's own
``git push`` into the repository does not hold our flock, and keeps its lock files for milliseconds."""

_MIRRORED = ("refs/heads/*", "refs/tags/*", "refs/leases/*")


@dataclass(frozen=True)
class Conflict:
    """A path that did not merge, with the blob on each side; None where that side has no such file."""

    path: str
    base: str | None
    ours: str | None
    theirs: str | None


@dataclass(frozen=True)
class Merge:
    """The merged tree, or None with the conflicts; then ``partial`` is the tree with conflict markers in those files."""

    tree: str | None
    conflicts: tuple[Conflict, ...] = ()
    messages: tuple[str, ...] = ()
    partial: str | None = None


class Raced(Exception):
    """A compare-and-swap lost: somebody else moved a ref first. Never shown; the caller rereads and decides again."""


def remote_address(address: str) -> str:
    """``address`` itself when git may be given it as a remote; raises :class:`ConfigurationError` otherwise."""
    if not address or address.startswith("-") or "::" in address or any(ord(character) < 32 for character in address):
        raise ConfigurationError(f"{without_credentials(address)!r} cannot be the address of a Git remote")
    return address


class Repository(GitObjects):
    """One bare repository at ``path``; with ``remote``, the mirror of that one. Made by :meth:`open`."""

    def __init__(self, path: Path, remote: str | None = None) -> None:
        super().__init__(path)
        self._ref_files = RefFiles(path)
        self.remote = remote
        self._thread_lock = threading.RLock()
        self._flock: IO[bytes] | None = None
        self._depth = 0

    @classmethod
    def open(cls, path: Path, *, remote: str | None = None, create: bool = True) -> Repository:
        """The repository at ``path``, made when absent and ``create``. Starts no process when it is there.

        Raises :class:`NotKnown` when absent, :class:`ConfigurationError` when it is something else.
        """
        path = path.absolute()
        if remote is not None:
            remote_address(remote)
        repository = cls(path, remote)
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            if not create:
                raise NotKnown(f"there is no installations repository at {path}")
            path.parent.mkdir(parents=True, exist_ok=True)
            repository.git("init", "--bare", "--quiet", "--template=", "--initial-branch=main", str(path), bare=False)
        elif not ((path / "HEAD").is_file() and (path / "objects").is_dir() and (path / "config").is_file()):
            raise ConfigurationError(f"{path} is there, but is not a bare Git repository")
        elif re.search(r"objectformat\s*=\s*sha256", (path / "config").read_text(), re.IGNORECASE):
            raise ConfigurationError(f"{path} uses SHA-256 object ids; the installations repository needs SHA-1")
        return repository

    # --- refs and merging
    def refs(self, *prefixes: str) -> dict[str, str]:
        """Every ref below the prefixes (all without one) with the id of its object: a tag's own, not its commit's."""
        patterns = [ref_name(prefix.rstrip("/") + "/x")[:-2] for prefix in prefixes]
        if self.plain:
            with contextlib.suppress(Unusual):
                return self._ref_files.below(patterns or ["refs"])
        done = self.git("for-each-ref", "--format=%(refname) %(objectname)", "--end-of-options", *patterns)
        return dict(line.split(" ", 1) for line in done.stdout.decode().splitlines())

    def messages(self, *patterns: str) -> dict[str, str]:
        """The message of the commit at each ref that is one of these, or matches: ``*`` stands for one part of a name."""
        asked = [ref_name(pattern.replace("/*/", "/x/")) and pattern for pattern in patterns]
        done = self.git("for-each-ref", "--format=%(refname)%00%(contents)%00", "--end-of-options", *asked)
        words = done.stdout.decode("utf-8", "replace").split("\0")
        return {words[i].lstrip("\n"): words[i + 1] for i in range(0, len(words) - 1, 2)}

    def ref(self, name: str) -> str | None:
        """The id of the object that the ref names, or None; looked at anew each time."""
        ref_name(name)
        if self.plain:
            with contextlib.suppress(Unusual):
                return self._ref_files.one(name)
        done = self.git("rev-parse", "--verify", "--quiet", "--end-of-options", name, accept=(0, 1))
        return done.stdout.decode().strip() or None

    def merge_trees(self, base: str, ours: str, theirs: str) -> Merge:
        """``theirs`` merged into ``ours`` with the base that the caller means, never one of Git's own choice.

        The three are trees or commits; a side that is the base gives the other side's tree as it is.
        """
        trees = [self.tree_of(name) for name in (base, ours, theirs)]
        if trees[1] in (trees[0], trees[2]):
            return Merge(trees[2])
        if trees[2] == trees[0]:
            return Merge(trees[1])
        # merge-tree has no --merge-base before Git 2.40: commits on the base make it the only possible one.
        epoch = datetime.fromtimestamp(0, UTC)
        first = self.write_commit(trees[0], [], "base\n", author="merge", at=epoch)
        sides = [self.write_commit(trees[i], [first], f"side {i}\n", author="merge", at=epoch) for i in (1, 2)]
        done = self.git("merge-tree", "--write-tree", "-z", "--messages", "--end-of-options", *sides, accept=(0, 1))
        words = done.stdout.split(b"\0")
        tree, rest = words[0].decode(), words[1:]
        stages: dict[str, dict[int, str]] = {}
        while rest and rest[0]:
            head, path = rest.pop(0).split(b"\t", 1)
            _, oid, stage = head.decode().split(" ")
            stages.setdefault(path_text(path), {})[int(stage)] = oid
        rest = rest[1:]
        messages: list[str] = []
        while rest and rest[0].isdigit():
            count = int(rest[0])
            messages.append(rest[count + 2].decode("utf-8", "replace").strip())
            rest = rest[count + 3 :]
        if done.returncode == 0:
            return Merge(tree, (), tuple(messages))
        found = (Conflict(path, side.get(1), side.get(2), side.get(3)) for path, side in sorted(stages.items()))
        return Merge(None, tuple(found), tuple(messages), tree)

    # --- moving refs

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds this repository's flock: one writer of ours at a time on this machine. May be entered again within."""
        with self._thread_lock:
            if self._depth == 0:
                self._flock = (self.path / "tma.lock").open("ab")
                fcntl.flock(self._flock, fcntl.LOCK_EX)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._flock is not None:
                    self._flock.close()
                    self._flock = None

    def move(self, moves: Sequence[RefMove]) -> None:
        """Moves all the refs or none, each only from its ``old``; with a remote, there first and then in the mirror.

        They are renamed in the given order: a killed process leaves a later one behind, never an earlier one, so the
        ledger comes first. A remote orders them by name. Raises :class:`Raced` when a ref is not at its ``old``.
        """
        if not moves:
            return
        for move in moves:
            ref_name(move.ref)
        with self.exclusive():
            if self.remote is None:
                self._update(moves, check=True)
            else:
                self._push(moves, self.remote)
                self._update(moves, check=False)

    def _update(self, moves: Sequence[RefMove], *, check: bool) -> None:
        lines = [f"update {move.ref}\0{move.new or NULL}\0{(move.old or NULL) if check else ''}\0" for move in moves]
        stdin = "".join(["start\0", *lines, "prepare\0", "commit\0"]).encode()
        deadline = time.monotonic() + 4 * LEFTOVER_AGE
        while True:
            done = self.git("update-ref", "--stdin", "-z", stdin=stdin, accept=range(256))
            if done.returncode == 0:
                return
            if check and self._moved_meanwhile(moves):
                raise Raced
            if b".lock': File exists" not in done.stderr or time.monotonic() > deadline:
                raise self.failed("update-ref", done)
            if not self._remove_leftovers(moves):
                time.sleep(0.05)

    def _moved_meanwhile(self, moves: Sequence[RefMove]) -> bool:
        return any(self.ref(move.ref) != move.old for move in moves)

    def _remove_leftovers(self, moves: Sequence[RefMove]) -> bool:
        """Removes lock files that a killed process left; whether there was one. Called with the flock held."""
        removed = False
        for name in [*(f"{move.ref}.lock" for move in moves), "packed-refs.lock", "HEAD.lock"]:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - (self.path / name).stat().st_mtime >= LEFTOVER_AGE:
                    (self.path / name).unlink()
                    removed = True
        return removed

    # --- the remote

    def fetch(self, customer: str | None = None) -> None:
        """Makes the mirror equal to the remote; nothing without one. Raises :class:`Unreachable`.

        With ``customer``, its branches only: enough to look at it, without a word about the thousands of others.
        """
        if self.remote is None:
            return
        with self.exclusive():
            if customer is not None:
                ours = f"{ref_name(f'refs/heads/{customer}/x')[:-1]}*"
                self._fetch(self.remote, [f"+{ours}:{ours}"], "--prune")
                return
            self._fetch(self.remote, [f"+{pattern}:{pattern}" for pattern in _MIRRORED], "--prune")
            self._fetched.touch()

    @property
    def _fetched(self) -> Path:
        return self.path / "fetched"

    def fetched_at(self) -> datetime | None:
        """When the mirror was last made equal to the remote (UTC); None when it never was."""
        return datetime.fromtimestamp(self._fetched.stat().st_mtime, UTC) if self._fetched.exists() else None

    def fetch_objects(self, source: str, refspecs: Sequence[str], *, depth: int | None = None) -> None:
        """Brings refs of another repository, given as checked refspecs; raises :class:`Unreachable`."""
        self._fetch(source, refspecs, *([f"--depth={depth}"] if depth else []))

    def _fetch(self, source: str, refspecs: Sequence[str], *options: str) -> None:
        fixed = ["--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--recurse-submodules=no"]
        done = self._remote_git("fetch", *fixed, *options, "--end-of-options", source, *refspecs)
        if done.returncode:
            raise self._unreachable(source, done)

    def remote_tags(self, source: str) -> list[str]:
        """The names of another repository's tags, without ``refs/tags/``; raises :class:`Unreachable`."""
        done = self._remote_git("ls-remote", "--quiet", "--refs", "--tags", "--end-of-options", remote_address(source))
        if done.returncode:
            raise self._unreachable(source, done)
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        return [line.split("\t", 1)[1].removeprefix("refs/tags/") for line in lines]

    def _remote_git(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        try:
            return self.git(*arguments, accept=range(-64, 256), timeout=REMOTE_TIMEOUT)
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess([], 124, b"", b"no answer within %d s" % REMOTE_TIMEOUT)

    def _unreachable(self, source: str, done: subprocess.CompletedProcess[bytes]) -> Unreachable:
        return Unreachable(
            f"the Git remote {without_credentials(source)} could not be used",
            reasons=[Reason(line, "git") for line in words_of(done.stderr)] or [f"git ended with {done.returncode}"],
            state="No ref was moved.",
        )

    def _push(self, moves: Sequence[RefMove], remote: str) -> None:
        leases = [f"--force-with-lease={move.ref}:{move.old or ''}" for move in moves]
        specs = [f"{move.new or ''}:{move.ref}" for move in moves]
        fixed = ["--porcelain", "--atomic", "--no-verify", "--no-follow-tags", "--recurse-submodules=no"]
        done = self._remote_git("push", *fixed, *leases, "--end-of-options", remote, *specs)
        # "=" is "up to date", which Git decides before it looks at the lease: somebody else made the same move.
        raced = any(line.startswith(b"=\t") for line in done.stdout.splitlines())
        if done.returncode == 0 and not raced:
            return
        with contextlib.suppress(Unreachable):
            self._fetch(remote, [f"+{pattern}:{pattern}" for pattern in _MIRRORED], "--prune")
            if not raced and all(self.ref(move.ref) == move.new for move in moves):
                return  # it did arrive; only the answer was lost
            if raced or self._moved_meanwhile(moves):
                raise Raced
        words = done.stdout + done.stderr
        if any(
            sign in words for sign in (b"stale info", b"cannot lock ref", b"failed to update ref", b"incorrect old")
        ):
            raise Raced
        if b"[remote rejected]" in words:
            lines = [line.decode("utf-8", "replace") for line in done.stdout.splitlines() if line.startswith(b"!")]
            raise Refused(
                f"the Git remote {without_credentials(remote)} refused the push",
                reasons=[Reason(" ".join(line.split()), "git") for line in lines],
                state="No ref was moved.",
            )
        raise self._unreachable(remote, done)

    def forget(self, oids: Iterable[str]) -> None:
        """Takes the bytes of these objects, which no ref may reach any more, out of this repository for good.

        Other unreachable objects stay: another process may be about to point a ref at them.
        """
        with self.exclusive():
            wanted = {oid for oid in oids if OID.fullmatch(oid)}
            if wanted and any((self.path / "objects" / "pack").glob("*.pack")):
                self.git("repack", "-A", "-d", "-q")
            for oid in wanted:
                (self.path / "objects" / oid[:2] / oid[2:]).unlink(missing_ok=True)
            self.forget_packs()
            kept = [oid for oid, data in self.read_stream(sorted(wanted)) if data is not None]
            if kept:
                raise Failed("objects to be erased are still in the repository", reasons=kept, state="Refs name them.")
