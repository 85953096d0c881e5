"""What other tools' histories say of our scripts: a row a tool, and what they call that is none of ours."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.foreign_histories import TOOLS, Reading, found, reading, statement
from pipeline.model import Script
from tests.nouns import oid, sha


def scripts(*ids: str) -> list[Script]:
    return [Script(id=id, checksum=sha(id), blob=oid(id)) for id in ids]


FLYWAY = scripts("V1__base.sql", "sub/V1_2__more.sql", "V2.0__late.sql", "R__view.sql")
NUMBERED = scripts("20240101_a.sql", "20240102_b.sql")
COUNTED = scripts("000001_a.up.sql", "000002_b.up.sql", "000010_c.up.sql")
FOLDERS = scripts("2024-01-01-000000_users/up.sql", "2024-02-01-000000_posts/up.sql")
CHANGES = scripts("appschema", "users")
NUMBERED_REVISIONS = scripts("0001_first.sql", "0002_second.sql", "0003_third.sql")
HEX_REVISIONS = scripts("1975ea83b712_second.sql", "ae1027a6acf_first.sql")
SAME_NAMES = scripts("1.0/changes.sql", "2.0/changes.sql")


@pytest.mark.parametrize(
    ("tool", "rows", "ours", "expected"),
    [
        ("flyway", [("1", "SQL", "V1__base.sql", True), (None, "SQL", "R__view.sql", 1)], FLYWAY,
         Reading(("V1__base.sql",))),
        ("flyway", [("1.2", "BASELINE", "<< Flyway Baseline >>", True)], FLYWAY,
         Reading(("V1__base.sql", "sub/V1_2__more.sql"))),
        ("flyway", [("2", "SQL", "V2__late.sql", True), ("7", "JDBC", "V7__code.class", True)], FLYWAY,
         Reading(("V2.0__late.sql",), ("V7__code.class",))),
        ("flyway", [("1", "SQL", "V1__base.sql", True), ("1", "UNDO_SQL", "U1__base.sql", True)], FLYWAY, Reading(())),
        ("flyway", [(None, "SCHEMA", '"shop"', True), ("1", "SQL", "V1__base.sql", False)], FLYWAY,
         Reading((), (), ("V1__base.sql",))),
        ("liquibase", [("ann", "1", "db/20240101_a.sql", "EXECUTED"), ("bob", "2", "x.xml", "RERAN"),
                       ("bob", "3", "db/20240102_b.sql", "FAILED")], NUMBERED,
         Reading(("20240101_a.sql",), ("x.xml::2::bob",))),
        ("dbmate", [("20240101",), ("20230101",)], NUMBERED, Reading(("20240101_a.sql",), ("20230101",))),
        ("golang-migrate", [(2, False)], COUNTED, Reading(("000001_a.up.sql", "000002_b.up.sql"))),
        ("golang-migrate", [(10, 1)], COUNTED,
         Reading(("000001_a.up.sql", "000002_b.up.sql", "000010_c.up.sql"), (), ("10",))),
        ("golang-migrate", [(3, False)], COUNTED, Reading(("000001_a.up.sql", "000002_b.up.sql"), ("3",))),
        ("golang-migrate", [], COUNTED, Reading(())),
        ("diesel", [("20240101000000",), ("00000000000000",)], FOLDERS,
         Reading(("2024-01-01-000000_users/up.sql",), ("00000000000000",))),
        ("sqitch", [("appschema",), ("gone",)], CHANGES, Reading(("appschema",), ("gone",))),
        ("alembic", [("0002",)], NUMBERED_REVISIONS, Reading(("0001_first.sql", "0002_second.sql"))),
        ("alembic", [("0009",)], NUMBERED_REVISIONS, Reading((), ("0009",))),
        # Of random names nothing says in which order they ran.
        ("alembic", [("ae1027a6acf",)], HEX_REVISIONS,
         Reading((), (), (), ("ae1027a6acf: the names of 2 scripts do not say which of them ran before it",))),
        ("alembic", [("ffff",)], HEX_REVISIONS, Reading((), ("ffff",))),
        # One name in two folders: the path tells them apart, or nobody can.
        ("liquibase", [("ann", "1", "db/1.0/changes.sql", "EXECUTED")], SAME_NAMES, Reading(("1.0/changes.sql",))),
        ("liquibase", [("ann", "1", "changes.sql", "EXECUTED")], SAME_NAMES,
         Reading((), (), (), ("changes.sql may be any of 1.0/changes.sql, 2.0/changes.sql",))),
        ("liquibase", [("ann", "1", "db/3.0/changes.sql", "EXECUTED")], SAME_NAMES[:1],
         Reading((), (), (), ("db/3.0/changes.sql may be 1.0/changes.sql, which lies elsewhere",))),
        ("sqitch", [("users",)], CHANGES, Reading(("users",))),
    ],
)  # fmt: skip
def test_what_a_tool_has_run(tool: str, rows: list[tuple[Any, ...]], ours: list[Script], expected: Reading) -> None:
    assert reading(tool, rows, ours) == expected


CHANGE_SETS = """--liquibase formatted sql
--changeset ann:1
CREATE TABLE a (n integer);
-- changeset ann:2 runOnChange:false
CREATE TABLE b (n integer);
"""


def test_a_file_of_several_change_sets_has_run_when_all_of_them_have() -> None:
    ours, texts = scripts("a.sql"), {"a.sql": CHANGE_SETS}
    rows = [("ann", "1", "db/a.sql", "EXECUTED"), ("ann", "2", "db/a.sql", "EXECUTED")]
    assert reading("liquibase", rows, ours, texts) == Reading(("a.sql",))
    assert reading("liquibase", rows[:1], ours, texts) == Reading(
        (), (), (), ("a.sql: of its change sets ann:2 did not run",)
    )


def test_a_full_schema_is_never_what_another_tool_has_run() -> None:
    schema = scripts("20240101_schema.sql")[0].model_copy(update={"kind": "initial"})
    assert reading("dbmate", [("20240101",)], [schema, *NUMBERED]) == Reading(("20240101_a.sql",))


def table(*columns: str) -> dict[str, Any]:
    return {"columns": {column: {"type": "text"} for column in columns}}


def test_the_tools_are_told_apart_by_their_tables_and_columns() -> None:
    tables = {
        "public.schema_migrations": table("version"),
        "other.schema_migrations": table("version", "dirty"),
        "public.flyway_schema_history": table("installed_rank", "version", "script", "success"),
        "DATABASECHANGELOG": table("ID", "AUTHOR", "FILENAME", "EXECTYPE"),
        "sqitch.changes": table("change_id", "change", "project", "committed_at"),
        "public.changes": table("id"),
    }
    assert found(tables) == {
        "dbmate": "public.schema_migrations",
        "golang-migrate": "other.schema_migrations",
        "flyway": "public.flyway_schema_history",
        "liquibase": "DATABASECHANGELOG",
        "sqitch": "sqitch.changes",
    }
    assert found({}) == {}
    assert set(TOOLS) == {"flyway", "liquibase", "dbmate", "sqitch", "golang-migrate", "diesel", "alembic"}


def test_a_table_is_named_as_its_engine_quotes() -> None:
    assert statement("sqitch", "sqitch.changes", "postgresql") == (
        'SELECT "change" FROM "sqitch"."changes" ORDER BY committed_at'
    )
    assert statement("dbmate", "we`ird", "mariadb") == "SELECT version FROM `we``ird` ORDER BY version"
