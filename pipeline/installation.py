"""One customer's installation in Git: the line, product versions merged into it, releases, patches, what is installed.

Everything here writes objects and says which refs are to move (:class:`Prepared`); the ledger moves them together with
the record. Merging never uses a merge base of Git's own choice:

* a product version is merged with the version that the line holds as its base, so that an uncustomised customer's merge
  *is* the product's tree, in whatever order the versions arrived;
* a patch is merged into the line with the release that it was built on as its base.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from pipeline.errors import Failed, NotKnown, Reason, Refused, UsageError
from pipeline.model import RESERVED_NAMES, Manifest, RefMove
from pipeline.products import Imported, Products, manifest_of
from pipeline.repository import Conflict, Repository, object_name, ref_name, with_trailers

__all__ = ["Imported", "Installation", "MergeConflict", "Prepared", "Products"]

_MARKERS = (re.compile(rb"^<{7} ", re.MULTILINE), re.compile(rb"^>{7} ", re.MULTILINE))
_LISTED = 20


@dataclass(frozen=True)
class Prepared:
    """A commit that is written and not yet on any ref; ``moves`` are for the ledger to make with its record.

    ``line`` is the commit that the line is at after the moves; ``changed`` is False when there was nothing to do.
    ``messages`` are git's own about the merge.
    """

    commit: str
    line: str
    moves: tuple[RefMove, ...]
    changed: bool = True
    messages: tuple[str, ...] = field(default=())


class MergeConflict(Failed):
    """A merge that a person has to finish (exit 1): each file with its base, ours and theirs; nothing was moved.

    ``pick`` is the commit whose cherry-pick onto the line gives the same conflict in a work tree.
    """

    def __init__(self, what: str, *, conflicts: tuple[Conflict, ...], pick: str, commands: tuple[str, ...]) -> None:
        super().__init__(
            what,
            reasons=[_told(conflict) for conflict in conflicts[:_LISTED]]
            + ([f"and {len(conflicts) - _LISTED} more files"] if len(conflicts) > _LISTED else []),
            state="Nothing was moved: the line, its releases and every environment are as they were.",
            next_commands=commands,
            in_order=True,
            details={"conflicts": [vars(conflict) for conflict in conflicts], "pick": pick},
        )
        self.conflicts = conflicts
        self.pick = pick


def _told(conflict: Conflict) -> str:
    if conflict.ours is None:
        why = "changed in the new one, removed on the line"
    elif conflict.theirs is None:
        why = "changed on the line, removed in the new one"
    else:
        why = "changed on both sides" if conflict.base else "added on both sides"
    sides = (("base", conflict.base), ("ours", conflict.ours), ("theirs", conflict.theirs))
    return f"{conflict.path}: {why}; " + ", ".join(f"{name} {oid[:10] if oid else 'none'}" for name, oid in sides)


class Installation:
    """The refs of one customer in one repository. Raises :class:`Refused` for a key that no customer can have."""

    def __init__(self, repository: Repository, customer: str) -> None:
        if customer in RESERVED_NAMES or "/" in customer:
            raise Refused(f"{customer!r} cannot be a customer's key")
        self.repository = repository
        self.products = Products(repository)
        self.customer = customer
        self.line = ref_name(f"refs/heads/{customer}/main")
        self.ledger_ref = f"refs/heads/{customer}/ledger"
        self.texts_ref = f"refs/heads/{customer}/texts"

    def env_ref(self, environment: str) -> str:
        """The branch of what is installed on an environment."""
        return ref_name(f"refs/heads/{self.customer}/env/{environment}")

    def tag_ref(self, release: str) -> str:
        """The tag of a release; raises :class:`Refused` for a name that a ref cannot hold."""
        if "/" in release:
            raise Refused(f"{release!r} cannot be a release's name: it holds a '/'")
        return ref_name(f"refs/tags/{self.customer}/{release}")

    # --- reading -------------------------------------------------------------------------------------------------------

    def line_tip(self) -> str | None:
        """The commit that the line is at; None when it was never started."""
        return self.repository.ref(self.line)

    def _started(self) -> str:
        tip = self.line_tip()
        if tip is None:
            raise NotKnown(
                f"{self.customer} has no line yet",
                next_commands=[f"invoke line.start customer={self.customer} version=VERSION"],
            )
        return tip

    def held_version(self, commitish: str | None = None) -> tuple[str, str]:
        """(product version, its commit) that the line, or another commit, holds: the newest on first parents.

        A ``Product-Version`` trailer counts only on a commit with a product's version among its parents: a person's
        commit may carry any trailer.
        """
        start = commitish or self._started()
        for commit in self.repository.first_parents(start):
            version = commit.trailers.get("Product-Version")
            if version is None or not commit.parents:
                continue
            product = self.repository.commit_info(commit.parents[-1])
            if not product.parents and product.message.splitlines()[0].split(" ")[1:] == [version]:
                return version, product.oid
        raise NotKnown(f"{start} holds no product version", reasons=[Reason("no Product-Version trailer", self.line)])

    def releases(self) -> dict[str, str]:
        """Every release's name with the id of its tag object."""
        start = f"refs/tags/{self.customer}/"
        return {name.removeprefix(start): oid for name, oid in self.repository.refs(start).items()}

    def release_commit(self, release: str) -> str:
        """The commit of a release; raises :class:`NotKnown`."""
        found = self.repository.commit_of(self.tag_ref(release))
        if found is None:
            raise NotKnown(
                f"{self.customer} has no release {release}",
                reasons=[f"its releases: {', '.join(sorted(self.releases())) or 'none'}"],
            )
        return found

    def next_release(self, version: str) -> str:
        """The name of the next release of a product version: ``2.4.0+1``, then ``2.4.0+2``."""
        builds = [name.rpartition("+") for name in self.releases()]
        taken = [int(build) for held, _, build in builds if held == version and build.isascii() and build.isdigit()]
        return f"{version}+{max(taken, default=0) + 1}"

    def manifest(self, commitish: str, cache: Path | None = None) -> Manifest:
        """Every file with its SHA-256; see :func:`pipeline.products.manifest_of`."""
        return manifest_of(self.repository, commitish, cache)

    def contains(self, release_commit: str, patch_commit: str) -> bool:
        """Whether a release contains a patch: ancestry, nothing else."""
        return self.repository.is_ancestor(patch_commit, release_commit)

    def commits_since(self, commit: str, earlier: str | None) -> frozenset[str]:
        """The commits that ``commit`` holds and ``earlier`` does not (all of its own when None)."""
        excluded = [f"^{earlier}"] if earlier else []
        done = self.repository.git("rev-list", "--end-of-options", commit, *excluded)
        return frozenset(done.stdout.decode().split())

    def changes(self, old_tree: str, new_tree: str) -> list[tuple[str, str]]:
        """(status, path) of what differs between two trees or commits."""
        return self.repository.diff(self.repository.tree_of(old_tree), self.repository.tree_of(new_tree))

    def customisations(self, commitish: str | None = None) -> list[str]:
        """The paths where the line, or another commit, differs from the product version that it holds."""
        start = commitish or self._started()
        return [path for _, path in self.changes(self.held_version(start)[1], start)]

    # --- the line ------------------------------------------------------------------------------------------------------

    def start(self, product: str, version: str, *, author: str, at: datetime) -> Prepared:
        """The line's first commit: the product version as delivered. ``changed`` False when it began there already."""
        theirs = self.products.commit(product, version)
        tip = self.line_tip()
        if tip is not None:
            held, commit = self.held_version()
            if commit == theirs:
                return Prepared(tip, tip, (), changed=False)
            raise Refused(f"{self.customer} has a line already; it holds {product} {held}")
        message = with_trailers(f"Start from {product} {version}", {"Product": product, "Product-Version": version})
        commit = self.repository.write_commit(self.repository.tree_of(theirs), [theirs], message, author=author, at=at)
        return Prepared(commit, commit, (RefMove(ref=self.line, old=None, new=commit),))

    def merge_version(
        self, product: str, version: str, *, author: str, at: datetime, merged: str | None = None, again: str = ""
    ) -> Prepared:
        """A product version merged into the line, the version now held being the base.

        ``merged`` names the commit in which a person resolved it; ``again`` is the command that an error tells to repeat
        with it. ``changed`` False when the line holds the version. Raises :class:`MergeConflict`; :class:`Refused` when
        ``merged`` does not descend from the line, holds conflict markers, or lacks changes of the version.
        """
        tip = self._started()
        theirs = self.products.commit(product, version)
        held, base = self.held_version()
        if base == theirs:
            return Prepared(tip, tip, (), changed=False)
        title = f"Merge {product} {version} into the line of {self.customer}, which held {held}"
        ours, tree, messages = self._merge(base, tip, theirs, title, merged=merged, again=again, author=author, at=at)
        message = with_trailers(title, {"Product": product, "Product-Version": version})
        commit = self.repository.write_commit(tree, [ours, theirs], message, author=author, at=at)
        return Prepared(commit, commit, (RefMove(ref=self.line, old=tip, new=commit),), messages=messages)

    def patch(
        self,
        base_release: str,
        *,
        patch_id: str,
        author: str,
        at: datetime,
        commit: str | None = None,
        diff: bytes | None = None,
        summary: str = "",
        trailers: Mapping[str, str | None] | None = None,
        merged: str | None = None,
        again: str = "",
    ) -> Prepared:
        """A fix on top of a release (``commit``: the patched release), and merged into the line with that release as base.

        The fix is one ordinary commit of this repository, or a diff. Where the line is at the release itself, it follows
        without a merge. Raises :class:`Failed` when the fix does not apply to the release, :class:`MergeConflict` when it
        does not merge into the line; ``merged`` and ``again`` as in :meth:`merge_version`.
        """
        tip = self._started()
        base = self.release_commit(base_release)
        tree = self.fixed(base_release, commit=commit, diff=diff)
        if tree == self.repository.tree_of(base):
            raise Refused(f"the patch changes nothing on {base_release}: the release holds it already")
        title = summary or f"Patch {patch_id} on {base_release}"
        message = with_trailers(title, {"Patch-Ids": patch_id, **(trailers or {})})
        patched = self.repository.write_commit(tree, [base], message, author=author, at=at)
        if tip == base and merged is None:
            return Prepared(patched, patched, (RefMove(ref=self.line, old=tip, new=patched),))
        title = f"Merge patch {patch_id}, built on {base_release}, into the line of {self.customer}"
        ours, tree, messages = self._merge(base, tip, patched, title, merged=merged, again=again, author=author, at=at)
        line = self.repository.write_commit(
            tree, [ours, patched], with_trailers(title, {"Patch-Ids": patch_id}), author=author, at=at
        )
        return Prepared(patched, line, (RefMove(ref=self.line, old=tip, new=line),), messages=messages)

    def fixed(self, release: str, *, commit: str | None = None, diff: bytes | None = None) -> str:
        """The tree of a release with a fix, which is one commit or a diff; Failed when it does not apply to the release."""
        if (commit is None) == (diff is None):
            raise UsageError("a patch is one commit or one file with a diff")
        base = self.release_commit(release)
        return (
            self._apply(base, diff, release)
            if diff is not None
            else self._pick(base, self._commit(commit or ""), release)
        )

    def release_tag(
        self, release: str, commit: str, *, trailers: Mapping[str, str | None], author: str, at: datetime
    ) -> RefMove:
        """The move that makes a release: an annotated tag object, written, whose message carries the trailers."""
        name = self.tag_ref(release)
        message = with_trailers(f"Release {release} for {self.customer}", {"Release": release, **trailers})
        tag = self.repository.write_tag(f"{self.customer}/{release}", commit, message, author=author, at=at)
        return RefMove(ref=name, old=None, new=tag)

    def deployed(
        self,
        environment: str,
        release_commit: str,
        previous: str | None,
        *,
        title: str,
        trailers: Mapping[str, str | None],
        author: str,
        at: datetime,
    ) -> RefMove:
        """The move of an environment's branch: a commit whose tree is the installed one, after ``previous`` and the release.

        ``trailers`` hold ``Record-Id``: a walk along the branch stops at the first commit without it.
        """
        if not trailers.get("Record-Id"):
            raise ValueError("a deployment's commit carries its Record-Id")
        parents = [previous, release_commit] if previous else [release_commit]
        tree = self.repository.tree_of(release_commit)
        commit = self.repository.write_commit(tree, parents, with_trailers(title, trailers), author=author, at=at)
        return RefMove(ref=self.env_ref(environment), old=previous, new=commit)

    # --- merging -------------------------------------------------------------------------------------------------------

    def _merge(
        self, base: str, tip: str, theirs: str, title: str, *, merged: str | None, again: str, author: str, at: datetime
    ) -> tuple[str, str, tuple[str, ...]]:
        """(first parent, tree, messages) of the merge commit."""
        merge = self.repository.merge_trees(base, tip, theirs)
        if merged is not None:
            ours = self._commit(merged)
            self._check_resolution(ours, tip, merge.tree or merge.partial or "", merge.conflicts, theirs)
            return ours, self.repository.tree_of(ours), merge.messages
        if merge.tree is not None:
            return tip, merge.tree, merge.messages
        pick = self.repository.write_commit(self.repository.tree_of(theirs), [base], title + "\n", author=author, at=at)
        folder = f"{self.customer}-merge"
        raise MergeConflict(
            f"{title[0].lower()}{title[1:]}: {len(merge.conflicts)} file{'s' * (len(merge.conflicts) != 1)} conflict",
            conflicts=merge.conflicts,
            pick=pick,
            commands=(
                f"invoke line.checkout customer={self.customer} folder={folder}",
                f"git -C {folder} cherry-pick {pick[:12]}   # resolve the files, and git add or git rm them",
                f"git -C {folder} commit --allow-empty   # allowed, since all may stay as the line has it",
                f"git -C {folder} push origin +HEAD:refs/heads/{self.customer}/merging",
                f"{again or 'the same command'} merged=COMMIT   # the commit that you pushed",
            ),
        )

    def _check_resolution(
        self, ours: str, tip: str, automatic: str, conflicts: tuple[Conflict, ...], theirs: str
    ) -> None:
        """Refuses a resolution that is not one. What git merged by itself must be in it: a line that dropped it would
        say that it holds the version, and the next merge would take the old state for a customisation."""
        if not self.repository.is_ancestor(tip, ours):
            raise Refused(
                f"{ours[:12]} does not descend from the line of {self.customer}",
                reasons=[Reason(f"the line is at {tip[:12]}", self.line)],
                next_commands=[f"git rebase {tip[:12]}, push it, and repeat the command with the new commit"],
            )
        reasons: list[str] = []
        open_paths = {conflict.path for conflict in conflicts}
        before, after, wanted, new = (
            {entry.path: (entry.mode, entry.oid) for entry in self.repository.entries(treeish)}
            for treeish in (tip, ours, automatic, theirs)
        )
        for path in sorted(before.keys() | wanted.keys()):
            if path not in open_paths and before.get(path) != wanted.get(path) and after.get(path) == before.get(path):
                reasons.append(f"{path}: the change merges by itself, and is not in it")
        looked_at = [path for path, held in after.items() if before.get(path) != held or path in open_paths]
        marked = self.repository.read_many({after[path][1] for path in looked_at})
        known = self.repository.read_many({side[path][1] for path in looked_at for side in (new,) if path in side})
        for path in looked_at:
            delivered = known.get(new[path][1]) if path in new else None
            if _marked(marked[after[path][1]]) and not _marked(delivered):
                reasons.append(f"{path}: still holds conflict markers")
        if reasons:
            raise Refused(f"{ours[:12]} does not resolve the merge", reasons=reasons)

    def _commit(self, name: str) -> str:
        """The commit that a person named: an id of at least 7 digits, or a branch of the customer's."""
        if re.fullmatch(r"[0-9a-f]{7,40}", name):
            done = self.repository.git(
                "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", accept=(0, 1, 128)
            )
            found = done.stdout.decode().strip()
        else:
            found = self.repository.commit_of(object_name(f"refs/heads/{name.removeprefix('refs/heads/')}")) or ""
        if not found:
            raise NotKnown(
                f"there is no commit {name!r} in the installations repository",
                next_commands=[f"git push origin +HEAD:refs/heads/{self.customer}/merging   # from your work tree"],
            )
        return found

    def knows(self, name: str) -> bool:
        """Whether the commit that a person named is in the repository."""
        try:
            self._commit(name)
        except NotKnown:
            return False
        return True

    def _pick(self, base: str, commit: str, base_release: str) -> str:
        """The tree of a release with the change that one commit makes to its parent."""
        parents = self.repository.commit_info(commit).parents
        if len(parents) != 1:
            raise Refused(
                f"{commit[:12]} is not one change",
                reasons=[f"it has {len(parents)} parents, and a fix has exactly one"],
            )
        merge = self.repository.merge_trees(parents[0], base, commit)
        if merge.tree is None:
            raise Failed(
                f"{commit[:12]} does not apply to {base_release}",
                reasons=[_told(conflict) for conflict in merge.conflicts],
            )
        return merge.tree

    def _apply(self, base: str, diff: bytes, base_release: str) -> str:
        """The tree of a commit with a diff applied (``git apply``, exactly: no fuzz)."""
        with tempfile.TemporaryDirectory(prefix="tma-apply-") as folder:
            index = {"GIT_INDEX_FILE": os.fspath(Path(folder) / "index")}
            self.repository.git("read-tree", "--end-of-options", base, extra=index)
            done = self.repository.git(
                "apply", "--cached", "--whitespace=nowarn", "-", stdin=diff, extra=index, accept=(0, 1, 128)
            )
            if done.returncode:
                raise Failed(
                    f"the diff does not apply to {base_release}",
                    reasons=[line for line in done.stderr.decode("utf-8", "replace").splitlines() if line][:_LISTED],
                )
            return self.repository.git("write-tree", extra=index).stdout.decode().strip()

    # --- a work tree ---------------------------------------------------------------------------------------------------

    def checkout(self, folder: Path) -> Path:
        """A work tree of the line for an engineer, whose ``git push`` goes to the installations repository.

        It borrows the objects of the repository here, so that unfinished merges can be picked in it. Raises
        :class:`UsageError` when the folder holds anything.
        """
        from git import GitCommandError, Repo

        self._started()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is there and is not an empty folder")
        branch = self.line.removeprefix("refs/heads/")
        try:
            with Repo.clone_from(
                os.fspath(self.repository.path),
                os.fspath(folder),
                branch=branch,
                shared=True,
                single_branch=True,
                no_tags=True,
                env={"GIT_TERMINAL_PROMPT": "0"},
            ) as clone:
                if self.repository.remote is not None:
                    clone.remote("origin").set_url(self.repository.remote)
                with clone.config_writer() as config:
                    # `git push` alone pushes this branch, and never another customer's.
                    config.set_value("push", "default", "simple")
        except GitCommandError as error:
            raise Failed(
                f"the line of {self.customer} could not be checked out", reasons=str(error.stderr).splitlines()[:5]
            ) from None
        return folder


def _marked(data: bytes | None) -> bool:
    return data is not None and all(marker.search(data) for marker in _MARKERS)
