"""A deployment as plain Fabric scripts have it: pack, put, unpack, link, restart, check.

usage: fabric_deploy.py KEY SOURCE RELEASE SUMS-OR-DASH; one host a line on standard input: ADDRESS PORT FOLDER
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from fabric import Connection
from invoke import Context

key, source, release, sums = sys.argv[1:5]
hosts = [line.split() for line in sys.stdin]
archive = f"{source}.{release}.tar.gz"


def deploy(address: str, port: str, folder: str) -> None:
    """One host."""
    with Connection(address, port=int(port), connect_kwargs={"key_filename": key}) as host:
        there = f"{folder}/releases/{release}"
        host.run(f"mkdir -p {there}", hide=True)
        host.put(archive, f"{folder}/{release}.tar.gz")
        host.run(f"tar -xzf {folder}/{release}.tar.gz -C {there} && rm {folder}/{release}.tar.gz", hide=True)
        if sums != "-":
            host.put(sums, f"{folder}/sums")
            host.run(f"cd {there} && sha256sum --quiet -c {folder}/sums", hide=True)
        host.run(f"ln -s releases/{release} {folder}/current.new && mv -T {folder}/current.new {folder}/current")
        host.run(f"cd {folder}/current && sh bin/restart ../../shared", hide=True)
        host.run(f"grep -q {release} {folder}/shared/served", hide=True)
        host.run(f"cd {folder}/releases && ls -1 | sort -V | head -n -5 | xargs -r rm -rf --", hide=True)


Context().run(f"tar -czf {archive} -C {source} .")
with ThreadPoolExecutor(len(hosts)) as pool:
    list(pool.map(lambda host: deploy(*host), hosts))
Context().run(f"rm {archive}")
