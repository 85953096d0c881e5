"""The same words from stock ``invoke`` and from ``tma``, down to exit codes, streams, signals and broken pipes."""

import inspect
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import invoke.main
import pytest

from pipeline.command_line import program as tma
from pipeline.command_line.guide import GROUPS
from pipeline.command_line.options import a_moment, a_past_time
from pipeline.command_line.output import Output
from pipeline.command_line.verb import find_workspace
from pipeline.errors import EXIT_CODES

PROJECT = Path(__file__).resolve().parents[1]

FAKE_VERBS = '''
import json, os, sys, time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from pipeline.command_line.options import Customer, Tickets, a_day
from pipeline.command_line.verb import verb
from pipeline.command_line.words import Option
from pipeline import errors

RAN = Path(__file__).parent / "ran"

@dataclass
class Answer:
    given: dict
    changed: bool = True
    next_commands: tuple = ("invoke status customer=acme",)
    in_order: bool = False
    def lines(self): return [f"{k}={v!r}" for k, v in self.given.items()]
    def model_dump(self, *, mode="python"): return {"what": "done", "given": self.given}

def answer(command, **given):
    RAN.write_text("ran")
    command.output.say("working")
    print("a stray print")
    return Answer({**given, "dry_run": command.dry_run})

@verb("Go to production", "promote")
def promote(command, customer: Customer, release: Annotated[str | None, Option("the release")] = None):
    """Goes."""
    return answer(command, customer=customer, release=release)

@verb("Prepare a release", "release")
def release(command, customer: Customer, version: Annotated[str, Option("version")], ticket: Tickets = ()):
    """Makes."""
    return answer(command, customer=customer, version=version, ticket=ticket)

@verb("Tickets", "ticket.open")
def open_ticket(command, customer: Customer, text: Annotated[str, Option("text", blank=True)] = "default",
                day: Annotated[object, Option("day", convert=a_day)] = None):
    """Opens."""
    return answer(command, customer=customer, text=text, day=str(day))

@verb("Upkeep", "fail")
def fail(command, how: Annotated[str, Option("how it fails")]):
    """Fails."""
    RAN.write_text("ran")
    if how == "bug":
        password = "hunter2-in-a-file"
        raise KeyError("it was " + os.environ.get("CANARY", "") + password)
    if how == "file":
        raise errors.ConfigurationError("wrong", next_commands=["${EDITOR:-vi} +8 environments/a.yaml"])
    if how == "disk":
        raise OSError(28, "No space left on device", "/var/x")
    if how == "sleep":
        sys.stderr.write("sleeping\\n"); sys.stderr.flush()
        time.sleep(30)
    raise getattr(errors, how)("it did not", reasons=[errors.Reason("why", "a.yaml:1:2")], next_commands=["invoke status"])

VERBS = (promote, release, open_ticket, fail)
'''

ADOPT = """
from pipeline.command_line.invoked import adopt, collect
namespace = collect(VERBS)
adopt(namespace, Path(__file__).resolve().parent)
"""


@dataclass
class Ended:
    code: int
    out: str
    err: str
    ran: bool

    @property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


Caller = Callable[..., Ended]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "workspace.yaml").write_text("signing_key: file:secret\nother: env:CANARY\n")
    (tmp_path / "secret").write_text("hunter2-in-a-file\n")
    (tmp_path / "tasks.py").write_text(FAKE_VERBS + ADOPT)
    (tmp_path / "run_tma.py").write_text(
        FAKE_VERBS + "from pipeline.command_line import program\n" + "program.run(VERBS)\n"
    )
    return tmp_path


@pytest.fixture(params=["invoke", "tma"])
def call(
    request: pytest.FixtureRequest,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Caller]:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    (ran := workspace / "ran").unlink(missing_ok=True)

    def run(*words: str, program: str = request.param) -> Ended:
        capsys.readouterr()
        ran.unlink(missing_ok=True)
        with pytest.raises(SystemExit) if program != "" else pytest.raises(BaseException) as exit_:
            if program == "invoke":
                invoke.main.program.run(["invoke", *words])
            else:
                names: dict[str, Any] = {"__file__": str(workspace / "tasks.py"), "__name__": "fake"}
                exec(compile(FAKE_VERBS, "fake", "exec"), names)
                tma.run(names["VERBS"], ["tma", *words], version="1")
            sys.exit(0)
        caught = capsys.readouterr()
        ended = exit_.value
        assert isinstance(ended, SystemExit)
        code = ended.code
        return Ended(code if isinstance(code, int) else 0, caught.out, caught.err, ran.exists())

    yield run
    sys.modules.pop("tasks", None)
    invoke.main.program.__dict__.pop("core", None)


@pytest.mark.parametrize("words", [("customer=acme",), ("acme",), ("--customer", "acme"), ("--customer=acme",)])
def test_every_form_runs_the_same(call: Caller, words: tuple[str, ...]) -> None:
    ended = call("promote", *words)
    assert (ended.code, ended.ran) == (0, True)
    assert ended.out == "customer='acme'\nrelease=None\ndry_run=False\n"


def test_result_on_standard_output_and_all_else_on_standard_error(call: Caller) -> None:
    ended = call("promote", "acme")
    assert "working" in ended.err
    assert "a stray print" in ended.err
    assert "Next:" in ended.err
    assert "stray" not in ended.out


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("text=a=b", "a=b"),
        ("text=--x", "--x"),
        ("text=--json", "--json"),
        ("text=--customer=beta", "--customer=beta"),
        ("--text=--customer", "--customer"),
        ("text=", ""),
        ("text= two  words ", " two  words "),
        ("text=promote", "promote"),
        ("text=-h", "-h"),
        ("text=--", "--"),
    ],
)
def test_values_reach_the_verb(call: Caller, word: str, value: str) -> None:
    ended = call("ticket.open", word, "acme", "--json")
    assert ended.json["given"] == {"customer": "acme", "text": value, "day": "None", "dry_run": False}
    assert ended.json["schema_version"] == 1
    assert ended.json["ok"] is True
    assert ended.json["changed"] is True
    assert ended.code == 0


def test_lists_and_conversions(call: Caller) -> None:
    ended = call("release", "ticket=A,B", "version=2.4.0", "--ticket", "C", "acme", "--json")
    assert ended.json["given"]["ticket"] == ["A", "B", "C"]
    refused = call("ticket.open", "acme", "day=2026-02-30")
    assert (refused.code, refused.ran) == (2, False)
    assert "2026-02-30" in refused.err


@pytest.mark.parametrize(
    "words",
    [
        ("promote", "--dryrun"),
        ("promote", "acme", "--dryrun"),
        ("promote", "customer=acme", "--dryrun"),
        ("promote", "acme", "--dry"),
        ("promote", "acme", "-R"),
        ("promote", "acme", "-e"),
        ("promote", "acme", "--echo"),
        ("promote", "acme", "--list"),
        ("promote", "--dry", "acme"),
        ("--dryrun", "promote", "acme"),
        ("--dry-run", "promote", "acme"),
        ("--dry", "promote", "acme"),
        ("-R", "promote", "acme"),
        ("-w", "promote", "acme"),
        ("--hide", "promote", "promote", "acme"),
        ("promote", "acme", "dryrun=yes"),
        ("promote", "acme", "dryrun"),
        ("promote", "acme", "promote", "beta"),
        ("promote", "acme", "custmer=beta"),
        ("promte", "acme"),
        ("promote",),
        ("promote", "--no-dry-run", "acme"),
        ("release", "acme"),
    ],
)
def test_what_is_not_understood_never_runs(call: Caller, words: tuple[str, ...]) -> None:
    ended = call(*words)
    assert (ended.code, ended.ran, ended.out) == (2, False, "")
    assert ended.err.count("\n") == 1
    again = call(*words, "--json")
    assert (again.code, again.ran) == (2, False)
    assert again.json["ok"] is False
    assert again.json["changed"] is False
    assert again.json["error"]["exit_code"] == 2


@pytest.mark.parametrize("setting", ["INVOKE_RUN_DRY", "TMA_RUN_DRY"])
def test_invokes_own_dry_mode_is_refused_from_the_environment_too(
    call: Caller, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("INVOKE_RUN_DRY", "1")
    monkeypatch.setenv("TMA_RUN_DRY", "1")
    ended = call("promote", "acme")
    assert (ended.code, ended.ran) == (2, False)
    assert "--dry-run" in ended.err


@pytest.mark.parametrize(
    "words", [("--help", "promote"), ("promote", "--help"), ("promote", "acme", "-h"), ("-h", "promote")]
)
def test_help_before_or_after(call: Caller, words: tuple[str, ...]) -> None:
    ended = call(*words)
    assert (ended.code, ended.ran, ended.err) == (0, False, "")
    assert "promote customer=CUSTOMER [release=WORD]" in ended.out
    assert "Goes." in ended.out


def test_help_for_a_task_that_is_not_there(call: Caller) -> None:
    ended = call("--help", "promot")
    assert (ended.code, ended.out) == (2, "")
    assert "did you mean promote?" in ended.err


@pytest.mark.parametrize("words", [(), ("--list",), ("-l",)])
def test_the_list_is_grouped(call: Caller, words: tuple[str, ...]) -> None:
    ended = call(*words)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.index("Prepare a release") < ended.out.index("Go to production") < ended.out.index("Tickets")
    assert "  ticket.open  Opens.\n" in ended.out


def test_what_follows_two_dashes_is_left_alone(call: Caller) -> None:
    ended = call("promote", "acme", "--", "customer=beta", "--dryrun")
    assert ended.code == 0
    assert ended.out.startswith("customer='acme'\n")
    assert "does not read what follows --" in ended.err


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("Failed", 1),
        ("UsageError", 2),
        ("ConfigurationError", 2),
        ("NotKnown", 3),
        ("Refused", 4),
        ("Locked", 5),
        ("PartlyDone", 6),
        ("Unreachable", 7),
        ("Interrupted", 130),
        ("disk", 1),
    ],
)
def test_exit_codes_by_family(call: Caller, how: str, code: int) -> None:
    ended = call("fail", how)
    assert (ended.code, ended.out) == (code, "")
    assert "Traceback" not in ended.err
    again = call("fail", how, "--json")
    assert again.code == code
    assert again.json["error"]["exit_code"] == code


def test_a_bug_leaves_a_report_without_secrets(call: Caller, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "canary-4711")
    ended = call("fail", "bug")
    assert ended.code == 70
    assert "KeyError" in ended.err.splitlines()[0]
    assert "Traceback" not in ended.err
    (found,) = (workspace / "var" / "reports").iterdir()
    assert str(found) in ended.err.splitlines()[0]
    report = found.read_text()
    assert "Traceback" in report
    assert "options given: how" in report
    assert oct(found.stat().st_mode & 0o777) == "0o600"
    for place in (report, ended.err, ended.out):
        assert "canary-4711" not in place
        assert "it was •••hunter2" not in place
    found.unlink()
    assert call("fail", "bug", "--json").json["error"]["details"]["report"]


def test_core_flags_of_tma(workspace: Path, call: Caller) -> None:
    assert call("--version", program="tma").out == "tma 1\n"
    assert "--workspace=DIR" in call(program="tma").out
    assert "complete" in call("--print-completion-script", "bash", program="tma").out
    ended = call("--workspace", str(workspace), "promote", "acme", program="tma")
    assert ended.code == 0
    assert f"Next: tma --workspace {workspace} status customer=acme" in ended.err


def test_a_wrong_file_is_named_from_where_one_is(
    workspace: Path, call: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "here").mkdir()
    monkeypatch.chdir(workspace / "here")
    for words in (("--workspace=..", "fail", "file"), ("fail", "file")):
        assert "Next: ${EDITOR:-vi} +8 ../environments/a.yaml\n" in call(*words, program="tma").err


def test_the_nearest_workspace(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    inside = workspace / "a" / "b"
    inside.mkdir(parents=True)
    assert find_workspace(inside) == workspace
    assert find_workspace(tmp_path_factory.mktemp("elsewhere")) is None


# --- the real programs, as processes ---------------------------------------------------------------------------------


def program(name: str, workspace: Path) -> list[str]:
    if name == "invoke":
        return [sys.executable, "-m", "invoke"]
    return [sys.executable, str(workspace / "run_tma.py")]


@pytest.mark.parametrize("name", ["invoke", "tma"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_130_and_says_the_state(workspace: Path, name: str, number: signal.Signals) -> None:
    with subprocess.Popen(
        [*program(name, workspace), "fail", "sleep", "--json"],
        cwd=workspace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "sleeping\n"
        time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "What was recorded stands" in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["kind"] == "Interrupted"


@pytest.mark.parametrize("name", ["invoke", "tma"])
def test_broken_pipes_are_quiet_and_stop_nothing(workspace: Path, name: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        check=False,
        args=[*program(name, workspace), "promote", "acme"],
        cwd=workspace,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == 0
    assert "Broken" not in ended.stderr
    (workspace / "ran").unlink()
    ended = subprocess.run(
        check=False,
        args=[*program(name, workspace), "promote", "acme"],
        cwd=workspace,
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    )
    os.close(writer)
    assert ended.returncode == 0
    assert ended.stdout.startswith("customer='acme'")
    assert (workspace / "ran").exists()


def test_a_completion_script_may_be_cut_short(workspace: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [*program("tma", workspace), "--print-completion-script=bash"]
    ended = subprocess.run(command, check=False, cwd=workspace, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_full_disk_under_standard_output_is_said(workspace: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            check=False,
            args=[*program("tma", workspace), "promote", "acme"],
            cwd=workspace,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 1
    assert "could not be written to standard output" in ended.stderr
    assert "was carried out" in ended.stderr


# --- the verbs that ship ---------------------------------------------------------------------------------------------

ISSUED = {
    *("product.import", "line.start", "line.checkout", "release", "patch", "plan", "deploy", "signoff.page"),
    *("signoff.record", "promote", "rollback", "status", "history", "ticket.open", "ticket.show", "ticket.close"),
    *("migrate.accept", "erase", "ledger.verify", "key.create", "lock.release", "lock.status"),
    *("demo.run", "demo.start", "demo.stop"),
}


COMMANDS = PROJECT / "docs" / "commands.md"


def rows_of(text: str, head: str) -> dict[str, str]:
    """The rows of the table of a Markdown text whose head begins with this cell: first cell → second."""
    lines = text.partition(f"\n| {head} |")[2].splitlines()[2:]
    cells = [line.strip("| ").split(" | ", 1) for line in itertools.takewhile(lambda line: line.startswith("|"), lines)]
    return {first.strip().strip("`"): second.strip() for first, second in cells}


def test_the_exit_codes_are_documented_as_they_are(call: Caller) -> None:
    documented = rows_of(COMMANDS.read_text(), "exit code")
    assert documented == {str(code): meaning for code, meaning in EXIT_CODES.items()}
    listed = call().out.partition("Exit codes\n")[2]
    assert dict(line.split(maxsplit=1) for line in listed.splitlines()) == documented


def test_the_documented_verbs_are_the_verbs() -> None:
    from pipeline.verbs import VERBS

    text = COMMANDS.read_text()
    documented = [row for group in GROUPS for row in rows_of(text, group).items()]
    assert documented == [(verb.path, verb.summary) for group in GROUPS for verb in VERBS if verb.group == group]


def test_every_verb_is_there_and_in_a_group() -> None:
    from pipeline.verbs import VERBS

    assert {verb.path for verb in VERBS} >= ISSUED
    assert len({verb.path for verb in VERBS}) == len(VERBS)
    assert {verb.group for verb in VERBS} <= set(GROUPS)


def test_every_verb_and_every_option_has_help() -> None:
    from pipeline.verbs import VERBS

    for verb in VERBS:
        assert verb.summary.endswith(".") or ";" in verb.summary, verb.path
        assert len(verb.summary) > 10, verb.path
        for option in verb.options.values():
            assert len(option.help) > 5, (verb.path, option.name)
        assert "json" in verb.options
        assert verb.changes or "dry-run" not in verb.options, verb.path


def test_loading_the_verbs_loads_nothing_heavy() -> None:
    code = textwrap.dedent(
        """
        import sys, pipeline.verbs
        heavy = "invoke git paramiko fabric psycopg jinja2 cryptography babel pydantic pipeline.workflow".split()
        print([name for name in heavy if name in sys.modules])
        """
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_our_own_tasks_file_lists_in_stock_invoke() -> None:
    ended = subprocess.run([sys.executable, "-m", "invoke"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert all(f"  {name} " in ended.stdout for name in ISSUED)
    assert ended.stderr == ""


def test_the_words_of_a_decision() -> None:
    from pipeline.verbs.sign_off import reservation_of, verdicts_of

    assert verdicts_of("A-1:works,A-2:works-with-remark:slow, but fine: yes, A-3:not-tested") == {
        "A-1": ("works", None),
        "A-2": ("works-with-remark", "slow, but fine: yes"),
        "A-3": ("not-tested", None),
    }
    assert reservation_of("minor:2026-12-24:text: of it") == {
        "severity": "minor",
        "date": "2026-12-24",
        "text": "text: of it",
    }
    with pytest.raises(ValueError, match=r"did you mean 'works'\?"):
        verdicts_of("A-1:work")
    with pytest.raises(ValueError, match=r"did you mean 'blocking'\?"):
        reservation_of("bloking:2026-12-24:x")
    for wrong in ("A-1", "A-1:fine", ":works", "A-1:works,A-1:works"):
        with pytest.raises(ValueError, match=r"is |names "):
            verdicts_of(wrong)
    for wrong in ("minor", "minor:text", "small:2026-12-24:x", "minor:2026-02-30:x", "minor:2026-12-24: "):
        with pytest.raises(ValueError, match=r"is |names "):
            reservation_of(wrong)


@pytest.mark.parametrize(
    ("convert", "text", "said"),
    [
        (a_moment, "2026-12-06", "has no time: write the day and the time, for instance '2026-12-06 20:00'"),
        (a_moment, "soon", "is a day and a time written as"),
        (a_moment, "2026-12-06 25:00", "is no day and time"),
        (a_past_time, "22.11.2026", "is a day written as 2026-11-30, or with a time as '2026-11-30 20:00', not"),
        (a_past_time, "2026-1-2", "is a day written as 2026-11-30, or with a time as"),
        (a_past_time, "2026-02-30", "names no day of the calendar"),
    ],
)
def test_what_is_no_time_is_told_with_one_that_is(convert: Callable[[str], Any], text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        convert(text)


@pytest.mark.parametrize("path", sorted(ISSUED))
def test_what_verbs_pass_on_is_what_the_workflow_takes(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every verb is called with all of its options, against the workflow's real signatures."""
    from pipeline import demo
    from pipeline.command_line.verb import Command
    from pipeline.verbs import VERBS
    from pipeline.workflow import deployments, lines, overview, products, releases, sign_offs, tickets, upkeep

    called: list[str] = []

    def stand_in(function: Callable[..., Any]) -> Callable[..., str]:
        signature = inspect.signature(function)

        def record(*words: Any, **named: Any) -> str:
            given = signature.bind(*words, **named).arguments
            optional = {"dry_run"} if "dry-run" not in verb.options else set()
            assert set(given) >= set(signature.parameters) - optional
            called.append(function.__name__)
            return "done"

        return record

    (verb,) = (verb for verb in VERBS if verb.path == path)
    for module in (deployments, lines, overview, products, releases, sign_offs, tickets, upkeep, demo):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name in getattr(module, "__all__", [name]) and function.__module__.startswith(module.__package__):
                monkeypatch.setattr(module, name, stand_in(function))
    monkeypatch.setattr(Command, "session", None)
    monkeypatch.setattr(Command, "folder", PROJECT)
    monkeypatch.setattr(Command, "ask_before_erasing", lambda *_: called.append("asked"))
    monkeypatch.setattr(Command, "ask_before", lambda *_: called.append("asked"))
    command = Command(verb, {}, Output(), {})
    given = {
        option.name.replace("-", "_"): (() if option.several else "x")
        for option in verb.options.values()
        if option.name not in {"json", "dry-run", "yes"}
    }
    assert verb.body(command, **given) == "done"
    assert called[-1:] != ["asked"]
    assert ("asked" in called) == verb.asks
