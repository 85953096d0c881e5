import pytest

from pipeline.suggest import did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("acmee", ["acme", "brandt"], "acme"),
        ("ACME", ["acme", "brandt"], "acme"),
        ("tset", ["test", "production"], "test"),
        ("prod", ["test", "production"], "production"),
        ("langage", ["language", "name", "product"], "language"),
        ("zzz", ["acme", "brandt"], None),
        ("", ["acme"], None),
        ("acme", [], None),
        ("a" * 5000, ["a" * 4999], None),
    ],
)
def test_nearest(word: str, known: list[str], expected: str | None) -> None:
    assert nearest(word, known) == expected


def test_the_same_mistake_gets_the_same_answer_whatever_the_order() -> None:
    known = ["acme-1", "acme-2", "acme-3"]
    assert nearest("acme-4", known) == nearest("acme-4", reversed(known))


def test_did_you_mean_falls_back_to_the_known_words_when_they_are_few() -> None:
    assert did_you_mean("acmee", ["acme"]) == " (did you mean 'acme'?)"
    assert did_you_mean("zzz", ["brandt", "acme"]) == " (known: acme, brandt)"
    assert did_you_mean("zzz", (f"customer-{n}" for n in range(50))) == ""
    assert did_you_mean("zzz", []) == ""
