"""What was changed on the hosts: twelve kinds found, accepted for a reason, adopted into the line; and the doctor."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline import runner
from pipeline.errors import Failed, Interrupted, NotKnown, Refused, Unreachable, UsageError
from pipeline.host import Host, HostFacts
from pipeline.paths import path_text
from pipeline.preflight import HostFacts as Judged
from pipeline.transports import LineCut
from pipeline.transports.local import LocalTransport
from pipeline.workflow import deployments, gathering, releases
from pipeline.workflow import doctor as doctors
from pipeline.workflow import drift as drifts
from pipeline.workflow.hosts import at_once, drift_of
from tests.flows import Flow, told

RELEASE = "1.0.0+1"
ODD = "-o 'd\"d$(touch broken) é"


@pytest.fixture
def tested(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "tested")


@pytest.fixture
def waiting(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "waiting")


def tree(flow: Flow, environment: str = "test", release: str = RELEASE) -> Path:
    return flow.host(environment) / "releases" / release


def look(flow: Flow, environment: str = "test") -> drifts.DriftResult:
    return drifts.drift(flow.session(), customer="acme", environment=environment)


# --- found ---------------------------------------------------------------------------------------------------------------


def test_hosts_that_hold_what_was_deployed_say_so(tested: Flow) -> None:
    before = tested.refs()
    found = look(tested)
    assert (found.changed, found.release) == (False, RELEASE)
    [row] = found.hosts
    assert (row["host"], row["current"], row["files"], row["differences"]) == ("app1", RELEASE, 5, [])
    assert found.what.startswith(f"test of acme holds exactly {RELEASE}: 5 file(s) on 1 host(s) compared in ")
    assert "  app1: 5 file(s) of 1.0.0+1 compared by content" in found.lines()[1]
    assert tested.refs() == before


def test_an_environment_with_nothing_on_it_has_no_drift(tested: Flow) -> None:
    found = look(tested, "production")
    assert (found.release, found.hosts[0]["files"], found.hosts[0]["current"]) == (None, 0, None)


def relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


KINDS: dict[str, Callable[[Path], object]] = {
    "app.txt was changed": lambda host: (host / f"releases/{RELEASE}/app.txt").write_text("depot 1.0.1\n"),
    "app.txt is missing": lambda host: (host / f"releases/{RELEASE}/app.txt").unlink(),
    "new.txt does not belong to the release": lambda host: (host / f"releases/{RELEASE}/new.txt").touch(),
    ".hidden does not belong to the release": lambda host: (host / f"releases/{RELEASE}/.hidden").touch(),
    "void does not belong to the release": lambda host: (host / f"releases/{RELEASE}/void").mkdir(),
    "app.txt has another mode than 0644": lambda host: (host / f"releases/{RELEASE}/app.txt").chmod(0o755),
    "app.txt is another kind of file or points elsewhere": lambda host: relink(
        host / f"releases/{RELEASE}/app.txt", "bin/restart"
    ),
    "bin/restart is another kind of file or points elsewhere": lambda host: (
        (host / f"releases/{RELEASE}/bin/restart").unlink(),
        os.mkfifo(host / f"releases/{RELEASE}/bin/restart"),
    ),
    "pipe does not belong to the release": lambda host: os.mkfifo(host / f"releases/{RELEASE}/pipe"),
    "current is nothing, but the record says 1.0.0+1 is installed": lambda host: (host / "current").unlink(),
    "current is 0.9.0+1, but the record says 1.0.0+1 is installed": lambda host: (
        shutil.copytree(host / f"releases/{RELEASE}", host / "releases/0.9.0+1"),
        relink(host / "current", "releases/0.9.0+1"),
    ),
    "releases/9.9.9+1 is no release of acme": lambda host: (host / "releases/9.9.9+1").mkdir(),
    "notes.txt was not put there by us": lambda host: (host / "notes.txt").touch(),
    "releases/notes.txt is not a folder": lambda host: (host / "releases/notes.txt").touch(),
    "its deployment journal ends with step-finished, and no deployment is open: entries are missing": lambda host: (
        sorted((host / "journal").iterdir())[-1].unlink()
    ),
    f"current points to releases/{RELEASE}, which does not exist": lambda host: shutil.rmtree(
        host / f"releases/{RELEASE}"
    ),
}


@pytest.mark.parametrize("sentence", KINDS)
def test_each_kind_of_drift_is_found(sentence: str, tested: Flow) -> None:
    file = tree(tested) / "app.txt"
    times = file.stat().st_mtime_ns
    KINDS[sentence](tested.host("test"))
    if file.is_file():
        os.utime(file, ns=(times, times))
    with pytest.raises(Refused) as refused:
        look(tested)
    assert sentence in [reason.text for reason in refused.value.reasons if reason.source == "app1"]
    [row] = refused.value.details["hosts"]
    assert sentence in row["differences"]


def test_a_journal_that_was_changed_further_back_is_drift(tested: Flow) -> None:
    third = sorted((tested.host("test") / "journal").iterdir())[2]
    data = third.read_bytes()
    third.unlink()
    third.write_bytes(data.replace(b'"outcome":"ok"', b'"outcome":null'))
    with pytest.raises(Refused, match="the entry before is not the one that this entry was written after"):
        look(tested)


def test_a_host_that_differs_in_much_is_cut_short_but_not_in_json(tested: Flow) -> None:
    for number in range(30):
        (tree(tested) / f"extra{number:02}").touch()
    with pytest.raises(Refused, match="30 difference") as refused:
        look(tested)
    assert [reason.text for reason in refused.value.reasons][-1] == "and 10 more, which --json lists"
    assert len(refused.value.details["hosts"][0]["differences"]) == 30
    assert refused.value.next_commands == (
        "invoke drift.adopt customer=acme env=test host=app1 ticket=…",
        "invoke deploy customer=acme env=test accept-drift=…",
    )
    planned = deployments.deploy(tested.session(), customer="acme", dry_run=True)
    assert planned.next_commands == ("invoke drift customer=acme env=test",)


def test_the_configuration_is_compared_where_the_host_can_tell(tested: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "verify_shared", lambda self: ["app.conf was changed"], raising=False)
    with pytest.raises(Refused) as refused:
        look(tested)
    assert [reason.text for reason in refused.value.reasons] == ["shared/app.conf was changed"]


def test_a_release_to_go_back_to_that_is_gone_is_noted(tmp_path: Path, waiting: Flow) -> None:
    shutil.rmtree(tree(waiting))
    [row] = look(waiting).hosts
    assert row["notes"] == [
        "1.0.0+1, to which a rollback would return, is no longer on this host: it would be sent anew"
    ]


# --- how deep --------------------------------------------------------------------------------------------------------------


def quick(flow: Flow, seen: Any, *, fails: bool = False) -> dict[str, tuple[str, ...]]:
    """The quick look at a host whose own comparison came to ``seen``; ``fails`` when every byte must not be asked for."""
    session = flow.session()
    dossier = session.dossier("acme", deciding=False)
    state = dossier.state()
    host = Host(LocalTransport(), "app1", str(flow.host("test")))
    facts = SimpleNamespace(current=RELEASE, foreign=(), drift=seen)

    def manifest(name: str) -> Any:
        assert not fails
        return gathering.release_manifest(dossier, state.releases[name])

    return drift_of({"app1": host}, {"app1": cast(HostFacts, facts)}, state, "quick", manifest)


def test_the_quick_look_asks_for_every_byte_only_where_it_must(tested: Flow) -> None:
    assert quick(tested, (), fails=True) == {}
    (tree(tested) / "app.txt").touch()
    assert quick(tested, ("app.txt differs in time",)) == {}
    (tree(tested) / "app.txt").write_text("other\n")
    for seen in (("app.txt differs in size",), None):
        assert quick(tested, seen) == {"app1": ("app.txt was changed",)}


def test_of_several_hosts_that_do_not_answer_all_are_named() -> None:
    hosts = {name: Host(LocalTransport(), name, "/nowhere") for name in ("app1", "app2", "app3")}
    assert at_once(hosts, lambda host: host.name.upper()) == {"app1": "APP1", "app2": "APP2", "app3": "APP3"}

    def lost(host: Host) -> str:
        if host.name == "app2":
            return "fine"
        raise LineCut(f"the connection to {host.name} was lost") if host.name == "app1" else Unreachable("no route")

    with pytest.raises(Unreachable, match="2 of 3 hosts cannot be reached") as unreachable:
        at_once(hosts, lost)
    assert [reason.text for reason in unreachable.value.reasons] == [
        "app1 was lost while it was being looked at.",
        "the connection to app1 was lost",
        "no route",
    ]

    def broken(host: Host) -> str:
        raise Failed("tar is broken") if host.name == "app3" else Unreachable("no route")

    with pytest.raises(Failed, match="tar is broken"):
        at_once(hosts, broken)
    with pytest.raises(Unreachable, match="app1 was lost"):
        at_once({"app1": hosts["app1"]}, lost)


# --- accepted --------------------------------------------------------------------------------------------------------------


def test_nothing_is_deployed_over_drift_unless_a_reason_is_given_and_it_is_recorded(tested: Flow) -> None:
    (tree(tested) / "app.txt").write_text("depot 1.0.0 mended by hand\n")
    name = tested.make("1.2.0", {})
    before = tested.refs()
    with pytest.raises(Refused, match="cannot go to test") as refused:
        tested.deploy()
    assert [str(reason) for reason in refused.value.reasons] == [
        "changed on the server since the deployment: app.txt was changed (app1)"
    ]
    assert refused.value.next_commands == (
        "invoke drift customer=acme env=test",
        "invoke drift.adopt customer=acme env=test host=app1 ticket=…",
        f"invoke deploy customer=acme release={name} env=test accept-drift=…",
    )
    with pytest.raises(UsageError, match="needs a reason"):
        tested.deploy(accept_drift=" ")
    assert tested.refs() == before
    assert tested.deploy(accept_drift="the vendor mended it on the phone").changed
    [*_, started] = tested.records("deployment-started")
    assert started.details["accepted_drift"] == {"app1": ["app.txt was changed"]}
    assert tested.ledger.text(started.texts["accept-drift"]) == "the vendor mended it on the phone"
    tested.check_sound()


def test_what_serves_is_not_overwritten_in_place_whatever_the_reason(tested: Flow) -> None:
    (tree(tested) / "app.txt").write_text("depot 1.0.0 mended by hand\n")
    with pytest.raises(Refused, match="accept-drift cannot help") as refused:
        tested.deploy(RELEASE, accept_drift="it should be put right")
    assert refused.value.next_commands[0] == "invoke rollback customer=acme env=test"


@pytest.mark.slow
def test_accepted_drift_on_production_excuses_nothing_on_test(waiting: Flow) -> None:
    waiting.decide()
    production, test = tree(waiting, "production") / "app.txt", tree(waiting, release="1.1.0+1") / "app.txt"
    production.write_text("depot 1.0.0 mended\n")
    kept = test.read_bytes()
    test.write_bytes(kept + b"!")
    with pytest.raises(Refused) as refused:
        deployments.promote(waiting.session(), customer="acme", accept_drift="mended in the night")
    assert {reason.rule for reason in refused.value.reasons} == {"test_still_holds_it"}
    test.write_bytes(kept)
    with pytest.raises(Refused, match=r"app\.txt was changed"):
        waiting.promote()
    assert deployments.promote(waiting.session(), customer="acme", accept_drift="mended in the night").changed
    waiting.check_sound()


@pytest.mark.slow
def test_an_open_deployment_that_was_given_a_reason_goes_on_without(
    tested: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tree(tested) / "app.txt"
    file.write_text("depot 1.0.0 mended by hand\n")
    tested.make("1.2.0", {})

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(runner, "run", stopped)
        tested.deploy(accept_drift="seen")
    (tree(tested) / "bin" / "other").touch()
    with pytest.raises(Refused, match="bin/other does not belong"):
        tested.deploy()
    (tree(tested) / "bin" / "other").unlink()
    assert tested.deploy().changed
    tested.check_sound()


def test_a_record_keeps_the_first_of_much_drift() -> None:
    host = Judged("app1", RELEASE, drift=tuple(f"file{n} was changed" for n in range(103)))
    listed = gathering.drift_listed(host)
    assert (len(listed), listed[-1]) == (101, "and 3 more")
    assert gathering.drift_listed(Judged("app1", RELEASE, drift=("a",))) == ["a"]


# --- adopted ---------------------------------------------------------------------------------------------------------------


def adopt(flow: Flow, **more: Any) -> drifts.Adopted:
    options = {"customer": "acme", "environment": "test", "host": "app1", "tickets": ("ACME-1",)} | more
    return drifts.adopt(flow.session(), **options)


def test_what_somebody_changed_becomes_a_commit_and_through_a_patch_a_release(tested: Flow) -> None:
    there = tree(tested)
    (there / "app.txt").write_text("depot 1.0.0 mended\nline two\nline three\nline four\nline five\n")
    (there / "KNOWN_ISSUES.md").unlink()
    (there / "bin/restart").chmod(0o755)
    (there / "migrations/001_base.sql").chmod(0o600)
    (there / ODD).write_bytes(b"\x00odd")
    (there / "link").symlink_to("bin/restart")
    (there / "void").mkdir()
    before = tested.refs()
    rehearsed = adopt(tested, dry_run=True)
    assert (rehearsed.changed, rehearsed.commit, tested.refs()) == (False, None, before)

    made = adopt(tested)
    assert made.changed
    assert made.commit is not None
    assert set(made.files) == set(rehearsed.files) == {
        "app.txt", "KNOWN_ISSUES.md is removed", "bin/restart", ODD, "link",
    }  # fmt: skip
    assert made.left_out == (
        "migrations/001_base.sql has another mode than 0644, of which Git keeps only whether it is executable",
        "void is an empty folder, which Git does not know",
    )
    assert "app.txt" in made.diffstat
    assert {"refs/heads/acme/drift/test": made.commit, **before} == tested.refs()
    info = tested.repository.commit_info(made.commit)
    assert info.parents == (tested.state().releases[RELEASE].commit,)
    assert info.author.startswith("eve ")
    assert {key: info.trailers[key] for key in ("Environment", "Host", "Release", "Ticket")} == {
        "Environment": "test", "Host": "app1", "Release": RELEASE, "Ticket": "ACME-1",
    }  # fmt: skip
    held = {file.path: (file.mode, file.blob) for file in tested.installation.manifest(made.commit).files}
    assert tested.repository.read(held[ODD][1]) == b"\x00odd"
    assert (held["bin/restart"][0], held["link"][0]) == ("100755", "120000")
    assert adopt(tested).changed is False

    short = made.commit[:12]
    assert made.next_commands[0] == f"invoke patch customer=acme commit={short} ticket=ACME-1 env=test"
    patched = releases.make_patch(
        tested.session(), customer="acme", commit=short, tickets=("ACME-1",), environment="test"
    )
    assert tested.repository.tree_of(tested.state().releases[patched.release].commit) == info.tree
    assert tested.deploy(accept_drift=f"adopted as {short}").release == patched.release
    look(tested)
    tested.check_sound()


def test_there_is_nothing_to_adopt_where_nothing_was_changed(tested: Flow) -> None:
    made = adopt(tested)
    assert (made.changed, made.commit, made.files) == (False, None, ())
    assert made.what == f"there is nothing to adopt: the files of {RELEASE} on app1 are as they were deployed"


def test_a_secret_is_never_adopted_nor_is_shared(tested: Flow) -> None:
    (tree(tested) / "app.txt").write_text("password=hunter2-canary-secret\n")
    before = tested.refs()
    with pytest.raises(Refused, match="Git would keep a secret") as refused:
        adopt(tested)
    assert [str(reason) for reason in refused.value.reasons] == ["app.txt holds the secret password (app1)"]
    assert "hunter2" not in refused.value.render()
    (tree(tested) / "app.txt").unlink()
    (tree(tested) / "app.txt").symlink_to("../../shared/app.conf")
    with pytest.raises(Refused, match="cannot hold"):
        adopt(tested)
    (tree(tested) / "bin").rename(tested.host("test") / "shared" / "bin")
    (tree(tested) / "bin").symlink_to("../../shared/bin")
    with pytest.raises(Refused, match="cannot hold"):
        adopt(tested)
    assert tested.refs() == before


def refused_by_the_script(flow: Flow, *names: str, most: int = 100) -> str:
    host = Host(LocalTransport(), "app1", str(flow.host("test")))
    with pytest.raises(Refused) as refused:
        host.ask("read_files", RELEASE, str(most), stdin="".join(f"{n}\n" for n in names).encode(), what="reading")
    return str(refused.value.reasons[0])


def test_the_script_reads_files_of_any_name(tested: Flow) -> None:
    odd = b"-odd\n\xff \\0101 %s name\n"
    Path(os.fsdecode(os.fsencode(tree(tested)) + b"/" + odd)).write_bytes(b"\x00odd")
    host = Host(LocalTransport(), "app1", str(tested.host("test")))
    names = f"{drifts._for_printf(odd)}\napp.txt\nbin\n".encode()
    got = drifts._unpacked(host.ask("read_files", RELEASE, "1000", stdin=names, what="reading").stdout)
    assert got == {
        path_text(odd): ("100644", b"\x00odd"),
        "app.txt": ("100644", (tree(tested) / "app.txt").read_bytes()),
    }
    assert drifts._unpacked(host.ask("read_files", RELEASE, "1000", stdin=b"bin\n", what="reading").stdout) == {}


def test_the_script_reads_nothing_outside_of_the_release(tested: Flow) -> None:
    (tree(tested) / "out").symlink_to("../../shared")
    os.mkfifo(tree(tested) / "pipe")
    assert "./out is a link: what lies behind it" in refused_by_the_script(tested, "out/app.conf")
    assert "./pipe is not a file" in refused_by_the_script(tested, "pipe")
    assert "is not a file" in refused_by_the_script(tested, "$(touch broken)")
    assert "more than the 10 that are adopted" in refused_by_the_script(tested, "app.txt", most=10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "app2"}, "has no host 'app2'"),
        ({"tickets": ("ACME-9",)}, "has no ticket ACME-9"),
        ({"environment": "production"}, "nothing is installed on production"),
    ],
)
def test_what_is_not_known_is_said(options: dict[str, Any], words: str, tested: Flow) -> None:
    with pytest.raises(NotKnown, match=words):
        adopt(tested, **options)


def test_what_cannot_be_judged_is_not_adopted(tested: Flow) -> None:
    os.mkfifo(tree(tested) / "pipe")
    with pytest.raises(Refused, match="reading the changed files on app1 was refused"):
        adopt(tested)
    (tree(tested) / "pipe").unlink()
    link = tested.host("test") / "current"
    link.unlink()
    with pytest.raises(Refused, match=r"app1 is not at 1\.0\.0\+1"):
        adopt(tested)


# --- the doctor ------------------------------------------------------------------------------------------------------------


def test_the_doctor_says_that_all_is_well(tested: Flow) -> None:
    before = tested.refs()
    found = doctors.doctor(tested.session(), customer="acme")
    assert found.what == "all is well with 2 host(s) and 2 database(s) of acme"
    assert [(row["environment"], row["host"], row["current"]) for row in found.hosts] == [
        ("test", "app1", RELEASE),
        ("production", "app1", None),
    ]
    assert [row["migrations"] for row in found.databases] == [1, 0]
    text = "\n".join(found.lines())
    assert "test app1, " in text
    assert f"{RELEASE} serves; " in text
    assert re.search(
        r"test database \(SQLite 3\.\S+ through Python 3\.\S+\): answers, 1 migration\(s\) in its history", text
    )
    assert "flock" not in text
    assert found.model_dump(mode="json")["hosts"][0]["free_bytes"] > 0
    assert tested.refs() == before


def test_the_doctor_names_every_trouble_of_every_host(tested: Flow) -> None:
    (tested.host("production") / "x").mkdir(parents=True)
    relink(tested.host("test") / "current", "releases/0.9.0+1")
    shutil.copytree(tree(tested), tree(tested, release="0.9.0+1"))
    with pytest.raises(Refused, match="2 trouble") as refused:
        doctors.doctor(tested.session(), customer="acme")
    assert [str(reason) for reason in refused.value.reasons] == [
        f"current is 0.9.0+1, but the record says {RELEASE} is installed (test app1)",
        "the folder holds what this pipeline did not put there: x was not put there by us (production app1)",
    ]
    assert any(line.startswith("  trouble: the folder holds") for line in tested.lines)
    with pytest.raises(Refused, match="1 trouble"):
        doctors.doctor(tested.session(), customer="acme", environment="production")
    with pytest.raises(NotKnown):
        doctors.doctor(tested.session(), customer="acme", environment="integration")


def test_the_doctor_asks_the_database(tested: Flow) -> None:
    (tested.host("test") / "shared" / "app.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(Unreachable) as unreachable:
        doctors.doctor(tested.session(), customer="acme", environment="test")
    assert all(str(reason).startswith("the database: ") for reason in unreachable.value.reasons)
