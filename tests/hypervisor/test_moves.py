"""A pool that was moved is found where it is by now, with what depends on its paths; and no pool is guessed at."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as Xml

import libvirt
import pytest

from vpsd.errors import Misconfigured, Unusable
from vpsd.hypervisor.libvirt import daemon, qcow2
from vpsd.hypervisor.libvirt.storage import Pool
from vpsd.hypervisor.owner import ANYBODY, Owner, TakenOver
from vpsd.hypervisor.protocol import guest_name

pytestmark = pytest.mark.guest

INSTANCE = "c0ffee99"
NAME = guest_name(INSTANCE, 1)
BASE = "base-tiny-1"
DISK_BYTES = 1 << 20


@pytest.fixture
def host(own_data: Path) -> Iterator[libvirt.virConnect]:
    """The libvirtd of the tests; nothing of this room's is left in it."""
    daemon.ensure_running(own_data)
    opened = libvirt.open(daemon.uri(own_data))
    yield opened
    for domain in opened.listAllDomains(0):
        if domain.name() == NAME:
            domain.undefine()
    for pool in opened.listAllStoragePools(0):
        if INSTANCE in pool.name():
            if pool.isActive():
                pool.destroy()
            pool.undefine()
    opened.close()


def _pool(path: Path) -> Pool:
    return Pool(INSTANCE, path, path_is_explicit=True)


def _make_disk(host: libvirt.virConnect, path: Path) -> Path:
    """A base and a disk on top of it, as vpsd makes them, and a guest that has it; the disk."""
    path.mkdir()
    plan = qcow2.plan_file(DISK_BYTES, 1 << 20, [])
    (path / f"{BASE}.qcow2").write_bytes((plan.header + plan.tables).ljust(plan.file_bytes, b"\0"))
    (path / f"{BASE}.whole").touch()
    _pool(path).make_disk(host, NAME, BASE.removeprefix("base-"), 2 * DISK_BYTES, ANYBODY)
    disk = path / f"{NAME}.qcow2"
    domain = Xml.Element("domain", type="qemu")
    for tag, text in (("name", NAME), ("memory", "65536")):
        Xml.SubElement(domain, tag).text = text
    Xml.SubElement(Xml.SubElement(domain, "os"), "type").text = "hvm"
    Xml.SubElement(domain.find("os") or domain, "kernel").text = f"{path}/{BASE}.kernel"
    device = Xml.SubElement(Xml.SubElement(domain, "devices"), "disk", type="file", device="disk")
    Xml.SubElement(device, "source", file=str(disk))
    Xml.SubElement(device, "target", dev="vda", bus="virtio")
    host.defineXML(Xml.tostring(domain, encoding="unicode"))
    return disk


def _backing(disk: Path) -> bytes:
    head = disk.read_bytes()
    at, length = int.from_bytes(head[8:16]), int.from_bytes(head[16:20])
    return head[at : at + length]


def _as_an_earlier_vpsd(disk: Path) -> None:
    base = ["-b", str(disk.with_name(f"{BASE}.qcow2")), "-F", "qcow2"]
    subprocess.run(["qemu-img", "rebase", "-u", *base, str(disk)], check=True)
    assert b"/" in _backing(disk)


def test_definitions_and_disks_follow_a_pool_that_was_moved(host: libvirt.virConnect, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "a & b" / "after"
    disk = _make_disk(host, before)
    assert _backing(disk) == f"{BASE}.qcow2".encode()
    _as_an_earlier_vpsd(disk)
    after.parent.mkdir()
    before.rename(after)
    pool = _pool(after)
    assert pool.path(host) == after
    assert pool.list(host).disks == {NAME}
    assert not before.exists()
    assert _backing(after / disk.name) == f"{BASE}.qcow2".encode()
    subprocess.run(["qemu-img", "check", "-q", str(after / disk.name)], check=True)
    definition = Xml.fromstring(host.lookupByName(NAME).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))  # noqa: S314
    assert definition.findtext("os/kernel") == f"{after}/{BASE}.kernel"
    source = definition.find("devices/disk/source")
    assert source is not None
    assert source.get("file") == f"{after}/{disk.name}"
    with pytest.raises(Unusable, match="is in use"):
        pool.delete_base(host, BASE.removeprefix("base-"))
    assert pool.max_export_bytes(host, NAME) > 0


def test_a_disk_of_an_earlier_vpsd_is_mended_where_it_is(host: libvirt.virConnect, tmp_path: Path) -> None:
    disk = _make_disk(host, tmp_path / "pool")
    _as_an_earlier_vpsd(disk)
    size = disk.stat().st_size
    for _ in range(2):
        _pool(disk.parent).make_portable(host, NAME, NAME, ANYBODY)
        assert _backing(disk) == f"{BASE}.qcow2".encode()
    assert disk.stat().st_size == size
    subprocess.run(["qemu-img", "check", "-q", str(disk)], check=True)


def test_a_link_that_was_left_at_the_old_place_is_no_second_pool(host: libvirt.virConnect, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    _make_disk(host, before)
    before.rename(after)
    before.symlink_to(after)
    assert _pool(after).path(host).samefile(after)
    before.unlink()
    assert _pool(after).path(host) == after
    assert _pool(after).list(host).disks == {NAME}


def test_who_comes_too_late_neither_mends_nor_grows_a_disk(host: libvirt.virConnect, tmp_path: Path) -> None:
    disk = _make_disk(host, tmp_path / "pool")
    _as_an_earlier_vpsd(disk)
    before, pool, checks = disk.read_bytes(), _pool(disk.parent), iter(range(9))

    def is_over(since: int) -> None:
        if next(checks) >= since:
            raise TakenOver

    for since in range(2):  # before it is read, and before it is written
        checks = iter(range(9))
        with pytest.raises(TakenOver):
            pool.make_portable(host, NAME, NAME, Owner(check=partial(is_over, since)))
    pool.make_portable(host, NAME, NAME, Owner("11111111-7a57-4a0c-9f0c-6a1b6d2e9f11"))
    with pytest.raises(TakenOver):
        pool.grow_disk(host, NAME, 4 * DISK_BYTES, Owner(check=partial(is_over, 0)))
    assert disk.read_bytes() == before


def test_a_pool_that_is_still_there_or_nowhere_is_not_taken_for_one_that_moved(
    host: libvirt.virConnect, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    _make_disk(host, before)
    with pytest.raises(Misconfigured, match=f"The disks of this vpsd are in {before} on the host, but"):
        _pool(after).path(host)
    shutil.copytree(before, after)
    with pytest.raises(Misconfigured, match=f"in {before}, where they were, and in {after}. Move away"):
        _pool(after).path(host)
    for folder in (before, after):
        shutil.rmtree(folder)
    with pytest.raises(Misconfigured, match=f"were in {before} on the host, and are neither there nor in {after}"):
        _pool(after).path(host)
    host.lookupByName(NAME).undefine()
    assert _pool(after).path(host) == after  # without guests there is nothing to be lost
