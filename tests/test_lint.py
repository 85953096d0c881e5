"""The rules of lint: for each what fires, where, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest

from pipeline.content import script_checksum
from pipeline.lint import INFORMATION, UNNEEDED, Finding, findings
from pipeline.lint.rules import RULES
from pipeline.model import Engine, Script
from pipeline.script_header import read_header

ENGINES: tuple[Engine, ...] = get_args(Engine)
ALL = ENGINES
PG: tuple[Engine, ...] = ("postgresql",)
LITE: tuple[Engine, ...] = ("sqlite",)
MY: tuple[Engine, ...] = ("mariadb", "mysql")


def script(text: str, name: str = "0001_a.sql", **more: Any) -> Script:
    accepted = dict(read_header(text.encode(), name)[0].accepted)
    fields = {"id": name, "checksum": script_checksum(text.encode()), "blob": "0" * 40, "accepted": accepted}
    return Script(**{**fields, **more})


def nothing_read(name: str) -> Sequence[str]:
    return ()


def looked(
    text: str, engine: Engine, *, still_read: Callable[[str], Sequence[str]] = nothing_read, **more: Any
) -> list[Finding]:
    one = script(text, **more)
    return findings([one], {one.id: text.encode()}, engine, still_read=still_read)


FIRING: list[tuple[str, tuple[Engine, ...], str, int, dict[str, Any]]] = [
    ("update-without-where", ALL, "SELECT 1;\n\nUPDATE a SET b = 1;", 3, {}),
    ("update-without-where", ALL, "UPDATE a SET b = (SELECT c FROM d WHERE e)", 1, {}),
    ("update-without-where", PG, "UPDATE ONLY shop.a AS x SET b = 1 FROM c", 1, {}),
    ("update-without-where", PG, "WITH x AS (SELECT 1 WHERE true) UPDATE a SET b = 1", 1, {}),
    ("update-without-where", PG, "WITH x AS (UPDATE a SET b = 1 RETURNING c) SELECT * FROM x WHERE c > 1", 1, {}),
    ("update-without-where", PG, "EXPLAIN ANALYZE UPDATE a SET b = 1", 1, {}),
    ("update-without-where", PG, "DO $$\nBEGIN\n  UPDATE a SET b = 1;\nEND $$", 3, {}),
    ("update-without-where", PG, "DO $$ BEGIN FOR r IN SELECT 1 LOOP UPDATE a SET b = 1; END LOOP; END $$", 1, {}),
    ("update-without-where", MY, "UPDATE LOW_PRIORITY a, c SET a.b = 1", 1, {}),
    ("update-without-where", MY, "/*!50003 UPDATE a SET b = 1 */", 1, {}),
    ("delete-without-where", ALL, "delete from a", 1, {}),
    ("delete-without-where", ALL, 'DELETE FROM a; -- WHERE b = "c"', 1, {}),
    ("delete-without-where", PG, "WITH gone AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM gone", 1, {}),
    ("delete-without-where", MY, "DELETE a FROM a JOIN b USING (c)", 1, {}),
    ("delete-without-where", ALL, "SELECT 1;\nDELETE FROM a WHERE 1", 2, {}),
    ("delete-without-where", ALL, "DELETE FROM a WHERE true", 1, {}),
    ("delete-without-where", ALL, "DELETE FROM a WHERE (1 = 1) AND TRUE", 1, {}),
    ("delete-without-where", PG, "DELETE FROM a WHERE true RETURNING b", 1, {}),
    ("update-without-where", ALL, "UPDATE a SET b = 1 WHERE 1=1", 1, {}),
    ("truncate", MY, "SELECT 1;\nALTER TABLE a TRUNCATE PARTITION p0, p1", 2, {}),
    ("drop-table", ("postgresql", *MY), "SELECT 1;\nDROP DATABASE IF EXISTS a", 2, {}),
    ("drop-table", MY, "DROP SCHEMA a", 1, {}),
    ("drop-table", PG, "DROP SCHEMA IF EXISTS a, b CASCADE", 1, {}),
    ("drop-table", MY, "CREATE OR REPLACE TABLE a (b int)", 1, {}),
    ("drop-table", MY, "ALTER TABLE a DROP PARTITION IF EXISTS p0", 1, {}),
    ("truncate", ALL, "TRUNCATE TABLE a", 1, {}),
    ("truncate", PG, "TRUNCATE ONLY a, b CASCADE", 1, {}),
    ("drop-table", ALL, "DROP TABLE IF EXISTS a", 1, {}),
    ("drop-table", ALL, "DROP TABLE a;\nCREATE TABLE a (b int);", 1, {}),
    ("drop-table", ALL, "CREATE TABLE IF NOT EXISTS a (b int);\nDROP TABLE a;", 2, {}),
    ("drop-table", PG, 'DROP TABLE shop."A", b', 1, {}),
    ("drop-of-read-column", ALL, "ALTER TABLE a DROP COLUMN price", 1, {}),
    ("drop-of-read-column", ALL, "ALTER TABLE a RENAME COLUMN price TO cost", 1, {}),
    ("drop-of-read-column", PG, 'ALTER TABLE a ADD b int,\n  DROP COLUMN IF EXISTS "price" CASCADE', 2, {}),
    ("drop-of-read-column", PG, "ALTER TABLE IF EXISTS ONLY shop.a DROP price", 1, {}),
    ("drop-of-read-column", PG, "ALTER TABLE a ADD b numeric(10, 2), DROP price", 1, {}),
    ("drop-of-read-column", PG, "ALTER TABLE a RENAME price TO cost", 1, {}),
    ("drop-of-read-column", PG, "DO $$ BEGIN ALTER TABLE a DROP price; END $$", 1, {}),
    ("drop-of-read-column", PG, "DO $$ BEGIN IF a THEN b; ELSE ALTER TABLE a DROP price; END IF; END $$", 1, {}),
    ("drop-of-read-column", MY, "ALTER TABLE `a` CHANGE `price` `cost` int", 1, {}),
    ("missing-lock-timeout", PG, "SELECT 1;\nALTER TABLE a ADD b int", 2, {"client": True}),
    ("missing-lock-timeout", PG, "CREATE INDEX i ON a (b); SET lock_timeout = '5s'", 1, {"client": True}),
    ("missing-lock-timeout", MY, "ALTER TABLE a ADD b int", 1, {"client": True}),
    ("contract-before-switch", ALL, "ALTER TABLE a DROP COLUMN b", 1, {"phase": "expand"}),
    ("contract-before-switch", ALL, "ALTER TABLE a RENAME TO b", 1, {"phase": "expand"}),
    ("contract-before-switch", ALL, "SELECT 1;\nDROP VIEW a", 2, {"phase": "expand"}),
    ("contract-before-switch", ALL, "DROP TABLE a; CREATE TABLE a (b int)", 1, {"phase": "expand"}),
    ("contract-before-switch", PG, "ALTER TYPE a RENAME VALUE 'b' TO 'c'", 1, {"phase": "expand"}),
    ("contract-before-switch", PG, "ALTER TABLE a SET SCHEMA b", 1, {"phase": "expand"}),
    ("contract-before-switch", PG, "DROP FUNCTION f(int)", 1, {"phase": "expand"}),
    ("contract-before-switch", MY, "RENAME TABLE a TO b", 1, {"phase": "expand"}),
    ("not-repeatable", ALL, "CREATE VIEW a AS SELECT 1", 1, {"kind": "repeatable"}),
    ("not-repeatable", ALL, "DROP VIEW IF EXISTS b;\nCREATE VIEW a AS SELECT 1", 2, {"kind": "repeatable"}),
    ("not-repeatable", PG, "CREATE FUNCTION f() RETURNS int AS 'SELECT 1' LANGUAGE sql", 1, {"kind": "repeatable"}),
    ("needs-no-transaction", PG, "SELECT 1;\nCREATE INDEX CONCURRENTLY i ON a (b)", 2, {}),
    ("needs-no-transaction", LITE, "VACUUM", 1, {}),
    ("no-verify", ALL, "SELECT 1", 1, {"transactional": False}),
    ("unknown", ALL, "UPDATE a SET b = 1 WHERE c", 1, {}),
    ("unknown", ALL, "UPDATE a SET b = 1 WHERE c", 1, {"phase": "expand"}),  # its step's phase, not its own word
    ("unknown", PG, "CREATE TABLE `a` (b int)", 1, {}),
]
QUIET: list[tuple[str, tuple[Engine, ...], str, dict[str, Any]]] = [
    ("update-without-where", ALL, "UPDATE a SET b = 1 WHERE c = 2", {}),
    ("update-without-where", ALL, "-- UPDATE a SET b = 1\nSELECT 'UPDATE a SET b = 1'", {}),
    ("update-without-where", ALL, "CREATE TRIGGER t AFTER INSERT ON a BEGIN UPDATE a SET b = 1; END", {}),
    ("update-without-where", ALL, "CREATE TABLE a (b int REFERENCES c ON UPDATE SET NULL)", {}),
    ("update-without-where", PG, "INSERT INTO a VALUES (1) ON CONFLICT (b) DO UPDATE SET c = 1", {}),
    ("update-without-where", PG, "SELECT * FROM a FOR UPDATE; GRANT UPDATE ON a TO b; SET x = 1", {}),
    ("update-without-where", PG, "CREATE FUNCTION f() RETURNS void AS $$ UPDATE a SET b = 1 $$ LANGUAGE sql", {}),
    ("update-without-where", PG, "MERGE INTO a USING b ON c WHEN MATCHED THEN UPDATE SET d = 1 WHEN NOT MATCHED THEN DELETE", {}),
    ("update-without-where", MY, "INSERT INTO a VALUES (1) ON DUPLICATE KEY UPDATE b = 1", {}),
    ("update-without-where", MY, "DELIMITER //\nCREATE PROCEDURE p() BEGIN UPDATE a SET b = 1; END//\nDELIMITER ;", {}),
    ("delete-without-where", ALL, "DELETE FROM a WHERE b = (SELECT max(b) FROM a)", {}),
    ("delete-without-where", ALL, "CREATE TABLE a (b int REFERENCES c ON DELETE CASCADE)", {}),
    ("delete-without-where", MY, "CREATE PROCEDURE p() DELETE FROM a", {}),
    ("delete-without-where", PG, "DO $$ BEGIN DELETE FROM a WHERE b; END $$", {}),
    ("delete-without-where", ALL, "DELETE FROM a WHERE (b = 1)", {}),
    ("delete-without-where", ALL, "DELETE FROM a WHERE 1 = b", {}),
    ("delete-without-where", ALL, "DELETE FROM a WHERE NOT EXISTS (SELECT 1 FROM c)", {}),
    ("update-without-where", ALL, "UPDATE a SET b = 1 WHERE false", {}),
    ("drop-table", PG, "DROP SCHEMA a; DROP SCHEMA IF EXISTS b RESTRICT", {}),
    ("drop-table", MY, "CREATE OR REPLACE TEMPORARY TABLE a (b int); CREATE OR REPLACE VIEW v AS SELECT 1", {}),
    ("truncate", MY, "ALTER TABLE a ADD PARTITION (PARTITION p2 VALUES LESS THAN (9))", {}),
    ("truncate", MY, "SELECT TRUNCATE(1.5, 1); SELECT (TRUNCATE(2.5, 1))", {}),
    ("truncate", ALL, "SELECT truncate FROM a", {}),
    ("drop-table", ALL, "CREATE TABLE a (b int); DROP TABLE a", {}),
    ("drop-table", ALL, "DROP INDEX i; ALTER TABLE a DROP COLUMN b", {}),
    ("drop-of-read-column", ALL, "ALTER TABLE a DROP COLUMN other", {}),
    ("drop-of-read-column", ALL, "ALTER TABLE price ADD b int; SELECT price FROM a", {}),
    ("drop-of-read-column", ALL, "ALTER TABLE a RENAME TO price", {}),
    ("drop-of-read-column", PG, "ALTER TABLE a DROP CONSTRAINT price; ALTER TABLE a ALTER price DROP NOT NULL", {}),
    ("drop-of-read-column", PG, "ALTER TABLE a RENAME CONSTRAINT price TO b", {}),
    ("drop-of-read-column", MY, "ALTER TABLE a CHANGE price price bigint; ALTER TABLE a DROP INDEX price", {}),
    ("missing-lock-timeout", PG, "ALTER TABLE a ADD b int", {}),
    ("missing-lock-timeout", PG, "SET lock_timeout = '5s'; ALTER TABLE a ADD b int", {"client": True}),
    ("missing-lock-timeout", PG, "CREATE INDEX CONCURRENTLY i ON a (b); INSERT INTO a VALUES (1)", {"client": True}),
    ("missing-lock-timeout", MY, "SET SESSION lock_wait_timeout = 5; ALTER TABLE a ADD b int", {"client": True}),
    ("missing-lock-timeout", LITE, "ALTER TABLE a ADD b int", {"client": True}),
    ("contract-before-switch", ALL, "DROP TABLE a; ALTER TABLE a DROP COLUMN b", {}),
    ("contract-before-switch", ALL, "DROP TABLE a; ALTER TABLE a RENAME TO b", {"phase": "contract"}),
    ("contract-before-switch", ALL, "DROP VIEW IF EXISTS a; CREATE VIEW a AS SELECT 1; DROP INDEX i", {"phase": "expand"}),
    ("contract-before-switch", ALL, "CREATE TABLE a (b int); DROP TABLE a", {"phase": "expand"}),
    ("contract-before-switch", PG, "ALTER INDEX a RENAME TO b; ALTER TABLE a ALTER b DROP NOT NULL", {"phase": "expand"}),
    ("not-repeatable", ALL, "CREATE VIEW a AS SELECT 1", {}),
    ("not-repeatable", ALL, "CREATE OR REPLACE VIEW a AS SELECT 1", {"kind": "repeatable"}),
    ("not-repeatable", ALL, "CREATE TABLE IF NOT EXISTS a (b int); CREATE TEMP TABLE c (d int)", {"kind": "repeatable"}),
    ("not-repeatable", ALL, "DROP TRIGGER IF EXISTS t; CREATE TRIGGER t AFTER INSERT ON a BEGIN END", {"kind": "repeatable"}),
    ("not-repeatable", PG, "DROP VIEW IF EXISTS shop.a CASCADE; CREATE VIEW shop.a AS SELECT 1", {"kind": "repeatable"}),
    ("needs-no-transaction", PG, "CREATE INDEX CONCURRENTLY i ON a (b)", {"transactional": False}),
    ("needs-no-transaction", PG, "CREATE INDEX CONCURRENTLY i ON a (b)", {"client": True}),
    ("needs-no-transaction", ALL, "CREATE INDEX i ON a (b)", {}),
    ("no-verify", ALL, "SELECT 1", {}),
    ("no-verify", ALL, "SELECT 1", {"transactional": False, "verify": "1" * 40}),
    ("unknown", ALL, "CREATE TABLE a (b int)", {}),
    ("unknown", ALL, "-- tma: phase=contract\nDROP TABLE a", {}),
    ("unknown", ALL, "DROP TABLE a", {"name": "0001_post_a.sql"}),
    ("unknown", ALL, "DROP TABLE a", {"kind": "repeatable"}),
    ("unknown", ALL, "-- migrate:up\nCREATE TABLE a (b int);\n-- migrate:down\nDROP TABLE a;", {"lines": (1, 2)}),
    ("unknown", MY, "CREATE TABLE `a` (`b` int unsigned)", {}),
]  # fmt: skip


def price_is_read(name: str) -> Sequence[str]:
    return ["shop/basket.py:3", "shop/bill.py:9"] if name == "price" else []


@pytest.mark.parametrize(("rule", "engines", "text", "line", "more"), FIRING)
def test_a_rule_finds(rule: str, engines: tuple[Engine, ...], text: str, line: int, more: dict[str, Any]) -> None:
    for engine in engines:
        found = [one for one in looked(text, engine, still_read=price_is_read, **more) if one.rule == rule]
        assert [one.line for one in found] == [line] * len(found), engine
        assert found, engine
        assert all(one.said and not one.said.endswith(".") and one.accepted is None for one in found)


@pytest.mark.parametrize(("rule", "engines", "text", "more"), QUIET)
def test_a_rule_finds_nothing(rule: str, engines: tuple[Engine, ...], text: str, more: dict[str, Any]) -> None:
    for engine in engines:
        found = [one for one in looked(text, engine, still_read=price_is_read, **more) if one.rule == rule]
        assert found == [], engine


def test_each_rule_has_rows_that_fire_and_rows_that_do_not() -> None:
    assert {row[0] for row in FIRING} == {row[0] for row in QUIET} == set(RULES)
    assert set(RULES) >= INFORMATION - {"squawk-not-asked"}


def test_it_says_where_the_installed_release_still_reads() -> None:
    (found,) = [
        one
        for one in looked("ALTER TABLE a DROP COLUMN price", "sqlite", still_read=price_is_read)
        if one.rule == "drop-of-read-column"
    ]
    assert found.said == (
        "DROP COLUMN price, which the installed release still reads: shop/basket.py:3, shop/bill.py:9"
    )
    (table,) = [
        one for one in looked("DROP TABLE shop.price", "sqlite", still_read=price_is_read) if one.rule == "drop-table"
    ]
    assert "shop/basket.py:3" in table.said


def test_an_acceptance_stands_beside_what_it_accepts() -> None:
    text = '-- tma: accept=drop-table "empty since 2.0", phase=contract\n\nDROP TABLE a;'
    assert looked(text, "postgresql", phase="contract") == [
        Finding("drop-table", "0001_a.sql", 3, "DROP TABLE loses a with its rows", "empty since 2.0")
    ]


def test_an_acceptance_of_what_does_not_happen_is_said() -> None:
    text = '--\n-- tma: accept=truncate "x",\n-- tma: accept=drop-tabel "y"\n-- tma: accept=squawk:ban-char-field "z"\nSELECT 1;'
    text = text.replace('"x",', '"x"')
    found = [(one.rule, one.line, one.said, one.accepted) for one in looked(text, "sqlite") if one.rule == UNNEEDED]
    assert found == [
        (UNNEEDED, 2, "accepts truncate, which finds nothing here", None),
        (UNNEEDED, 3, "accepts drop-tabel, and there is no such rule; did you mean drop-table?", None),
    ]


def test_findings_come_in_the_order_of_the_scripts_and_lines() -> None:
    texts = {"b": "DELETE FROM a;\nDROP TABLE c;", "a": "TRUNCATE d"}
    scripts = [script(text, name, phase="contract") for name, text in texts.items()]
    found = findings(scripts, {name: text.encode() for name, text in texts.items()}, "mariadb", still_read=nothing_read)
    assert [(one.script, one.line, one.rule) for one in found if one.rule != "unknown"] == [
        ("b", 1, "delete-without-where"),
        ("b", 2, "drop-table"),
        ("a", 1, "truncate"),
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_script_of_any_bytes_is_looked_at(engine: Engine) -> None:
    one = script("")
    assert findings([one], {one.id: b"\xff\xfe\0 DROP TABLE \xe9;"}, engine, still_read=nothing_read)
