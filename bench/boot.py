"""From POST to a successful SSH command, against the same guest started by QEMU alone: five of each, in turn.

Also what one running vpsd weighs, and how soon it answers when it is started again.
"""

import socket
import statistics
import subprocess
import time
from pathlib import Path

import msgspec

from bench.guests import Vpsd, until, vpsd_in_a_folder
from vpsd.hypervisor.protocol import Image
from vpsd.images.seed import seed_iso
from vpsd.images.store import ImageStore

_ROUNDS = 5
_MEMORY_MB = 256  # of the Nano VPS
_DISK_GB = 2


class BootFigures(msgspec.Struct, frozen=True):
    """Seconds, and megabytes."""

    vpsd_seconds: list[float]
    direct_seconds: list[float]
    health_seconds: float
    memory_mb: float

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return statistics.median(self.vpsd_seconds) / statistics.median(self.direct_seconds)


def measure() -> BootFigures:
    """Run it all; needs root or a user with libvirt."""
    with vpsd_in_a_folder() as vpsd:
        with vpsd.running():
            key_id = vpsd.add_key()
            server, _ = vpsd.create(key_id)  # builds the image; what it costs is not a boot
            vpsd.delete(server)
            image = ImageStore(vpsd.data / "images").get("tiny")
            assert image is not None
            ours, direct = [], []
            for _ in range(_ROUNDS):
                server, seconds = vpsd.create(key_id)
                vpsd.delete(server)
                ours.append(seconds)
                direct.append(_direct(vpsd, image))
        with vpsd.running() as (pid, health_seconds):
            until(lambda: vpsd.ask("GET", "/health")["hypervisor"]["status"] == "ok", pause_seconds=0.1)
            memory_mb = _memory_mb(pid)
    return BootFigures(ours, direct, health_seconds, memory_mb)


def _direct(vpsd: Vpsd, image: Image) -> float:
    """The same guest by QEMU alone: seconds until a command ran in it."""
    address = "127.78.1.2"
    began = time.monotonic()
    disk, seed = vpsd.folder / "direct.qcow2", vpsd.folder / "direct.iso"
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(image.disk), str(disk)]
    subprocess.run([*overlay, f"{_DISK_GB}G"], check=True)
    seed.write_bytes(seed_iso(instance_id=f"direct-{began}", hostname="bench", ssh_keys=[vpsd.public_key]))
    accelerator = ["-machine", "q35,accel=tcg", "-cpu", "max,la57=off"]
    process = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", *accelerator),
            *("-m", str(_MEMORY_MB), "-smp", "1", "-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", image.cmdline, "-serial", "null", "-device", "virtio-serial-pci"),
            *("-drive", f"if=none,id=d0,format=qcow2,discard=unmap,file={disk}", "-device", "virtio-blk-pci,drive=d0"),
            *("-drive", f"if=none,id=d1,format=raw,readonly=on,file={seed}", "-device", "virtio-blk-pci,drive=d1"),
            *("-netdev", f"user,id=n0,hostfwd=tcp:{address}:22-:22"),
            *("-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-balloon-pci"),
            *("-object", "rng-random,id=r0,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r0"),
        ]
    )
    try:
        until(lambda: _banner(address), pause_seconds=0.1)
        vpsd.run_command(address)
        return time.monotonic() - began
    finally:
        process.kill()
        process.wait()


def _banner(address: str) -> bool:
    with socket.create_connection((address, 22), 0.3) as connection:
        connection.settimeout(0.3)
        return connection.recv(64).startswith(b"SSH-")


def _memory_mb(pid: int) -> float:
    """Memory that is the process's own share of what is resident (PSS)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) / 1024
