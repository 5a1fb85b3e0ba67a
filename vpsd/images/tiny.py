"""Tiny Linux: Debian's cloud kernel, busybox, dropbear and QEMU's guest agent; built in seconds, as any user."""

import shutil
import tempfile
from importlib.resources import files
from pathlib import Path

from vpsd.core.units import MIB
from vpsd.errors import Unusable
from vpsd.hypervisor.freeze_guard import FREEZE_GUARD
from vpsd.hypervisor.protocol import Progress
from vpsd.images import debs
from vpsd.images.disks import make_ext4, to_qcow2
from vpsd.images.kernel import cpio, extract_vmlinux, unsigned
from vpsd.images.programs import require, run
from vpsd.images.recipes import Parts

_PACKAGES = ("busybox-static", "dropbear-bin", "e2fsprogs", "lz4", "openssh-sftp-server", "qemu-guest-agent")
_PROGRAMS = {  # path in the package: path in the guest
    "usr/sbin/dropbear": "usr/sbin/dropbear",
    "usr/bin/dropbearkey": "usr/bin/dropbearkey",
    "sbin/resize2fs": "sbin/resize2fs",
    "sbin/e2fsck": "sbin/e2fsck",
    "usr/lib/openssh/sftp-server": "usr/lib/sftp-server",  # where dropbear looks for it
    "usr/sbin/qemu-ga": "usr/sbin/qemu-ga",
}
_EARLY = (  # dependencies first
    *("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"),
    *("failover", "net_failover", "virtio_net"),
)
_LATE = (
    *("cdrom", "isofs", "scsi_common", "scsi_mod", "sr_mod", "libata", "ata_piix"),
    *("button", "evdev", "virtio-rng", "virtio_balloon", "virtio_console", "loop"),
)
_OWN_SHUTDOWN = ("poweroff", "reboot", "halt", "shutdown")
_LEFT_OUT = ("busybox", "dpkg", "dpkg-deb", "mke2fs", "rpm", "init", *_OWN_SHUTDOWN)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\ntty:x:5:\n",
    "etc/shells": "/bin/sh\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/fqdn": "\n",
    "etc/instance-id": "\n",
    "etc/issue": "\\n login on \\l\n\n",
    "etc/profile": "export PATH=/usr/sbin:/usr/bin:/sbin:/bin PS1='\\u@\\h:\\w\\$ '\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
}
_DISK_BYTES = 48 * MIB
# cipher self-tests cost an emulated CPU a fifth of a second
_CMDLINE = "console=ttyS0 quiet panic=5 cryptomgr.notests"


async def build(work: Path, log: Path, progress: Progress) -> Parts:
    """Build the image in the folder `work`.

    Raises `Unavailable` when the packages cannot be downloaded, `Misconfigured` when the host lacks a program.
    """
    require("apt-get", "apt-cache", "dpkg-deb", "mke2fs", "debugfs", "qemu-img")
    with tempfile.TemporaryDirectory(dir=work) as name:
        scratch = Path(name)
        packages, root = scratch / "packages", scratch / "root"
        progress(0.05, "finding Debian packages")
        names = [await debs.kernel_package(log), *await debs.with_libraries(_PACKAGES, log)]
        progress(0.1, "downloading and unpacking Debian packages")
        await debs.unpack(names, packages, scratch, log)
        progress(0.6, "preparing the kernel")
        kernel = await _make_kernel(packages, work, log)
        initrd = work / "initrd"
        initrd.write_bytes(_initramfs(packages))
        progress(0.8, "making the root file system")
        await _fill_root(packages, root, log)
        raw = scratch / "root.ext4"
        # group descriptors for up to 1 TiB; uninit_bg lets the guest grow without writing inode tables
        options = ("-O", "^metadata_csum,^64bit,uninit_bg", "-i", "32768", "-E", "lazy_itable_init=1,resize=268435456")
        await make_ext4(root, raw, _DISK_BYTES, options, log)
        progress(0.9, "making the disk image")
        await to_qcow2(raw, work / "disk.qcow2", log)
    return Parts(kernel=kernel, initrd=initrd.name, cmdline=_CMDLINE)


async def _make_kernel(packages: Path, work: Path, log: Path) -> str:
    bzimage = _one(packages / "boot", "vmlinuz-*")

    async def unlz4(packed: Path, unpacked: Path) -> None:
        unpack = (*debs.program(packages, "usr/bin/lz4"), "-dc", packed)
        await run(*unpack, log=log, timeout_seconds=60, stdout=unpacked)

    vmlinux = work / "vmlinux"
    if await extract_vmlinux(bzimage, vmlinux, unlz4):
        return vmlinux.name
    vmlinux.unlink(missing_ok=True)
    shutil.copyfile(bzimage, work / "vmlinuz")
    return "vmlinuz"


def _initramfs(packages: Path) -> bytes:
    modules = {f"m/{name}.ko": _module(packages, name) for name in _EARLY}
    init = _guest_file("initramfs-init").replace("EARLY", " ".join(_EARLY))
    links = {f"bin/{name}": "busybox" for name in ("sh", "mount", "insmod", "switch_root")}
    programs = {"init": init.encode(), "bin/busybox": (packages / "bin/busybox").read_bytes()}
    # .keep files create the mount points dev and root
    return cpio({**programs, **modules, "dev/.keep": b"", "root/.keep": b""}, links)


async def _fill_root(packages: Path, root: Path, log: Path) -> None:
    for folder in ("dev", "proc", "sys", "run", "mnt", "home", "var/log", "etc/dropbear", "usr/bin", "usr/sbin"):
        (root / folder).mkdir(parents=True)
    for name, text in _FILES.items():
        _write(root / name, text)
    _write(root / "etc/shadow", "root:*:19700:0:99999:7:::\n", 0o640)
    _write(root / "etc/inittab", _guest_file("inittab"))
    for name in ("tiny-boot", "tiny-ssh", "tiny-agent", "tiny-shutdown", "tiny-user-data"):
        _write(root / "sbin" / name, _guest_file(name), 0o755)
    _write(root / "sbin/freeze-guard", FREEZE_GUARD, 0o755)
    _write(root / "etc/acpi/PWRF/00000080", "#!/bin/sh\nsetsid /sbin/tiny-shutdown poweroff &\n", 0o755)
    _write(root / "root/.ssh/authorized_keys", "", 0o600)
    for folder, mode in (("root", 0o700), ("root/.ssh", 0o700), ("tmp", 0o1777), ("var/tmp", 0o1777)):
        (root / folder).mkdir(exist_ok=True)
        (root / folder).chmod(mode)
    (root / "etc/resolv.conf").symlink_to("/run/resolv.conf")
    (root / "var/run").symlink_to("/run")
    for name in _LATE:
        target = root / "lib/modules" / f"{name}.ko"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_module(packages, name))
    await _install_busybox(packages, root, log)
    await _install_programs(packages, root, log)


async def _install_busybox(packages: Path, root: Path, log: Path) -> None:
    _copy(packages / "bin/busybox", root / "bin/busybox")
    applets = await run(packages / "bin/busybox", "--list", log=log, timeout_seconds=10)
    for name in applets.split():
        if name not in _LEFT_OUT:
            (root / "bin" / name).symlink_to("busybox")
    (root / "sbin/init").symlink_to("/bin/busybox")
    for name in _OWN_SHUTDOWN:
        (root / "sbin" / name).symlink_to("tiny-shutdown")


async def _install_programs(packages: Path, root: Path, log: Path) -> None:
    """Copy the programs and the shared libraries that their loader finds."""
    libraries: set[Path] = set()
    for source, target in _PROGRAMS.items():
        _copy(packages / source, root / target)
        libraries |= await debs.libraries(packages, source, log)
    for library in libraries:
        _copy(library, root / "lib/x86_64-linux-gnu" / library.name)
    _copy(debs.loader(packages), root / "lib64" / debs.loader(packages).name)


def _module(packages: Path, name: str) -> bytes:
    return unsigned(_one(packages / "lib/modules", f"{name}.ko").read_bytes())


def _guest_file(name: str) -> str:
    return (files("vpsd.images") / "guest" / name).read_text()


def _one(folder: Path, pattern: str) -> Path:
    found = next(folder.rglob(pattern), None)
    if found is None:
        raise Unusable(f"Debian's cloud kernel package has no {pattern}: vpsd does not know this layout.")
    return found


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
