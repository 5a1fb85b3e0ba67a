"""What a guest is, as libvirt's domain XML: a pure function there, and a reader of what the host says back.

Network: a user-mode NIC whose forwarded ports stand in QEMU's own command line. So they hold for whoever starts the
guest (vpsd, virsh, a reboot of the guest), need no privilege on the host's bridges, and a port that cannot be opened
fails the start instead of going unnoticed.
"""

import hashlib
import re
from collections.abc import Sequence
from xml.etree import ElementTree as Xml

import msgspec

from vpsd.hypervisor.protocol import Forward, GuestSpec

SSH_PORT = 22
AGENT_CHANNEL = "org.qemu.guest_agent.0"

_VPSD = "urn:vpsd:guest"
_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_BALLOON_STATS_SECONDS = 10
_MACHINE = "q35"  # boots a kernel faster than pc under emulation

# All devices sit on the root bus itself: no bridges for firmware and kernel to walk. libvirt does not know of the NIC:
# its slot is far above those that libvirt gives.
DISK = "vda"
_SLOTS = {"agent": "0x02", "vda": "0x03", "vdb": "0x04", "balloon": "0x05", "rng": "0x06", "nic": "0x10"}
_FORWARD = re.compile(r"hostfwd=tcp:([^:]+):(\d+)-:(\d+)")
_MAC = re.compile(r"mac=([0-9a-fA-F:]{17})")

Xml.register_namespace("qemu", _QEMU)
Xml.register_namespace("vpsd", _VPSD)


class Files(msgspec.Struct, frozen=True):
    """Where the host keeps what the guest is made of."""

    disk: str
    seed: str
    kernel: str | None = None
    initrd: str | None = None


class Wiring(msgspec.Struct, frozen=True):
    """What the driver must know of a guest that is defined."""

    address: str
    forwards: tuple[Forward, ...]
    mac: str
    digest: str  # of the XML that vpsd gave

    def host_port(self, guest_port: int) -> int | None:
        """The port of the address that leads to that port of the guest."""
        return next((one.host_port for one in self.forwards if one.guest_port == guest_port), None)


def build(spec: GuestSpec, files: Files, virt_type: str) -> str:
    """The domain XML of a guest; the same arguments give the same text."""
    domain = Xml.Element("domain", type=virt_type)
    _text(domain, "name", spec.name)
    _text(domain, "uuid", spec.uuid)
    _text(domain, "memory", str(spec.memory_mb), unit="MiB")
    _text(domain, "vcpu", str(spec.vcpus))
    _add_boot(domain, spec, files)
    features = Xml.SubElement(domain, "features")
    Xml.SubElement(features, "acpi")
    Xml.SubElement(features, "apic")
    _add_cpu(domain, virt_type)
    _add_rules(domain)
    _add_devices(domain, files)
    _add_network(domain, spec)
    digest = hashlib.sha256(Xml.tostring(domain)).hexdigest()[:16]
    metadata = Xml.SubElement(domain, "metadata")
    Xml.SubElement(metadata, f"{{{_VPSD}}}guest", digest=digest)
    Xml.indent(domain)
    return Xml.tostring(domain, encoding="unicode")


def read_wiring(xml: str) -> Wiring:
    """What the XML of a guest says of its network, be it vpsd's own or the one libvirt gives back."""
    domain = Xml.fromstring(xml)  # noqa: S314  what the host's libvirt says is trusted
    line = " ".join(arg.get("value", "") for arg in domain.iter(f"{{{_QEMU}}}arg"))
    forwards = _FORWARD.findall(line)
    mark = domain.find(f"metadata/{{{_VPSD}}}guest")
    mac = _MAC.search(line)
    return Wiring(
        address=forwards[0][0] if forwards else "",
        forwards=tuple(Forward(int(host), int(guest)) for _, host, guest in forwards),
        mac=mac.group(1).lower() if mac else "",
        digest="" if mark is None else mark.get("digest", ""),
    )


def _text(parent: Xml.Element, tag: str, text: str, **attributes: str) -> Xml.Element:
    element = Xml.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_boot(domain: Xml.Element, spec: GuestSpec, files: Files) -> None:
    boot = Xml.SubElement(domain, "os")
    _text(boot, "type", "hvm", arch="x86_64", machine=_MACHINE)
    if not spec.direct_kernel or files.kernel is None:
        Xml.SubElement(boot, "boot", dev="hd")
        return
    _text(boot, "kernel", files.kernel)
    if files.initrd:
        _text(boot, "initrd", files.initrd)
    if spec.cmdline:
        _text(boot, "cmdline", spec.cmdline)


def _add_cpu(domain: Xml.Element, virt_type: str) -> None:
    if virt_type == "kvm":
        Xml.SubElement(domain, "cpu", mode="host-passthrough", check="none")
        return
    cpu = Xml.SubElement(domain, "cpu", mode="maximum")
    Xml.SubElement(cpu, "feature", policy="disable", name="la57")  # a fifth level of page tables makes emulation slower


def _add_rules(domain: Xml.Element) -> None:
    Xml.SubElement(domain, "clock", offset="utc")
    _text(domain, "on_poweroff", "destroy")
    _text(domain, "on_reboot", "restart")
    _text(domain, "on_crash", "destroy")
    pm = Xml.SubElement(domain, "pm")
    Xml.SubElement(pm, "suspend-to-mem", enabled="no")
    Xml.SubElement(pm, "suspend-to-disk", enabled="no")


def _add_devices(domain: Xml.Element, files: Files) -> None:
    devices = Xml.SubElement(domain, "devices")
    _add_disk(devices, files.disk, DISK, format="qcow2", discard="unmap")
    seed = _add_disk(devices, files.seed, "vdb", format="raw")
    Xml.SubElement(seed, "readonly")
    Xml.SubElement(devices, "controller", type="usb", model="none")
    _place(Xml.SubElement(devices, "controller", type="virtio-serial", index="0"), "agent")
    serial = Xml.SubElement(devices, "serial", type="pty")
    Xml.SubElement(serial, "target", type="isa-serial", port="0")
    console = Xml.SubElement(devices, "console", type="pty")
    Xml.SubElement(console, "target", type="serial", port="0")
    channel = Xml.SubElement(devices, "channel", type="unix")
    Xml.SubElement(channel, "target", type="virtio", name=AGENT_CHANNEL)
    balloon = Xml.SubElement(devices, "memballoon", model="virtio")
    Xml.SubElement(balloon, "stats", period=str(_BALLOON_STATS_SECONDS))
    _place(balloon, "balloon")
    rng = Xml.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    _place(rng, "rng")


def _add_disk(devices: Xml.Element, path: str, device: str, format: str, **driver: str) -> Xml.Element:  # noqa: A002
    disk = Xml.SubElement(devices, "disk", type="file", device="disk")
    Xml.SubElement(disk, "driver", {"name": "qemu", "type": format, **driver})
    Xml.SubElement(disk, "source", file=path)
    Xml.SubElement(disk, "target", dev=device, bus="virtio")
    _place(disk, device)
    return disk


def _place(device: Xml.Element, place: str) -> None:
    Xml.SubElement(device, "address", type="pci", bus="0x00", slot=_SLOTS[place])


def _add_network(domain: Xml.Element, spec: GuestSpec) -> None:
    line = Xml.SubElement(domain, f"{{{_QEMU}}}commandline")
    for value in _network_arguments(spec):
        Xml.SubElement(line, f"{{{_QEMU}}}arg", value=value)


def _network_arguments(spec: GuestSpec) -> Sequence[str]:
    rules = "".join(f",hostfwd=tcp:{spec.address}:{one.host_port}-:{one.guest_port}" for one in spec.forwards)
    return (
        "-netdev",
        f"user,id=vpsd0{rules}",
        "-device",
        f"virtio-net-pci,netdev=vpsd0,id=vpsdnic0,mac={spec.mac},addr={_SLOTS['nic']},romfile=",
    )
