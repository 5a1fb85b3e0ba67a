"""The nine endpoints, as the published page has them."""

from tests.cloud import TINY, Cloud


async def test_a_server_is_created_and_becomes_active(cloud: Cloud) -> None:
    answer = await cloud.post(
        "/api/v1/servers/",
        {"name": "web-server-02", "plan_id": 1, "os_id": 5, "location": "us-west", "hostname": "web02.example.com",
         "backups_enabled": True},
    )  # fmt: skip
    assert answer.status_code == 201
    made = answer.json()
    password = made.pop("password")
    assert len(password) == 20
    assert len(made.pop("uuid")) == 36
    assert made == {
        "id": 1,
        "name": "web-server-02",
        "hostname": "web02.example.com",
        "status": "provisioning",
        "ip_address": None,
        "location": "us-west",
        "plan": {"id": 1, "name": "Standard VPS", "vcpus": 2, "memory": 4096, "storage": 80},
        "os": {"id": 5, "name": "Ubuntu 22.04 LTS"},
        "backups_enabled": True,
        "created_at": "2025-06-15T15:06:40Z",
        "updated_at": "2025-06-15T15:06:40Z",
        "message": "Server is being provisioned. This may take 2-5 minutes.",
    }
    await cloud.settle()
    detail = (await cloud.get("/api/v1/servers/1/")).json()
    assert detail["status"] == "active"
    assert detail["ip_address"] == "127.10.0.2"
    assert detail["ssh"] == "ssh root@127.10.0.2"
    assert TINY
