"""Every reason of the database's to refuse a deployment; a part of :mod:`pipeline.rules`."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import Reason
from pipeline.facts import Facts


def migrations_are_as_they_ran(facts: Facts) -> Iterator[Reason]:
    """An applied script that was edited since stops everything until the edit is accepted."""
    for script in facts.edited:
        yield Reason(
            f"migration {script} was edited after it ran here; if the edit is harmless: invoke migrate.accept "
            f"customer={facts.customer.key} script={script} env={facts.environment.key} reason=…"
        )
    for script, ran_with in facts.vanished.items():
        unknown = "" if ran_with in facts.state.releases else f" (which is no release of {facts.customer.key})"
        yield Reason(
            f"migration {script} ran here with {ran_with}{unknown}, and {facts.release.name} does not hold it; if it was "
            f"removed or renamed on purpose: invoke migrate.accept customer={facts.customer.key} script={script} "
            f"env={facts.environment.key} release={facts.release.name} reason=…"
        )


def database_is_the_one(facts: Facts) -> Iterator[Reason]:
    """The database has had every migration that deployments here applied: an empty or older one is not migrated anew."""
    if facts.lost:
        applied = len(facts.state.environment(facts.environment.key).applied)
        listed = ", ".join(facts.lost[:5]) + (", …" if len(facts.lost) > 5 else "")
        yield Reason(
            f"the database lacks {len(facts.lost)} of the {applied} migration(s) that were applied on "
            f"{facts.environment.key} ({listed}): it is another database, or an older copy; restore it, or look at its "
            f"settings. If it was replaced on purpose: invoke migrate.accept customer={facts.customer.key} script='*' "
            f"env={facts.environment.key} reason=…",
            facts.places.get("environment"),
        )


def no_script_is_blocked(facts: Facts) -> Iterator[Reason]:
    """A script that was begun and not finished is looked at by a person first: what is half there is not known."""
    named = f"customer={facts.customer.key} env={facts.environment.key}"
    for script, where in facts.blocked.items():
        yield Reason(
            f"migration {script} was begun here and not finished ({where}); look at the database, then: "
            f"invoke migrate.repair {named} script={script} reason=… with resume-at=N, --mark-done or --mark-reverted"
        )


def schema_is_known(facts: Facts) -> Iterator[Reason]:
    """A database that has tables and no history is not taken for a new one."""
    if facts.unknown_schema:
        whose = f" but that of {' and '.join(facts.foreign)}" if facts.foreign else ""
        yield Reason(
            f"the database of {facts.environment.key} has tables and no migration history{whose}: which scripts have run "
            f"there is not known; say it with: {baseline_commands(facts)[0]}",
            facts.places.get("environment"),
        )


def baseline_commands(facts: Facts) -> list[str]:
    """What says which scripts have run on a database without a history: each other tool's, or a person up to a script."""
    command = f"invoke migrate.baseline customer={facts.customer.key} env={facts.environment.key}"
    return [f"{command} from={tool} reason=…" for tool in facts.foreign] or [f"{command} upto=… reason=…"]


def database_can_be_migrated(facts: Facts) -> Iterator[Reason]:
    """Where a script is to run, the server has what the protocol needs."""
    if facts.database is not None and facts.pending:
        for refusal in facts.database.refusals:
            yield Reason(f"the database cannot be migrated: {refusal}", facts.places.get("environment"))


def migrations_have_a_database(facts: Facts) -> Iterator[Reason]:
    """What the playbook would apply needs a database to be applied to."""
    if facts.pending and facts.environment.database is None:
        yield Reason(
            f"{facts.release.name} has {len(facts.pending)} migration(s), and {facts.environment.key} of "
            f"{facts.customer.key} has no database:",
            facts.places.get("environment"),
        )


def lint_has_nothing_to_refuse(facts: Facts) -> Iterator[Reason]:
    """What the lint's rules find that the playbook lists under ``migrations: refuse:``."""
    yield from facts.refused_findings


def every_migration_has_a_step(facts: Facts) -> Iterator[Reason]:
    """A pending script that no migrate step matches would silently not run."""
    for script, why in facts.unmatched.items():
        yield Reason(f"migration {script} {why}", facts.places.get("playbook"))


def unproven_scripts_need_a_backup(facts: Facts) -> Iterator[Reason]:
    """What the code alone may not bring back from does not start without a backup of the database before it."""
    for script, kind in facts.without_backup.items():
        yield Reason(
            f"migration {script} is {kind}, and the playbook backs the database up nowhere before it: write '- backup' before "
            "the migrate step, after stop where the application is stopped; or, if the old code runs on the schema that it "
            "leaves, name it under migrations: additive:",
            facts.places.get("playbook"),
        )


def no_restore_is_unfinished(facts: Facts) -> Iterator[Reason]:
    """What a restore by hand has left half done is finished first."""
    here = facts.state.environment(facts.environment.key)
    if here.restoring is not None:
        yield Reason(
            f"the restore of backup {here.restoring} on {facts.environment.key} has no outcome yet, or has failed; finish it: "
            f"invoke backup.restore customer={facts.customer.key} env={facts.environment.key} backup={here.restoring} reason=…"
        )


def rehearsed_on_test(facts: Facts) -> Iterator[Reason]:
    """Production gets only scripts that ran on this customer's test."""
    for script, why in facts.unrehearsed.items():
        yield Reason(f"migration {script} {why}")
