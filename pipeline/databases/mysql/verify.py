"""The statements with which a script is verified, looked at before the script runs. Pure."""

from __future__ import annotations

from pipeline.databases.lexer import Unclear, mysql_statements
from pipeline.databases.mysql.units import commits_by_itself
from pipeline.databases.script_errors import ScriptErrors, without_outer_transaction
from pipeline.errors import Failed, Reason
from pipeline.model import Script


def checked(errors: ScriptErrors, script: Script, verify: bytes, *, backslashes: bool, ansi_quotes: bool) -> list[str]:
    """Its statements, without the ``BEGIN`` and ``ROLLBACK`` (or ``COMMIT``) around them that other tools want.

    Failed where it is not UTF-8, cannot be split, or would commit.
    """
    try:
        text = verify.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unfit(errors, script, f"line {verify.count(bytes([10]), 0, error.start) + 1}: it is not UTF-8") from None
    text = without_outer_transaction(without_outer_transaction(text, rollback=True))
    try:
        parts = list(mysql_statements(text, backslashes=backslashes, ansi_quotes=ansi_quotes))
    except Unclear as unclear:
        raise _unfit(errors, script, f"line {unclear.line}: {unclear.why}") from None
    for part in parts:
        if commits_by_itself(part) or part.words[:1] in {("COMMIT",), ("ROLLBACK",)}:
            raise _unfit(errors, script, f"line {part.line} ({part.first_words}): it would commit")
    return [part.text for part in parts]


def _unfit(errors: ScriptErrors, script: Script, why: str) -> Failed:
    return Failed(
        f"the verify of migration {script.id} cannot run.",
        reasons=[Reason(errors.clean(why), script.verify or script.id)],
        state="Nothing of the migration ran.",
        next_commands=[errors.plan],
        details={"script": script.id},
    )


__all__ = ("checked",)
