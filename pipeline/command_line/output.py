"""The result to standard output, everything else to standard error; with ``--json`` exactly one object.

Nothing here fails because nobody reads: a deployment must not stop half-way because the terminal that showed its
progress has gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TextIO

from pipeline.errors import NOTHING_CHANGED, SCHEMA_VERSION, Failed, PipelineError, UsageError, next_lines

_READABLE = 500_000
"""Characters of JSON up to which it is indented: of more nobody reads every line, and it takes ten times as long."""

_EDITED = re.compile(r"(\$\{EDITOR:-vi\} \+\d+ )([^/~].*)")


class Answer(Protocol):
    """What a verb gives back: a Result of :mod:`pipeline.workflow`."""

    @property
    def changed(self) -> bool:
        """Whether anything is different now."""

    @property
    def next_commands(self) -> tuple[str, ...]:
        """What to type next."""

    @property
    def in_order(self) -> bool:
        """Whether the next commands are steps, one after the other, and not alternatives."""

    def lines(self) -> list[str]:
        """The result as text for a person."""

    def model_dump(self, *, mode: str = ...) -> dict[str, Any]:
        """The result as JSON values, with ``mode="json"``."""


def plain(text: str) -> str:
    """``text`` with every control character but newline and tab written out: a ticket's text must not drive a terminal."""
    return "".join(character if _is_harmless(character) else _written_out(character) for character in text)


def _is_harmless(character: str) -> bool:
    if character < "\xa0":
        return " " <= character <= "~" or character in "\n\t"
    # Bidirectional controls (Unicode TR 36, 3.1) reorder what is seen; lone surrogates cannot be encoded.
    return not (
        character in "\u061c\u200e\u200f\u2028\u2029"
        or "\u202a" <= character <= "\u202e"
        or "\u2066" <= character <= "\u2069"
        or "\ud800" <= character <= "\udfff"
    )


def _written_out(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) <= 0xFF else f"\\u{ord(character):04x}"


class Output:
    """Where one command prints.

    ``program`` is how it was called, for the commands that it suggests; ``tasks`` are the names of the verbs, by which a
    suggestion within a sentence is recognised. ``workspace`` is the folder from which places in files are named, None
    when it is the current one.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        program: str = "invoke",
        tasks: Iterable[str] = (),
        workspace: Path | None = None,
    ) -> None:
        self.as_json = as_json
        self.program = program
        self.workspace = workspace
        self._tasks = tuple(tasks)
        self._out = sys.stdout
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="backslashreplace")

    def typed(self, command: str) -> str:
        """``command`` as this person would type it, here: ``tma …`` for whoever called ``tma``."""
        if command.startswith("invoke "):
            return f"{self.program}{command[6:]}"
        opened = _EDITED.fullmatch(command)
        if opened is not None and self.workspace is not None:
            return f"{opened[1]}{shlex.quote(os.path.relpath(self.workspace / opened[2]))}"
        return self.worded(command)

    def worded(self, sentence: str) -> str:
        """A sentence of ours, with the commands in it as this person would type them."""
        if not self._tasks or self.program == "invoke" or "invoke " not in sentence:
            return sentence
        return self._suggested.sub(lambda _: f"{self.program} ", sentence)

    @cached_property
    def _suggested(self) -> re.Pattern[str]:
        known = "|".join(re.escape(task) for task in sorted(self._tasks, key=len, reverse=True))
        return re.compile(rf"(?<![\w./-])invoke (?=(?:{known})(?![\w-]|\.\w))")

    def result(self, answer: Answer) -> None:
        """Prints a result; Failed when standard output takes nothing (a full disk), never for a closed pipe."""
        following = [self.typed(command) for command in answer.next_commands]
        if self.as_json:
            head = {"schema_version": SCHEMA_VERSION, "ok": True, "changed": answer.changed}
            ending = {"next": following, "next_in_order": answer.in_order}
            self._object({**head, **answer.model_dump(mode="json"), **head, **ending})
            return
        self.text(answer.lines())
        for line in next_lines(following, in_order=answer.in_order):
            self.say(line)

    def error(self, error: PipelineError) -> None:
        """Prints an error: as text to standard error, with ``--json`` as the one object on standard output as well."""
        error.next_commands = tuple(self.typed(command) for command in error.next_commands)
        error.reasons = tuple(replace(reason, text=self.worded(reason.text)) for reason in error.reasons)
        error.what, error.state = self.worded(error.what), self.worded(error.state)
        self.say(error.render())
        if not self.as_json:
            return
        untouched = isinstance(error, UsageError) or error.state == NOTHING_CHANGED
        # When standard output takes nothing, the text is on standard error already, and the first error's code counts.
        with contextlib.suppress(Failed):
            self._object({**error.as_json(), "changed": False if untouched else None})

    def text(self, lines: Sequence[str]) -> None:
        """Lines for standard output."""
        self._write(self._out, plain("\n".join(lines)) + "\n")

    def say(self, text: str) -> None:
        """A line for standard error: progress, a warning, a question; never fails."""
        stream = sys.stderr
        if stream is None:
            return
        try:
            stream.write(plain(text) + "\n")
            stream.flush()
        except (OSError, ValueError):
            _silence(stream)

    @property
    def can_ask(self) -> bool:
        """Whether there is a terminal to ask on."""
        return _is_terminal(sys.stdin) and _is_terminal(sys.stderr)

    def ask(self, question: str) -> str | None:
        """The line that a person types in answer; None without a terminal, or when it ends (Ctrl-D) without an answer."""
        if not self.can_ask:
            return None
        sys.stderr.write(plain(question) + " ")
        sys.stderr.flush()
        answer = ""
        try:
            answer = sys.stdin.readline()
        finally:
            if not answer.endswith("\n"):  # Ctrl-C, Ctrl-D: what follows begins on a line of its own
                self.say("")
        return answer.strip() if answer else None

    def _object(self, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, default=str)
        if len(text) <= _READABLE:
            text = json.dumps(value, indent=2, default=str)
        self._write(self._out, text + "\n")

    def _write(self, stream: TextIO | None, text: str) -> None:
        if stream is None:
            return
        try:
            stream.write(text)
            stream.flush()
        except BrokenPipeError:
            _silence(stream)
        except (OSError, ValueError) as error:
            _silence(stream)
            raise Failed(
                "the result could not be written to standard output",
                reasons=[str(error)],
                state="The command itself was carried out; only its result is not shown.",
            ) from error


def program_name(name: str, *options: str) -> str:
    """A program and its options as one would type them."""
    return " ".join([name, *(shlex.quote(option) for option in options)])


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _silence(stream: TextIO) -> None:
    # Python flushes at exit, and would complain then about what is known now.
    try:
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    except (OSError, ValueError):
        pass
