"""Products, lines, releases and patches: what becomes of a version, and that nothing is ever half-merged.

What is marked slow takes more time than ``make quick`` has.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pipeline.errors import Failed, NotKnown, PipelineError, Refused, UsageError
from pipeline.installation import MergeConflict
from pipeline.workflow import lines, products, releases, tickets
from tests.flows import Flow, customise, told
from tests.workspaces import Sample

pytestmark = pytest.mark.slow

LINES = "line two\nline three\nline four\nline five\n"
COMMENT = "--- a/KNOWN_ISSUES.md\n+++ b/KNOWN_ISSUES.md\n@@ -1,3 +1,4 @@\n # Known\n \n - the clock is slow\n+# why\n"


@pytest.fixture
def live(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "live")


@pytest.fixture
def released(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    return told(tmp_path_factory, tmp_path, "released")


def resolve(flow: Flow, conflict: MergeConflict, files: dict[str, str]) -> str:
    """What the error's next commands tell a person to do; the branch that it is pushed to."""
    tree = Path(lines.checkout_line(flow.session(), customer="acme", folder=Path("acme-merge")).folder or "")
    with pytest.raises(Exception, match="cherry-pick"):
        flow.git(tree, "cherry-pick", conflict.pick)
    for path, text in files.items():
        (tree / path).write_text(text)
    flow.git(tree, "add", "-A")
    flow.git(tree, "-c", "core.editor=true", "cherry-pick", "--continue")
    flow.git(tree, "push", "-q", "origin", "+HEAD:refs/heads/acme/merging")
    return flow.git(tree, "rev-parse", "HEAD")


def fix(flow: Flow, text: str) -> str:
    """A commit on the product's 1.0.0, on a branch of the product's own repository."""
    flow.git(flow.product, "checkout", "-q", "-B", "hotfix", "v1.0.0")
    (flow.product / "app.txt").write_text(text)
    flow.git(flow.product, "commit", "-q", "-a", "-m", "fix")
    commit = flow.git(flow.product, "rev-parse", "HEAD")
    flow.git(flow.product, "checkout", "-q", "main")
    return commit


def patch(flow: Flow, **more: object) -> releases.ReleaseMade:
    more.setdefault("tickets", ("ACME-1",))
    return releases.make_patch(flow.session(), customer="acme", **more)  # type: ignore[arg-type]


def app(flow: Flow, commitish: str) -> str:
    return (flow.repository.read(f"{commitish}:app.txt") or b"").decode()


# --- products and lines ------------------------------------------------------------------------------------------------


def test_from_the_product_to_the_first_release(tmp_path: Path) -> None:
    flow = Flow.at(tmp_path, Sample(tmp_path).clock.now)
    with pytest.raises(NotKnown):
        lines.start_line(flow.session(), customer="acme", version="1.0.0")
    would = products.import_product(flow.session(), product="depot", dry_run=True)
    assert (would.changed, would.imported) == (False, ("1.0.0", "1.1.0"))
    assert flow.refs() == {}
    done = products.import_product(flow.session(), product="depot")
    assert (done.changed, done.imported, done.present) == (True, ("1.0.0", "1.1.0"), ("1.0.0", "1.1.0"))
    assert products.import_product(flow.session(), product="depot").changed is False
    before = flow.refs()
    assert set(before) == {"refs/tags/product/depot/1.0.0", "refs/tags/product/depot/1.1.0"}

    with pytest.raises(NotKnown):
        lines.start_line(flow.session(), customer="acme", version="9.9.9")
    assert lines.start_line(flow.session(), customer="acme", version="1.0.0", dry_run=True).changed is False
    assert flow.refs() == before
    assert lines.start_line(flow.session(), customer="acme", version="1.0.0").changed is True
    assert lines.start_line(flow.session(), customer="acme", version="1.0.0").changed is False
    assert [record.kind for record in flow.records()] == ["line-started"]
    with pytest.raises(Refused, match="has a line already"):
        lines.start_line(flow.session(), customer="acme", version="1.1.0")

    with pytest.raises(UsageError, match="names its ticket"):
        releases.make_release(flow.session(), customer="acme", version="1.0.0", tickets=())
    with pytest.raises(NotKnown, match="ACME-1"):
        flow.release("1.0.0")
    before = flow.refs()
    assert tickets.open_ticket(flow.session(), customer="acme", title="x", dry_run=True).ticket == "ACME-1"
    assert flow.refs() == before
    assert flow.ticket() == "ACME-1"
    before = flow.refs()
    would_be = flow.release("1.0.0", dry_run=True)
    assert (would_be.changed, would_be.release) == (False, "1.0.0+1")
    assert flow.refs() == before
    made = flow.release("1.0.0")
    assert (made.changed, made.release, made.migrations, made.customisations) == (
        True,
        "1.0.0+1",
        ("001_base.sql",),
        (),
    )
    again = flow.release("1.0.0")
    assert (again.changed, again.release, again.commit) == (False, "1.0.0+1", made.commit)
    assert flow.repository.tree_of(made.commit) == flow.repository.tree_of("refs/tags/product/depot/1.0.0")
    tag = (flow.repository.read("refs/tags/acme/1.0.0+1") or b"").decode()
    assert "Ticket: ACME-1" in tag
    assert f"Record-Id: {flow.records('release-made')[0].id}" in tag
    assert flow.ledger.verify(flow.session().workspace.people) == []


@pytest.mark.slow
def test_a_version_that_was_tagged_anew_is_refused(released: Flow) -> None:
    before = released.refs()
    released.git(released.product, "tag", "-f", "v1.1.0", "v1.0.0")
    with pytest.raises(Refused, match=r"1\.1\.0"):
        products.import_product(released.session(), product="depot")
    assert released.refs() == before


def test_an_archive_is_a_version_too(released: Flow) -> None:
    folder = released.folder / "delivered"
    released.write("delivered/depot/app.txt", "depot 1.2.0\n")
    with tarfile.open(released.folder / "depot.tar.gz", "w:gz") as archive:
        archive.add(folder / "depot", "depot-1.2.0")
    path = released.folder / "depot.tar.gz"
    with pytest.raises(UsageError, match="needs the version"):
        products.import_product(released.session(), product="depot", archive=path)
    done = products.import_product(released.session(), product="depot", archive=path, version="1.2.0")
    assert done.imported == ("1.2.0",)
    assert app(released, "refs/tags/product/depot/1.2.0") == "depot 1.2.0\n"


def test_a_customisation_goes_into_every_release_after_it(released: Flow) -> None:
    commit = customise(released, "extra.txt", "acme's own\n")
    built = released.release("1.0.0")
    assert (built.release, built.customisations, built.commit) == ("1.0.0+2", ("extra.txt",), commit)
    newer = released.release("1.1.0")
    assert newer.release == "1.1.0+1"
    assert newer.since == "1.0.0+2"
    assert newer.customisations == ("extra.txt",)
    assert newer.migrations == ("002_price.sql",)
    assert ("A", "new.txt") in newer.files
    assert released.repository.read(f"{newer.commit}:extra.txt") == b"acme's own\n"
    before = released.refs()
    with pytest.raises(Refused, match="only goes forward") as refused:
        released.release("1.0.0")
    assert refused.value.next_commands == ("invoke rollback customer=acme env=…",)
    assert released.refs() == before


def test_a_conflict_moves_nothing_and_is_finished_by_a_person(released: Flow) -> None:
    customise(released, "app.txt", "acme 1.0.0\n" + LINES)
    before = released.refs()
    for dry_run in (True, False):
        with pytest.raises(MergeConflict) as caught:
            released.release("1.1.0", dry_run=dry_run)
        assert [conflict.path for conflict in caught.value.conflicts] == ["app.txt"]
        assert "ticket=ACME-1 merged=COMMIT" in caught.value.next_commands[-1]
        assert released.refs() == before

    half = resolve(released, caught.value, {"app.txt": "<<<<<<< ours\nacme\n=======\ndepot\n>>>>>>> theirs\n"})
    before = released.refs()
    with pytest.raises(Refused, match=r"app\.txt: still holds conflict markers"):
        released.release("1.1.0", merged=half)
    with pytest.raises(Refused, match=r"new\.txt|migrations/002_price\.sql"):
        released.release("1.1.0", merged="acme/main")
    assert released.refs() == before

    tree = released.folder / "acme-merge"
    (tree / "app.txt").write_text("acme 1.1.0\n" + LINES)
    released.git(tree, "commit", "-q", "-a", "--amend", "--no-edit")
    released.git(tree, "push", "-q", "origin", "+HEAD:refs/heads/acme/merging")
    made = released.release("1.1.0", merged="acme/merging")
    assert made.release == "1.1.0+1"
    assert app(released, made.commit) == "acme 1.1.0\n" + LINES
    assert released.repository.read(f"{made.commit}:new.txt") == b"new\n"
    assert released.installation.held_version()[0] == "1.1.0"
    # Merged for good: the same version again, without naming the resolution, has nothing to merge.
    assert released.release("1.1.0").changed is False


# --- patches -----------------------------------------------------------------------------------------------------------


def test_a_patch_is_the_installed_release_and_the_fix_and_on_the_line(live: Flow) -> None:
    live.deploy()
    assert live.state().sign_offs[-1].status == "open"
    commit = fix(live, "depot 1.0.0\nline two\nline three\nline four\nline five, fixed\n")
    before = live.refs()
    for wrong in ({}, {"commit": commit, "file": Path("x")}):
        with pytest.raises(UsageError, match="either as commit= or as file="):
            patch(live, **wrong)
    with pytest.raises(NotKnown, match=r"no environment 'tset' \(did you mean 'test'\?\)"):
        patch(live, commit=commit, environment="tset")
    would = patch(live, commit=commit, dry_run=True)
    assert (would.changed, would.release) == (False, "1.0.0+2")
    assert live.refs() == before

    made = patch(live, commit=commit, id="FIX-7")
    assert (made.release, made.version, made.since, made.patches) == ("1.0.0+2", "1.0.0", "1.0.0+1", ("FIX-7",))
    assert made.superseded == "1.1.0+1"
    assert app(live, made.commit) == "depot 1.0.0\nline two\nline three\nline four\nline five, fixed\n"
    line = live.refs()["refs/heads/acme/main"]
    assert app(live, line) == "depot 1.1.0\nline two\nline three\nline four\nline five, fixed\n"
    assert live.installation.contains(line, made.commit)
    assert live.installation.held_version()[0] == "1.1.0"
    sign_off = live.state().sign_offs[-1]
    assert (sign_off.release, sign_off.status) == ("1.1.0+1", "superseded")
    assert "FIX-7 (1.0.0+2) is not in it" in (sign_off.reason or "")
    with pytest.raises(Refused, match="has a patch FIX-7 already"):
        patch(live, commit=fix(live, "depot 1.0.0\nother\n"), id="FIX-7")
    # The next release of the newer version has it.
    assert live.release("1.1.0").patches == ("FIX-7",)
    assert live.ledger.verify(live.session().workspace.people) == []


@pytest.mark.slow
def test_a_patch_as_a_diff(live: Flow) -> None:
    diff = "--- a/app.txt\n+++ b/app.txt\n@@ -4,2 +4,2 @@\n line four\n-line five\n+line 5\n"
    live.write("fix.diff", diff)
    with pytest.raises(UsageError, match=r"nofile\.diff cannot be read"):
        patch(live, file=Path("nofile.diff"))
    live.write("bad.diff", diff.replace("line four", "line 4"))
    before = live.refs()
    with pytest.raises(Failed, match=r"the diff does not apply to 1\.0\.0\+1"):
        patch(live, file=Path("bad.diff"))
    assert live.refs() == before
    made = patch(live, file=Path("fix.diff"))
    assert made.patches == ("acme-1",)
    assert app(live, made.commit).endswith("line four\nline 5\n")
    assert app(live, "refs/heads/acme/main").startswith("depot 1.1.0\n")


def test_a_patch_that_conflicts_with_the_line_moves_nothing_and_is_finished_by_a_person(live: Flow) -> None:
    commit = fix(live, "depot 1.0.0 fixed\n" + LINES)
    with pytest.raises(MergeConflict) as caught:
        patch(live, commit=commit, id="F1")
    after_look = live.refs()
    assert not [ref for ref in after_look if ref.startswith("refs/tags/acme/1.0.0+2")]
    assert live.state().patches == ()
    assert "id=F1 merged=COMMIT" in caught.value.next_commands[-1]
    assert f"commit={commit}" in caught.value.next_commands[-1]

    resolved = resolve(live, caught.value, {"app.txt": "depot 1.1.0 fixed\n" + LINES})
    made = patch(live, commit=commit, id="F1", merged=resolved)
    assert app(live, made.commit) == "depot 1.0.0 fixed\n" + LINES
    assert app(live, "refs/heads/acme/main") == "depot 1.1.0 fixed\n" + LINES
    assert live.installation.contains("refs/heads/acme/main", made.commit)
    assert live.ledger.verify(live.session().workspace.people) == []


def test_a_second_patch_keeps_the_first_which_is_not_installed_yet(live: Flow) -> None:
    first = patch(live, commit=fix(live, "depot 1.0.0\nline two\nline three\nline four\nline five, fixed\n"), id="A")
    assert (first.base, first.left_out) == ("1.0.0+1", ())
    live.write("b.diff", COMMENT)
    second = patch(live, file=Path("b.diff"), id="B")
    assert (second.release, second.base, second.since) == ("1.0.0+3", "1.0.0+2", "1.0.0+2")
    assert (second.patches, second.left_out) == (("A", "B"), ())
    assert "  built on 1.0.0+2" in second.lines()
    assert app(live, second.commit).endswith("line five, fixed\n")
    assert second.files == (("M", "KNOWN_ISSUES.md"),)
    assert live.release("1.1.0").patches == ("A", "B")
    assert live.ledger.verify(live.session().workspace.people) == []

    # A patched release that the customer rejected is not built on, and neither is what came after it.
    live.deploy("1.0.0+2")
    live.decide("rejected", reasons="non")
    live.write("c.diff", "--- /dev/null\n+++ b/c.txt\n@@ -0,0 +1 @@\n+c\n")
    third = patch(live, file=Path("c.diff"), id="C", dry_run=True)
    assert (third.base, third.patches) == ("1.0.0+1", ("C",))
    assert "  NOT in it: patch A, the customer rejected 1.0.0+2" in third.lines()
    assert "  NOT in it: patch B, it was built on 1.0.0+2" in third.lines()


def test_a_patch_that_the_environment_was_rolled_back_from_is_not_built_on(live: Flow) -> None:
    patch(live, commit=fix(live, "depot 1.0.0\nline two\nline three\nline four\nline five, fixed\n"), id="A")
    live.deploy("1.0.0+2")
    live.rollback("test")
    live.write("b.diff", COMMENT)
    other = patch(live, file=Path("b.diff"), environment="test", dry_run=True)
    assert (other.base, other.left_out) == ("1.0.0+1", (("A", "test was rolled back from 1.0.0+2"),))
    # Production was not.
    assert patch(live, file=Path("b.diff"), dry_run=True).base == "1.0.0+2"


def test_the_same_patch_again_is_there_already(live: Flow) -> None:
    commit = fix(live, "depot 1.0.0\nline two\nline three\nline four\nline five, fixed\n")
    live.write("a.diff", live.git(live.product, "diff", f"{commit}^", commit) + "\n")
    made = patch(live, commit=commit)
    before = live.refs()
    for again in ({"commit": commit}, {"file": Path("a.diff")}, {"commit": commit, "dry_run": True}):
        there = patch(live, **again)
        assert (there.changed, there.release, there.what) == (
            False,
            made.release,
            "release 1.0.0+2 of acme is there already",
        )
        assert (there.since, there.files, there.patches) == (made.since, made.files, made.patches)
    assert live.refs() == before
    # Rejected, it is still the same fix on the same release.
    live.deploy("1.0.0+2")
    live.decide("rejected", reasons="non")
    assert patch(live, commit=commit).changed is False


def test_a_commit_that_nobody_has_is_asked_of_the_product(live: Flow) -> None:
    for dry_run in (True, False):
        with pytest.raises(NotKnown, match="neither in the repository of depot nor in the installations") as unknown:
            patch(live, commit="0123456789" * 4, dry_run=dry_run)
        assert "to the repository of depot" in unknown.value.next_commands[0]
        assert not any("merging" in command for command in unknown.value.next_commands)


def test_a_release_is_told_the_same_way_again(live: Flow) -> None:
    again = live.release("1.1.0")
    assert (again.changed, again.since, again.migrations) == (False, "1.0.0+1", ("002_price.sql",))
    assert "  differs from the product as delivered: nowhere" in again.lines()


def test_a_tags_name_is_not_a_version(released: Flow) -> None:
    with pytest.raises(NotKnown, match=r"no version v1\.1\.0 here \(did you mean '1\.1\.0'\?\)") as unknown:
        released.release("v1.1.0")
    assert unknown.value.next_commands == ()


@pytest.mark.slow
def test_refused_work_on_a_line_that_was_rewritten(live: Flow) -> None:
    """Nothing is decided for a line that no longer holds what was recorded; the error names the way back."""
    ref, tip = "refs/heads/acme/main", live.refs()["refs/heads/acme/main"]
    stranger = live.git(live.repository.path, "commit-tree", "-m", "rewritten", f"{tip}^{{tree}}")
    live.git(live.repository.path, "update-ref", ref, stranger)
    with pytest.raises(PipelineError, match="was rewritten"):
        live.release("1.1.0")
    live.git(live.repository.path, "update-ref", ref, tip)
    assert live.release("1.1.0").changed is False
