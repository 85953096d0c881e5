"""The line is cut, or falls silent, at any byte: what the command says is true, and the same command finishes it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.over_ssh import ready_path
from tests.live.proof import FULL, HOURS, SEED, TIMES, report
from tests.live.proof.driver import Controllers
from tests.live.proof.stage import NEW, OLD, Reader, Stage, again, told_wrong, verdict_is_wrong
from tests.servers.faulty_line import Fault, FaultyLine, faulty_line
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(HOURS)]

CUTS = 100 if FULL else 8 * TIMES
SILENCES = 12 if FULL else TIMES


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowawaySshd]:
    server = ThrowawaySshd(tmp_path_factory.mktemp("server"), environment=ready_path() | {"SHLVL": "2"})
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def line(plain: ThrowawaySshd) -> Iterator[FaultyLine]:
    with faulty_line(plain.port) as running:
        yield running


@pytest.fixture(scope="module")
def stage(plain: ThrowawaySshd, line: FaultyLine, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), [plain]).over(plain, line).ready()


@pytest.mark.parametrize(
    ("faults", "count"), [(("cut", "away"), CUTS), (("frozen", "frozen away"), SILENCES)], ids=["cut", "silent"]
)
def test_no_wrong_verdict(
    stage: Stage, line: FaultyLine, controllers: Controllers, faults: tuple[Fault, ...], count: int, tmp_path: Path
) -> None:
    stage.restore()
    line.arm(None)
    whole = controllers.do(stage.folder, "deploy", customer="acme", release=NEW)
    assert whole.ok, whole.words
    total = line.passed
    chance = random.Random(f"{SEED} {faults}")
    wrong: list[str] = []
    told: Counter[str] = Counter()
    for number in range(count):
        stage.restore()
        fault, position = faults[(number + chance.randrange(2)) % 2], chance.randrange(1, total)
        with Reader([stage.host("test")]) as reader:
            line.arm(position, fault)
            first = controllers.do(stage.folder, "deploy", patience=2, customer="acme", release=NEW)
            judged = verdict_is_wrong(first, stage.truth(), OLD, NEW)
            told["the line failed" if line.failed else "the line held"] += 1
            line.mend()
            outcomes = again(stage, controllers, "deploy", customer="acme", release=NEW)
        told[first.error or "ok"] += 1
        said = [judged] if judged else []
        said += reader.wrong[:3] + stage.truth().complaints(NEW)
        if not outcomes[-1].ok:
            said.append(f"in the end: {outcomes[-1].words}")
        wrong += told_wrong(f"{fault} at byte {position} of {total}", said, first)
    report(f"line {' or '.join(faults)}", points=count, wrong=len(wrong), **dict(told))
    assert not wrong, "\n\n".join(wrong)
