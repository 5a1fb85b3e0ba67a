"""Debian 12 from packages: systemd, cloud-init and OpenSSH on a BIOS-bootable disk; no root, no loop device."""

import os
import tempfile
from importlib.resources import files
from pathlib import Path

from vpsd.core.units import MIB
from vpsd.hypervisor.freeze_guard import FREEZE_GUARD
from vpsd.hypervisor.protocol import Progress
from vpsd.images import debs
from vpsd.images.disks import to_qcow2
from vpsd.images.mbr import write_mbr
from vpsd.images.programs import require, run
from vpsd.images.recipes import Parts

_CODENAME = "bookworm"
_PACKAGES = (
    *("systemd-sysv", "libpam-systemd", "dbus", "udev", "systemd-timesyncd", "cloud-init", "cloud-guest-utils"),
    *("gpg", "locales", "tzdata"),  # with which cloud-init's modules work
    *("openssh-server", "qemu-guest-agent", "linux-image-cloud-amd64", "initramfs-tools", "zstd", "e2fsprogs", "fdisk"),
    *("sudo", "iproute2", "iputils-ping", "netbase", "ca-certificates", "curl", "less", "nano", "bash-completion"),
)
_SCHEMA = "usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_ROOT_BYTES = 1536 * MIB
_ROOT_START_BYTES = MIB
_LATEST_GRUB_KNOWS = "^metadata_csum_seed,^orphan_file"
_GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "normal", "configfile", "test", "echo", "ls", "serial")
_STEPS = {  # mmdebstrap's output: progress
    "downloading packages with apt": (0.1, "downloading packages"),
    "extracting archives": (0.2, "unpacking packages"),
    "installing remaining packages": (0.3, "installing packages"),
    "running --customize-hook": (0.6, "setting up the system"),
    "creating tarball": (0.65, "packing the system"),
}


async def build(work: Path, log: Path, progress: Progress) -> Parts:
    """Build the image in the folder `work`, which takes minutes.

    Raises `Unavailable` when the packages cannot be downloaded, `Misconfigured` when the host lacks a program or its
    apt has no Debian 12 source.
    """
    mapped = () if os.geteuid() == 0 else ("unshare", "--map-root-user", "--map-auto")
    require("mmdebstrap", "mke2fs", "tar", "qemu-img", "unshare", *(("newuidmap",) if mapped else ()))
    parts = Parts(schema="cloud-config-schema.json")
    assert parts.schema is not None
    with tempfile.TemporaryDirectory(dir=work) as name:
        scratch = Path(name)
        progress(0.02, "finding Debian's mirrors")
        sources = await debs.sources(log, _CODENAME)
        core, boot = await _make_grub(scratch, log)
        tar = scratch / "root.tar"
        await _bootstrap(tar, sources, scratch, log, progress)
        await run("tar", "-xOf", tar, f"./{_SCHEMA}", log=log, timeout_seconds=120, stdout=work / parts.schema)
        progress(0.7, "making the root file system")
        disk = scratch / "disk.raw"
        await _make_disk(tar, disk, mapped, log)
        write_mbr(disk, boot, core, _ROOT_START_BYTES, _ROOT_BYTES)
        progress(0.85, "making the disk image")
        await to_qcow2(disk, work / parts.disk, log, compress=True)
    return parts


async def _bootstrap(tar: Path, sources: list[debs.Source], scratch: Path, log: Path, progress: Progress) -> None:
    def follow(line: str) -> None:
        for said, (fraction, text) in _STEPS.items():
            if said in line:
                progress(fraction, text)

    signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    root = os.geteuid() == 0
    await run(
        "mmdebstrap",
        f"--mode={'root' if root else 'unshare'}",
        "--variant=minbase",
        f"--include={','.join(_PACKAGES)}",
        '--aptopt=Acquire::Languages "none"',
        f"--essential-hook={_guest_file('debian-initramfs')}",
        f"--customize-hook={_guest_file('debian-customize').replace('FREEZE_GUARD', FREEZE_GUARD)}",
        _CODENAME,
        "-",
        *(f"deb {signed}{source.uri} {source.suite} {source.component}" for source in sources),
        log=log,
        timeout_seconds=3600,
        stdout=tar,
        # users of the namespace cannot reach an ordinary user's data directory
        environment={"TMPDIR": str(scratch)} if root else {},
        alone=root,  # it mounts /proc and /dev into the new system; in a user namespace it is alone as it is
        on_line=follow,
    )


async def _make_disk(tar: Path, disk: Path, mapped: tuple[str, ...], log: Path) -> None:
    """Write an ext4 file system into the disk, where its partition starts."""
    script = """
        mkdir "$1.root"
        tar -C "$1.root" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*' -xf "$2"
        rm "$2"
        truncate -s "$3" "$1"
        mke2fs -q -F -t ext4 -L root -O "$4" -E "offset=$5,lazy_itable_init=1,lazy_journal_init=1" \
            -d "$1.root" "$1" "$6k"
        rm -rf "$1.root"
    """
    total, kilobytes = _ROOT_START_BYTES + _ROOT_BYTES, _ROOT_BYTES // 1024
    await run(
        *mapped, "sh", "-euc", script, "sh", disk, tar, str(total), _LATEST_GRUB_KNOWS, str(_ROOT_START_BYTES),
        str(kilobytes), log=log, timeout_seconds=1200,
    )  # fmt: skip


async def _make_grub(scratch: Path, log: Path) -> tuple[bytes, bytes]:
    """GRUB's core image and boot sector, made by the tool in its package: nothing is installed on the host."""
    packages, core = scratch / "grub", scratch / "core.img"
    await debs.unpack(await debs.with_libraries(("grub-common", "grub-pc-bin"), log), packages, scratch, log)
    modules = packages / "usr/lib/grub/i386-pc"
    await run(
        *debs.program(packages, "usr/bin/grub-mkimage"), "-O", "i386-pc", "-d", modules, "-o", core,
        "-p", "(hd0,msdos1)/boot/grub", *_GRUB_MODULES, log=log, timeout_seconds=60,
    )  # fmt: skip
    return core.read_bytes(), (modules / "boot.img").read_bytes()


def _guest_file(name: str) -> str:
    return (files("vpsd.images") / "guest" / name).read_text()
