"""Running a script as another user, through ``sudo``, with or without a password.

The password goes as the first line of the input, so that no process list shows it. It must not end up in what the
script reads: whether ``sudo`` will ask is found out first (``-k``: whatever it remembers), and the script's own input
goes only once ``sudo`` has let us through, which a first line of output tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pipeline.errors import ConfigurationError
from pipeline.transports import Take

READY = b"tma-pipeline:become\n"
PROMPT = b"tma-pipeline:password:"

THROUGH = 'printf "tma-pipeline:become\\n"; exec "$@"'

UNASKED = """
user=$1 through=$2
shift 2
exec sudo -k -n -H -u "$user" -- sh -c "$through" sh "$@"
"""

ASKED = """
user=$1 through=$2
shift 2
if sudo -k -n -H -u "$user" -- sh -c : </dev/null >/dev/null 2>&1; then
    IFS= read -r unneeded
    exec sudo -k -n -H -u "$user" -- sh -c "$through" sh "$@"
fi
exec sudo -k -S -p tma-pipeline:password: -H -u "$user" -- sh -c "$through" sh "$@"
"""


class Becoming:
    """One command as ``user``: wraps its words, its input and its output. ``through``: whether it was let through."""

    def __init__(self, user: str, password: str | None) -> None:
        if password is not None and ("\n" in password or "\0" in password):
            raise ConfigurationError(f"the password with which to become {user} holds a line end.")
        self.user = user
        self.through = False
        self._password = password
        self._asked = 0
        self._said = bytearray()
        self._early = bytearray()

    def words(self, words: Sequence[str]) -> list[str]:
        """The command that becomes the user and then does ``words``."""
        script = UNASKED if self._password is None else ASKED
        return ["sh", "-c", script, "sh", self.user, THROUGH, *words]

    def stdin(self, stdin: bytes | Iterable[bytes]) -> Iterator[bytes | None]:
        """The input with what goes before it; None means that the next is known only when more was heard."""
        if self._password is not None:
            yield self._password.encode() + b"\n"
            while not self.through:
                if self._asked > 1:
                    return  # the password was wrong: an end of input keeps sudo from taking the rest for another try
                yield None
        yield from (stdin,) if isinstance(stdin, bytes) else stdin

    def take(self, take: Take) -> Take:
        """What takes the output, so that ``take`` is given only what the script printed."""

        def filtered(wrong: bool, data: bytes) -> None:
            if self.through:
                take(wrong, data)
            elif wrong:
                self._said += data
                self._asked = self._said.count(PROMPT)
            else:
                self._early += data
                before, found, after = self._early.partition(READY)
                if found:
                    self.through = True
                    self._early.clear()
                    if before + after:
                        take(False, bytes(before + after))

        return filtered

    def said(self) -> list[str]:
        """What ``sudo`` said when it did not let us through, a line each."""
        text = self._said.replace(PROMPT, b"\n").decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-5:]
