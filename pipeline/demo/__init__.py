"""The demo: an example product, two customers, and the servers that stand in for theirs.

What the verbs ``demo.run``, ``demo.start`` and ``demo.stop`` call; everything lies under ``var/demo`` of the workspace.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.workflow import Result


def run(folder: Path, program: str = "invoke") -> Result:
    """Starts afresh and tells the whole story; see :func:`pipeline.demo.story.run`."""
    from pipeline.demo import story

    return story.run(folder, program)


def start(folder: Path) -> Result:
    """Brings the servers up; see :func:`pipeline.demo.servers.start`."""
    from pipeline.demo import servers

    return servers.start(folder)


def stop(folder: Path) -> Result:
    """Brings the servers down; see :func:`pipeline.demo.servers.stop`."""
    from pipeline.demo import servers

    return servers.stop(folder)
