"""The products' versions in an installations repository, and how one gets in: from a Git tag or a vendor's archive.

A version is one parentless commit with a fixed author and date, under the lightweight tag
``refs/tags/product/<product>/<version>``: the same delivery gives the same commit everywhere, and Git can never take the
order of arrival for the order of versions. A tree is checked before it gets in, and again whenever it is read.
"""

from __future__ import annotations

import hashlib
import lzma
import secrets
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from pipeline.content import leaving, unfit
from pipeline.errors import Failed, NotKnown, Reason, Refused, Unreachable, UsageError
from pipeline.model import Manifest, RefMove, TreeFile
from pipeline.paths import path_text
from pipeline.repository import (
    NewCommit,
    Raced,
    Repository,
    ref_name,
    remote_address,
    with_trailers,
    without_credentials,
)
from pipeline.suggest import nearest

EPOCH = datetime.fromtimestamp(0, UTC)
AUTHOR = "product"

LARGEST_DELIVERY = 512 * 1024 * 1024
"""Bytes that an archive may hold once unpacked; it is held in memory."""
MOST_FILES = 100_000

_UNREADABLE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, ValueError, RuntimeError),
)
_LISTED = 10
_UNIX = 3  # "version made by" of a zip's entry (APPNOTE 4.4.2)
_TRIES = 5


@dataclass(frozen=True)
class Imported:
    """A product's version as it is in the repository; ``changed`` is False when it was there already."""

    product: str
    version: str
    commit: str
    changed: bool


@dataclass(frozen=True)
class _Entry:
    path: str
    mode: str
    data: bytes


def manifest_of(repository: Repository, treeish: str, cache: Path | None = None) -> Manifest:
    """Every file of a tree with the SHA-256 of its raw blob, sorted by the bytes of the path.

    Kept under ``cache`` by the tree's id where that is given; the folder may be deleted at any time. Raises
    :class:`Refused` with every file that a release cannot hold: submodules, links that leave the tree, names of Git's own.
    """
    tree = repository.tree_of(treeish)
    kept = cache / f"{tree}.json" if cache else None
    if kept and kept.is_file():
        try:
            manifest = Manifest.model_validate_json(kept.read_bytes())
        except ValidationError:
            kept.unlink(missing_ok=True)
        else:
            if manifest.tree == tree:
                return manifest
    entries = repository.entries(tree)
    reasons: list[str] = []
    files: list[TreeFile] = []
    links: dict[str, bytes] = {}
    fitting = [entry for entry in entries if _noted(entry.path, unfit(entry.path, entry.mode), reasons)]
    for entry, (_, data) in zip(fitting, repository.read_stream(entry.oid for entry in fitting), strict=True):
        if data is None:
            raise Failed(f"the file {entry.path} of tree {tree} is missing in {repository.path}")
        if entry.mode == "120000":
            if not _noted(entry.path, unfit(entry.path, entry.mode, data), reasons):
                continue
            links[entry.path] = data
        sha256 = hashlib.sha256(data).hexdigest()
        files.append(
            TreeFile.model_validate(
                {"path": entry.path, "mode": entry.mode, "blob": entry.oid, "sha256": sha256, "size": len(data)}
            )
        )
    for path, why in leaving(links).items():
        _noted(path, why, reasons)
    if reasons:
        raise Refused(f"the tree {treeish} holds what a release cannot hold", reasons=reasons)
    manifest = Manifest(tree=tree, files=tuple(files))
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(f".{tree}.{secrets.token_hex(4)}")
        beside.write_text(manifest.model_dump_json())
        beside.replace(kept)
    return manifest


def _noted(path: str, why: str | None, reasons: list[str]) -> bool:
    if why:
        reasons.append(f"'{path}' {why}")
    return why is None


class Products:
    """The products' versions of one installations repository."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository

    @staticmethod
    def tag_ref(product: str, version: str) -> str:
        """``refs/tags/product/<product>/<version>``; raises :class:`Refused` for a name that a ref cannot hold."""
        if "/" in product or "/" in version or "+" in version:
            raise Refused(f"{product} {version} cannot name a product's version: no '/', and no '+' in the version")
        return ref_name(f"refs/tags/product/{product}/{version}")

    def versions(self, product: str) -> list[str]:
        """The versions that are here, sorted as text; the playbook names the ordering that counts."""
        start = f"refs/tags/product/{product}/"
        return sorted(name.removeprefix(start) for name in self.repository.refs(start))

    def commit(self, product: str, version: str) -> str:
        """The commit of a version; raises :class:`NotKnown`."""
        found = self.repository.ref(self.tag_ref(product, version))
        if found is None:
            known = self.versions(product)
            near = nearest(version, known)
            # Who writes the tag's name (v2.5.0) means a version that is here; importing would not find another one.
            there = near is not None and near == version.removeprefix("v")
            raise NotKnown(
                f"{product} has no version {version} here" + (f" (did you mean '{near}'?)" if near else ""),
                reasons=[f"imported versions: {', '.join(known) or 'none'}"],
                next_commands=[]
                if there
                else [f"invoke product.import product={product} version={version.removeprefix('v')}"],
            )
        return found

    def import_git(self, product: str, version: str, url: str, tag: str) -> Imported:
        """The version from ``tag`` of the Git repository at ``url``: its tree alone, without its history.

        Raises :class:`Unreachable`, :class:`NotKnown` when there is no such tag, :class:`Refused` when the tree cannot
        be a release's or the version is here with other bytes.
        """
        name, source_tag = self.tag_ref(product, version), ref_name(f"refs/tags/{tag}")
        with tempfile.TemporaryDirectory(prefix="tma-import-") as folder:
            # The history stays in this one: a shallow fetch would mark the installations repository as shallow.
            source = Repository.open(Path(folder) / "source.git")
            try:
                source.fetch_objects(remote_address(url), [f"+{source_tag}:{source_tag}"], depth=1)
            except Unreachable as error:
                if not any("find remote ref" in reason.text for reason in error.reasons):
                    raise
                raise NotKnown(
                    f"{product} has no tag {tag} in {without_credentials(url)}",
                    reasons=[f"its tags: {', '.join(source.remote_tags(url)[-_LISTED:]) or 'none'}"],
                ) from None
            commit = source.commit_of(source_tag)
            if commit is None:
                raise Refused(f"the tag {tag} of {without_credentials(url)} does not name a commit")
            manifest_of(source, commit)
            message = with_trailers(f"{product} {version}", {"Source-Commit": commit})
            made = source.write_commit(source.tree_of(commit), [], message, author=AUTHOR, at=EPOCH)
            source.move([RefMove(ref=name, old=source.ref(name), new=made)])
            return self._keep(product, version, made, lambda: self.repository.fetch_objects(str(source.path), [name]))

    def import_archive(self, product: str, version: str, path: Path) -> Imported:
        """The version from a vendor's delivery: zip, wheel, or tar with any compression.

        A single folder that holds everything is taken off (not in a wheel); execute bits and links inside the tree are
        kept. Raises :class:`UsageError` when there is no such file or it is no archive, and :class:`Refused` for one that
        holds unsafe names, devices or too much, or when the version is here with other bytes.
        """
        self.tag_ref(product, version)
        entries = _read_archive(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        message = with_trailers(f"{product} {version}", {"Source-SHA256": sha256})
        changes = {entry.path: (entry.mode, entry.data) for entry in entries}
        made = self.repository.write_commits([NewCommit(None, changes, [], message, AUTHOR, EPOCH)])[0]
        return self._keep(product, version, made, lambda: None)

    def _keep(self, product: str, version: str, commit: str, bring: Callable[[], None]) -> Imported:
        name = self.tag_ref(product, version)
        for _ in range(_TRIES):
            self.repository.fetch()
            bring()
            found = self.repository.ref(name)
            if found is not None:
                return self._same(product, version, found, commit)
            try:
                self.repository.move([RefMove(ref=name, old=None, new=commit)])
            except Raced:
                continue
            return Imported(product, version, commit, True)
        raise Failed(f"others keep writing {name}", state="The version was not imported.")

    def _same(self, product: str, version: str, found: str, commit: str) -> Imported:
        differences = self.repository.diff(self.repository.tree_of(found), self.repository.tree_of(commit))
        if not differences:
            return Imported(product, version, found, False)
        words = {"A": "only in the new delivery", "D": "only in the one imported", "M": "differs", "T": "other type"}
        reasons = [f"{path}: {words.get(status, status)}" for status, path in differences[:_LISTED]]
        if len(differences) > _LISTED:
            reasons.append(f"and {len(differences) - _LISTED} more files")
        raise Refused(
            f"{product} {version} was imported already, with other bytes",
            reasons=[Reason(text, self.tag_ref(product, version)) for text in reasons],
            next_commands=["ask the vendor which one is right; a changed delivery needs a version of its own"],
        )


# --- archives ----------------------------------------------------------------------------------------------------------


def _read_archive(path: Path) -> list[_Entry]:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    found: dict[str, _Entry] = {}
    reasons: list[str] = []
    size = 0
    try:
        reader = _zip_entries(path) if zipfile.is_zipfile(path) else _tar_entries(path)
        for entry in reader:
            size += len(entry.data)
            if size > LARGEST_DELIVERY or len(found) >= MOST_FILES:
                raise Refused(
                    f"{path.name} is too large",
                    reasons=[f"an archive may hold {LARGEST_DELIVERY >> 20} MiB in {MOST_FILES} files"],
                )
            if entry.path in found:
                reasons.append(f"'{entry.path}' is in it twice")
            elif _noted(entry.path, unfit(entry.path, entry.mode), reasons):
                found[entry.path] = entry
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        raise UsageError(
            f"{path.name} cannot be read as an archive (zip, wheel or tar)",
            reasons=[str(error) or type(error).__name__],
        ) from None
    entries = list(found.values())
    first = {entry.path.partition("/")[0] for entry in entries}
    if path.suffix.lower() != ".whl" and len(first) == 1 and all("/" in entry.path for entry in entries):
        entries = [_Entry(entry.path.partition("/")[2], entry.mode, entry.data) for entry in entries]
    paths = {entry.path for entry in entries}
    links: dict[str, bytes] = {}
    for entry in entries:
        if entry.mode == "120000" and _noted(entry.path, unfit(entry.path, entry.mode, entry.data), reasons):
            links[entry.path] = entry.data
        parents = entry.path.split("/")[:-1]
        if any("/".join(parents[: n + 1]) in paths for n in range(len(parents))):
            reasons.append(f"'{entry.path}' lies below a name that is a file or a link in it")
    for name, why in leaving(links).items():
        _noted(name, why, reasons)
    if reasons or not entries:
        raise Refused(f"{path.name} holds what a release cannot hold", reasons=reasons or ["it holds no file"])
    return entries


def _bounded(file: IO[bytes]) -> bytes:
    # What the archive says of its sizes is not to be believed.
    return file.read(LARGEST_DELIVERY + 1)


def _tar_entries(path: Path) -> Iterator[_Entry]:
    # Bytes that are not UTF-8 come as they are, whatever this machine's own encoding is.
    with tarfile.open(path, "r:*", encoding="utf-8", errors="surrogateescape") as archive:
        for member in archive:
            name = _plain(_bytes(member.name))
            if member.isdir():
                continue
            if member.issym():
                yield _Entry(name, "120000", _bytes(member.linkname))
                continue
            # A hard link is read as the file that it names in the archive.
            file = archive.extractfile(member) if member.isreg() or member.islnk() else None
            if file is None:
                raise Refused(
                    f"{path.name} holds what a release cannot hold", reasons=[f"'{name}' is a device or a pipe"]
                )
            yield _Entry(name, "100755" if member.mode & 0o100 else "100644", _bounded(file))


def _zip_entries(path: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            name = _zip_name(path, member)
            if member.flag_bits & 0x1:
                raise Refused(f"{path.name} is encrypted", reasons=[f"'{name}' needs a password"])
            # The high half is the Unix mode where a Unix program made the entry; zero elsewhere (APPNOTE 4.4.15).
            mode = member.external_attr >> 16
            kind = "120000" if stat.S_ISLNK(mode) else "100755" if mode & 0o100 else "100644"
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise Refused(
                    f"{path.name} holds what a release cannot hold", reasons=[f"'{name}' is a device or a pipe"]
                )
            with archive.open(member) as file:
                yield _Entry(name, kind, _bounded(file))


def _zip_name(path: Path, member: zipfile.ZipInfo) -> str:
    if member.flag_bits & 0x800:
        raw = _bytes(member.orig_filename)
    elif member.create_system == _UNIX:
        # A Unix program that does not say UTF-8 writes the bytes that the name has there; zipfile read them as CP437.
        raw = member.orig_filename.encode("cp437")
    elif not member.orig_filename.isascii():
        raise Refused(
            f"{path.name} does not say how its names are written",
            reasons=[f"{member.filename!r} is not ASCII and not marked as UTF-8"],
        )
    else:
        raw = member.orig_filename.encode()
    if member.create_system != _UNIX and b"\\" in raw:
        raise Refused(
            f"{path.name} holds what a release cannot hold",
            reasons=[f"{member.filename!r} has backslashes, and a zip made on Windows separates folders by '/'"],
            next_commands=["ask the vendor for a zip that follows the format, or for a tar"],
        )
    return _plain(raw)


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _plain(name: bytes) -> str:
    while name.startswith(b"./"):
        name = name[2:]
    return path_text(name)
