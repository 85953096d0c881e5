"""A line with a longer round trip: a TCP relay on loopback that holds every byte back for half of it.

It needs no root, and works the same for everybody who goes through it. The handshake's round trip is held back as well:
the relay connects onwards only after one and a half, when the last packet of a handshake would have arrived. What it
lacks of a real line: losses, and a slow start of TCP.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Line:
    """A port of 127.0.0.1 behind which a server is ``round_trip`` seconds away."""

    port: int
    round_trip: float


@contextmanager
def delayed(port: int, round_trip: float) -> Iterator[Line]:
    """A relay to this port of 127.0.0.1, in a process of its own; ended at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.delay", str(port), str(round_trip)],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Line(int(process.stdout.readline()), round_trip)
    finally:
        process.stdin.close()  # it ends with its input, also when this process is killed
        process.stdout.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if process.poll() is None:
            process.kill()
            process.wait()


async def relay(port: int, round_trip: float) -> asyncio.Server:
    """The relay's server, listening on a free port."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(1.5 * round_trip)
        try:
            there, answer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_hold(reader, answer, round_trip / 2), _hold(there, writer, round_trip / 2))

    return await asyncio.start_server(accepted, "127.0.0.1", 0)


async def _hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Passes bytes on, each piece ``delay`` seconds after it came, without holding back those behind it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def deliver(data: bytes) -> None:
        with suppress(OSError, RuntimeError):
            if data:
                writer.write(data)
            else:
                ended.set()

    data = b"-"
    while data:
        try:
            data = await reader.read(65536)
        except OSError:
            data = b""
        loop.call_later(delay, deliver, data)
    await ended.wait()
    with suppress(OSError, RuntimeError):
        writer.write_eof() if writer.can_write_eof() else writer.close()


async def _main(port: int, round_trip: float) -> None:
    server = await relay(port, round_trip)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2])))
