"""A Debian whose file systems cannot all be frozen at once: it is backed up, and it goes on writing."""

import time
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tests.debian.test_backups import DEBIAN, STARTER
from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest

_IMAGE_AND_BOOT_SECONDS = 1200
_GUARD_SECONDS = 20
# A file system in a file of another one, and one that is mounted twice, under a program that writes to all of them.
_PREPARE = """
truncate -s 50M /root/f && mkfs.ext4 -q /root/f && mount -o loop /root/f /mnt && mkdir -p /srv/b
mount --bind /var /srv/b
cat > /root/writer <<'END'
while :; do
  read -r up rest < /proc/uptime
  for file in /var/beat /mnt/beat; do echo "$up" > $file; sync $file; done
  echo "$up" >> /run/beats
  sleep 0.2
done
END
setsid sh /root/writer < /dev/null > /dev/null 2>&1 &
"""
# A signal for the agent while it freezes: what it has begun with the kernel ends before the signal reaches it.
_INTERFERE = """
cat > /run/interfere <<'END'
echo $$ > /run/interfering
until [ -e /run/qga.state.isfrozen ]; do sleep 0.02; done
kill -%s $(pidof qemu-ga)
read -r up rest < /proc/uptime
echo "$up" > /run/interfered
END
setsid sh /run/interfere < /dev/null > /dev/null 2>&1 &
"""


class Busy(msgspec.Struct, frozen=True):
    """A Debian that writes without a pause."""

    server_id: int
    login: Login

    def interfere(self, signal: str) -> None:
        """Have the agent get a signal when it freezes next."""
        self.login.run(f"rm -f /run/interfered; {_INTERFERE % signal}")

    def longest_pause(self, limit_seconds: float) -> float:
        """It writes again within that time: the longest time between two writes since this was last asked, in s."""
        now = float(self.login.run("cut -d' ' -f1 /proc/uptime"))
        until(lambda: float(self.login.run("tail -n 1 /run/beats")) > now, "the guest to write", limit_seconds)
        beats = [float(line) for line in self.login.run("cat /run/beats; : > /run/beats").splitlines()]
        return max(later - earlier for earlier, later in pairwise(beats))


@pytest.fixture(scope="module")
def busy(vpsd: Vpsd, host: Host) -> Busy:
    """Made in minutes, by its first test."""
    made = vpsd.create("busy", plan_id=STARTER, os_id=DEBIAN)
    detail = vpsd.until_status(made["id"], "active", _IMAGE_AND_BOOT_SECONDS)
    login = Login(detail["ssh"], password=made["password"])
    assert login.run("cloud-init status --wait").endswith("status: done")
    host.until_agent(made["id"])
    login.run(_PREPARE)
    return Busy(made["id"], login)


def _back_up(vpsd: Vpsd, busy: Busy) -> Any:
    began = time.monotonic()
    backup = vpsd.until_copied(vpsd.post("backups/", {"server_id": busy.server_id}))
    print(f"{time.monotonic() - began:.1f} s:", {name: backup[name] for name in ("consistent", "paused_ms")})
    print(backup["consistency_detail"])
    return backup


def test_a_file_system_in_a_file_of_a_frozen_one_does_not_hold_the_agent_up(vpsd: Vpsd, busy: Busy) -> None:
    for _ in range(2):
        backup = _back_up(vpsd, busy)
        assert backup["consistent"]
        assert backup["paused_ms"] < 10_000
        assert ": /." in backup["consistency_detail"]
        assert "/mnt (loop0 is no disk of the server)" in backup["consistency_detail"]
        assert busy.longest_pause(10) < 10


def test_a_server_is_backed_up_without_freezing_where_its_owner_says_so(vpsd: Vpsd, busy: Busy) -> None:
    vpsd.ask("PATCH", f"servers/{busy.server_id}/", {"freeze_for_backups": False})
    busy.interfere("STOP")
    backup = _back_up(vpsd, busy)
    assert (backup["consistent"], backup["paused_ms"]) == (False, 0)
    assert "freeze_for_backups" in backup["consistency_detail"]
    busy.login.run("kill $(cat /run/interfering); ! [ -e /run/interfered ]")
    vpsd.ask("PATCH", f"servers/{busy.server_id}/", {"freeze_for_backups": True})


@pytest.mark.parametrize("signal", ["KILL", "STOP"])
def test_an_agent_that_dies_or_stops_while_all_is_frozen_leaves_a_server_that_writes(
    vpsd: Vpsd, busy: Busy, signal: str
) -> None:
    busy.interfere(signal)
    _back_up(vpsd, busy)
    print("longest pause:", pause := busy.longest_pause(2 * _GUARD_SECONDS))
    assert pause < 2 * _GUARD_SECONDS
    assert busy.login.run("cat /run/interfered")
    marked = f"SELECT status_detail FROM servers WHERE id = {busy.server_id} AND unthawed_backup_id IS NOT NULL"
    until(lambda: not vpsd.rows(marked), "the server to be seen to write")
    assert _back_up(vpsd, busy)["consistent"]
    assert vpsd.run_json("check") == []
