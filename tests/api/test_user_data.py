"""User data over the wire: taken once, put into the seed, shown to nobody."""

import email
import json
from typing import Any

import pytest

from tests.api.tables import rows
from tests.cloud import TINY, Cloud
from tests.images.test_seed import read
from tests.servers.test_guest_report import KEY
from vpsd.catalog.models import OperatingSystem
from vpsd.images.simulated import SimulatedImages
from vpsd.servers import user_data

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


async def refused(cloud: Cloud, text: str, **body: Any) -> str | None:
    """What a dry run says against it."""
    answer = await cloud.post(f"{SERVERS}?dry_run=1", {"name": "web", **TINY, "user_data": text, **body})
    return None if answer.status_code == 200 else answer.json()["user_data"][0]


async def test_what_contradicts_the_answer_is_refused_and_depends_on_what_that_promises(cloud: Cloud) -> None:
    key = {"name": "k", "public_key": KEY}
    key_id = (await cloud.post("/api/v1/ssh-keys/", key)).json()["id"]
    text = "#cloud-config\nhostname: a\nssh_pwauth: false\n"
    assert (await refused(cloud, text) or "").startswith("Line 3, column 1: ssh_pwauth: false refuses passwords")
    assert await refused(cloud, text, ssh_key_id=key_id) is None
    assert "disable_root" in (await refused(cloud, "#cloud-config\ndisable_root: true\n", ssh_key_id=key_id) or "")


class ImagesWithSchema(SimulatedImages):
    """They bring the schema of a cloud-init to which `color` is of some type, by the source of the image."""

    def __init__(self) -> None:
        self.colors = {"debian": "string"}

    def cloud_config_schema(self, system: OperatingSystem) -> str | None:
        color = self.colors.get(system.source)
        return None if color is None else json.dumps({"properties": {"color": {"type": color}}})


async def test_the_schema_is_that_of_the_images_own_cloud_init_or_else_debians(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = ImagesWithSchema()
    await cloud.compose(images)
    monkeypatch.setattr(user_data, "installed_schema", lambda: None)

    async def types(os_id: int) -> list[str]:
        """What a color may be on an operating system."""
        samples = {"string": "x", "integer": "1", "boolean": "true"}
        said = {name: await refused(cloud, f"#cloud-config\ncolor: {samples[name]}\n", os_id=os_id) for name in samples}
        assert all(text is None or text.startswith("Line 2, column 1: color: ") for text in said.values())
        return [name for name, text in said.items() if text is None]

    assert await types(3) == ["string", "integer", "boolean"]  # none is known
    await cloud.have_server("a", os_id=3)
    assert await types(3) == await types(1) == ["string"]
    images.colors = {"debian": "integer", "tiny": "boolean"}  # both are built anew
    await cloud.have_server("b", os_id=3)
    assert await types(3) == await types(1) == ["integer"]
    await cloud.have_server("c", os_id=1)
    assert (await types(3), await types(1)) == (["integer"], ["boolean"])


async def test_nobody_waits_for_the_look_at_somebody_elses_user_data(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(*_: Any, **__: Any) -> None:
        other = await cloud.post(SERVERS, {"name": "other", **TINY}, who="charlie")
        assert other.status_code == 201

    monkeypatch.setattr(user_data, "check", check)
    await cloud.create(user_data=SECRET)
