"""The files of a release from which a layout makes its scripts, and what is wrong with them: every reason, not the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, Literal

from pipeline.content import script_checksum
from pipeline.errors import Failed, Reason
from pipeline.model import Engine, Migrations, Script, TreeFile
from pipeline.paths import is_plain
from pipeline.script_header import CLIENTS, phase_of, read_header
from pipeline.sql_words import not_in_a_transaction

RENAME = "give it the name of a migration, or take it out of the folder"
"""What to do about a file that is nearly a migration, as the end of a sentence."""


@dataclass
class Tree:
    """What lies below the folder of the migrations. ``prefix`` is that folder with a ``/``, or empty for the whole release.

    ``files`` are by their path below the folder, without the full schema of a new database.
    """

    settings: Migrations
    engine: Engine
    prefix: str
    files: dict[str, TreeFile]
    read: Callable[[str], bytes | None]
    wrong: list[Reason] = field(default_factory=list)

    def blame(self, file: str, text: str, line: int | None = None, column: int = 1) -> None:
        """Notes what is wrong with a file (its path below the folder), at a line and column from 1 where there is one."""
        place = f"{self.prefix}{file}"
        self.wrong.append(Reason(text, place if line is None else f"{place}:{line}:{column}"))

    def named(self, file: str) -> bool:
        """Whether the playbook's pattern takes a file of this path below the folder, by its name alone.

        One that it would take in other letters (``2.SQL``), or without blanks at its ends, is noted as wrong.
        """
        name, pattern = PurePosixPath(file).name, self.settings.pattern
        if fnmatchcase(name, pattern):
            return True
        if fnmatchcase(name.strip().lower(), pattern.lower()):
            self.blame(file, f"would never run: its name does not match {pattern}, and nearly does; {RENAME}")
        return False

    def data(self, file: TreeFile) -> bytes:
        """The file's bytes; Failed when they are missing."""
        data = self.read(file.blob)
        if data is None:
            raise Failed(f"migration {file.path} cannot be read.", reasons=[Reason(f"blob {file.blob} is missing")])
        return data

    def taken(self, file: TreeFile) -> bool:
        """Whether this can be a file of a migration; what is wrong with it otherwise is noted."""
        if file.mode == "120000":
            text = "a migration cannot be a symbolic link: its checksum would cover the link, not the text"
            self.wrong.append(Reason(text, file.path))
        elif not is_plain(file.path):
            self.wrong.append(
                Reason(
                    "a migration cannot have a name that a history cannot hold: control characters, backslashes and bytes "
                    "that are not UTF-8",
                    file.path,
                )
            )
        else:
            return True
        return False

    def script(
        self,
        file: TreeFile,
        id: str,
        *,
        kind: Literal["versioned", "repeatable", "initial"] = "versioned",
        transactional: bool | None = None,
        detects: bool = False,
        lines: tuple[int, int] | None = None,
        verify: TreeFile | None = None,
    ) -> list[Script]:
        """The script that this file is, alone in a list; nothing when something is wrong with it.

        ``transactional`` is what the layout says; with
        ``detects`` its tool finds out by itself which statements cannot run in a transaction. The header outdoes both.
        """
        if not self.taken(file) or (verify is not None and not self.taken(verify)):
            return []
        data = self.data(file)
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            self.wrong.append(Reason("is UTF-16; a migration is UTF-8", file.path))
            return []
        header, wrong = read_header(data, file.path)
        if header.client is not None and header.client not in CLIENTS[self.engine]:
            known = " or ".join(CLIENTS[self.engine])
            wrong.append(Reason(f"client={header.client} is for another engine; here it is {known}", file.path))
        if wrong:
            self.wrong += wrong
            return []
        said = transactional if header.transaction is None else header.transaction
        if said is None:
            from pipeline.script_text import script_text

            said = not (detects and not_in_a_transaction(script_text(data), self.engine))
        fields: dict[str, Any] = {"accepted": dict(header.accepted)} if header.accepted else {}
        return [
            Script(
                id=id,
                checksum=script_checksum(data),
                blob=file.blob,
                kind=kind,
                phase=header.phase or (None if kind == "initial" else phase_of(id)),
                lines=lines,
                transactional=said,
                client=header.client is not None,
                session=bool(header.session),
                verify=verify.blob if verify else None,
                **fields,
            )
        ]

    def once_each(self, what: str, found: Sequence[tuple[Any, str]]) -> None:
        """Notes every two files (each with its version or the like) that have the same one: no order would be right."""
        first: dict[Any, str] = {}
        for key, file in found:
            if key in first:
                self.blame(file, f"has the same {what} as {self.prefix}{first[key]}")
            first.setdefault(key, file)
