"""Fixtures that every test may use; those of one kind of server live in ``tests/servers/``."""

from __future__ import annotations

from tests.servers.sshd import sshd

__all__ = ["sshd"]
