from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.errors import Failed, NotKnown, Refused, UsageError
from pipeline.installation import Installation, MergeConflict, Prepared
from pipeline.model import RefMove
from pipeline.products import AUTHOR, EPOCH
from pipeline.repository import NewCommit, Repository

AT = datetime(2026, 11, 22, 20, tzinfo=UTC)
WHO = {"author": "ana"}


def source_file(*changed: tuple[int, str]) -> bytes:
    lines = [f"line {n}" for n in range(30)]
    for number, text in changed:
        lines[number] = text
    return "\n".join([*lines, ""]).encode()


# Three versions, of which 2.0.5 is a maintenance release that came after 3.0.0.
VERSIONS: dict[str, dict[str, bytes]] = {
    "2.0.4": {"app.py": source_file(), "style.css": b"a\nb\nc\n", "sql/0001.sql": b"one\n", "old.txt": b"old\n" * 9},
    "3.0.0": {"app.py": source_file((2, "three")), "style.css": b"a\nb\nc\nd\n", "sql/0001.sql": b"one\n", "new": b"n"},
    "2.0.5": {
        "app.py": source_file((2, "two-five")),
        "style.css": b"a\nB\nc\n",
        "sql/0001.sql": b"one\n",
        "old.txt": b"o",
    },
}


class Story:
    """One customer, told in verbs; every move is made at once, as the ledger would."""

    def __init__(self, repository: Repository, customer: str = "acme") -> None:
        self.repository = repository
        self.installation = Installation(repository, customer)

    def deliver(self, version: str, files: dict[str, bytes]) -> str:
        commit = self.repository.write_commits([NewCommit(None, files, [], f"shop {version}\n", AUTHOR, EPOCH)])[0]
        self.repository.move([RefMove(ref=f"refs/tags/product/shop/{version}", old=None, new=commit)])
        return commit

    def done(self, prepared: Prepared) -> str:
        self.repository.move(prepared.moves)
        return prepared.commit

    def start(self, version: str) -> str:
        return self.done(self.installation.start("shop", version, author="ana", at=AT))

    def merge(self, version: str, merged: str | None = None) -> str:
        return self.done(self.installation.merge_version("shop", version, author="ana", at=AT, merged=merged))

    def write(self, changes: dict[str, bytes | None], *, push: bool = True, message: str = "change\n") -> str:
        """An ordinary commit on the line, as an engineer would push it."""
        tip = self.installation.line_tip()
        assert tip
        commit = self.repository.write_commits([NewCommit(tip, changes, [tip], message, "ana", AT)])[0]
        if push:
            self.repository.move([RefMove(ref=self.installation.line, old=tip, new=commit)])
        return commit

    def release(self, version: str, commit: str | None = None) -> str:
        name = self.installation.next_release(version)
        target = commit or self.installation.line_tip() or ""
        move = self.installation.release_tag(name, target, trailers={"Ticket": "A-1"}, author="ana", at=AT)
        self.repository.move([move])
        return name

    def line(self, path: str = "app.py") -> bytes | None:
        return self.repository.read(f"{self.installation.line}:{path}")

    def files(self, commitish: str) -> dict[str, bytes]:
        entries = self.repository.entries(commitish)
        return {entry.path: self.repository.read(entry.oid) or b"" for entry in entries}


@pytest.fixture
def story(tmp_path: Path) -> Story:
    story = Story(Repository.open(tmp_path / "installations.git"))
    for version, files in VERSIONS.items():
        story.deliver(version, files)
    return story


def changed_lines(data: bytes | None) -> Sequence[str]:
    return [text for n, text in enumerate((data or b"").decode().splitlines()) if text != f"line {n}"]


# --- the line ------------------------------------------------------------------------------------------------------------


def test_a_line_starts_as_the_product_and_once(story: Story) -> None:
    installation = story.installation
    with pytest.raises(NotKnown, match=r"line\.start"):
        installation.held_version()
    prepared = installation.start("shop", "2.0.4", author="ana", at=AT)
    assert installation.line_tip() is None, "the ledger moves the refs, nobody else"
    commit = story.done(prepared)
    product = installation.products.commit("shop", "2.0.4")
    info = story.repository.commit_info(commit)
    assert info.parents == (product,)
    assert info.tree == story.repository.tree_of(product)
    assert info.trailers == {"Product": "shop", "Product-Version": "2.0.4"}
    assert installation.held_version() == ("2.0.4", product)
    assert installation.customisations() == []
    assert not installation.start("shop", "2.0.4", author="ana", at=AT).changed
    with pytest.raises(Refused, match="has a line already"):
        installation.start("shop", "3.0.0", author="ana", at=AT)
    with pytest.raises(NotKnown, match=r"2\.0\.4"):
        Installation(story.repository, "beta").start("shop", "9", author="ana", at=AT)


@pytest.mark.parametrize(
    "order", [("2.0.4", "3.0.0", "2.0.5"), ("2.0.5", "2.0.4", "3.0.0"), ("3.0.0", "2.0.5", "3.0.0")]
)
def test_without_customisations_every_merge_is_the_products_tree(story: Story, order: tuple[str, ...]) -> None:
    story.start(order[0])
    for version in order[1:]:
        before = story.installation.line_tip()
        commit = story.merge(version)
        product = story.installation.products.commit("shop", version)
        assert story.repository.commit_info(commit).parents == (before, product)
        assert story.repository.tree_of(commit) == story.repository.tree_of(product)
        assert story.installation.held_version() == (version, product)
        assert story.installation.customisations() == []
    again = story.installation.merge_version("shop", order[-1], author="ana", at=AT)
    assert not again.changed and again.moves == ()


def test_a_customisation_survives_every_merge(story: Story) -> None:
    story.start("2.0.4")
    story.write({"app.py": source_file((25, "acme's own")), "logo.svg": b"<svg/>"})
    for version in ("3.0.0", "2.0.5"):
        story.merge(version)
        files = story.files(story.installation.line)
        expected = VERSIONS[version]["app.py"].decode().replace("line 25", "acme's own").encode()
        assert files == {**VERSIONS[version], "app.py": expected, "logo.svg": b"<svg/>"}
        assert story.installation.customisations() == ["app.py", "logo.svg"]


def test_a_trailer_that_somebody_typed_is_not_a_version(story: Story) -> None:
    story.start("2.0.4")
    story.write({"a": b"1"}, message="own\n\nProduct: shop\nProduct-Version: 3.0.0\n")
    assert story.installation.held_version()[0] == "2.0.4"
    story.merge("3.0.0")
    assert story.line() == VERSIONS["3.0.0"]["app.py"]


@pytest.mark.parametrize("customer", ["product", "a/b", "a b", "..", "-x", "a~1", ""])
def test_a_key_that_a_ref_cannot_hold_is_refused(tmp_path: Path, customer: str) -> None:
    with pytest.raises(Refused):
        Installation(Repository.open(tmp_path / "r.git"), customer)


@pytest.mark.parametrize("release", ["2.0 4+1", "2.0.4+1~", "a/b", "2..4+1", "x.lock", "é+1", "", "@{u}"])
def test_a_release_name_that_a_ref_cannot_hold_is_refused(story: Story, release: str) -> None:
    with pytest.raises(Refused):
        story.installation.tag_ref(release)


# --- conflicts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def conflict(story: Story) -> MergeConflict:
    story.start("2.0.4")
    story.write({"app.py": source_file((2, "acme's own")), "old.txt": b"acme\n" * 9})
    refs = story.repository.refs()
    with pytest.raises(MergeConflict) as caught:
        story.installation.merge_version("shop", "3.0.0", author="ana", at=AT, again="invoke release customer=acme")
    assert story.repository.refs() == refs, "nothing moves on a conflict"
    return caught.value


def test_a_conflict_is_told_file_by_file(story: Story, conflict: MergeConflict) -> None:
    read = story.repository.read
    assert {c.path: [oid and read(oid) for oid in (c.base, c.ours, c.theirs)] for c in conflict.conflicts} == {
        "app.py": [VERSIONS["2.0.4"]["app.py"], source_file((2, "acme's own")), VERSIONS["3.0.0"]["app.py"]],
        "old.txt": [b"old\n" * 9, b"acme\n" * 9, None],
    }
    text = conflict.render()
    assert "2 files conflict" in text and "which held 2.0.4" in text
    assert "old.txt: changed on the line, removed in the new one" in text
    assert "invoke release customer=acme merged=COMMIT" in text
    assert conflict.exit_code == 1
    assert {c["path"] for c in conflict.as_json()["error"]["details"]["conflicts"]} == {"app.py", "old.txt"}


def test_the_printed_commands_resolve_it_and_merged_continues(
    story: Story, conflict: MergeConflict, tmp_path: Path
) -> None:
    folder = story.installation.checkout(tmp_path / "work")
    git = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.invalid"]
    picked = subprocess.run([*git, "cherry-pick", conflict.pick[:12]], capture_output=True, text=True, check=False)
    assert picked.returncode == 1 and "app.py" in picked.stdout
    assert b"<<<<<<< " in (folder / "app.py").read_bytes()
    assert (folder / "new").read_bytes() == b"n", "what merges by itself is there"
    (folder / "app.py").write_bytes(source_file((2, "three, for acme")))
    subprocess.run([*git, "add", "app.py"], check=True)
    subprocess.run([*git, "rm", "-q", "old.txt"], check=True, capture_output=True)
    finished = shlex.split(conflict.next_commands[2].partition("#")[0].replace("acme-merge", str(folder)))
    subprocess.run([*git, "-c", "core.editor=true", *finished[3:]], check=True, capture_output=True)
    assert not (folder / ".git" / "CHERRY_PICK_HEAD").exists()
    subprocess.run([*git, "push", "-q", "origin", "+HEAD:refs/heads/acme/merging"], check=True, capture_output=True)
    resolved = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for name in (resolved[:12], "acme/merging"):
        prepared = story.installation.merge_version("shop", "3.0.0", author="ana", at=AT, merged=name)
        product = story.installation.products.commit("shop", "3.0.0")
        assert story.repository.commit_info(prepared.commit).parents == (resolved, product)
    story.done(prepared)
    assert story.files(story.installation.line) == {
        **VERSIONS["3.0.0"],
        "app.py": source_file((2, "three, for acme")),
    }
    assert story.installation.held_version()[0] == "3.0.0"
    # The next merge has 3.0.0 as its base: acme's resolution is a customisation now.
    assert story.installation.customisations() == ["app.py"]


def test_a_conflict_that_stays_as_the_line_has_it_continues_with_the_same_commands(
    story: Story, tmp_path: Path
) -> None:
    story.deliver("2.0.6", {**VERSIONS["2.0.4"], "app.py": source_file((2, "two-six"))})
    story.start("2.0.4")
    story.write({"app.py": source_file((2, "acme's own"))})
    with pytest.raises(MergeConflict) as caught:
        story.installation.merge_version("shop", "2.0.6", author="ana", at=AT)
    conflict = caught.value
    assert conflict.in_order
    folder = story.installation.checkout(tmp_path / "acme-merge")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.invalid", "-c", "core.editor=true"]

    def typed(command: str, *, code: int = 0) -> None:
        words = shlex.split(command.partition("#")[0])
        done = subprocess.run([*git, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr

    typed(conflict.next_commands[1], code=1)
    typed("git -C acme-merge checkout --ours app.py")
    typed("git -C acme-merge add app.py")
    for command in conflict.next_commands[2:-1]:
        typed(command)
    assert not (folder / ".git" / "CHERRY_PICK_HEAD").exists()
    story.done(story.installation.merge_version("shop", "2.0.6", author="ana", at=AT, merged="acme/merging"))
    assert story.installation.held_version()[0] == "2.0.6"
    assert story.line() == source_file((2, "acme's own"))


RESOLVED: dict[str, bytes | None] = {
    "app.py": source_file((2, "both")),
    "old.txt": None,
    "style.css": b"a\nb\nc\nd\n",
    "new": b"n",
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"app.py": b"<<<<<<< HEAD\nx\n=======\ny\n>>>>>>> theirs\n"}, "app.py: still holds conflict markers"),
        ({"style.css": b"a\nb\nc\n"}, "style.css: the change merges by itself, and is not in it"),
        ({"new": None}, "new: the change merges by itself, and is not in it"),
    ],
)
def test_what_does_not_resolve_it_is_refused(
    story: Story, conflict: MergeConflict, change: dict[str, bytes | None], word: str
) -> None:
    bad = story.write({**RESOLVED, **change}, push=False)
    refs = story.repository.refs()
    with pytest.raises(Refused) as caught:
        story.merge("3.0.0", merged=bad)
    assert word in caught.value.render()
    assert story.repository.refs() == refs
    good = story.write(RESOLVED, push=False)
    story.merge("3.0.0", merged=good)
    assert story.line("new") == b"n"


def test_naming_the_line_itself_as_the_resolution_is_refused(story: Story, conflict: MergeConflict) -> None:
    with pytest.raises(Refused, match=r"style\.css"):
        story.merge("3.0.0", merged=story.installation.line_tip())


def test_a_resolution_pushed_to_the_line_itself_continues_too(story: Story, conflict: MergeConflict) -> None:
    resolved = story.write(RESOLVED)
    story.merge("3.0.0", merged=resolved)
    assert story.installation.held_version()[0] == "3.0.0"
    assert story.line() == RESOLVED["app.py"]


def test_a_resolution_that_does_not_descend_from_the_line_is_refused(story: Story, conflict: MergeConflict) -> None:
    early = story.write(RESOLVED, push=False)
    story.write({"meanwhile": b"1"})
    with pytest.raises(Refused, match="does not descend"):
        story.merge("3.0.0", merged=early)
    with pytest.raises(Refused, match="does not descend"):
        story.merge("3.0.0", merged=story.installation.products.commit("shop", "3.0.0"))
    for name in ("1234567", "acme/none", "f" * 40):
        with pytest.raises(NotKnown, match="push"):
            story.merge("3.0.0", merged=name)
    for name in ("HEAD~1", "--all", "main:app.py", ":/three"):
        with pytest.raises(Refused):
            story.merge("3.0.0", merged=name)


# --- patches -------------------------------------------------------------------------------------------------------------

FIX = {"app.py": source_file((15, "fixed"))}


@pytest.fixture
def hotfix(story: Story) -> Story:
    """Production runs 2.0.4+1, and the line is further: 3.0.0+1 waits on test."""
    story.start("2.0.4")
    story.write({"logo.svg": b"<svg/>"})
    assert story.release("2.0.4") == "2.0.4+1"
    story.merge("3.0.0")
    assert story.release("3.0.0") == "3.0.0+1"
    return story


def diff_of(story: Story, old: str, new: str) -> bytes:
    return subprocess.run(
        ["git", f"--git-dir={story.repository.path}", "diff", old, new], check=True, capture_output=True
    ).stdout


def test_a_patch_is_built_on_its_release_and_merged_with_it_as_the_base(hotfix: Story) -> None:
    installation, repository = hotfix.installation, hotfix.repository
    base, tip = installation.release_commit("2.0.4+1"), installation.line_tip()
    written = repository.write_commits([NewCommit(base, FIX, [base], "x\n", "ana", AT)])[0]
    diff = diff_of(hotfix, base, written)
    prepared = installation.patch(
        "2.0.4+1", diff=diff, patch_id="CVE-2026-1", author="ana", at=AT, trailers={"Ticket": "ACME-7"}
    )
    info = repository.commit_info(prepared.commit)
    assert info.parents == (base,)
    assert info.trailers == {"Patch-Ids": "CVE-2026-1", "Ticket": "ACME-7"}
    # Production gets the fix and nothing of 3.0.0; the line gets the fix and loses nothing of it.
    assert hotfix.files(prepared.commit) == {**VERSIONS["2.0.4"], **FIX, "logo.svg": b"<svg/>"}
    assert repository.commit_info(prepared.line).parents == (tip, prepared.commit)
    hotfix.done(prepared)
    assert hotfix.files(installation.line) == {
        **VERSIONS["3.0.0"],
        "app.py": source_file((2, "three"), (15, "fixed")),
        "logo.svg": b"<svg/>",
    }
    assert installation.held_version()[0] == "3.0.0"
    assert installation.held_version(prepared.commit)[0] == "2.0.4"
    assert hotfix.release("2.0.4", prepared.commit) == "2.0.4+2"
    assert hotfix.release("3.0.0") == "3.0.0+2"
    contains = {
        name: installation.contains(installation.release_commit(name), prepared.commit)
        for name in installation.releases()
    }
    assert contains == {"2.0.4+1": False, "2.0.4+2": True, "3.0.0+1": False, "3.0.0+2": True}


def test_a_patch_on_a_patch_and_then_the_next_version(hotfix: Story) -> None:
    installation = hotfix.installation
    for number, line in ((1, 15), (2, 20)):
        base = installation.release_commit(f"2.0.4+{number}")
        data = (hotfix.repository.read(f"{base}:app.py") or b"").replace(b"line %d\n" % line, b"fix %d\n" % number)
        fix = hotfix.repository.write_commits([NewCommit(base, {"app.py": data}, [base], "x\n", "ana", AT)])[0]
        done = installation.patch(f"2.0.4+{number}", commit=fix, patch_id=f"P-{number}", author="ana", at=AT)
        hotfix.release("2.0.4", hotfix.done(done))
    assert changed_lines(hotfix.line()) == ["three", "fix 1", "fix 2"]
    hotfix.merge("2.0.5")
    assert changed_lines(hotfix.line()) == ["two-five", "fix 1", "fix 2"]
    assert installation.contains(installation.line_tip() or "", installation.release_commit("2.0.4+3"))


def test_a_commit_of_the_line_is_carried_back_without_the_rest(hotfix: Story) -> None:
    fix = hotfix.write({"app.py": source_file((2, "three"), (15, "fixed"))})
    prepared = hotfix.installation.patch("2.0.4+1", commit=fix[:10], patch_id="P", author="ana", at=AT)
    assert hotfix.files(prepared.commit)["app.py"] == FIX["app.py"]
    assert hotfix.repository.tree_of(prepared.line) == hotfix.repository.tree_of(fix)


def test_a_line_that_is_at_the_release_follows_without_a_merge(story: Story) -> None:
    story.start("2.0.4")
    story.release("2.0.4")
    base = story.installation.line_tip() or ""
    fix = story.repository.write_commits([NewCommit(base, FIX, [base], "x\n", "ana", AT)])[0]
    prepared = story.installation.patch("2.0.4+1", diff=diff_of(story, base, fix), patch_id="P", author="ana", at=AT)
    assert prepared.line == prepared.commit
    assert prepared.moves == (RefMove(ref=story.installation.line, old=base, new=prepared.commit),)


def test_a_patch_that_does_not_apply_or_is_none(hotfix: Story) -> None:
    installation, refs = hotfix.installation, hotfix.repository.refs()
    base = installation.release_commit("2.0.4+1")
    other = hotfix.repository.write_commits([NewCommit(base, {"app.py": b"x\n"}, [base], "x\n", "ana", AT)])[0]
    wrong = hotfix.repository.write_commits([NewCommit(other, {"app.py": b"y\n"}, [other], "x\n", "ana", AT)])[0]
    outside = b"--- a/x\n+++ b/../../x\n@@ -0,0 +1 @@\n+x\n"
    for diff, word in (
        (diff_of(hotfix, other, wrong), "app.py"),
        (b"no diff", "valid patches"),
        (outside, "invalid path|rror"),
    ):
        with pytest.raises(Failed, match=word):
            installation.patch("2.0.4+1", diff=diff, patch_id="P", author="ana", at=AT)
    with pytest.raises(Failed, match="does not apply"):
        installation.patch("2.0.4+1", commit=wrong, patch_id="P", author="ana", at=AT)
    with pytest.raises(Refused, match="2 parents"):
        installation.patch("2.0.4+1", commit=installation.line_tip(), patch_id="P", author="ana", at=AT)
    with pytest.raises(UsageError):
        installation.patch("2.0.4+1", patch_id="P", author="ana", at=AT)
    with pytest.raises(NotKnown, match=r"2\.0\.4\+1, 3\.0\.0\+1"):
        installation.patch("2.0.4+9", commit=wrong, patch_id="P", author="ana", at=AT)
    assert hotfix.repository.refs() == refs


def test_a_patch_that_the_release_holds_already_is_refused(hotfix: Story) -> None:
    base = hotfix.installation.release_commit("2.0.4+1")
    logo = hotfix.repository.commit_info(base).oid
    with pytest.raises(Refused, match="holds it already"):
        hotfix.installation.patch("2.0.4+1", commit=logo, patch_id="P", author="ana", at=AT)


def test_a_patch_that_conflicts_with_the_line_continues_with_merged(hotfix: Story) -> None:
    installation = hotfix.installation
    base = installation.release_commit("2.0.4+1")
    changes: dict[str, bytes | tuple[str, str | bytes] | None] = {"app.py": source_file((2, "fixed")), "extra": b"e"}
    fix = hotfix.repository.write_commits([NewCommit(base, changes, [base], "x\n", "ana", AT)])[0]
    diff, refs = diff_of(hotfix, base, fix), hotfix.repository.refs()
    with pytest.raises(MergeConflict) as caught:
        installation.patch("2.0.4+1", diff=diff, patch_id="P", author="ana", at=AT)
    assert [conflict.path for conflict in caught.value.conflicts] == ["app.py"]
    assert hotfix.repository.refs() == refs
    half = hotfix.write({"app.py": source_file((2, "three, fixed"))}, push=False)
    with pytest.raises(Refused, match="extra"):
        installation.patch("2.0.4+1", diff=diff, patch_id="P", author="ana", at=AT, merged=half)
    whole = hotfix.write({"app.py": source_file((2, "three, fixed")), "extra": b"e"}, push=False)
    prepared = installation.patch("2.0.4+1", diff=diff, patch_id="P", author="ana", at=AT, merged=whole)
    assert hotfix.repository.commit_info(prepared.line).parents == (whole, prepared.commit)
    hotfix.done(prepared)
    assert hotfix.line() == source_file((2, "three, fixed"))


# --- releases and environments -------------------------------------------------------------------------------------------


def test_releases_count_up_for_each_version(story: Story) -> None:
    story.start("2.0.4")
    assert [story.release("2.0.4") for _ in range(11)][-1] == "2.0.4+11"
    assert story.installation.next_release("2.0.4") == "2.0.4+12"
    assert story.installation.next_release("2.0") == "2.0+1"
    assert Installation(story.repository, "acme2").releases() == {}
    info = story.installation.release_commit("2.0.4+11")
    assert info == story.installation.line_tip()
    text = story.repository.read("refs/tags/acme/2.0.4+3") or b""
    assert text.endswith(b"Release 2.0.4+3 for acme\n\nRelease: 2.0.4+3\nTicket: A-1\n")


def test_an_environments_branch_is_a_chain_of_installed_trees(hotfix: Story) -> None:
    installation, repository = hotfix.installation, hotfix.repository
    previous: str | None = None
    for number, release in enumerate(("2.0.4+1", "3.0.0+1", "2.0.4+1"), start=1):
        target = installation.release_commit(release)
        move = installation.deployed(
            "test", target, previous, title="t", trailers={"Record-Id": f"r{number}"}, author="ana", at=AT
        )
        assert move.old == previous and move.ref == "refs/heads/acme/env/test"
        repository.move([move])
        info = repository.commit_info(move.ref)
        assert info.parents == ((previous, target) if previous else (target,))
        assert info.tree == repository.tree_of(target)
        previous = move.new
    walk = [info.trailers.get("Record-Id") for info in repository.first_parents("refs/heads/acme/env/test")]
    assert walk[:4] == ["r3", "r2", "r1", None]
    with pytest.raises(ValueError, match="Record-Id"):
        installation.deployed("test", target, None, title="t", trailers={}, author="ana", at=AT)


# --- a work tree ---------------------------------------------------------------------------------------------------------


def test_a_work_tree_pushes_to_where_the_installations_are(story: Story, tmp_path: Path) -> None:
    shared = Repository.open(tmp_path / "shared.git")
    mirror = Repository.open(tmp_path / "mirror.git", remote=str(shared.path))
    acme, beta = Story(mirror), Story(mirror, "beta")
    acme.deliver("2.0.4", VERSIONS["2.0.4"])
    acme.start("2.0.4")
    beta.start("2.0.4")
    folder = acme.installation.checkout(tmp_path / "work")
    git = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.invalid"]
    (folder / "logo.svg").write_text("<svg/>")
    for arguments in (["add", "."], ["commit", "-qm", "logo"], ["push", "-q"]):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    branches = subprocess.run([*git, "branch", "-a"], check=True, capture_output=True, text=True).stdout
    assert "beta" not in branches
    mirror.fetch()
    assert acme.installation.customisations() == ["logo.svg"]
    assert shared.ref(acme.installation.line) == mirror.ref(acme.installation.line)
    with pytest.raises(UsageError, match="not an empty folder"):
        acme.installation.checkout(folder)
    with pytest.raises(NotKnown):
        Installation(mirror, "gamma").checkout(tmp_path / "other")
