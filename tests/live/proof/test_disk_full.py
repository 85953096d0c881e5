"""The disk of a host becomes full at any stage: the old release serves, nothing is truncated, and it is said why.

The disk is filled, but for some pages, at a call of a program by the scripts on the host, and stays so: the way back has
to do without room as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.over_ssh import ready_path
from tests.live.proof import FULL, HOURS, report, sampled
from tests.live.proof.driver import Controllers
from tests.live.proof.stage import NEW, OLD, Reader, Stage, again, told_wrong, verdict_is_wrong
from tests.servers.shims import FILLS, Shims
from tests.servers.small_disk import needs_namespaces, on_small_disk
from tests.servers.sshd import ThrowawaySshd

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(HOURS)]

SHARDS = 3 if FULL else 1
SAYS_WHY = ("No space left", "disk full", "disk is full", "are free", "Disk quota")


@pytest.fixture(scope="module")
def stage(shims: Shims, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    needs_namespaces()
    folder = tmp_path_factory.mktemp("stage")
    server = ThrowawaySshd(
        tmp_path_factory.mktemp("server"), environment=ready_path() | {"PATH": shims.path, "SHLVL": "2"}
    )
    seen = on_small_disk(server, folder / "hosts", size="24m", inodes=1200)
    try:
        stage = Stage(folder, [server])
        stage.seen = seen
        yield stage.ready()
    finally:
        server.stop()


@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_old_release_serves_and_nothing_is_truncated(
    stage: Stage, shims: Shims, controllers: Controllers, shard: int, tmp_path: Path
) -> None:
    stage.restore()
    shims.arm()
    whole = controllers.do(stage.folder, "deploy", customer="acme", release=NEW)
    assert whole.ok, whole.words
    assert stage.truth().complaints(NEW) == []
    points = [(n, k, action) for n, calls in shims.calls().items() for k in range(1, calls + 1) for action in FILLS]
    mine = sampled(points, "disk", 7, 400)[shard::SHARDS]
    wrong: list[str] = []
    told: Counter[str] = Counter()
    assert stage.seen is not None
    for name, number, action in mine:
        stage.restore()
        with Reader([stage.host("test")]) as reader:
            shims.arm(name, number, action, stage.folder / "hosts")
            first = controllers.do(stage.folder, "deploy", patience=5, customer="acme", release=NEW)
            fired = shims.fired()
            shims.arm()
            truth = stage.truth()
            judged = verdict_is_wrong(first, truth, OLD, NEW)
            said = [judged] if judged else []
            if not first.ok:
                if not any(words in first.words for words in SAYS_WHY):
                    said.append("the reason is not named")
                past = "after the point of no return" in first.words
                said += [] if past else truth.complaints(OLD, idle=False)
                told["past the point of no return" if past else first.error or ""] += 1
            for name_left in stage.seen.iterdir():
                if name_left.name.startswith(("ballast", "many.", "spare")):
                    name_left.unlink()
            outcomes = again(stage, controllers, "deploy", customer="acme", release=NEW)
        told["ok"] += first.ok
        told["the disk filled up" if fired is not None else "the moment did not come"] += 1
        said += reader.wrong[:3] + stage.truth().complaints(NEW)
        if not outcomes[-1].ok:
            said.append(f"in the end: {outcomes[-1].words}")
        wrong += told_wrong(f"{action} {name} {number} ({fired})", said, first)
    report("disk full", points=len(mine), of=len(points), wrong=len(wrong), **dict(told))
    assert not wrong, "\n\n".join(wrong)
