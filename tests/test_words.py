"""What typed words mean, as a table; and what is refused, each in one line with the nearest match."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.command_line.words import GUARD, Option, Request, TaskWords, read, wants_json
from pipeline.errors import UsageError


def _options(*texts: str, flags: tuple[str, ...] = ("dry-run", "yes", "json"), **more: Option) -> dict[str, Option]:
    options = {name: Option(f"the {name}", name=name) for name in texts}
    options |= {name: Option(f"the {name}", name=name, flag=True) for name in flags}
    return options | more


TASKS = {
    "promote": TaskWords("promote", _options("customer", "release"), "customer"),
    "plan": TaskWords("plan", _options("customer", "env", "release"), "customer"),
    "release": TaskWords(
        "release",
        _options("customer", "version", ticket=Option("tickets", name="ticket", several=True)),
        "customer",
    ),
    "ticket.open": TaskWords(
        "ticket.open",
        _options(
            "customer",
            "title",
            text=Option("text", name="text", blank=True),
            reason=Option("reason", name="reason", blank=True),
        ),
        "customer",
    ),
    "again": TaskWords(
        "again",
        {**_options("customer"), "accept-drift": Option("why", name="accept-drift", value="REASON")},
        "customer",
    ),
    "signoff.page": TaskWords("signoff.page", _options("customer"), "customer"),
    "signoff.record": TaskWords("signoff.record", _options("customer"), "customer"),
    "demo.stop": TaskWords("demo.stop", _options(), None),
}


def understood(*words: str) -> dict[str, list[str] | bool]:
    request = read(words, TASKS)
    assert request.words[0] == request.task == words[0]
    found: dict[str, list[str] | bool] = {}
    for word in request.words[1:]:
        assert word.startswith("--")
        key, equals, value = word[2:].partition(f"={GUARD}")
        if not equals:
            found[key] = True
        else:
            found[key] = [*found.get(key, []), value]  # type: ignore[misc]
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("promote", "customer=acme"),
        ("promote", "acme"),
        ("promote", "--customer", "acme"),
        ("promote", "--customer=acme"),
    ],
)
def test_every_form_means_the_same(words: tuple[str, ...]) -> None:
    assert understood(*words) == {"customer": ["acme"]}


@pytest.mark.parametrize(
    "words",
    [
        ("release", "version=2.4.0", "ticket=A,B", "customer=acme"),
        ("release", "ticket=A,B", "acme", "version=2.4.0"),
        ("release", "--ticket", "A,B", "version=2.4.0", "acme"),
    ],
)
def test_the_order_is_free(words: tuple[str, ...]) -> None:
    assert understood(*words) == {"customer": ["acme"], "version": ["2.4.0"], "ticket": ["A,B"]}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("text=",), {"text": [""]}),
        (("--text=",), {"text": [""]}),
        (("--text", ""), {"text": [""]}),
        (("reason=a=b",), {"reason": ["a=b"]}),
        (("--reason=a=b",), {"reason": ["a=b"]}),
        (("--reason", "a=b"), {"reason": ["a=b"]}),
        (("text=--x",), {"text": ["--x"]}),
        (("text=--json",), {"text": ["--json"]}),
        (("--text=--customer=1",), {"text": ["--customer=1"]}),
        (("text=-h",), {"text": ["-h"]}),
        (("text=--help",), {"text": ["--help"]}),
        (("text= two  words\nand a line ",), {"text": [" two  words\nand a line "]}),
        (("text=promote",), {"text": ["promote"]}),
        (("text=--",), {"text": ["--"]}),
        (("customer=-acme",), {"customer": ["-acme"]}),
    ],
)
def test_values_survive(words: tuple[str, ...], expected: object) -> None:
    assert understood("ticket.open", *words) == expected


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_value_survives(value: str) -> None:
    assert understood("ticket.open", f"text={value}") == {"text": [value]}
    assert understood("ticket.open", f"--text={value}") == {"text": [value]}


@pytest.mark.parametrize("word", ["--dry-run", "dry-run=yes", "dry-run=true", "--dry-run=yes"])
def test_flags(word: str) -> None:
    assert understood("promote", "acme", word) == {"customer": ["acme"], "dry-run": True}


def test_a_flag_said_to_be_no_is_not_set() -> None:
    assert understood("promote", "acme", "dry-run=no") == {"customer": ["acme"]}


def test_an_option_that_may_be_repeated() -> None:
    assert understood("release", "ticket=A", "--ticket", "B")["ticket"] == ["A", "B"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        # misspelt: always the nearest match
        (("promote", "acme", "--dryrun"), "did you mean --dry-run?"),
        (("promote", "--dryrun"), "did you mean --dry-run?"),
        (("promote", "acme", "--dry_run"), "did you mean --dry-run?"),
        (("promote", "acme", "--dry"), "did you mean --dry-run?"),
        (("promote", "acme", "-dry-run"), "did you mean --dry-run?"),
        (("promote", "cusotmer=acme"), "did you mean customer=?"),
        (("promote", "--custommer", "acme"), "did you mean customer=?"),
        (("promote", "Customer=acme"), "did you mean customer=?"),
        (("promte", "acme"), "did you mean promote?"),
        (("Promote", "acme"), "did you mean promote?"),
        (("signoff", "acme"), "did you mean signoff.page or signoff.record?"),
        (("sign-off.page", "acme"), "did you mean signoff.page?"),
        (("page", "acme"), "did you mean signoff.page?"),
        (("zzz",), "lists the tasks"),
        (("",), "no task is called ''"),
        (("promote", "acme", "qqqqq=1"), "known: customer= release= --dry-run --yes --json"),
        (("promote", "acme", "-n"), "no option '-n'"),
        # several tasks, several customers
        (("promote", "acme", "plan"), "one task at a time: 'plan' after promote"),
        (("promote", "plan", "acme"), "one task at a time"),
        (("promote", "acme", "beta"), "customer is 'acme' already"),
        (("promote", "acme", "customer=beta"), "given twice"),
        (("promote", "customer=acme", "customer=acme"), "given twice"),
        (("promote", "customer=acme", "acme"), "customer is 'acme' already"),
        (("demo.stop", "acme"), "'acme' is not understood"),
        # no value, or perhaps none
        (("promote", "acme", "release="), "release= has no value; leave it out for the default"),
        (("again", "acme", "accept-drift="), "accept-drift= has no value: it needs a reason, which is recorded"),
        (("promote", "--customer"), "--customer needs a value: customer="),
        (("promote", "--customer", "--dry-run"), "write 'customer=--dry-run'"),
        (("release", "--customer", "version=2.4.0"), "--customer needs a value"),
        (("promote", "customer", "=", "acme"), "'customer' is an option: write customer="),
        (("promote", "dry-run", "acme"), "'dry-run' is an option: write --dry-run"),
        (("promote", "=acme"), "no option '='"),
        (("promote", "acme", "dry-run=maybe"), "neither yes nor no"),
        (("promote", "acme", "dry-run="), "neither yes nor no"),
        (("promote", "acme", "--dry-run", "dry-run=no"), "as yes and as no"),
        (("promote", "acme", "text\udcff=1"), "UTF-8"),
        # before the task
        (("--dry-run", "promote", "acme"), "--dry-run comes after the task: promote"),
        (("--dryrun", "promote", "acme"), "did you mean promote … --dry-run?"),
        (("--hepl",), "did you mean --help?"),
        (("customer=acme", "promote"), "the task is the first word"),
        (("promote", "acme", "--workspace=x"), "before the task"),
    ],
)
def test_refused_in_one_line(words: tuple[str, ...], part: str) -> None:
    with pytest.raises(UsageError) as refusal:
        read(words, TASKS)
    text = refusal.value.render()
    assert part in text
    assert "\n" not in text
    assert refusal.value.exit_code == 2


def test_help_before_and_after() -> None:
    wanted = Request("promote", help=True)
    assert read(["promote", "--help"], TASKS) == wanted
    assert read(["promote", "-h"], TASKS) == wanted
    assert read(["promote", "acme", "--help", "nonsense=1"], TASKS) == wanted
    assert read([], TASKS, help_for="promote") == wanted
    assert read(["acme"], TASKS, help_for="promote") == wanted
    with pytest.raises(UsageError, match="did you mean promote"):
        read([], TASKS, help_for="promot")


def test_nothing_at_all_is_the_list() -> None:
    assert read([], TASKS) == Request(None)


def test_a_long_or_strange_word_is_shown_cut_and_written_out() -> None:
    with pytest.raises(UsageError) as refusal:
        read(["promote", "acme", "\x1b[2J" + "x" * 500], TASKS)
    assert "\x1b" not in refusal.value.render()
    assert len(refusal.value.render()) < 300


def test_json_is_wanted_even_when_the_words_are_wrong() -> None:
    assert wants_json(["promte", "--json"])
    assert wants_json(["promote", "json=yes"])
    assert not wants_json(["ticket.open", "text=--json"])


@given(st.lists(st.text(max_size=12), max_size=5))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    try:
        read(["promote", *words], TASKS)
    except UsageError as error:
        assert error.exit_code == 2
