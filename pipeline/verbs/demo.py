"""Verbs of the example that the repository brings along."""

from __future__ import annotations

from pipeline.command_line.output import Answer
from pipeline.command_line.verb import Command, verb


@verb("Try it out", "demo.run", dry_run=False)
def run(command: Command) -> Answer:
    """Runs the main job on the example: one product, two customers, from release to production; starts afresh."""
    from pipeline import demo

    return demo.run(command.folder, command.program)


@verb("Try it out", "demo.start", dry_run=False)
def start(command: Command) -> Answer:
    """Brings the example's servers up."""
    from pipeline import demo

    return demo.start(command.folder)


@verb("Try it out", "demo.stop", dry_run=False)
def stop(command: Command) -> Answer:
    """Brings the example's servers down."""
    from pipeline import demo

    return demo.stop(command.folder)
