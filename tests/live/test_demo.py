"""The demo as a new user runs it: the whole story over a real sshd, then what the story says to type next."""

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

from pipeline.demo.sshd import free_port

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("28481", "28482", "28483", "28484", "28485")

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]


class Demo:
    """A copy of the checkout's workspace, with ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in PORTS}
        for name in ("environments", "playbooks"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "tasks.py", folder / "tasks.py")
        for path in (folder / "environments").rglob("*.yaml"):
            path.write_text(re.sub(r"2848\d", lambda found: self.ports[found[0]], path.read_text()))

    def verb(self, *words: str, program: tuple[str, ...] = ("-m", "invoke")) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *program, *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def status(self) -> dict[tuple[str, str], str | None]:
        shown = json.loads(self.verb("status", "--json").stdout)
        return {(row["customer"], row["environment"]): row["release"] for row in shown["rows"]}

    def health(self, port: str) -> dict[str, Any]:
        with urlopen(f"http://127.0.0.1:{self.ports[port]}/health", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def page(self, port: str) -> str:
        with urlopen(f"http://127.0.0.1:{self.ports[port]}/", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def order(self, port: str, **form: str) -> int:
        token = re.search(r'name="token" value="([0-9a-f]+)"', self.page(port))
        assert token
        data = urlencode({"token": token[1], **form}).encode()
        try:
            with urlopen(f"http://127.0.0.1:{self.ports[port]}/orders", data=data, timeout=10) as answer:
                return int(answer.status)
        except HTTPError as error:
            with error:
                return error.code


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    made = Demo(tmp_path_factory.mktemp("demo workspace"))
    told = made.verb("demo.run", "--json")
    try:
        assert told.returncode == 0, told.stderr[-5000:]
        shown = json.loads(told.stdout)
        assert shown["changed"]
        made.told = told.stderr  # type: ignore[attr-defined]
        made.next = shown["next"]  # type: ignore[attr-defined]
        yield made
    finally:
        made.verb("demo.stop")
    assert not running(made.folder)


def running(folder: Path) -> list[str]:
    """Command lines that name the workspace."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"{folder}/var/demo" in line:
                found.append(line)
    return found


def test_the_story_shows_each_command_and_says_how_the_hosts_are_reached(demo: Demo) -> None:
    told: str = demo.told  # type: ignore[attr-defined]
    for verb in (
        "product.import product=comptoir",
        "line.start rosenberg version=2.3.0",
        "line.checkout vosges",
        "release vosges version=2.4.0 ticket=VOS-2",
        "plan vosges",
        "deploy vosges",
        "signoff.page vosges",
        "signoff.record vosges release=2.4.0+1 decision=approved",
        "promote vosges --yes",
        "status",
        "history vosges",
    ):
        assert f"$ invoke {verb}" in told
    assert "real SSH on 127.0.0.1" in told
    assert told.count("differs from the product as delivered: app/orders.py") == 4


def test_production_was_refused_before_the_decision(demo: Demo) -> None:
    told: str = demo.told  # type: ignore[attr-defined]
    before, _, after = told.partition("Before the customer has decided, production is refused:")
    assert "refused:" in after.partition("$ invoke signoff.record")[0]
    assert "refused:" not in before


def test_what_runs_is_what_the_story_says(demo: Demo) -> None:
    assert demo.status() == {
        ("vosges", "test"): "2.4.0+1",
        ("vosges", "production"): "2.4.0+1",
        ("rosenberg", "test"): "2.4.0+1",
        ("rosenberg", "production"): "2.3.0+1",
    }
    for port, release, host in (
        ("28481", "2.4.0+1", "app"),
        ("28482", "2.4.0+1", "app"),
        ("28483", "2.4.0+1", "app"),
        ("28484", "2.3.0+1", "app1"),
        ("28485", "2.3.0+1", "app2"),
    ):
        health = demo.health(port)
        assert (health["status"], health["release"], health["host"]) == ("ok", release, host)
    assert not list(demo.folder.glob("var/demo/hosts/*/releases/**/__pycache__"))


def test_customisations_live_on_in_the_next_version(demo: Demo) -> None:
    french, german = demo.page("28482"), demo.page("28483")
    assert "Carnet de commandes" in french
    assert "Livraison" in french
    assert "CHF 1’050.15" in german
    assert "Lieferung" in german
    assert demo.order("28482", customer="Zinc", article="Pils", quantity="5") == 422
    assert demo.order("28482", customer="Zinc", article="Pils", quantity="6") == 200


def test_sign_off_pages_are_in_the_customers_languages(demo: Demo) -> None:
    for customer, language, ticket in (("vosges", "fr", "VOS-2"), ("rosenberg", "de", "ROS-2")):
        page = (demo.folder / f"var/demo/sign-off-{customer}.html").read_text()
        assert f'lang="{language}"' in page
        assert ticket in page
        assert "004_post_delivery_days.sql" in page


def test_no_secret_of_the_demo_is_shown_or_kept_in_git(demo: Demo) -> None:
    listed = subprocess.run(
        "git -C var/demo/installations.git cat-file --batch-all-objects --batch",
        shell=True,
        cwd=demo.folder,
        capture_output=True,
        check=True,
    ).stdout
    for path in (demo.folder / "var/demo/secrets").iterdir():
        secret = path.read_text().strip()
        assert len(secret) == 48
        assert secret not in demo.told  # type: ignore[attr-defined]
        assert secret.encode() not in listed


def test_ledgers_are_whole(demo: Demo) -> None:
    for customer in ("vosges", "rosenberg"):
        verified = demo.verb("ledger.verify", customer)
        assert verified.returncode == 0, verified.stdout + verified.stderr


def test_an_unreachable_host_names_demo_start_which_brings_everything_back(demo: Demo) -> None:
    stopped = demo.verb("demo.stop")
    assert stopped.returncode == 0
    assert not running(demo.folder)
    unreachable = demo.verb("plan", "vosges", "env=production")
    assert unreachable.returncode == 7
    assert "invoke demo.start" in unreachable.stderr

    started = demo.verb("demo.start")
    assert started.returncode == 0, started.stderr
    assert demo.health("28482")["release"] == "2.4.0+1"
    assert demo.health("28485")["release"] == "2.3.0+1"
    assert json.loads(demo.verb("demo.start", "--json").stdout)["changed"] is False


def test_the_commands_named_at_the_end_work(demo: Demo) -> None:
    commands: list[str] = demo.next  # type: ignore[attr-defined]
    record = next(command for command in commands if "signoff.record" in command)
    recorded = demo.verb(*record.split()[1:])
    assert recorded.returncode == 0, recorded.stderr
    promoted = demo.verb("promote", "rosenberg", "--yes")
    assert promoted.returncode == 0, promoted.stderr
    assert [demo.health(port)["release"] for port in ("28484", "28485")] == ["2.4.0+1", "2.4.0+1"]

    back = demo.verb("rollback", "vosges", "env=production", "--yes")
    assert back.returncode == 0, back.stderr
    assert demo.health("28482")["release"] == "2.3.0+1"
    assert "Livraison" not in demo.page("28482")

    for words in (
        ("ticket.open", "vosges", "title=Remarque pour le livreur"),
        ("release", "vosges", "version=2.5.0", "ticket=VOS-3"),
        ("deploy", "vosges"),
    ):
        done = demo.verb(*words)
        assert done.returncode == 0, done.stderr
    assert "Remarque" in demo.page("28481")


def test_a_port_that_is_taken_is_named_and_nothing_is_thrown_away(demo: Demo) -> None:
    assert demo.verb("demo.stop").returncode == 0
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", int(demo.ports["28483"])))
        other.listen()
        refused = demo.verb("demo.run")
    assert refused.returncode == 2
    assert f"port {demo.ports['28483']} is taken" in refused.stderr
    assert "environments/rosenberg/test.yaml" in refused.stderr
    assert demo.status()["vosges", "test"] is not None


def test_a_second_run_starts_afresh_and_without_sshd_says_so(demo: Demo) -> None:
    # The story decides once how its hosts are reached; the verbs that it runs are untouched.
    without_sshd = (
        "import sys; from pathlib import Path; from pipeline.demo import servers, story;"
        "servers.sshd_program = lambda: None; story.run(Path.cwd())"
    )
    told = demo.verb(program=("-c", without_sshd))
    assert told.returncode == 0, told.stderr[-5000:]
    assert "the local transport, without SSH: no OpenSSH server is installed" in told.stderr
    assert demo.status()["vosges", "production"] == "2.4.0+1"
    assert demo.status()["rosenberg", "production"] == "2.3.0+1"
    assert demo.health("28484")["release"] == "2.3.0+1"
    assert not [line for line in running(demo.folder) if "sshd" in line]
