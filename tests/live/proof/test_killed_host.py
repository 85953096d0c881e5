"""Whatever dies on the host, wherever: the same command finishes it, once; nobody reads a missing or mixed release.

A point is one call of one program by the scripts on the host, found by a deployment without faults; what is killed there
is the shell that called it, before, after or while it runs, or everything that belongs to the job.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.live.proof import FULL, HOURS, report, sampled
from tests.live.proof.driver import Controllers, Outcome
from tests.live.proof.stage import BROKEN, NEW, OLD, SPOOL, Reader, Stage, again, told_wrong, verdict_is_wrong
from tests.servers.shims import KILLS, Shims
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(HOURS)]

LOOKING = {"awk", "cat", "cmp", "cut", "date", "find", "head", "id", "ls", "od", "readlink", "sed", "sleep", "sort"}
LOOKING |= {"sha256sum", "stat", "tail", "tr"}
"""Programs that change nothing: around them one kind of death is enough."""

SHARDS = 4 if FULL else 1


@pytest.fixture(scope="module")
def stage(server: ThrowawaySshd, shims: Shims, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), [server]).ready()


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize(("release", "stays"), [(NEW, NEW), (BROKEN, OLD)], ids=["forward", "back"])
def test_killed_anywhere_on_the_host(
    stage: Stage, shims: Shims, controllers: Controllers, release: str, stays: str, shard: int, tmp_path: Path
) -> None:
    stage.restore()
    shims.arm()
    whole = deploy(stage, controllers, release)
    assert whole.ok == (stays == release), whole.words
    assert stage.truth().complaints(stays) == []
    points = [
        (name, number, action)
        for name, calls in shims.calls().items()
        for number in range(1, calls + 1)
        for action in (("all-before",) if name in LOOKING else KILLS)
    ]
    mine = sampled(points, f"host {release}", 9 if release == NEW else 4)[shard::SHARDS]
    wrong: list[str] = []
    told: Counter[str] = Counter()
    looks = 0
    for name, number, action in mine:
        stage.restore()
        shims.arm(name, number, action)
        with Reader([stage.host("test")]) as reader:
            first = deploy(stage, controllers, release)
            fired = shims.fired()
            shims.arm()
            judged = verdict_is_wrong(first, stage.truth(), OLD, release)
            outcomes = again(stage, controllers, "deploy", 1 if stays == OLD else 3, **words(release))
            if stage.truth().here.quarantined:
                # Somebody killed the way back twice: a person looks at it, lets go, and puts a good release there.
                told["quarantined"] += 1
                held = stage.truth().serving()[0]
                way_out = {"customer": "acme", "environment": "test", "reason": "looked at it", "installed": held}
                outcomes = [controllers.do(stage.folder, "release_lock", **way_out)]
                outcomes += again(stage, controllers, "deploy", **words(NEW))
        told["the fault came" if fired is not None else "the moment did not come"] += 1
        told[first.error or "ok"] += 1
        looks += reader.looks
        said = [judged] if judged else []
        quarantined = stays == OLD and outcomes[-1].ok
        if outcomes[-1].ok != (stays == release or quarantined):
            said.append(f"in the end: {outcomes[-1].words}")
        said += reader.wrong[:3] + [
            one for one in stage.truth().complaints(NEW if quarantined else stays) if not (first.ok and SPOOL in one)
        ]
        wrong += told_wrong(f"{action} {name} {number} ({fired})", said, first)
    report(
        f"killed on the host, {'forward' if release == NEW else 'and back'}",
        points=len(mine), of=len(points), wrong=len(wrong), looks=looks, **dict(told),
    )  # fmt: skip
    assert not wrong, "\n\n".join(wrong)


def words(release: str) -> dict[str, str]:
    return {"customer": "acme", "release": release}


def deploy(stage: Stage, controllers: Controllers, release: str) -> Outcome:
    return controllers.do(stage.folder, "deploy", patience=10, **words(release))
