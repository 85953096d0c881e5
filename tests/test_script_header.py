"""What a script says of itself in its first lines, and what is wrong with it, each with its place."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model import Script
from pipeline.script_header import Header, read_header
from pipeline.script_text import running_text, script_text


def said(text: str | bytes) -> Header:
    header, wrong = read_header(text.encode() if isinstance(text, str) else text, "a.sql")
    assert wrong == []
    return header


def blamed(text: str | bytes) -> dict[str | None, str]:
    _, wrong = read_header(text.encode() if isinstance(text, str) else text, "sql/a.sql")
    return {reason.source: reason.text for reason in wrong}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("SELECT 1;", {}),
        ("-- tma: transaction=no", {"transaction": False}),
        ("--tma:transaction=no", {"transaction": False}),
        ("# tma: transaction=no", {"transaction": False}),
        ("\n\n-- made by hand\n\t--  TMA :  phase = contract ,client=psql , session=yes\nSELECT 1;", None),
        ("/* licence\n of ours */\n-- tma: phase=expand\nSELECT 1", {"phase": "expand"}),
        ("-- tma: phase=expand\r\n-- tma: session=no\r\n", {"phase": "expand", "session": False}),
        (b"\xef\xbb\xbf-- tma: client=sqlite3\rSELECT 1", {"client": "sqlite3"}),
        ("-- migrate:up transaction:false\n-- tma: session=yes\nSELECT 1", {"session": True}),
        ("SELECT 'tma: x', '-- tma: transaction=no'", {}),
        ("-- tmax: 1\n-- a tma: 2", {}),
        ("SELECT \"x -- tma: phase=late\", 'it''s /* tma: y */'; -- about tma: see there\n-- tma was here", {}),
        (
            '-- tma: accept=drop-table "it\'s ""empty"", since 2.0", accept=squawk:ban-char-field "fixed width"',
            {
                "accepted": {"drop-table": 'it\'s "empty", since 2.0', "squawk:ban-char-field": "fixed width"},
                "lines": {"drop-table": 1, "squawk:ban-char-field": 1},
            },
        ),
    ],
)
def test_read(text: str | bytes, expected: dict[str, Any] | None) -> None:
    if expected is None:
        expected = {"phase": "contract", "client": "psql", "session": True}
    assert said(text) == Header(**expected)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("-- tma: tranaction=no", "1:9", "did you mean transaction?"),
        ("-- tma: colour=no", "1:9", "known: transaction, phase, client, session, accept"),
        ("\n  -- tma: phase=late", "2:17", "phase= is expand or contract, not 'late'"),
        ("-- tma: Phase=expand", "1:9", "did you mean phase?"),
        ("-- tma: phase=expand, transaction=maybe", "1:35", "transaction= is no or yes"),
        ("-- tma: client=bash", "1:16", "client= is psql or mariadb or mysql or sqlite3"),
        ("-- tma: phase=expand,\n-- tma: phase=contract", "2:9", "phase= is said twice"),
        ("-- tma: phase=expand phase=contract", "1:22", "commas between"),
        ("-- tma:", "1:8", "here stands key=value"),
        ("-- tma: phase", "1:9", "here stands key=value"),
        ("-- tma: phase=", "1:9", "here stands key=value"),
        ("-- tma: phase=expand,", "1:22", "here stands key=value"),
        ("-- tma: accept=drop-table", "1:9", "needs its reason"),
        ('-- tma: accept=drop-table " "', "1:9", "needs its reason"),
        ('-- tma: accept=drop-table "no end', "1:27", "here stands"),
        ("-- tma: accept=drop-table 'x'", "1:27", "here stands"),
        ('-- tma: accept=Drop_Table "x"', "1:9", "no name of a rule"),
        ('-- tma: accept=a "x"\n-- tma: accept=a "y"', "2:9", "said twice"),
        ('-- tma: phase=expand "why"', "1:22", "is for accept="),
        (b'-- tma: accept=a "\xff"', "1:9", "not UTF-8"),
        ("SELECT 1;\n-- tma: transaction=no", "2:1", "first comment lines"),
        ("SELECT 1; /*\n  -- tma: transaction=no */", "2:1", "first comment lines"),
        ("/*! SELECT 1 */\n-- tma: transaction=no", "2:1", "first comment lines"),
        ("/* tma: transaction=no */\nVACUUM;", "1:1", "a line of its own that begins with --"),
        ("/*\n-- tma: transaction=no\n*/\nSELECT 1;", "2:1", "a line of its own that begins with --"),
        ("/*\n * tma: transaction=no\n */\nSELECT 1;", "2:2", "a line of its own that begins with --"),
        ("SELECT 1; -- tma: transaction=no\n", "1:11", "first comment lines"),
        ("SELECT 'it''s'; /* tma: phase=expand */\n", "1:17", "first comment lines"),
        ("-- tma transaction=no\nSELECT 1;", "1:1", "a colon after tma"),
        ("-- a word\n  -- TMA phase = expand\n", "2:3", "a colon after tma"),
        ("--- tma: transaction=no\nSELECT 1;", "1:1", "a line of its own that begins with --"),
        ("\u00a0-- tma: transaction=no\nSELECT 1;", "1:2", "first comment lines"),
        ("--\u00a0tma: transaction=no\nSELECT 1;", "1:1", "a line of its own that begins with --"),
    ],
)
def test_refused(text: str | bytes, place: str, words: str) -> None:
    found = blamed(text)
    assert set(found) >= {f"sql/a.sql:{place}"}
    assert words in found[f"sql/a.sql:{place}"]


VALUES = {
    "transaction": st.sampled_from(["yes", "no"]),
    "phase": st.sampled_from(["expand", "contract"]),
    "client": st.sampled_from(["psql", "mariadb", "mysql", "sqlite3"]),
    "session": st.sampled_from(["yes", "no"]),
}
WHY = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1).filter(lambda text: bool(text.strip()))
RULE = st.from_regex(r"(squawk:)?[a-z]{1,5}(-[a-z0-9]{1,5}){0,2}", fullmatch=True)


@given(
    st.fixed_dictionaries({}, optional=VALUES),
    st.dictionaries(RULE, WHY, max_size=3),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "-- a word", "", "  --"]),
)
def test_what_was_written_is_read(
    values: dict[str, str], accepted: dict[str, str], breaks: list[bool], end: str, between: str
) -> None:
    """On one line or on several, with other comments between, whatever the ends of lines."""
    items = [f"{key}={value}" for key, value in values.items()]
    items += ['accept={} "{}"'.format(rule, why.replace('"', '""')) for rule, why in accepted.items()]
    lines: list[list[str]] = []
    for item, apart in zip(items, breaks, strict=False):
        if apart or not lines:
            lines.append([])
        lines[-1].append(item)
    text = end.join(part for line in lines for part in (between, f"-- tma: {', '.join(line)}"))
    header = said((text + end + "SELECT 1;").encode())
    flags = {"yes": True, "no": False}
    assert header.transaction == flags.get(values.get("transaction", ""))
    assert header.session == flags.get(values.get("session", ""))
    assert (header.phase, header.client) == (values.get("phase"), values.get("client"))
    assert header.accepted == {rule: why.strip() for rule, why in accepted.items()}


@given(st.text(alphabet='-# tma:=,"\nphaseexpand/*!', max_size=60))
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    _, wrong = read_header(text.encode(), "a.sql")
    count = script_text(text.encode()).count("\n") + 1
    for reason in wrong:
        assert reason.source is not None
        _, line, column = reason.source.split(":")
        assert 1 <= int(line) <= count
        assert int(column) >= 1


def test_lines_that_do_not_run_are_empty_and_keep_their_numbers() -> None:
    script = Script(id="a", checksum="0" * 64, blob="0" * 40, lines=(2, 3))
    assert running_text(script, b"\xef\xbb\xbfone\r\ntwo\rthree\nfour\n") == "\ntwo\nthree\n\n"
    whole = script.model_copy(update={"lines": None})
    assert running_text(whole, b"\xff\r\n") == "\udcff\n"
