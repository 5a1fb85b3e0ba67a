"""A Debian 12 that vpsd's own builder did not make: GPT, an EFI system partition, shim and GRUB, stock cloud-init.

Laid out like Debian's own cloud images (root is partition 1 behind the ESP, which is 15), but for UEFI alone. Made
without loop devices, and without being root.
"""

import os
from pathlib import Path

from vpsd.core.units import MIB
from vpsd.images import debs
from vpsd.images.programs import require, run

_CODENAME = "bookworm"
_PACKAGES = (
    *("systemd-sysv", "libpam-systemd", "dbus", "udev", "cloud-init", "cloud-guest-utils", "netplan.io"),
    *("openssh-server", "linux-image-cloud-amd64", "initramfs-tools", "e2fsprogs", "fdisk", "sudo", "iproute2"),
    *("shim-signed", "grub-efi-amd64-signed", "ca-certificates"),
    *("eatmydata", "gdisk", "locales", "lsb-release", "gnupg"),  # what cloud-init recommends or calls
)
_ESP_BYTES = 64 * MIB
_ROOT_BYTES = 2048 * MIB
_ESP_START_BYTES = MIB
_ROOT_START_BYTES = _ESP_START_BYTES + _ESP_BYTES

_CUSTOMIZE = """
echo en_US.UTF-8 UTF-8 > "$1/etc/locale.gen"
chroot "$1" locale-gen > /dev/null
echo LABEL=cloudimg-rootfs / ext4 errors=remount-ro 0 1 > "$1/etc/fstab"
mkdir -p "$1/boot/grub"
cat > "$1/boot/grub/grub.cfg" <<'END'
linux /vmlinuz root=LABEL=cloudimg-rootfs ro console=tty0 console=ttyS0,115200
initrd /initrd.img
boot
END
: > "$1/etc/machine-id"
rm -f "$1"/etc/ssh/ssh_host_*
mkdir -p "$1/efi-files"
cp "$1/usr/lib/shim/shimx64.efi.signed" "$1/efi-files/bootx64.efi"
cp "$1/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" "$1/efi-files/grubx64.efi"
"""

# What the signed GRUB reads first, as grub-install writes it.
_GRUB_CFG = """search.fs_label cloudimg-rootfs root
set prefix=($root)'/boot/grub'
configfile $prefix/grub.cfg
"""

_MAKE_DISK = """
disk=$1 tar=$2 esp=$3 start=$4 size=$5
mkdir "$disk.root"
tar -C "$disk.root" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*' -xf "$tar"
rm "$tar"
mv "$disk.root/efi-files" "$disk.efi"
mke2fs -q -F -t ext4 -L cloudimg-rootfs -E "offset=$start" -d "$disk.root" "$disk" "${size}k"
rm -rf "$disk.root"
mformat -i "$disk@@$esp" -T $(((start - esp) / 512)) -F -v ESP ::
mmd -i "$disk@@$esp" ::/EFI ::/EFI/BOOT ::/EFI/debian
mcopy -i "$disk@@$esp" "$disk.efi/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
mcopy -i "$disk@@$esp" "$disk.efi/grubx64.efi" ::/EFI/BOOT/grubx64.efi
mcopy -i "$disk@@$esp" "$disk.grub" ::/EFI/debian/grub.cfg
rm -rf "$disk.efi"
"""


async def make(disk: Path, log: Path) -> None:
    """Write the raw disk image, in minutes."""
    require("mmdebstrap", "mke2fs", "tar", "sfdisk", "mformat")
    mapped = () if os.geteuid() == 0 else ("unshare", "--map-root-user", "--map-auto")
    tar, grub = disk.with_suffix(".tar"), disk.with_name(f"{disk.name}.grub")
    sources = await debs.sources(log, _CODENAME)
    await run(
        "mmdebstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}", f"--customize-hook={_CUSTOMIZE}",
        _CODENAME, tar, *(f"deb {source.uri} {source.suite} {source.component}" for source in sources),
        log=log, timeout_seconds=1800,
    )  # fmt: skip
    with disk.open("wb") as file:
        file.truncate(_ROOT_START_BYTES + _ROOT_BYTES + MIB)
    table = disk.with_suffix(".sfdisk")
    table.write_text(
        f"label: gpt\n"
        f"1 : start={_ROOT_START_BYTES // 512}, size={_ROOT_BYTES // 512}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
        f"15 : start={_ESP_START_BYTES // 512}, size={_ESP_BYTES // 512}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
    )
    await run("sh", "-euc", 'sfdisk -q "$1" < "$2"', "sh", disk, table, log=log, timeout_seconds=60)
    grub.write_text(_GRUB_CFG)
    places = [str(number) for number in (_ESP_START_BYTES, _ROOT_START_BYTES, _ROOT_BYTES // 1024)]
    await run(*mapped, "sh", "-euc", _MAKE_DISK, "sh", disk, tar, *places, log=log, timeout_seconds=1200)
    for rest in (table, grub):
        rest.unlink()
