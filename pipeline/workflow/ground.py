"""What one attempt stands on when the runner carries it out: made of the case, the attempt and the lease."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pipeline.acts import Ground
from pipeline.model import Manifest
from pipeline.workflow.gathering import Case


@dataclass(frozen=True)
class Attempt:
    """One attempt, announced in the ledger: ``fence`` is the number of its record, so that it only rises."""

    run: str
    deployment: str
    record: str
    record_sha256: str
    fence: int


def ground_for(
    case: Case, attempt: Attempt, files: Mapping[tuple[str, str], bytes], still_ours: Callable[[], None]
) -> Ground:
    """The ground; ``files`` are the rendered templates by host and template."""
    session = case.dossier.session
    seen = {facts.name: facts for facts in case.facts.hosts}

    def base(host: str) -> tuple[str, Manifest] | None:
        facts = seen[host]
        if case.purpose == "rollback":
            # Nothing was compared there. What is still there is compared byte by byte, else everything is sent.
            return ("=", case.manifest) if case.release.name in facts.releases else None
        # The list on the host knows sizes and dates; what was found by reading every byte counts more.
        if (
            facts.drift
            or facts.current is None
            or facts.list_sha256 is None
            or facts.current not in case.state.releases
        ):
            return None
        manifest, digest = case.ahead.laid(facts.current)
        return (facts.current, manifest) if digest == facts.list_sha256 else None

    def clean(host: str) -> tuple[str, ...]:
        return tuple(name for name in seen[host].releases if name in case.state.releases and name not in kept)

    kept = _kept(case)
    return Ground(
        hosts=case.hosts,
        database=case.database,
        shared=case.shared,
        manifest=case.manifest,
        payloads=case.ahead.payloads,
        render=lambda host, template: files[host, template],
        scripts=case.look.scripts,
        verify=case.look.verify,
        covers=case.look.comparison.covers,
        run=attempt.run,
        fence=attempt.fence,
        customer=case.customer,
        environment=case.environment.key,
        content=case.content,
        record=attempt.record,
        record_sha256=attempt.record_sha256,
        progress=session.progress,
        base=base,
        clean=clean,
        conceal=session.conceal,
        still_ours=still_ours,
        clock=session.now,
    )


def _kept(case: Case) -> set[str]:
    """The releases that stay on the hosts: the new one, and the last ones that were installed, up to the playbook's number.

    One that was rolled back from counts too: nothing that a record names as installed before goes sooner than that.
    """
    here = case.state.environment(case.environment.key)
    newest_first = [deployed.release for deployed in (*here.earlier, *([here.installed] if here.installed else []))]
    ordered = list(dict.fromkeys([case.release.name, *reversed(newest_first)]))
    # What is being rolled back from is left the moment that this is done.
    leaving = {here.installed.release} - {case.release.name} if case.purpose == "rollback" and here.installed else set()
    good = [name for name in ordered if name not in {*here.left, *leaving}]
    # The one to go back to stays however many bad ones came after it.
    return {*ordered[: case.plan.keep_releases], *good[:2]}
