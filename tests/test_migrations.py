"""Migrations of a release against a history: tables, no database."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from pipeline.content import script_checksum
from pipeline.errors import Failed, Refused
from pipeline.migrations import Comparison, compare, scripts_of, select
from pipeline.model import Applied, Manifest, Script, TreeFile

AT = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def release(files: dict[str, bytes], mode: str = "100644") -> tuple[Manifest, dict[str, bytes]]:
    entries = [
        TreeFile.model_validate(
            {
                "path": path,
                "mode": mode,
                "blob": oid(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
            }
        )
        for path, data in files.items()
    ]
    return Manifest(tree="0" * 40, files=tuple(entries)), {oid(data): data for data in files.values()}


def script(name: str, text: str = "") -> Script:
    return Script(id=name, checksum=script_checksum(text.encode()), blob=oid(text.encode()))


def row(name: str, text: str = "", algorithm: str = "sha256-bom-eol") -> Applied:
    checksum = script_checksum(text.encode())
    return Applied(script=name, checksum=checksum, algorithm=algorithm, fence=1, run="r", release="1+1", at=AT)


@pytest.mark.parametrize(
    ("folder", "pattern", "expected"),
    [
        ("sql/migrations", "*.sql", ["01_a.sql", "02_b.sql", "more/03_c.sql"]),
        ("sql/migrations/", "0[12]_*.sql", ["01_a.sql", "02_b.sql"]),
        ("sql", "*.sql", ["migrations/01_a.sql", "migrations/02_b.sql", "migrations/more/03_c.sql", "schema.sql"]),
        (".", "0*.sql", ["sql/migrations/01_a.sql", "sql/migrations/02_b.sql", "sql/migrations/more/03_c.sql"]),
        ("sql/mig", "*.sql", []),
        ("sql/migrations", "*.SQL", ["UPPER.SQL"]),
    ],
)
def test_scripts_below_the_folder_by_name(folder: str, pattern: str, expected: list[str]) -> None:
    manifest, blobs = release(
        {
            "sql/migrations/02_b.sql": b"b",
            "sql/migrations/01_a.sql": b"a",
            "sql/migrations/more/03_c.sql": b"c",
            "sql/migrations/UPPER.SQL": b"u",
            "sql/migrations/__init__.py": b"",
            "sql/schema.sql": b"s",
        }
    )
    found = scripts_of(manifest, folder, pattern, blobs.get)
    assert [one.id for one in found] == expected


def test_a_script_carries_its_blob_and_a_normalised_checksum() -> None:
    manifest, blobs = release({"m/a.sql": b"\xef\xbb\xbfSELECT 1;\r\nSELECT 2;\r"})
    (found,) = scripts_of(manifest, "m", "*.sql", blobs.get)
    assert found.checksum == hashlib.sha256(b"SELECT 1;\nSELECT 2;\n").hexdigest()
    assert found.blob == manifest.files[0].blob


def test_a_link_is_refused_and_a_missing_blob_fails() -> None:
    manifest, blobs = release({"m/a.sql": b"../elsewhere.sql"}, mode="120000")
    with pytest.raises(Refused, match="symbolic link"):
        scripts_of(manifest, "m", "*.sql", blobs.get)
    manifest, _ = release({"m/a.sql": b"SELECT 1"})
    with pytest.raises(Failed, match="missing"):
        scripts_of(manifest, "m", "*.sql", {}.get)


A, B, B2, C = script("a", "1"), script("b", "2"), script("b", "edited"), script("c", "3")
EDIT = ("b", B.checksum, B2.checksum)


@pytest.mark.parametrize(
    ("scripts", "history", "accepted", "pending", "edited", "ahead", "agreed"),
    [
        ([], [], set(), [], [], [], []),
        ([A, B], [], set(), ["a", "b"], [], [], []),
        ([A, B, C], [row("a", "1")], set(), ["b", "c"], [], [], []),
        ([A, B, C], [row("a", "1"), row("c", "3")], set(), ["b"], [], [], []),
        ([A], [row("a", "1"), row("b", "2")], set(), [], [], ["b"], []),
        ([A, B2, C], [row("a", "1"), row("b", "2")], set(), ["c"], ["b"], [], []),
        ([A, B2, C], [row("a", "1"), row("b", "2")], {EDIT}, ["c"], [], [], ["b"]),
        # An acceptance is for one old and one new text: the way back, and another edit, are new questions.
        ([B], [row("b", "edited")], {EDIT}, [], ["b"], [], []),
        ([script("b", "other")], [row("b", "2")], {EDIT}, [], ["b"], [], []),
        ([B2], [row("b", "2")], {("x", *EDIT[1:])}, [], ["b"], [], []),
    ],
)
def test_comparison(
    scripts: list[Script],
    history: list[Applied],
    accepted: set[tuple[str, str, str]],
    pending: list[str],
    edited: list[str],
    ahead: list[str],
    agreed: list[str],
) -> None:
    found = compare(scripts, history, accepted)
    assert [one.id for one in found.pending] == pending
    assert [one.applied.script for one in found.edited] == edited
    assert [one.script for one in found.ahead] == ahead
    assert [one.applied.script for one in found.accepted] == agreed


def test_an_edit_names_what_to_accept() -> None:
    found = compare([B2], [row("b", "2")])
    assert found.edited[0].key == EDIT
    assert compare([B2], [row("b", "2")], {found.edited[0].key}) == Comparison((), (), (), found.edited)


def test_a_checksum_of_a_newer_version_is_refused() -> None:
    with pytest.raises(Refused, match="sha3-new"):
        compare([A], [row("a", "1", algorithm="sha3-new")])


@pytest.mark.parametrize(
    ("only", "except_", "expected"),
    [
        (None, None, ["01_pre_a.sql", "more/02_post_b.sql", "03_c.sql"]),
        ("*_post_*", None, ["more/02_post_b.sql"]),
        (None, "*_post_*", ["01_pre_a.sql", "03_c.sql"]),
        ("*.sql", ["*_post_*", "*_pre_*"], ["03_c.sql"]),
        (["01*", "03*"], None, ["01_pre_a.sql", "03_c.sql"]),
        ("more/*", None, []),
        ("*_POST_*", None, []),
        ([], None, []),
    ],
)
def test_selection_by_base_name(only: str | None, except_: str | None, expected: list[str]) -> None:
    scripts = [script("01_pre_a.sql"), script("more/02_post_b.sql"), script("03_c.sql")]
    assert [one.id for one in select(scripts, only, except_)] == expected


def test_a_name_that_a_history_cannot_hold_is_refused() -> None:
    manifest, blobs = release({"sql/1\\x0a2.sql": b"SELECT 1;"})
    with pytest.raises(Refused, match="a name that a history cannot hold"):
        scripts_of(manifest, "sql", "*.sql", blobs.get)
