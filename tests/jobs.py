"""Jobs for the tests of a host: releases out of names and bytes, what is sent, and the entries that it is written down with."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.host import Host
from pipeline.host_journal import JournalEntry
from pipeline.job import Job, JobStep, StepTold, Told
from pipeline.model import Manifest, TreeFile
from pipeline.paths import path_text
from pipeline.payload import Payload, Payloads
from tests.nouns import sha

Files = Mapping[bytes, tuple[str, bytes]]
Read = Callable[[Sequence[str]], Iterable[tuple[str, bytes]]]

FILES: dict[bytes, tuple[str, bytes]] = {
    b"app.py": ("100644", b"print('app')\n"),
    b"bin/start": ("100755", b"#!/bin/sh\nexit 0\n"),
    b"bin/link": ("120000", b"../app.py"),
    b"empty": ("100644", b""),
    "größe/deep/".encode() + b"n" * 120 + b"/x.txt": ("100644", b"long name\n"),
    b"with space $(touch injected) `id` ; 'q' \"d\" *.sql": ("100644", b"hard name\n"),
    b"-n": ("100644", b"dash\n"),
    b"--help": ("100755", b"dashes\n"),
    b"data.bin": ("100644", bytes(range(256)) * 2000),
    b"n" * 255: ("100644", b"the longest\n"),
    b"lat\xe9n/\xff\xfe": ("100644", b"not UTF-8\n"),
    b"new\nline/in\nboth": ("100644", b"line break\n"),
    b"tab\there": ("100755", b"tab\n"),
    b"carriage\rreturn": ("100644", b"return\n"),
    b"back\\slash\\n": ("100644", b"backslash\n"),
    b"end\n": ("100644", b"line break last\n"),
    b"odd\nlink": ("120000", b"new\nline/in\nboth"),
    b"x:6162": ("100644", b"looks like ours\n"),
    b" leading and trailing ": ("100644", b"blanks\n"),
}
"""Names that a shell, a tar or a list may stumble over."""


def release_of(files: Files) -> tuple[Manifest, Read]:
    """The manifest of these files, and the reading of their blobs."""
    blobs = {hashlib.sha1(data).hexdigest(): data for _, data in files.values()}
    manifest = Manifest(
        tree=hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest(),
        files=tuple(
            TreeFile(
                path=path_text(path),
                mode=mode,
                blob=hashlib.sha1(data).hexdigest(),
                sha256=hashlib.sha256(data).hexdigest(),
                size=len(data),
            )
            for path, (mode, data) in sorted(files.items())
        ),
    )
    return manifest, lambda names: [(name, blobs[name]) for name in names]


def entry(run: str = "run-1", fence: int = 1, what: str = "deployment-started", **more: object) -> JournalEntry:
    """A journal entry; its record is the run's, so that each run is one attempt."""
    at = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
    fields = {"run": run, "fence": fence, "customer": "acme", "environment": "test", "at": at, "what": what}
    return JournalEntry.model_validate({**fields, "record": f"{run}-record-{fence}", **more})


def payload_of(cache: Path, files: Files, base: Files | None = None) -> Payload:
    """What leads from ``base`` to ``files``."""
    manifest, read = release_of(files)
    return Payloads(cache, read).get(manifest, release_of(base)[0] if base is not None else None)


def upload(release: str, payload: Payload, base: str = "", number: int = 1) -> JobStep:
    """The step that puts a release beside the others."""
    return JobStep(number, sha(f"upload {release} {payload.digest} {base}"), "upload", (release, payload.digest, base))


def switch(release: str, number: int = 2) -> JobStep:
    """The step that makes ``current`` point to it; to nothing for ""."""
    return JobStep(number, sha(f"switch {release}"), "switch", (release,))


def command(*argv: str, number: int = 3, seconds: int = 60, folder: str = ".", **more: Any) -> JobStep:
    """A product's own program."""
    words = (str(seconds), folder, *argv)
    return JobStep(number, sha(f"command {words}"), "command", words, seconds, **more)


def render(number: int = 4, act: str = "render") -> JobStep:
    """The step that writes the job's files with this number into ``shared/``, or puts back what was there."""
    return JobStep(number, sha(f"{act} {number}"), act, (str(number),) if act == "render" else ())


def put(host: Host, release: str, files: Files, *, base: tuple[str, Files] | None = None, fence: int = 1) -> Told:
    """Uploads a release in a run of its own, over the files of ``base`` where it is given."""
    cache = Path(host.folder).parent / "payloads"
    payload = payload_of(cache, files, base[1] if base else None)
    step = upload(release, payload, base[0] if base else "")
    return host.carry(Job(entry(f"put-{fence}", fence), (step,), payload=payload))


def installed(host: Host, release: str = "2.4.0+1", files: Files = FILES) -> Manifest:
    """A first release, that serves; run ``run-1`` with the fence 1."""
    payload = payload_of(Path(host.folder).parent / "payloads", files)
    told = host.carry(Job(entry(), (upload(release, payload), switch(release)), payload=payload))
    assert outcomes(told) == {1: "ok", 2: "ok"}, told
    return release_of(files)[0]


def do(host: Host, *steps: JobStep, run: str = "run-1", fence: int = 1, **more: Any) -> Told:
    """One job of these steps."""
    return host.carry(Job(entry(run, fence), steps, **more))


def outcomes(told: Told) -> dict[int, str]:
    """What became of each step: ``ok``, ``again``, ``failed CODE``, ``started``."""

    def word(one: StepTold) -> str:
        return "again" if one.again else f"failed {one.code}" if one.outcome == "failed" else one.outcome

    return {number: word(one) for number, one in told.steps.items()}


def written(host: Host) -> list[tuple[str, int | None, str | None]]:
    """The journal's entries, shortened: what, step, outcome."""
    return [(one.what, one.step, one.outcome) for one in host.journal()]


def snapshot(folder: Path) -> dict[bytes, tuple[int, object]]:
    """Everything below a folder but what is kept for a full disk, for comparing before and after."""
    found: dict[bytes, tuple[int, object]] = {}
    for top, folders, names in os.walk(os.fsencode(folder)):
        for name in (*folders, *names):
            path = os.path.join(top, name)
            if b".tma-reserve" in path.split(b"/"):
                continue
            seen = os.lstat(path)
            content = os.readlink(path) if os.path.islink(path) else None
            if os.path.isfile(path) and content is None:
                content = Path(os.fsdecode(path)).read_bytes()
            found[os.path.relpath(path, os.fsencode(folder))] = (seen.st_mode, content)
    return found


def tools_without(folder: Path, *names: str) -> str:
    """A PATH with every program of this machine's but these."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            if program.name not in names:
                (folder / program.name).unlink(missing_ok=True)
                (folder / program.name).symlink_to(program)
    return str(folder)


def busybox_tools(folder: Path) -> str:
    """A PATH with busybox's programs alone, ``sh`` among them."""
    busybox = shutil.which("busybox")
    assert busybox, "busybox is not installed: tests/prepare.py does it"
    folder.mkdir(parents=True, exist_ok=True)
    for name in subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split():
        (folder / name).symlink_to(busybox)
    return str(folder)
