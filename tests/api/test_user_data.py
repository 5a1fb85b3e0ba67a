"""User data over the wire: taken once, put into the seed, shown to nobody."""

import email
from typing import Any

import pytest

from tests.api.tables import rows
from tests.cloud import TINY, Cloud
from tests.images.test_seed import read

SERVERS = "/api/v1/servers/"
SECRET = "#!/bin/sh\necho hunter2 > /root/secret\n"


def theirs(cloud: Cloud, server: int) -> str:
    """The customer's part of the seed on the host."""
    message = email.message_from_string(read(cloud.hypervisor.seed(cloud.guest(server)))["user-data"])
    part: Any = message.get_payload()[0]  # type: ignore[index]
    return bytes(part.get_payload(decode=True)).decode()


async def test_it_reaches_the_guests_seed_and_again_at_a_rebuild(cloud: Cloud) -> None:
    server = await cloud.create(user_data=SECRET)
    await cloud.settle()
    assert theirs(cloud, server) == SECRET
    await cloud.post(f"{SERVERS}{server}/rebuild/", {"os_id": 3})
    await cloud.settle()
    assert theirs(cloud, server) == SECRET
    assert await cloud.status(server) == "active"


async def test_a_new_hostname_leaves_it_in_the_seed(cloud: Cloud) -> None:
    server = await cloud.create(user_data=SECRET)
    await cloud.settle()
    await cloud.ask("PATCH", f"{SERVERS}{server}/", json={"hostname": "new.example.com"})
    await cloud.settle()
    assert theirs(cloud, server) == SECRET
    assert b'fqdn: "new.example.com"' in cloud.hypervisor.seed(cloud.guest(server))


@pytest.mark.parametrize("body", [{}, {"user_data": None}])
async def test_without_any_the_seed_is_the_plain_one(cloud: Cloud, body: dict[str, Any]) -> None:
    server = await cloud.create(**body)
    await cloud.settle()
    assert read(cloud.hypervisor.seed(cloud.guest(server)))["user-data"].startswith("#cloud-config\nhostname: ")


async def test_no_answer_and_no_event_shows_it(cloud: Cloud) -> None:
    tried = await cloud.post(f"{SERVERS}?dry_run=1", {"name": "web", **TINY, "user_data": SECRET})
    made = await cloud.post(SERVERS, {"name": "web", **TINY, "user_data": SECRET}, headers={"Idempotency-Key": "k"})
    server = made.json()["id"]
    await cloud.settle()
    paths = (f"servers/{server}/", "servers/", f"servers/{server}/operations/", "account/events/")
    answers = [tried, made, *[await cloud.get(f"/api/v1/{path}") for path in paths]]
    assert all(answer.is_success and "hunter2" not in answer.text for answer in answers)
    for table in ("events", "operations", "idempotency_keys"):
        assert "hunter2" not in str(await rows(cloud.database, table))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo hello", "User data begins, in its first column, with one of #! and a program, #cloud-config,"),
        ("", "It is empty."),
        ("#cloud-config\na: [", "Line 3, column 1: did not find expected node content."),
        ("#!/bin/sh\0", "NUL characters are not allowed."),
        (7, "Expected a string or null, got a whole number."),
    ],
)
async def test_what_cannot_be_is_named_with_everything_else_that_is_wrong(cloud: Cloud, text: Any, said: str) -> None:
    answer = await cloud.post(SERVERS, {"name": "-", **TINY, "user_data": text})
    assert answer.status_code == 400
    assert set(answer.json()) == {"name", "user_data"}
    assert answer.json()["user_data"][0].startswith(said)


async def test_half_a_surrogate_pair_is_refused_and_64_kib_are_not(cloud: Cloud) -> None:
    headers = {"Content-Type": "application/json"}
    body = b'{"name": "web", "plan_id": 4, "os_id": 1, "location": "us-west", "user_data": "#!/bin/sh \\ud800"}'
    assert (await cloud.ask("POST", SERVERS, content=body, headers=headers)).status_code == 400
    server = await cloud.create(user_data="#!/bin/sh\n".ljust(64 * 1024, "#"))
    await cloud.settle()
    assert await cloud.status(server) == "active"


async def test_only_a_create_takes_it(cloud: Cloud) -> None:
    server = await cloud.create()
    answer = await cloud.ask("PATCH", f"{SERVERS}{server}/", json={"user_data": SECRET})
    assert (answer.status_code, set(answer.json())) == (400, {"user_data"})
