from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline import products as module
from pipeline.errors import Failed, NotKnown, PipelineError, Refused, Unreachable, UsageError
from pipeline.products import Imported, Products, manifest_of
from pipeline.repository import NewCommit, Repository

AT = datetime(2026, 11, 22, 20, tzinfo=UTC)
TREE = {"bin/start": b"#!/bin/sh\n", "app.py": b"print(1)\n", "sql/0001.sql": b"CREATE TABLE a (b text);\n"}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.open(tmp_path / "installations.git")


@pytest.fixture
def products(repository: Repository) -> Products:
    return Products(repository)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=V", "-c", "user.email=v@example.invalid", "-c", "protocol.file.allow=always"]
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A vendor's repository: two versions, an annotated and a lightweight tag, attributes that change archives."""
    folder = tmp_path / "shop"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / ".gitattributes").write_text("version.txt export-subst\n*.txt text eol=crlf\n")
    (folder / "version.txt").write_bytes(b"$Format:%H$\n")
    (folder / "start").write_text("#!/bin/sh\n")
    (folder / "start").chmod(0o755)
    (folder / "current").symlink_to("start")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    git(folder, "tag", "-am", "1.0", "v1.0.0")
    (folder / "start").write_text("#!/bin/sh\nexec\n")
    git(folder, "commit", "-qam", "two")
    git(folder, "tag", "v1.1.0")
    return folder


def tar(path: Path, files: dict[str, bytes | tuple[bytes, str]], mode: str = "w:gz") -> Path:
    """Files; or (type, link's target)."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o755 if name.endswith("start") else 0o644
            data = b""
            if isinstance(content, tuple):
                member.type, member.linkname = content
            else:
                data = content
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def zipped(path: Path, files: dict[str, bytes], modes: dict[str, int] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (modes or {}).get(
                name, stat.S_IFREG | (0o755 if name.endswith("start") else 0o644)
            ) << 16
            archive.writestr(info, data)
    return path


def paths(repository: Repository, commit: str) -> dict[str, str]:
    return {entry.path: entry.mode for entry in repository.entries(commit)}


# --- from Git ------------------------------------------------------------------------------------------------------------


def test_a_tag_becomes_one_parentless_commit(products: Products, repository: Repository, source: Path) -> None:
    done = products.import_git("shop", "1.0.0", str(source), "v1.0.0")
    assert done.changed
    info = repository.commit_info(done.commit)
    assert info.parents == ()
    assert info.tree == git(source, "rev-parse", "v1.0.0^{tree}")
    assert info.author == "product <product@product.invalid>"
    assert info.at == datetime(1970, 1, 1, tzinfo=UTC)
    assert info.message == f"shop 1.0.0\n\nSource-Commit: {git(source, 'rev-parse', 'v1.0.0^{commit}')}\n"
    assert repository.refs() == {"refs/tags/product/shop/1.0.0": done.commit}
    assert not (repository.path / "shallow").exists()
    assert repository.read(f"{done.commit}:version.txt") == b"$Format:%H$\n"
    assert paths(repository, done.commit)["current"] == "120000"
    assert "error" not in git(repository.path, "fsck", "--no-dangling")


def test_importing_again_changes_nothing(products: Products, repository: Repository, source: Path) -> None:
    first = products.import_git("shop", "1.0.0", str(source), "v1.0.0")
    again = products.import_git("shop", "1.0.0", str(source), "v1.0.0")
    assert again == Imported("shop", "1.0.0", first.commit, False)
    products.import_git("shop", "1.1.0", str(source), "v1.1.0")
    assert products.versions("shop") == ["1.0.0", "1.1.0"]
    assert products.versions("sho") == []


def test_the_same_version_with_other_bytes_is_refused(products: Products, repository: Repository, source: Path) -> None:
    first = products.import_git("shop", "1.0.0", str(source), "v1.0.0")
    git(source, "tag", "-f", "v1.0.0", "v1.1.0")
    with pytest.raises(Refused, match="start: differs"):
        products.import_git("shop", "1.0.0", str(source), "v1.0.0")
    assert products.commit("shop", "1.0.0") == first.commit


def test_another_source_with_the_same_bytes_is_the_same_version(
    products: Products, source: Path, tmp_path: Path
) -> None:
    first = products.import_git("shop", "1.0.0", str(source), "v1.0.0")
    files: dict[str, bytes | tuple[bytes, str]] = {
        name: (source / name).read_bytes() for name in (".gitattributes", "version.txt")
    }
    files |= {"start": b"#!/bin/sh\n", "current": (tarfile.SYMTYPE, "start")}
    assert products.import_archive("shop", "1.0.0", tar(tmp_path / "a.tgz", files)).commit == first.commit


def test_what_cannot_be_fetched(products: Products, source: Path, tmp_path: Path) -> None:
    with pytest.raises(NotKnown, match=r"v1\.1\.0"):
        products.import_git("shop", "9", str(source), "v9")
    with pytest.raises(NotKnown):
        products.import_git("shop", "main", str(source), "main")  # a branch is not a version
    with pytest.raises(Unreachable):
        products.import_git("shop", "1.0.0", str(tmp_path / "nowhere"), "v1.0.0")
    for bad in ("--upload-pack=touch x", "ext::sh -c true"):
        with pytest.raises(UsageError):
            products.import_git("shop", "1.0.0", bad, "v1.0.0")
    for version, tag in (("1.0+1", "v1"), ("1 0", "v1"), ("../x", "v1"), ("1.0", "v 1"), ("1.0", "-d")):
        with pytest.raises(Refused):
            products.import_git("shop", version, str(source), tag)
    assert products.repository.refs() == {}


def test_a_submodule_is_refused(products: Products, source: Path, tmp_path: Path) -> None:
    git(source, "submodule", "add", "-q", str(source), "sub")
    git(source, "commit", "-qm", "sub")
    git(source, "tag", "v2")
    with pytest.raises(Refused, match="'sub' is a submodule"):
        products.import_git("shop", "2", str(source), "v2")


def test_two_machines_that_import_at_once_agree(tmp_path: Path) -> None:
    shared = Repository.open(tmp_path / "shared.git")
    delivery = tar(tmp_path / "a.tgz", dict(TREE))
    done = [
        Products(Repository.open(tmp_path / f"{n}.git", remote=str(shared.path))).import_archive("shop", "1", delivery)
        for n in range(2)
    ]
    assert [one.changed for one in done] == [True, False]
    assert shared.refs() == {"refs/tags/product/shop/1": done[0].commit} and done[0].commit == done[1].commit
    third = Products(Repository.open(tmp_path / "2.git", remote=str(shared.path)))
    with pytest.raises(Refused):
        third.import_archive("shop", "1", tar(tmp_path / "b.tgz", {**TREE, "more": b""}))


# --- archives ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_of_any_kind(products: Products, repository: Repository, tmp_path: Path, mode: str) -> None:
    delivery = tar(tmp_path / "shop.tar", {f"./shop-1.0/{name}": data for name, data in TREE.items()}, mode)
    done = products.import_archive("shop", "1.0", delivery)
    assert paths(repository, done.commit) == {"app.py": "100644", "bin/start": "100755", "sql/0001.sql": "100644"}
    assert repository.read(f"{done.commit}:app.py") == TREE["app.py"]
    sha256 = hashlib.sha256(delivery.read_bytes()).hexdigest()
    assert repository.commit_info(done.commit).trailers == {"Source-SHA256": sha256}


def test_a_single_folder_is_taken_off_but_not_in_a_wheel(
    products: Products, repository: Repository, tmp_path: Path
) -> None:
    inner = {f"shop/{name}": data for name, data in TREE.items()}
    one = products.import_archive("shop", "1", zipped(tmp_path / "a.zip", inner)).commit
    wheel = products.import_archive("shop", "2", zipped(tmp_path / "a.whl", inner)).commit
    several = products.import_archive("shop", "3", zipped(tmp_path / "b.zip", {**inner, "README": b""})).commit
    assert sorted(paths(repository, one)) == sorted(TREE)
    assert paths(repository, one)["bin/start"] == "100755"
    assert sorted(paths(repository, wheel)) == sorted(inner)
    assert sorted(paths(repository, several)) == sorted([*inner, "README"])
    two = products.import_archive("shop", "4", zipped(tmp_path / "c.zip", {**inner, "other/README": b""})).commit
    assert sorted(paths(repository, two)) == sorted([*inner, "other/README"])


def test_links_inside_the_tree_are_kept(products: Products, repository: Repository, tmp_path: Path) -> None:
    files: dict[str, bytes | tuple[bytes, str]] = {
        "s/lib/real": b"1",
        "s/lib/soft": (tarfile.SYMTYPE, "../lib/real"),
        "s/lib/hard": (tarfile.LNKTYPE, "s/lib/real"),
        "s/other": b"",
    }
    done = products.import_archive("shop", "1", tar(tmp_path / "a.tar", files, "w"))
    assert paths(repository, done.commit) == {
        "lib/hard": "100644",
        "lib/real": "100644",
        "lib/soft": "120000",
        "other": "100644",
    }
    assert repository.read(f"{done.commit}:lib/hard") == b"1"
    link = zipped(tmp_path / "a.zip", {"s/a": b"1", "s/l": b"a"}, {"s/l": stat.S_IFLNK | 0o777})
    assert paths(repository, products.import_archive("shop", "2", link).commit) == {"a": "100644", "l": "120000"}


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"/etc/passwd": b""}, "absolute"),
        ({"a/../../b": b""}, "leaves"),
        ({"n" * 256: b""}, "too long"),
        (
            {"a/b/up": (tarfile.SYMTYPE, "../.."), "a/b/l": (tarfile.SYMTYPE, "up/.."), "c": b""},
            "'a/b/l' links to 'up/..', outside the tree by way of another link",
        ),
        ({"s/.git/config": b"", "s/a": b""}, "Git's own"),
        ({"l": (tarfile.SYMTYPE, "/etc/passwd")}, "not a relative path"),
        ({"s/l": (tarfile.SYMTYPE, "../x"), "s/a": b""}, "outside"),
        ({"s/d": (tarfile.SYMTYPE, "e"), "s/d/x": b""}, "below a name"),
        ({"a": b"", "./a": b""}, "twice"),
        ({"pipe": (tarfile.FIFOTYPE, "")}, "device or a pipe"),
        ({"null": (tarfile.CHRTYPE, "")}, "device or a pipe"),
        ({"d": (tarfile.DIRTYPE, "")}, "no file"),
    ],
)
def test_an_archive_with_anything_unsafe_is_refused_and_leaves_nothing(
    products: Products, tmp_path: Path, files: dict[str, bytes | tuple[bytes, str]], word: str
) -> None:
    with pytest.raises(Refused, match=word):
        products.import_archive("shop", "1", tar(tmp_path / "a.tar", files, "w"))
    assert products.repository.refs() == {}


def test_an_archive_that_unpacks_to_too_much_is_refused(
    products: Products, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST_DELIVERY", 1000)
    for delivery in (tar(tmp_path / "a.tgz", {"a": b"0" * 5000}), zipped(tmp_path / "a.zip", {"a": b"0" * 5000})):
        with pytest.raises(Refused, match="too large"):
            products.import_archive("shop", "1", delivery)
    monkeypatch.setattr(module, "MOST_FILES", 2)
    with pytest.raises(Refused, match="too large"):
        products.import_archive("shop", "1", tar(tmp_path / "b.tgz", dict(TREE)))


def test_what_is_not_an_archive_is_the_users_error(products: Products, tmp_path: Path) -> None:
    whole = tar(tmp_path / "a.tgz", {"a": os.urandom(100_000)}).read_bytes()
    zip_file = zipped(tmp_path / "c.zip", {"a": b"x" * 1000}).read_bytes()
    for data in (b"", b"text\n", whole[:50_000], zip_file.replace(b"xxx", b"xyx", 1), b"\x1f\x8b\x08"):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(UsageError, match="cannot be read"):
            products.import_archive("shop", "1", tmp_path / "bad")
    with pytest.raises(UsageError, match="no file"):
        products.import_archive("shop", "1", tmp_path / "none.zip")


def test_the_same_delivery_gives_the_same_commit_everywhere(tmp_path: Path) -> None:
    delivery = tar(tmp_path / "a.tgz", dict(TREE))
    made = {
        Products(Repository.open(tmp_path / f"{n}.git")).import_archive("shop", "1", delivery).commit for n in range(2)
    }
    assert len(made) == 1


# --- the manifest --------------------------------------------------------------------------------------------------------


def test_the_manifest_is_of_the_raw_bytes_in_the_order_of_bytes(
    products: Products, repository: Repository, source: Path, tmp_path: Path
) -> None:
    commit = products.import_git("shop", "1.0.0", str(source), "v1.0.0").commit
    manifest = manifest_of(repository, commit)
    assert manifest.tree == repository.tree_of(commit)
    assert [(f.path, f.mode, f.sha256, f.size) for f in manifest.files] == [
        (path, mode, hashlib.sha256(data).hexdigest(), len(data))
        for path, mode, data in [
            (".gitattributes", "100644", (source / ".gitattributes").read_bytes()),
            ("current", "120000", b"start"),
            ("start", "100755", b"#!/bin/sh\n"),
            ("version.txt", "100644", b"$Format:%H$\n"),
        ]
    ]


def test_the_cache_may_be_lost_or_broken(products: Products, repository: Repository, tmp_path: Path) -> None:
    commit = products.import_archive("shop", "1", tar(tmp_path / "a.tgz", dict(TREE))).commit
    cache, tree = tmp_path / "cache" / "manifests", repository.tree_of(commit)
    first = manifest_of(repository, commit, cache)
    kept = cache / f"{tree}.json"
    assert [one.name for one in cache.iterdir()] == [kept.name]
    assert manifest_of(repository, commit, cache) == first
    for broken in (b"", b"{", kept.read_bytes().replace(tree.encode(), b"0" * 40)):
        kept.write_bytes(broken)
        assert manifest_of(repository, commit, cache) == first


@pytest.mark.parametrize(
    ("path", "content", "word"),
    [
        ("l", ("120000", b"../x"), "outside"),
        ("l", ("120000", b"/x"), "not a relative"),
        ("a/.Git/b", b"", "Git's own"),
        ("a/b/l", ("120000", b"../../up/../a"), "by way of another link"),
    ],
)
def test_a_tree_that_a_release_cannot_hold_is_refused(
    repository: Repository, path: str, content: bytes | tuple[str, str | bytes], word: str
) -> None:
    commit = repository.write_commits(
        [NewCommit(None, {path: content, "up": ("120000", b"./")}, [], "m\n", "ana", AT)]
    )[0]
    with pytest.raises(Refused, match=word):
        manifest_of(repository, commit)


def test_every_error_is_one_of_ours(products: Products) -> None:
    for call in (lambda: products.commit("shop", "1"), lambda: manifest_of(products.repository, "1" * 40)):
        with pytest.raises(PipelineError) as caught:
            call()
        assert isinstance(caught.value, (NotKnown, Failed))
