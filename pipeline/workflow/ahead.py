"""What is needed once hosts were looked at, made ready meanwhile: a controller that waits for a host has time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from pipeline.model import Manifest
from pipeline.payload import Payloads, listing_digest

T = TypeVar("T")


class Meanwhile(Generic[T]):
    """What ``work`` gives, computed in a thread of its own from now on; its error is raised where the result is asked for."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._result: T
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._do, name="meanwhile", daemon=True)
        self._thread.start()

    def _do(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # raised again by whoever asks
            self._error = error

    def result(self) -> T:
        """The result, waited for."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result


class Ahead:
    """Releases as they should lie on hosts, and the payloads that lead from one to another.

    ``manifest_of`` gives a release's files by its name. What was not made ready, or could not be, is made when it is
    asked for; safe for several threads.
    """

    def __init__(self, payloads: Payloads, manifest_of: Callable[[str], Manifest]) -> None:
        self.payloads = payloads
        self._manifest_of = manifest_of
        self._lock = threading.Lock()
        self._laid: dict[str, tuple[Manifest, str]] = {}

    def laid(self, release: str) -> tuple[Manifest, str]:
        """The release's files, and the SHA-256 of its list as a host keeps it."""
        # Of many hosts' threads the first one computes it; a cache alone would let all of them.
        with self._lock:
            if release not in self._laid:
                manifest = self._manifest_of(release)
                self._laid[release] = manifest, listing_digest(manifest)
            return self._laid[release]

    def prepare(self, installed: str, release: Manifest) -> None:
        """Begins to make the payload that leads from what is installed to ``release``, and does not wait."""

        def work() -> None:
            # Whatever is wrong is said when it is asked for.
            with suppress(Exception):
                self.payloads.get(release, self.laid(installed)[0])

        threading.Thread(target=work, name="ahead", daemon=True).start()
