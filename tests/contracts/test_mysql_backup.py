"""Backups, restores, rehearsals and the catalogue of MariaDB, on a real server with its own programs."""

from __future__ import annotations

import datetime
import gzip
from pathlib import Path
from typing import Any

import pytest

from pipeline.databases.catalogues import differences, fingerprint
from pipeline.errors import Failed, NotKnown, PipelineError, Refused, Unreachable, overtaken
from pipeline.model import BackupSettings
from tests.contracts.engines import SECRET, MariaDb, apply, history_of, script

pytestmark = [pytest.mark.slow, pytest.mark.live]

SCHEMA = """CREATE TABLE p (id int PRIMARY KEY AUTO_INCREMENT, name varchar(40) NOT NULL DEFAULT 'x', UNIQUE (name));
CREATE TABLE c (id int, p_id int, raw blob, note text, CHECK (id > 0), FOREIGN KEY (p_id) REFERENCES p (id) ON DELETE CASCADE);
CREATE TABLE `odd ``name; é` (`a b` int);
INSERT INTO p (name) VALUES ('é; \\'x\\''), ('two');
INSERT INTO c VALUES (1, 1, X'00FF5C27', 'a\\\\b\\nc'), (2, 2, NULL, NULL);
CREATE VIEW v2 AS SELECT p.name FROM p JOIN c ON c.p_id = p.id;
CREATE VIEW v1 AS SELECT * FROM v2;
CREATE SEQUENCE s START WITH 5;
DELIMITER //
CREATE PROCEDURE pr(IN x int) BEGIN DELETE FROM c WHERE id = x; SELECT 1; END//
CREATE FUNCTION f(x int) RETURNS int DETERMINISTIC RETURN x + 1//
CREATE TRIGGER t BEFORE INSERT ON c FOR EACH ROW BEGIN SET NEW.note = CONCAT(NEW.note, ';'); END//
CREATE EVENT e ON SCHEDULE EVERY 1 DAY DISABLE DO BEGIN DELETE FROM c; END//
DELIMITER ;
"""


def scratch_of(mariadb: MariaDb) -> str:
    return f"{mariadb.address.name}_scratch"


def scratch_tables(mariadb: MariaDb) -> list[Any]:
    return mariadb.query(f"SHOW TABLES FROM `{scratch_of(mariadb)}`")


def test_backup_is_restored_on_trial_and_the_scratch_database_left_empty(mariadb: MariaDb) -> None:
    database = mariadb.open(scratch=scratch_of(mariadb), backup=BackupSettings(proof="restore"))
    apply(database, "01.sql", SCHEMA)
    taken = database.backup("run-1")
    assert taken.restored
    assert "the same catalogue, 3 tables with 4 rows" in taken.proven_by
    assert scratch_tables(mariadb) == []
    assert [found.label for found in database.backups()] == ["run-1"]
    assert database.prove("run-1").sha256 == taken.sha256
    with pytest.raises(NotKnown):
        database.prove("run-2")
    mariadb.query(f"CREATE TABLE `{scratch_of(mariadb)}`.precious (n int)")
    with pytest.raises(PipelineError, match="precious"):
        database.prove("run-1")
    with pytest.raises(PipelineError, match="precious"):
        database.backup("run-2")
    assert [found.label for found in database.backups()] == ["run-1"]
    assert scratch_tables(mariadb) == [("precious",)]


def test_restore_brings_back_everything_and_only_that(mariadb: MariaDb) -> None:
    database = mariadb.open(passphrase="a passphrase; 'quoted'")
    apply(database, "01.sql", SCHEMA, fence=3)
    before, rows = database.catalogue(), mariadb.query("SELECT * FROM c ORDER BY id")
    taken = database.backup("run-1")
    assert b"CREATE TABLE" not in Path(taken.path).read_bytes()
    apply(database, "02.sql", "DELETE FROM c; CREATE TABLE later (n int); DROP VIEW v1; DROP PROCEDURE pr;", fence=7)
    assert differences(before, database.catalogue())
    with pytest.raises(Refused):
        database.restore("run-1", sha256="0" * 64, fence=8, run="back")
    assert "later" in mariadb.tables()
    with pytest.raises(Refused) as refused:
        database.restore("run-1", sha256=taken.sha256, fence=2, run="back")
    assert overtaken(refused.value)
    database.restore("run-1", sha256=taken.sha256, fence=8, run="back")
    assert differences(before, database.catalogue()) == []
    assert mariadb.query("SELECT * FROM c ORDER BY id") == rows
    assert history_of(database) == ["01.sql"]
    assert database.events()[-1].what == "restored"
    with pytest.raises(Refused):
        apply(database, "02.sql", "SELECT 1", fence=7)
    assert apply(database, "02.sql", "DELETE FROM c", fence=8) is True


@pytest.mark.parametrize("damage", ["cut", "without its end"])
def test_damaged_backup_stops_a_restore_before_anything_changed(mariadb: MariaDb, damage: str) -> None:
    database = mariadb.open()
    apply(database, "01.sql", "CREATE TABLE a (n int); INSERT INTO a VALUES (1)")
    path = Path(database.backup("run-1").path)
    text = gzip.decompress(path.read_bytes())
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] if damage == "cut" else gzip.compress(text[: text.index(b"-- Dump completed")]))
    Path(f"{path}.facts").unlink()
    with pytest.raises(Failed):
        database.restore("run-1", sha256=None, fence=2, run="back")
    assert mariadb.query("SELECT n FROM a") == [(1,)]


def test_hostile_dump_reaches_no_shell_and_a_failed_restore_says_what_is_left(mariadb: MariaDb, tmp_path: Path) -> None:
    database = mariadb.open()
    apply(database, "01.sql", "CREATE TABLE a (n int); INSERT INTO a VALUES (1)")
    path = Path(database.backup("run-1").path)
    text = gzip.decompress(path.read_bytes())
    for command in (f"\\! touch {tmp_path}/shell\n", f"system touch {tmp_path}/shell\n"):
        path.write_bytes(gzip.compress(command.encode() + text))
        Path(f"{path}.facts").unlink(missing_ok=True)
        with pytest.raises(Failed) as failed:
            database.restore("run-1", sha256=None, fence=2, run="back")
        assert not (tmp_path / "shell").exists()
        assert "holds nothing or a part of the backup" in failed.value.state
        assert failed.value.next_commands[0].startswith("invoke backup.restore customer=acme env=test")
        assert SECRET not in failed.value.render()
    path.write_bytes(gzip.compress(text))
    database.restore("run-1", sha256=None, fence=3, run="back")
    assert mariadb.query("SELECT n FROM a") == [(1,)]


def test_rows_that_are_not_those_of_the_database_are_no_proof(mariadb: MariaDb) -> None:
    database = mariadb.open(scratch=scratch_of(mariadb))
    apply(database, "01.sql", "CREATE TABLE a (n int); INSERT INTO a VALUES (1)")
    path = Path(database.backup("run-1").path)
    facts = Path(f"{path}.facts")
    for old, new in ((b"\t1\n", b"\t2\n"), (b'"int(11)"', b'"bigint(20)"')):
        kept = facts.read_bytes()
        assert old in kept
        facts.write_bytes(kept.replace(old, new))
        with pytest.raises(Failed, match="is not what it was made from"):
            database.prove("run-1")
        facts.write_bytes(kept)


def test_rehearsal_runs_on_a_copy_and_leaves_nothing(mariadb: MariaDb) -> None:
    with pytest.raises(Refused, match="needs a scratch database"):
        mariadb.open().rehearse([], run="r")
    database = mariadb.open(scratch=scratch_of(mariadb))
    apply(database, "01.sql", SCHEMA)
    before = fingerprint(database.catalogue())
    scripts = [
        script("02.sql", "ALTER TABLE c ADD COLUMN more int; CREATE VIEW v3 AS SELECT more FROM c; CALL pr(1);"),
        script("03.sql", f"DROP TABLE {mariadb.address.name}.c"),
        script("04.sql", "ALTER TABLE c DROP COLUMN nothing"),
        script("05.sql", "SELECT 1"),
    ]
    found = database.rehearse(scripts, run="r")
    assert [(each.script, each.outcome) for each in found] == [
        ("02.sql", "ok"),
        ("03.sql", "skipped"),
        ("04.sql", "failed"),
    ]
    assert "without its rows" in found[0].said
    assert "nothing" in found[2].said
    assert fingerprint(database.catalogue()) == before
    assert scratch_tables(mariadb) == []
    assert history_of(database) == ["01.sql"]


def test_catalogue_is_the_same_however_the_schema_came_about(mariadb: MariaDb) -> None:
    database = mariadb.open()
    apply(database, "01.sql", SCHEMA)
    first = database.catalogue()
    mariadb.query("INSERT INTO p (name) VALUES ('more')")
    assert fingerprint(database.catalogue()) == fingerprint(first)
    assert set(first["tables"]) == {"p", "c", "odd `name; é"}
    assert mariadb.address.name not in str(first)
    apply(database, "02.sql", "ALTER TABLE p ADD COLUMN age int; CREATE INDEX i ON c (id, note(5)); DROP TRIGGER t;")
    said = differences(first, database.catalogue())
    assert "table p: column age added (int(11))" in said
    assert "table c: index i added ((id, note(5)))" in said
    assert "table c: trigger t removed" in said


def test_tls_is_checked_to_the_name(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from tests.servers.mariadb import MariaDbServer

    def made(alternative: x509.GeneralName, folder: Path) -> list[str]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        folder.mkdir()
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
        (folder / "key.pem").write_bytes(private)
        # The server reads them before it steps down from root, but from a folder that it can enter.
        return [f"--ssl-cert={folder / 'cert.pem'}", f"--ssl-key={folder / 'key.pem'}"]

    import ipaddress
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tls-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        options = made(x509.IPAddress(ipaddress.ip_address("127.0.0.1")), folder / "good")
        for path in folder.rglob("*.pem"):
            path.chmod(0o644)
        with MariaDbServer(*options, "--require-secure-transport=ON") as server:
            engine = MariaDb(server, tmp_path)
            with pytest.raises(Unreachable, match="tls: verify-full"):
                engine.open().history()
            checked = engine.open(tls="verify-full", tls_ca=str(folder / "good" / "cert.pem"))
            assert apply(checked, "01.sql", "CREATE TABLE a (n int)") is True
            assert checked.query("SHOW SESSION STATUS LIKE 'Ssl_cipher'")[0][1]
            assert checked.backup("run-1").size > 0
            made(x509.IPAddress(ipaddress.ip_address("127.0.0.1")), folder / "other")
            with pytest.raises(Unreachable, match="certificate"):
                engine.open(tls="verify-full", tls_ca=str(folder / "other" / "cert.pem")).history()
            with pytest.raises(Unreachable, match="certificate"):
                engine.open(tls="verify-full", tls_ca=str(folder / "good" / "cert.pem"), host="localhost").history()
            for database in engine.opened:
                database.close()
