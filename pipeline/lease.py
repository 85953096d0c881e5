"""One deployment per environment at a time: a lease, which everybody who shares the repository sees.

The ref ``refs/leases/<customer>/<environment>`` names a blob that says who runs what, where and since when; it is made
and removed by compare-and-swap. Beside it the run holds a ``flock`` on a file of its machine for as long as it lives, so
that the next run can tell a dead one from a live one, and adopts it. A lease is not a record: it is overwritten.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Literal

from pydantic import ValidationError

from pipeline.content import canonical
from pipeline.errors import Locked, PartlyDone, Reason, Refused, Unreachable
from pipeline.model import Instant, Key, Noun, RefMove
from pipeline.repository import Raced, Repository

_ATTEMPTS = 5
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Lease(Noun):
    """What the lease's blob says. ``lock`` and ``token`` show on its own machine whether the run still lives."""

    run: str
    actor: Key
    machine: str
    pid: int
    since: Instant
    release: str | None = None
    purpose: str
    lock: str
    token: str


@dataclass
class Held:
    """A lease that is held: do the work of ``run``, which is an interrupted run's id when one was adopted."""

    run: str
    adopted: Lease | None
    lease: Lease
    _blob: str
    _kept: bool = False

    def keep(self) -> None:
        """Leaves the lease behind at the end, for a state that only a person may clear (quarantined)."""
        self._kept = True


def lease_ref(customer: str, environment: str) -> str:
    """The full name of the ref."""
    return f"refs/leases/{customer}/{environment}"


def read_lease(repository: Repository, customer: str, environment: str) -> Lease | None:
    """The lease as the repository has it here, or None; does not fetch. Locked when another version wrote it."""
    blob = repository.ref(lease_ref(customer, environment))
    return None if blob is None else _parse(repository, blob, customer, environment)


@contextlib.contextmanager
def hold(
    repository: Repository,
    customer: str,
    environment: str,
    *,
    run: str,
    actor: str,
    at: datetime,
    purpose: str,
    work: Path,
    release: str | None = None,
) -> Iterator[Held]:
    """Holds the environment for the time of the ``with`` block; no other run changes it meanwhile.

    ``work`` is the workspace's folder for what can be rebuilt; the lock file is ``work/locks/<customer>.<environment>``.
    A lease whose run died on this machine is adopted: ``Held.run`` is then that run's id. The lease goes away at the end
    of the block, also after an error, unless :meth:`Held.keep` was called; after a kill it stays, and is adopted.

    Raises Locked when another run holds the environment, naming it; Unreachable when the remote cannot be asked;
    PartlyDone when the work is done and the lease could not be given back.
    """
    for name in (customer, environment):
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a key: {name!r}")
    path = work.absolute() / "locks" / f"{customer}.{environment}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as lock:
        if not _try_flock(lock):
            with contextlib.suppress(Unreachable):
                repository.fetch()
            raise _locked(read_lease(repository, customer, environment), customer, environment)
        mine = Lease(
            run=run,
            actor=actor,
            machine=socket.gethostname(),
            pid=os.getpid(),
            since=at,
            release=release,
            purpose=purpose,
            lock=str(path),
            token=_token(lock),
        )
        held = _acquire(repository, customer, environment, mine)
        failed = True
        try:
            yield held
            failed = False
        finally:
            if not held._kept:
                try:
                    _give_back(repository, customer, environment, held._blob)
                except Unreachable as error:
                    # What went wrong inside matters more; the lease is adopted by the next run from here.
                    if not failed:
                        raise PartlyDone(
                            f"the work is done, and the lock on {environment} of {customer} could not be given back",
                            reasons=error.reasons,
                            state=f"The lock stays; the next run on {mine.machine} takes it over.",
                            next_commands=[_release_command(customer, environment)],
                        ) from None


def release_lock(repository: Repository, customer: str, environment: str) -> Lease | None:
    """Takes the lease away whoever holds it, and returns what it said; None when there was none.

    Refused while its run is alive on this machine. Whether a run on another machine is dead, only a person can say.
    """
    for _ in range(_ATTEMPTS):
        repository.fetch()
        blob = repository.ref(lease_ref(customer, environment))
        if blob is None:
            return None
        lease = _parse(repository, blob, customer, environment)
        if _life(lease) == "alive":
            raise Refused(
                f"the run that holds {environment} of {customer} is alive on this machine",
                reasons=[Reason(_words(lease), lease_ref(customer, environment))],
                next_commands=["wait for it, or stop it with Ctrl-C where it runs"],
            )
        with contextlib.suppress(Raced):
            repository.move([RefMove(ref=lease_ref(customer, environment), old=blob, new=None)])
            return lease
    raise _locked(read_lease(repository, customer, environment), customer, environment)


def _acquire(repository: Repository, customer: str, environment: str, mine: Lease) -> Held:
    ref = lease_ref(customer, environment)
    for _ in range(_ATTEMPTS):
        repository.fetch()
        old = repository.ref(ref)
        before = None if old is None else _parse(repository, old, customer, environment)
        # We hold our own lock file: a lease that it backs was left by a run that is dead.
        ours = before is not None and (before.lock, before.token) == (mine.lock, mine.token)
        if before is not None and not ours and _life(before) != "dead":
            raise _locked(before, customer, environment)
        lease = mine if before is None else mine.model_copy(update={"run": before.run})
        blob = repository.write_blob(canonical(lease.model_dump(mode="json")))
        with contextlib.suppress(Raced):
            if blob != old:
                repository.move([RefMove(ref=ref, old=old, new=blob)])
            return Held(run=lease.run, adopted=before, lease=lease, _blob=blob)
    raise _locked(read_lease(repository, customer, environment), customer, environment)


def _give_back(repository: Repository, customer: str, environment: str, blob: str) -> None:
    for _ in range(_ATTEMPTS):
        repository.fetch()
        if repository.ref(lease_ref(customer, environment)) != blob:
            return  # a person released it, and it may be another run's by now
        with contextlib.suppress(Raced):
            repository.move([RefMove(ref=lease_ref(customer, environment), old=blob, new=None)])
            return


def _try_flock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _token(file: IO[bytes]) -> str:
    """What names this very lock file: its inode, so that a copied folder is another, and random hexadecimal digits.

    Made once, with the flock held, and never changed: whoever can lock the file that a lease names knows that its run
    is dead, and a file of the same name on another machine is never mistaken for it.
    """
    file.seek(0)
    digits = file.read().decode("ascii", "replace")
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        digits = secrets.token_hex(16)
        file.truncate(0)
        file.write(digits.encode())
        file.flush()
        os.fsync(file.fileno())
    return f"{os.fstat(file.fileno()).st_ino}-{digits}"


def _life(lease: Lease) -> Literal["alive", "dead", "unknown"]:
    """Whether the lease's run lives, as far as this machine can tell: its lock file is here, and is free or is not."""
    try:
        with Path(lease.lock).open("r+b") as file:
            free = _try_flock(file)
            file.seek(0)
            digits = file.read().decode("ascii", "replace")
            if f"{os.fstat(file.fileno()).st_ino}-{digits}" != lease.token:
                return "unknown"
            return "dead" if free else "alive"
    except OSError:
        return "unknown"


def _parse(repository: Repository, blob: str, customer: str, environment: str) -> Lease:
    try:
        return Lease.model_validate_json(repository.read(blob) or b"")
    except ValidationError:
        raise Locked(
            f"{environment} of {customer} is held by a run of another version of the pipeline",
            reasons=[Reason("the lease is not of the form that this version knows", lease_ref(customer, environment))],
            next_commands=["use the version of the pipeline that the run uses"],
        ) from None


def _words(lease: Lease) -> str:
    since = lease.since.strftime("%Y-%m-%d %H:%M:%S UTC")
    what = f"{lease.purpose} of {lease.release}" if lease.release else lease.purpose
    return f"{lease.actor} on {lease.machine} since {since}: {what}, run {lease.run}, process {lease.pid}"


def _locked(lease: Lease | None, customer: str, environment: str) -> Locked:
    who = _words(lease) if lease is not None else "another run is just taking or giving back the lock"
    return Locked(
        f"another run holds {environment} of {customer}",
        reasons=[Reason(who, lease_ref(customer, environment))],
        next_commands=["wait for it to end", _release_command(customer, environment)],
        details={} if lease is None else lease.model_dump(mode="json", exclude={"lock", "token"}),
    )


def _release_command(customer: str, environment: str) -> str:
    return f"invoke lock.release customer={customer} env={environment} reason=TEXT   (only if that run is dead)"
