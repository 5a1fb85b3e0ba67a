"""What is sent to libvirt, as text."""

from xml.etree.ElementTree import Element, fromstring

import msgspec

from vpsd.hypervisor.libvirt.domain_xml import Files, build, read_network
from vpsd.hypervisor.protocol import Forward, GuestSpec

SPEC = GuestSpec(
    name="vpsd-0a1b2c3d-7",
    disk="vpsd-0a1b2c3d-7",
    uuid="5f0c2f0e-7a57-4a0c-9f0c-6a1b6d2e9f11",
    vcpus=2,
    memory_mb=4096,
    base="tiny-d86f05eb2112",
    direct_kernel=True,
    cmdline="console=ttyS0 quiet",
    mac="52:54:00:12:34:56",
    address="127.10.0.5",
    forwards=(Forward(22, 22), Forward(8080, 80)),
)
FILES = Files(disk="/pool/a.qcow2", seed="/pool/a-seed.iso", kernel="/pool/k", initrd="/pool/i")

EXPECTED = """<domain xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0" xmlns:vpsd="urn:vpsd:guest" type="qemu">
  <name>vpsd-0a1b2c3d-7</name>
  <uuid>5f0c2f0e-7a57-4a0c-9f0c-6a1b6d2e9f11</uuid>
  <memory unit="MiB">4096</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch="x86_64" machine="q35">hvm</type>
    <kernel>/pool/k</kernel>
    <initrd>/pool/i</initrd>
    <cmdline>console=ttyS0 quiet</cmdline>
  </os>
  <features>
    <acpi />
    <apic />
  </features>
  <cpu mode="maximum">
    <feature policy="disable" name="la57" />
  </cpu>
  <clock offset="utc" />
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <pm>
    <suspend-to-mem enabled="no" />
    <suspend-to-disk enabled="no" />
  </pm>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="qcow2" discard="unmap" error_policy="stop" rerror_policy="report" />
      <source file="/pool/a.qcow2" />
      <target dev="vda" bus="virtio" />
      <address type="pci" bus="0x00" slot="0x03" />
    </disk>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" />
      <source file="/pool/a-seed.iso" />
      <target dev="vdb" bus="virtio" />
      <address type="pci" bus="0x00" slot="0x04" />
      <readonly />
    </disk>
    <controller type="usb" model="none" />
    <controller type="virtio-serial" index="0">
      <address type="pci" bus="0x00" slot="0x02" />
    </controller>
    <serial type="pty">
      <target type="isa-serial" port="0" />
    </serial>
    <console type="pty">
      <target type="serial" port="0" />
    </console>
    <channel type="unix">
      <target type="virtio" name="org.qemu.guest_agent.0" />
    </channel>
    <memballoon model="virtio">
      <stats period="10" />
      <address type="pci" bus="0x00" slot="0x05" />
    </memballoon>
    <rng model="virtio">
      <backend model="random">/dev/urandom</backend>
      <address type="pci" bus="0x00" slot="0x06" />
    </rng>
  </devices>
  <qemu:commandline>
    <qemu:arg value="-netdev" />
    <qemu:arg value="user,id=vpsd0,hostfwd=tcp:127.10.0.5:22-:22,hostfwd=tcp:127.10.0.5:8080-:80" />
    <qemu:arg value="-device" />
    <qemu:arg value="virtio-net-pci,netdev=vpsd0,id=vpsdnic0,mac=52:54:00:12:34:56,addr=0x10,romfile=" />
  </qemu:commandline>
  <metadata>
    <vpsd:guest digest="DIGEST" />
  </metadata>
</domain>"""


def parse(xml: str) -> Element:
    return fromstring(xml)  # noqa: S314  it is our own


def test_a_guest_with_a_kernel_under_emulation() -> None:
    xml = build(SPEC, FILES, "qemu")
    assert xml == EXPECTED.replace("DIGEST", read_network(xml).digest)


def test_a_disk_that_boots_by_itself_has_no_kernel() -> None:
    spec = msgspec.structs.replace(SPEC, direct_kernel=False)
    domain = parse(build(spec, Files("/d", "/s"), "qemu"))
    assert domain.find("os/kernel") is None
    assert domain.find("os/boot[@dev='hd']") is not None


def test_what_the_guest_writes_to_its_serial_console_is_recorded_anew_at_each_power_on() -> None:
    domain = parse(build(SPEC, msgspec.structs.replace(FILES, serial_log="/pool/serial/a.log"), "qemu"))
    log = domain.find("devices/serial[@type='pty']/log")
    assert log is not None
    assert log.attrib == {"file": "/pool/serial/a.log", "append": "off"}


def test_a_disk_that_does_not_boot_says_so_on_the_serial_console() -> None:
    spec = msgspec.structs.replace(SPEC, direct_kernel=False)
    assert parse(build(spec, FILES, "qemu")).find("os/bios[@useserial='yes']") is not None
    assert parse(build(SPEC, FILES, "qemu")).find("os/bios") is None


def test_kvm_gives_the_hosts_own_cpu() -> None:
    domain = parse(build(SPEC, FILES, "kvm"))
    assert domain.get("type") == "kvm"
    assert domain.find("cpu[@mode='host-passthrough']") is not None


def test_values_cannot_leave_their_place() -> None:
    spec = msgspec.structs.replace(SPEC, cmdline="a=<b> & 'c' \"d\"</cmdline>")
    domain = parse(build(spec, FILES, "qemu"))
    assert domain.findtext("os/cmdline") == "a=<b> & 'c' \"d\"</cmdline>"


def test_the_network_can_be_read_back() -> None:
    network = read_network(build(SPEC, FILES, "qemu"))
    assert (network.address, network.forwards, network.mac) == (SPEC.address, SPEC.forwards, SPEC.mac)


def test_a_domain_that_is_not_ours_reads_as_nothing() -> None:
    network = read_network("<domain><name>other</name></domain>")
    assert (network.address, network.forwards, network.mac, network.digest) == ("", (), "", "")


def test_the_digest_tells_two_guests_apart_and_one_from_itself_not() -> None:
    other = msgspec.structs.replace(SPEC, memory_mb=8192)
    digests = [read_network(build(spec, FILES, "qemu")).digest for spec in (SPEC, SPEC, other)]
    assert digests[0] == digests[1] != digests[2]


def test_a_disk_that_needs_uefi_gets_the_hosts_firmware_without_secure_boot_and_a_place_for_its_variables() -> None:
    spec = msgspec.structs.replace(SPEC, direct_kernel=False, cmdline="", firmware="uefi")
    files = Files(disk="/pool/a.qcow2", seed="/pool/a-seed.iso", nvram="/pool/a-nvram.fd")
    boot = parse(build(spec, files, "qemu")).find("os")
    assert boot is not None
    assert boot.get("firmware") == "efi"
    assert {one.get("name"): one.get("enabled") for one in boot.iterfind("firmware/feature")} == {
        "enrolled-keys": "no",
        "secure-boot": "no",
    }
    assert boot.findtext("nvram") == "/pool/a-nvram.fd"
    assert [device.get("dev") for device in boot.iterfind("boot")] == ["hd"]
    assert boot.find("bios") is None
