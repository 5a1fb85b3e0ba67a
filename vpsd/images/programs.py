"""Runs host programs for builds: time-limited, logged, killed with all their children."""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path

from vpsd.core.ending import wait_out
from vpsd.core.units import GIB
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
    "umount": "mount",
    "unshare": "util-linux",
    "zstd": "zstd",
}
WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")  # a build dies with vpsd
# What is mounted inside is seen by nobody else, and ends with the program and all its children, however it ends.
_ALONE = (
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"),
)
_MEMORY_BYTES = 2 * GIB  # addresses: a tenth of it is what a program takes in any case
_MOUNTS = Path("/proc/self/mountinfo")
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
    alone: bool = False,
    limited: bool = False,
    on_line: Callable[[str], None] | None = None,
    accepted: Sequence[int] = (0,),
) -> str:
    """Run a program and return its standard output; its standard error is appended to `log`.

    Raises `error`, quoting the last lines, when it ends with a code that is not `accepted` or takes longer than
    `timeout_seconds`. If the caller is cancelled, the program and its children are killed first. `alone` is for root,
    and programs that mount: in namespaces of its own. `limited` is for what strangers made: it gets so much memory, and
    no more seconds of CPU than of time. `on_line` gets each line of its standard error.
    """
    if "/" not in str(argv[0]):
        require(str(argv[0]))
    with (stdout or _NOTHING).open("wb") as output, log.open("ab") as logged:
        process = await asyncio.create_subprocess_exec(
            *WITH_US,
            *(_ALONE if alone else ()),
            *(("prlimit", f"--as={_MEMORY_BYTES}", f"--cpu={ceil(timeout_seconds)}", "--") if limited else ()),
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output if stdout else asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env={**_search(), "LC_ALL": "C.UTF-8", **(environment or {})},
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


def _search() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}


def mounts_below(folder: Path, mounts: str) -> list[Path]:
    """What is mounted at or below a folder, the innermost first; `mounts` is what proc(5) says in `mountinfo`."""
    top = folder.resolve()
    points = (line.split(" ")[4] for line in mounts.splitlines())
    paths = [Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)) for point in points]
    return [path for path in reversed(paths) if path.is_relative_to(top)]


async def remove_tree(folder: Path) -> None:
    """Delete a folder, even if a build in a user namespace left other users' files in it.

    What is mounted below it is unmounted and left as it is; raises `Misconfigured` where that is not possible.
    """
    for mounted in mounts_below(folder, _MOUNTS.read_text(errors="surrogateescape")):
        require("umount")
        process = await asyncio.create_subprocess_exec(
            *("umount", "--lazy", "--no-canonicalize", str(mounted)), stderr=asyncio.subprocess.DEVNULL, env=_search()
        )
        await process.wait()
    left = mounts_below(folder, _MOUNTS.read_text(errors="surrogateescape"))
    if left:
        raise Misconfigured(
            f"A build that was killed has left a file system mounted at {left[0]}. Nothing is deleted through it. "
            f"As root: umount --lazy '{left[0]}'"
        )
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    if folder.exists() and os.geteuid() != 0:
        script = ("unshare", "--map-root-user", "--map-auto", "rm", "-rf", "--one-file-system", str(folder))
        process = await asyncio.create_subprocess_exec(*script, stderr=asyncio.subprocess.DEVNULL)
        await process.wait()
