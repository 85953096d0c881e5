"""Secrets do not come back in another spelling."""

from __future__ import annotations

import html
import json
import re
from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote, quote_plus

import pytest

from pipeline.concealing import HIDDEN, Concealer

SECRET = "Pa55/wörd+\"x\\y'?>~ &"

FORMS = {
    "as it is": SECRET,
    "url": quote(SECRET),
    "url, slash too": quote(SECRET, safe=""),
    "form": quote_plus(SECRET),
    "url, small": re.sub("%..", lambda match: match[0].lower(), quote(SECRET, safe="")),
    "base64": b64encode(SECRET.encode()).decode(),
    "base64 without padding": b64encode(SECRET.encode()).decode().rstrip("="),
    "base64 for urls": urlsafe_b64encode(SECRET.encode()).decode().rstrip("="),
    "json": json.dumps(SECRET)[1:-1],
    "json, not ascii": json.dumps(SECRET, ensure_ascii=False)[1:-1],
    "upper": SECRET.upper(),
    "lower": SECRET.lower(),
    "repr": repr(SECRET)[1:-1],
    "repr of bytes": repr(SECRET.encode())[2:-1],
    "html": html.escape(SECRET),
    "sql": SECRET.replace("'", "''"),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_each_form_is_concealed(form: str) -> None:
    concealer = Concealer()
    concealer.add(SECRET)
    assert concealer.conceal(f"before {FORMS[form]} after") == f"before {HIDDEN} after"


@pytest.mark.parametrize("user", ["a", "ab", "abc", "deploy"])
def test_basic_authentication_is_concealed(user: str) -> None:
    concealer = Concealer()
    concealer.add("correct horse battery")
    header = b64encode(f"{user}:correct horse battery!".encode()).decode()
    said = concealer.conceal(f"Authorization: Basic {header}")
    assert HIDDEN in said
    kept = said.removeprefix("Authorization: Basic ").split(HIDDEN)
    # At most the digits that carry bits of the user's name or of what follows.
    assert len(kept[0]) <= len(user) * 8 // 6 + 3
    assert len(kept[1]) <= 4


def test_the_longest_first_and_overlapping_ones_leave_no_rest() -> None:
    concealer = Concealer()
    for secret in ("hunter", "hunter2-canary", "xyhunt"):
        concealer.add(secret)
    assert concealer.conceal("hunter2-canary hunter2") == f"{HIDDEN} {HIDDEN}2"
    assert concealer.conceal("xyhunter2-canary.") == f"{HIDDEN}."


def test_a_short_secret_only_as_a_word() -> None:
    concealer = Concealer()
    for secret in ("ab1", "", "  ", "?!"):
        concealer.add(secret)
    text = "cab1net; pin=ab1, AB1 (ab1_) ab12 what?!"
    assert concealer.conceal(text) == f"cab1net; pin={HIDDEN}, {HIDDEN} (ab1_) ab12 what?!"
    assert concealer.conceal("a ?! b") == f"a {HIDDEN} b"


def test_a_key_is_concealed_line_by_line_and_without_its_line_end() -> None:
    concealer = Concealer()
    concealer.add("first-line-of-key\nsecond-line-of-key\nend\n")
    assert concealer.conceal("x second-line-of-key y end") == f"x {HIDDEN} y end"
    concealer.add("password\n")
    assert concealer.conceal("it is password.") == f"it is {HIDDEN}."


def test_nothing_known_nothing_changed() -> None:
    assert Concealer().conceal("text") == "text"
