"""Trees as they are: every name that Git and a file system can hold goes from a product to a release, byte for byte."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.content import files_digest
from pipeline.errors import Failed, Refused
from pipeline.installation import Installation, MergeConflict
from pipeline.model import Manifest
from pipeline.paths import path_bytes, path_text
from pipeline.products import Products, manifest_of
from pipeline.repository import NewCommit, Repository

AT = datetime(2026, 11, 22, 20, tzinfo=UTC)
Tree = dict[bytes, tuple[str, bytes]]
ODD: Tree = {
    b"plain.txt": ("100644", b"plain\n"),
    b" sp ace ": ("100644", b"1"),
    b"new\nline\r\t": ("100755", b"2"),
    b"'single' \"double\" `x` $(y) ;&|*?[a]": ("100644", b"3"),
    b"-rf": ("100644", b"4"),
    b"--end-of-options/-n": ("100755", b"5"),
    b"back\\slash\\n\\": ("100644", b"6"),
    b"caf\xe9/\xff\xfe": ("100644", b"7"),
    "Résumé 名前 😀 \u202egnp".encode(): ("100644", b"8"),
    b":(top)x:y": ("100644", b"9"),
    b"# %s\x7f\x01": ("100644", b"10"),
    b"d" * 255 + b"/" + b"\xf0" * 255: ("100755", b"11"),
    b"l\ni\xffnk": ("120000", b"back\\slash\\n\\"),
    b"caf\xe9/to\xe9": ("120000", b"../new\nline\r\t"),
    b"-dangling": ("120000", b"caf\xe9/ \\ no such"),
}


def git(folder: bytes | Path, *arguments: bytes | str, stdin: bytes = b"") -> bytes:
    identity = ["-c", "user.name=V", "-c", "user.email=v@example.invalid"]
    command = [os.fsencode(word) for word in ["git", *identity, "-C", os.fsencode(folder), *arguments]]
    return subprocess.run(command, input=stdin, check=True, capture_output=True).stdout


def write(folder: Path, tree: Tree) -> None:
    for path, (mode, data) in tree.items():
        place = folder / os.fsdecode(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if mode == "120000":
            place.symlink_to(os.fsdecode(data))
        else:
            place.write_bytes(data)
            place.chmod(int(mode[3:], 8))


def vendor(folder: Path, tree: Tree) -> Path:
    """A vendor's repository with the tree as real files, under the tag v1."""
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "core.autocrlf", "false")
    write(folder, tree)
    git(folder, "add", "-Af", ".")
    git(folder, "commit", "-qm", "one", "--allow-empty")
    git(folder, "tag", "v1")
    return folder


def held(manifest: Manifest) -> dict[bytes, tuple[str, str]]:
    assert [path_bytes(file.path) for file in manifest.files] == sorted(
        path_bytes(file.path) for file in manifest.files
    )
    return {path_bytes(file.path): (file.mode, file.sha256) for file in manifest.files}


def expected(tree: Tree) -> dict[bytes, tuple[str, str]]:
    return {path: (mode, hashlib.sha256(data).hexdigest()) for path, (mode, data) in tree.items()}


def released(folder: Path, tree: Tree) -> Installation:
    """The tree as a product, a line and the release 1+1 of it."""
    installation = Installation(Repository.open(folder / "installations.git"), "acme")
    installation.products.import_git("shop", "1", str(vendor(folder / "vendor", tree)), "v1")
    installation.repository.move(installation.start("shop", "1", author="ana", at=AT).moves)
    tip = installation.line_tip() or ""
    installation.repository.move([installation.release_tag("1+1", tip, trailers={}, author="ana", at=AT)])
    return installation


def check_release(installation: Installation, commit: str, tree: Tree, cache: Path) -> None:
    """The manifest, afresh and from its cache, and what is read by its blobs and by its paths, are the tree's bytes."""
    for _ in range(2):
        manifest = installation.manifest(commit, cache)
        assert held(manifest) == expected(tree)
    blobs = installation.repository.read_many(file.blob for file in manifest.files)
    by_path = installation.repository.read_many(f"{commit}:{file.path}" for file in manifest.files)
    assert {path_bytes(file.path): blobs[file.blob] for file in manifest.files} == {p: d for p, (_, d) in tree.items()}
    assert list(by_path.values()) == [blobs[file.blob] for file in manifest.files]
    hashed = hashlib.sha256()
    for path, (mode, data) in sorted(tree.items()):
        hashed.update(b"%s\0%s\0%s\0" % (mode.encode(), hashlib.sha256(data).hexdigest().encode(), path))
    assert files_digest(manifest.files) == hashed.hexdigest()


def test_a_tag_with_odd_names_becomes_a_release(tmp_path: Path) -> None:
    installation = released(tmp_path, ODD)
    commit = installation.release_commit("1+1")
    check_release(installation, commit, ODD, tmp_path / "cache")
    assert (
        installation.repository.tree_of(commit) == git(tmp_path / "vendor", "rev-parse", "v1^{tree}").decode().strip()
    )
    assert all("\n" not in file.path for file in installation.manifest(commit).files)


PART = (
    st.binary(min_size=1, max_size=12) | st.text(min_size=1, max_size=6).map(lambda t: t.encode("utf-8", "ignore"))
).map(lambda part: part.replace(b"/", b"\\").replace(b"\0", b"\n") or b"-")
PATHS = st.lists(PART.filter(lambda part: b"." not in part and b"~" not in part), min_size=1, max_size=3).map(b"/".join)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(PATHS, st.tuples(st.sampled_from(["100644", "100755"]), st.binary(max_size=5)), max_size=6))
def test_any_names_come_through(drawn: Tree) -> None:
    folders = {path[:at] for path in drawn for at in range(len(path)) if path[at : at + 1] == b"/"}
    tree = {path: content for path, content in drawn.items() if path not in folders} | {b"a.txt": ("100644", b"")}
    with tempfile.TemporaryDirectory() as folder:
        installation = released(Path(folder), tree)
        check_release(installation, installation.release_commit("1+1"), tree, Path(folder) / "cache")


def test_a_patch_may_change_odd_names_and_comes_as_a_commit_or_a_diff(tmp_path: Path) -> None:
    installation = released(tmp_path, ODD)
    work = installation.checkout(tmp_path / "work")
    fixed = {**ODD, b"new\nline\r\t": ("100644", b"fixed"), b'\xe9\\ "new"\n': ("100755", b"new\n")}
    del fixed[b"caf\xe9/\xff\xfe"]
    git(work, "rm", "-q", "--", b":(literal)caf\xe9/\xff\xfe")
    (work / "new\nline\r\t").unlink()
    write(work, {path: content for path, content in fixed.items() if content != ODD.get(path)})
    git(work, "add", "-A", ".")
    git(work, "commit", "-qm", "fix")
    git(work, "push", "-q", "origin", "+HEAD:refs/heads/acme/fixing")
    made = [
        installation.patch("1+1", patch_id="P-1", author="ana", at=AT, **given)
        for given in (
            {"commit": "acme/fixing"},
            {"diff": git(work, "diff", "--binary", "HEAD~", "HEAD")},
            {"diff": git(work, "-c", "core.quotePath=false", "diff", "--binary", "HEAD~", "HEAD")},
        )
    ]
    for one in made:
        check_release(installation, one.commit, fixed, tmp_path / "cache")
    changes = installation.changes(installation.release_commit("1+1"), made[0].commit)
    assert sorted(changes) == [
        ("A", r"\xe9\x5c " + '"new"' + r"\x0a"),
        ("D", r"caf\xe9/\xff\xfe"),
        ("M", r"new\x0aline\x0d\x09"),
    ]
    with pytest.raises(Failed) as caught:  # the file that it changes is not as it was
        wrong = git(work, "diff", "HEAD", "HEAD~").replace(b"-fixed", b"-other")
        installation.patch("1+1", patch_id="P-2", author="ana", at=AT, diff=wrong)
    assert "does not apply" in str(caught.value)


def test_a_conflict_names_the_file_on_one_line_and_its_resolution_is_read_by_bytes(tmp_path: Path) -> None:
    name = b"a \\ \n\xff"
    installation = released(tmp_path, {name: ("100644", b"old\n"), b"b\n": ("100644", b"b\n")})
    repository, tip = installation.repository, installation.line_tip() or ""

    def commit(changes: dict[bytes, bytes | None], base: str, parents: list[str], message: str) -> str:
        new = {path_text(path): content for path, content in changes.items()}
        return repository.write_commits([NewCommit(base, new, parents, message, "ana", AT)])[0]

    newer = commit({name: b"theirs\n", b"b\n": b"new\n", b"\xee": b"more"}, tip, [], "shop 2\n")
    ours = commit({name: b"ours\n"}, tip, [tip], "ours\n")
    for ref, old, new in (("refs/tags/product/shop/2", None, newer), (installation.line, tip, ours)):
        git(repository.path, "update-ref", ref, new, old or "0" * 40)
    with pytest.raises(MergeConflict) as caught:
        installation.merge_version("shop", "2", author="ana", at=AT)
    assert [conflict.path for conflict in caught.value.conflicts] == [r"a \x5c \x0a\xff"]
    assert all("\n" not in reason.text for reason in caught.value.reasons)
    lacking = commit({name: b"both\n"}, ours, [ours], "resolved\n")
    with pytest.raises(Refused) as refused:
        installation.merge_version("shop", "2", author="ana", at=AT, merged=lacking)
    assert [reason.text.split(":")[0] for reason in refused.value.reasons] == [r"\xee", r"b\x0a"]
    whole = commit({name: b"both\n", b"b\n": b"new\n", b"\xee": b"more"}, ours, [ours], "resolved\n")
    merged = installation.merge_version("shop", "2", author="ana", at=AT, merged=whole)
    assert repository.read(rf"{merged.commit}:a \x5c \x0a\xff") == b"both\n"
    assert installation.changes(tip, merged.commit) == [("M", r"a \x5c \x0a\xff"), ("M", r"b\x0a"), ("A", r"\xee")]


def test_what_is_asked_by_a_name_over_several_lines_and_is_not_there_does_not_shift_the_answers(tmp_path: Path) -> None:
    repository = Repository.open(tmp_path / "r.git")
    commit = repository.write_commits([NewCommit(None, {"a": b"1", r"b\x0ac": b"2"}, [], "m\n", "ana", AT)])[0]
    names = [f"{commit}:{path}" for path in (r"no\x0a\x0a blob 3", "a", r"b\x0a", r"b\x0ac", "b", "a")]
    assert list(repository.read_many(names).values()) == [None, b"1", None, b"2", None]
    for wrong in ("a\nb", r"a\x00", r"a\b"):
        with pytest.raises(Refused):
            repository.read(f"{commit}:{wrong}")


# --- archives ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_carries_them(tmp_path: Path, form: int) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for path, (mode, data) in ODD.items():
            member = tarfile.TarInfo(os.fsdecode(b"./shop/" + path))
            member.mode, member.size = int(mode[3:], 8), len(data)
            if mode == "120000":
                member.type, member.linkname, member.size = tarfile.SYMTYPE, os.fsdecode(data), 0
            archive.addfile(member, io.BytesIO(data) if member.isreg() else None)
    repository = Repository.open(tmp_path / "r.git")
    done = Products(repository).import_archive("shop", "1", tmp_path / "a.tar")
    assert held(manifest_of(repository, done.commit)) == expected(ODD)


def test_a_tar_made_by_the_tar_program_carries_them(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    write(tmp_path / "shop", ODD)
    subprocess.run(["tar", "-C", tmp_path, "-czf", tmp_path / "a.tgz", "shop"], check=True)
    repository = Repository.open(tmp_path / "r.git")
    done = Products(repository).import_archive("shop", "1", tmp_path / "a.tgz")
    assert held(manifest_of(repository, done.commit)) == expected(ODD)


def zip_of(path: Path, names: list[str], *, system: int, raw: dict[bytes, bytes] | None = None) -> Path:
    """A zip with these names; ``raw`` replaces bytes of it, to say what Python's own writer never writes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = system, (stat.S_IFREG | 0o644) << 16 if system == 3 else 0
            archive.writestr(info, b"x")
    written = data.getvalue()
    for old, new in (raw or {}).items():
        assert len(old) == len(new) and written.count(old) == 2
        written = written.replace(old, new)
    path.write_bytes(written)
    return path


@pytest.mark.parametrize("suffix", ["zip", "whl"])
def test_a_zip_and_a_wheel_made_on_unix_carry_them(tmp_path: Path, suffix: str) -> None:
    names = ["a\nb\\", "é \u202e", "-rf 'x'", "caf?/y"]
    made = zip_of(tmp_path / f"a.{suffix}", names, system=3, raw={b"caf?/y": b"caf\xe9/y"})
    repository = Repository.open(tmp_path / "r.git")
    done = Products(repository).import_archive("shop", "1", made)
    assert set(held(manifest_of(repository, done.commit))) == {
        b"a\nb\\",
        "é \u202e".encode(),
        b"-rf 'x'",
        b"caf\xe9/y",
    }


@pytest.mark.parametrize(
    ("name", "raw", "word"),
    [
        ("caf?", {b"caf?": b"caf\x82"}, "how its names are written"),
        ("folder\\file", {}, "separates folders by '/'"),
    ],
)
def test_a_zip_made_elsewhere_whose_names_are_not_certain_is_refused(
    tmp_path: Path, name: str, raw: dict[bytes, bytes], word: str
) -> None:
    with pytest.raises(Refused, match=word):
        Products(Repository.open(tmp_path / "r.git")).import_archive(
            "shop", "1", zip_of(tmp_path / "a.zip", [name], system=0, raw=raw)
        )


def test_a_nul_in_a_zip_hides_nothing(tmp_path: Path) -> None:
    made = zip_of(tmp_path / "a.zip", ["a?b"], system=3, raw={b"a?b": b"a\0b"})
    with pytest.raises(Refused, match="NUL"):
        Products(Repository.open(tmp_path / "r.git")).import_archive("shop", "1", made)
