"""The layouts of migrations: trees as the tools of these names make them, and what each tree may have wrong."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.content import script_checksum
from pipeline.errors import Failed, Refused
from pipeline.layouts import files_of, scripts_of
from pipeline.model import Engine, Layout, Manifest, Migrations, Script, TreeFile

Tree = dict[str, str | bytes]


def oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def release(files: Tree, links: tuple[str, ...] = ()) -> tuple[Manifest, dict[str, bytes]]:
    texts = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
    entries = [
        TreeFile.model_validate(
            {
                "path": path,
                "mode": "120000" if path in links else "100644",
                "blob": oid(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "size": len(data),
            }
        )
        for path, data in texts.items()
    ]
    return Manifest(tree="0" * 40, files=tuple(entries)), {oid(data): data for data in texts.values()}


def read(
    layout: Layout, files: Tree, *, engine: Engine = "postgresql", links: tuple[str, ...] = (), **more: Any
) -> list[Script]:
    settings = Migrations(**{"folder": "sql", "layout": layout, **more})
    manifest, blobs = release(files, links)
    asked: set[str] = set()

    def blob(name: str) -> bytes | None:
        asked.add(name)
        return blobs[name]

    found = scripts_of(settings, engine, manifest, blob)
    assert asked <= {file.blob for file in files_of(settings, engine, manifest)}
    return found


def ids(scripts: list[Script]) -> list[str]:
    return [script.id for script in scripts]


def refusal(layout: Layout, files: Tree, **more: Any) -> dict[str, str]:
    """Of each reason, its place and its text."""
    with pytest.raises(Refused) as refused:
        read(layout, files, **more)
    return {reason.source or "": reason.text for reason in refused.value.reasons}


# --- ordered ----------------------------------------------------------------------------------------------------------

BASIC: Tree = {
    "sql/migrations/02_b.sql": "b",
    "sql/migrations/01_a.sql": "a",
    "sql/migrations/more/03_c.sql": "c",
    "sql/migrations/UPPER.SQL": "u",
    "sql/migrations/__init__.py": "",
    "sql/schema.sql": "s",
}


@pytest.mark.parametrize(
    ("folder", "pattern", "expected"),
    [
        ("sql/migrations", "0*.sql", ["01_a.sql", "02_b.sql", "more/03_c.sql"]),
        ("sql/migrations/", "0[12]_*.sql", ["01_a.sql", "02_b.sql"]),
        ("sql", "[0s]*.sql", ["migrations/01_a.sql", "migrations/02_b.sql", "migrations/more/03_c.sql", "schema.sql"]),
        (".", "0*.sql", ["sql/migrations/01_a.sql", "sql/migrations/02_b.sql", "sql/migrations/more/03_c.sql"]),
        ("sql/mig", "*.sql", []),
        ("sql/migrations", "U*.SQL", ["UPPER.SQL"]),
    ],
)
def test_scripts_below_the_folder_by_name(folder: str, pattern: str, expected: list[str]) -> None:
    assert ids(read("ordered", BASIC, folder=folder, pattern=pattern)) == expected


NEARLY: list[tuple[Layout, Tree, str]] = [
    ("ordered", {"sql/1.sql": "", "sql/2.SQL": ""}, "sql/2.SQL"),
    ("ordered", {"sql/1.sql": "", "sql/more/2.Sql": ""}, "sql/more/2.Sql"),
    ("ordered", {"sql/1.sql": "", "sql/2.sql ": ""}, "sql/2.sql "),
    ("ordered", {"sql/1.sql": "", "SQL/2.sql": ""}, "SQL/2.sql"),
    ("flyway", {"sql/V1__a.sql": "", "sql/V2__b.SQL": ""}, "sql/V2__b.SQL"),
    ("dbmate", {"sql/1_a.sql": "-- migrate:up\n", "sql/2_b.SQL": "-- migrate:up\n"}, "sql/2_b.SQL"),
    ("up-down", {"sql/1_a.up.sql": "", "sql/2_b.up.SQL": ""}, "sql/2_b.up.SQL"),
    ("up-down", {"sql/1_a.up.sql": "", "sql/more/2_b.up.sql": ""}, "sql/more/2_b.up.sql"),
    ("up-down", {"sql/1_a/up.sql": "", "sql/2_b/Up.sql": ""}, "sql/2_b/Up.sql"),
    ("up-down", {"sql/1_a/up.sql": "", "sql/2_b/up.SQL": ""}, "sql/2_b/up.SQL"),
    ("up-down", {"sql/1_a/up.sql": "", "sql/2_b/deep/up.sql": ""}, "sql/2_b/deep/up.sql"),
]


@pytest.mark.parametrize(("layout", "files", "place"), NEARLY)
def test_what_is_nearly_a_migration_is_refused_by_its_name(layout: Layout, files: Tree, place: str) -> None:
    said = refusal(layout, files)
    assert set(said) == {place}
    assert "would never run" in said[place]


def test_what_the_pattern_leaves_out_is_left_out() -> None:
    tree: Tree = {"sql/1.sql": "", "sql/helper.sql": "", "sql/helper.SQL": ""}
    assert ids(read("ordered", tree, pattern="[0-9]*.sql")) == ["1.sql"]


def test_ordered_files_of_real_products() -> None:
    names = ["02.00.00_01_name.sql", "02.00.00_02_pre_b.sql", "02.10.00_01_post_c.sql", "2024010100.sql", "10_x.sql"]
    shuffled = random.Random(4).sample(names, len(names))
    found = read("ordered", {f"sql/{name}": "SELECT 1;" for name in shuffled})
    assert ids(found) == sorted(names)
    assert {script.id: script.phase for script in found if script.phase} == {
        "02.00.00_02_pre_b.sql": "expand",
        "02.10.00_01_post_c.sql": "contract",
    }


def test_a_script_carries_its_blob_and_a_normalised_checksum() -> None:
    (found,) = read("ordered", {"sql/a.sql": b"\xef\xbb\xbf-- tma: session=yes\r\nSELECT 2;\r"})
    assert found.checksum == hashlib.sha256(b"-- tma: session=yes\nSELECT 2;\n").hexdigest()
    assert found.blob == oid(b"\xef\xbb\xbf-- tma: session=yes\r\nSELECT 2;\r")
    assert found.session


def test_a_link_is_refused_and_a_missing_blob_fails() -> None:
    assert refusal("ordered", {"sql/a.sql": "../elsewhere.sql"}, links=("sql/a.sql",)) == {
        "sql/a.sql": "a migration cannot be a symbolic link: its checksum would cover the link, not the text"
    }
    manifest, _ = release({"sql/a.sql": "SELECT 1"})
    with pytest.raises(Failed, match="missing"):
        scripts_of(Migrations(folder="sql"), "postgresql", manifest, dict[str, bytes]().get)


def test_a_name_that_a_history_cannot_hold_and_a_text_that_no_database_reads() -> None:
    said = refusal("ordered", {"sql/1\\x0a2.sql": "SELECT 1;", "sql/2.sql": b"\xff\xfeS\0"})
    assert "a name that a history cannot hold" in said["sql/1\\x0a2.sql"]
    assert "UTF-16" in said["sql/2.sql"]


def test_a_folder_an_engine() -> None:
    tree: Tree = {"SQL/postgresql/1.sql": "p", "SQL/mysql/1.sql": "m", "SQL/mysql/2.sql": "n"}

    def found(engine: Engine) -> list[str]:
        return ids(read("ordered", tree, engine=engine, folder="SQL/{engine}"))

    assert found("postgresql") == ["1.sql"]
    assert found("mysql") == found("mariadb") == ["1.sql", "2.sql"]
    with pytest.raises(Refused, match="no migrations for sqlite"):
        found("sqlite")
    tree["SQL/mariadb/3.sql"] = "own"
    assert found("mariadb") == ["3.sql"]
    assert found("mysql") == ["1.sql", "2.sql"]
    with pytest.raises(Refused) as refused:
        read("ordered", {"README": ""}, engine="mysql", folder="SQL/{engine}/up")
    assert [reason.source for reason in refused.value.reasons] == ["SQL/mysql/up/", "SQL/mariadb/up/"]


def test_the_full_schema_stands_after_what_it_covers() -> None:
    tree: Tree = {"sql/1.sql": "a", "sql/2.sql": "b", "sql/pre_full.sql": "-- tma: transaction=no\n", "full.sql": "f"}
    inside = read("ordered", tree, initial="sql/pre_full.sql")
    assert [(script.id, script.kind) for script in inside] == [
        ("1.sql", "versioned"),
        ("2.sql", "versioned"),
        ("pre_full.sql", "initial"),
    ]
    assert (inside[2].phase, inside[2].transactional) == (None, False)
    outside = read("ordered", tree, initial="full.sql", pattern="[12].sql")
    assert [(script.id, script.kind) for script in outside][2:] == [("full.sql", "initial")]
    assert "does not hold" in refusal("ordered", tree, initial="none.sql")["none.sql"]
    clash: Tree = {"sql/full.sql": "a", "full.sql": "f"}
    assert "two migrations" in refusal("ordered", clash, initial="full.sql")["full.sql"]
    by_engine: Tree = {"sql/1.sql": "a", "schema/postgresql.sql": "f"}
    assert ids(read("ordered", by_engine, initial="schema/{engine}.sql"))[1] == "schema/postgresql.sql"


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("pre_a.sql", "expand"),
        ("post-a.sql", "contract"),
        ("03.00.00_01_pre_priority.sql", "expand"),
        ("03.00.00_50_post_priority.sql", "contract"),
        ("0001_post_a.sql", "contract"),
        ("deep/er/0001_post_a.sql", "contract"),
        ("0001_create_post.sql", None),
        ("0001_add_post_title.sql", None),
        ("0001_postcode.sql", None),
        ("0001_prepare.sql", None),
        ("post_0001/a.sql", None),
        ("post.sql", None),
    ],
)
def test_the_phase_by_name(name: str, phase: str | None) -> None:
    (script,) = read("ordered", {f"sql/{name}": "SELECT 1;"})
    assert script.phase == phase


def test_the_header_outdoes_the_name_and_is_refused_with_its_place() -> None:
    (script,) = read("ordered", {"sql/1_post_a.sql": "-- tma: phase=expand, client=psql\n"})
    assert (script.phase, script.client) == ("expand", True)
    said = refusal(
        "ordered", {"sql/1.sql": "--\n-- tma: phase=never, tranaction=no", "sql/2.sql": "-- tma: client=psql"}
    )
    assert set(said) == {"sql/1.sql:2:15", "sql/1.sql:2:22"}
    with pytest.raises(Refused) as refused:
        read("ordered", {"sql/2.sql": "-- tma: client=psql"}, engine="mariadb")
    assert "client=psql is for another engine; here it is mariadb or mysql" in str(refused.value)


# --- Flyway -----------------------------------------------------------------------------------------------------------

FLYWAY: Tree = {
    "sql/V1__init.sql": "CREATE TABLE a (b int);",
    "sql/V1_2__second.sql": "SELECT 1;",
    "sql/V1.10__tenth.sql": "SELECT 1;",
    "sql/V2024.01.31.1200__post_drop.sql": "SELECT 1;",
    "sql/more/V1_9__ninth.sql": "SELECT 1;",
    "sql/V02.sql": "SELECT 1;",
    "sql/U1_2__second.sql": "DROP TABLE x;",
    "sql/R__b_views.sql": "CREATE OR REPLACE VIEW b AS SELECT 1;",
    "sql/more/R__a_views.sql": "CREATE OR REPLACE VIEW a AS SELECT 1;",
    "sql/notes.txt": "",
}


def test_flyway() -> None:
    found = read("flyway", FLYWAY)
    assert ids(found) == [
        "V1__init.sql",
        "V1_2__second.sql",
        "more/V1_9__ninth.sql",
        "V1.10__tenth.sql",
        "V02.sql",
        "V2024.01.31.1200__post_drop.sql",
        "more/R__a_views.sql",
        "R__b_views.sql",
    ]
    assert [script.kind for script in found] == ["versioned"] * 6 + ["repeatable"] * 2
    assert found[5].phase == "contract"
    assert all(script.transactional for script in found)


def test_the_highest_baseline_of_flyway_is_the_full_schema() -> None:
    tree = FLYWAY | {"sql/B1__a.sql": "a", "sql/B1_9__b.sql": "b"}
    found = read("flyway", tree)
    assert [(script.id, script.kind) for script in found][2:5] == [
        ("more/V1_9__ninth.sql", "versioned"),
        ("B1_9__b.sql", "initial"),
        ("V1.10__tenth.sql", "versioned"),
    ]
    only = read("flyway", {"sql/B1__a.sql": "a", "sql/V2__b.sql": "b"})
    assert [(script.id, script.kind) for script in only] == [("B1__a.sql", "initial"), ("V2__b.sql", "versioned")]
    last = read("flyway", {"sql/B3__a.sql": "a", "sql/V2__b.sql": "b", "sql/R__c.sql": "c"})
    assert ids(last) == ["V2__b.sql", "B3__a.sql", "R__c.sql"]
    assert "second full schema" in refusal("flyway", tree | {"full.sql": "f"}, initial="full.sql")["full.sql"]


@pytest.mark.parametrize(
    ("engine", "text", "conf", "transactional"),
    [
        ("postgresql", "CREATE INDEX i ON t (a);", "", True),
        ("postgresql", "CREATE INDEX i ON t (a);", "executeInTransaction=false\n", False),
        ("postgresql", "CREATE INDEX i ON t (a);", "# said\r\n! too\r\n executeInTransaction = false \r\n", False),
        ("postgresql", "CREATE INDEX CONCURRENTLY i ON t (a);", "", False),
        ("postgresql", "CREATE INDEX CONCURRENTLY i ON t (a);", "executeInTransaction: true\nencoding=UTF-8", True),
        ("postgresql", "-- tma: transaction=yes\nCREATE INDEX CONCURRENTLY i ON t (a);", "", True),
        ("postgresql", "-- tma: transaction=yes\nSELECT 1", "executeInTransaction=false", True),
        ("postgresql", "-- CREATE INDEX CONCURRENTLY\nSELECT 'VACUUM'", "", True),
        ("postgresql", "ALTER TYPE colour ADD VALUE 'blue';", "", True),
        ("sqlite", "VACUUM;", "", False),
        ("mariadb", "CREATE DATABASE x;", "", True),
    ],
)
def test_flyway_outside_a_transaction(engine: Engine, text: str, conf: str, transactional: bool) -> None:
    files: Tree = {"sql/V1__a.sql": text}
    files |= {"sql/V1__a.sql.conf": conf} if conf else {}
    (script,) = read("flyway", files, engine=engine)
    assert script.transactional is transactional


@pytest.mark.parametrize(
    ("files", "place", "words"),
    [
        ({"V1__a.sql": "", "V01__b.sql": ""}, "sql/V1__a.sql", "same version as sql/V01__b.sql"),
        ({"V1__a.sql": "", "x/V1.0__b.sql": ""}, "sql/x/V1.0__b.sql", "same version as sql/V1__a.sql"),
        ({"R__a.sql": "", "x/R__a.sql": ""}, "sql/x/R__a.sql", "same description"),
        ({"B1__a.sql": "", "B1.0__b.sql": ""}, "sql/B1__a.sql", "same version"),
        ({"V1_name.sql": ""}, "sql/V1_name.sql", "no name of a Flyway migration"),
        ({"v1__name.sql": ""}, "sql/v1__name.sql", "no name of a Flyway migration"),
        ({"R_name.sql": ""}, "sql/R_name.sql", "no name of a Flyway migration"),
        ({"V1..2__name.sql": ""}, "sql/V1..2__name.sql", "no name of a Flyway migration"),
        ({"afterMigrate.sql": ""}, "sql/afterMigrate.sql", "callback"),
        ({"V1__a.sql": "\n  SELECT '${name}';"}, "sql/V1__a.sql:2:11", "placeholder"),
        ({"R__a.sql": "-- ${flyway:timestamp}"}, "sql/R__a.sql:1:4", "placeholder"),
        ({"V1__a.sql": "", "V1__a.sql.conf": "executeIntransaction=false"}, "sql/V1__a.sql.conf:1:1", "not known"),
        ({"V1__a.sql": "", "V1__a.sql.conf": "\n executeInTransaction=no"}, "sql/V1__a.sql.conf:2:2", "true or false"),
        ({"V1__a.sql": "", "V1__a.sql.conf": "encoding=latin1"}, "sql/V1__a.sql.conf:1:1", "not known"),
        ({"V1__a.sql": "", "V1__b.sql.conf": ""}, "sql/V1__b.sql.conf", "belongs to no script"),
    ],
)
def test_flyway_refused(files: Tree, place: str, words: str) -> None:
    said = refusal("flyway", {f"sql/{name}": data for name, data in files.items()})
    assert words in said[place]
    assert len(said) == 1


def test_flyway_without_placeholders_means_its_text() -> None:
    files: Tree = {"sql/V1__a.sql": "SELECT '${name}';", "sql/V1__a.sql.conf": "placeholderReplacement=false"}
    assert ids(read("flyway", files)) == ["V1__a.sql"]
    assert ids(read("flyway", FLYWAY | {"sql/helper.sql": ""}, pattern="[VRU][0-9_]*.sql")) == ids(
        read("flyway", FLYWAY)
    )


# --- dbmate -----------------------------------------------------------------------------------------------------------

UP = "-- migrate:up\nCREATE TABLE a (b int);\n\n-- migrate:down\nDROP TABLE a;\n"


def test_dbmate() -> None:
    found = read(
        "dbmate",
        {
            "sql/20240201000000_b.sql": "-- a word\n\n" + UP,
            "sql/20240101000000_post_a.sql": UP.replace("\n", "\r\n").replace("up", "up transaction:false"),
            "sql/20240301000000_c.sql": b"\xef\xbb\xbf-- tma: session=yes\n--migrate:up\nSELECT 1;",
            "sql/20240401000000_d.sql": "-- migrate:up\n-- tma: transaction=no\n-- migrate:down",
            "sql/archive/1.sql": "DROP TABLE a;",
        },
    )
    assert [(script.id[:8], script.lines, script.transactional) for script in found] == [
        ("20240101", (1, 3), False),
        ("20240201", (3, 5), True),
        ("20240301", (2, 3), True),
        ("20240401", (1, 2), False),
    ]
    assert (found[0].phase, found[2].session) == ("contract", True)


def test_words_about_migrating_are_no_part_of_dbmate() -> None:
    (found,) = read(
        "dbmate", {"sql/1_a.sql": UP.replace("CREATE", "-- migrate upwards: all of them\n -- we migrate:\nCREATE")}
    )
    assert found.lines == (1, 5)


def test_the_checksum_is_over_the_whole_file() -> None:
    (script,) = read("dbmate", {"sql/1_a.sql": UP})
    assert script.checksum == script_checksum(UP.encode())


@pytest.mark.parametrize(
    ("files", "place", "words"),
    [
        ({"1_a.sql": UP, "1_b.sql": UP}, "sql/1_b.sql", "same version as sql/1_a.sql"),
        ({"name.sql": UP}, "sql/name.sql", "no name of a dbmate migration"),
        ({"1_a.sql": "CREATE TABLE a (b int);"}, "sql/1_a.sql:1:1", "no part -- migrate:up"),
        ({"1_a.sql": "-- migrate:down\n"}, "sql/1_a.sql:1:1", "no part -- migrate:up"),
        ({"1_a.sql": "\nSELECT 1;\n" + UP}, "sql/1_a.sql:2:1", "would never run"),
        ({"1_a.sql": "-- migrate:down\n-- migrate:up\n"}, "sql/1_a.sql:1:1", "before migrate:up"),
        ({"1_a.sql": UP + "-- migrate:up\n"}, "sql/1_a.sql:6:1", "there twice, first on line 1"),
        ({"1_a.sql": UP + "-- migrate:upp\n"}, "sql/1_a.sql:6:1", "not migrate:upp"),
        ({"1_a.sql": UP.replace("up", "up transaction:off")}, "sql/1_a.sql:1:15", "no option of dbmate"),
        ({"1_a.sql": UP.replace("-- migrate:down", " -- migrate:down")}, "sql/1_a.sql:4:1", "dbmate does not read"),
        ({"1_a.sql": UP.replace("-- migrate:down", "--migrate : down")}, "sql/1_a.sql:4:1", "dbmate does not read"),
        ({"1_a.sql": UP.replace("-- migrate:down", "-- Migrate:Down")}, "sql/1_a.sql:4:1", "dbmate does not read"),
        ({"1_a.sql": UP.replace("-- migrate:down", "-- migrate down")}, "sql/1_a.sql:4:1", "dbmate does not read"),
        ({"1_a.sql": UP.replace("-- migrate:down", "--- migrate:down")}, "sql/1_a.sql:4:1", "dbmate does not read"),
        ({"1_a.sql": UP.replace("-- migrate:down", "# migrate:down")}, "sql/1_a.sql:4:1", "dbmate does not read"),
        ({"1_a.sql": UP.replace("-- migrate:down", "\xa0-- migrate:down")}, "sql/1_a.sql:4:1", "dbmate does not read"),
    ],
)
def test_dbmate_refused(files: Tree, place: str, words: str) -> None:
    said = refusal("dbmate", {f"sql/{name}": data for name, data in files.items()})
    assert words in said[place]
    assert len(said) == 1


# --- up and down ------------------------------------------------------------------------------------------------------


def test_the_folders_of_diesel() -> None:
    found = read(
        "up-down",
        {
            "sql/2024-01-02-000000_b/up.sql": "SELECT 1;",
            "sql/2024-01-02-000000_b/down.sql": "",
            "sql/2024-01-01-000000_post_a/up.sql": "CREATE INDEX CONCURRENTLY i ON t (a);",
            "sql/2024-01-01-000000_post_a/metadata.toml": "# said\r\nrun_in_transaction = false\r\n",
            "sql/00000000000000_diesel_initial_setup/up.sql": "-- tma: transaction=no\n",
            "sql/00000000000000_diesel_initial_setup/metadata.toml": "run_in_transaction = true",
            "sql/.keep": "",
            "sql/other/notes.sql": "",
        },
    )
    assert [(script.id, script.transactional, script.phase) for script in found] == [
        ("00000000000000_diesel_initial_setup/up.sql", False, None),
        ("2024-01-01-000000_post_a/up.sql", False, "contract"),
        ("2024-01-02-000000_b/up.sql", True, None),
    ]


def test_the_pairs_of_golang_migrate() -> None:
    found = read(
        "up-down",
        {
            "sql/10_c.up.sql": "",
            "sql/9_b.up.sql": "",
            "sql/9_b.down.sql": "",
            "sql/000001_pre_a.up.sql": "-- tma: transaction=no\nCREATE INDEX CONCURRENTLY i ON t (a);",
            "sql/README.md": "",
            "sql/old/notes.sql": "",
        },
    )
    assert [(script.id, script.transactional) for script in found] == [
        ("000001_pre_a.up.sql", False),
        ("9_b.up.sql", True),
        ("10_c.up.sql", True),
    ]
    assert found[0].phase == "expand"


@pytest.mark.parametrize(
    ("files", "place", "words"),
    [
        ({"1_a.up.sql": "", "01_b.up.sql": ""}, "sql/1_a.up.sql", "same number as sql/01_b.up.sql"),
        ({"1_a.up.sql": "", "1_a.down.sql": "", "1_b.down.sql": ""}, "sql/1_b.down.sql", "same number"),
        ({"1_a.up.sql": "", "2_a.down.sql": ""}, "sql/2_a.down.sql", "nothing goes up"),
        ({"1_a.sql": ""}, "sql/1_a.sql", "no name of a migration"),
        ({"1_a.Up.sql": ""}, "sql/1_a.Up.sql", "no name of a migration"),
        ({"2024-01-01_a/down.sql": ""}, "sql/2024-01-01_a/down.sql", "no up.sql beside it"),
        ({"a/up.sql": ""}, "sql/a", "no folder of a migration"),
        ({"2024-01-01_a/up.sql": "", "20240101_b/up.sql": ""}, "sql/20240101_b", "same version as sql/2024-01-01_a"),
        ({"1_a/up.sql": "", "2_b.up.sql": ""}, "sql/1_a/up.sql", "no order together"),
        ({"1_a/up.sql": "", "1_a/metadata.toml": "\nx = "}, "sql/1_a/metadata.toml:2:5", "no TOML"),
        ({"1_a/up.sql": "", "1_a/metadata.toml": "\nrun_in_transactions = false"}, "sql/1_a/metadata.toml:2:1", "else"),
        ({"1_a/up.sql": "", "1_a/metadata.toml": "run_in_transaction = 0"}, "sql/1_a/metadata.toml:1:1", "else"),
    ],
)
def test_up_and_down_refused(files: Tree, place: str, words: str) -> None:
    said = refusal("up-down", {f"sql/{name}": data for name, data in files.items()})
    assert words in said[place]
    assert len(said) == 1


# --- sqitch -----------------------------------------------------------------------------------------------------------

BY = "2024-01-31T12:00:00Z Ada Lovelace <ada@example.org>"
HEAD = "%syntax-version=1.0.0\n%project=shop\n%uri=https://example.org/\n\n"
PLAN = f"""{HEAD}# the beginning
users {BY} # first # of all
+ orders [users] {BY}
@v1 {BY} # tagged
area/post_fill [orders users@v1 other:thing !never] {BY}
users [users@v1] {BY}
@v2 {BY}
@v3 {BY}
users {BY}
"""
SQITCH: Tree = {
    "sql/sqitch.plan": PLAN,
    "sql/deploy/users@v1.sql": "-- first\n",
    "sql/deploy/users@v3.sql": "-- second\n",
    "sql/deploy/users.sql": "-- third\n",
    "sql/deploy/orders.sql": "BEGIN; SELECT 1; COMMIT;",
    "sql/deploy/area/post_fill.sql": "CREATE INDEX CONCURRENTLY i ON t (a);",
    "sql/verify/users@v1.sql": "SELECT 'first';",
    "sql/verify/orders.sql": "SELECT 'orders';",
    "sql/revert/users.sql": "DROP TABLE users;",
    "sql/deploy/abandoned.sql": "",
}


def test_sqitch() -> None:
    found = read("sqitch", SQITCH)
    assert [(script.id, script.blob) for script in found] == [
        ("users", oid(b"-- first\n")),
        ("orders", oid(b"BEGIN; SELECT 1; COMMIT;")),
        ("area/post_fill", oid(b"CREATE INDEX CONCURRENTLY i ON t (a);")),
        ("users#2", oid(b"-- second\n")),
        ("users#3", oid(b"-- third\n")),
    ]
    assert [script.verify for script in found] == [oid(b"SELECT 'first';"), oid(b"SELECT 'orders';"), None, None, None]
    assert [script.transactional for script in found] == [True, True, False, True, True]
    assert found[2].phase == "contract"
    assert ids(read("sqitch", SQITCH | {"sql/sqitch.plan": "\ufeff" + PLAN.replace("\n", "\r\n")})) == ids(found)


def test_a_plan_with_a_lone_carriage_return_is_refused() -> None:
    """sqitch takes what comes after it for the same line: a change behind a comment would never be one."""
    said = refusal("sqitch", SQITCH | {"sql/sqitch.plan": PLAN.replace("# the beginning\n", "# the beginning\r")})
    assert "carriage return" in said["sql/sqitch.plan:5:16"]


def test_a_change_keeps_its_id_when_it_is_reworked() -> None:
    before = PLAN[: PLAN.index("users [users@v1]")]
    files = {name: data for name, data in SQITCH.items() if "@" not in name}
    earlier = read("sqitch", files | {"sql/sqitch.plan": before, "sql/deploy/users.sql": "-- first\n"})
    assert {script.id: script.checksum for script in earlier}.items() <= {
        script.id: script.checksum for script in read("sqitch", SQITCH)
    }.items()


@pytest.mark.parametrize(
    ("plan", "place", "words"),
    [
        (f"users {BY}\n", "1:1", "no %project="),
        (f"{HEAD}%late=1\nusers\n", "6:6", "the time"),
        (f"{HEAD}users {BY}\n%late=1\n", "6:1", "pragma"),
        (f"%syntax-version=2.0\n%project=a\n\nusers {BY}\n", "1:1", "not known here"),
        (f"{HEAD}users 2024-01-31 Ada <a@b>\n", "5:7", "the time"),
        (f"{HEAD}users 2024-01-31T12:00:00Z Ada\n", "5:28", "who planned it"),
        (f"{HEAD}users [orders] Ada <a@b>\n", "5:16", "the time"),
        (f"{HEAD}-users {BY}\n", "5:1", "taken back"),
        (f"{HEAD}  us:ers {BY}\n", "5:5", "the time"),
        (f"{HEAD}users- {BY}\n", "5:1", "here stands a name"),
        (f"{HEAD}users~2 {BY}\n", "5:1", "here stands a name"),
        (f"{HEAD}[users] {BY}\n", "5:1", "here stands a name"),
        (f"{HEAD}users {BY}\nusers {BY}\n", "6:1", "on line 5 already"),
        (f"{HEAD}orders [users] {BY}\nusers {BY}\n", "5:9", "needs users, which does not come before it"),
        (f"{HEAD}users {BY}\norders [users@v9] {BY}\n", "6:9", "needs users@v9"),
        (f"{HEAD}users {BY}\norders [!users] {BY}\n", "6:9", "conflicts with users"),
        (f"{HEAD}users {BY}\norders [users  a:b:c] {BY}\n", "6:16", "no dependency"),
        (f"{HEAD}@v1 {BY}\n", "5:2", "before any change"),
        (f"{HEAD}users {BY}\n@v1 {BY}\n@v1 {BY}\n", "7:2", "on line 6 already"),
        (f"{HEAD}users {BY}\n@v1 [users] {BY}\n", "6:2", "dependencies"),
        (f"{HEAD}users {BY}\nnone {BY}\n", "6:1", "no file deploy/none.sql"),
        (f"{HEAD}users {BY}\n@v4 {BY}\nusers {BY}\n", "5:1", "no file deploy/users@TAG"),
        (b"%project=a\n\n\xff\n", "3:1", "not UTF-8"),
    ],
)
def test_sqitch_refused(plan: str | bytes, place: str, words: str) -> None:
    said = refusal("sqitch", SQITCH | {"sql/sqitch.plan": plan})
    assert words in said[f"sql/sqitch.plan:{place}"]


def test_sqitch_without_its_plan() -> None:
    assert "is missing" in refusal("sqitch", {"sql/deploy/a.sql": ""})["sql/sqitch.plan"]
    assert "symbolic link" in refusal("sqitch", SQITCH, links=("sql/sqitch.plan",))["sql/sqitch.plan"]
    assert "symbolic link" in refusal("sqitch", SQITCH, links=("sql/verify/orders.sql",))["sql/verify/orders.sql"]


@pytest.mark.skipif(shutil.which("sqitch") is None, reason="sqitch is not installed")
def test_a_project_made_with_sqitch_itself(tmp_path: Path) -> None:
    environment = os.environ | {"SQITCH_FULLNAME": "Ada", "SQITCH_EMAIL": "ada@example.org", "HOME": str(tmp_path)}

    def sqitch(*words: str) -> str:
        done = subprocess.run(
            ["sqitch", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    sqitch("init", "shop", "--engine", "sqlite")
    sqitch("add", "users", "-n", "first # of [all]")
    sqitch("add", "area/orders", "--requires", "users", "--conflicts", "never", "-n", "two\n\nparagraphs")
    sqitch("tag", "v1", "-n", "tagged")
    sqitch("rework", "users", "-n", "again")
    sqitch("add", "late", "--requires", "users@v1", "-n", "ünï")
    files: Tree = {
        f"db/{path.relative_to(tmp_path).as_posix()}": path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    found = read("sqitch", files, engine="sqlite", folder="db")
    assert ids(found) == ["users", "area/orders", "users#2", "late"]
    assert all(script.verify for script in found)
    listed = [line.split()[0] for line in sqitch("plan", "--no-headers", "--format", "format:%n").splitlines() if line]
    assert listed == ["users", "area/orders", "users", "late"]


# --- any of them ------------------------------------------------------------------------------------------------------


@given(
    layout=st.sampled_from(["ordered", "flyway", "dbmate", "up-down", "sqitch"]),
    names=st.lists(st.text(alphabet="V1R_.updownsqlitch/planx@#", min_size=1, max_size=16), unique=True, max_size=4),
    data=st.binary(max_size=60) | st.text(alphabet="%-@+# \nusers[]!:migrate:up${}tma:=,", max_size=60).map(str.encode),
)
def test_any_tree_is_read_or_refused_in_words(layout: Layout, names: list[str], data: bytes) -> None:
    files: Tree = {f"sql/{name}": data for name in [*names, "sqitch.plan", "V1__a.sql.conf", "1_a/metadata.toml"]}
    try:
        found = read(layout, files)
    except Refused as error:
        assert all(reason.source and reason.source.startswith("sql/") for reason in error.reasons)
    else:
        assert len(set(ids(found))) == len(found)


@given(st.permutations(sorted(FLYWAY)))
def test_the_order_of_the_files_does_not_matter(names: list[str]) -> None:
    assert ids(read("flyway", {name: FLYWAY[name] for name in names})) == ids(read("flyway", FLYWAY))
