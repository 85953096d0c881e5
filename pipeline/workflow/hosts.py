"""Every host of an environment, looked at together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Literal, TypeVar

from pipeline.errors import Reason, Unreachable
from pipeline.host import Host
from pipeline.host import HostFacts as Seen
from pipeline.model import Manifest
from pipeline.preflight import HostFacts
from pipeline.state import State
from pipeline.transports import LineCut
from pipeline.workflow.session import Dossier

AT_ONCE = 50
"""Hosts that are spoken to at the same time; each takes a thread that waits."""

FEW = 4
"""Hosts up to which nothing is done about the memory that their threads take."""

Depth = Literal["content", "quick", "none"]
"""How drift is looked for: every byte; size, time and mode against the list verified last, and every byte where those
differ or the host has no such list; not at all."""

T = TypeVar("T")


def at_once(hosts: Mapping[str, Host], ask: Callable[[Host], T]) -> dict[str, T]:
    """What each host answers, in the order given, all asked at the same time.

    Raises what ``ask`` raised, once every host has answered: of several hosts that cannot be reached, one Unreachable
    with all of them. A line that is cut while we only look is Unreachable too.
    """
    answers: dict[str, T] = {}
    errors: list[Exception] = []
    for name, answer in _answers(hosts, ask):
        if isinstance(answer, _Raised):
            errors.append(answer.error)
        else:
            answers[name] = answer
    unreachable = [error for error in errors if isinstance(error, Unreachable)]
    for error in errors:
        if len(errors) == 1 or error not in unreachable:
            raise error
    if unreachable:
        raise Unreachable(
            f"{len(unreachable)} of {len(hosts)} hosts cannot be reached.",
            reasons=[reason for error in unreachable for reason in (Reason(error.what), *error.reasons)],
            next_commands=list(dict.fromkeys(command for error in unreachable for command in error.next_commands)),
        )
    return answers


@dataclass(frozen=True)
class _Raised:
    error: Exception


def _answers(hosts: Mapping[str, Host], ask: Callable[[Host], T]) -> Iterator[tuple[str, T | _Raised]]:
    if len(hosts) < 2:
        for name, host in hosts.items():
            yield name, _asked(ask, host)
        return
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(min(len(hosts), AT_ONCE), "host")
    try:
        for name, future in [(name, pool.submit(_asked, ask, host)) for name, host in hosts.items()]:
            yield name, future.result()
    finally:
        # Not waited for after a Ctrl-C: the connections are closed next, which ends what is under way.
        pool.shutdown(wait=False, cancel_futures=True)


def _asked(ask: Callable[[Host], T], host: Host) -> T | _Raised:
    try:
        return ask(host)
    except LineCut as error:
        return _Raised(Unreachable(f"{host.name} was lost while it was being looked at.", reasons=[str(error)]))
    except Exception as error:  # raised again by whoever waits, when every host has answered
        return _Raised(error)


def connecting(*groups: Mapping[str, Host]) -> None:
    """Begins to connect to all of these hosts, at most :data:`AT_ONCE` at a time, and does not wait.

    While the handshakes are under way Git can be read. A host that cannot be reached says so when it is first used.
    """
    hosts = SimpleQueue[Host]()
    for group in groups:
        for host in group.values():
            hosts.put(host)
    if hosts.qsize() > FEW:
        _one_heap()

    def work() -> None:
        while True:
            try:
                host = hosts.get_nowait()
            except Empty:
                return
            with suppress(Exception):
                host.transport.connect()

    for _ in range(min(AT_ONCE, hosts.qsize())):
        Thread(target=work, name="connecting", daemon=True).start()


def _one_heap() -> None:
    """From now on all threads of this process take their memory from one heap, where the C library can be told so.

    With 50 hosts a heap for each thread, of which glibc makes up to eight a core, is a tenth of all memory; and only one
    thread of Python runs at a time.
    """
    import ctypes

    m_arena_max = -8  # malloc.h
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(m_arena_max, 1)


def looked_at_hosts(
    dossier: Dossier,
    environment: str,
    state: State,
    hosts: Mapping[str, Host],
    depth: Depth,
    manifest: Callable[[str], Manifest],
) -> list[HostFacts]:
    """What the rules ask of each host, in the order of ``hosts``. ``manifest`` is asked for a release's files by name."""
    if not hosts:
        return []
    dossier.session.progress(f"looking at {', '.join(hosts)}")
    seen = at_once(hosts, lambda host: host.inspect())
    differing = drift_of(hosts, seen, state, depth, manifest)
    return [
        HostFacts(
            name=name,
            current=facts.current,
            foreign=tuple(facts.foreign),
            drift=differing.get(name, ()),
            missing_tools=tuple(facts.missing_tools),
            journal=tuple(journal_disagreements(dossier, environment, facts)),
            releases=tuple(facts.releases),
            user=facts.user,
            writable=facts.writable,
            free_bytes=facts.free_bytes,
            free_inodes=facts.free_inodes,
            clock_offset_seconds=facts.clock_offset_seconds,
            substitutes=facts.substitutes,
            list_sha256=getattr(facts, "list_sha256", None),
        )
        for name, facts in seen.items()
    ]


def drift_of(
    hosts: Mapping[str, Host],
    seen: Mapping[str, Seen],
    state: State,
    depth: Depth,
    manifest: Callable[[str], Manifest],
) -> dict[str, tuple[str, ...]]:
    """For each host whose release that serves is not exactly that release: sentences, one a file.

    A host on which nothing serves, or where something lies that is not ours, is not compared.
    """
    asked: dict[str, Host] = {}
    found: dict[str, tuple[str, ...]] = {}
    for name, facts in seen.items():
        if depth == "none" or facts.current is None or facts.foreign:
            continue
        if facts.current not in state.releases:
            found[name] = (f"current is {facts.current}, which is no release of {state.customer}",)
        # A file that was only touched differs quickly, but not by content: that is asked then, and where nothing is known.
        elif depth == "content" or facts.drift != ():
            asked[name] = hosts[name]
    manifests = {release: manifest(release) for release in {seen[name].current or "" for name in asked}}

    def compare(host: Host) -> list[str]:
        release = seen[host.name].current or ""
        return host.verify(release, manifests[release])

    compared = at_once(asked, compare) if asked else {}
    return found | {name: tuple(sentences) for name, sentences in compared.items() if sentences}


def journal_disagreements(dossier: Dossier, environment: str, seen: Seen) -> Iterator[str]:
    """What in the host's journal is not as the ledger has it. The host is a witness that no push can rewrite."""
    if seen.journal_damage is not None:
        yield f"its deployment journal is damaged: {seen.journal_damage}"
    if seen.journal_customer is None:
        return
    if (seen.journal_customer, seen.journal_environment) != (dossier.key, environment):
        yield f"the folder is that of {seen.journal_environment} of {seen.journal_customer}, as its deployment journal says"
    elif seen.journal_record is not None:
        known = dossier.ledger.record_sha256(seen.journal_record)
        if known is None or known != seen.journal_record_sha256:
            what = "does not have" if known is None else "has with other bytes"
            yield f"its deployment journal names record {seen.journal_record}, which the ledger {what}"
