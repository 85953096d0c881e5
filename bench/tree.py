"""The release that is deployed: 3,010 files, 58 MB, the same bytes on every machine, and patches to it.

Sizes are spread as in a web application: most files of a few KiB, few of some hundred. One half compresses like source
code, the other not at all. A patch changes 12 files, adds 3 and deletes 2; 254 KB in all. Each patch has bytes of its
own, so that nothing that was built or cached for one serves for another.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

FILES = 3010
BYTES = 58_000_000
CHANGED, ADDED, DELETED = 12, 3, 2
PATCH_BYTES = 254_000

RESTART = b"""set -eu
# What a service manager would do: from now on the application serves what it was started from.
cp VERSION "$1/served.new"
mv "$1/served.new" "$1/served"
"""

_FIXED = {"bin/restart": RESTART}
_LARGEST = 1_500_000
_WORDS = (
    b"return", b"if", b"else", b"customer", b"order", b"invoice", b"self", b"import", b"total", b"status", b"update",
    b"select", b"from", b"where", b"render", b"request", b"response", b"session", b"price", b"quantity",
)  # fmt: skip


@dataclass(frozen=True)
class Patch:
    """One step from a version to the next: path → new bytes of what is changed or added, and what is deleted."""

    number: int
    changed: dict[str, bytes]
    added: dict[str, bytes]
    deleted: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of the new contents."""
        return sum(map(len, [*self.changed.values(), *self.added.values()]))


def version(number: int) -> str:
    """The name of the version that ``number`` patches lead to; 0 is the base."""
    return f"1.0.{number}"


def base_files() -> dict[str, int]:
    """Path → size of the base's files: exactly :data:`FILES`, together :data:`BYTES`."""
    chance = random.Random("sizes")
    fixed = {**{path: len(data) for path, data in _FIXED.items()}, "VERSION": len(_version_file(0))}
    paths = [_path(number) for number in range(FILES - len(fixed))]
    # Log-normal, as file sizes are; the median is about 4 KiB.
    drawn = [min(_LARGEST, round(math.exp(chance.gauss(8.3, 1.7)))) for _ in paths]
    left = BYTES - sum(fixed.values())
    total = sum(drawn)
    # In whole numbers: the last digit of a float is not the same on every machine.
    sizes = [max(1, size * left // total) for size in drawn]
    sizes[0] += left - sum(sizes)
    return fixed | dict(zip(paths, sizes, strict=True))


def write_base(folder: Path) -> None:
    """The base's files in ``folder``, which is made."""
    for path, size in base_files().items():
        _write(folder / path, _FIXED.get(path) or (_version_file(0) if path == "VERSION" else _bytes(path, size, 0)))


def patch(number: int) -> Patch:
    """The patch that makes version ``number`` of version ``number - 1``; numbers begin with 1."""
    chance = random.Random(f"patch {number}")
    ordinary = [path for path in base_files() if path not in _FIXED and path != "VERSION"]
    half = len(ordinary) // 2
    # Only the second half is ever deleted from, two files a patch, so that what is changed is always there.
    deleted = tuple(ordinary[half + DELETED * (number - 1) : half + DELETED * number])
    if len(deleted) < DELETED:
        raise ValueError(f"there are not files enough for patch {number}")
    changed = {"VERSION": _version_file(number)}
    shares = [chance.randrange(20, 200) for _ in range(CHANGED - 1 + ADDED)]
    left = PATCH_BYTES - len(changed["VERSION"])
    sizes = [share * left // sum(shares) for share in shares]
    sizes[0] += left - sum(sizes)
    named = [*chance.sample(ordinary[:half], CHANGED - 1), *(f"lib/added/p{number:03}_{i}.py" for i in range(ADDED))]
    made = {path: _bytes(path, size, number) for path, size in zip(named, sizes, strict=True)}
    added = {path: data for path, data in made.items() if path.startswith("lib/added/")}
    return Patch(number, changed | {path: data for path, data in made.items() if path not in added}, added, deleted)


def apply(folder: Path, step: Patch) -> None:
    """Makes the files in ``folder`` those of the patch's version; the others keep their time of change."""
    for path, data in (step.changed | step.added).items():
        _write(folder / path, data)
    for path in step.deleted:
        (folder / path).unlink()


def _version_file(number: int) -> bytes:
    return f"{version(number)} of the release that is measured\n".encode()


def _path(number: int) -> str:
    kind = ("py", "html", "js", "png", "css", "json", "po", "woff2")[number % 8]
    place = number // 12  # a dozen files a folder
    return f"{('lib', 'static', 'templates')[place % 3]}/m{place % 24:02}/n{place:03}/f{number:04}.{kind}"


def _bytes(path: str, size: int, number: int) -> bytes:
    chance = random.Random(f"{path} {number}")
    if path.endswith((".png", ".woff2", ".js", ".json")):
        return chance.randbytes(size)
    words = b" ".join(chance.choices(_WORDS, k=400))
    # A number in each line: source code does not compress as well as the same line again and again.
    lines = [
        b"%x %s\n" % (chance.getrandbits(64), words[chance.randrange(1000) :][:100]) for _ in range(size // 70 + 1)
    ]
    return b"".join(lines).ljust(size, b"\n")[:size]


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)  # a copy made of hard links must not change with it
    file.write_bytes(data)
