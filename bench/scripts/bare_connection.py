"""The least that reaching a host over SSH costs with Paramiko: connect, ``true``, close.

usage: bare_connection.py KEY ADDRESS PORT USER
"""

from __future__ import annotations

import socket
import sys

import paramiko

key, address, port, user = sys.argv[1:5]
sock = socket.create_connection((address, int(port)))
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
transport = paramiko.Transport(sock)
transport.get_security_options().ciphers = ("aes128-gcm@openssh.com",)
transport.start_client()
transport.auth_publickey(user, paramiko.Ed25519Key.from_private_key_file(key))
channel = transport.open_session()
channel.exec_command("true")
if channel.recv_exit_status() != 0:
    sys.exit(1)
transport.close()
