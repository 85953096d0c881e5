"""The hotfix story of docs/architecture.md over real SSH: a fix reaches production while the next version waits on test.

Told twice: with the fix as a commit of the product's own repository on SQLite, and as a diff on PostgreSQL.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Refused
from pipeline.workflow import deployments, lines, overview, products, releases, sign_offs, tickets, upkeep
from tests.live.over_ssh import SshSample, ready_path
from tests.servers.postgres import DatabaseAddress, PostgresServer
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]

FIXED = "line three, mended"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySshd]:
    running = ThrowawaySshd(tmp_path_factory.mktemp("sshd"), environment=ready_path())
    try:
        yield running.start()
    finally:
        running.stop()


class Story(SshSample):
    """Acme's installation of a product with versions 2.4.0 and 2.5.0, customised in one file."""

    def __init__(self, folder: Path, server: ThrowawaySshd, databases: dict[str, DatabaseAddress]) -> None:
        blocks = {}
        for environment, address in databases.items():
            blocks[environment] = (
                f"  engine: postgresql\n  port: {address.port}\n  name: {address.name}\n  user: {address.user}\n"
                f"  password: file:keys/{environment}\n"
            )
        super().__init__(folder, {"test": [server], "production": [server]}, blocks)
        self.databases = databases
        for environment, address in databases.items():
            self.write(f"keys/{environment}", address.password)
        self.version("2.4.0", {})
        self.git(self.product, "branch", "maintenance-2.4")
        self.version(
            "2.5.0",
            {
                "migrations/003_stock.sql": "ALTER TABLE item ADD COLUMN stock INTEGER;\n",
                "migrations/004_post_supplier.sql": "CREATE TABLE supplier (id INTEGER PRIMARY KEY);\n",
                "new.txt": "new in 2.5.0\n",
            },
        )

    def fix(self) -> str:
        """The fix in the product's repository, on its maintenance branch only; the commit."""
        self.git(self.product, "checkout", "-q", "maintenance-2.4")
        file = self.product / "app.txt"
        file.write_text(file.read_text().replace("line three", FIXED))
        self.git(self.product, "commit", "-q", "-am", "Mend line three")
        return self.git(self.product, "rev-parse", "HEAD")

    def customise(self) -> None:
        work = Path(str(lines.checkout_line(self.session(), customer="acme").folder))
        (work / "acme.txt").write_text("Acme's own\n")
        self.git(work, "add", "-A")
        self.git(work, "commit", "-q", "-m", "Acme's own file")
        self.git(work, "push", "-q")

    def release(self, version: str) -> str:
        made = releases.make_release(self.session(), customer="acme", version=version, tickets=("ACME-1",))
        return made.release

    def to_test(self, release: str) -> deployments.DeploymentResult:
        done = deployments.deploy(self.session(), customer="acme", release=release)
        assert isinstance(done, deployments.DeploymentResult)
        assert self.current("test") == f"releases/{release}"
        return done

    def approve(self) -> str:
        """The customer approves what is on test, from its page; the page."""
        page = Path(sign_offs.write_page(self.session(), customer="acme").path).read_text()
        mail = self.write("evidence.eml", f"approved at {self.clock():%H:%M:%S}\n")
        sign_offs.record_decision(self.session(), customer="acme", decision="approved", by="claire", evidence=mail)
        return page

    def promote(self, release: str | None = None) -> deployments.DeploymentResult:
        done = deployments.promote(self.session(), customer="acme", release=release)
        assert isinstance(done, deployments.DeploymentResult)
        return done

    def refused(self, release: str) -> str:
        """Every reason against promoting a release, and that nothing came of the attempt."""
        before = (self.current("production"), self.served("production"), self.ran("production"))
        with pytest.raises(Refused) as caught:
            deployments.promote(self.session(), customer="acme", release=release)
        assert (self.current("production"), self.served("production"), self.ran("production")) == before
        return "\n".join(reason.text for reason in caught.value.reasons)

    def ran(self, environment: str) -> list[str]:
        """The migrations in an environment's database, asked of the database itself."""
        question = "SELECT script FROM tma_migration_history ORDER BY script"
        if environment in self.databases:
            with self.databases[environment].connect() as connection:
                return [row[0] for row in connection.execute(question).fetchall()]
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(self.host(environment) / "shared" / "app.sqlite")) as connection:
            return [row[0] for row in connection.execute(question).fetchall()]

    def status(self) -> dict[str, str | None]:
        return {row["environment"]: row["release"] for row in self.told()["rows"]}

    def told(self) -> dict[str, Any]:
        return overview.status(self.session(), customer="acme").model_dump(mode="json")

    def ancestor(self, earlier: str, later: str) -> bool:
        """Whether Git itself says that a release is in another, or in a branch."""
        done = subprocess.run(
            ["git", "merge-base", "--is-ancestor", earlier, later], cwd=self.folder / "installations.git", check=False
        )
        return done.returncode == 0


@pytest.mark.parametrize("way", ["commit-on-sqlite", "file-on-postgresql"])
def test_a_fix_overtakes_the_version_that_waits(
    way: str, server: ThrowawaySshd, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    databases: dict[str, DatabaseAddress] = {}
    if way == "file-on-postgresql":
        postgres = request.getfixturevalue("postgres")
        databases = {environment: postgres.create_database() for environment in ("test", "production")}
    story = Story(tmp_path, server, databases)
    old, later = ["001_base.sql", "002_price.sql"], ["003_stock.sql", "004_post_supplier.sql"]

    # 2.4.0 runs in production, 2.5.0 waits on test, signed off.
    products.import_product(story.session(), product="depot")
    lines.start_line(story.session(), customer="acme", version="2.4.0")
    story.customise()
    tickets.open_ticket(story.session(), customer="acme", title="Version", changed="everything", test="look")
    story.to_test(story.release("2.4.0"))
    story.approve()
    story.promote()
    assert story.to_test(story.release("2.5.0")).migrations == tuple(later)
    story.approve()
    assert story.status() == {"test": "2.5.0+1", "production": "2.4.0+1"}

    # The fix, on what production runs; in the same move it is in the line, and 2.5.0's sign-off no longer counts.
    fix = story.fix()
    tickets.open_ticket(story.session(), customer="acme", title="Line three", changed="mended", test="read line three")
    if way == "commit-on-sqlite":
        patched = releases.make_patch(
            story.session(), customer="acme", tickets=("ACME-2",), commit=fix, id="CVE-2026-1"
        )
    else:
        diff = story.write("fix.diff", story.git(story.product, "show", "--format=", fix) + "\n")
        patched = releases.make_patch(story.session(), customer="acme", tickets=("ACME-2",), file=diff, id="CVE-2026-1")
    assert (patched.release, patched.patches, patched.superseded) == ("2.4.0+2", ("CVE-2026-1",), "2.5.0+1")
    assert [path for _, path in patched.files] == ["app.txt"]
    reasons = story.refused("2.5.0+1")
    assert "superseded" in reasons
    assert "CVE-2026-1" in reasons
    assert "2.5.0+1" not in story.told()["waiting"]["acme"]

    # The patched 2.4.0: test, sign-off, production, while 2.5.0's migrations stay applied on test.
    planned = deployments.plan(story.session(), customer="acme", release="2.4.0+2")
    assert (planned.refusals, planned.migrations, planned.stays_applied) == ((), (), tuple(later))
    deployed = story.to_test("2.4.0+2")
    assert (deployed.migrations, deployed.sign_off_requested) == ((), True)
    assert story.ran("test") == old + later
    assert story.served("test") == "depot 2.4.0"
    assert "no sign-off" in story.refused("2.4.0+2")
    page = story.approve()
    assert "ACME-2" in page
    assert "003_stock" not in page
    assert story.promote().installed_before == "2.4.0+1"
    assert FIXED in (story.host("production") / "current" / "app.txt").read_text()
    assert (story.host("production") / "current" / "acme.txt").read_text() == "Acme's own\n"
    assert story.ran("production") == old

    # 2.5.0 without the fix would take it away again.
    assert "patch CVE-2026-1 is installed on production and is not in 2.5.0+1" in story.refused("2.5.0+1")

    # With the fix it goes.
    assert story.release("2.5.0") == "2.5.0+2"
    story.to_test("2.5.0+2")
    story.approve()
    assert story.promote().migrations == tuple(later)
    assert story.status() == {"test": "2.5.0+2", "production": "2.5.0+2"}
    text = (story.host("production") / "current" / "app.txt").read_text()
    assert FIXED in text
    assert text.startswith("depot 2.5.0\n")
    assert story.ran("production") == old + later
    for fixed in ("acme/2.5.0+2", "acme/main", "acme/env/production", "acme/env/test"):
        assert story.ancestor("acme/2.4.0+2", fixed), fixed
    assert not story.ancestor("acme/2.4.0+2", "acme/2.5.0+1")
    log = story.git(
        story.folder / "installations.git",
        *("log", "--first-parent", "--format=%(trailers:key=Release,valueonly,separator=)", "acme/env/production"),
    ).split()
    assert log[:3] == ["2.5.0+2", "2.4.0+2", "2.4.0+1"]

    if way == "commit-on-sqlite":
        _one_step_back_and_forward_again(story, old + later)
    assert upkeep.verify_ledger(story.session(), customer="acme").findings == ()


def _one_step_back_and_forward_again(story: Story, migrations: list[str]) -> None:
    """A rollback in production keeps the fix; what was rolled back from goes again only with a new sign-off."""
    back = deployments.rollback(story.session(), customer="acme", environment="production")
    assert isinstance(back, deployments.DeploymentResult)
    assert (back.release, story.current("production")) == ("2.4.0+2", "releases/2.4.0+2")
    assert story.served("production") == "depot 2.4.0"
    assert FIXED in (story.host("production") / "current" / "app.txt").read_text()
    assert story.ran("production") == migrations
    assert "rolled back" in story.refused("2.5.0+2")
    assert story.to_test("2.5.0+2").sign_off_requested
    assert "no sign-off" in story.refused("2.5.0+2")
    story.approve()
    assert deployments.plan(story.session(), customer="acme", environment="production").refusals == ()
