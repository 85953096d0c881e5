"""The verbs as tasks of stock Invoke, and what makes Invoke safe: no word reaches its parser unread.

Stock ``invoke`` imports a ``tasks.py`` after it has read its own flags and before it reads the words of the tasks;
:func:`adopt`, called at that file's end, puts words in their place that it cannot misread, or ends the program.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import invoke.main
from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.program import Program
from invoke.tasks import Task

from pipeline.command_line.output import Output
from pipeline.command_line.program import request
from pipeline.command_line.verb import Verb
from pipeline.command_line.words import refuse, wants_json
from pipeline.errors import PipelineError

_MISLEADING = ("dry", "echo", "pty", "hide", "warn-only", "command-timeout")
"""Flags of stock Invoke that promise something about what runs, and would keep none of it here."""


class VerbTask(Task):  # type: ignore[type-arg]
    """A verb as Invoke calls it; ends in :class:`invoke.Exit` with the verb's exit code unless that is 0."""

    def __init__(self, verb: Verb, position: int) -> None:
        super().__init__(verb.body, name=verb.path.rpartition(".")[2], positional=(), auto_shortflags=False)
        self.verb = verb
        self.position = position

    @property
    def name(self) -> str:
        """The name as typed, dots included."""
        return self.verb.path

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        """Invoke's own view of the options: no positions and no short flags, which it would misread."""
        return [
            Argument(
                name=option.name,
                # An attribute of the option's own name would be an alias of itself, which Invoke follows for ever.
                attr_name=option.name.replace("-", "_") if "-" in option.name else None,
                kind=bool if option.flag else list if option.several else str,
                default=False if option.flag else None,
                help=option.help,
            )
            for option in self.verb.options.values()
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        context: Context = args[0]
        settings = dict(context.config.get("tma", {}))
        settings["dry"] = "yes" if context.config.get("run", {}).get("dry") else ""
        code = self.verb.run(settings, kwargs)
        if code:
            raise Exit(code=code)
        self.times_called += 1


def collect(verbs: Iterable[Verb]) -> Collection:
    """The collection that holds these verbs, a sub-collection for what stands before a name's dot.

    A verb that others begin with (``drift``, ``drift.adopt``) is the default of that sub-collection: Invoke takes no task
    and collection of one name.
    """
    namespace = Collection()
    known = list(verbs)
    holders = {verb.path.rpartition(".")[0] for verb in known}
    for position, verb in enumerate(known):
        holder, _, name = verb.path.rpartition(".")
        itself = verb.path in holders
        inner = namespace
        if holder or itself:
            holder = holder or verb.path
            if holder not in namespace.collections:
                namespace.add_collection(Collection(holder))
            inner = namespace.collections[holder]
        inner.add_task(VerbTask(verb, position), name=name, default=itself)
    return namespace


def verbs_of(namespace: Collection) -> list[Verb]:
    """Every verb of a collection, in the order in which :func:`collect` was given them."""
    return [task.verb for task in sorted(_tasks(namespace), key=lambda task: task.position)]


def _tasks(namespace: Collection) -> Iterable[VerbTask]:
    yield from (task for task in namespace.tasks.values() if isinstance(task, VerbTask))
    for collection in namespace.collections.values():
        yield from _tasks(collection)


def adopt(namespace: Collection, folder: Path) -> None:
    """Makes the running ``invoke`` read its words as ``tma`` does; call it at the end of a ``tasks.py``.

    ``folder`` is the folder of that file, taken as the workspace when none is found from the current folder upwards.
    Does nothing when the file was not imported by the ``invoke`` program. Raises :class:`invoke.Exit` when there is
    nothing left to run: 0 after a list or a help, 2 after a refusal. What followed ``--`` is left alone.
    """
    program = invoke.main.program
    core = getattr(program, "core", None)
    if core is None:
        return
    verbs = verbs_of(namespace)
    namespace.configure(
        {
            "tma": {
                "program": "invoke",
                "workspace": "",
                "search_from": program.args["search-root"].value or os.curdir,
                "fallback": str(folder),
                "tasks": " ".join(verb.path for verb in verbs),
            }
        }
    )
    if program.args.complete.value:
        return
    listed = program.args.list.value
    if listed and program.args["list-format"].value == "json":
        return
    output = Output(as_json=wants_json(core.unparsed), program="invoke")
    try:
        _refuse_misleading(program)
        asked = request(verbs, list(core.unparsed), output, help_for=program.args.help.value, list_below=listed)
    except PipelineError as error:
        output.error(error)
        raise Exit(code=error.exit_code) from None
    if asked is None:
        raise Exit(code=0)
    if core.remainder:
        output.say(f"note: {asked.task} does not read what follows --")
    core.unparsed = list(asked.words)


def complete(verbs: Sequence[Verb], argv: Sequence[str]) -> None:
    """Answers ``tma --complete`` and ``tma --print-completion-script=SHELL`` with Invoke's completion of these verbs."""
    program = Program(name="tma", binary="tma", namespace=collect(verbs))
    script = io.StringIO()
    # Invoke ends the program when it has printed; a reader that has gone must not be told.
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        program.run(list(argv))
    Output().text(script.getvalue().splitlines())


def _refuse_misleading(program: Program) -> None:
    for name in _MISLEADING:
        argument = program.args.get(name)
        if argument is not None and argument.got_value and argument.value:
            hint = " (did you mean --dry-run, after the task?)" if name == "dry" else ""
            raise refuse(f"Invoke's own --{name} has no meaning for these tasks{hint}")
