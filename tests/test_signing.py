"""Signing keys: who is known by which key, on which day, and what a signature covers."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path

import pytest

from pipeline.errors import ConfigurationError, UsageError
from pipeline.model import Actor, People, Person, SigningKey
from pipeline.signing import RECORD_CONTEXT, doubts, load_signer, make_key, same_key, signer_from, verify

TODAY = date(2026, 11, 22)


def _people(*entries: tuple[str, str], start: date | None = None, end: date | None = None) -> People:
    return People(
        people=tuple(
            Person(
                key=key,
                name=key.title(),
                roles=("engineer",),
                keys=(SigningKey(public=public, valid_from=start, valid_until=end),),
            )
            for key, public in entries
        )
    )


def test_a_made_key_signs_and_verifies(tmp_path: Path) -> None:
    public = make_key(tmp_path / "keys" / "id", comment="jane\nwork")
    assert (tmp_path / "keys" / "id").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys" / "id.pub").read_text() == public + "\n"
    assert public.endswith(" jane work")
    signer = load_signer(tmp_path / "keys" / "id", _people(("jane", public)), TODAY)
    assert (signer.key, signer.kind) == ("jane", "person")
    assert signer.actor == Actor(key="jane", kind="person", public_key=signer.public_key)
    signature = signer.sign(RECORD_CONTEXT + b"{}")
    assert len(signature) == 64
    assert verify(public, RECORD_CONTEXT + b"{}", signature)
    assert not verify(public, b"{}", signature)
    assert not verify(public, RECORD_CONTEXT + b"{} ", signature)
    assert not verify(public, RECORD_CONTEXT + b"{}", signature[:-1])
    assert not verify("ssh-ed25519 AAAA", RECORD_CONTEXT + b"{}", signature)
    assert "private" not in repr(signer)


def test_keys_made_by_ssh_keygen_are_read(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ci", "-f", str(tmp_path / "id")], check=True)
    public = (tmp_path / "id.pub").read_text().strip()
    people = People(
        people=(Person(key="ci", name="CI", kind="service", roles=("service",), keys=(SigningKey(public=public),)),)
    )
    signer = load_signer(tmp_path / "id", people, TODAY)
    assert (signer.key, signer.kind) == ("ci", "service")
    assert same_key(signer.public_key, public)
    # A secret in an environment variable often comes without its last newline.
    assert signer_from((tmp_path / "id").read_bytes().strip(), people, TODAY, source="env:KEY") == signer


def test_no_key_is_a_usage_error_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_signer(tmp_path / "absent", People(people=()), TODAY)
    assert caught.value.exit_code == 2
    assert caught.value.next_commands == ("invoke key.create person=KEY",)


def test_an_unknown_key_names_the_line_to_add(tmp_path: Path) -> None:
    public = make_key(tmp_path / "id")
    other = make_key(tmp_path / "other")
    with pytest.raises(UsageError) as caught:
        load_signer(tmp_path / "id", _people(("jane", other)), TODAY)
    assert public in caught.value.next_commands[0]


@pytest.mark.parametrize(
    ("start", "end", "fits"),
    [
        (TODAY, TODAY, True),
        (date(2026, 11, 23), None, False),
        (None, date(2026, 11, 21), False),
    ],
)
def test_a_key_counts_in_its_dates_only(tmp_path: Path, start: date | None, end: date | None, fits: bool) -> None:
    public = make_key(tmp_path / "id")
    people = _people(("jane", public), start=start, end=end)
    actor = Actor(key="jane", kind="person", public_key=public)
    if fits:
        assert load_signer(tmp_path / "id", people, TODAY).key == "jane"
        assert doubts(people, actor, TODAY) == []
    else:
        with pytest.raises(UsageError, match="not valid on 2026-11-22"):
            load_signer(tmp_path / "id", people, TODAY)
        assert len(doubts(people, actor, TODAY)) == 1


def test_one_key_for_two_people_is_refused(tmp_path: Path) -> None:
    public = make_key(tmp_path / "id")
    with pytest.raises(ConfigurationError, match="several people"):
        load_signer(tmp_path / "id", _people(("jane", public), ("john", public)), TODAY)


def test_doubts_name_every_disagreement(tmp_path: Path) -> None:
    public = make_key(tmp_path / "id")
    other = make_key(tmp_path / "other")
    people = _people(("jane", public), ("john", other))
    assert doubts(people, Actor(key="nobody", kind="person", public_key=public), TODAY)
    assert len(doubts(people, Actor(key="jane", kind="service", public_key=other), TODAY)) == 2


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END"])
def test_what_is_no_key_is_a_usage_error(content: bytes) -> None:
    with pytest.raises(UsageError):
        signer_from(content, People(people=()), TODAY, source="env:KEY")


def test_other_kinds_of_keys_are_refused(tmp_path: Path) -> None:
    for kind, passphrase in (("ecdsa", ""), ("ed25519", "secret")):
        path = tmp_path / kind
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path)], check=True)
        with pytest.raises(UsageError, match="Ed25519" if kind == "ecdsa" else "passphrase"):
            load_signer(path, People(people=()), TODAY)
    with pytest.raises(UsageError, match="passphrase is wrong"):
        load_signer(tmp_path / "ed25519", People(people=()), TODAY, passphrase=b"wrong")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    public = make_key(tmp_path / "id")
    (tmp_path / "id").chmod(0o640)
    with pytest.raises(UsageError) as caught:
        load_signer(tmp_path / "id", _people(("jane", public)), TODAY)
    assert caught.value.next_commands == (f"chmod 600 {tmp_path / 'id'}",)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    make_key(tmp_path / "id")
    before = (tmp_path / "id").read_bytes()
    with pytest.raises(UsageError, match="never overwritten"):
        make_key(tmp_path / "id")
    assert (tmp_path / "id").read_bytes() == before
