"""The runner on this machine: what an action's trouble makes of a run. Whole deployments: test_workflow_deployments.py."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.acts import Ground, Report
from pipeline.databases import Database
from pipeline.errors import ConfigurationError, Failed, PipelineError, Unreachable
from pipeline.host import Host
from pipeline.job import Job, Told
from pipeline.model import Script
from pipeline.operations import Command, Http, Migrate, Operation, Switch, Upload
from pipeline.payload import Payloads
from pipeline.playbook import Action, Plan
from pipeline.runner import run
from pipeline.transports import LineCut
from pipeline.transports.local import LocalTransport
from tests.jobs import release_of
from tests.nouns import sha

MANIFEST, READ = release_of({b"app.py": ("100644", b"print('app')\n")})
SECRET = "canary-secret"


class Breaking:
    """A database whose every script ends in this error."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def catalogue(self) -> dict[str, Any]:
        return {"tables": {}}

    def apply(self, *_: Any, **__: Any) -> bool:
        raise self.error

    def close(self) -> None:
        pass


def plan_of(*operations: Operation, **more: Any) -> Plan:
    actions = tuple(
        Action(number=number, title=f"action {number}", host="app1", what=what)
        for number, what in enumerate(operations, 1)
    )
    return Plan(customer="acme", environment="test", release="2.0+1", installed=None, actions=actions, **more)


def ground_on(folder: Path, **more: Any) -> Ground:
    fields: dict[str, Any] = {
        "hosts": {"app1": Host(LocalTransport(), "app1", str(folder / "app"))},
        "database": None,
        "manifest": MANIFEST,
        "payloads": Payloads(folder / "payloads", READ),
        "render": lambda host, template: b"",
        "scripts": {"1.sql": (Script(id="1.sql", checksum=sha("1"), blob="0" * 40), b"")},
        "run": "run-1",
        "fence": 3,
        "customer": "acme",
        "environment": "test",
        "content": sha("content"),
        "record": "record-1",
        "record_sha256": sha("record"),
        "progress": lambda line: None,
        "conceal": lambda text: text.replace(SECRET, "***"),
        "clock": lambda: datetime(2026, 11, 23, tzinfo=UTC),
    }
    return Ground(**fields | more)


def deployments(folder: Path) -> list[tuple[str, str | None]]:
    """What the host's journal says of whole deployments."""
    entries = ground_on(folder).hosts["app1"].journal()
    return [(entry.what, entry.outcome) for entry in entries if entry.what.startswith("deployment")]


def broken_run(folder: Path, error: BaseException, **more: Any) -> Report:
    """What comes of a run whose migration, after the switch, ends in this error."""

    def database(host: Host) -> Database:
        return Breaking(error)  # type: ignore[return-value]

    return run(
        plan_of(Upload(), Switch(), Migrate(scripts=("1.sql",)), **more), ground_on(folder, database=database), None
    )


def test_an_error_that_nobody_thought_of_is_a_failed_action_and_the_way_back_runs(tmp_path: Path) -> None:
    report = broken_run(tmp_path, ZeroDivisionError(f"long {SECRET}\nline " + "x" * 5000))
    assert (report.outcome, report.trouble) == ("failed", None)
    assert isinstance(report.error, Failed)
    assert report.error.what == "action 3 ended unexpectedly on app1: ZeroDivisionError"
    assert report.error.details == {"exception": "ZeroDivisionError"}
    said = report.error.render()
    assert "long *** line" in said and SECRET not in said and len(said) < 400
    assert [action.title for action in report.back] == ["switch back to nothing"]
    assert not (tmp_path / "app" / "current").is_symlink()
    assert deployments(tmp_path) == [("deployment-started", None), ("deployment-finished", "failed")]


def test_past_the_point_of_no_return_an_unexpected_error_is_unknown(tmp_path: Path) -> None:
    """The script may be applied, so that the old code may not run any more."""
    report = broken_run(tmp_path, ZeroDivisionError(), point_of_no_return=3)
    assert (report.outcome, report.past_return, report.back) == ("unknown", True, [])
    assert (tmp_path / "app" / "current").is_symlink()


def test_unreachable_is_a_failed_action_that_applied_nothing(tmp_path: Path) -> None:
    report = broken_run(tmp_path, Unreachable("the database was away"), point_of_no_return=3)
    assert (report.outcome, report.past_return) == ("failed", False)
    assert isinstance(report.error, Unreachable)
    assert not (tmp_path / "app" / "current").is_symlink()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), LineCut("cut")])
def test_what_stops_the_run_passes_through(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        broken_run(tmp_path, error)
    assert (tmp_path / "app" / "current").is_symlink()


def test_an_unexpected_error_on_the_way_back_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry = Host.carry

    def broken(self: Host, job: Job, **more: Any) -> Told:
        if job.direction == "back" and any(step.act == "switch" for step in job.steps):
            raise KeyError("nobody thought of this")
        return carry(self, job, **more)

    monkeypatch.setattr(Host, "carry", broken)
    report = broken_run(tmp_path, ZeroDivisionError())
    assert isinstance(report.error, Failed) and isinstance(report.trouble, Failed)
    assert "KeyError" in report.trouble.what
    assert deployments(tmp_path) == [("deployment-started", None), ("deployment-finished", "failed")]


# --- a product's own command -----------------------------------------------------------------------------------------------


def test_a_command_that_prints_a_lot_and_fails_says_its_last_lines(tmp_path: Path) -> None:
    script = "yes line | head -c 4000000; echo the reason; exit 3"
    report = run(plan_of(Upload(), Command(argv=("sh", "-c", script), folder="release")), ground_on(tmp_path), None)
    assert isinstance(report.error, PipelineError)
    assert [reason.text for reason in report.error.reasons][-1] == "the reason"


# --- the HTTP check --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def answering(*answers: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server whose every connection gets the next answer, the last one again and again; gives its URL."""
    left = list(answers)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk(client: socket.socket, answer: Callable[[socket.socket], object]) -> None:
            with client, contextlib.suppress(OSError):
                client.recv(65536)
                answer(client)

        def work() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    answer = left.pop(0) if len(left) > 1 else left[0]
                    threading.Thread(target=talk, args=(client, answer), daemon=True).start()

        threading.Thread(target=work, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/health"
        listener.shutdown(socket.SHUT_RDWR)


def saying(data: bytes) -> Callable[[socket.socket], object]:
    return lambda client: client.sendall(data)


def checked(folder: Path, url: str, **more: Any) -> Report:
    return run(plan_of(Http(url=url, **more)), ground_on(folder), None)


def test_a_check_is_asked_again_until_it_answers_as_expected(tmp_path: Path) -> None:
    good = saying(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nit i\r\n4\r\ns up\r\n0\r\n\r\n")
    with answering(saying(b""), saying(b"HTTP/1.1 503 No\r\n\r\n"), saying(b"HTTP/1.1 200 OK\r\n\r\nno"), good) as url:
        report = checked(tmp_path, url, contains="it is up", within=60)
    assert report.outcome == "ok"
    assert report.checks == [{"title": "action 1", "host": "app1", "outcome": "ok"}]


def test_a_server_that_drips_does_not_hold_a_check_beyond_its_time(tmp_path: Path) -> None:
    stop = threading.Event()

    def drip(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not stop.wait(0.2):
            client.sendall(b"x")

    done: list[Report] = []
    with answering(drip) as url:
        work = threading.Thread(target=lambda: done.append(checked(tmp_path, url, within=1)), daemon=True)
        work.start()
        work.join(60)
        stop.set()
    assert [report.outcome for report in done] == ["failed"]
    assert done[0].error is not None
    assert "no whole answer within 1 seconds" in done[0].error.render()


def test_what_a_check_says_holds_no_secret(tmp_path: Path) -> None:
    with answering(saying(b"HTTP/1.1 200 OK\r\n\r\n" + SECRET.encode())) as url:
        report = checked(tmp_path, url, contains="x", within=0)
    assert report.error is not None
    assert "does not contain 'x': '***'" in report.error.render()


def test_a_url_that_cannot_be_asked_fails_at_once(tmp_path: Path) -> None:
    report = checked(tmp_path, "http://127.0.0.1:99999/", within=3600)
    assert isinstance(report.error, ConfigurationError)
