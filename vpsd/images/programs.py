"""Runs host programs for builds: time-limited, logged, killed with all their children."""

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vpsd.core.ending import wait_out
from vpsd.errors import Misconfigured, Unusable, VpsdError

_PACKAGES = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "debugfs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-img": "qemu-utils",
    "sfdisk": "fdisk",
    "tar": "tar",
    "unshare": "util-linux",
    "zstd": "zstd",
}
WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")  # a build dies with vpsd
_GRACE_SECONDS = 5
_NOTHING = Path(os.devnull)


def require(*names: str) -> None:
    """Raise `Misconfigured` with the command that installs whatever the host lacks."""
    missing = [name for name in names if shutil.which(name, path=_path()) is None]
    if missing:
        packages = " ".join(sorted({_PACKAGES[name] for name in missing}))
        raise Misconfigured(f"{', '.join(missing)} missing on this machine; apt-get install {packages}")


async def run(
    *argv: str | Path,
    log: Path,
    timeout_seconds: float,
    error: type[VpsdError] = Unusable,
    stdout: Path | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    accepted: Sequence[int] = (0,),
) -> str:
    """Run a program and return its standard output; its standard error is appended to `log`.

    Raises `error`, quoting the last lines, when it ends with a code that is not `accepted` or takes longer than
    `timeout_seconds`. If the caller is
    cancelled, the program and its children are killed first. `on_line` gets each line of its standard error.
    """
    if "/" not in str(argv[0]):
        require(str(argv[0]))
    with (stdout or _NOTHING).open("wb") as output, log.open("ab") as logged:
        process = await asyncio.create_subprocess_exec(
            *WITH_US,
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output if stdout else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env={**os.environ, "PATH": _path(), "LC_ALL": "C.UTF-8", **(environment or {})},
            start_new_session=True,
        )
        assert process.stderr is not None

        async def follow(stream: asyncio.StreamReader) -> list[str]:
            lines = []
            async for raw in stream:
                logged.write(raw)
                lines.append(raw.decode(errors="replace").rstrip())
                if on_line:
                    on_line(lines[-1])
            return lines[-8:]

        async def read(stream: asyncio.StreamReader | None) -> bytes:
            return await stream.read() if stream else b""

        name = Path(argv[0]).name
        try:
            async with asyncio.timeout(timeout_seconds):
                said, text, code = await asyncio.gather(follow(process.stderr), read(process.stdout), process.wait())
        except TimeoutError:
            raise error(f"{name} did not finish within {timeout_seconds:.0f} seconds; see {log}") from None
        finally:
            await wait_out(asyncio.ensure_future(_end(process)))
    if code not in accepted:
        raise error(f"{name} failed ({code}): {' | '.join(said[-4:]) or 'no output'}")
    return text.decode(errors="replace")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Terminate the process group, then kill it: mmdebstrap cleans up on SIGTERM."""
    if process.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            async with asyncio.timeout(_GRACE_SECONDS):
                await process.wait()
        except TimeoutError:
            continue
        except ProcessLookupError:
            return
        return


def _path() -> str:
    """PATH plus the folders of system tools, which ordinary users often lack."""
    return os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/local/sbin:/usr/sbin:/sbin"


async def remove_tree(folder: Path) -> None:
    """Delete a folder, even if a build in a user namespace left other users' files in it."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if folder.exists() and os.geteuid() != 0:
        script = ("unshare", "--map-root-user", "--map-auto", "rm", "-rf", str(folder))
        process = await asyncio.create_subprocess_exec(*script, stderr=asyncio.subprocess.DEVNULL)
        await process.wait()
