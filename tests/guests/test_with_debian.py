"""A Debian 12 whose image is built because somebody ordered it."""

from typing import Any

import pytest

from tests.guests.login import Login
from tests.guests.test_first_server import memory_mb, root_size_mb
from tests.running import Vpsd

pytestmark = pytest.mark.guest


def test_debian_is_built_boots_and_is_as_large_as_its_plan(vpsd: Vpsd, debian: Any) -> None:
    assert debian["said"]
    detail = vpsd.until_status(debian["id"], "active", 600)
    print(vpsd.operations(debian["id"]))
    login = Login(detail["ssh"], password=debian["password"])
    assert login.run("cloud-init status --wait").endswith("status: done")
    assert login.run("hostname; . /etc/os-release; echo $ID $VERSION_ID") == "debian\ndebian 12"
    assert login.run("id -un ann; cat /root/written; echo; cat /root/ran") == "ann\nof its own\nroot"
    assert login.run("nproc") == str(detail["plan"]["vcpus"])
    assert 0.9 < memory_mb(login) / detail["plan"]["memory"] <= 1
    assert root_size_mb(login) > 0.95 * 1024 * detail["plan"]["storage"]
    vpsd.post(f"servers/{debian['id']}/stop/")
    vpsd.until_status(debian["id"], "stopped")
    assert vpsd.operations(debian["id"])[-1]["detail"] == "shut down by ACPI"
