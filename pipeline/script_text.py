"""A migration's bytes as text, with the line numbers that a person sees in the file. Pure."""

from __future__ import annotations

from pipeline.model import Script

_BOM = b"\xef\xbb\xbf"


def script_bytes(data: bytes) -> bytes:
    """The bytes as their checksum sees them: without a leading BOM, every line end LF. No other line is counted anywhere."""
    return data.removeprefix(_BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def script_text(data: bytes) -> str:
    """:func:`script_bytes` as text. Bytes that are not UTF-8 become lone surrogates, one a byte: the rest can be read."""
    return script_bytes(data).decode("utf-8", "surrogateescape")


def running_text(script: Script, data: bytes) -> str:
    """The part of a script that runs: of a file of which only ``script.lines`` do, every other line is empty."""
    text = script_text(data)
    if script.lines is None:
        return text
    first, last = script.lines
    lines = text.split("\n")
    return "\n".join(line if first <= number <= last else "" for number, line in enumerate(lines, 1))
