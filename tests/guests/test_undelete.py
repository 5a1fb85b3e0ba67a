"""A real guest that was deleted and is brought back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.host import Host
from tests.guests.login import Login
from tests.running import Vpsd

pytestmark = pytest.mark.guest


@pytest.fixture
def forgiving(vpsd: Vpsd) -> Iterator[Vpsd]:
    """The same vpsd, started anew with a time in which deletions can be undone."""
    vpsd.interrupt()
    vpsd.environment["VPSD_UNDELETE_HOURS"] = "1"
    vpsd.start()
    yield vpsd
    vpsd.interrupt()
    del vpsd.environment["VPSD_UNDELETE_HOURS"]
    vpsd.start()


def test_an_undeleted_server_boots_with_its_files_at_its_address(
    forgiving: Vpsd, host: Host, key: Path, key_id: int
) -> None:
    server = forgiving.create("comes-back", ssh_key_id=key_id)["id"]
    before = forgiving.until_status(server, "active")
    login = Login(before["ssh"], key=key)
    login.run("echo kept > /root/note")  # a graceful shutdown writes it out
    machine, boot = login.machine_id, login.boot_id
    forgiving.delete(server)
    deleted = forgiving.until_status(server, "deleted")
    assert deleted["delete_at"] is not None
    assert host.processes(server) == []
    assert forgiving.post(f"servers/{server}/undelete/")["server"]["status"] == "starting"
    after = forgiving.until_status(server, "active")
    assert (after["ip_address"], after["delete_at"]) == (before["ip_address"], None)
    login = Login(after["ssh"], key=key)
    assert login.run("cat /root/note") == "kept"
    assert (login.machine_id == machine, login.boot_id == boot) == (True, False)
    assert forgiving.ask("DELETE", f"servers/{server}/?now=true").status_code == 204
    host.until_at_rest([server])
    assert forgiving.run_json("check") == []
