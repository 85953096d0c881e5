"""Where a customer stands, through the trailers of a commit and back; and the quick look at a workspace beside the full one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.many_customers import make
from pipeline import glance as glances
from pipeline.errors import ConfigurationError, NotKnown
from pipeline.git_objects import with_trailers
from pipeline.glance import glance
from pipeline.ledger import Ledger
from pipeline.model import Customer, RefMove, WorkspaceSettings
from pipeline.repository import NewCommit, Repository
from pipeline.settings import ENVIRONMENTS, load_workspace
from pipeline.standing import WAITING, Installed, Standing, Waiting, parsed, standing, trailers
from pipeline.state import State
from pipeline.workflow import overview
from pipeline.workflow.overview import MANY, WAITED
from pipeline.workflow.session import Session

WORD = st.text("a%é \n=:1+", min_size=1, max_size=8) | st.text(min_size=1, max_size=12)
KEY = st.sampled_from(ENVIRONMENTS)
INSTALLED = st.builds(
    Installed,
    WORD,
    WORD,
    st.just("2026-03-02T09:00:00Z"),
    WORD,
    st.just("0" * 64),
    st.lists(WORD, max_size=3).map(tuple),
)
WAITS = st.builds(Waiting, st.sampled_from(sorted(WAITING)), WORD, WORD)
RUNNING = {
    "run": "r", "deployment": "0003", "purpose": "deploy", "release": "1.1.0+1", "content": "0" * 64, "record": "r",
    "at": "2026-03-02T09:00:00Z", "by": "eve",
}  # fmt: skip
NOTES = st.dictionaries(KEY, st.sampled_from(["deployment 0003 failed", "quarantined since deployment 0007"]))


@given(st.builds(Standing, st.just("depot"), st.dictionaries(KEY, INSTALLED), NOTES, WAITS))
def test_what_is_written_into_a_commit_is_read_out_of_it(where: Standing) -> None:
    message = with_trailers("release-made 1.0.0+1", {"Record-Id": "r", "Product": "depot", **trailers(where)})
    assert message.count("\n\n") == 1
    assert parsed(message) == where


@pytest.mark.parametrize(
    "message",
    [
        "",
        "subject\n",
        "subject\n\nRecord-Id: r\n",
        "subject\n\nStanding: 2 depot\nWaiting: nothing\n",
        "subject\n\nStanding: 1 depot\n",
        "subject\n\nStanding: 1 depot\nWaiting: rain\n",
        "subject\n\nStanding: 1 depot\nWaiting: deploy what=x\n",
        "subject\n\nStanding: 1 depot\nInstalled-test: 1.0\nWaiting: nothing\n",
        "subject\n\nStanding: 1 depot\nWaiting: nothing\n\nRecord-Id: r\n",
    ],
)
def test_what_does_not_say_it_says_nothing(message: str) -> None:
    assert parsed(message) is None


def test_every_kind_of_waiting_has_its_words() -> None:
    assert set(WAITED) == set(WAITING)
    for kind in WAITING:
        assert "{" not in Waiting(kind, "1.0", "eve", "2026-03-12T22:59:00Z").sentence(("claire",), "Europe/Paris")
    # 22:59 in UTC is the last minute of the day in Paris in winter, and of the same day in UTC.
    assert (
        Waiting("sign-off", "1", due="2026-03-12T23:30:00Z")
        .sentence(("a", "b"), "Europe/Paris")
        .endswith("by a or b by 2026-03-13")
    )


@pytest.mark.parametrize(
    ("here", "note"),
    [
        ({}, None),
        ({"failed": "0002 of 1.0.0+1"}, "deployment 0002 of 1.0.0+1 failed"),
        ({"failed": "0002 of 1.0.0+1", "running": {}}, "deployment 0003 of 1.1.0+1 has no outcome yet"),
        (
            {"running": {"partly": {"app1": "1.1.0+1", "app2": "1.0.0+1", "app3": None}}},
            "deployment 0003 of 1.1.0+1 is partly done: app1 runs 1.1.0+1, app2 runs 1.0.0+1, app3 runs nothing",
        ),
        ({"running": {}, "quarantined": "0003"}, "quarantined since deployment 0003"),
    ],
)
def test_what_needs_attention_is_said(here: dict[str, Any], note: str | None) -> None:
    if "running" in here:
        here = here | {"running": RUNNING | here["running"]}
    where = standing(State.model_validate({"customer": "acme", "environments": {"test": here}}))
    assert where.notes.get("test") == note
    assert parsed(with_trailers("s", trailers(where._replace(product="depot")))) == where._replace(product="depot")


# --- the workspace at a glance ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("some") / "workspace"
    make(folder, 12)
    return folder


@pytest.fixture
def workspace(some: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-r", str(some), str(tmp_path / "w")], check=True)
    return tmp_path / "w"


def in_full(folder: Path, monkeypatch: pytest.MonkeyPatch, customer: str | None = None) -> overview.StatusResult:
    with monkeypatch.context() as patch:
        patch.setattr(overview, "glance", lambda folder: None)
        return overview.status(Session.open(folder), customer=customer)


def test_the_keys_that_a_glance_knows_are_those_of_the_models() -> None:
    assert set(WorkspaceSettings.model_fields) == glances.WORKSPACE_KEYS
    assert set(Customer.model_fields) == glances.CUSTOMER_KEYS
    assert glances.ENVIRONMENTS == ENVIRONMENTS


def test_a_glance_says_what_the_full_reading_says(some: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for customer in (None, "customer-00001", "customer-00004"):
        quick = overview.status(Session.open(some), customer=customer)
        full = in_full(some, monkeypatch, customer)
        assert quick.model_dump() == full.model_dump()
        assert quick.lines() == full.lines()
    seen = glance(some)
    settings = load_workspace(some).settings
    assert seen is not None
    assert (seen.work, [tuple(vars(entry).values()) for entry in seen.installations]) == (
        settings.work,
        [(entry.name, entry.path, entry.remote) for entry in settings.installations],
    )


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("workspace.yaml", "installations:\n  - path: a.git\nwrok: x\n"),
        ("workspace.yaml", "installations:\n  - path: a.git\n    remote: b.git\n"),
        ("workspace.yaml", "installations:\n  - name: A\n    path: a.git\n"),
        ("workspace.yaml", "installations:\n  - path: a.git\n  - path: b.git\n"),
        ("workspace.yaml", "installations: []\n"),
        ("workspace.yaml", "installations:\n  - path: 1.10\n"),
        ("workspace.yaml", "installations:\n  - path: a.git\nsigning_key: secret\n"),
        ("workspace.yaml", "work: x\nwork: y\n"),
        ("customer-00001/customer.yaml", "name: A\nlanguage: fr\n"),
        (
            "customer-00001/customer.yaml",
            "name: A\nlanguage: fr\ntime_zone: Europe/Paris\nproduct: depot\napprovers: []\n",
        ),
        (
            "customer-00001/customer.yaml",
            "name: A\nlanguage: fr\ntime_zone: Europe/Pari\nproduct: depot\napprovers: [claire]\n",
        ),
        (
            "customer-00001/customer.yaml",
            "name: A\nlanguage: fr\ntime_zone: Europe/Paris\nproduct: depot\napprovers: [claire]\ninstallations: other\n",
        ),
        ("customer-00001/prod.yaml", "freezes: []\n"),
    ],
)
def test_what_is_not_plainly_right_is_complained_of_in_full(workspace: Path, file: str, text: str) -> None:
    (workspace / "environments" / file).write_text(text)
    for customer in ("customer-00001", None):
        with pytest.raises(ConfigurationError) as refused:
            overview.status(Session.open(workspace), customer=customer)
        assert file in str(refused.value)


def test_a_customer_that_is_not_there_is_told_with_the_nearest(some: Path) -> None:
    for wrong in ("customer-0001", "../keys", "."):
        with pytest.raises(NotKnown):
            overview.status(Session.open(some), customer=wrong)


def test_an_older_pipelines_tip_is_read_from_its_state(workspace: Path) -> None:
    before = overview.status(Session.open(workspace)).model_dump()
    repository = Repository.open(workspace / "installations.git")
    for number in range(1, 5):
        ref = f"refs/heads/customer-{number:05}/ledger"
        tip = repository.commit_info(ref)
        message = tip.message.partition("\nStanding: ")[0] + "\n"
        assert "\nRecord-Id: " in message
        older = NewCommit(tip.tree, {}, tip.parents, message, "eve", tip.at)
        repository.move([RefMove(ref=ref, old=tip.oid, new=repository.write_commits([older])[0])])
        assert parsed(repository.messages(ref)[ref]) is None
    assert overview.status(Session.open(workspace)).model_dump() == before
    workspace_ = load_workspace(workspace)
    assert Ledger(repository, "customer-00001").verify(workspace_.people) == []
    assert set(repository.messages("refs/heads/*/ledger")) == {
        f"refs/heads/{key}/ledger" for key in workspace_.customers
    }


def test_trailers_that_tell_another_story_are_found(workspace: Path) -> None:
    repository, ref = Repository.open(workspace / "installations.git"), "refs/heads/customer-00001/ledger"
    tip = repository.commit_info(ref)
    forged = tip.message.replace("Installed-test: 1.0.0+1", "Installed-test: 9.9.9+1")
    assert forged != tip.message
    commit = NewCommit(tip.tree, {}, tip.parents, forged, "eve", tip.at)
    repository.move([RefMove(ref=ref, old=tip.oid, new=repository.write_commits([commit])[0])])
    (found,) = Ledger(repository, "customer-00001").verify(load_workspace(workspace).people)
    assert found.text == "its trailers do not say where the records lead"


def test_one_customer_is_fetched_alone(workspace: Path, tmp_path: Path) -> None:
    mirror = Repository.open(tmp_path / "mirror.git", remote=str(workspace / "installations.git"))
    mirror.fetch("customer-00003")
    assert {ref.split("/")[2] for ref in mirror.refs()} == {"customer-00003"}
    assert mirror.fetched_at() is None
    mirror.fetch()
    assert len(mirror.refs()) == 12 * 7
    mirror.fetch("customer-00003")
    assert len(mirror.refs()) == 12 * 7


def test_a_customer_without_a_record_waits_for_its_line(workspace: Path) -> None:
    (workspace / "environments" / "new").mkdir()
    for name in ("customer.yaml", "test.yaml"):
        text = (workspace / "environments" / "customer-00001" / name).read_text()
        (workspace / "environments" / "new" / name).write_text(text)
    for customer in ("new", None):
        told = overview.status(Session.open(workspace), customer=customer)
        assert told.waiting["new"] == "its line to be started (line.start)"
        assert [
            (row["product"], row["environment"], row["release"]) for row in told.rows if row["customer"] == "new"
        ] == [("depot", "test", None)]


def test_thousands_are_counted_and_the_odd_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.many_customers.FAILED_EVERY", 50)
    make(tmp_path / "w", MANY + 20)
    told = overview.status(Session.open(tmp_path / "w"))
    lines = told.lines()
    assert len(told.rows) == 2 * (MANY + 20)
    assert len(lines) < 30
    assert "  test of customer-00050: deployment 0003 of 1.0.0+1 failed" in lines
    assert any(line.endswith("for the customer's sign-off") for line in lines)
    # Of so many nobody's customer.yaml is read: neither the names nor the clock are said, and nothing that is wrong.
    assert told.waiting["customer-00001"] == "the sign-off of 1.0.0+1 by 2026-03-12T22:59:00Z"
    assert sum(int(line.split()[0]) for line in lines if line.startswith("    ")) == MANY + 20


def test_every_ledger_of_the_bench_verifies(some: Path) -> None:
    workspace = load_workspace(some)
    repository = Repository.open(some / "installations.git")
    for key in workspace.customers[:4]:
        assert Ledger(repository, key).verify(workspace.people) == []
    assert len(repository.refs()) == 12 * 7


# --- what it must not load --------------------------------------------------------------------------------------------


def test_status_loads_neither_invoke_nor_the_models(some: Path) -> None:
    code = (
        "import sys, contextlib\nfrom pipeline.verbs import main\n"
        "with contextlib.suppress(SystemExit):\n    main(['tma', *sys.argv[1:]])\n"
        "heavy = 'invoke pydantic pipeline.model http email importlib.metadata cryptography jinja2 paramiko asyncio'.split()\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    for words in (["status", "customer-00001", "--json"], ["status", "--json"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=some, capture_output=True, text=True, check=True
        )
        assert done.stderr.splitlines()[-1] == "[]"
        assert json.loads(done.stdout)["ok"] is True
