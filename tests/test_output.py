"""What is printed where, and what a person is asked."""

import io
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect  # type: ignore[import-untyped]
import pytest

from pipeline.command_line.bug_report import report
from pipeline.command_line.output import Output, plain, program_name
from pipeline.errors import Failed, NotKnown, PartlyDone, Reason

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Answer:
    changed: bool = False
    in_order: bool = False
    next_commands: tuple[str, ...] = ("invoke plan customer=acme", "invoke status")

    def lines(self) -> list[str]:
        return ["Überall 2.4.0+1", "second \x1b[31mline\x9b"]

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        return {"what": "é", "schema_version": 99, "ok": "no", "path": Path("/x")}


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    Output().result(Answer())
    caught = capsys.readouterr()
    assert caught.out == "Überall 2.4.0+1\nsecond \\x1b[31mline\\x9b\n"
    assert caught.err == "Next: invoke plan customer=acme\n  or: invoke status\n"


def test_steps_are_told_as_steps(capsys: pytest.CaptureFixture[str]) -> None:
    Output().result(Answer(in_order=True))
    assert capsys.readouterr().err == "Next: invoke plan customer=acme\nthen: invoke status\n"
    Output(as_json=True).result(Answer(in_order=True))
    assert json.loads(capsys.readouterr().out)["next_in_order"] is True


def test_one_json_object_whose_head_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True, program="tma").result(Answer())
    caught = capsys.readouterr()
    assert json.loads(caught.out) == {
        "schema_version": 1,
        "ok": True,
        "changed": False,
        "what": "é",
        "path": "/x",
        "next": ["tma plan customer=acme", "tma status"],
        "next_in_order": False,
    }
    assert caught.err == ""


@pytest.mark.parametrize(
    ("error", "changed"),
    [(NotKnown("no customer"), False), (PartlyDone("one of two", state="app1 has it, app2 has not"), None)],
)
def test_errors_as_json_and_as_text(error: Any, changed: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).error(error)
    caught = capsys.readouterr()
    found = json.loads(caught.out)
    assert (found["ok"], found["changed"], found["schema_version"]) == (False, changed, 1)
    assert error.what in caught.err
    Output().error(error)
    assert capsys.readouterr().out == ""


def test_commands_are_suggested_as_this_person_types_them() -> None:
    output = Output(program=program_name("tma", "--workspace", "/a b"))
    assert output.typed("invoke promote customer=acme") == "tma --workspace '/a b' promote customer=acme"
    assert output.typed("git push") == "git push"


def test_commands_within_sentences_are_as_this_person_types_them(capsys: pytest.CaptureFixture[str]) -> None:
    def error() -> Failed:
        return Failed(
            "it broke",
            reasons=[Reason("no page yet: invoke signoff.page customer=acme", "a.yaml:1:2"), "we invoke magic"],
            state="To go on: invoke plan; not invoke planner, not invoke plan.x, not /bin/invoke plan.",
            next_commands=["end it, then invoke plan"],
        )

    Output(program="tma", tasks=["plan", "signoff.page"]).error(error())
    assert capsys.readouterr().err == (
        "failed: it broke\n"
        "  - no page yet: tma signoff.page customer=acme (a.yaml:1:2)\n"
        "  - we invoke magic\n"
        "To go on: tma plan; not invoke planner, not invoke plan.x, not /bin/invoke plan.\n"
        "Next: end it, then tma plan\n"
    )
    Output(tasks=["plan", "signoff.page"]).error(error())
    assert "no page yet: invoke signoff.page" in capsys.readouterr().err


def test_a_place_is_named_from_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    wrong = "${EDITOR:-vi} +8 environments/acme/test.yaml"
    output = Output(workspace=tmp_path / "my ws")
    assert output.typed(wrong) == "${EDITOR:-vi} +8 '../my ws/environments/acme/test.yaml'"
    assert Output(workspace=tmp_path / "here").typed(wrong) == wrong
    assert output.typed("${EDITOR:-vi} +8 /etc/x.yaml") == "${EDITOR:-vi} +8 /etc/x.yaml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("a\rb", "a\\x0db"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\u202eevil", "\\u202eevil"),
        ("\udcff", "\\udcff"),
        ("é → 日本\u00a0", "é → 日本\u00a0"),
    ],
)
def test_nothing_drives_the_terminal(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_what_cannot_be_encoded_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Output().text(["é → ok"])
    assert raw.getvalue() == b"\\xe9 \\u2192 ok\n"


def test_progress_that_nobody_reads_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
        Output().say("still going")
        Output().say("and going")
    monkeypatch.setattr(sys, "stderr", None)
    Output().say("to nobody")


def test_a_full_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(Failed, match="could not be written"):
            Output().result(Answer())
        Output(as_json=True).error(NotKnown("no customer"))


def test_nothing_is_asked_without_a_terminal() -> None:
    assert Output().ask("Sure?") is None


QUESTION = """
import sys
from types import SimpleNamespace as Simple
from pipeline.command_line.output import Output
from pipeline.command_line.verb import Command, verb
from pipeline.errors import PipelineError
from typing import Annotated
from pipeline.command_line.words import Option

@verb("Go to production", "promote", asks=True)
def promote(command, customer: Annotated[str, Option("the customer")]):
    "Goes."

command = Command(promote, {}, Output(), {"yes": "--yes" in sys.argv, "dry_run": "--dry-run" in sys.argv})
command._session = Simple(workspace=Simple(customer=lambda key: Simple(customer=Simple(name="Acme SAS"))))
try:
    refusals = [{"text": "frozen", "source": None, "rule": None}] if "refused" in sys.argv else []
    plan = Simple(lines=lambda: ["the plan"], model_dump=lambda mode: {"refusals": refusals})
    command.ask_before(sys.argv[1], "acme", lambda: plan)
    print("went on", command.acting)
except PipelineError as error:
    print(error.render())
"""


@pytest.mark.parametrize(
    ("arguments", "typed", "expected"),
    [
        (["production"], "acme\n", "went on True"),
        (["production"], "Acme SAS\n", "went on True"),
        (["production"], "acm\n", "the name typed is not acme"),
        (["production"], "yes\n", "the name typed is not acme"),
        (["production"], "\n", "the name typed is not acme"),
        (
            ["production"],
            "\x04",
            "\r\nusage: promote changes production of acme (Acme SAS), and no answer was given\r\n",
        ),
        (["production"], "\x03", "\r\nTraceback"),  # the verb's own runner turns it into Interrupted
        (["production", "refused"], None, "promote cannot be done for acme."),
        (["production", "--yes"], None, "went on True"),
        (["production", "--dry-run"], None, "went on False"),
        (["test"], None, "went on True"),
    ],
)
def test_production_asks_to_retype_the_name(arguments: list[str], typed: str | None, expected: str) -> None:
    child = pexpect.spawn(sys.executable, ["-c", QUESTION, *arguments], encoding="utf-8", timeout=20, cwd=str(PROJECT))
    if typed is not None:
        child.expect("the plan")
        child.expect("Type the customer's name to go on:")
        child.send(typed)
    child.expect_exact(expected)
    child.expect(pexpect.EOF)
    child.close()


def test_a_report_is_kept_even_without_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = report(ValueError("x"), task="promote", options=["customer"], workspace=None, changing=False)
    (found,) = tmp_path.iterdir()
    assert error.details["report"] == str(found)
    assert error.exit_code == 70
    assert error.state == "Nothing was changed."


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://app:canary-4711@db/x",
        "could not connect: password=canary-4711 host=db",
        "Token: canary-4711",
        "-----BEGIN OPENSSH PRIVATE KEY-----\ncanary-4711\n",
        "the value canary-4711",
    ],
)
def test_reports_hold_no_secrets(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "environments" / "acme").mkdir(parents=True)
    (tmp_path / "environments" / "acme" / "test.yaml").write_text("database: {password: 'env:ACME_DB'}\n")
    monkeypatch.setenv("ACME_DB", "canary-4711")
    error = report(ValueError(text), task="promote", options=[], workspace=tmp_path, changing=True)
    (found,) = (tmp_path / "var" / "reports").iterdir()
    assert "canary-4711" not in found.read_text() + error.render()
