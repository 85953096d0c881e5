"""File names as text, and back."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.model import PlainPath, TreeFile
from pipeline.paths import is_plain, path_bytes, path_text

NAMES = st.binary(max_size=40) | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))


@given(NAMES)
@example(b"\\x41")
@example(b"a\\\nb\xff\xc3")
@example("\u202eexe.txt".encode())
def test_every_name_comes_back_byte_for_byte_from_a_text_on_one_line(raw):
    text = path_text(raw)
    assert path_bytes(text) == raw
    assert text.encode().decode() == text and len(text.splitlines()) <= 1


@given(NAMES, NAMES)
def test_different_names_have_different_texts(one, other):
    assert (path_text(one) == path_text(other)) == (one == other)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"src/app.py", "src/app.py"),
        ("Résumé été.txt".encode(), "Résumé été.txt"),
        ("名前 😀".encode(), "名前 😀"),
        (b" -rf 'a' \"b\" ", " -rf 'a' \"b\" "),
        (b"a\nb\tc\x7f", r"a\x0ab\x09c\x7f"),
        (b"a\\b", r"a\x5cb"),
        (b"caf\xe9", r"caf\xe9"),
        ("a\u00a0b\u2028".encode(), r"a\xc2\xa0b\xe2\x80\xa8"),
        ("gnp\u202etxt".encode(), r"gnp\xe2\x80\xaetxt"),
    ],
)
def test_the_text_of_a_name(raw, text):
    assert path_text(raw) == text
    assert path_bytes(text) == raw

    assert is_plain(text) == (raw == text.encode())


@pytest.mark.parametrize("text", [r"a\b", r"\x41", r"\x5C", r"\xc3\xa9", "a\nb", "a\u202eb", "\udcff", "\\"])
def test_a_text_that_no_name_gives_is_not_a_name(text):
    with pytest.raises(ValueError):
        path_bytes(text)
    with pytest.raises(ValidationError):
        TreeFile(path=text, mode="100644", blob="0" * 40, sha256="0" * 64, size=0)


@pytest.mark.parametrize("name", [r"a\x0a.sql", r"a\b", "a\nb", "a\u202eb", "\udcff"])
def test_a_playbook_names_no_file_whose_name_needs_an_escape(name):
    with pytest.raises(ValidationError, match="rename it"):
        TypeAdapter(PlainPath).validate_python(name)
    assert TypeAdapter(PlainPath).validate_python("é a/b.sql") == "é a/b.sql"
