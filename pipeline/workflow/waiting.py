"""Queueing for an environment that another run holds: wait until it is free, then decide anew."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import NOTHING_CHANGED, Interrupted, Locked, Refused, Unreachable, overtaken
from pipeline.lease import Lease, life, read_lease, words
from pipeline.settings import load_workspace
from pipeline.workflow.lock_status import silence, spoken
from pipeline.workflow.session import Session

POLL = 2.0
"""Seconds between two looks at the lease, give or take half: many who wait should not all ask at once."""

TELL = 60.0
"""Seconds after which a person who waits is told again for whom."""

Given = TypeVar("Given")


def in_turn(session: Session, customer: str, environment: str, act: Callable[[], Given]) -> Given:
    """What ``act`` gives once nobody else holds the environment.

    ``act`` must gather and decide by itself: it is called anew when another run was faster, on the state and the files
    that there are then. Interrupted when a person stops the waiting, with nothing changed; whatever ``act`` raises
    otherwise. A holder that died on this machine is not waited for, since ``act`` takes its place.
    """
    # Who may not act is told before the waiting, not after.
    session.dossier(customer).environment(environment)
    queue = _Queue(session, customer, environment)
    while True:
        queue.until_free()
        before = queue.decided_on()
        try:
            return act()
        except Locked:
            queue.pause()
        except Refused as refused:
            # Another run may have come between our look and the decision; then it is not the last word.
            if overtaken(refused) or not queue.changed_since(before):
                raise


class _Queue:
    """One run's place in the queue; there is no order among those who wait."""

    def __init__(self, session: Session, customer: str, environment: str) -> None:
        self._session = session
        self._customer = customer
        self._environment = environment
        self._told: tuple[str, float] = ("", 0.0)

    def until_free(self) -> None:
        """Returns when nobody holds the environment, or only who is dead; Interrupted when a person ends it."""
        try:
            self._until_free()
        except KeyboardInterrupt:
            raise self._stopped() from None

    def _until_free(self) -> None:
        waited = False
        while (holder := self._holder(patient=waited)) is not None:
            self._tell(holder)
            self._sleep()
            waited = True
        if waited:
            self._session.progress(f"{self._environment} of {self._customer} is free; everything is looked at anew")
            # Windows, freezes, hosts: the files may say something else than when the waiting began.
            self._session.workspace = load_workspace(self._session.folder)

    def pause(self) -> None:
        """Some seconds; Interrupted when a person or a signal ends it."""
        try:
            self._sleep()
        except KeyboardInterrupt:
            raise self._stopped() from None

    def decided_on(self) -> tuple[object, bool]:
        """What a decision on this environment depends on, and whether it is open; as the repository has it here."""
        here = self._session.dossier(self._customer, deciding=False).state().environment(self._environment)
        return here, here.running is not None

    def changed_since(self, before: tuple[object, bool]) -> bool:
        """Whether another run has come between: it holds the environment now, or has left it otherwise than it was."""
        if self._holder(patient=True) is not None:
            return True
        now, is_open = self.decided_on()
        # Open, and held by nobody: that is for a person to judge, not for the queue.
        return now != before[0] and not is_open

    def _sleep(self) -> None:
        time.sleep(POLL * random.uniform(0.5, 1.5))  # noqa: S311 - not for cryptography

    def _stopped(self) -> Interrupted:
        return Interrupted(
            f"waiting for {self._environment} of {self._customer} was stopped",
            state=NOTHING_CHANGED,
            next_commands=[f"invoke lock.status customer={self._customer} env={self._environment}"],
        )

    def _holder(self, *, patient: bool) -> Lease | None:
        repository = self._session.dossier(self._customer, deciding=False).repository
        try:
            repository.fetch()
        except Unreachable as error:
            if not patient:
                raise
            self._say(error.what, f"{error.what}; still waiting")
        lease = read_lease(repository, self._customer, self._environment)
        return None if lease is None or life(lease) == "dead" else lease

    def _tell(self, lease: Lease) -> None:
        silent = silence(lease, self._session.now())
        line = f"waiting for {self._environment} of {self._customer}: {words(lease)}"
        if life(lease, self._session.now()) == "unknown":
            line += f"; no sign of life for {spoken(silent)}: if it is dead, invoke lock.release frees it"
        self._say(lease.run, line)

    def _say(self, what: str, line: str) -> None:
        if what != self._told[0] or time.monotonic() - self._told[1] >= TELL:
            self._told = (what, time.monotonic())
            self._session.progress(line)
