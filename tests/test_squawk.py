"""squawk itself, run over scripts: its findings are ours, with the lines of the files."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from pipeline import squawk
from pipeline.content import script_checksum
from pipeline.errors import Failed
from pipeline.lint import INFORMATION, NOT_ASKED, UNNEEDED
from pipeline.model import Script
from pipeline.script_header import read_header

asks = pytest.mark.skipif(squawk.program() is None, reason="squawk is not installed")


def script(text: bytes, name: str = "1.sql", **more: Any) -> Script:
    accepted = dict(read_header(text, name)[0].accepted)
    return Script(id=name, checksum=script_checksum(text), blob="0" * 40, accepted=accepted, **more)


def asked(*texts: bytes, **more: Any) -> list[tuple[str, str, int, str | None]]:
    scripts = [script(text, f"{number}.sql", **more) for number, text in enumerate(texts)]
    found = squawk.findings(scripts, {f"{number}.sql": text for number, text in enumerate(texts)})
    return [(one.script, one.rule, one.line, one.accepted) for one in found]


@asks
def test_its_findings_have_the_lines_of_the_file() -> None:
    text = b"\xef\xbb\xbf-- c\r\n\r\nBEGIN;\rALTER TABLE t\n  ADD COLUMN x bigint NOT NULL;\nCOMMIT;\n"
    assert asked(text, b"SELECT 1;", b"\n\nCREATE INDEX i ON t (x);") == [
        ("0.sql", "squawk:adding-required-field", 5, None),
        ("2.sql", "squawk:require-concurrent-index-creation", 3, None),
    ]


@asks
def test_lines_that_do_not_run_are_not_asked() -> None:
    text = b"-- migrate:up\nCREATE TABLE a (b bigint);\n-- migrate:down\nALTER TABLE a ADD c bigint NOT NULL;\n"
    assert asked(text, lines=(1, 2)) == []
    assert asked(text) == [("0.sql", "squawk:adding-required-field", 4, None)]


@asks
def test_an_acceptance_of_its_rules() -> None:
    text = b'-- tma: accept=squawk:adding-required-field "no rows yet"\n-- tma: accept=squawk:ban-char-field "x"\n'
    assert asked(text + b"ALTER TABLE t ADD c bigint NOT NULL;") == [
        ("0.sql", UNNEEDED, 2, None),
        ("0.sql", "squawk:adding-required-field", 3, "no rows yet"),
    ]


@asks
@pytest.mark.parametrize("transactional", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        b"ALTER TABLE t ADD c bigint;",  # waits for a lock: the runner sets the time
        b"BEGIN;\nALTER TABLE t ADD c bigint;\nCOMMIT;",
        b"BEGIN;\nALTER TABLE t ADD c bigint;",
        b"DROP TABLE t;",
        b"ALTER TABLE t DROP COLUMN c;",
        b"CREATE INDEX CONCURRENTLY i ON t (c);",
    ],
)
def test_what_is_settled_is_not_asked(text: bytes, transactional: bool) -> None:
    assert asked(text, transactional=transactional) == []


@asks
def test_a_script_that_it_cannot_read_is_a_finding_and_one_for_the_client_is_left_out() -> None:
    assert asked(b"\nSELEC 1;")[0] == ("0.sql", "squawk:syntax-error", 2, None)
    assert asked(b"\\set x 1\nSELEC :x;", client=True) == []
    assert asked(b"SELECT '\xff\xe9';") == []


@asks
def test_settings_of_the_folder_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".squawk.toml").write_text('excluded_rules = ["adding-required-field"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert asked(b"ALTER TABLE t ADD c bigint NOT NULL;") == [("0.sql", "squawk:adding-required-field", 1, None)]


@asks
def test_hundreds_of_scripts_and_hostile_names() -> None:
    texts = {f"--config=x;$({number}) '\"\n.sql": b"ALTER TABLE t ADD c bigint NOT NULL;" for number in range(300)}
    found = squawk.findings([script(text, name) for name, text in texts.items()], texts)
    assert [one.script for one in found] == list(texts)


def test_without_it_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squawk, "program", lambda: None)
    assert asked(b"SELECT 1;", b"SELECT 2;") == [("0.sql", NOT_ASKED, 1, None)]
    assert asked(b"SELECT 1;", client=True) == []
    assert squawk.findings([], {}) == []
    assert NOT_ASKED in INFORMATION


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        ("echo 'no such option --x' >&2; exit 2", "no such option --x"),
        ("exit 3", "it ended with 3"),
        ("echo '[{'", "it ended with 0"),
    ],
)
def test_an_answer_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: str, words: str) -> None:
    program = tmp_path / "squawk"
    program.write_text(f"#!/bin/sh\n{shell}\n")
    monkeypatch.setattr(squawk, "program", lambda: str(program))
    with pytest.raises(Failed, match="cannot be started"):
        asked(b"SELECT 1;")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(Failed) as failed:
        asked(b"SELECT 1;")
    assert words in failed.value.render()


def test_it_is_found_beside_python_or_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert squawk.program() is None
    for folder in ("path", "bin"):
        program = tmp_path / folder / "squawk"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        assert squawk.program() == str(program)
