"""Every file of a workspace: what is read, and each mistake at its exact place."""

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline import model
from pipeline.errors import ConfigurationError, NotKnown, Reason
from pipeline.model import Customer, Environment, People, WorkspaceSettings
from pipeline.playbook import Playbook
from pipeline.settings import DATED_KEYS, Workspace, load_workspace
from pipeline.steps import CheckStep
from pipeline.strict_yaml import parse
from pipeline.validation import validated


def public(filler: bytes) -> str:
    blob = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + filler * 32
    return "ssh-ed25519 " + base64.b64encode(blob).decode()


KEY_1, KEY_2 = public(b"1"), public(b"2")

WORKSPACE = """\
installations:
  - name: main
    path: var/installations.git
signing_key: file:var/keys/ada
"""
PEOPLE = f"""\
people:
  - key: ada
    name: Ada Lovelace
    roles: [engineer]
    keys:
      - public: {KEY_1}
        valid_from: 2026-01-01
  - key: bruno
    name: Bruno Brandt
    mail: bruno@acme.invalid
    roles: [approver]
    customers: [acme]
"""
CUSTOMER = """\
name: Acme SA
language: fr
time_zone: Europe/Paris
product: shop
approvers: [bruno]
team: [ada]
"""
TEST = """\
transport: ssh
hosts:
  - name: app1
    address: 10.0.0.1
    folder: /srv/shop
database:
  engine: postgresql
  name: shop
  user: shop
  password: env:SHOP_PASSWORD
values:
  workers: 4
  motto: 'no'
secrets:
  api: file:var/secrets/api
windows:
  - days: [mon, tue]
    start: 20:00
    until: 02:30
freezes:
  - start: 2026-12-20T00:00:00+01:00
    until: 2027-01-02T06:00:00+01:00
    reason: year-end
"""
PLAYBOOK = """\
name: Shop
migrations:
  folder: db
steps:
  - backup
  - upload
  - migrate:
      except: 'post_*'
  - switch
  - restart:
      command: [systemctl, restart, shop]
  - run:
      command: [bin/warm]
      on: first
  - check:
      http: http://127.0.0.1:8080/health
"""
FILES = {
    "environments/workspace.yaml": WORKSPACE,
    "environments/people.yaml": PEOPLE,
    "environments/acme/customer.yaml": CUSTOMER,
    "environments/acme/test.yaml": TEST,
    "playbooks/shop.yaml": PLAYBOOK,
}
NAMES = {
    "workspace": "environments/workspace.yaml",
    "people": "environments/people.yaml",
    "customer": "environments/acme/customer.yaml",
    "test": "environments/acme/test.yaml",
    "shop": "playbooks/shop.yaml",
}

Write = Callable[[dict[str, str | None]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A whole workspace, some of its files written differently, or not at all (None)."""

    def write_files(changed: dict[str, str | None]) -> Path:
        for name, text in {**FILES, **changed}.items():
            if text is not None:
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        return tmp_path

    return write_files


def read_all(folder: Path) -> Workspace:
    workspace = load_workspace(folder)
    for key in workspace.customers:
        assert workspace.customer(key).environments is not None
    for product in workspace.products:
        workspace.playbook(product)
    return workspace


def refused(folder: Path) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        read_all(folder)
    return [f"{reason.source} {reason.text}" for reason in caught.value.reasons]


def test_a_workspace_is_read(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = read_all(write({}))
    assert workspace.customers == ("acme",)
    assert workspace.products == ("shop",)
    loaded = workspace.customer("acme")
    assert (loaded.customer.key, loaded.customer.time_zone) == ("acme", "Europe/Paris")
    assert workspace.installations(loaded.customer).path == "var/installations.git"
    assert list(loaded.environments) == ["test"]
    environment = loaded.environment("test")
    assert environment.values == {"workers": 4, "motto": "no"}
    assert (environment.windows[0].start, environment.windows[0].until) == (time(20, 0), time(2, 30))
    assert environment.freezes[0].start == datetime(2026, 12, 19, 23, 0, tzinfo=UTC)
    assert loaded.sources["test"].position("freezes", 0) == "environments/acme/test.yaml:21:5"
    assert loaded.sources["test"].data == TEST.encode()
    ada = workspace.people.find("ada")
    assert ada is not None and ada.keys[0].valid_from == date(2026, 1, 1)
    playbook = workspace.playbook("shop")
    assert playbook.playbook.product == "shop"
    assert playbook.raw["steps"][0] == "backup" and "product" not in playbook.raw
    assert playbook.raw["steps"][5] == {"run": {"command": ["bin/warm"], "on": "first"}}
    assert workspace.customer("acme") is loaded


CASES: list[tuple[str, str, str, str]] = [
    # file, what is written, what is written instead, file:line:column and the beginning of the reason
    ("workspace", "installations:", "instalations:", "1:1 unknown key 'instalations' (did you mean 'installations'?)"),
    ("workspace", "installations:", "instalations:", "1:1 installations is missing (is it 'instalations'?)"),
    ("workspace", "    path:", "    remote: x\n    path:", "2:5 a repository has either path: or remote:"),
    ("workspace", "signing_key: file:var", "signing_key: /var", "4:14 signing_key: expected a reference to a secret"),
    ("workspace", "signing_key", "  - path: other.git\nsigning_key", "4:5 'main' is there twice"),
    ("people", "roles: [engineer]", "roles: [enginer]", "4:13 roles: 'enginer' is not one of engineer, lead,"),
    ("people", "roles: [engineer]", "roles: engineer", "4:12 roles: expected a list, found 'engineer'"),
    ("people", "roles: [engineer]", "roles: []", "4:12 roles: at least 1 is needed"),
    ("people", "key: bruno", "key: ada", "8:10 'ada' is there twice"),
    ("people", "key: bruno", "key: Bruno", "8:10 key: expected lower-case letters, digits and inner hyphens"),
    ("people", "name: Ada Lovelace", "name: 007", "3:11 unquoted 007 is the number 7 to YAML; write '007'"),
    ("people", "name: Ada Lovelace", "name: 7", "3:11 name: expected a text, found the number 7; write '7'"),
    ("people", "name: Ada Lovelace", "name: true", "3:11 name: expected a text, found true; write 'true'"),
    ("people", "name: Ada Lovelace", "name:", "3:5 name: expected a text, found nothing"),
    ("people", KEY_1, "ssh-ed25519 AAAA", "6:17 this is no Ed25519 public key of OpenSSH"),
    ("people", KEY_1, "ssh-rsa AAAA", "6:17 public: expected an Ed25519 public key as OpenSSH writes it"),
    ("people", "2026-01-01", "2026-01-01\n        valid_until: 2025-01-01", "8:22 valid_until is before valid_from"),
    ("people", "2026-01-01", "2026-13-01", "7:21 valid_from: expected a date, for instance 2026-11-22"),
    ("people", "2026-01-01", "20260101", "7:21 valid_from: expected a date, for instance 2026-11-22"),
    (
        "people",
        "customers: [acme]",
        f"customers: [acme]\n    keys: [{{public: {KEY_1}}}]",
        "13:21 ada has this key too",
    ),
    ("customer", "language: fr", "langage: fr", "2:1 unknown key 'langage' (did you mean 'language'?)"),
    ("customer", "language: fr", "language: fr\nlanguage: de", "3:1 key 'language' is given twice, first in line 2"),
    ("customer", "language: fr", "language: it", "2:11 language: 'it' is not one of fr, de, en"),
    ("customer", "language: fr", "language: no", "2:11 unquoted no is false to YAML; write 'no'"),
    (
        "customer",
        "Europe/Paris",
        "Europe/Pari",
        "3:12 there is no time zone 'Europe/Pari' (did you mean 'Europe/Paris'?)",
    ),
    ("customer", "Europe/Paris", "../../etc/passwd", "3:12 there is no time zone '../../etc/passwd'"),
    ("customer", "product: shop", "product: shpo", "4:10 there is no playbooks/shpo.yaml (did you mean 'shop'?)"),
    ("customer", "[bruno]", "[bruna]", "5:13 environments/people.yaml has no 'bruna' (did you mean 'bruno'?)"),
    ("customer", "[bruno]", "[ada]", "5:13 'ada' has not the role approver in environments/people.yaml"),
    ("customer", "[bruno]", "[bruno, bruno]", "5:20 'bruno' is there twice"),
    ("customer", "[bruno]", "[]", "5:12 approvers: at least 1 is needed"),
    ("customer", "team: [ada]", "team: [adda]", "6:8 environments/people.yaml has no 'adda' (did you mean 'ada'?)"),
    (
        "customer",
        "team: [ada]",
        "installations: mian",
        "6:16 environments/workspace.yaml has no installations repository",
    ),
    ("customer", "team: [ada]", "sign_off_days: '10'", "6:16 sign_off_days: expected a whole number, found '10'"),
    ("customer", "team: [ada]", "sign_off_days: 0", "6:16 sign_off_days: input should be greater than or equal to 1"),
    ("customer", "team: [ada]", "key: brandt", "6:6 key must be 'acme', as the name says, or be left out"),
    ("customer", "team: [ada]", "ticket_prefix: acme", "6:16 ticket_prefix: expected a text like ^[A-Z]"),
    (
        "test",
        "transport: ssh",
        "transport: shh",
        "1:12 transport: 'shh' is not one of ssh, local (did you mean 'ssh'?)",
    ),
    ("test", "    address: 10.0.0.1\n", "", "3:5 address is missing"),
    ("test", "10.0.0.1", "10.0", "4:14 address: expected a text, found the number 10.0; write '10.0'"),
    ("test", "10.0.0.1", "10.0.0.1\n    port: true", "5:11 port: expected a whole number, found true"),
    ("test", "10.0.0.1", "10.0.0.1\n    port: 70000", "5:11 port: input should be less than or equal to 65535"),
    ("test", "/srv/shop", "srv/shop", "5:13 folder: must be absolute on a host reached by ssh"),
    ("test", "/srv/shop", "/srv/../shop", "5:13 folder: must not hold '..'"),
    (
        "test",
        "engine: postgresql",
        "engine: postgres",
        "7:11 engine: 'postgres' is not one of postgresql, mariadb, mysql, ",
    ),
    ("test", "  name: shop\n", "  name: shop\n  scratch: shop\n", "9:12 scratch: is another database than name:"),
    ("test", "  name: shop\n", "  name: shop\n  backup:\n    proof: restore\n", "10:12 proof: restore needs scratch:"),
    ("test", "  name: shop\n", "  name: shop\n  tls_ca: ca.pem\n", "9:11 tls_ca: is for tls: verify-full"),
    ("test", "engine: postgresql", "engine: sqlite", "7:3 path is missing, sqlite needs it"),
    ("test", "  user: shop\n", "", "7:3 user is missing, postgresql needs it"),
    ("test", "workers: 4", "version: 1.10", "12:12 unquoted 1.10 is the number 1.1 to YAML; write '1.10'"),
    ("test", "api: file:var", "api: hunter2", "15:8 api: expected a reference to a secret, never the secret itself"),
    ("test", "[mon, tue]", "[mon, tuesday]", "17:17 days: 'tuesday' is not one of mon, tue, wed, thu, fri, sat, sun"),
    ("test", "start: 20:00", "start: 2000", "18:12 start: expected a time of day, for instance 20:00"),
    ("test", "start: 20:00", "start: 02:30", "19:12 a window ends at another time than it starts"),
    ("test", "start: 20:00", "start: 20:00Z", "18:12 start: is a time in the customer's zone, without an offset"),
    ("test", "00:00:00+01:00", "00:00:00", "21:12 start: an instant needs a time zone, for instance"),
    ("test", "2026-12-20T00:00:00+01:00", "'20261220'", "21:12 start: expected an instant, for instance"),
    ("test", "2027-01-02", "2026-01-02", "22:12 until is not after start"),
    ("test", "reason: year-end", "reson: year-end", "23:5 unknown key 'reson' (did you mean 'reason'?)"),
    ("shop", "- upload", "- uplod", "6:5 unknown step 'uplod' (did you mean 'upload'?)"),
    (
        "shop",
        "- upload",
        "- 5",
        "6:5 steps: expected keys and values, found the number 5",
    ),
    ("shop", "- upload\n", "- upload\n  - upload\n", "1:1 a playbook has exactly one upload step, this one has 2"),
    ("shop", "- restart:", "- restrat:", "10:5 unknown step 'restrat' (did you mean 'restart'?)"),
    (
        "shop",
        "      command: [systemctl",
        "      comand: [systemctl",
        "11:7 unknown key 'comand' (did you mean 'command'?)",
    ),
    ("shop", "      command: [systemctl", "      comand: [systemctl", "11:7 command is missing (is it 'comand'?)"),
    (
        "shop",
        "command: [systemctl, restart, shop]",
        "command: restart",
        "11:16 command: expected a list, found 'restart'",
    ),
    (
        "shop",
        "[systemctl, restart, shop]",
        "[sleep, 5]",
        "11:24 command: expected a text, found the number 5; write '5'",
    ),
    ("shop", "on: first", "on: frist", "14:11 on: 'frist' is not one of each, first (did you mean 'first'?)"),
    ("shop", "except:", "exept:", "8:7 unknown key 'exept' (did you mean 'except'?)"),
    (
        "shop",
        "      http: http://127.0.0.1:8080/health",
        "      within: 5",
        "16:7 check: a check has either http: or command:",
    ),
    (
        "shop",
        "      http: http://127.0.0.1:8080/health",
        "      status: '200'",
        "16:15 status: expected a whole number",
    ),
    (
        "shop",
        "  - check:\n      http:",
        "  - kind: check\n    htttp:",
        "16:5 unknown key 'htttp' (did you mean 'http'?)",
    ),
    (
        "shop",
        "  - check:\n      http:",
        "  - check:\n    http:",
        "15:5 a step has one kind, found check, http; the options",
    ),
    ("shop", "  - check:\n      http: h", "  - check: h", "15:5 'check' takes keys and values, found 'http"),
    ("shop", "folder: db", "folders: db", "3:3 unknown key 'folders' (did you mean 'folder'?)"),
    ("shop", "steps:", "product: shpo\nsteps:", "4:10 product must be 'shop', as the name says, or be left out"),
]


@pytest.mark.parametrize(("file", "written", "instead", "expected"), CASES, ids=[f"{c[0]}-{c[2]}"[:50] for c in CASES])
def test_a_mistake_is_refused_at_its_place(write: Write, file: str, written: str, instead: str, expected: str) -> None:
    name = NAMES[file]
    assert written in FILES[name]
    folder = write({name: FILES[name].replace(written, instead, 1)})
    found = refused(folder)
    assert any(reason.startswith(f"{name}:{expected}") for reason in found), found
    assert "hunter2" not in "\n".join(found)


def test_a_list_whose_items_are_wrong_is_not_called_too_short(write: Write) -> None:
    for file, written, instead in (("test", "    address:", "    adress:"), ("people", "[engineer]", "[enginer]")):
        name = NAMES[file]
        assert written in FILES[name]
        found = refused(write({name: FILES[name].replace(written, instead, 1)}))
        assert found and not [reason for reason in found if "at least" in reason]


@pytest.mark.parametrize("name", sorted(NAMES.values()))
@pytest.mark.parametrize("text", ["- x\n", "x\n", "5\n", "{}\n", "", "a: [\n", "~\n"])
def test_a_file_of_another_shape_is_refused_at_its_beginning(write: Write, name: str, text: str) -> None:
    found = refused(write({name: text}))
    assert found and all(reason.startswith(f"{name}:") for reason in found)


def test_all_errors_of_a_file_come_together_in_its_order(write: Write) -> None:
    text = (
        CUSTOMER.replace("language: fr", "language: no").replace("product: shop", "produkt: 1.10").replace("team", "x")
    )
    found = refused(write({NAMES["customer"]: text}))
    assert [reason.split(":", 1)[1].split(" ")[0] for reason in found] == ["1:1", "2:11", "4:1", "4:10", "6:1"]


def test_a_secret_written_in_the_wrong_place_is_not_repeated(write: Write) -> None:
    for wrong in ("password: hunter2", "password: 0123456", "password: 123456", "password: [hunter2]", "password: no"):
        text = "\n".join(refused(write({NAMES["test"]: TEST.replace("password: env:SHOP_PASSWORD", wrong)})))
        assert "test.yaml:10:13" in text
        assert "hunter2" not in text and "123456" not in text


# --- what is where ----------------------------------------------------------------------------------------------------


def test_no_workspace_and_missing_files(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ConfigurationError, match="is no workspace"):
        load_workspace(tmp_path)
    write({NAMES["people"]: None})
    with pytest.raises(ConfigurationError, match=r"environments/people\.yaml does not exist"):
        load_workspace(tmp_path)
    (tmp_path / NAMES["people"]).mkdir()
    with pytest.raises(ConfigurationError, match=r"environments/people\.yaml is not a plain file"):
        load_workspace(tmp_path)


def test_unknown_names_are_not_known_with_the_nearest(write: Write) -> None:
    workspace = load_workspace(write({}))
    with pytest.raises(NotKnown, match="no customer 'acmee' \\(did you mean 'acme'"):
        workspace.customer("acmee")
    with pytest.raises(NotKnown, match="no product 'shpo' \\(did you mean 'shop'"):
        workspace.playbook("shpo")
    with pytest.raises(NotKnown, match="acme has no environment 'tset' \\(did you mean 'test'"):
        workspace.customer("acme").environment("tset")
    for name in ("../acme", "acme/../acme", "", "/", ".", "people.yaml", "acme\n"):
        with pytest.raises(NotKnown):
            workspace.customer(name)


@pytest.mark.parametrize("name", ["Acme", "a.b", "-x", "a" * 64, "product"])
def test_a_folder_name_that_no_customer_can_have(write: Write, name: str) -> None:
    workspace = load_workspace(write({f"environments/{name}/customer.yaml": CUSTOMER.replace("[bruno]", "[bruno]")}))
    with pytest.raises(ConfigurationError) as caught:
        workspace.customer(name)
    assert str(caught.value.reasons[0].source).startswith(f"environments/{name}/customer.yaml")


@pytest.mark.parametrize(
    ("name", "near"), [("prod.yaml", "production.yaml"), ("tests.yaml", "test.yaml"), ("test.yml", "test.yaml")]
)
def test_a_file_that_would_be_passed_over_is_refused(write: Write, name: str, near: str) -> None:
    workspace = load_workspace(write({f"environments/acme/{name}": TEST}))
    assert workspace.customer("acme").customer.name == "Acme SA"
    with pytest.raises(ConfigurationError) as caught:
        _ = workspace.customer("acme").environments
    assert caught.value.reasons == (
        Reason(f"{name} is not read (did you mean '{near}'?)", f"environments/acme/{name}"),
    )


def test_an_approver_of_another_customer_is_refused(write: Write) -> None:
    found = refused(write({"environments/brandt/customer.yaml": CUSTOMER}))
    assert found == [
        "environments/brandt/customer.yaml:5:13 'bruno' does not list the customer brandt in environments/people.yaml"
    ]


def test_a_relative_folder_is_good_where_this_machine_may_stand_for_the_hosts(write: Write) -> None:
    relative = {NAMES["test"]: TEST.replace("/srv/shop", "var/shop")}
    workspace = read_all(write({**relative, NAMES["workspace"]: WORKSPACE + "local_while: var/local\n"}))
    assert workspace.customer("acme").environment("test").hosts[0].folder == "var/shop"


def test_one_customer_is_read_without_its_environments_and_without_the_others(write: Write) -> None:
    workspace = load_workspace(write({NAMES["test"]: "a: [", "environments/brandt/customer.yaml": "a: ["}))
    assert workspace.customers == ("acme", "brandt")
    assert workspace.customer("acme").customer.name == "Acme SA"


# --- keys and secrets -------------------------------------------------------------------------------------------------


def test_a_public_key_in_a_file(write: Write) -> None:
    people = PEOPLE.replace(f"public: {KEY_1}", "public: file:var/ada.pub")
    folder = write({NAMES["people"]: people, "var/ada.pub": f"{KEY_2} ada@laptop\n"})
    workspace = load_workspace(folder)
    ada = workspace.people.find("ada")
    assert ada is not None and ada.keys[0].public == f"{KEY_2} ada@laptop"
    assert workspace.missing_keys(ada) == ()


def test_a_public_key_whose_file_is_missing_is_named_when_asked(write: Write) -> None:
    people = PEOPLE.replace(f"public: {KEY_1}", "public: file:var/ada.pub")
    workspace = load_workspace(write({NAMES["people"]: people}))
    ada = workspace.people.find("ada")
    assert ada is not None
    assert workspace.missing_keys(ada) == (Reason("var/ada.pub does not exist", "environments/people.yaml:6:17"),)


@pytest.mark.parametrize("text", ["", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "ssh-ed25519 AAAA\n", "é" * 40_000])
def test_a_file_that_holds_no_public_key(write: Write, text: str) -> None:
    people = PEOPLE.replace(f"public: {KEY_1}", "public: file:var/ada.pub")
    assert refused(write({NAMES["people"]: people, "var/ada.pub": text})) == [
        "environments/people.yaml:6:17 var/ada.pub holds no Ed25519 public key of OpenSSH"
    ]


def test_secrets_are_resolved_and_never_shown(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = load_workspace(write({"var/api": "hunter2\n", "var/empty": "\n", "var/large": "hunter2" * 20_000}))
    monkeypatch.setenv("SHOP_PASSWORD", "hunter2")
    monkeypatch.delenv("SHOP_PASSWROD", raising=False)
    assert workspace.resolve("env:SHOP_PASSWORD") == "hunter2"
    assert workspace.resolve("file:var/api") == "hunter2"
    assert workspace.resolve(f"file:{workspace.folder}/var/api") == "hunter2"
    (workspace.folder / "var/latin").write_bytes(b"hunter2\xe9")
    for reference, reason in [
        ("env:SHOP_PASSWROD", "not set"),
        ("file:var/none", "does not exist"),
        ("file:var", "not a plain file"),
        ("file:var/empty", "empty"),
        ("file:var/large", "larger than 64 KiB"),
        ("file:var/latin", "not UTF-8"),
        ("file:a\0b", "does not exist"),
        ("hunter2", "neither env:NAME nor file:PATH"),
    ]:
        with pytest.raises(ConfigurationError) as caught:
            workspace.resolve(reference, source="environments/acme/test.yaml:10:13")
        assert reason in caught.value.reasons[0].text
        assert caught.value.reasons[0].source == "environments/acme/test.yaml:10:13"
        assert "hunter2" not in caught.value.render() and "hunter2" not in str(caught.value.as_json())


# --- the models and the reader agree ----------------------------------------------------------------------------------


def dated_fields(annotation: Any, seen: set[Any]) -> set[str]:
    found: set[str] = set()
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
        seen.add(annotation)
        for name, field in annotation.model_fields.items():
            parts = {field.annotation, *get_args(field.annotation)}
            if parts & {date, datetime, time}:
                found.add(name)
            found |= dated_fields(field.annotation, seen)
    for part in get_args(annotation):
        found |= dated_fields(part, seen)
    return found


def test_every_field_that_holds_a_date_may_be_written_without_quotes() -> None:
    seen: set[Any] = set()
    fields = set().union(*(dated_fields(m, seen) for m in (WorkspaceSettings, People, Customer, Environment, Playbook)))
    assert fields == DATED_KEYS


MODELS: list[type[BaseModel]] = [WorkspaceSettings, People, Customer, Environment, Playbook]
WORDS = sorted(
    {name for m in [*MODELS, model.Host, model.Person, CheckStep] for name in m.model_fields} | {"upload", "check"}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(value=st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=6), chosen=st.sampled_from(MODELS))
def test_whatever_a_file_says_gives_a_model_or_reasons_with_places(
    value: dict[str, Any], chosen: type[BaseModel]
) -> None:
    source = parse("f.yaml", json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"), dated=DATED_KEYS)
    loaded, reasons = validated(chosen, source, written_short=chosen is Playbook)
    assert loaded is not None or reasons or source.problems
    assert all(str(reason.source).startswith("f.yaml:") for reason in reasons)


def test_the_examples_of_the_documentation_are_a_workspace(write: Write) -> None:
    """Every example of docs/configuration.md is read, and every field of the models is in its tables or examples."""
    text = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    workspace, people, customer, test, shop = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    files = dict(zip(NAMES.values(), (workspace, people, customer, test, shop), strict=True))
    loaded = read_all(write(dict(files)))
    assert loaded.customer("acme").environment("test").freezes[0].reason == "year-end"
    for noun in (*MODELS, model.Host, model.Person, model.SigningKey, model.DatabaseSettings, CheckStep):
        for name, field in noun.model_fields.items():
            assert (field.alias or name) in text, f"{noun.__name__}.{name} is not documented"
