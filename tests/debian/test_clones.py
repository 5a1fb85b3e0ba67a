"""New servers from backups of a Debian whose cloud-init was disabled or removed: nobody is left without a way in."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.guests.conftest import key, key_id  # noqa: F401
from tests.guests.host import Host
from tests.guests.login import Login, ssh
from tests.running import Vpsd

pytestmark = pytest.mark.guest

STARTER, DEBIAN = 3, 3
_IMAGE_AND_BOOTS_SECONDS = 1800  # the image is built from packages
_HOST_KEY = "cat /etc/ssh/ssh_host_ed25519_key.pub"


class Source(msgspec.Struct, frozen=True):
    """A Debian with a backup from when cloud-init was disabled, and one from when it was gone."""

    password: str
    machine_id: str
    host_key: str
    disabled: Any
    missing: Any


@pytest.fixture(scope="module")
def source(vpsd: Vpsd, host: Host) -> Source:
    """Made in minutes, by its first test."""
    made = vpsd.create("source", plan_id=STARTER, os_id=DEBIAN)
    detail = vpsd.until_status(made["id"], "active", _IMAGE_AND_BOOTS_SECONDS)
    login = Login(detail["ssh"], password=made["password"])
    assert login.run("cloud-init status --wait").endswith("status: done")
    host.until_agent(made["id"])
    whole = vpsd.until_copied(vpsd.post("backups/", {"server_id": made["id"]}))
    assert whole["cloud_init"] == "enabled"
    login.run("touch /etc/cloud/cloud-init.disabled; sync")
    disabled = vpsd.until_copied(vpsd.post("backups/", {"server_id": made["id"]}))
    login.run("DEBIAN_FRONTEND=noninteractive dpkg --purge cloud-init; sync")
    missing = vpsd.until_copied(vpsd.post("backups/", {"server_id": made["id"]}))
    facts = Source(made["password"], login.machine_id, login.run(_HOST_KEY), disabled, missing)
    vpsd.delete(made["id"])
    return facts


def _is_its_own(vpsd: Vpsd, source: Source, made: Any, **how: Any) -> None:
    detail = vpsd.until_status(made["id"], "active", _IMAGE_AND_BOOTS_SECONDS)
    login = Login(detail["ssh"], **how)
    assert login.run("hostname; cat /etc/hostname; getent hosts $(hostname) | wc -l") == "\n".join(
        [made["name"]] * 2 + ["1"]
    )
    assert login.machine_id != source.machine_id
    assert login.run(_HOST_KEY) != source.host_key
    assert login.run("systemctl is-system-running --wait || systemctl --failed") == "running"
    assert ssh(detail["ssh"], "true", password=source.password).returncode == 255
    vpsd.delete(made["id"])


def test_where_cloud_init_was_disabled_the_agent_installs_the_key(
    vpsd: Vpsd,
    source: Source,
    key: Path,  # noqa: F811
    key_id: int,  # noqa: F811
) -> None:
    assert source.disabled["cloud_init"] == "disabled"
    order = {"name": "second", "plan_id": STARTER, "location": "us-west", "ssh_key_id": key_id}
    made = vpsd.post("servers/", {**order, "backup_id": source.disabled["id"]})
    assert "cloud-init is disabled in this backup" in made["message"]
    assert "password" not in made
    _is_its_own(vpsd, source, made, key=key)


def test_where_cloud_init_was_removed_the_agent_sets_the_password(vpsd: Vpsd, source: Source) -> None:
    assert source.missing["cloud_init"] == "missing"
    order = {"name": "third", "plan_id": STARTER, "location": "us-west"}
    made = vpsd.post("servers/", {**order, "backup_id": source.missing["id"]})
    assert "cloud-init is missing in this backup" in made["message"]
    _is_its_own(vpsd, source, made, password=made["password"])
