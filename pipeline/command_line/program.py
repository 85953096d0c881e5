"""The console script ``tma``: it takes its tasks from the package and works on any workspace folder.

It reads every word itself and calls the verb, without Invoke, whose import takes longer than most commands: only shell
completion loads it. :mod:`pipeline.command_line.invoked` gives the same verbs to stock ``invoke``; both go through
:func:`request`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.command_line.output import Output, program_name
from pipeline.command_line.verb import Verb, Verbs, interrupted, stoppable
from pipeline.command_line.words import Request, read, refuse, shown, wants_json
from pipeline.errors import PipelineError
from pipeline.suggest import nearest

CORE_HELP = (
    ("--workspace=DIR", "the workspace; else the nearest folder upwards that holds environments/workspace.yaml"),
    ("--help, -h", "this list; before or after a task: its help"),
    ("--version, -V", "the version"),
    ("--print-completion-script=SHELL", "completion for bash, zsh or fish"),
)
"""The flags of ``tma`` that come before the task, with their help."""

COLLECT_AFTER = 50_000
"""Objects after which Python looks for circles among them that nothing leads to any more. A command makes some hundred
thousand that stay (most of them while modules are imported) and next to none in circles: looking each 700 is a tenth of it."""

_COMPLETING = ("--complete", "--print-completion-script")


def run(verbs: Sequence[Verb], argv: Sequence[str] | None = None, *, version: str | None = None) -> None:
    """The console script; ends the process with the verb's exit code. ``version`` is that of the package unless given."""
    words = list(sys.argv if argv is None else argv)
    gc.set_threshold(COLLECT_AFTER)
    try:
        with stoppable():
            code = _run(verbs, words, version)
    except KeyboardInterrupt:
        error = interrupted("tma", acting=False)
        Output(as_json=wants_json(words)).error(error)
        code = error.exit_code
    except PipelineError as error:
        # The words could not be read, or standard output takes nothing.
        Output(as_json=wants_json(words)).error(error)
        code = error.exit_code
    sys.exit(code)


@dataclass
class _Core:
    """The flags before the task; ``rest`` begins with the task, ``remainder`` is what followed ``--``."""

    workspace: str = ""
    help: str | bool = False
    list: str | bool = False
    version: bool = False
    rest: tuple[str, ...] = ()
    remainder: tuple[str, ...] = ()


def _run(verbs: Sequence[Verb], argv: Sequence[str], version: str | None) -> int:
    words = argv[1:]
    if words and words[0].partition("=")[0] in _COMPLETING:
        from pipeline.command_line.invoked import complete

        complete(verbs, argv)
        return 0
    core = _core(words)
    typed = program_name("tma", *(["--workspace", core.workspace] if core.workspace else []))
    output = Output(as_json=wants_json(core.rest), program=typed)
    if core.version:
        if version is None:
            from importlib.metadata import version as version_of

            version = version_of("tma-pipeline")
        output.text([f"tma {version}"])
        return 0
    asked = request(verbs, core.rest, output, help_for=core.help, list_below=core.list, core_options=CORE_HELP)
    if asked is None or asked.task is None:
        return 0
    if core.remainder:
        output.say(f"note: {asked.task} does not read what follows --")
    settings = {
        "program": typed,
        "workspace": core.workspace,
        "search_from": os.curdir,
        "tasks": " ".join(verb.path for verb in verbs),
        "dry": os.environ.get("TMA_RUN_DRY", ""),
    }
    verb = next(verb for verb in verbs if verb.path == asked.task)
    return verb.run(settings, asked.given)


def request(
    verbs: Sequence[Verb],
    words: Sequence[str],
    output: Output,
    *,
    help_for: str | bool = False,
    list_below: str | bool = False,
    core_options: Sequence[tuple[str, str]] = (),
) -> Request | None:
    """What the words from the task on ask for; None when that was a list or a help, which is printed then.

    ``help_for`` and ``list_below`` are what stood behind ``--help`` and ``--list`` before the task, or True without a
    word. UsageError when a word is not understood.
    """
    if list_below:
        _print_list(_within(verbs, list_below), output)
        return None
    asked = read(words, Verbs(verbs), help_for=help_for if isinstance(help_for, str) else None)
    if asked.task is None:
        _print_list(verbs, output, core_options)
        return None
    if asked.help:
        from pipeline.command_line.guide import task_help

        verb = next(verb for verb in verbs if verb.path == asked.task)
        output.text(task_help(verb, output.program))
        return None
    return asked


def _print_list(verbs: Sequence[Verb], output: Output, core_options: Sequence[tuple[str, str]] = ()) -> None:
    from pipeline.command_line.guide import task_list

    output.text(task_list(verbs, output.program, core_options=core_options))


def _within(verbs: Sequence[Verb], root: str | bool) -> Sequence[Verb]:
    if not isinstance(root, str):
        return verbs
    inside = [verb for verb in verbs if verb.path == root or verb.path.startswith(f"{root}.")]
    if not inside:
        best = nearest(root, {verb.path.partition(".")[0] for verb in verbs})
        raise refuse(f"no task begins with {shown(root)}" + (f" (did you mean {best}?)" if best else ""))
    return inside


def _core(words: Sequence[str]) -> _Core:
    """The flags of ours before the task; a flag that is not one of them is left for :func:`read` to refuse."""
    core = _Core()
    waiting = list(words)
    if "--" in waiting:
        cut = waiting.index("--")
        core.remainder, waiting = tuple(waiting[cut + 1 :]), waiting[:cut]
    while waiting and waiting[0].startswith("-"):
        flag, equals, value = waiting[0].partition("=")
        if flag == "--workspace":
            waiting.pop(0)
            core.workspace = value if equals else waiting.pop(0) if waiting else ""
            if not core.workspace:
                raise refuse("--workspace needs a folder: --workspace=DIR")
        elif flag in {"--help", "-h", "--list", "-l"}:
            waiting.pop(0)
            # A word behind it is what the help, or the list, is asked for.
            named = value if equals else waiting.pop(0) if waiting and not waiting[0].startswith("-") else True
            if flag in {"--help", "-h"}:
                core.help = named
            else:
                core.list = named
        elif waiting[0] in {"--version", "-V"}:
            waiting.pop(0)
            core.version = True
        else:
            break
    core.rest = tuple(waiting)
    return core
