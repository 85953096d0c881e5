"""What the typed words mean: ``promote acme``, ``customer=acme`` and ``--customer acme`` alike; anything else refused.

Pure: words in, words out. Invoke's own parser takes ``--dryrun`` for a value, lets a value be mistaken for a flag, and
gives flags of its own (``--dry``) a meaning that is not ours; so every word is read here first. ``tma`` then calls the
verb with what was given; stock Invoke gets only the one form that it cannot misread: ``--key=`` + :data:`GUARD` + value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import UsageError
from pipeline.suggest import nearest

GUARD = "\0"
"""Put before every value handed to Invoke, so that ``text=--json`` stays a value: no typed word can hold a NUL byte."""

_YES = {"yes": True, "true": True, "no": False, "false": False}
_LONGEST_SHOWN = 60


@dataclass(frozen=True)
class Option:
    """One option of a verb; ``Annotated[str, Option("what it is for")]`` in the verb's signature.

    ``value`` stands for the value in the help; ``convert`` makes the function's argument of the typed text and raises
    ValueError with a sentence when it cannot. ``several`` options may be given again, and each value is cut at
    ``separator`` where there is one. ``blank`` says that an empty value means something (a text left empty): for all
    others ``release=$UNSET`` is refused, since it would silently mean the default. ``name``, ``flag`` and ``required``
    are filled in from the signature.
    """

    help: str
    value: str = "WORD"
    convert: Callable[[str], Any] = str
    several: bool = False
    separator: str | None = ","
    blank: bool = False
    name: str = ""
    flag: bool = False
    required: bool = False

    @property
    def typed(self) -> str:
        """The option as one types it: ``customer=`` or ``--dry-run``."""
        return f"--{self.name}" if self.flag else f"{self.name}="


@dataclass(frozen=True)
class TaskWords:
    """The words that one task understands; ``first`` is the option that a bare word fills."""

    name: str
    options: Mapping[str, Option]
    first: str | None = None


@dataclass(frozen=True)
class Request:
    """What was asked for: ``task`` None means the list of tasks.

    ``given`` leads from an option's name to its texts, or to True or False for a flag; ``words`` say the same in the form
    that is safe to hand to Invoke.
    """

    task: str | None
    words: tuple[str, ...] = ()
    help: bool = False
    given: Mapping[str, list[str] | bool] = field(default_factory=dict)


def refuse(sentence: str) -> UsageError:
    """The error for words that cannot be understood: one line, nothing else."""
    return UsageError(sentence, state="")


def shown(word: str) -> str:
    """``word`` in quotes for a message: cut when long, control characters written out."""
    return repr(word if len(word) <= _LONGEST_SHOWN else word[: _LONGEST_SHOWN - 1] + "…")


def wants_json(words: Iterable[str]) -> bool:
    """Whether these words ask for JSON, even when they cannot be read otherwise: errors are JSON then too."""
    return any(word in {"--json", "json=yes", "json=true", "--json=yes", "--json=true"} for word in words)


def find_task(name: str, tasks: Mapping[str, TaskWords]) -> TaskWords:
    """The task of exactly this name; UsageError with the nearest one otherwise."""
    if name in tasks:
        return tasks[name]
    inside = sorted(task for task in tasks if task.startswith(f"{name}."))
    if inside:
        raise refuse(f"no task is called {shown(name)} (did you mean {' or '.join(inside)}?)")
    best = nearest(name, tasks)
    if best is None:  # `page` for `signoff.page`: the last part alone is near enough to be worth naming
        last = {task.rpartition(".")[2]: task for task in sorted(tasks, reverse=True)}
        best = last.get(nearest(name, last) or "")
    tail = f"did you mean {best}?" if best else "the command without any word lists the tasks"
    raise refuse(f"no task is called {shown(name)} ({tail})")


def read(words: Sequence[str], tasks: Mapping[str, TaskWords], *, help_for: str | None = None) -> Request:
    """What ``words`` ask for; UsageError (one line, with the nearest match) when any of them is not understood.

    ``words`` are what Invoke left: everything from the first word that is no flag of its own, without what follows
    ``--``. ``help_for`` is the task named by a ``--help`` before it. Nothing is guessed: a word that could be read in
    two ways is refused with the two ways to write it.
    """
    if help_for is not None:
        return Request(find_task(help_for, tasks).name, help=True)
    if not words:
        return Request(None)
    name, rest = words[0], words[1:]
    if name.startswith("-"):
        raise refuse(_flag_before_task(name, rest, tasks))
    if name not in tasks and "=" in name:
        raise refuse(f"{shown(name)} comes before any task: the task is the first word")
    task = find_task(name, tasks)
    if any(word in {"--help", "-h"} for word in rest):
        return Request(task.name, help=True)
    reader = _Reader(task, tasks)
    words_for_invoke = reader.read(rest)
    return Request(task.name, (task.name, *words_for_invoke), given={**reader.values, **reader.flags})


def _flag_before_task(flag: str, rest: Sequence[str], tasks: Mapping[str, TaskWords]) -> str:
    named = next((tasks[word] for word in rest if word in tasks), None)
    stem = flag.lstrip("-").partition("=")[0].replace("_", "-")
    if named is not None:
        best = nearest(stem, named.options)
        if best == stem:
            return f"{flag} comes after the task: {named.name} … {flag}"
        if best is not None:
            return f"nothing is called {shown(flag)} (did you mean {named.name} … {named.options[best].typed}?)"
    best = nearest(stem, ("help", "list", "version", "workspace"))
    return f"nothing is called {shown(flag)}" + (f" (did you mean --{best}?)" if best else "")


class _Reader:
    """Reads the words after one task's name."""

    def __init__(self, task: TaskWords, tasks: Mapping[str, TaskWords]) -> None:
        self.task = task
        self.tasks = tasks
        self.values: dict[str, list[str]] = {}
        self.flags: dict[str, bool] = {}

    def read(self, words: Sequence[str]) -> list[str]:
        """The words for Invoke."""
        for word in words:
            try:
                word.encode()
            except UnicodeEncodeError:
                raise refuse(f"{self.task.name}: a word is not valid UTF-8: {shown(word)}") from None
        waiting = list(words)
        while waiting:
            word = waiting.pop(0)
            if word.startswith("-"):
                self._dashed(word, waiting)
            elif "=" in word:
                key, _, value = word.partition("=")
                self._keyed(self._option(key, word), value, word)
            else:
                self._bare(word)
        ready = [f"--{name}={GUARD}{value}" for name, values in self.values.items() for value in values]
        return ready + [f"--{name}" for name, given in self.flags.items() if given]

    def _dashed(self, word: str, waiting: list[str]) -> None:
        if word.startswith("--") and "=" in word:
            key, _, value = word[2:].partition("=")
            self._keyed(self._option(key, word), value, word)
            return
        option = self._option(word[2:], word) if word.startswith("--") else None
        if option is None:
            raise refuse(self._unknown(word, word.lstrip("-")))
        if option.flag:
            self._flag(option, True)
            return
        if not waiting:
            raise refuse(f"{self.task.name}: {word} needs a value: {option.typed}{option.value}")
        value = waiting.pop(0)
        if value.startswith("-") or ("=" in value and value.partition("=")[0] in self.task.options):
            raise refuse(
                f"{self.task.name}: {word} needs a value, and {shown(value)} looks like an option;"
                f" when it is the value, write {shown(option.typed + value)}"
            )
        self._value(option, value)

    def _keyed(self, option: Option, value: str, word: str) -> None:
        if not option.flag:
            self._value(option, value)
        elif value.lower() in _YES:
            self._flag(option, _YES[value.lower()])
        else:
            raise refuse(f"{self.task.name}: {shown(word)} is neither yes nor no: write {option.typed}")

    def _bare(self, word: str) -> None:
        first = self.task.first
        if word in self.task.options:
            option = self.task.options[word]
            hint = option.typed if option.flag else f"{option.typed}{option.value}"
            raise refuse(f"{self.task.name}: {shown(word)} is an option: write {hint}")
        if word in self.tasks:
            hint = f"; a {first} of that name is written {first}={word}" if first else ""
            raise refuse(f"one task at a time: {shown(word)} after {self.task.name} is a task too{hint}")
        if first is None:
            raise refuse(f"{self.task.name}: {shown(word)} is not understood ({self._known()})")
        if first in self.values:
            raise refuse(
                f"{self.task.name}: {shown(word)} is not understood, {first} is {shown(self.values[first][0])} already"
                f" ({self._tail(word)})"
            )
        self._value(self.task.options[first], word)

    def _value(self, option: Option, value: str) -> None:
        if not value and not option.blank:
            hint = "" if option.required else "; leave it out for the default"
            if option.value == "REASON" and not option.required:
                hint = ": it needs a reason, which is recorded"
            raise refuse(f"{self.task.name}: {option.typed} has no value{hint}")
        if option.name in self.values and not option.several:
            raise refuse(
                f"{self.task.name}: {option.typed} is given twice:"
                f" {shown(self.values[option.name][0])} and {shown(value)}"
            )
        self.values.setdefault(option.name, []).append(value)

    def _flag(self, option: Option, given: bool) -> None:
        if self.flags.setdefault(option.name, given) is not given:
            raise refuse(f"{self.task.name}: {option.typed} is given as yes and as no")

    def _option(self, key: str, word: str) -> Option:
        if key not in self.task.options:
            raise refuse(self._unknown(word, key))
        return self.task.options[key]

    def _unknown(self, word: str, key: str) -> str:
        typed = word if word.startswith("-") and "=" not in word else word.partition("=")[0] + "="
        return f"{self.task.name} has no option {shown(typed)} ({self._tail(key)})"

    def _tail(self, key: str) -> str:
        if key == "workspace":
            return "did you mean tma --workspace=DIR, before the task?"
        best = nearest(key.replace("_", "-"), self.task.options)
        return f"did you mean {self.task.options[best].typed}?" if best else self._known()

    def _known(self) -> str:
        return "known: " + " ".join(option.typed for option in self.task.options.values())
