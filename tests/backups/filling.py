"""A backup's folder that gets full for real. Run in a mount namespace of its own: `python -m tests.backups.filling`."""

import asyncio
import random
import sys
from pathlib import Path

from tests.backups.shelf import KEY, Disk, keep, place, restored
from vpsd.backups.targets import Directory, Missing, TargetFull
from vpsd.backups.vault import Vault

_CHUNK = 64 * 1024


async def fill(folder: Path) -> None:
    """Store backups until the file system has no more room; what was whole stays so, and everything can be deleted."""
    vault = Vault(Directory(folder), "0a1b2c3d", KEY, _CHUNK)
    disk, chance, held = Disk(_CHUNK * 4), random.Random(1), dict[int, bytes]()
    told = ""
    while not told:
        disk.write(0, chance.randbytes(_CHUNK * 4))
        copy = disk.copy(whole=True)
        try:
            await keep(vault, place(len(held)), copy)
            held[len(held)] = copy.content
        except TargetFull as error:
            told = str(error)
    assert told == f"directory {folder} is full: free some space or delete backups"
    assert len(held) == 3
    assert not list(folder.rglob(".*"))
    try:
        await vault.read_manifest(place(len(held)))
        raise AssertionError("it looks whole")
    except Missing:
        pass
    await vault.discard(place(len(held)), [place(number) for number in held])
    for number in list(held):
        assert await restored(vault, place(number)) == held.pop(number)
        await vault.discard(place(number), [place(left) for left in held])
    assert list(folder.iterdir()) == []


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1])))
