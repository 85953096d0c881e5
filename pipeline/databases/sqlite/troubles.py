"""What the program on the host says went wrong, as the errors of :mod:`~.script_errors`."""

from __future__ import annotations

from typing import Any

from pipeline.databases.script_errors import ScriptErrors
from pipeline.errors import PipelineError
from pipeline.model import Script


def trouble_of(
    errors: ScriptErrors,
    answer: dict[str, Any],
    script: Script | None,
    *,
    fence: int,
    patience: float,
    name: str,
    resume_at: int | None,
) -> PipelineError:
    """The error that ``answer`` (``kind``, ``message`` and what belongs to them) stands for.

    ``script`` is the one that was to run; a repair knows only the ``name`` of one, and the statement to ``resume_at``.
    """
    kind, message = answer["kind"], answer.get("message", "")
    if kind == "locked":
        return errors.locked(message, patience)
    if kind == "newer":
        return errors.newer(answer["found"])
    if kind == "stale":
        return errors.stale(fence, answer["highest"])
    if kind == "unknown-script":
        return errors.no_row(name)
    if kind == "not-blocked":
        return errors.not_blocked(name)
    if kind == "session":
        return errors.not_resumable(name)
    if kind == "no-such-statement":
        return errors.no_statement(name, resume_at, answer["statements"])
    if script is not None:
        return _of_script(errors, answer, script) or errors.unreadable(message, code=answer.get("code"))
    return errors.unreadable(message, code=answer.get("code"))


def _of_script(errors: ScriptErrors, answer: dict[str, Any], script: Script) -> PipelineError | None:
    kind, message, line = answer["kind"], answer.get("message", ""), answer.get("line")
    if answer.get("verify"):
        words = f"line {line}: statement {answer['number']} ({answer['words']}): {_said(answer)}"
        statements = answer["statements"] if answer.get("stopped") else None
        return errors.not_verified(script, words, code=answer.get("code"), statements=statements)
    if kind == "contradicts":
        return errors.contradicts(script, line=answer["line"])
    if answer.get("stopped"):
        return _stopped(errors, answer, script)
    if kind == "edited":
        return errors.edited(script, answer["checksum"])
    if kind == "blocked":
        return errors.blocked(script, answer["statement"], answer["statements"])
    if kind == "own-commit":
        return errors.own_commit(script, message, line=line)
    if kind == "own-history":
        return errors.own_history(script, message, line=line)
    if kind == "escaped":
        return errors.escaped(script)
    if kind == "not-in-transaction":
        why = "SQLite does not do it in a transaction, and the script is declared to run in one"
        return errors.needs_header(script, message, why, "-- tma: transaction=no", line=answer["line"])
    if kind == "busy":
        words = f"{message}; a lock of another connection was in the way {answer['attempts']} times"
        return errors.failed(script, words, code=answer.get("code"))
    if kind in {"script", "outside", "client-command", "schema"}:
        place = {name: answer.get(name) for name in ("number", "line", "words", "code")}
        return errors.failed(script, _said(answer), **place)
    return None


def _stopped(errors: ScriptErrors, answer: dict[str, Any], script: Script) -> PipelineError:
    """A script that commits statement by statement: it goes on after the last one whose counter is committed."""
    if answer["kind"] == "uncounted":
        number, count = answer["number"], answer["statements"]
        return errors.uncounted(script, answer["message"], number=number, statements=count, code=answer.get("code"))
    following, number = answer["statement"] + 1, answer.get("number")
    message, words = _said(answer), answer.get("words")
    if number is not None and number != following:
        message, words = f"statement {number} ({words}): {message}; its own transaction was rolled back", None
    return errors.stopped(
        script,
        message,
        number=following,
        statements=answer["statements"],
        line=answer.get("line"),
        words=words,
        code=answer.get("code"),
        uncertain=answer["kind"] == "middle",
    )


def _said(answer: dict[str, Any]) -> str:
    """What is wrong with the statement, as a sentence without a stop."""
    message: str = answer.get("message", "")
    said = {
        "outside": f"{message} reaches out of the database's own file",
        "client-command": f"{message} is a command of the sqlite3 program, and not SQL",
        "own-history": f"{message} is written by the pipeline only",
        "schema": f"{message} lets a script change what SQLite knows of any table, the history's among them",
        "middle": "the script cannot go on in the middle of a transaction of its own, only with the BEGIN of it",
        "own-commit": f"{message} ends the transaction",
        "left-open": "the script ends without ending the transaction that it began; it was rolled back",
    }
    return said.get(answer["kind"], message)
