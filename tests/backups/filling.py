"""A backup's folder that gets full for real. Run in a mount namespace of its own: `python -m tests.backups.filling`."""

import asyncio
import random
import sys
from pathlib import Path

from tests.backups.recording_target import KEY, Disk, backup_ref, keep, restored
from vpsd.backups.repository import Repository
from vpsd.backups.targets import Directory, Missing, TargetFull

_CHUNK = 64 * 1024


async def fill(folder: Path) -> None:
    """Store backups until the file system has no more room; what was whole stays so, and everything can be deleted."""
    repository = Repository(Directory(folder), "0a1b2c3d", KEY, _CHUNK)
    disk, chance, held = Disk(_CHUNK * 4), random.Random(1), dict[int, bytes]()
    told = ""
    while not told:
        disk.write(0, chance.randbytes(_CHUNK * 4))
        copy = disk.copy(whole=True)
        try:
            await keep(repository, backup_ref(len(held)), copy)
            held[len(held)] = copy.content
        except TargetFull as error:
            told = str(error)
    assert told == f"directory {folder} is full: free some space or delete backups"
    assert len(held) == 3
    assert not list(folder.rglob(".*"))
    try:
        await repository.read_manifest(backup_ref(len(held)))
        raise AssertionError("it looks whole")
    except Missing:
        pass
    await repository.discard(backup_ref(len(held)), [backup_ref(number) for number in held])
    for number in list(held):
        assert await restored(repository, backup_ref(number)) == held.pop(number)
        await repository.discard(backup_ref(number), [backup_ref(left) for left in held])
    assert list(folder.iterdir()) == []


if __name__ == "__main__":
    asyncio.run(fill(Path(sys.argv[1])))
