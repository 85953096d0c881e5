"""Many at once, on two machines, and killed now and then: one at a time works on a host, and no record is lost."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.live.over_ssh import ready_path
from tests.live.proof import FULL, HOURS, SEED, report
from tests.live.proof.driver import Controllers, Outcome
from tests.live.proof.stage import BROKEN, NEW, Stage
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(HOURS)]

DEPLOYERS, SECONDS = (20, 60) if FULL else (6, 10)
CUSTOMERS: dict[str, Sequence[str]] = {"acme": ("test", "integration")}
if FULL:
    CUSTOMERS |= {"beta": ("test", "integration"), "gamma": ("test",)}
PLACES = [(customer, environment) for customer, names in CUSTOMERS.items() for environment in names]
MACHINES = ("first", "second")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    server = ThrowawaySshd(
        tmp_path / "server", environment=ready_path() | {"SHLVL": "2"}, settings=("MaxStartups 200", "MaxSessions 200")
    )
    (tmp_path / "stage").mkdir()
    server.start()
    try:
        yield Stage(tmp_path / "stage", [server], customers=CUSTOMERS).ready()
    finally:
        server.stop()


@pytest.fixture
def machines(stage: Stage, tmp_path: Path) -> dict[str, Path]:
    """Two clones of the workspace; the installations repository of the stage is their remote."""
    found = {}
    for machine in MACHINES:
        folder = tmp_path / machine
        shutil.copytree(
            stage.folder, folder, ignore=shutil.ignore_patterns("installations.git", "hosts", "kept", "var")
        )
        settings = folder / "environments/workspace.yaml"
        remote = f"remote: {stage.folder}/installations.git"
        settings.write_text(settings.read_text().replace("path: installations.git", remote))
        found[machine] = folder
    return found


@dataclass
class Deployer:
    """Does this and that, and is killed now and then."""

    number: int
    controllers: Controllers
    machines: dict[str, Path]
    told: Counter[str] = field(default_factory=Counter)
    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def work(self, until: float) -> None:
        chance = random.Random(f"{SEED} deployer {self.number}")
        machine = MACHINES[self.number % 2]
        while time.monotonic() < until:
            customer, environment = chance.choice(PLACES)
            words = {"customer": customer, "environment": environment}
            verb = chance.choice(["deploy", "deploy", "deploy", "rollback"])
            if verb == "deploy":
                words["release"] = chance.choice([NEW, NEW, BROKEN])
            run = self.controllers.begin(self.machines[machine], verb, machine=machine, **words)
            if chance.random() < 0.4:
                threading.Timer(chance.uniform(0.2, 6), run.kill).start()
            outcome = run.wait()
            self._note(verb, customer, outcome)
            if outcome.error == "Locked" and chance.random() < 0.1:
                words = {"customer": customer, "environment": environment, "reason": "it seems to be dead"}
                self._note("release", customer, self.controllers.do(
                    self.machines[machine], "release_lock", machine=machine, **words
                ))  # fmt: skip

    def _note(self, verb: str, customer: str, outcome: Outcome) -> None:
        self.told[f"{verb} {'killed' if outcome.killed else outcome.error or 'ok'}"] += 1
        if outcome.error is not None and outcome.error.startswith("!"):
            self.wrong.append(f"{verb}: {outcome.error}\n{outcome.words}")
        record = (outcome.data or {}).get("record")
        if outcome.ok and record:
            self.acknowledged.append((customer, str(record)))


def test_one_at_a_time_and_nothing_is_lost(stage: Stage, machines: dict[str, Path], controllers: Controllers) -> None:
    deployers = [Deployer(number, controllers, machines) for number in range(DEPLOYERS)]
    until = time.monotonic() + SECONDS
    threads = [threading.Thread(target=one.work, args=(until,)) for one in deployers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [one for deployer in deployers for one in deployer.wrong]
    for customer, environment in PLACES:
        said = tidied(stage, machines, controllers, customer, environment)
        said += stage.truth(environment, customer).complaints(NEW)
        wrong += [f"{environment} of {customer}: {one}" for one in said]
    acknowledged = [one for deployer in deployers for one in deployer.acknowledged]
    for customer in CUSTOMERS:
        ids = Counter(record.id for record in stage.truth("test", customer).ledger.records())
        wrong += [f"{record} is in the ledger {count} times" for record, count in ids.items() if count != 1]
        wrong += [f"{record} is lost" for whose, record in acknowledged if whose == customer and record not in ids]
    told = sum((deployer.told for deployer in deployers), Counter())
    report(
        "deployers at once", points=sum(told.values()), wrong=len(wrong), acknowledged=len(acknowledged), **dict(told)
    )
    assert not wrong, "\n\n".join(wrong)


def tidied(
    stage: Stage, machines: dict[str, Path], controllers: Controllers, customer: str, environment: str
) -> list[str]:
    """Brings the environment to the good release as an engineer would after all that; what did not go."""
    words = {"customer": customer, "environment": environment}
    heard: list[str] = []
    for turn in range(6):
        machine = MACHINES[turn % 2]
        here = stage.truth(environment, customer).here
        if here.running is not None and here.running.release != NEW:
            done = controllers.do(machines[machine], "rollback", machine=machine, **words)
        else:
            done = controllers.do(machines[machine], "deploy", machine=machine, release=NEW, **words)
            if done.ok:
                return []
        heard.append(done.words)
        if done.error in ("Locked", "Refused"):
            controllers.do(machines[machine], "release_lock", machine=machine, reason="all are dead", **words)
    return [f"it cannot be brought to {NEW}: {heard[-1]}"]
