"""The console script ``tma``, and what makes stock Invoke safe: both read every word here before anything runs.

``tma`` takes its tasks from the package and works on any workspace folder. Stock ``invoke`` imports a ``tasks.py``
after it has read its own flags and before it reads the words of the tasks; :func:`adopt`, called at that file's end,
puts words in their place that it cannot misread, or ends the program.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import invoke.main
from invoke.collection import Collection
from invoke.completion.complete import print_completion_script
from invoke.config import Config
from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.program import Program

from pipeline.command_line.guide import task_help, task_list
from pipeline.command_line.output import Output, program_name
from pipeline.command_line.verb import Verb, interrupted, stoppable
from pipeline.command_line.words import read, refuse, shown, wants_json
from pipeline.errors import PipelineError
from pipeline.suggest import nearest

_KEPT = frozenset(
    {"complete", "debug", "help", "list", "list-depth", "list-format", "print-completion-script", "version"}
)
"""Flags of Invoke's own that ``tma`` keeps; the others speak of shell commands, which no verb runs through Invoke."""

_MISLEADING = ("dry", "echo", "pty", "hide", "warn-only", "command-timeout")
"""Flags of stock Invoke that promise something about what runs, and would keep none of it here."""

_CORE_HELP = (
    ("--workspace=DIR", "the workspace; else the nearest folder upwards that holds environments/workspace.yaml"),
    ("--help, -h", "this list; before or after a task: its help"),
    ("--version, -V", "the version"),
    ("--print-completion-script=SHELL", "completion for bash, zsh or fish"),
)


def verbs_of(namespace: Collection) -> dict[str, Verb]:
    """Every verb of a collection by its full name, in the order in which :func:`collect` was given them."""
    verbs = [task for task in namespace.tasks.values() if isinstance(task, Verb)]
    for collection in namespace.collections.values():
        verbs += verbs_of(collection).values()
    return {verb.path: verb for verb in sorted(verbs, key=lambda verb: verb.position)}


def collect(verbs: Iterable[Verb]) -> Collection:
    """The collection that holds these verbs, a sub-collection for what stands before a name's dot."""
    namespace = Collection()
    for position, verb in enumerate(verbs):
        verb.position = position
        holder, _, name = verb.path.rpartition(".")
        inner = namespace
        if holder:
            if holder not in namespace.collections:
                namespace.add_collection(Collection(holder))
            inner = namespace.collections[holder]
        inner.add_task(verb, name=name)
    return namespace


def settle(program: Program, namespace: Collection, *, typed: str, as_json_list: bool = False) -> None:
    """Leaves in ``program.core.unparsed`` only words that Invoke cannot misread; prints lists and help itself.

    Raises :class:`invoke.Exit` when there is nothing left to run: 0 after a list or a help, 2 after a refusal. What
    followed ``--`` is in ``program.core.remainder`` and is left alone.
    """
    core = program.core
    if program.args.complete.value:
        return
    words = list(core.unparsed)
    output = Output(as_json=wants_json(words), program=typed)
    verbs = verbs_of(namespace)
    try:
        _refuse_misleading(program)
        listed = program.args.list.value
        if listed:
            if as_json_list and program.args["list-format"].value == "json":
                return
            output.text(task_list(_within(verbs, listed), typed))
            raise Exit(code=0)
        asked = program.args.help.value
        request = read(
            words,
            {path: verb.words for path, verb in verbs.items()},
            help_for=asked if isinstance(asked, str) else None,
        )
        if request.task is None:
            output.text(task_list(verbs.values(), typed, core_options=_CORE_HELP if typed != "invoke" else ()))
            raise Exit(code=0)
        if request.help:
            output.text(task_help(verbs[request.task], typed))
            raise Exit(code=0)
    except PipelineError as error:
        output.error(error)
        raise Exit(code=error.exit_code) from None
    if core.remainder:
        output.say(f"note: {request.task} does not read what follows --")
    core.unparsed = list(request.words)


def adopt(namespace: Collection, folder: Path) -> None:
    """Makes the running ``invoke`` read its words as ``tma`` does; call it at the end of a ``tasks.py``.

    ``folder`` is the folder of that file, taken as the workspace when none is found from the current folder upwards.
    Does nothing when the file was not imported by the ``invoke`` program.
    """
    program = invoke.main.program
    if getattr(program, "core", None) is None:
        return
    root = program.args["search-root"].value
    namespace.configure(
        {
            "tma": {
                "program": "invoke",
                "workspace": "",
                "search_from": root or os.curdir,
                "fallback": str(folder),
                "tasks": " ".join(verbs_of(namespace)),
            }
        }
    )
    settle(program, namespace, typed="invoke", as_json_list=True)


class TmaConfig(Config):
    """Invoke's configuration under our own name, so that a person's ``invoke.yaml`` changes nothing here."""

    prefix = "tma"


class TmaProgram(Program):
    """``tma``: the package's own tasks on any workspace folder."""

    def core_args(self) -> list[Argument]:
        """Invoke's flags that mean something here, and ``--workspace``."""
        kept = [argument for argument in super().core_args() if argument.name in _KEPT]
        return [*kept, Argument(names=("workspace",), help="the workspace folder")]

    def parse_core(self, argv: list[str] | None) -> None:
        """Reads the flags before the task. Invoke's own version also turns off the writing of ``.pyc`` files."""
        self.normalize_argv(argv)
        self.parse_core_args()
        if self.args.version.value:
            self.print_version()
            raise Exit
        if self.args["print-completion-script"].value:
            script = io.StringIO()
            with contextlib.redirect_stdout(script):
                print_completion_script(shell=self.args["print-completion-script"].value, names=self.binary_names)
            Output().text(script.getvalue().splitlines())
            raise Exit

    def parse_tasks(self) -> None:
        """Reads the words after it."""
        workspace = self.args.workspace.value or ""
        typed = program_name("tma", *(["--workspace", workspace] if workspace else []))
        self.collection.configure(
            {
                "tma": {
                    "program": typed,
                    "workspace": workspace,
                    "search_from": os.curdir,
                    "fallback": "",
                    "tasks": " ".join(verbs_of(self.collection)),
                }
            }
        )
        settle(self, self.collection, typed=typed)
        super().parse_tasks()

    def update_config(self, merge: bool = True) -> None:
        """Nothing: the flags that it would read are not there."""
        self.config.merge()


def run(namespace: Collection, argv: list[str] | None = None) -> None:
    """The console script, with the tasks that it offers; ends the process with the verb's exit code."""
    program = TmaProgram(
        name="tma", binary="tma", version=version("tma-pipeline"), namespace=namespace, config_class=TmaConfig
    )
    try:
        with stoppable():
            program.run(argv)
    except KeyboardInterrupt:
        error = interrupted("tma", acting=False)
        Output(as_json=wants_json(argv or sys.argv)).error(error)
        sys.exit(error.exit_code)


def _refuse_misleading(program: Program) -> None:
    for name in _MISLEADING:
        argument = program.args.get(name)
        if argument is not None and argument.got_value and argument.value:
            hint = " (did you mean --dry-run, after the task?)" if name == "dry" else ""
            raise refuse(f"Invoke's own --{name} has no meaning for these tasks{hint}")


def _within(verbs: dict[str, Verb], root: str | bool) -> list[Verb]:
    if not isinstance(root, str):
        return list(verbs.values())
    inside = [verb for path, verb in verbs.items() if path == root or path.startswith(f"{root}.")]
    if not inside:
        best = nearest(root, {path.partition(".")[0] for path in verbs})
        raise refuse(f"no task begins with {shown(root)}" + (f" (did you mean {best}?)" if best else ""))
    return inside
