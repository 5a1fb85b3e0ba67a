"""What decision 29 says that libvirt would be given for a Ceph is what its schemas take."""

import re
from pathlib import Path

import libvirt
import pytest

PAPER = Path(__file__).parent.parent.parent / "docs/decisions/0029-engines-and-shared-pools.md"
GUEST = (
    "<domain type='test'><name>x</name><memory>65536</memory><os><type>hvm</type></os><devices>{}</devices></domain>"
)


def test_the_xml_of_a_pool_and_a_disk_in_rbd_is_valid() -> None:
    pool, disk = re.findall(r"^```xml\n(.*?)^```", PAPER.read_text(), re.MULTILINE | re.DOTALL)
    host = libvirt.open("test:///default")
    assert host.storagePoolDefineXML(pool, libvirt.VIR_STORAGE_POOL_DEFINE_VALIDATE).name() == "vpsd"
    assert host.defineXMLFlags(GUEST.format(disk), libvirt.VIR_DOMAIN_DEFINE_VALIDATE).name() == "x"
    for wrong in (pool.replace("<source>", "<source><monitor/>"), pool.replace("<auth ", "<auth ceph='1' ")):
        with pytest.raises(libvirt.libvirtError, match="failed to validate"):
            host.storagePoolDefineXML(wrong, libvirt.VIR_STORAGE_POOL_DEFINE_VALIDATE)
    with pytest.raises(libvirt.libvirtError, match="failed to validate"):
        host.defineXMLFlags(GUEST.format(disk.replace("secret type", "key type")), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    host.close()
