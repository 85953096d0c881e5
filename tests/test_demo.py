"""The demo's parts that need no server; ``tests/live/test_demo.py`` runs the whole."""

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.demo import servers, story
from pipeline.demo.product import VERSIONS, make_product
from pipeline.errors import Locked, UsageError
from pipeline.migrations import select
from pipeline.model import Script
from pipeline.playbook import MigrateStep
from pipeline.settings import load_workspace

ROOT = Path(__file__).resolve().parents[1]


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_product(tmp_path_factory.mktemp("product") / "comptoir")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    for name in ("environments", "playbooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    yield tmp_path
    servers.stop(tmp_path)


def test_every_machine_makes_the_same_commits(product: Path, tmp_path: Path) -> None:
    again = make_product(tmp_path / "again")
    assert git(product, "tag").split() == [f"v{version}" for version in VERSIONS]
    for version in VERSIONS:
        assert git(product, "rev-parse", f"v{version}") == git(again, "rev-parse", f"v{version}")
    assert "100755" in git(product, "ls-files", "-s", "bin/restart")


@pytest.mark.parametrize("customer", story.CUSTOMERS)
def test_customisations_touch_files_that_every_version_changes_and_still_merge(
    product: Path, tmp_path: Path, customer: str
) -> None:
    clone = tmp_path / "clone"
    git(product, "clone", "-q", str(product), str(clone))
    git(clone, "checkout", "-q", "-b", "line", "v2.3.0")
    _, changes = story.CUSTOMISATIONS[customer]
    for name, there, wanted in changes:
        text = (clone / name).read_text()
        assert text.count(there) == 1
        (clone / name).write_text(text.replace(there, wanted))
    identity = ("-c", "user.name=x", "-c", "user.email=x@x.invalid")
    git(clone, *identity, "commit", "-q", "-a", "-m", "customisation")
    for version in ("2.4.0", "2.5.0"):
        assert {name for name, _, _ in changes} & set(
            git(clone, "diff", "--name-only", "v2.3.0", f"v{version}").split()
        )
        git(clone, *identity, "merge", "-q", "--no-edit", f"v{version}")
        for name, _, wanted in changes:
            assert wanted in (clone / name).read_text()


def test_the_example_is_configured_without_a_fault() -> None:
    workspace = load_workspace(ROOT)
    assert set(story.CUSTOMERS) <= set(workspace.customers)
    hosts = list(servers.demo_hosts(workspace))
    assert {host.customer for host in hosts} == set(story.CUSTOMERS)
    assert len({host.port for host in hosts}) == len({host.host.address for host in hosts}) == len(hosts) == 5
    for customer in story.CUSTOMERS:
        assert set(workspace.customer(customer).environments) == {"test", "production"}


def test_each_migration_of_the_product_belongs_to_one_step_of_its_playbook(product: Path) -> None:
    playbook = load_workspace(ROOT).playbook("comptoir").playbook
    scripts = [
        Script(id=path.name, checksum="0" * 64, blob="0" * 40) for path in sorted((product / "migrations").iterdir())
    ]
    steps = [step for step in playbook.steps if isinstance(step, MigrateStep)]
    taken = [script.id for step in steps for script in select(scripts, step.only, step.except_)]
    assert sorted(taken) == [script.id for script in scripts]
    assert taken[-1] == "004_post_delivery_days.sql"


def test_a_taken_port_is_named_with_the_file_that_asks_for_it(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "sshd_program", lambda: None)
    hosts = list(servers.demo_hosts(load_workspace(workspace)))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        file = workspace / "environments/vosges/test.yaml"
        file.write_text(file.read_text().replace("28481", str(taken)))
        hosts = [host for host in servers.demo_hosts(load_workspace(workspace)) if host.port == taken]
        with pytest.raises(UsageError, match=rf"port {taken} is taken .*environments/vosges/test.yaml") as caught:
            servers.check_ports(hosts)
        assert all(command.endswith("then invoke demo.run") for command in caught.value.next_commands)
        (hosts[0].folder / "current").mkdir(parents=True)
        with pytest.raises(UsageError) as caught:
            servers.start(workspace)
        assert all(command.endswith("then invoke demo.start") for command in caught.value.next_commands)
    servers.check_ports(hosts)


def test_without_sshd_the_hosts_are_this_machine_and_it_is_said(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "sshd_program", lambda: None)
    started = servers.start(workspace)
    assert "the local transport, without SSH: no OpenSSH server is installed" in "\n".join(started.lines())
    assert started.what == "the demo's hosts are there; no application is deployed yet"
    assert started.next_commands == ("invoke demo.run",)
    settings = load_workspace(workspace).settings
    assert settings.local_while
    assert (workspace / settings.local_while).exists()


def test_records_of_other_customers_are_never_thrown_away(workspace: Path) -> None:
    repository = workspace / "var/demo/installations.git"
    git(workspace, "init", "-q", "--bare", str(repository))
    tree = git(repository, "hash-object", "-t", "tree", "-w", "/dev/null")
    identity = ("-c", "user.name=x", "-c", "user.email=x@x.invalid")
    commit = git(repository, *identity, "commit-tree", tree, "-m", "x")
    git(repository, "update-ref", "refs/heads/vosges/ledger", commit)
    story._refuse_other_records(workspace)
    git(repository, "update-ref", "refs/heads/acme/ledger", commit)
    with pytest.raises(UsageError, match="acme is in the demo's repository"):
        story.run(workspace)
    assert repository.exists()


def test_one_story_at_a_time(workspace: Path) -> None:
    with story._alone(workspace), pytest.raises(Locked):
        story.run(workspace)


def test_a_workspace_without_the_example_is_left_alone(workspace: Path) -> None:
    shutil.rmtree(workspace / "environments/vosges")
    with pytest.raises(UsageError, match="there is no customer vosges here"):
        story.run(workspace)
    assert not (workspace / "var/demo").exists()


def test_commands_are_shown_as_one_would_type_them() -> None:
    assert story._typed("invoke", "ticket.open", "acme", "title=Two words", "x=1") == (
        "invoke ticket.open acme title='Two words' x=1"
    )
