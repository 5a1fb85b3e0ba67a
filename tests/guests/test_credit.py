"""A customer with a real guest runs out of credit, and gets more."""

import pytest

from tests.guests.login import Login
from tests.running import Vpsd, until

pytestmark = pytest.mark.guest


def test_a_server_without_credit_is_suspended_and_comes_back_with_its_disk_and_address(vpsd: Vpsd) -> None:
    vpsd.run_json("account", "add", "prepaid", "--email", "pat@prepaid.example")
    token = vpsd.run_json("token", "add", "prepaid")["token"]
    order = {"name": "paid-for", "plan_id": 4, "os_id": 1, "location": "us-west"}
    assert vpsd.ask("POST", "servers/", order, token=token).status_code == 402
    vpsd.run_json("credit", "add", "prepaid", "10")
    created = vpsd.ask("POST", "servers/", order, token=token).json()
    path = f"servers/{created['id']}/"

    def until_status(status: str) -> dict[str, str]:
        found: dict[str, str] = until(
            lambda: (detail := vpsd.ask("GET", path, token=token).json())["status"] == status and detail,
            f"server {created['id']} to be {status}",
            400,
        )
        return found

    before = until_status("active")
    Login(before["ssh"], password=created["password"]).run("echo precious > /root/note && sync")
    vpsd.run_json("credit", "add", "prepaid", "-10")
    suspended = until_status("suspended")
    assert suspended["ip_address"] == before["ip_address"]
    assert vpsd.ask("POST", f"{path}start/", token=token).status_code == 402
    (stopped,) = [
        operation
        for operation in vpsd.ask("GET", f"{path}operations/", token=token).json()["results"]
        if operation["command"] == "suspend"
    ]
    assert stopped["detail"] == "shut down by ACPI"
    vpsd.run_json("credit", "add", "prepaid", "5")
    after = until_status("active")
    assert after["ssh"] == before["ssh"]
    assert Login(after["ssh"], password=created["password"]).run("cat /root/note") == "precious"
    actions = [event["action"] for event in vpsd.ask("GET", "account/events/", token=token).json()["results"]]
    assert [action for action in reversed(actions) if action.startswith(("credit", "server"))] == [
        *("credit.add", "server.create", "server.status"),
        *("credit.add", "credit.exhausted", "server.suspend", "server.status"),
        *("credit.add", "credit.restored", "server.resume", "server.status"),
    ]
    assert vpsd.ask("DELETE", path, token=token).status_code == 204
    vpsd.run_json("billing", "charge")
    assert {row["difference"] for row in vpsd.run_json("billing", "verify")} == {"0.00"}
