"""Whether a guest's SSH answers, through the port that leads to it."""

import asyncio
import contextlib

_LIMIT_SECONDS = 0.95
_AGAIN_SECONDS = 0.3  # user-mode networking never repeats a packet that the guest was not yet there to hear


async def greets(address: str, port: int) -> bool:
    """Whether an SSH server greets there, within a second.

    QEMU takes the connection whether or not the guest listens: only the greeting tells. One that was taken too early
    stays silent for good, one to a slow guest needs its time: so others are opened beside the first.
    """
    tries: set[asyncio.Task[bool]] = set()
    deadline = asyncio.get_running_loop().time() + _LIMIT_SECONDS
    try:
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            tries.add(asyncio.create_task(_greeting(address, port)))
            done, _ = await asyncio.wait(tries, timeout=min(left, _AGAIN_SECONDS), return_when=asyncio.FIRST_COMPLETED)
            if done:
                return any(task.result() for task in done)
        return False
    finally:
        for task in tries:
            task.cancel()
        await asyncio.gather(*tries, return_exceptions=True)


async def _greeting(address: str, port: int) -> bool:
    """Whether the greeting came; False where the connection was refused or closed."""
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    try:
        return await reader.readexactly(4) == b"SSH-"
    except (OSError, asyncio.IncompleteReadError):
        return False
    finally:
        with contextlib.suppress(OSError):
            writer.transport.abort()
