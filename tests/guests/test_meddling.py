"""Somebody takes to virsh in the middle of what is done with a server: nothing stays locked, and it comes back."""

from functools import partial
from pathlib import Path

import libvirt
import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd, until
from vpsd.hypervisor.protocol import PowerState

pytestmark = pytest.mark.guest


def test_a_guest_that_is_suspended_destroyed_or_undefined_by_hand_comes_back(
    vpsd: Vpsd, host: Host, key: Path, key_id: int
) -> None:
    server = vpsd.create("meddled-with", ssh_key_id=key_id)["id"]
    login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
    login.run("head -c 3000000 /dev/urandom > /root/noise; echo kept > /root/note; sync")
    host.until_agent(server)
    kept = vpsd.until_copied(vpsd.post("backups/", {"server_id": server}))
    for what in ("suspend", "destroy", "undefine"):
        for path, step in ((f"servers/{server}/backup/", "copy_disk"), (f"backups/{kept['id']}/restore/", "shut_down")):
            made = vpsd.post(path)
            until(partial(_has_come_to, vpsd, server, step), step)
            try:
                host.meddle(server, what)
            except libvirt.libvirtError as error:
                print(f"{what} during {step} came too late: {error}")
            host.until_at_rest([server])
            until(partial(_agree, vpsd, host, server), "the row to say what the guest does")
            host.until_at_rest([server])
            if "backup_type" in made:
                assert vpsd.get(f"backups/{made['id']}/")["status"] in ("completed", "failed")
            detail = vpsd.get(f"servers/{server}/")
            print(what, step, detail["status"], detail["error"])
            if detail["status"] in ("stopped", "error"):
                vpsd.post(f"servers/{server}/start/")
            login = Login(vpsd.until_status(server, "active")["ssh"], key=key)
            assert login.run("cat /root/note") == "kept"
            host.until_at_rest([server])
            assert vpsd.run_json("check") == []
    assert not host.volumes().exports
    vpsd.delete(server)


def _agree(vpsd: Vpsd, host: Host, server: int) -> bool:
    """Whether the server is said to be active just when its guest runs: reconciling takes a moment."""
    guest = host.guests().get(host.name(server))
    runs = guest is not None and guest.power is PowerState.RUNNING
    return runs == bool(vpsd.get(f"servers/{server}/")["status"] == "active")


def _has_come_to(vpsd: Vpsd, server: int, step: str) -> bool:
    """Whether it is at that step, or done: what passes in a blink may be missed."""
    steps = vpsd.rows(f"SELECT step FROM operations WHERE server_id = {server} AND finished_at_ms IS NULL")
    return not steps or (step,) in steps
