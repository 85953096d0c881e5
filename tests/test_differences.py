"""What differs between test and production: listed, hashed, and never a secret."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.differences import differences, settings_hash
from pipeline.model import Environment
from tests.nouns import customer, environment

BASE: dict[str, Any] = {
    "url": "http://shop.example/",
    "values": {"title": "Shop", "mail": {"from": "a@example.org"}, "workers": 2, "hosts": ["one"]},
    "secrets": {"password": "env:SHOP_PASSWORD"},
}


def on_test(**more: Any) -> Environment:
    return environment("test", **BASE | more)


def on_production(**more: Any) -> Environment:
    return environment("production", **BASE | more)


def hashed(test: Environment | None, production: Environment | None, **more: Any) -> str:
    return settings_hash(customer(**more), test, production)


def listed(left: Environment, right: Environment) -> list[tuple[str, str, str]]:
    return [(found.what, found.test, found.production) for found in differences(left, right)]


def test_the_same_settings_differ_in_nothing() -> None:
    assert differences(on_test(), on_production()) == ()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"url": "http://p/"}, [("url", "http://shop.example/", "http://p/")]),
        ({"url": None}, [("url", "http://shop.example/", "None")]),
        ({"values": BASE["values"] | {"workers": 8}}, [("values.workers", "2", "8")]),
        ({"values": BASE["values"] | {"workers": "2"}}, [("values.workers", "2", '"2"')]),
        ({"values": BASE["values"] | {"mail": {"from": "b@p"}}}, [("values.mail.from", "a@example.org", "b@p")]),
        ({"values": BASE["values"] | {"hosts": ["one", "two"]}}, [("values.hosts[2]", "—", "two")]),
        ({"values": BASE["values"] | {"more": []}}, [("values.more", "—", "[]")]),
        ({"values": BASE["values"] | {"more": {}}}, [("values.more", "—", "{}")]),
        (
            {"values": BASE["values"] | {"mail": "off"}},
            [("values.mail", "—", "off"), ("values.mail.from", "a@example.org", "—")],
        ),
        ({"secrets": {"password": "env:P"}}, [("secrets.password", "env:SHOP_PASSWORD", "env:P")]),
        ({"secrets": {}}, [("secrets", "—", "{}"), ("secrets.password", "env:SHOP_PASSWORD", "—")]),
        (
            {"database": None},
            [
                ("database", "—", "None"),
                *[(f"database.{k}", v, "—") for k, v in (("engine", "sqlite"), ("path", "shared/shop.sqlite"))],
            ],
        ),
    ],
)
def test_one_change_is_one_line_with_both_values(changed: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    assert listed(on_test(), on_production(**changed)) == expected
    assert hashed(on_test(), on_production(**changed)) != hashed(on_test(), on_production())


def test_a_second_host_is_listed_part_by_part_in_the_order_of_the_places() -> None:
    found = listed(on_test(), environment("production", hosts=2, **BASE))
    assert found == [
        ("hosts[2].address", "—", "10.0.0.2"),
        ("hosts[2].folder", "—", "/srv/shop"),
        ("hosts[2].name", "—", "app2"),
        ("hosts[2].values.port", "—", "8002"),
    ]


@pytest.mark.parametrize(
    "when",
    [
        {"windows": [{"days": ["mon"], "start": "20:00", "until": "22:00"}]},
        {"freezes": [{"start": "2026-12-20T00:00:00Z", "until": "2027-01-03T00:00:00Z", "reason": "year-end"}]},
    ],
)
def test_windows_and_freezes_say_when_and_not_what(when: dict[str, Any]) -> None:
    assert differences(on_test(), on_production(**when)) == ()
    assert hashed(on_test(**when), on_production(**when)) == hashed(on_test(), on_production())


def test_a_default_that_is_not_written_counts_for_nothing() -> None:
    """A new field of ours, with a default, voids no sign-off."""
    written = environment("test", **BASE)
    assert "transport" not in written.model_fields_set
    assert hashed(written, None) == hashed(Environment.model_validate(written.model_dump(exclude_unset=True)), None)
    assert hashed(on_test(transport="ssh"), None) != hashed(written, None)


def test_either_environment_counts_and_which_of_them_it_is() -> None:
    other = {"url": "http://other/"}
    hashes = [
        hashed(None, None),
        hashed(on_test(), None),
        hashed(None, on_production()),
        hashed(on_test(), on_production()),
        hashed(on_test(**other), on_production()),
        hashed(on_test(), on_production(**other)),
        hashed(on_test(**other), on_production(**other)),
    ]
    assert len(set(hashes)) == len(hashes)
    assert all(len(digest) == 64 for digest in hashes)


def test_the_order_of_keys_does_not_count() -> None:
    turned = dict(reversed(BASE["values"].items()))
    assert hashed(on_test(values=turned), None) == hashed(on_test(), None)


@pytest.mark.parametrize("changed", [{"language": "de"}, {"time_zone": "Europe/Berlin"}, {"key": "acme2"}])
def test_what_templates_and_pages_name_of_the_customer_counts(changed: dict[str, Any]) -> None:
    assert hashed(on_test(), on_production(), **changed) != hashed(on_test(), on_production())


@pytest.mark.parametrize("changed", [{"approvers": ("claire", "paul")}, {"name": "Acme SARL"}, {"sign_off_days": 3}])
def test_who_decides_and_until_when_is_not_what_is_signed_off(changed: dict[str, Any]) -> None:
    assert hashed(on_test(), on_production(), **changed) == hashed(on_test(), on_production())
