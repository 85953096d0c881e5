from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import rfc8785
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.content import (
    canonical,
    content_hash,
    files_digest,
    leaving,
    playbook_digest,
    script_checksum,
    sections_digest,
    settings_digest,
    unfit,
)
from pipeline.errors import Refused
from pipeline.model import Manifest, TreeFile
from pipeline.paths import path_text

DOCS = Path(__file__).parents[1] / "docs" / "content-hash.md"
FILES = {
    "Résumé.txt": ("100644", b""),
    "bin/current": ("120000", b"start"),
    "bin/start": ("100755", b"#!/bin/sh\nexec app\n"),
    "migrations/0001_first.sql": ("100644", b"CREATE TABLE a (b text);\n"),
}
ODD_FILES = {
    b" \xc3\xa9 ": ("100644", b""),
    b"-n": ("100644", b""),
    b"a\nb": ("100755", b"#!/bin/sh\n"),
    b"caf\xe9/\\": ("100644", b"x\n"),
    b"caf\xe9/l": ("120000", b"../a\nb"),
}


def file(path: str, mode: str = "100644", data: bytes = b"") -> TreeFile:
    sha256 = hashlib.sha256(data).hexdigest()
    return TreeFile.model_validate({"path": path, "mode": mode, "blob": "0" * 40, "sha256": sha256, "size": len(data)})


def vector() -> tuple[list[TreeFile], dict[str, object], dict[str, str]]:
    """The files, the playbook and the digests that the documentation states."""
    text = DOCS.read_text()
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    digests = dict(re.findall(r"^\| (files|playbook|content) \| `([0-9a-f]{64})` \|$", text, re.MULTILINE))
    return [file(path, *rest) for path, rest in FILES.items()], yaml.safe_load(found[1]), digests


def odd_digest() -> str:
    found = re.search(r"They give the \*files\* section `([0-9a-f]{64})`", DOCS.read_text())
    assert found
    return found[1]


def test_the_documented_vector_holds() -> None:
    files, playbook, digests = vector()
    assert files_digest(files) == digests["files"]
    assert playbook_digest(playbook) == digests["playbook"]
    assert content_hash(Manifest(tree="0" * 40, files=tuple(files)), playbook) == digests["content"]
    for one in files:
        assert f"| {one.mode} | `{one.path}` |" in DOCS.read_text()
        assert one.sha256 in DOCS.read_text()
    assert canonical(playbook).decode() in DOCS.read_text()


def test_the_documented_vector_of_odd_names_holds() -> None:
    text = DOCS.read_text()
    files = [file(path_text(raw), *rest) for raw, rest in ODD_FILES.items()]
    assert odd_digest() == files_digest(files)
    for one in files:
        assert f"| {one.mode} | `{one.path}` |" in text and one.sha256 in text


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="sha256sum is not installed")
@pytest.mark.parametrize("odd", [False, True])
def test_the_documented_shell_commands_give_the_same(tmp_path: Path, odd: bool) -> None:
    _, playbook, digests = vector()
    files = ODD_FILES if odd else {path.encode(): rest for path, rest in FILES.items()}
    for path, (mode, data) in files.items():
        target = tmp_path / "tree" / os.fsdecode(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "120000":
            target.symlink_to(data.decode())
        else:
            target.write_bytes(data)
            target.chmod(0o755 if mode == "100755" else 0o644)
    (tmp_path / "playbook.json").write_bytes(canonical(playbook) + b"\n")
    found = re.search(r"```sh\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found
    environment = {"FILES": digests["files"], "PLAYBOOK": digests["playbook"], "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-eu"],
        input=found[1],
        cwd=tmp_path / "tree",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        odd_digest() if odd else digests["files"],
        digests["playbook"],
        digests["content"],
    ]


def test_the_order_in_which_files_come_does_not_count_but_all_else_does() -> None:
    files, _, digests = vector()
    assert files_digest(reversed(files)) == digests["files"]
    variants = [
        files[1:],
        [*files, file("new")],
        [file("resume.txt"), *files[1:]],
        [files[0], file("bin/current", "100644", b"start"), *files[2:]],
        [*files[:3], file("migrations/0001_first.sql", "100644", b"CREATE TABLE a (b text); \n")],
    ]
    assert len({files_digest(variant) for variant in variants} | {digests["files"]}) == len(variants) + 1


def test_paths_sort_by_their_bytes_not_by_their_characters() -> None:
    # U+FF21 sorts after U+1F600 in UTF-16, before it in UTF-8; "a-b" before "a/b" in both.
    files = [file("a/b"), file("a-b"), file("\U0001f600"), file("\uff21")]
    expected = hashlib.sha256()
    for path in sorted((one.path for one in files), key=str.encode):
        expected.update(b"100644\0" + files[0].sha256.encode() + b"\0" + path.encode() + b"\0")
    assert files_digest(files) == expected.hexdigest()


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(Refused):
        files_digest([file("a"), file("a", data=b"x")])


def test_a_section_more_changes_the_hash_and_the_order_does_not() -> None:
    one = sections_digest({"files": "a" * 64, "playbook": "b" * 64})
    assert one == sections_digest({"playbook": "b" * 64, "files": "a" * 64})
    assert one != sections_digest({"files": "a" * 64, "playbook": "b" * 64, "packages": "c" * 64})
    assert one != sections_digest({"files": "b" * 64, "playbook": "a" * 64})


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=5) | st.booleans()))
def test_the_order_of_keys_does_not_count(value: dict[str, object]) -> None:
    assert settings_digest(value) == settings_digest(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [2**53 + 1, float("nan"), {1: "a"}, {"a": {1, 2}}, {"a": "\ud800"}])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(Refused):
        canonical(value)


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e30, 1e30) | _TEXTS,
        lambda inner: st.lists(inner) | st.dictionaries(_TEXTS, inner),
    )
)
def test_the_quick_way_gives_the_bytes_of_rfc_8785(value: object) -> None:
    assert canonical(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


def test_keys_are_sorted_by_utf_16_also_where_python_would_not() -> None:
    assert canonical({"\uffff": 1, "\U00010000": 2}) == '{"\U00010000":2,"\uffff":1}'.encode()


def test_tuples_and_lists_are_one() -> None:
    assert canonical({"a": (1, "b")}) == canonical({"a": [1, "b"]}) == b'{"a":[1,"b"]}'


@pytest.mark.parametrize(
    "data", [b"a\nb\n", b"a\r\nb\r\n", b"a\rb\r", b"\xef\xbb\xbfa\nb\n", b"\xef\xbb\xbfa\r\nb\n"], ids=repr
)
def test_a_script_checksum_ignores_bom_and_line_ends(data: bytes) -> None:
    assert script_checksum(data) == hashlib.sha256(b"a\nb\n").hexdigest()


@pytest.mark.parametrize(
    "data", [b"a\nb", b"a\n\nb\n", b"a\n b\n", b"a\n\rb\n", b"\xef\xbb\xbf\xef\xbb\xbfa\nb\n"], ids=repr
)
def test_a_script_checksum_ignores_nothing_else(data: bytes) -> None:
    assert script_checksum(data) != script_checksum(b"a\nb\n")


@pytest.mark.parametrize(
    ("path", "mode", "target", "word"),
    [
        ("a/b c.txt", "100644", None, None),
        ("é/x+y", "100755", None, None),
        ("a/b/link", "120000", b"../../c/./d", None),
        ("link", "120000", b"a/../b", None),
        ("sub", "160000", None, "submodule"),
        ("a", "100664", None, "mode"),
        (r"a\x0ab \xff\x5c", "100644", None, None),
        ("-rf", "100755", None, None),
        ("é" * 127 + "x", "100644", None, None),
        (r"\xff" * 255, "100644", None, None),
        (r"\xff" * 256, "100644", None, "too long"),
        (r"a\x00b", "100644", None, "NUL"),
        ("/etc/passwd", "100644", None, "absolute"),
        ("a/../b", "100644", None, "leaves"),
        ("a//b", "100644", None, "absolute"),
        ("x/.GIT/config", "100644", None, "Git's own"),
        ("é" * 128, "100644", None, "too long"),
        ("link", "120000", b"/etc/passwd", "not a relative path"),
        ("link", "120000", b"..", "outside"),
        ("a/link", "120000", b"../../x", "outside"),
        ("a/link", "120000", b"../../a/x", "outside"),
        ("link", "120000", b"", "not a relative path"),
        ("link", "120000", b"a\0b", "not a relative path"),
        ("link", "120000", b"a\nb", None),
        ("link", "120000", b"\xff\\-", None),
        ("link", "120000", b"\xff/../../\n", r"links to '\xff/../../\x0a', outside"),
        ("link", "120000", b"x" * 3001, "too long"),
    ],
)
def test_what_a_release_can_hold(path: str, mode: str, target: bytes | None, word: str | None) -> None:
    why = unfit(path, mode, target)
    assert why is None if word is None else why is not None and word in why


@pytest.mark.parametrize(
    ("links", "found"),
    [
        ({"a/b/up": b"../..", "a/b/out": b"up/.."}, ["a/b/out"]),
        ({"a/b/up": b"../..", "a/b/fine": b"up/a/b/x"}, []),
        ({"a/up": b"..", "a/more": b"up", "x/y/z": b"../../a/more/../x"}, ["x/y/z"]),
        ({"a": b"b", "b": b"a", "x/c": b"../a/.."}, []),
        ({r"\xff/\x0a/up": b"../..", r"\xff/\x0a/out": b"up/../x"}, [r"\xff/\x0a/out"]),
        ({r"\xff/up": b"..", "l": b"\xff/up/.."}, ["l"]),
    ],
    ids=str,
)
def test_links_that_leave_the_tree_by_way_of_others(links: dict[str, bytes], found: list[str]) -> None:
    assert all(unfit(path, "120000", target) is None for path, target in links.items())
    assert sorted(leaving(links)) == found
