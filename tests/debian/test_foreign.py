"""A Debian that vpsd's own builder did not make, imported and booted by UEFI."""

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.debian import foreign_image
from tests.guests.host import Host
from tests.guests.login import Login
from tests.guests.test_first_server import root_size_mb
from tests.running import Vpsd, run, until
from vpsd.core.units import GIB

pytestmark = pytest.mark.guest

NANO, STANDARD, FOREIGN = 4, 1, 5
_BOOT_SECONDS = 900  # firmware, GRUB and a stock system take their time under emulation
_IMPORT_SECONDS = 600


class Made(msgspec.Struct, frozen=True):
    """A server of the imported image."""

    imported: Any  # what the import said
    server_id: int
    detail: Any
    login: Login


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, as publishers pack them; made in minutes, unless it lies in TEST_IMAGES_DIR already."""
    folder = Path(os.environ.get("TEST_IMAGES_DIR", tmp_path_factory.mktemp("foreign")))
    packed = folder / "foreign.raw.zst"
    if not packed.exists():
        disk = folder / "foreign.raw"
        asyncio.run(foreign_image.make(disk, folder / "foreign.log"))
        subprocess.run(["zstd", "-q", "-3", "--rm", str(disk)], check=True)
    return packed


@pytest.fixture(scope="module")
def made(vpsd: Vpsd, packed: Path) -> Made:
    arguments = ("image", "import", "ubuntu-22.04", str(packed), "--json")
    done = run(*arguments, environment=vpsd.environment, timeout_seconds=_IMPORT_SECONDS)
    assert done.returncode == 0, done.stderr
    answer = vpsd.create("foreign", plan_id=STANDARD, os_id=FOREIGN)
    detail = vpsd.until_status(answer["id"], "active", _BOOT_SECONDS)
    login = Login(detail["ssh"], password=answer["password"])
    return Made(msgspec.json.decode(done.stdout), answer["id"], detail, login)


def test_an_image_of_others_boots_by_uefi_and_is_as_large_as_its_plan(made: Made) -> None:
    assert made.imported["firmware"] == "uefi"
    result = "cat /run/cloud-init/result.json 2> /dev/null || true"
    said = until(lambda: made.login.run(result), "cloud-init's result", 600)  # it generates a locale, too
    assert msgspec.json.decode(said)["v1"]["errors"] == [], made.login.run("grep -B2 -A20 WARN /var/log/cloud-init.log")
    assert made.login.run("hostname; test -d /sys/firmware/efi && echo uefi") == "foreign\nuefi"
    assert made.login.run("findmnt -no FSTYPE /; . /etc/os-release; echo $ID $VERSION_ID") == "ext4\ndebian 12"
    assert root_size_mb(made.login) > 0.95 * 1024 * made.detail["plan"]["storage"]


def test_its_size_is_known_by_the_import_and_a_smaller_plan_is_refused(vpsd: Vpsd, made: Made) -> None:
    needed_gb = -(-made.imported["virtual_size_bytes"] // GIB)
    systems = vpsd.get("operating-systems/")["results"]
    assert {system["id"]: system["min_disk_gb"] for system in systems}[FOREIGN] == needed_gb
    order = {"name": "small", "plan_id": NANO, "os_id": FOREIGN, "location": "us-west"}
    refused = vpsd.ask("POST", "servers/", order)
    assert refused.status_code == 400
    assert f"needs a disk of {needed_gb} GB" in refused.json()["plan_id"][0]


def test_it_starts_again_and_a_new_server_of_its_backup_boots_by_uefi_too(vpsd: Vpsd, host: Host, made: Made) -> None:
    made.login.run("echo kept > /root/note; sync")
    backup = vpsd.until_copied(vpsd.post("backups/", {"server_id": made.server_id}))
    vpsd.post(f"servers/{made.server_id}/reboot/")
    vpsd.until_status(made.server_id, "active", _BOOT_SECONDS)
    assert made.login.run("cat /root/note") == "kept"
    order = {"name": "second", "plan_id": STANDARD, "location": "us-west", "backup_id": backup["id"]}
    second = vpsd.post("servers/", order)
    detail = vpsd.until_status(second["id"], "active", _BOOT_SECONDS)
    login = Login(detail["ssh"], password=second["password"])
    assert login.run("cat /root/note; hostname; ls -d /sys/firmware/efi") == "kept\nsecond\n/sys/firmware/efi"
    for server_id in (made.server_id, second["id"]):
        vpsd.delete(server_id)
    host.until_at_rest([made.server_id, second["id"]])
    assert not list((vpsd.data / "pool").glob("*-nvram.fd"))
