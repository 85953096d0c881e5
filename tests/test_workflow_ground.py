"""What a release is built on, on the hosts, and what stays there when a deployment is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.workflow.ground import Attempt, _kept, ground_for
from pipeline.workflow.plans import looked_at
from tests.flows import told
from tests.nouns import Story


@pytest.mark.parametrize(
    ("purpose", "release", "kept"),
    [
        ("deploy", "4.0+1", {"4.0+1", "3.0+1"}),
        # The next rollback goes to 1.0: 3.0 is left by then.
        ("rollback", "2.0+1", {"3.0+1", "2.0+1", "1.0+1"}),
        ("rollback", "3.0+1", {"3.0+1", "2.0+1"}),
    ],
)
def test_the_release_that_the_next_rollback_goes_to_stays(purpose: str, release: str, kept: set[str]) -> None:
    story = Story()
    for name in ("1.0+1", "2.0+1", "3.0+1"):
        story.deployed(name)
    case: Any = SimpleNamespace(
        state=story.state,
        environment=SimpleNamespace(key="test"),
        release=SimpleNamespace(name=release),
        purpose=purpose,
        plan=SimpleNamespace(keep_releases=2),
    )
    assert _kept(case) == kept


@pytest.mark.slow
def test_nothing_is_built_on_what_was_changed_even_where_the_list_does_not_see_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A promotion reads every byte, and may go over what it finds; the host's own list knows only sizes and dates."""
    flow = told(tmp_path_factory, tmp_path, "tested")
    flow.make("1.2.0", {})
    dossier = flow.session().dossier("acme")
    state = dossier.state()
    release = dossier.release("1.2.0+1", state)
    attempt = Attempt("run-1", "0002", "record-1", "0" * 64, 9)
    with looked_at(dossier, state, "test", "deploy", release, ("ACME-1",)) as case:
        whole = ground_for(case, attempt, {}, lambda: None).base("app1")
        assert whole is not None and whole[0] == "1.0.0+1"
        changed = [replace(host, drift=("lib.py was changed",)) for host in case.facts.hosts]
        assert all(host.list_sha256 for host in changed)
        case.facts = replace(case.facts, hosts=changed, accept_drift="it is known")
        assert ground_for(case, attempt, {}, lambda: None).base("app1") is None
