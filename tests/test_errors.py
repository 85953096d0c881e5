"""The families of errors: a table, and what each prints."""

from __future__ import annotations

import json

import pytest

from pipeline import errors
from pipeline.errors import ConfigurationError, PipelineError, Reason, Refused, UsageError

FAMILIES = {
    "PipelineError": (70, "error"),
    "Failed": (1, "failed"),
    "UsageError": (2, "usage"),
    "ConfigurationError": (2, "configuration"),
    "NotKnown": (3, "unknown"),
    "Refused": (4, "refused"),
    "Locked": (5, "locked"),
    "PartlyDone": (6, "partly done"),
    "Unreachable": (7, "unreachable"),
    "Interrupted": (130, "interrupted"),
}


def families() -> dict[str, type[PipelineError]]:
    return {
        name: found
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, PipelineError)
    }


def test_the_families_are_these() -> None:
    assert {name: (family.exit_code, family.word) for name, family in families().items()} == FAMILIES


def test_each_family_has_an_exit_code_of_its_own() -> None:
    # A wrong file is wrong usage: the one pair that shares its code, and its parent says so.
    assert issubclass(ConfigurationError, UsageError)
    codes = [family.exit_code for family in families().values() if family is not ConfigurationError]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes
    assert all(
        family.__bases__ == (PipelineError,) for family in families().values() if family.exit_code not in {2, 70}
    )


def test_an_error_is_what_each_reason_the_state_and_the_next_command() -> None:
    error = Refused(
        "release 2.4.0+1 cannot go to production of acme.",
        reasons=[
            "deployment 0412 on test has no sign-off (ticket ACME-1873)",
            Reason("frozen until 2 Dec 06:00 CET: year-end", "environments/acme/production.yaml:21", "not_frozen"),
        ],
        next_commands=["invoke signoff.page customer=acme", "invoke status customer=acme"],
    )
    assert error.render() == str(error)
    assert error.render() == (
        "refused: release 2.4.0+1 cannot go to production of acme.\n"
        "  - deployment 0412 on test has no sign-off (ticket ACME-1873)\n"
        "  - frozen until 2 Dec 06:00 CET: year-end (environments/acme/production.yaml:21)\n"
        "Nothing was changed.\n"
        "Next: invoke signoff.page customer=acme\n"
        "  or: invoke status customer=acme"
    )


def test_steps_are_told_as_steps() -> None:
    error = errors.Failed("it broke", state="", next_commands=["a", "b", "c"], in_order=True)
    assert error.render() == "failed: it broke\nNext: a\nthen: b\nthen: c"
    assert error.as_json()["error"]["next_in_order"] is True


def test_every_exit_code_has_its_meaning() -> None:
    assert set(errors.EXIT_CODES) == {0, *(family.exit_code for family in families().values())}
    for family in families().values():
        if family is not PipelineError:
            assert family.word in errors.EXIT_CODES[family.exit_code]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Failed("it broke", state=""), "failed: it broke"),
        (errors.Failed("it broke"), "failed: it broke\nNothing was changed."),
        (errors.PartlyDone("half", state="app1 is done."), "partly done: half\napp1 is done."),
        (errors.NotKnown("no", state="", next_commands=["a"]), "unknown: no\nNext: a"),
        (errors.Locked("no", state="", reasons=(Reason("x", "y"),)), "locked: no\n  - x (y)"),
    ],
)
def test_what_is_empty_takes_no_line(error: PipelineError, expected: str) -> None:
    assert error.render() == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_an_error_is_one_json_object(name: str) -> None:
    reason = Reason("a reason", "file:1:2", "a_rule")
    error = families()[name](
        "what", reasons=["plain", reason], state="s", next_commands=iter(["n"]), details={"k": [1]}
    )
    assert json.loads(json.dumps(error.as_json())) == {
        "schema_version": 1,
        "ok": False,
        "error": {
            "kind": name,
            "exit_code": FAMILIES[name][0],
            "what": "what",
            "reasons": [
                {"text": "plain", "source": None, "rule": None},
                {"text": "a reason", "source": "file:1:2", "rule": "a_rule"},
            ],
            "state": "s",
            "next": ["n"],
            "next_in_order": False,
            "details": {"k": [1]},
        },
    }


def test_an_error_without_reasons_has_none() -> None:
    assert errors.Failed("what").reasons == ()
    assert errors.Failed("what").next_commands == ()
    assert errors.Failed("what").details == {}
