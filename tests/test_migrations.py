"""Migrations of a release against a history: tables, no database."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.content import script_checksum
from pipeline.errors import Refused
from pipeline.migrations import Comparison, compare, named, select
from pipeline.model import Applied, Script

AT = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def script(name: str, text: str = "", **more: Any) -> Script:
    return Script(id=name, checksum=script_checksum(text.encode()), blob=oid(text.encode()), **more)


def row(name: str, text: str = "", algorithm: str = "sha256-bom-eol", **more: Any) -> Applied:
    checksum = script_checksum(text.encode())
    return Applied(script=name, checksum=checksum, algorithm=algorithm, fence=1, run="r", release="1+1", at=AT, **more)


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


FULL = script("schema.sql", "all", kind="initial")
VIEWS, OTHER_VIEWS = script("R__views.sql", "v1", kind="repeatable"), script("R__views.sql", "v2", kind="repeatable")


@pytest.mark.parametrize(
    ("history", "empty", "pending", "covers", "blocked"),
    [
        # A new database has the full schema instead of what it covers; what comes after it still runs.
        ([], True, ["schema.sql", "c", "R__views.sql"], ["a", "b"], []),
        # A table that nobody knows of, or any history: not a new one.
        ([], False, ["a", "b", "c", "R__views.sql"], [], []),
        ([row("a", "1")], True, ["b", "c", "R__views.sql"], [], []),
        ([row("x", "?", state="baseline")], True, ["a", "b", "c", "R__views.sql"], [], []),
        # Once it is there, it never runs again, whatever becomes of its text.
        (
            [row("schema.sql", "older"), row("a", "1", state="baseline"), row("b", "2", state="baseline")],
            False,
            ["c", "R__views.sql"],
            [],
            [],
        ),
        # Begun and not finished: it is what goes on.
        (
            [row("schema.sql", "all", state="running")],
            True,
            ["schema.sql", "c", "R__views.sql"],
            ["a", "b"],
            ["schema.sql"],
        ),
        (
            [row("schema.sql", "all", state="running")],
            False,
            ["schema.sql", "c", "R__views.sql"],
            ["a", "b"],
            ["schema.sql"],
        ),
        # Repeatable: when it is new, changed, or was begun; never an edit, and after everything else.
        ([row("a", "1"), row("b", "2"), row("c", "3"), row("R__views.sql", "v1")], False, [], [], []),
        ([row("a", "1"), row("b", "2"), row("R__views.sql", "v0")], False, ["c", "R__views.sql"], [], []),
        (
            [row("a", "1"), row("b", "2"), row("c", "3"), row("R__views.sql", "v1", state="running")],
            False,
            ["R__views.sql"],
            [],
            ["R__views.sql"],
        ),
        # A blocked script is still to be finished; one that this release does not hold blocks as well.
        ([row("a", "1", state="running")], False, ["a", "b", "c", "R__views.sql"], [], ["a"]),
        ([row("z", "1", state="running")], False, ["a", "b", "c", "R__views.sql"], [], ["z"]),
    ],
)
def test_the_full_schema_and_what_repeats(
    history: list[Applied], empty: bool, pending: list[str], covers: list[str], blocked: list[str]
) -> None:
    found = compare([A, B, FULL, VIEWS, C], history, empty=empty)
    assert [one.id for one in found.pending] == pending
    assert [one.id for one in found.covers] == covers
    assert [one.script for one in found.blocked] == blocked
    assert not found.edited


def test_a_changed_repeatable_and_a_changed_schema_are_no_edits() -> None:
    rows = [row("R__views.sql", "v1"), row("schema.sql", "older")]
    found = compare([FULL, OTHER_VIEWS], rows)
    assert (found.edited, found.accepted, found.ahead) == ((), (), ())
    assert found.pending == (OTHER_VIEWS,)


def test_an_edit_of_a_script_that_was_begun_is_an_edit() -> None:
    found = compare([B2], [row("b", "2", state="running")])
    assert [edit.key for edit in found.edited] == [EDIT]


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


@pytest.mark.parametrize(
    ("phase", "expected"),
    [(None, ["a", "b", "c"]), ("expand", ["a", "b"]), ("contract", ["c"])],
)
def test_selection_by_phase(phase: Any, expected: list[str]) -> None:
    scripts = [script("a"), script("b", phase="expand"), script("c", phase="contract")]
    assert [one.id for one in select(scripts, phase=phase)] == expected
    assert select(scripts, "b", phase="contract") == []


def test_a_script_that_is_called_up_goes_by_its_folder() -> None:
    assert named("2024-01-01-000000_post_name/up.sql", "*_post_*")
    assert not named("2024-01-01-000000_post_name/up.sql", "up.sql")
    assert named("up.sql", "up.sql")
