"""The controller dies anywhere: the same command finishes what it began, once, and no record is lost.

A point is the moment before or after a git command, a script or a job on the host, a rename, a link, a removal, or a line
that is said; they are found by a deployment without faults.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.live.proof import FULL, HOURS, report, sampled
from tests.live.proof.driver import Controllers
from tests.live.proof.stage import BROKEN, NEW, OLD, Reader, Stage, again, told_wrong
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(HOURS)]

SHARDS = 2 if FULL else 1


@pytest.fixture(scope="module")
def stage(server: ThrowawaySshd, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), [server]).ready()


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize(("release", "stays"), [(NEW, NEW), (BROKEN, OLD)], ids=["forward", "back"])
def test_killed_anywhere_on_the_controller(
    stage: Stage, controllers: Controllers, release: str, stays: str, shard: int, tmp_path: Path
) -> None:
    stage.restore()
    names = tmp_path / "boundaries"
    whole = controllers.do(stage.folder, "deploy", customer="acme", release=release, boundaries=names)
    assert whole.ok == (stays == release), whole.words
    boundaries = names.read_text().splitlines()
    points = list(enumerate(boundaries, 1))
    mine = sampled(points, f"controller {release}", 7 if release == NEW else 3)[shard::SHARDS]
    wrong: list[str] = []
    told: Counter[str] = Counter()
    looks = 0
    for number, name in mine:
        stage.restore()
        with Reader([stage.host("test")]) as reader:
            first = controllers.do(stage.folder, "deploy", customer="acme", release=release, die_at=number)
            records = stage.records()
            outcomes = again(stage, controllers, "deploy", 1 if stays == OLD else 2, customer="acme", release=release)
        told["died" if first.killed else "did not die"] += 1
        looks += reader.looks
        said = reader.wrong[:3] + stage.truth().complaints(stays)
        if outcomes[-1].ok != (stays == release):
            said.append(f"in the end: {outcomes[-1].words}")
        # What was written down when it died is written down still, and nothing twice.
        now = stage.records()
        if now[: len(records)] != records:
            said.append("records were lost")
        if len({record.id for record in now}) != len(now):
            said.append("a record is there twice")
        runs = Counter(r.run for r in now if r.kind == "deployment-finished" and r.release == release)
        if set(runs.values()) != {1}:
            said.append(f"outcomes: {runs}")
        wrong += told_wrong(f"{number} ({name})", said, first)
    report(
        f"controller killed, {'forward' if release == NEW else 'and back'}",
        points=len(mine), of=len(points), wrong=len(wrong), looks=looks, **dict(told),
    )  # fmt: skip
    assert not wrong, "\n\n".join(wrong)
