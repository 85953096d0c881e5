"""The order of versions: the tables of the standards themselves."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.versions import order, split_release

# Semantic Versioning 2.0.0, section 11, numbers 2 to 4, in this order; and numbers where texts sort otherwise.
SEMVER = [
    "0.9.9",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.2.0",
    "1.10.0-1",
    "1.10.0-2",
    "1.10.0-10",
    "1.10.0-A",
    "1.10.0-a",
    "1.10.0",
    "1.10.0.1",
    "2.0.0",
    "2.1.0",
    "2.1.1",
    "10.0.0",
]
# PEP 440, "Summary of permitted suffixes and relative ordering".
PEP440 = [
    "1.dev0",
    "1.0.dev456",
    "1.0a1",
    "1.0a2.dev456",
    "1.0a12.dev456",
    "1.0a12",
    "1.0b1.dev456",
    "1.0b2",
    "1.0b2.post345.dev456",
    "1.0b2.post345",
    "1.0rc1.dev456",
    "1.0rc1",
    "1.0",
    "1.0.post456.dev34",
    "1.0.post456",
    "1.0.15",
    "1.1.dev1",
]


@pytest.mark.parametrize(("kind", "ascending"), [("semver", SEMVER), ("pep440", PEP440)])
def test_the_standards_own_order(kind: str, ascending: list[str]) -> None:
    shuffled = random.Random(7).sample(ascending, len(ascending))
    assert sorted(shuffled, key=lambda version: order(kind, version)) == ascending
    for earlier, later in pairwise(ascending):
        assert order(kind, earlier) < order(kind, later)
        assert order(kind, earlier) != order(kind, later)


@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        ("semver", "1", "1.0.0"),
        ("semver", "1.2", "1.2.0"),
        ("semver", "v1.2.0", "1.2.0"),
        ("pep440", "1.0", "1.0.0"),
        ("pep440", "1.0-alpha-1", "1.0a1"),
    ],
)
def test_ways_of_writing_the_same_version(kind: str, one: str, other: str) -> None:
    assert order(kind, one) == order(kind, other)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("semver", ""),
        ("semver", "next"),
        ("semver", "1.x"),
        ("semver", "1..2"),
        ("semver", "1.2.3.4.5"),
        ("semver", "1.2.3-"),
        ("semver", "1.2.3-rc..1"),
        ("semver", "1.2.3-.1"),
        ("semver", "1.2.3-é"),
        ("semver", "1.2.3 "),
        ("semver", "1.2.3\n"),
        ("semver", "2.4.0+1"),
        ("semver", "١.٢"),  # digits, but not those of a version
        ("pep440", "1.0-what"),
        ("pep440", ""),
    ],
)
def test_what_is_no_version_is_wrong_usage(kind: str, wrong: str) -> None:
    with pytest.raises(UsageError) as raised:
        order(kind, wrong)
    assert repr(wrong) in raised.value.what


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("2.4.0+1", ("2.4.0", 1)),
        ("2.4.0+12", ("2.4.0", 12)),
        ("2.5.0-rc.1+3", ("2.5.0-rc.1", 3)),
        ("1.0+local.7+2", ("1.0+local.7", 2)),  # PEP 440's local part: the last + counts
    ],
)
def test_a_release_is_a_version_and_a_build(release: str, expected: tuple[str, int]) -> None:
    assert split_release(release) == expected


@pytest.mark.parametrize("wrong", ["", "2.4.0", "2.4.0+", "+1", "2.4.0+one", "2.4.0+-1", "2.4.0+²", "2.4.0+ 1"])
def test_what_is_no_release_is_wrong_usage(wrong: str) -> None:
    with pytest.raises(UsageError, match="is not a release's name, for instance"):
        split_release(wrong)


@given(st.lists(st.integers(0, 30), min_size=3, max_size=3), st.lists(st.integers(0, 30), min_size=3, max_size=3))
def test_numbers_are_compared_as_numbers(left: list[int], right: list[int]) -> None:
    one, other = (".".join(map(str, numbers)) for numbers in (left, right))
    assert (order("semver", one) < order("semver", other)) == (left < right)
    assert order("semver", f"{one}-rc.1") < order("semver", one)
