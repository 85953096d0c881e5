"""The words of scripts, for lint: what is a statement, and what only looks like one."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model import Engine
from pipeline.sql_words import line_of, not_in_a_transaction, statements

ENGINES: tuple[Engine, ...] = get_args(Engine)


def words(text: str, engine: Engine) -> list[str]:
    return [" ".join(word.text for word in statement if word.kind != "body") for statement in statements(text, engine)]


EVERYWHERE = [
    ("", []),
    (";; -- nothing\n;", []),
    ("Select 1; delete FROM a", ["select", "delete from a"]),
    ("INSERT INTO a VALUES (1, 'x;y'), (2, 'it''s', \"b;\"),\n(-3 / 1, NULL); DROP TABLE b", ["drop table b"]),
    ("REPLACE INTO a VALUES (1); insert into b select 1", ["insert into b select"]),
    ("INSERT INTO a SELECT 1 -- ; DROP TABLE b\n; DROP TABLE c", ["insert into a select", "drop table c"]),
    (
        "INSERT INTO a VALUES (1); INSERT INTO a SELECT deleted FROM b; INSERT INTO c VALUES (1); DROP TABLE d",
        ["insert into a select deleted from b", "drop table d"],
    ),
    ("/* DROP TABLE a; */ UPDATE a SET b = 'DELETE FROM c' -- ; DROP\n;", ["update a set b ="]),
    ("ALTER TABLE a ADD b numeric(10, 2), DROP c", ["alter table a add b numeric ( , ) , drop c"]),
    (
        "CREATE TRIGGER t AFTER INSERT ON a BEGIN DELETE FROM b; UPDATE c SET d = CASE WHEN e THEN 1 END; END; DROP TABLE f",
        [
            "create trigger t after insert on a begin delete from b ; update c set d = case when e then end ; end",
            "drop table f",
        ],
    ),
]
OF_ONE: list[tuple[Engine, str, list[str]]] = [
    ("postgresql", "/* a /* b */ DROP */ SELECT 1", ["select"]),
    ("sqlite", "/* a /* b */ SELECT 1", ["select"]),
    ("postgresql", 'DROP TABLE "A ""b"""', ['drop table A "b"']),
    ("postgresql", r"SELECT 'a\'; DROP TABLE b; --'", ["select", "drop table b"]),
    ("postgresql", r"SELECT E'a\'; DROP TABLE b; --'", ["select"]),
    ("postgresql", "CREATE FUNCTION f() AS $x$ DELETE FROM a; $$ $x$ LANGUAGE sql; SELECT 1", None),
    (
        "postgresql",
        "DO $$ BEGIN IF a THEN DELETE FROM b; END IF; END $$;",
        ["do", "delete from b", "end if", "end"],
    ),
    ("postgresql", "\\set x 1\nDROP TABLE a;\n\\i more.sql\nSELECT 1", ["drop table a", "select"]),
    ("postgresql", "COPY a FROM stdin;\nDROP TABLE b;\n\\.\nSELECT 1", ["copy a from stdin", "select"]),
    (
        "postgresql",
        "CREATE FUNCTION f() BEGIN ATOMIC DELETE FROM a; END; SELECT 1",
        ["create function f ( ) begin atomic delete from a ; end", "select"],
    ),
    ("sqlite", "DROP TABLE [a;b]; DROP TABLE `c`", ["drop table a;b", "drop table c"]),
    ("sqlite", ".mode csv\nSELECT 1", ["select"]),
    ("mariadb", 'DROP TABLE `a``b`; # DROP\nSELECT "DROP; TABLE"', ["drop table a`b", "select"]),
    ("mariadb", r"SELECT 'a\'; DROP TABLE b; -- '; SELECT 2", ["select", "select"]),
    ("mariadb", "/*!50003 DROP TABLE a */; /*M!100100 DROP TABLE b */", ["drop table a", "drop table b"]),
    ("mariadb", "SELECT 1--1; DROP TABLE a", ["select", "drop table a"]),
    ("mariadb", "-- c\n--\nSELECT 1", ["select"]),
    ("mysql", "DELIMITER //\nCREATE PROCEDURE p() BEGIN DELETE FROM a; END//\nDELIMITER ;\nDROP TABLE b", None),
    (
        "mysql",
        "delimiter $$\nCREATE FUNCTION f() BEGIN IF a THEN DELETE FROM b; END IF; END$$\ndelimiter ;\nDROP TABLE b;",
        None,
    ),
    (
        "mariadb",
        "CREATE PROCEDURE p() BEGIN WHILE a DO IF b THEN CASE c WHEN 1 THEN DELETE FROM d; END CASE; END IF; "
        "END WHILE; END; DROP TABLE e",
        None,
    ),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("text", "expected"), EVERYWHERE)
def test_statements_of_every_engine(engine: Engine, text: str, expected: list[str]) -> None:
    assert words(text, engine) == expected


@pytest.mark.parametrize(("engine", "text", "expected"), OF_ONE)
def test_statements_of_one_engine(engine: Engine, text: str, expected: list[str] | None) -> None:
    found = words(text, engine)
    if expected is None:  # a body, which is one statement, and one after it
        assert len(found) == 2
        assert found[0].startswith("create ")
        assert found[1] in {"select", "drop table b", "drop table e"}
    else:
        assert found == expected


def test_a_place_is_a_line_of_the_file() -> None:
    text = "-- one\n\nSELECT 1;\nDO $$\nBEGIN\n  DELETE FROM a;\nEND $$"
    assert [line_of(text, statement[0].offset) for statement in statements(text, "postgresql")] == [3, 4, 6, 7]


@pytest.mark.parametrize(
    ("engine", "text", "outside"),
    [
        ("postgresql", "CREATE UNIQUE INDEX CONCURRENTLY i ON a (b)", True),
        ("postgresql", "DROP INDEX CONCURRENTLY i", True),
        ("postgresql", "REINDEX TABLE CONCURRENTLY a", True),
        ("postgresql", "REINDEX TABLE a", False),
        ("postgresql", "SELECT 1; VACUUM a", True),
        ("postgresql", "ALTER TYPE a ADD VALUE 'b' BEFORE 'c'", False),
        ("postgresql", "ALTER TYPE a RENAME VALUE 'b' TO 'c'", False),
        ("postgresql", "ALTER SYSTEM SET a = 1", True),
        ("postgresql", "CREATE DATABASE a", True),
        ("postgresql", "COMMENT ON DATABASE a IS 'b'", False),
        ("postgresql", "ALTER TABLE a DETACH PARTITION b CONCURRENTLY", True),
        ("postgresql", "REFRESH MATERIALIZED VIEW CONCURRENTLY a", False),
        ("postgresql", "CREATE FUNCTION f() AS 'VACUUM'", False),
        ("sqlite", "VACUUM", True),
        ("sqlite", "CREATE INDEX concurrently ON a (b)", False),
        ("mariadb", "CREATE DATABASE a", False),
    ],
)
def test_what_no_transaction_takes(engine: Engine, text: str, outside: bool) -> None:
    assert (not_in_a_transaction(text, engine) is not None) is outside


@given(st.sampled_from(ENGINES), st.text(alphabet="abENDIF;()'\"`$[]/*-#\\!\n\r\t.,1 delimiter", max_size=80))
def test_any_text_is_read_to_its_end(engine: Engine, text: str) -> None:
    for statement in statements(text, engine):
        assert statement
        assert all(0 <= word.offset < len(text) for word in statement if word.text)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_leave_no_words(engine: Engine) -> None:
    rows = ",\n".join(f"({number}, 'row {number}', NULL, -1.5e3)" for number in range(50))
    many = f"INSERT INTO a VALUES {rows};\n" * 600
    assert words(f"{many}SELECT 1", engine) == ["select"]
    assert words(f"{many}INSERT INTO a VALUES (1, 'update');\n{many}", engine) == ["insert into a values ( , )"]
