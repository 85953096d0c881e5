"""Rehearsals, trial restores and restores of MariaDB stay where they are told to, and half a restore is used by nothing."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from pipeline.databases.mysql import backup as mysql_backup
from pipeline.databases.mysql.foreign import beyond
from pipeline.errors import Failed, Locked, PipelineError, Refused, overtaken
from pipeline.model import BackupSettings
from tests.contracts.engines import MariaDb, apply, history_of, script

pytestmark = [pytest.mark.slow, pytest.mark.live]


def scratch_of(mariadb: MariaDb) -> str:
    return f"{mariadb.address.name}_scratch"


def outcomes(database: Any, *sql: str) -> list[str]:
    scripts = [script(f"r{number}.sql", each) for number, each in enumerate(sql)]
    return [each.outcome for each in database.rehearse(scripts, run="r")]


def test_rehearsal_of_what_reaches_further_is_skipped(mariadb: MariaDb) -> None:
    name = mariadb.address.name
    database = mariadb.open(scratch=scratch_of(mariadb))
    apply(database, "01.sql", "CREATE TABLE t (id int); INSERT INTO t VALUES (1); CREATE PROCEDURE pp() DELETE FROM t;")
    reaching = [
        f"DROP DATABASE {name}",
        f"ALTER DATABASE {name} CHARACTER SET latin1",
        f"DELETE FROM {name}/**/.t",
        f"DELETE FROM `{name}` . `t`",
        f"/*!50000 DELETE FROM {name}.t */",
        f"USE {name}",
        f"EXECUTE IMMEDIATE CONCAT('DELETE FROM {name}', '.t')",
        "INSERT INTO elsewhere.r VALUES (1)",
        "CREATE USER somebody",
        "SET GLOBAL connect_timeout = 10",
        "GRANT ALL ON *.* TO somebody",
        "SELECT * FROM t INTO OUTFILE '/tmp/x'",
        "CREATE EVENT ev ON SCHEDULE EVERY 1 SECOND DO DO 1",
    ]
    assert outcomes(database, *reaching) == ["skipped"] * len(reaching)
    inside = (
        "UPDATE t AS a JOIN t AS b ON a.id = b.id SET a.id = b.id + 1.5; CALL pp(); SELECT t.id FROM t USE INDEX ()"
    )
    assert outcomes(database, inside) == ["ok"]
    assert mariadb.query("SELECT id FROM t") == [(1,)]


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TRIGGER g AFTER INSERT ON t FOR EACH ROW INSERT INTO {name}.log VALUES (NEW.id)",
        "CREATE PROCEDURE pp() DELETE FROM {name}.log",
        "CREATE TRIGGER {name}.g AFTER INSERT ON {name}.t FOR EACH ROW SET @a = 1",
    ],
)
def test_definition_that_names_a_database_keeps_everything_out_of_the_scratch_database(
    mariadb: MariaDb, made: str
) -> None:
    database = mariadb.open(scratch=scratch_of(mariadb))
    apply(database, "01.sql", "CREATE TABLE t (id int); CREATE TABLE log (id int); INSERT INTO log VALUES (1)")
    mariadb.query(made.format(name=mariadb.address.name))
    assert outcomes(database, "INSERT INTO t VALUES (5)", "DELETE FROM log") == ["skipped", "skipped"]
    database.backup("L")
    with pytest.raises(Failed, match=f"names the database {mariadb.address.name}"):
        database.prove("L")
    assert mariadb.query("SELECT id FROM log") == [(1,)]


def test_words_that_only_look_like_it_stay_inside() -> None:
    for text in (
        "ALTER TABLE t CHANGE a b int, ADD COLUMN event int",
        "INSERT INTO t VALUES ('shop.t', 'DROP DATABASE shop') -- shop.t",
        "CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW SET NEW.id = OLD.id",
        "SELECT @@session.sql_mode, information_schema.tables.table_name FROM information_schema.tables",
        "UPDATE u SET password = 'x'",
    ):
        assert beyond(text, {"shop"}) is None, text


def test_events_do_not_run_in_a_trial_restore(mariadb: MariaDb) -> None:
    database = mariadb.open(scratch=scratch_of(mariadb))
    apply(database, "01.sql", "CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    mariadb.query("CREATE EVENT e1 ON SCHEDULE EVERY 1 SECOND COMMENT ' ENABLE DO ' DO DELETE FROM t WHERE id > 7")
    mariadb.query("CREATE EVENT e2 ON SCHEDULE EVERY 1 DAY DISABLE DO BEGIN DO 1; END")
    database.backup("L")
    seen: list[Any] = []
    catalogue = mysql_backup.catalogue

    def looking(ask: Any, name: str) -> Any:
        seen.append(ask(f"SELECT DISTINCT status FROM information_schema.events WHERE event_schema = '{name}'"))
        return catalogue(ask, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mysql_backup, "catalogue", looking)
        assert database.prove("L").restored
    assert seen == [[("DISABLED",)]]
    database.restore("L", sha256=None, fence=2, run="back")
    assert mariadb.query("SELECT status FROM information_schema.events WHERE event_name = 'e1'") == [("ENABLED",)]


def test_what_others_defined_is_restored_by_this_user(mariadb: MariaDb) -> None:
    database = mariadb.open(scratch=scratch_of(mariadb), backup=BackupSettings(proof="restore"))
    apply(database, "01.sql", "CREATE TABLE t (id int); CREATE TABLE n (x text); INSERT INTO t VALUES (1)")
    boss = mariadb.server.superuser(mariadb.address.name)
    boss.query("CREATE VIEW v AS SELECT * FROM t")
    boss.query("CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW SET NEW.id = NEW.id + 0")
    boss.query("CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO DO 1")
    mariadb.query("INSERT INTO n VALUES ('/*!50013 DEFINER=`boss`@`%` */\nCREATE DEFINER=`boss`@`%` VIEW;\n')")
    before, rows = database.catalogue(), mariadb.query("SELECT * FROM n")
    assert "boss@%" in database.backup("L").proven_by
    database.restore("L", sha256=None, fence=2, run="back")
    assert database.catalogue() == before
    assert mariadb.query("SELECT * FROM n") == rows
    assert database.events()[-1].details["definers"] == ["boss@%"]


def test_scratch_database_with_anything_of_others_is_left_alone(mariadb: MariaDb) -> None:
    database = mariadb.open(scratch=scratch_of(mariadb))
    apply(database, "01.sql", "CREATE TABLE t (id int)")
    mariadb.server.superuser(scratch_of(mariadb)).query("CREATE PROCEDURE precious() SELECT 1")
    with pytest.raises(Refused, match="precious"):
        database.rehearse([script("1.sql", "SELECT 1")], run="r")
    with pytest.raises(Refused, match="the database itself"):
        mariadb.open(scratch=mariadb.address.name.upper()).rehearse([script("1.sql", "SELECT 1")], run="r")


def test_one_user_of_the_scratch_database_at_a_time(mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.databases.mysql import rehearsal
    from pipeline.databases.mysql.session import lock_name

    monkeypatch.setattr(rehearsal, "_PATIENCE", 0)
    database = mariadb.open(scratch=scratch_of(mariadb))
    apply(database, "01.sql", "CREATE TABLE t (id int)")
    database.backup("L")
    with mariadb.address.connect() as other:
        other.cursor().execute("SELECT GET_LOCK(%s, 0)", [lock_name(f"scratch:{scratch_of(mariadb)}")])
        with pytest.raises(Locked):
            database.rehearse([script("1.sql", "SELECT 1")], run="r")
        with pytest.raises(Locked):
            database.prove("L")
    assert database.prove("L").restored


def test_restore_that_was_overtaken_meanwhile_changes_nothing(
    mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = mariadb.open()
    apply(database, "01.sql", "CREATE TABLE t (id int)")
    database.backup("L")
    apply(database, "02.sql", "CREATE TABLE later (id int)")
    fence = database._fence
    claim = fence.claim

    def overtaken_then(*arguments: Any, **named: Any) -> None:
        claim(*arguments, **named)
        mariadb.query("UPDATE tma_migration_fence SET highest = 9")

    monkeypatch.setattr(fence, "claim", overtaken_then)
    with pytest.raises(Refused) as refused:
        database.restore("L", sha256=None, fence=1, run="r")
    assert overtaken(refused.value)
    assert "later" in mariadb.tables()


@pytest.mark.parametrize("when", ["emptied", "loaded"])
def test_half_a_restore_is_used_by_nothing_but_the_restore_again(
    mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    database = mariadb.open(scratch=scratch_of(mariadb))
    stale = mariadb.open()
    apply(database, "01.sql", "CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    database.backup("L")
    apply(stale, "02.sql", "CREATE TABLE later (id int)", fence=5)
    empty, end = mysql_backup.empty, mysql_backup.MysqlBackups.restore

    def dying(*arguments: Any) -> Any:
        found = (empty if when == "emptied" else end)(*arguments)
        raise KeyboardInterrupt if found is None or when == "loaded" else AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(
            *((mysql_backup, "empty") if when == "emptied" else (mysql_backup.MysqlBackups, "restore")), dying
        )
        with pytest.raises(KeyboardInterrupt):
            database.restore("L", sha256=None, fence=7, run="died")
    one = script("03.sql", "SELECT 1")
    others = mariadb.open()
    for refused in (
        lambda: apply(stale, "03.sql", "CREATE TABLE no (id int)", fence=5),
        lambda: apply(others, "03.sql", "CREATE TABLE no (id int)", fence=8),
        lambda: others.baseline([one[0]], fence=8, run="r", release="1"),
        lambda: others.repair("01.sql", "done", fence=8, run="r", release="1"),
        lambda: database.rehearse([one], run="r"),
        lambda: others.backup("M"),
    ):
        with pytest.raises(Refused, match="was begun and not finished") as error:
            refused()
        assert "backup=L" in error.value.next_commands[0]
    assert "no" not in mariadb.tables()
    with pytest.raises(Refused) as late:
        others.restore("L", sha256=None, fence=6, run="late")
    assert overtaken(late.value)
    others.claim(9, "again")
    others.restore("L", sha256=None, fence=9, run="again")
    assert mariadb.query("SELECT id FROM t") == [(1,)]
    assert history_of(others) == ["01.sql"]
    assert "tma_migration_restore" not in mariadb.tables()
    with pytest.raises(Refused) as old:
        apply(stale, "02.sql", "SELECT 1", fence=8)
    assert overtaken(old.value)
    assert apply(others, "02.sql", "SELECT 1", fence=9) is True


def test_restore_loads_the_bytes_that_it_proved(mariadb: MariaDb, monkeypatch: pytest.MonkeyPatch) -> None:
    database = mariadb.open()
    apply(database, "01.sql", "CREATE TABLE t (id int)")
    path = Path(database.backup("L").path)
    Path(f"{path}.facts").unlink()
    empty = mysql_backup.empty

    def exchanging(*arguments: Any) -> None:
        empty(*arguments)
        path.write_bytes(gzip.compress(b"CREATE TABLE other (id int);\n-- Dump completed\n"))

    monkeypatch.setattr(mysql_backup, "empty", exchanging)
    with pytest.raises(PipelineError, match="was not restored"):
        database.restore("L", sha256=None, fence=2, run="r")
    assert "other" not in mariadb.tables()


def test_backup_whose_facts_are_missing_is_no_traceback(mariadb: MariaDb) -> None:
    database = mariadb.open(scratch=scratch_of(mariadb))
    apply(database, "01.sql", "CREATE TABLE t (id int)")
    Path(f"{database.backup('L').path}.facts").unlink()
    with pytest.raises(Failed, match="facts are missing"):
        database.prove("L")
