"""Verbs about the backups of one environment."""

from __future__ import annotations

from typing import Annotated

from pipeline.command_line.options import Customer, Reason
from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb
from pipeline.command_line.words import Option

Environment = Annotated[str, Option("test, integration or production", value="ENV")]
Label = Annotated[str, Option("the backup, as backup.list names it", value="LABEL")]


@verb("Backups", "backup.run")
def run(
    command: Command,
    customer: Customer,
    env: Environment,
    reason: Reason,
    label: Annotated[str | None, Option("its name; the run's by default", value="LABEL")] = None,
) -> Answer:
    """Backs an environment up now, and reads the backup back: the database, and shared/ where the playbook does that.

    It is made on the customer's hosts, under folder/backups/.
    """
    from pipeline.workflow import backups

    return backups.make(
        command.session, customer=customer, environment=env, reason=reason, label=label, dry_run=command.dry_run
    )


@verb("Backups", "backup.list", changes=False)
def list_backups(command: Command, customer: Customer, env: Environment) -> Answer:
    """Shows the backups that lie on the hosts: age, size, what proved them when, and which release and schema they have.

    One that the ledger does not know, or whose bytes are others, is said so.
    """
    from pipeline.workflow import backups

    return backups.listed(command.session, customer=customer, environment=env)


@verb("Backups", "backup.prove")
def prove(command: Command, customer: Customer, env: Environment, backup: Label) -> Answer:
    """Proves a backup anew: restored on trial where there is a scratch database, else read back whole."""
    from pipeline.workflow import backups

    return backups.prove(command.session, customer=customer, environment=env, backup=backup, dry_run=command.dry_run)


@verb("Backups", "backup.restore", asks=True)
def restore(command: Command, customer: Customer, env: Environment, backup: Label, reason: Reason) -> Answer:
    """Restores a backup: stops the application, puts the data back, starts it and checks; what was written since is lost.

    It asks to retype the customer's name. On production what lies there is backed up first. Where the environment is
    quarantined the application stays stopped, and rollback is what comes next.
    """
    from pipeline.workflow import restores

    def run(*, dry_run: bool) -> Answer:
        return restores.restore(
            command.session, customer=customer, environment=env, backup=backup, reason=reason, dry_run=dry_run
        )

    command.ask_before_erasing(customer, lambda: run(dry_run=True))
    return run(dry_run=command.dry_run)
