"""One deployment per environment at a time: a lease, which everybody who shares the repository sees.

The ref ``refs/leases/<customer>/<environment>`` names a blob that says who runs what, where and since when; it is made
and removed by compare-and-swap. While it is held, a thread of the run overwrites it every :data:`BEAT` seconds with its
newest sign of life; a run whose lease was taken away learns it so, and from :meth:`Held.check`. Beside it the run holds a
``flock`` on a file of its machine for as long as it lives, so that the next run can tell a dead one from a live one, and
adopts it. A lease is not a record: it is overwritten.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from pydantic import ValidationError

from pipeline.content import canonical
from pipeline.errors import OVERTAKEN, Locked, PartlyDone, PipelineError, Reason, Refused, Unreachable
from pipeline.model import Instant, Key, Noun, RefMove
from pipeline.repository import NULL, Raced, Repository, without_credentials

BEAT = 20.0
"""Seconds between two signs of life in the lease."""

SILENCE = 90.0
"""Seconds without a sign of life after which a run on another machine is no longer taken for alive: four beats."""

_ATTEMPTS = 5
_PUSH_SECONDS = 30.0
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ADDRESSES = (
    "CI_JOB_URL",
    "BUILD_URL",
    "BUILDKITE_BUILD_URL",
    "CIRCLE_BUILD_URL",
    "TRAVIS_JOB_WEB_URL",
    "CI_PIPELINE_URL",
)

Life = Literal["alive", "dead", "unknown"]
"""Whether a lease's run lives. *dead* is proven (its lock on this machine is free), never concluded from silence."""


class Lease(Noun):
    """What the lease's blob says. ``lock`` and ``token`` show on its own machine whether the run still lives.

    ``job`` is the address of the CI job that runs it, where it is one; ``seen`` the last sign of life.
    """

    run: str
    actor: Key
    machine: str
    pid: int
    since: Instant
    release: str | None = None
    purpose: str
    lock: str
    token: str
    job: str | None = None
    seen: Instant | None = None

    def same_run(self, other: Lease) -> bool:
        """Whether both are of one holding by one process, however many beats apart."""
        return self.model_copy(update={"seen": None}) == other.model_copy(update={"seen": None})


@dataclass
class Held:
    """A lease that is held: do the work of ``run``, which is an interrupted run's id when one was adopted.

    ``lost`` says in a sentence how the lease was lost, None while it is ours.
    """

    run: str
    adopted: Lease | None
    lease: Lease
    lost: str | None = None
    _repository: Repository = field(kw_only=True)
    _ref: str = field(kw_only=True)
    _blob: str = field(kw_only=True)
    _mine: set[str] = field(default_factory=set, kw_only=True)
    _kept: bool = False

    def keep(self) -> None:
        """Leaves the lease behind at the end, for a state that only a person may clear (quarantined)."""
        self._kept = True

    def check(self) -> None:
        """Refused (:func:`pipeline.errors.overtaken`) when the lease is no longer ours, as far as is known here.

        Looks at the ref in this repository, so that within a decision of the ledger, which fetches first, the answer is
        the remote's. While the lease is ours it costs no process.
        """
        if self.lost is None:
            self._mark_lost(self._repository.ref(self._ref))
        if self.lost is not None:
            raise Refused(
                f"run {self.run} has lost its lock and must not change anything any more.",
                reasons=[Reason(self.lost, self._ref, OVERTAKEN)],
                state="What it had done so far stays; it did nothing more.",
                next_commands=[f"invoke status customer={self._ref.split('/')[2]}"],
            )

    def _mark_lost(self, blob: str | None) -> None:
        if blob in self._mine:
            return
        said = "it was taken away (lock.release)"
        if blob is not None:
            said = "another run holds it now"
            with contextlib.suppress(PipelineError, ValidationError):
                said += f": {words(Lease.model_validate_json(self._repository.read(blob) or b''))}"
        self.lost = said

    def _beat(self, now: datetime) -> None:
        """Overwrites the lease with one more sign of life; finds out when it is no longer ours."""
        lease = self.lease.model_copy(update={"seen": now})
        new = self._repository.write_blob(canonical(lease.model_dump(mode="json")))
        # Before it moves: whoever looks meanwhile must know either for ours.
        self._mine.add(new)
        if _overwrite(self._repository, self._ref, self._blob, new):
            self._blob = new
            return
        self._repository.fetch()
        blob = self._repository.ref(self._ref)
        if blob is not None and blob in self._mine:
            self._blob = blob
        else:
            self._mark_lost(blob)


def lease_ref(customer: str, environment: str) -> str:
    """The full name of the ref."""
    return f"refs/leases/{customer}/{environment}"


def read_lease(repository: Repository, customer: str, environment: str) -> Lease | None:
    """The lease as the repository has it here, or None; does not fetch. Locked when another version wrote it."""
    blob = repository.ref(lease_ref(customer, environment))
    return None if blob is None else _parse(repository, blob, customer, environment)


def ci_job(variables: Mapping[str, str]) -> str | None:
    """The address of the CI job whose environment variables these are, None when there is none; never a password."""
    address = next((variables[name] for name in _ADDRESSES if variables.get(name)), None)
    server, repository, run = (variables.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"))
    if address is None and server and repository and run:
        address = f"{server}/{repository}/actions/runs/{run}"
    collection, project, build = (
        variables.get(name) for name in ("SYSTEM_COLLECTIONURI", "SYSTEM_TEAMPROJECT", "BUILD_BUILDID")
    )
    if address is None and collection and project and build:
        address = f"{collection.rstrip('/')}/{project}/_build/results?buildId={build}"
    if address is None or not address.isprintable():
        return None
    return without_credentials(address)[:500]


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
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    beat: float = BEAT,
) -> Iterator[Held]:
    """Holds the environment for the time of the ``with`` block; no other run changes it meanwhile.

    ``work`` is the workspace's folder for what can be rebuilt; the lock file is ``work/locks/<customer>.<environment>``.
    A lease whose run died on this machine is adopted: ``Held.run`` is then that run's id. The lease goes away at the end
    of the block, also after an error, unless :meth:`Held.keep` was called; after a kill it stays, and is adopted.
    ``clock`` gives the instant of a sign of life, ``beat`` the seconds between two. A remote that cannot be reached for a
    while does not lose the lease: only another's move of the ref does.

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
            job=ci_job(os.environ),
            seen=at,
        )
        held = _acquire(repository, customer, environment, mine)
        ended = threading.Event()
        # A daemon that nobody waits for: a beat on its way when the block ends loses against the removal, or is removed.
        threading.Thread(target=_beats, args=(held, clock, beat, ended), name=f"lease of {run}", daemon=True).start()
        failed = True
        try:
            yield held
            failed = False
        finally:
            ended.set()
            if not held._kept:
                try:
                    _give_back(held)
                except Unreachable as error:
                    # What went wrong inside matters more; the lease is adopted by the next run from here.
                    if not failed:
                        raise PartlyDone(
                            f"the work is done, and the lock on {environment} of {customer} could not be given back",
                            reasons=error.reasons,
                            state=f"The lock stays; the next run on {mine.machine} takes it over.",
                            next_commands=[_release_command(customer, environment)],
                        ) from None


def releasable(repository: Repository, customer: str, environment: str) -> Lease | None:
    """The lease that may be taken away, None when there is none; the repository is fetched first.

    Refused while its run is alive on this machine. Whether a run on another machine is dead, only a person can say.
    """
    repository.fetch()
    lease = read_lease(repository, customer, environment)
    if lease is not None and life(lease) == "alive":
        raise Refused(
            f"the run that holds {environment} of {customer} is alive on this machine",
            reasons=[Reason(words(lease), lease_ref(customer, environment))],
            next_commands=["wait for it, or stop it with Ctrl-C where it runs"],
        )
    return lease


def release_lock(repository: Repository, customer: str, environment: str, held: Lease | None = None) -> Lease | None:
    """Takes the lease away whoever holds it, and returns what it said; None when there was none.

    With ``held`` only as long as it is that run's: None when another has taken its place. Refused as :func:`releasable`.
    """
    for _ in range(_ATTEMPTS):
        lease = releasable(repository, customer, environment)
        blob = repository.ref(lease_ref(customer, environment))
        if lease is None or blob is None or (held is not None and not held.same_run(lease)):
            return None
        with contextlib.suppress(Raced):
            repository.move([RefMove(ref=lease_ref(customer, environment), old=blob, new=None)])
            return lease
    raise _locked(read_lease(repository, customer, environment), customer, environment)


def life(lease: Lease, now: datetime | None = None) -> Life:
    """Whether the lease's run lives, as far as can be told from here.

    On its own machine its lock file proves it. Elsewhere, with ``now``, a run that has given a sign of life within
    :data:`SILENCE` is alive; one that was silent for longer may be dead, or cut off: unknown.
    """
    proven = _proven(lease)
    if proven != "unknown" or now is None or lease.seen is None:
        return proven
    return "alive" if abs((now - lease.seen).total_seconds()) <= SILENCE else "unknown"


def _acquire(repository: Repository, customer: str, environment: str, mine: Lease) -> Held:
    ref = lease_ref(customer, environment)
    for _ in range(_ATTEMPTS):
        repository.fetch()
        old = repository.ref(ref)
        before = None if old is None else _parse(repository, old, customer, environment)
        # We hold our own lock file: a lease that it backs was left by a run that is dead.
        ours = before is not None and (before.lock, before.token) == (mine.lock, mine.token)
        if before is not None and not ours and _proven(before) != "dead":
            raise _locked(before, customer, environment)
        lease = mine if before is None else mine.model_copy(update={"run": before.run})
        blob = repository.write_blob(canonical(lease.model_dump(mode="json")))
        with contextlib.suppress(Raced):
            if blob != old:
                repository.move([RefMove(ref=ref, old=old, new=blob)])
            return Held(lease.run, before, lease, _repository=repository, _ref=ref, _blob=blob, _mine={blob})
    raise _locked(read_lease(repository, customer, environment), customer, environment)


def _beats(held: Held, clock: Callable[[], datetime], beat: float, ended: threading.Event) -> None:
    while not ended.wait(beat):
        # A remote that does not answer, a full disk: the next beat may do better, and the lease is still ours.
        with contextlib.suppress(Exception):
            held._beat(clock())
        if held.lost is not None:
            return


def _overwrite(repository: Repository, ref: str, old: str, new: str) -> bool:
    """Moves the ref from ``old`` to ``new``, on the remote where there is one; False when that did not work.

    Beside :meth:`Repository.move` and its lock: a beat must not wait for a decision, nor a decision for a beat whose
    remote does not answer.
    """
    if repository.remote is None:
        done = repository.git("update-ref", ref, new, old or NULL, accept=range(256))
    else:
        fixed = ["--quiet", "--no-verify", "--no-follow-tags", "--recurse-submodules=no"]
        lease = f"--force-with-lease={ref}:{old}"
        done = repository.git(
            *("push", *fixed, lease, "--end-of-options", repository.remote, f"{new}:{ref}"),
            accept=range(-64, 256),
            timeout=_PUSH_SECONDS,
        )
    return done.returncode == 0


def _give_back(held: Held) -> None:
    repository = held._repository
    for _ in range(_ATTEMPTS):
        repository.fetch()
        blob = repository.ref(held._ref)
        if blob is None or blob not in held._mine:
            return  # a person released it, and it may be another run's by now
        with contextlib.suppress(Raced):
            repository.move([RefMove(ref=held._ref, old=blob, new=None)])
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


def _proven(lease: Lease) -> Life:
    """Whether the lease's run lives, as far as this machine can prove: its lock file is here, and is free or is not."""
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


def words(lease: Lease) -> str:
    """The lease in one sentence: who, where, since when, what."""
    since = lease.since.strftime("%Y-%m-%d %H:%M:%S UTC")
    what = f"{lease.purpose} of {lease.release}" if lease.release else lease.purpose
    said = f"{lease.actor} on {lease.machine} since {since}: {what}, run {lease.run}, process {lease.pid}"
    return f"{said}, {lease.job}" if lease.job else said


def _locked(lease: Lease | None, customer: str, environment: str) -> Locked:
    who = words(lease) if lease is not None else "another run is just taking or giving back the lock"
    return Locked(
        f"another run holds {environment} of {customer}",
        reasons=[Reason(who, lease_ref(customer, environment))],
        next_commands=[WAIT, _release_command(customer, environment)],
        details={} if lease is None else lease.model_dump(mode="json", exclude={"lock", "token"}),
    )


WAIT = "wait for it to end"
"""What to do while another run holds the lock; who knows the command that was given names it with ``--wait`` instead."""


def _release_command(customer: str, environment: str) -> str:
    return f"invoke lock.release customer={customer} env={environment} reason=TEXT   (only if that run is dead)"
