"""The tiny image, built for real out of Debian's packages."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.images.test_store import silent
from vpsd.images.recipes import Recipe
from vpsd.images.store import ImageStore


@pytest.mark.guest
def test_the_tiny_image_is_built_from_packages(tmp_path: Path) -> None:
    image = asyncio.run(ImageStore(tmp_path / "images").ensure(Recipe(slug="tiny", kind="tiny"), silent))
    assert image.kernel is not None
    assert image.initrd is not None
    with image.kernel.open("rb") as kernel, image.initrd.open("rb") as initrd:
        assert kernel.read(4) == b"\x7fELF"  # uncompressed: QEMU boots it by PVH
        assert initrd.read(6) == b"070701"
    assert image.virtual_size_bytes < 2_000_000_000
    raw = tmp_path / "root.ext4"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image.disk), str(raw)], check=True)
    subprocess.run(["/sbin/e2fsck", "-fn", str(raw)], check=True, capture_output=True)
    ask = "cat /etc/shadow\nstat /sbin/tiny-boot\nstat /root/.ssh\nstat /usr/sbin/dropbear\nls /etc/dropbear\n"
    said = subprocess.run(
        ["/sbin/debugfs", "-f", "-", str(raw)], input=ask, text=True, check=True, capture_output=True
    ).stdout
    assert "root:*:" in said  # nobody gets in before a seed says who
    assert said.count("User:     0   Group:     0") == 3
    assert "Mode:  0700" in said
    assert "host_key" not in said


def test_the_guest_scripts_are_valid_shell() -> None:
    folder = Path(__file__).parents[2] / "vpsd/images/guest"
    scripts = [path for path in folder.iterdir() if path.name != "inittab"]
    assert len(scripts) >= 7
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True)
