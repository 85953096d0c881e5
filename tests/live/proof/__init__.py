"""The proof: faults at every point of a deployment over real SSH, and what must be true afterwards.

``make test`` tries a seeded sample; with ``TMA_PROOF=full`` (``invoke proof``) all points are tried, with a number so many
times as many as in the sample. ``TMA_PROOF_SEED`` chooses another sample. What was tried is added to the file
``TMA_PROOF_REPORT``, a line of JSON a test.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

FULL = os.environ.get("TMA_PROOF") == "full"
TIMES = 1 if FULL else int(os.environ.get("TMA_PROOF", "1"))
HOURS = 6 * 3600 if FULL or TIMES > 1 else 600
"""Seconds that one of these tests may take."""
SEED = os.environ.get("TMA_PROOF_SEED", "20261122")

T = TypeVar("T")


def sampled(points: Sequence[T], what: str, sample: int, full: int | None = None) -> list[T]:
    """``sample`` of the points, in order; all of them, or ``full`` of them, when everything is tried."""
    wanted = (len(points) if full is None else full) if FULL else TIMES * sample
    if wanted >= len(points):
        return list(points)
    chosen = random.Random(f"{SEED} {what}").sample(range(len(points)), wanted)
    return [points[number] for number in sorted(chosen)]


def report(what: str, **figures: object) -> None:
    """Notes what was tried, for the table of ``invoke proof``; printed too, for ``pytest -s``."""
    print(f"{what}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in figures.items()))
    if place := os.environ.get("TMA_PROOF_REPORT"):
        with Path(place).open("a") as file:
            file.write(json.dumps({"what": what, **figures}) + "\n")
