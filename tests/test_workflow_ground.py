"""What stays on the hosts when a deployment is done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.workflow.ground import _kept
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
