"""Every trap of YAML at its exact place, with the form to write instead; the same with and without libyaml."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import strict_yaml
from pipeline.errors import ConfigurationError
from pipeline.strict_yaml import MAX_BYTES, MAX_DEPTH, meaning, parse, quoted, read


@pytest.fixture(params=["CSafeLoader", "SafeLoader"])
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not hasattr(yaml, request.param):
        pytest.skip("PyYAML was built without libyaml")
    monkeypatch.setattr(strict_yaml, "_Loader", getattr(yaml, request.param))
    yield


def refusals(text: str | bytes, **options: Any) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigurationError) as caught:
        read("f.yaml", data, **options)
    assert caught.value.exit_code == 2
    return [f"{reason.source} {reason.text}" for reason in caught.value.reasons]


TRAPS = [
    ("version: 1.10\n", "f.yaml:1:10 unquoted 1.10 is the number 1.1 to YAML; write '1.10'"),
    ("a: x\ncountry: no\n", "f.yaml:2:10 unquoted no is false to YAML; write 'no'"),
    ("a: Yes\n", "f.yaml:1:4 unquoted Yes is true to YAML; write 'Yes'"),
    ("a: [x, off]\n", "f.yaml:1:8 unquoted off is false to YAML; write 'off'"),
    ("a: TRUE\n", "f.yaml:1:4 unquoted TRUE is true to YAML; write 'TRUE'"),
    ("a: NULL\n", "f.yaml:1:4 unquoted NULL is empty (null) to YAML; write 'NULL'"),
    ("a:\n  - b: 0123\n", "f.yaml:2:8 unquoted 0123 is the number 83 to YAML; write '0123'"),
    ("a: 0o17\n", "f.yaml:1:4 unquoted 0o17 is either a number or a text to YAML; write '0o17'"),
    ("a: 0x1f\n", "f.yaml:1:4 unquoted 0x1f is the number 31 to YAML; write '0x1f'"),
    ("a: 1_000\n", "f.yaml:1:4 unquoted 1_000 is the number 1000 to YAML; write '1_000'"),
    ("a: +5\n", "f.yaml:1:4 unquoted +5 is the number 5 to YAML; write '+5'"),
    ("a: 12:30:00\n", "f.yaml:1:4 unquoted 12:30:00 is the number 45000 to YAML; write '12:30:00'"),
    ("a: 22:22\n", "f.yaml:1:4 unquoted 22:22 is the number 1342 to YAML; write '22:22'"),
    ("a: 2026-11-22\n", "f.yaml:1:4 unquoted 2026-11-22 is a date to YAML; write '2026-11-22'"),
    (
        "a: 2026-11-22T20:00:00Z\n",
        "f.yaml:1:4 unquoted 2026-11-22T20:00:00Z is a date to YAML; write '2026-11-22T20:00:00Z'",
    ),
    ("a: 12e4\n", "f.yaml:1:4 unquoted 12e4 is either a number or a text to YAML; write '12e4'"),
    ("a: 1.\n", "f.yaml:1:4 unquoted 1. is the number 1.0 to YAML; write '1.'"),
    ("a: .5\n", "f.yaml:1:4 unquoted .5 is the number 0.5 to YAML; write '.5'"),
    ("a: .inf\n", "f.yaml:1:4 unquoted .inf is the number inf to YAML; write '.inf'"),
    ("a: .NaN\n", "f.yaml:1:4 unquoted .NaN is the number nan to YAML; write '.NaN'"),
    ("a: -0\n", "f.yaml:1:4 unquoted -0 is the number 0 to YAML; write '-0'"),
    (
        "a: 9007199254740993\n",
        "f.yaml:1:4 unquoted 9007199254740993 is a number too large to be kept exactly to YAML; "
        "write '9007199254740993'",
    ),
    ("no: x\n", "f.yaml:1:1 unquoted no is false to YAML; write 'no'"),
    ("a:\n  1.10: x\n", "f.yaml:2:3 unquoted 1.10 is the number 1.1 to YAML; write '1.10'"),
    ("8080: x\n", "f.yaml:1:1 unquoted 8080 is the number 8080 to YAML; write '8080'"),
    ("true: x\n", "f.yaml:1:1 unquoted true is true to YAML; write 'true'"),
    ("<<: {b: c}\n", "f.yaml:1:1 unquoted << is a special sign to YAML; write '<<'"),
    ("[a]: x\n", "f.yaml:1:1 a key is a text, not a list or mapping"),
    ("a: x\nb:\n  c: 1\n  c: 2\n", "f.yaml:4:3 key 'c' is given twice, first in line 3"),
    ("a: x\n'a': y\n", "f.yaml:2:1 key 'a' is given twice, first in line 1"),
    ("a: &here x\n", "f.yaml:1:4 an anchor (&…) is not accepted; write the value where it is needed"),
    ("a: !!str 5\n", "f.yaml:1:4 a tag (!…) is not accepted; quote the value where it is text"),
    ("a: !!python/object/apply:os.system [id]\n", "f.yaml:1:4 a tag (!…) is not accepted"),
    ("a: x\n---\nb: y\n", "f.yaml:2:1 a second document (---) is not accepted; one file, one document"),
    ("", "f.yaml:1:1 the file is empty"),
    ("# only a comment\n", "f.yaml:1:1 the file is empty"),
    ('a: x\nb: "\\0"\n', "f.yaml:2:4 this text holds a control character"),
    ("a: x\nb: \u202egnp.exe\n", "f.yaml:2:4 invisible character U+202E; remove it"),
    ("a: x\x00\n", "f.yaml:1:5 invisible character U+0000; remove it"),
    ("a: x\u2028b: y\n", "f.yaml:1:5 invisible character U+2028; remove it"),
    (b"a: x\nb: \xe9t\xe9\n", "f.yaml:2:4 this is not UTF-8; save the file as UTF-8"),
    (b"\xef\xbb\xbfa: \xe9\n", "f.yaml:1:4 this is not UTF-8; save the file as UTF-8"),
    (b"\xef\xbb\xbfa: no\n", "f.yaml:1:4 unquoted no is false to YAML"),
    ("é: 'à'\nü: {ö: no}\n", "f.yaml:2:8 unquoted no is false to YAML"),
    ("a: x\r\nb: no\r\n", "f.yaml:2:4 unquoted no is false to YAML"),
]


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(("text", "expected"), TRAPS, ids=[repr(text)[:40] for text, _ in TRAPS])
def test_a_trap_is_refused_at_its_place(text: str | bytes, expected: str) -> None:
    assert any(refusal.startswith(expected) for refusal in refusals(text)), refusals(text)


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(
    ("text", "place", "hint"),
    [
        ("a:\n\tb: 1\n", "f.yaml:2:1", "indent with spaces"),
        ("a: b: c\n", "f.yaml:1:5", "needs quotes"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2", ""),
        ("a: 'x\n", "f.yaml:2:1", "quoted scalar"),
        ("a: x\n b: y\n", "f.yaml:2:3", ""),
        ('a: "\\UFFFFFFFF"\n', "f.yaml:1:", ""),
        ("%YAML 3.0\n---\na: x\n", "f.yaml:1:", ""),
    ],
)
def test_a_syntax_error_has_its_place(text: str, place: str, hint: str) -> None:
    (refusal,) = refusals(text)
    assert refusal.startswith(place) and hint in refusal


@pytest.mark.usefixtures("_loader")
def test_all_problems_of_a_file_come_together_in_the_order_of_the_file() -> None:
    assert [refusal.split()[0] for refusal in refusals("b: no\na: 0123\nb: &x 1.10\n")] == [
        "f.yaml:1:4",
        "f.yaml:2:4",
        "f.yaml:3:1",
        "f.yaml:3:4",
        "f.yaml:3:4",
    ]


BILLION = (
    b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    b"b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
    b"c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
    b"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
    b"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"
    b"f: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
)


@pytest.mark.usefixtures("_loader")
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (BILLION, "f.yaml:1:4 an anchor"),
        (b"a: &a [*a]\n", "f.yaml:1:8 an alias"),
        (b"*a : x\n", "f.yaml:1:1 an alias"),
        (b"a: " + b"[" * 100_000, f"f.yaml:1:{MAX_DEPTH + 3} nested deeper than {MAX_DEPTH} levels"),
        (b"a: " + b"{b: " * 5_000, "nested deeper"),
        (b"- " * 50_000, "nested deeper"),
        (b"a: " + b"x" * MAX_BYTES, "f.yaml:1:1 the file is larger than 1024 KiB"),
        (b"a: " + b"9" * 100_000, "f.yaml:1:4 unquoted 999"),
        (b"a: " + b"1" * 50_000 + b".0", "f.yaml:1:4 unquoted 111"),
        (b"k" * 2_000 + b": x\n", "f.yaml:"),
    ],
    ids=["billion", "self", "alias-key", "brackets", "braces", "dashes", "large", "digits", "decimal", "long-key"],
)
def test_a_bomb_does_not_go_off(data: bytes, expected: str) -> None:
    found = refusals(data)
    assert any(expected in refusal for refusal in found), found[:3]
    assert all(len(refusal) < 300 for refusal in found)


@pytest.mark.usefixtures("_loader")
def test_what_is_written_is_what_is_read() -> None:
    text = """\
text: 2.4.0
quoted: '1.10'
number: 5432
negative: -3
decimal: 1.5
yes it is: true
not: false
nothing:
tilde: ~
address: 10.0.0.1
option: -n
path: /srv/app
on: first
block: |
  line 1
  line 2
list: [a, 'no', "2026-11-22"]
"""
    assert read("f.yaml", text.encode()).value == {
        "text": "2.4.0",
        "quoted": "1.10",
        "number": 5432,
        "negative": -3,
        "decimal": 1.5,
        "yes it is": True,
        "not": False,
        "nothing": None,
        "tilde": None,
        "address": "10.0.0.1",
        "option": "-n",
        "path": "/srv/app",
        "on": "first",
        "block": "line 1\nline 2\n",
        "list": ["a", "no", "2026-11-22"],
    }


@pytest.mark.usefixtures("_loader")
def test_dates_and_times_need_no_quotes_where_they_are_expected() -> None:
    text = b"start: 20:00\nuntil: 2026-12-24T06:00:00Z\nfrom: 20:00\n"
    assert refusals(text, dated={"start", "until"}) == [
        "f.yaml:3:7 unquoted 20:00 is the number 1200 to YAML; write '20:00'"
    ]
    assert parse("f.yaml", text, dated={"start", "until"}).value["start"] == "20:00"
    # 02:30 is text to YAML 1.1 and 20:30 is not; both are text here.
    assert read("f.yaml", b"start: 02:30\n", dated={"start"}).value == {"start": "02:30"}
    assert refusals("start: 0123\n", dated={"start"})


@pytest.mark.parametrize(("written", "meant"), [("23.00", "23:00"), ("23.15", "23:15"), ("7.30", "07:30")])
def test_a_time_of_day_with_a_dot_is_told_with_a_colon(written: str, meant: str) -> None:
    said = f"a time of day has a colon: write '{meant}', not {written}"
    assert refusals(f"until: {written}\n", dated={"until"}) == [f"f.yaml:1:8 {said}"]
    assert read("f.yaml", b"rate: 23.15\n", dated={"until"}).value == {"rate": 23.15}


@pytest.mark.usefixtures("_loader")
def test_places() -> None:
    source = read("f.yaml", b"a:\n  b:\n    - c: x\n    - plain\nd:\n")
    assert source.position() == "f.yaml:1:1"
    assert source.position("a", "b", 0, "c") == "f.yaml:3:10"
    assert source.position("a", "b", 1) == "f.yaml:4:7"
    assert source.key_position("a", "b", 0, "c") == "f.yaml:3:7"
    assert source.position("d") == "f.yaml:5:1"
    assert source.position("a", "missing", "c") == "f.yaml:2:3"
    assert source.position("a", "b", 0, "tag", "c") == "f.yaml:3:10"
    assert source.position("a", "b", 7) == "f.yaml:3:5"


@pytest.mark.parametrize("key", ["password", "db_password", "api-token", "client_secret", "signing_key"])
def test_what_may_be_a_secret_is_not_repeated(key: str) -> None:
    (refusal,) = refusals(f"{key}: 012345670\n")
    assert "012345670" not in refusal and f"f.yaml:1:{len(key) + 3}" in refusal
    (below,) = refusals(f"{key}:\n  a: [0778899]\n")
    assert "0778899" not in below


def test_the_error_ends_with_a_command_that_opens_the_file_there() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read("environments/people.yaml", b"a: x\nb: no\n")
    assert caught.value.next_commands == ("${EDITOR:-vi} +2 environments/people.yaml",)


# --- nothing else than a value or a ConfigurationError, whatever the bytes --------------------------------------------

PIECES = (
    "a|b: |- |\n|  |: |[|]|{|}|, |'|\"|>|&a |*a|!!str |? |1.10|no|0123|12:30:00|2026-11-22|~|#|---\n|...\n|%YAML 1.1\n|\t"
    "|\\U|é|<<: |=|\x85|\ufeff|\r|\x00|@|`|\\ud800|-|0x|_"
)
YAML_WORDS = st.lists(st.sampled_from([*PIECES.split("|"), "|\n"]), max_size=25).map("".join)


def only_json(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and only_json(item) for key, item in value.items())
    if isinstance(value, list):
        return all(only_json(item) for item in value)
    return value is None or type(value) in {str, int, float, bool}


@settings(max_examples=250, deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace"))
    | YAML_WORDS.map(str.encode)
)
@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
def test_any_input_gives_a_value_or_a_configuration_error(loader: str, data: bytes) -> None:
    before = strict_yaml._Loader
    strict_yaml._Loader = getattr(yaml, loader, yaml.SafeLoader)
    try:
        source = read("f.yaml", data)
    except ConfigurationError as error:
        assert error.reasons
        lines = len(data.splitlines()) + 2
        for reason in error.reasons:
            name, line, column = str(reason.source).split(":")
            assert name == "f.yaml" and 1 <= int(line) <= lines + data.count(b"\n") and int(column) >= 1
        return
    finally:
        strict_yaml._Loader = before
    assert only_json(source.value)


SCALARS = st.text(alphabet="0123456789+-._:eExXobTZ ~=<yYnNoOfFatrulsLiI", min_size=1, max_size=12).map(str.strip)


@settings(max_examples=600, deadline=None)
@given(text=SCALARS)
def test_no_unquoted_value_is_read_as_anything_else_by_another_reader(text: str) -> None:
    """What is accepted as text is text to PyYAML (YAML 1.1) and to the core schema of YAML 1.2; a number prints as written."""
    value, trap = meaning(text)
    if trap is not None:
        return
    resolved = yaml.SafeLoader("").resolve(yaml.ScalarNode, text, (True, False))
    if isinstance(value, str):
        assert value == text
        assert resolved == "tag:yaml.org,2002:str"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        assert repr(value) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=30))
def test_the_quoted_form_that_an_error_proposes_is_read_as_that_text(text: str) -> None:
    assert read("f.yaml", f"a: {quoted(text)}\n".encode()).value == {"a": text}
