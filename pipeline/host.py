"""One host's folder, over any transport: releases beside each other, ``shared/``, ``current``, the journal.

::

    <folder>/releases/<release>/      the files of a release, exactly its tree
    <folder>/current -> releases/…    what serves; switched in one rename
    <folder>/shared/                  what belongs to this environment: rendered configuration, the application's data
    <folder>/journal/000001-….json    see :mod:`pipeline.host_journal`; never cleaned
    <folder>/backups/<run>/           what was there before
    <folder>/incoming/<run>/          an upload on its way

The work is done by the POSIX ``sh`` scripts in ``host_scripts/``. Every change is safe to repeat after a crash at any
point. Errors: Refused (the host holds what we did not put there), Failed (a script did not work, with its words),
Unreachable and :class:`pipeline.transports.LineCut` from the transport.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from pipeline.errors import Failed, Reason, Refused, UsageError
from pipeline.host_journal import Journal, JournalEntry, newest_entry
from pipeline.model import Manifest, TreeFile
from pipeline.transports import Result, Transport

SCRIPTS = Path(__file__).parent / "host_scripts"
BEGIN = b"tma-pipeline:begin\n"
REFUSED, DIFFERENT = 91, 92

RELEASE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,199}")
"""A release's or a run's name as a folder."""

ABSENT = "the release is not there"
"""What :meth:`Host.verify` says when the whole folder is missing."""

KEPT_OUTPUT = 1024 * 1024
"""Bytes kept of each output of a product's own command, which may print without end."""

BATCH_FILES, BATCH_BYTES = 256, 8 * 1024 * 1024

Read = Callable[[Sequence[str]], Iterable[tuple[str, bytes]]]
"""Blob ids to (blob id, bytes) in any order; asked for in batches."""


@dataclass(frozen=True)
class HostFacts:
    """What :meth:`Host.inspect` found. ``free_*`` are None when the host does not tell.

    ``foreign`` lists what we did not put there, as sentences; ``ours``: there is a deployment journal;
    ``clock_offset_seconds``: the host's clock minus ours, to about a second; ``current`` is the release that serves.
    ``journal_*`` are of the newest entry; None when there is none, or when ``journal_damage`` says, as a sentence, what
    is wrong with it, with the entry before or with the numbers. Only :meth:`Host.journal` looks at every entry.
    """

    exists: bool
    ours: bool
    current: str | None
    releases: tuple[str, ...]
    foreign: tuple[str, ...]
    writable: bool
    user: str
    free_bytes: int | None
    free_inodes: int | None
    missing_tools: tuple[str, ...]
    clock_offset_seconds: float
    journal_number: int
    journal_sha256: str | None
    journal_customer: str | None = None
    journal_environment: str | None = None
    journal_record: str | None = None
    journal_record_sha256: str | None = None
    journal_fence: int | None = None
    journal_damage: str | None = None


class Host:
    """One host's folder. ``data`` names what else may lie in it: folders of the application's own, for its data."""

    def __init__(self, transport: Transport, name: str, folder: str, *, data: Sequence[str] = ()) -> None:
        if not folder.startswith("/") or any(part in ("", ".", "..") for part in folder[1:].split("/")):
            raise UsageError(
                f"the folder of host {name} must be absolute and without '..', '//' or a '/' at its end: {folder!r}."
            )
        self.transport = transport
        self.name = name
        self.folder = folder
        self._data = frozenset(data)
        self._journal = Journal(self._run, name)

    # --- looking ------------------------------------------------------------------------------------------------------

    def inspect(self) -> HostFacts:
        """The host's folder as it is now; changes nothing."""
        before = time.time()
        result = self._run("inspect", what="looking at the host's folder")
        ours_clock = (before + time.time()) / 2
        facts: dict[str, list[str]] = {}
        # Not splitlines(): a name may hold other characters that it takes for the end of a line.
        for line in result.stdout.decode("utf-8", "replace").split("\n"):
            name, _, value = line.partition(" ")
            facts.setdefault(name, []).append(value)
        foreign = facts.get("foreign", [])
        foreign += [f"{name} was not put there by us" for name in facts.get("other", []) if name not in self._data]
        number, digest, newest = 0, None, None
        damage = facts.get("journal_damage", [None])[0]
        if "journal" in facts:
            name, digest = facts["journal"][0].rsplit(" ", 1)
            number = int(name[:6])
            if damage is None:
                data = next(data[14:] for data in result.stdout.split(b"\n") if data.startswith(b"journal_entry "))
                previous = facts.get("journal_previous", [None])[0]
                newest, damage = newest_entry(name, data, digest, previous, self.name)
        elif damage is None:
            foreign += [
                f"{name} is there, and no deployment journal" for name in facts.get("other", []) if name in self._data
            ]
            foreign += [f"releases/{name} is there, and no deployment journal" for name in facts.get("release", [])]
        return HostFacts(
            exists="exists" in facts,
            ours=digest is not None or damage is not None,
            current=facts.get("current", [None])[0],
            releases=tuple(facts.get("release", [])),
            foreign=tuple(foreign),
            writable="unwritable" not in facts,
            user=facts["user"][0],
            free_bytes=_available(facts.get("df_kilobytes", [""])[0], 1024),
            free_inodes=_available(facts.get("df_inodes", [""])[0], 1),
            missing_tools=tuple(facts.get("missing", [])),
            clock_offset_seconds=round(int(facts["now"][0]) - ours_clock, 1),
            journal_number=number,
            journal_sha256=digest,
            journal_customer=newest.customer if newest else None,
            journal_environment=newest.environment if newest else None,
            journal_record=newest.record if newest else None,
            journal_record_sha256=newest.record_sha256 if newest else None,
            journal_fence=newest.fence if newest else None,
            journal_damage=damage,
        )

    def verify(self, release: str, manifest: Manifest) -> list[str]:
        """How the files of an installed release differ from ``manifest``, by content; empty when they do not.

        One sentence a file: changed, missing, not of the release, another mode, another link target.
        """
        result = self._run(
            "verify", _name(release), stdin=_expected(manifest), timeout=900, what=f"comparing release {release}"
        )
        return _sentences(result.stdout, manifest)

    # --- changing -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Makes the folders on an empty or new target; refused, with all that was found, on one that is not ours."""
        facts = self.inspect()
        reasons = [Reason(found, self.name) for found in facts.foreign]
        reasons += [Reason(f"the program {tool} is missing", self.name) for tool in facts.missing_tools]
        if facts.journal_damage is not None:
            reasons.append(Reason(f"the deployment journal is damaged: {facts.journal_damage}", self.name))
        if not facts.writable:
            reasons.append(Reason(f"{facts.user} may not write to {self.folder}", self.name))
        if reasons:
            raise Refused(
                f"{self.folder} on {self.transport.name} cannot be deployed to.",
                reasons=reasons,
                next_commands=[f"look at {self.folder} on {self.name}; move away what should not be there"],
            )
        self._run("prepare", what="making the folders")

    def upload(self, release: str, manifest: Manifest, read: Read, *, run: str, timeout: float = 1800) -> bool:
        """Brings the files of a release; False when they are there already, whole and verified.

        The name ``releases/<release>`` appears only once the host has compared every file (content, mode, link,
        nothing missing, nothing more) with the manifest. A copy that is not what it should be is kept under
        ``backups/<run>/releases`` and replaced; refused when it is the one that serves. ``run`` names the attempt.
        """
        found = self.verify(release, manifest)
        if not found:
            return False
        if found != [ABSENT]:
            if self.inspect().current == release:
                raise Refused(
                    f"release {release} serves on {self.name}, but its files were changed there.",
                    reasons=[Reason(sentence, self.name) for sentence in found],
                )
            self._run("set_aside", _name(release), _name(run), what=f"setting the changed release {release} aside")
        result = self._run(
            "upload",
            _name(release),
            _name(run),
            stdin=_release_tar(manifest, read),
            timeout=timeout,
            accepted=(0, DIFFERENT),
            what=f"uploading release {release}",
        )
        if result.exit_code == DIFFERENT:
            raise Failed(
                f"release {release} did not arrive whole on {self.name}.",
                reasons=[Reason(sentence, self.name) for sentence in _sentences(result.stdout, manifest)],
                state="The upload was removed again; what serves was not touched.",
            )
        return True

    def write_shared(self, files: Mapping[str, bytes], run: str) -> None:
        """Writes files into ``shared/``, each atomically and mode 0600; what was there is kept for the undo.

        Refused, before anything is written, where a link or a folder is in the way.
        """
        for path in files:
            parts = path.split("/")
            if any(part in ("", ".", "..") for part in parts) or not path.isprintable() or path.endswith(".tma-new"):
                raise UsageError(f"{path!r} cannot be the name of a file in shared/.")
        if files:
            stream = _tar((TreeEntry(f"files/{path}", 0o600, data) for path, data in sorted(files.items())))
            self._run("write_shared", _name(run), stdin=stream, what="writing the configuration")

    def restore_shared(self, run: str) -> None:
        """Puts ``shared/`` back to what it was before :meth:`write_shared` of the same run; other files stay."""
        self._run("restore_shared", _name(run), what="restoring the configuration")

    def switch(self, release: str) -> str | None:
        """Makes ``current`` point to a release that is there, in one rename; gives what it pointed to before.

        That is the release itself when it had been switched already, None when there was no ``current``.
        """
        return self._switch(_name(release), f"switching to release {release}")

    def unswitch(self, release: str | None) -> str | None:
        """Makes ``current`` point back to ``release``; None removes it, as before a first deployment."""
        return self._switch(_name(release) if release else "", f"switching back to {release or 'nothing'}")

    def _switch(self, release: str, what: str) -> str | None:
        before = self._run("switch", release, what=what).stdout.decode().strip()
        return None if before == "-" else before

    def command(
        self,
        argv: Sequence[str],
        *,
        cwd: str = "current",
        environment: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> Result:
        """The result of one program, whatever its exit code; words, never a shell line.

        ``cwd`` is below the host's folder. ``environment`` comes on standard input: unlike ``argv`` nobody sees it in
        the host's process list. Exit code 127: there is no such program. Of the output the last 1 MiB is kept.
        """
        if cwd != "." and any(part in ("", ".", "..") for part in cwd.split("/")):
            raise UsageError(f"a command must start in a folder below the host's: {cwd!r}.")
        if not argv:
            raise UsageError("a command for a host is empty.")
        stdin = _variables(environment or {})
        return self._send("command", cwd, *argv, stdin=stdin, timeout=timeout, keep=KEPT_OUTPUT)

    def journal(self) -> list[JournalEntry]:
        """See :meth:`pipeline.host_journal.Journal.entries`."""
        return self._journal.entries()

    def append_journal(self, entry: JournalEntry) -> JournalEntry:
        """See :meth:`pipeline.host_journal.Journal.append`."""
        return self._journal.append(entry)

    # --- speaking -----------------------------------------------------------------------------------------------------

    def _send(
        self, script: str, *arguments: str, stdin: bytes | Iterable[bytes], timeout: float, keep: int | None = None
    ) -> Result:
        words = (self.folder, *arguments)
        result = self.transport.run(_script(script), words, stdin=stdin, timeout=timeout, keep=keep)
        # Where the beginning was dropped, what a login shell printed went with it.
        return result if result.cut else replace(result, stdout=result.stdout.partition(BEGIN)[2])

    def _run(
        self,
        script: str,
        *arguments: str,
        what: str,
        stdin: bytes | Iterable[bytes] = b"",
        timeout: float = 120,
        accepted: Sequence[int] = (0,),
    ) -> Result:
        """The result of one of our scripts; Refused or Failed unless its exit code is among ``accepted``."""
        result = self._send(script, *arguments, stdin=stdin, timeout=timeout)
        if result.exit_code in accepted:
            return result
        words = [line for line in result.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        if result.exit_code == REFUSED:
            raise Refused(f"{what} on {self.name} was refused.", reasons=[Reason(line, self.name) for line in words])
        if result.timed_out:
            words.insert(0, f"it took longer than {timeout:g} seconds and was ended")
        raise Failed(
            f"{what} on {self.name} did not work (exit code {result.exit_code}).",
            reasons=[Reason(line, self.name) for line in words[-8:]],
            state="It may have been done in part; doing it again is safe.",
        )


@cache
def _script(name: str) -> str:
    return "\n".join((SCRIPTS / f"{part}.sh").read_text(encoding="utf-8") for part in ("common", name))


def _name(text: str) -> str:
    if not RELEASE.fullmatch(text):
        raise UsageError(f"{text!r} cannot be the name of a release or run on a host.")
    return text


def _available(df_line: str, unit: int) -> int | None:
    """The number before the percentage in a line of ``df -P`` (POSIX), in units of ``unit``."""
    found = re.search(r" (\d+) +\d+% ", df_line)
    return int(found[1]) * unit if found else None


def _expected(manifest: Manifest) -> bytes:
    """The listing that ``host_scripts/common.sh`` must come to, in the order of its ``sort``: by bytes of the line."""
    return b"".join(sorted(f"{file.mode} {file.sha256}  ./{file.path}\n".encode() for file in manifest.files))


def _sentences(differences: bytes, manifest: Manifest) -> list[str]:
    expected: dict[str, TreeFile] = {file.path: file for file in manifest.files}
    lines = [line for line in differences.decode("utf-8", "replace").split("\n") if line]
    if lines == ["absent"]:
        return [ABSENT]
    found: dict[str, tuple[str, str]] = {}
    missing = set()
    for line in lines:
        mode, digest, path = (*line[2:].split(" ", 2), "", "")[:3]
        path = path.removeprefix(" ").removeprefix("./")
        if line.startswith("> "):
            found[path] = (mode, digest)
        else:
            missing.add(path)
    return [_sentence(path, expected.get(path), found.get(path)) for path in sorted(missing | found.keys())]


def _sentence(path: str, expected: TreeFile | None, found: tuple[str, str] | None) -> str:
    if found is None:
        return f"{path} is missing"
    if found[0] == "unreadable":
        return f"{'some of the release' if path == '.' else path} cannot be read by us"
    if expected is None:
        return f"{path} does not belong to the release"
    mode, digest = found
    if "120000" in (mode, expected.mode) or mode in ("folder", "other"):
        return f"{path} is another kind of file or points elsewhere"
    if digest == expected.sha256:
        return f"{path} has another mode than {expected.mode[2:]}"
    return f"{path} was changed"


@dataclass(frozen=True)
class TreeEntry:
    """One member of a tar: a file's bytes, or with mode 0o120000 a link's target."""

    path: str
    mode: int
    data: bytes


def _tar(entries: Iterable[TreeEntry]) -> Iterator[bytes]:
    """A tar in GNU format, the one whose long names GNU tar, busybox and bsdtar all read."""
    now = int(time.time())  # not 0: web servers tell browsers that two files of equal size and date are the same
    for entry in entries:
        info = tarfile.TarInfo(entry.path)
        info.mtime = now
        if entry.mode == 0o120000:
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.data.decode(), 0o777
            yield info.tobuf(tarfile.GNU_FORMAT, "utf-8")
            continue
        info.mode, info.size = entry.mode & 0o777, len(entry.data)
        yield info.tobuf(tarfile.GNU_FORMAT, "utf-8")
        yield entry.data
        yield b"\0" * (-len(entry.data) % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _release_tar(manifest: Manifest, read: Read) -> Iterator[bytes]:
    def entries() -> Iterator[TreeEntry]:
        yield TreeEntry("manifest", 0o600, _expected(manifest))
        for batch in _batches(manifest.files):
            blobs = dict(read(sorted({file.blob for file in batch})))
            for file in batch:
                data = blobs.get(file.blob)
                if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
                    raise Failed(
                        "the installations repository does not hold what the release's manifest says.",
                        reasons=[Reason(f"{file.path} should have the SHA-256 {file.sha256}", f"blob {file.blob}")],
                    )
                yield TreeEntry(f"tree/{file.path}", int(file.mode, 8), data)

    # A file's mode loses its type bits in _tar; a link's is recognised by them.
    return _tar(entries())


def _batches(files: Iterable[TreeFile]) -> Iterator[list[TreeFile]]:
    batch: list[TreeFile] = []
    size = 0
    for file in files:
        if batch and (len(batch) >= BATCH_FILES or size + file.size > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(file)
        size += file.size
    if batch:
        yield batch


def _variables(environment: Mapping[str, str]) -> bytes:
    """As ``host_scripts/command.sh`` reads it; raises UsageError, without the value, for what no variable can be."""
    text = []
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name.startswith("tma_") or "\0" in value:
            raise UsageError(f"{name!r} cannot be set as an environment variable.")
        lines = value.split("\n")
        text += [name, str(len(lines)), *lines]
    return "".join(f"{line}\n" for line in text).encode()
