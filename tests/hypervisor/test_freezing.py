"""Which file systems of a guest are frozen, and what becomes of guests whose agent stays away while they are."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tests.hypervisor.rigs import NAME, RealRig, boot, copy, prepare, until
from vpsd.hypervisor.libvirt.freezing import choose_mounts

_PCI = {"pci-controller": {"domain": 0, "bus": 0, "slot": 3, "function": 0}, "bus-type": "virtio", "bus": 0}
_NO_PCI = {**_PCI, "pci-controller": {"domain": -1, "bus": -1, "slot": -1, "function": -1}, "bus-type": "ide"}


def _mount(name: str, path: str, kind: str = "ext4", *disks: Any) -> dict[str, Any]:
    return {"name": name, "mountpoint": path, "type": kind, "disk": list(disks)}


ROOT = _mount("vda1", "/", "ext4", _PCI)
LOOP = _mount("loop0", "/mnt")


@pytest.mark.parametrize(
    ("fsinfo", "freeze", "left_out"),
    [
        ([ROOT], ["/"], []),
        ([_mount("vda1", "/srv/b", "ext4", _PCI), LOOP, ROOT], ["/"], ["/mnt (loop0 is no disk of the server)"]),
        ([ROOT, _mount("dm-0", "/data", "xfs", _PCI, _PCI)], ["/", "/data"], []),
        ([ROOT, _mount("dm-1", "/secret")], ["/"], ["/secret (dm-1 is no disk of the server)"]),
        ([ROOT, _mount("sdb", "/far", "ext4", _NO_PCI)], ["/"], ["/far (sdb is no disk of the server)"]),
        ([ROOT, _mount("vdb", "/mnt", "ext4", _PCI), LOOP], ["/"], ["below", "loop0"]),  # which is on top?
        ([ROOT, LOOP, _mount("vdb", "/mnt/in", "ext4", _PCI)], ["/"], ["loop0", "/mnt/in (it is below"]),
        ([ROOT, LOOP, _mount("vdb", "/mnt2", "ext4", _PCI)], ["/", "/mnt2"], ["loop0"]),
        (
            [ROOT, LOOP, *(_mount("vdb", path, "ext4", _PCI) for path in ("/mnt/in", "/data/in"))],
            ["/", "/data/in"],
            ["l"],
        ),
        ([ROOT, _mount("vda15", "/boot/efi", "vfat", _PCI)], ["/"], ["/boot/efi (vfat cannot be frozen)"]),
        ([ROOT, _mount("loop3", "/snap/core/1", "squashfs"), _mount("sr0", "/media", "iso9660", _PCI)], ["/"], []),
        ([_mount("loop0", "/")], [], ["loop0"]),
        ([_mount("vda1", "relative", "ext4", _PCI), "nonsense", {}, {"mountpoint": 3}], [], []),
        (None, [], []),
        ({"error": 1}, [], []),
    ],
)
def test_what_is_on_a_disk_is_frozen_once_and_what_lies_on_something_frozen_is_not(
    fsinfo: Any, freeze: list[str], left_out: list[str]
) -> None:
    mounts = choose_mounts(fsinfo)
    assert sorted(mounts.freeze) == sorted(freeze)
    assert len(mounts.left_out) == len(left_out)
    for said, words in zip(sorted(mounts.left_out), sorted(left_out), strict=True):
        assert words in said or any(words in other for other in mounts.left_out)


# A file system in a file of another one, one that is mounted twice, and a program that writes to both.
_PREPARE = """
insmod /lib/modules/loop.ko; dd if=/dev/zero of=/root/f bs=1M count=4 2>/dev/null; mke2fs -F /root/f > /dev/null
mkdir -p /srv/b; mount -t ext4 -o loop /root/f /mnt && mount --bind /var /srv/b || exit 1
cat > /run/writer <<'END'
while :; do
  touch -m -r / /; touch -m -r /mnt /mnt
  cut -d' ' -f1 /proc/uptime >> /run/beats
  usleep 100000
done
END
cat > /run/stopper <<'END'
until [ -e /run/qga.state.isfrozen ]; do usleep 10000; done
kill -SIGNAL $(pidof qemu-ga)
END
setsid sh /run/writer < /dev/null > /dev/null 2>&1 &
"""
_START_STOPPER = "sed -i s/SIGNAL/%s/ /run/stopper; setsid sh /run/stopper < /dev/null > /dev/null 2>&1 &"


async def _have_writer(rig: RealRig) -> None:
    await prepare(rig)
    await boot(rig)
    await rig.until_agent()
    rig.ssh(_PREPARE).check_returncode()


async def _longest_pause(rig: RealRig) -> float:
    """The guest goes on writing: the longest time that it did not so far, in seconds."""
    before = len(rig.ssh("cat /run/beats").stdout.split())

    async def writes() -> bool:
        return len(rig.ssh("cat /run/beats").stdout.split()) > before

    await until(writes)
    beats = [float(beat) for beat in rig.ssh("cat /run/beats").stdout.split()]
    return max(later - earlier for earlier, later in pairwise(beats))


async def _is_thawed(rig: RealRig) -> bool:
    return await rig.hypervisor.ensure_thawed(NAME) is True


@pytest.mark.guest
async def test_a_file_system_in_a_file_of_a_frozen_one_does_not_hold_the_agent_up(real: RealRig) -> None:
    await _have_writer(real)
    copied = await copy(real, "m-1", None)
    assert (copied.frozen, copied.freeze_asked) == (True, True)
    assert "/mnt (loop0 is no disk of the server)" in copied.detail
    assert await real.hypervisor.ensure_thawed(NAME) is True
    assert await _longest_pause(real) < 15


@pytest.mark.guest
@pytest.mark.parametrize("has_guard", [True, False])
async def test_a_guest_whose_agent_stops_while_it_is_frozen_thaws_by_itself(real: RealRig, has_guard: bool) -> None:
    await _have_writer(real)
    if not has_guard:  # as in an image that vpsd has not built
        real.ssh("printf '#!/bin/sh\\n' > /sbin/freeze-guard; cat /sbin/freeze-guard").check_returncode()
    real.ssh(_START_STOPPER % "STOP").check_returncode()
    copied = await copy(real, "m-1", None)
    assert (copied.frozen, copied.freeze_asked) == (False, True)
    assert 10 < await _longest_pause(real) < 60
    if not has_guard:
        assert await real.hypervisor.ensure_thawed(NAME) is None
        real.ssh("kill -CONT $(pidof qemu-ga)").check_returncode()
    await until(partial(_is_thawed, real))
    assert (await copy(real, "m-2", "m-1")).frozen


@pytest.mark.guest
async def test_a_guest_whose_agent_is_killed_while_it_is_frozen_writes_again(real: RealRig) -> None:
    await _have_writer(real)
    real.ssh(_START_STOPPER % "KILL").check_returncode()
    await copy(real, "m-1", None)

    await until(partial(_is_thawed, real))
    assert await _longest_pause(real) < 60
    assert (await copy(real, "m-2", "m-1")).frozen
