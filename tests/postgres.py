"""A private PostgreSQL from Debian's package: on a socket in a folder of its own, gone when the tests end."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def _tool(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else name


def _as_nobody_important(folder: Path) -> list[str]:
    # PostgreSQL refuses to run as root.
    if os.geteuid() != 0:
        return []
    shutil.chown(folder, "postgres", "postgres")
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


@contextmanager
def running_postgres() -> Iterator[str]:
    """Start one, and give the URL of its first database without the database's name."""
    folder = Path(tempfile.mkdtemp(prefix="vpsd-pg-", dir="/tmp"))
    user = _as_nobody_important(folder)
    data = folder / "data"
    control = [*user, _tool("pg_ctl"), "-D", str(data), "-w", "-s"]
    try:
        initdb = [_tool("initdb"), "-D", str(data), "-U", "vpsd", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run([*user, *initdb], check=True, stdout=subprocess.DEVNULL, cwd=folder)
        options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=60 -c shared_buffers=32MB"
        subprocess.run(
            [*control, "-l", str(folder / "log"), "-o", options, "start"], check=True, close_fds=True, cwd=folder
        )
        try:
            yield f"postgresql://vpsd@/{{}}?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, cwd=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def restart(url: str) -> None:
    """End the one of a URL as a crash does, and start it again."""
    folder = Path(url.partition("?host=")[2])
    command = [_tool("pg_ctl"), "-D", str(folder / "data"), "-w", "-s", "-m", "immediate", "-l", str(folder / "log")]
    subprocess.run([*_as_nobody_important(folder), *command, "restart"], check=True, close_fds=True, cwd=folder)
