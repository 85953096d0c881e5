"""A verb: one function with a docstring, run by ``tma`` and, as a task, by stock Invoke.

The function's signature says which options there are (``Annotated[type, Option(help)]``; a default makes it optional,
a bool is a flag), its docstring is the help. ``--json`` is added to every verb, ``--dry-run`` to those that change
something, ``--yes`` to those that may ask. Whatever happens inside ends in one of the exit codes of
:mod:`pipeline.errors`.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from pipeline.command_line.output import Answer, Output
from pipeline.command_line.words import GUARD, Option, TaskWords, refuse
from pipeline.errors import (
    NOTHING_CHANGED,
    ConfigurationError,
    Failed,
    Interrupted,
    PipelineError,
    Reason,
    Refused,
    UsageError,
)

if TYPE_CHECKING:
    from pipeline.workflow import Session

JSON = Option("print one JSON object instead of text, errors too", name="json", flag=True)
DRY_RUN = Option("say what would happen and change nothing", name="dry-run", flag=True)
YES = Option("answer the question that is asked before what cannot be taken back", name="yes", flag=True)

MARK = Path("environments", "workspace.yaml")
"""What makes a folder a workspace."""

_BROKEN_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE})


def find_workspace(start: Path) -> Path | None:
    """The nearest folder from ``start`` upwards that holds ``environments/workspace.yaml``, None when none does."""
    start = start.absolute()
    return next((folder for folder in (start, *start.parents) if (folder / MARK).is_file()), None)


class Command:
    """One call of a verb: the workspace, the flags that every verb may have, and the person who typed it."""

    def __init__(self, verb: Verb, settings: Mapping[str, str], output: Output, given: Mapping[str, Any]) -> None:
        self.verb = verb
        self.output = output
        self.program = output.program
        self.dry_run: bool = bool(given.get("dry_run"))
        self.yes: bool = bool(given.get("yes"))
        self.acting = verb.changes and not verb.asks and not self.dry_run
        """Whether something may have changed already: decides what is said when the run is interrupted."""
        self._settings = settings
        self._session: Session | None = None

    @property
    def folder(self) -> Path:
        """The workspace; ConfigurationError when neither ``--workspace`` nor the current folder leads to one."""
        found = self.find_folder()
        if found is not None:
            return found
        named = self._settings.get("workspace")
        where = f"{named} is no workspace" if named else "there is no workspace here"
        raise ConfigurationError(
            where,
            reasons=[f"no {MARK} in {named or 'this folder or any above it'}"],
            next_commands=["tma --workspace=DIR …"],
        )

    def find_folder(self) -> Path | None:
        """The workspace, None when there is none."""
        named = self._settings.get("workspace")
        if named:
            folder = Path(named).absolute()
            return folder if (folder / MARK).is_file() else None
        start = self._settings.get("search_from") or os.curdir
        fallback = self._settings.get("fallback")
        return find_workspace(Path(start)) or (find_workspace(Path(fallback)) if fallback else None)

    @property
    def session(self) -> Session:
        """The workflow's session on the workspace, opened once. ``TMA_SIGNING_KEY`` (``file:PATH`` or ``env:NAME``) overrides
        the workspace's ``signing_key``."""
        if self._session is None:
            from pipeline.workflow import Session

            self._session = Session.open(
                self.folder, signing_key=os.environ.get("TMA_SIGNING_KEY") or None, progress=self.output.say
            )
        return self._session

    def conceal(self, text: str) -> str:
        """``text`` without the secrets that the session has resolved."""
        return text if self._session is None else self._session.conceal(text)

    def ask_before(self, environment: str, customer: str, rehearse: Callable[[], Answer]) -> None:
        """Has the customer's name retyped before its production is changed; UsageError (exit 2) unless it is.

        Nothing is asked in other environments, with ``--dry-run`` and with ``--yes``. The customer is looked up first,
        and ``rehearse`` gives the plan, which is shown before the question: nobody should retype a name that does not
        exist, or for what is refused anyway. Everything is looked at once more afterwards: an answer may take an hour.
        """
        name = self.session.workspace.customer(customer).customer.name
        if environment == "production" and not self.dry_run and not self.yes:
            self._confirm(customer, name, rehearse, f"{self.verb.name} changes production of {customer} ({name})")
        self.acting = not self.dry_run

    def ask_before_erasing(self, customer: str, rehearse: Callable[[], Answer]) -> None:
        """The same question before texts are erased for good, in any environment; also without a terminal only for what
        can be done at all."""
        name = self.session.workspace.customer(customer).customer.name
        if not self.dry_run and not self.yes:
            planned = rehearse()
            self._confirm(
                customer, name, lambda: planned, f"{self.verb.name} cannot be taken back, for {customer} ({name})"
            )
        self.acting = not self.dry_run

    def _confirm(self, customer: str, name: str, rehearse: Callable[[], Answer], what: str) -> None:
        if self.output.can_ask:
            self._show(rehearse(), customer)
        self._ask(customer, name, what)

    def _show(self, planned: Answer, customer: str) -> None:
        self.output.say("\n".join(planned.lines()))
        refusals = planned.model_dump(mode="json").get("refusals", ())
        if refusals:
            raise Refused(
                f"{self.verb.name} cannot be done for {customer}.",
                reasons=[Reason(refusal["text"], refusal["source"], refusal["rule"]) for refusal in refusals],
                next_commands=[f"invoke status customer={customer}"],
            )

    def _ask(self, customer: str, name: str, what: str) -> None:
        answer = self.output.ask(f"{what}. Type the customer's name to go on:")
        if answer is None and self.output.can_ask:
            raise UsageError(f"{what}, and no answer was given")
        if answer is None:
            raise UsageError(
                f"{what}, and there is no terminal to ask on",
                reasons=["without a terminal only --yes answers the question"],
                next_commands=[f"invoke {self.verb.name} customer={customer} … --yes"],
            )
        if answer not in {customer, name}:
            raise UsageError(f"the name typed is not {customer}: nothing was done")


class Verb:
    """A function with its options; whatever happens in it is printed, and ends in an exit code."""

    def __init__(
        self, body: Callable[..., Answer], *, name: str, group: str, changes: bool, asks: bool, dry_run: bool
    ) -> None:
        self.body = body
        self.path = name
        self.group = group
        self.changes = changes
        self.asks = asks
        self._rehearsed = dry_run

    @cached_property
    def options(self) -> dict[str, Option]:
        """The options by name, in the order of the help; read from the signature when first asked for."""
        return {
            **_options(self.body),
            **({"dry-run": DRY_RUN} if self._rehearsed else {}),
            **({"yes": YES} if self.asks else {}),
            "json": JSON,
        }

    @property
    def name(self) -> str:
        """The name as typed, dots included."""
        return self.path

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return (inspect.getdoc(self.body) or "").partition("\n")[0]

    @property
    def words(self) -> TaskWords:
        """What :func:`pipeline.command_line.words.read` needs to know."""
        first = next(iter(self.options))
        return TaskWords(self.path, self.options, None if self.options[first].flag else first)

    def run(self, settings: Mapping[str, str], given: Mapping[str, Any]) -> int:
        """Runs the verb, prints, and gives the exit code; raises nothing.

        ``given`` leads from an option's name, or its parameter's, to what was typed; ``settings`` are ``program``,
        ``workspace``, ``search_from``, ``fallback``, ``tasks``, and ``dry``, which says that Invoke was told to run nothing.
        """
        given = {name.replace("-", "_"): value for name, value in given.items()}
        output = Output(
            as_json=bool(given.get("json")),
            program=settings.get("program", "invoke"),
            tasks=settings.get("tasks", "").split(),
        )
        command = Command(self, settings, output, given)
        output.workspace = command.find_folder()
        try:
            with stoppable():
                self._refuse_invokes_dry_run(settings)
                with contextlib.redirect_stdout(sys.stderr):
                    answer = self.body(command, **self._arguments(given))
            output.result(answer)
        except (Exception, KeyboardInterrupt) as error:
            shown = self._as_ours(error, command, given)
            output.error(shown)
            return shown.exit_code
        return 0

    def _arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        for option in self.options.values():
            if option in (JSON, DRY_RUN, YES):
                continue
            parameter = option.name.replace("-", "_")
            value = given.get(parameter)
            parameter += "_" * iskeyword(parameter)
            if value is None or value == []:
                if option.required:
                    raise refuse(f"{self.path} needs {option.typed}{option.value}")
            elif option.flag:
                arguments[parameter] = value
            else:
                arguments[parameter] = self._converted(option, value)
        return arguments

    def _converted(self, option: Option, value: Any) -> Any:
        texts = [text.removeprefix(GUARD) for text in (value if isinstance(value, list) else [value])]
        if option.several and option.separator:
            texts = [piece.strip() for text in texts for piece in text.split(option.separator) if piece.strip()]
            if not texts:
                raise refuse(f"{self.path}: {option.typed} has no value")
        try:
            converted = [option.convert(text) for text in texts]
        except ValueError as error:
            raise refuse(f"{self.path}: {option.typed} {error}") from None
        return tuple(converted) if option.several else converted[0]

    def _refuse_invokes_dry_run(self, settings: Mapping[str, str]) -> None:
        # Invoke's --dry (also INVOKE_RUN_DRY and `run: dry` in its files) promises that nothing runs, and stops only
        # its own `run`.
        if self.changes and settings.get("dry"):
            raise refuse(f"{self.path}: Invoke's own dry mode has no meaning here: write {self.path} … --dry-run")

    def _as_ours(self, error: BaseException, command: Command, given: Mapping[str, Any]) -> PipelineError:
        if isinstance(error, PipelineError):
            return error
        if isinstance(error, KeyboardInterrupt):
            return interrupted(self.path, acting=command.acting)
        if isinstance(error, OSError) and error.errno in _BROKEN_MACHINE:
            return Failed(
                f"{self.path} met a limit of this machine",
                reasons=[f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)],
                state=_state(command.acting),
                next_commands=["invoke status"] if command.acting else [],
            )
        from pipeline.command_line.bug_report import report

        options = [name for name, value in given.items() if value not in (None, [], False)]
        return report(
            error,
            task=self.path,
            options=options,
            workspace=command.find_folder(),
            changing=command.acting,
            conceal=command.conceal,
        )


class Verbs(Mapping[str, TaskWords]):
    """The words of verbs by name, each read from its verb's signature only when it is asked for."""

    def __init__(self, verbs: Iterable[Verb]) -> None:
        self._verbs = {verb.path: verb for verb in verbs}

    def __getitem__(self, name: str) -> TaskWords:
        return self._verbs[name].words

    def __iter__(self) -> Iterator[str]:
        return iter(self._verbs)

    def __len__(self) -> int:
        return len(self._verbs)

    def __contains__(self, name: object) -> bool:
        return name in self._verbs


def verb(
    group: str, name: str, *, changes: bool = True, asks: bool = False, dry_run: bool | None = None
) -> Callable[[Callable[..., Answer]], Verb]:
    """Makes a verb of a function that takes a :class:`Command` and its options, and gives a result of the workflow.

    ``name`` is what one types, with its dots; ``group`` one of :data:`pipeline.command_line.guide.GROUPS`. ``changes``
    False for what only reads; ``asks`` for what may have a question answered by ``--yes``; ``dry_run`` False for what
    changes something and cannot be rehearsed. A bare word fills the first option.
    """
    rehearsed = changes if dry_run is None else dry_run

    def made(body: Callable[..., Answer]) -> Verb:
        return Verb(body, name=name, group=group, changes=changes, asks=asks, dry_run=rehearsed)

    return made


def interrupted(task: str, *, acting: bool) -> Interrupted:
    """The error for a run that a person or a signal stopped (exit 130)."""
    return Interrupted(
        f"{task} was stopped",
        state=_state(acting),
        next_commands=["invoke status"] if acting else [],
    )


def _state(acting: bool) -> str:
    if not acting:
        return NOTHING_CHANGED
    return "What was recorded stands; the same command, given again, takes up from there."


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP end the run as Ctrl-C does, so that locks are given back and the state is said."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _options(body: Callable[..., Answer]) -> dict[str, Option]:
    hints = get_type_hints(body, include_extras=True)
    options: dict[str, Option] = {}
    for parameter in list(inspect.signature(body).parameters.values())[1:]:
        hint = hints[parameter.name]
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        option = next((mark for mark in marks if isinstance(mark, Option)), None)
        if option is None:
            raise TypeError(f"{body.__name__}: {parameter.name} needs Annotated[…, Option(help)]")
        # A word of Python's own ends in "_" as a parameter's name: from_ is typed from=.
        name = parameter.name.removesuffix("_").replace("_", "-")
        options[name] = Option(
            **{
                **vars(option),
                "name": name,
                "flag": get_args(hint)[0] is bool,
                "required": parameter.default is inspect.Parameter.empty,
            }
        )
    return options
