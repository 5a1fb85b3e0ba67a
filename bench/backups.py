"""Backups of a running guest: time and size against `qemu-img convert` of the same disk, and what the guest feels.

`python -m bench.backups` prints it. On the guest's disk are 200 MB of random files, of which nothing can be compressed;
an incremental backup is made after 10 MB of them have changed. The yardstick reads the disk with the image below it
(`-U`: while it is in use), packs it with zlib (`-c`) as vpsd does, and ends when all is on the host's disk
(`-t writeback`).
"""

import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.guests import Vpsd, until, vpsd_in_a_folder
from vpsd.backups.targets import MARK

FILES = 20
FILE_MB = 10
_ROUNDS = 3
_MB = 1 << 20

# The gap between any two writes that reached the disk, in hundredths of a second.
_WRITER = """
cat > /root/writer <<'END'
longest=0 last=
while [ -e /root/going ]; do
  dd if=/dev/zero of=/root/written bs=512 count=1 oflag=append conv=notrunc,fsync 2>/dev/null
  read now rest < /proc/uptime
  now=${now%.*}${now#*.}
  [ "$last" ] && [ $((now - last)) -gt $longest ] && longest=$((now - last))
  last=$now
done
echo $longest > /root/longest
END
rm -f /root/longest /root/written
touch /root/going
setsid sh /root/writer < /dev/null > /dev/null 2>&1 &
"""
_IS_CALM = "pidof qemu-ga > /dev/null && ! pidof resize2fs > /dev/null && echo calm || echo busy"
_END_WRITER = "rm /root/going; until [ -s /root/longest ]; do usleep 20000; done; cat /root/longest"


class Cost(msgspec.Struct, frozen=True):
    """Seconds that something took, and the megabytes that it left."""

    seconds: float
    size_mb: float


class Pauses(msgspec.Struct, frozen=True):
    """The longest, in seconds: between two writes in the guest, and until an SSH session's echo."""

    write_seconds: float
    echo_seconds: float


class BackupFigures(msgspec.Struct, frozen=True):
    """Medians of the rounds, and the pauses without and with a backup."""

    full: Cost
    incremental: Cost
    packed: Cost  # by qemu-img
    plain: Cost  # the same without compression
    idle: Pauses
    busy: Pauses
    said_ms: int  # what vpsd says that the guest could not write for


def measure() -> BackupFigures:
    """Run it all; needs root or a user with libvirt."""
    with vpsd_in_a_folder() as vpsd, vpsd.running():
        server, _ = vpsd.create(vpsd.add_key())
        try:
            return _measure(vpsd, server)
        finally:
            vpsd.delete(server)


def _measure(vpsd: Vpsd, server: int) -> BackupFigures:
    address: str = until(lambda: vpsd.address(server), pause_seconds=0.05)
    until(lambda: vpsd.run_command(address, _IS_CALM) == "calm", pause_seconds=0.2)
    vpsd.run_command(address, "\n".join(_random_file(number) for number in range(FILES)) + "\nsync")
    rounds = [_round(vpsd, server, address, number) for number in range(_ROUNDS)]
    full, incremental, packed, plain = (_median(made) for made in zip(*rounds, strict=True))
    end = time.monotonic() + full.seconds
    idle = _pauses(vpsd, address, lambda: time.monotonic() > end)
    backup = vpsd.ask("POST", "/api/v1/backups/", {"server_id": server})
    busy = _pauses(vpsd, address, lambda: _is_whole(vpsd, backup))
    said_ms = vpsd.ask("GET", f"/api/v1/backups/{backup['id']}/")["paused_ms"]
    return BackupFigures(full, incremental, packed, plain, idle, busy, said_ms)


def _random_file(number: int) -> str:
    return f"head -c {FILE_MB * _MB} /dev/urandom > /root/file{number}"


def _round(vpsd: Vpsd, server: int, address: str, number: int) -> tuple[Cost, Cost, Cost, Cost]:
    """One of each, in turn; no backup is left, so that the next round begins with a full one."""
    full, whole = _back_up(vpsd, server)
    plain = _convert(vpsd, server)
    packed = _convert(vpsd, server, "-c")
    vpsd.run_command(address, f"{_random_file(number)}; sync")
    incremental, later = _back_up(vpsd, server)
    if (whole["incremental"], later["incremental"]) != (False, True):
        raise SystemExit("bench: the first backup is not a full one, or the second not an incremental one")
    if not whole["consistent"] or not later["consistent"]:
        raise SystemExit("bench: the guest's file systems were not at rest")
    for backup in (whole, later):
        vpsd.ask("DELETE", f"/api/v1/backups/{backup['id']}/")
    until(lambda: not _stored(vpsd), pause_seconds=0.1)
    return full, incremental, packed, plain


def _back_up(vpsd: Vpsd, server: int) -> tuple[Cost, Any]:
    """A backup, from POST to completed; and what the API says of it."""
    before = _stored(vpsd)
    began = time.monotonic()
    backup = vpsd.ask("POST", "/api/v1/backups/", {"server_id": server})
    until(lambda: _is_whole(vpsd, backup), pause_seconds=0.05)
    seconds = time.monotonic() - began
    until(lambda: _is_at_rest(vpsd, server), pause_seconds=0.05)  # it still lets go of the copy on the host
    return Cost(seconds, (_stored(vpsd) - before) / _MB), vpsd.ask("GET", f"/api/v1/backups/{backup['id']}/")


def _is_whole(vpsd: Vpsd, backup: Any) -> bool:
    found = vpsd.ask("GET", f"/api/v1/backups/{backup['id']}/")
    if found["status"] == "failed":
        raise SystemExit(f"bench: the backup failed: {found['error']}")
    whole: bool = found["status"] == "completed"
    return whole


def _is_at_rest(vpsd: Vpsd, server: int) -> bool:
    operations = vpsd.ask("GET", f"/api/v1/servers/{server}/operations/")["results"]
    return all(operation["finished_at"] is not None for operation in operations)


def _stored(vpsd: Vpsd) -> int:
    """Bytes on the target, besides its mark."""
    files = (path for path in (vpsd.data / "backups").rglob("*") if path.is_file() and path.name != MARK)
    return sum(path.stat().st_size for path in files)


def _convert(vpsd: Vpsd, server: int, *options: str) -> Cost:
    (disk,) = vpsd.disks(server)
    made = vpsd.folder / "converted.qcow2"
    began = time.monotonic()
    command = ["qemu-img", "convert", "-U", "-t", "writeback", "-O", "qcow2", *options, str(disk), str(made)]
    subprocess.run(command, check=True)
    seconds = time.monotonic() - began
    size_mb = _allocated_mb(made)
    made.unlink()
    return Cost(seconds, size_mb)


def _allocated_mb(path: Path) -> float:
    return path.stat().st_blocks * 512 / _MB


def _median(made: tuple[Cost, ...]) -> Cost:
    return Cost(statistics.median(one.seconds for one in made), statistics.median(one.size_mb for one in made))


def _pauses(vpsd: Vpsd, address: str, done: Callable[[], bool]) -> Pauses:
    """The longest pauses until something is done."""
    vpsd.run_command(address, _WRITER)
    longest_seconds = 0.0
    command = vpsd.ssh(address, "cat")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(b".")
        session.stdout.read(1)  # the session stands
        while not done():
            began = time.monotonic()
            session.stdin.write(b".")
            session.stdout.read(1)
            longest_seconds = max(longest_seconds, time.monotonic() - began)
            time.sleep(0.02)
        session.stdin.close()
    return Pauses(int(vpsd.run_command(address, _END_WRITER)) / 100, longest_seconds)


def main() -> None:
    """Measure and print."""
    figures = measure()
    for name in ("full", "incremental", "packed", "plain"):
        made: Cost = getattr(figures, name)
        print(f"{name:12}{made.seconds:8.2f} s{made.size_mb:8.1f} MB")
    for name in ("idle", "busy"):
        pauses: Pauses = getattr(figures, name)
        print(f"{name:12}{pauses.write_seconds:8.2f} s between writes{pauses.echo_seconds:8.2f} s for an echo")
    print(f"vpsd says   {figures.said_ms / 1000:8.2f} s")


if __name__ == "__main__":
    main()
