"""The same request twice, over the API: the same answer, and one effect."""

import asyncio
import json
from typing import Any

import pytest

from tests.api.tables import dump, rows
from tests.cloud import TINY, Cloud
from tests.idempotency.posts import (
    CLAIM,
    KEY,
    POSTS,
    SERVERS,
    WEB,
    WORK,
    Gate,
    Stumbling,
    api_on,
    count,
    ready,
)
from tests.killed import Killed
from vpsd.core.sums import SUMS
from vpsd.idempotency.service import KEPT_HOURS, LEASE_SECONDS

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("operation", POSTS)
async def test_every_post_sent_twice_is_answered_alike_and_done_once(cloud: Cloud, operation: str) -> None:
    path, body = await ready(cloud, operation)
    before = await dump(cloud.database)
    first = await cloud.post(path, body, headers=KEY)
    done = await dump(cloud.database)
    again = await cloud.post(path, body, headers=KEY)
    assert first.status_code in (200, 201), first.text
    assert (again.status_code, again.content) == (first.status_code, first.content)
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert await dump(cloud.database) == done
    assert len(done["events"]) == len(before["events"]) + 1
    grown = {name for name in done if len(done[name]) > len(before[name])} - {"events", "idempotency_keys"}
    grown -= {sums.table.name for sums in SUMS}
    assert grown == {
        "server_create": {"servers", "operations", "rentals"},
        "server_resize": {"operations", "rentals"},
        "ssh_key_create": {"ssh_keys"},
        "placement_group_create": {"placement_groups"},
        "token_create": {"tokens"},
        "backup_of_server": {"backups", "operations"},
        "backup_create": {"backups", "operations"},
        "snapshot_of_server": {"backups", "operations"},
        "snapshot_create": {"backups", "operations"},
    }.get(operation, {"operations"})


async def test_without_a_key_the_same_request_is_another_one(cloud: Cloud) -> None:
    for _ in range(2):
        assert (await cloud.post(SERVERS, WEB)).status_code == 201
    assert await count(cloud, "servers") == 2
    assert await count(cloud, "idempotency_keys") == 0


async def test_the_order_of_a_bodys_keys_and_its_white_space_do_not_matter(cloud: Cloud) -> None:
    backwards = json.dumps(dict(reversed(WEB.items())), indent=3).encode()
    first = await cloud.post(SERVERS, WEB, headers=KEY)
    again = await cloud.post(SERVERS, content=backwards, headers={**KEY, **JSON})
    assert again.content == first.content
    assert await count(cloud, "servers") == 1


async def test_the_key_with_another_request_is_refused(cloud: Cloud) -> None:
    web = await cloud.have_server("running")
    other = await cloud.have_server("beside")
    first = await cloud.post(SERVERS, WEB, headers=KEY)
    assert (await cloud.post(f"{SERVERS}{web}/stop/", headers={"Idempotency-Key": "stop"})).status_code == 200
    before = await dump(cloud.database)
    key = {"name": "laptop", "public_key": "ssh-ed25519 AAAA"}
    others: list[tuple[str, Any, str]] = [
        (SERVERS, {**WEB, "name": "web-2"}, KEY["Idempotency-Key"]),
        (SERVERS, {**WEB, "backups_enabled": False}, KEY["Idempotency-Key"]),
        (f"{SERVERS}?dry_run=0", WEB, KEY["Idempotency-Key"]),
        ("/api/v1/ssh-keys/", key, KEY["Idempotency-Key"]),
        (f"{SERVERS}{web}/start/", None, KEY["Idempotency-Key"]),
        (f"{SERVERS}{web}/reboot/", None, "stop"),
        (f"{SERVERS}{other}/stop/", None, "stop"),
    ]
    for path, body, name in others:
        answer = await cloud.post(path, body, headers={"Idempotency-Key": name})
        assert answer.status_code == 422, (path, answer.text)
        assert answer.json()["code"] == "idempotency_key_reused"
    assert await dump(cloud.database) == before
    assert (await cloud.post(SERVERS, WEB, headers=KEY)).content == first.content


async def test_while_the_first_still_runs_the_second_is_told_to_wait(cloud: Cloud) -> None:
    stumbling, gate = Stumbling(cloud.database), Gate()
    stumbling.before[WORK] = gate
    async with api_on(cloud, stumbling) as elsewhere:
        first = asyncio.create_task(elsewhere.post(SERVERS, json=WEB, headers=KEY))
        await gate.reached.wait()
        answer = await cloud.post(SERVERS, WEB, headers=KEY)
        assert (answer.status_code, answer.json()["code"]) == (409, "still_running")
        other = await cloud.post(SERVERS, {**WEB, "name": "web-2"}, headers=KEY)
        assert other.status_code == 422
        assert await count(cloud, "servers") == 0
        gate.opened.set()
        done = await first
    assert done.status_code == 201
    assert (await cloud.post(SERVERS, WEB, headers=KEY)).content == done.content
    assert await count(cloud, "servers") == 1


async def test_of_two_at_once_one_is_executed(cloud: Cloud) -> None:
    async def send(key: str, name: str, turns: int) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await cloud.post(SERVERS, {"name": name, **TINY}, headers={"Idempotency-Key": key})

    for turns in range(8):
        pair = await asyncio.gather(
            send(f"key-{turns}", f"web-{turns}", 0), send(f"key-{turns}", f"web-{turns}", turns)
        )
        for answer in pair:
            assert answer.status_code == 201 or answer.json()["code"] == "still_running", answer.text
        done = [answer.content for answer in pair if answer.status_code == 201]
        assert done
        assert (await send(f"key-{turns}", f"web-{turns}", 0)).content == done[0] == done[-1]
        assert await count(cloud, "servers") == turns + 1


async def test_after_a_day_the_key_is_free_and_forgotten(cloud: Cloud) -> None:
    first = await cloud.post(SERVERS, WEB, headers=KEY)
    await cloud.post(SERVERS, WEB, headers={"Idempotency-Key": "another"}, who="charlie")  # who does not come again
    cloud.clock.advance(KEPT_HOURS * 3600 - 0.001)
    assert (await cloud.post(SERVERS, WEB, headers=KEY)).content == first.content
    cloud.clock.advance(0.001)
    anew = await cloud.post(SERVERS, WEB, headers=KEY)
    assert anew.status_code == 201
    assert anew.json()["id"] != first.json()["id"]
    assert await count(cloud, "servers") == 3
    assert await count(cloud, "idempotency_keys") == 1


async def test_a_clock_that_is_years_ahead_for_a_moment_has_nothing_done_again(cloud: Cloud) -> None:
    first = await cloud.post(SERVERS, WEB, headers=KEY)
    cloud.clock.jump(900 * 86_400)
    assert (await cloud.post(SERVERS, WEB, headers={"Idempotency-Key": "another"})).status_code == 201
    cloud.clock.jump(-900 * 86_400)
    assert (await cloud.post(SERVERS, WEB, headers=KEY)).content == first.content
    assert await count(cloud, "servers") == 2


async def test_a_refused_request_keeps_nothing_and_the_key_works_when_its_cause_is_mended(cloud: Cloud) -> None:
    await cloud.have_balance(0)
    for path, body, status_code in (
        (SERVERS, {**WEB, "plan_id": 99}, 400),
        (f"{SERVERS}1/stop/", None, 404),
        ("/api/v1/ssh-keys/", {"name": "laptop", "public_key": "nonsense"}, 400),
        ("/api/v1/account/tokens/", {"name": "more", "permissions": ["servers:fly"]}, 400),
        (SERVERS, WEB, 402),
    ):
        answer = await cloud.post(path, body, headers=KEY)
        assert answer.status_code == status_code, answer.text
        assert await rows(cloud.database, "idempotency_keys") == []
    await cloud.have_balance(10**9)
    assert (await cloud.post(SERVERS, WEB, headers=KEY)).status_code == 201
    assert await count(cloud, "servers") == 1


async def test_a_request_that_met_an_error_of_vpsds_own_may_be_sent_again_at_once(cloud: Cloud) -> None:
    stumbling = Stumbling(cloud.database)
    stumbling.at_the_end[WORK] = RuntimeError("a bug")
    async with api_on(cloud, stumbling) as elsewhere:
        assert (await elsewhere.post(SERVERS, json=WEB, headers=KEY)).status_code == 500
        assert await count(cloud, "servers") == 0
        assert (await elsewhere.post(SERVERS, json=WEB, headers=KEY)).status_code == 201
    assert await count(cloud, "servers") == 1


async def test_another_tokens_request_with_the_same_key_is_another_request(cloud: Cloud) -> None:
    second = await cloud.token("*:*")
    made = [await cloud.post(SERVERS, WEB, headers=KEY, who=who) for who in ("alice", second, "charlie")]
    assert [answer.status_code for answer in made] == [201, 201, 201]
    assert len({answer.json()["id"] for answer in made}) == 3
    assert len({answer.json()["password"] for answer in made}) == 3
    for who, first in zip(("alice", second, "charlie"), made, strict=True):
        assert (await cloud.post(SERVERS, WEB, headers=KEY, who=who)).content == first.content


@pytest.mark.parametrize("operation", ["server_create", "server_reboot", "token_create"])
async def test_a_crash_between_claim_and_effect_is_made_good_once_after_the_lease(cloud: Cloud, operation: str) -> None:
    path, body = await ready(cloud, operation)
    stumbling = Stumbling(cloud.database)
    stumbling.at_the_end[WORK] = Killed()
    before = await dump(cloud.database)
    async with api_on(cloud, stumbling) as elsewhere:
        with pytest.raises(Killed):
            await elsewhere.post(path, json=body, headers=KEY)
    left = await dump(cloud.database)
    assert len(left.pop("idempotency_keys")) == 1  # the claim, and nothing else
    assert left == {name: found for name, found in before.items() if name != "idempotency_keys"}
    for seconds in (0, LEASE_SECONDS - 0.001):
        cloud.clock.advance(seconds)
        assert (await cloud.post(path, body, headers=KEY)).json()["code"] == "still_running"
    cloud.clock.advance(0.001)
    done = await cloud.post(path, body, headers=KEY)
    assert done.status_code in (200, 201), done.text
    assert (await cloud.post(path, body, headers=KEY)).content == done.content
    assert await count(cloud, "events") == len(before["events"]) + 1


@pytest.mark.parametrize(
    ("number", "moment", "kept"),
    [(CLAIM, "at_the_end", 0), (CLAIM, "after", 0), (WORK, "at_the_end", 0), (WORK, "after", 1)],
)
async def test_wherever_a_process_dies_there_is_one_server_in_the_end(
    cloud: Cloud, number: int, moment: str, kept: int
) -> None:
    stumbling = Stumbling(cloud.database)
    getattr(stumbling, moment)[number] = Killed()
    async with api_on(cloud, stumbling) as elsewhere:
        with pytest.raises(Killed):
            await elsewhere.post(SERVERS, json=WEB, headers=KEY)
    assert await count(cloud, "servers") == kept
    cloud.clock.advance(LEASE_SECONDS)
    done = await cloud.post(SERVERS, WEB, headers=KEY)
    assert (done.status_code, len(done.json()["password"])) == (201, 20)
    assert await count(cloud, "servers") == 1
    assert await count(cloud, "operations") == 1


@pytest.mark.parametrize("operation", ["server_create", "server_stop"])
async def test_what_was_taken_over_meanwhile_is_undone(cloud: Cloud, operation: str) -> None:
    path, body = await ready(cloud, operation)
    stumbling, gate = Stumbling(cloud.database), Gate()
    stumbling.before[WORK] = gate
    async with api_on(cloud, stumbling) as elsewhere:
        first = asyncio.create_task(elsewhere.post(path, json=body, headers=KEY))
        await gate.reached.wait()
        cloud.clock.advance(LEASE_SECONDS)
        second = await cloud.post(path, body, headers=KEY)
        assert second.status_code in (200, 201)
        if operation == "server_stop":  # else the status refuses the first, and shows nothing of the key
            await cloud.work()
            await cloud.post(path.replace("stop", "start"))
            await cloud.work()
        done = await dump(cloud.database)
        gate.opened.set()
        late = await first
    assert (late.status_code, late.json()["code"]) == (409, "still_running")
    assert await dump(cloud.database) == done
    assert (await cloud.post(path, body, headers=KEY)).content == second.content


@pytest.mark.parametrize(
    ("operation", "secret"), [("server_create", "password"), ("server_rebuild", "password"), ("token_create", "token")]
)
async def test_the_database_holds_the_answer_and_not_its_secret(cloud: Cloud, operation: str, secret: str) -> None:
    path, body = await ready(cloud, operation)
    answer = await cloud.post(path, body, headers=KEY)
    (kept,) = await rows(cloud.database, "idempotency_keys")
    assert kept["status_code"] == answer.status_code
    value = answer.json()[secret]
    everything = await dump(cloud.database)
    assert value not in str(everything)
    assert cloud.tokens["alice"] not in str(everything)
    assert value.encode() not in kept["answer"]
    assert (await cloud.post(path, body, headers=KEY)).json()[secret] == value


async def test_an_odd_key_is_refused_by_its_headers_name(cloud: Cloud) -> None:
    odd = [b"", b"k" * 256, "schlüssel".encode(), "schlüssel".encode("latin-1"), b"a\tb", b"a\x7f", b"a\x00b"]
    for operation in POSTS:
        path, body = await ready(cloud, operation)
        before = await dump(cloud.database)
        for key in odd:
            answer = await cloud.post(path, body, headers={"Idempotency-Key": key})
            assert answer.status_code == 400, (operation, key)
            assert answer.json() == {
                "Idempotency-Key": ["Give 1 to 255 printable ASCII characters, best a random UUID."]
            }
        assert await dump(cloud.database) == before


async def test_a_key_may_be_as_long_as_255_characters(cloud: Cloud) -> None:
    for key in ("k" * 255, "~ !", "0"):
        first = await cloud.post(SERVERS, WEB, headers={"Idempotency-Key": key})
        assert first.status_code == 201
        assert (await cloud.post(SERVERS, WEB, headers={"Idempotency-Key": key})).content == first.content
    assert await count(cloud, "servers") == 3


async def test_a_token_that_was_revoked_is_not_told_what_it_was_told_before(cloud: Cloud) -> None:
    who = await cloud.token("*:*")
    assert (await cloud.post(SERVERS, WEB, headers=KEY, who=who)).status_code == 201
    token_id = (await cloud.get("/api/v1/account/me/", who=who)).json()["token"]["id"]
    await cloud.ask("DELETE", f"/api/v1/account/tokens/{token_id}/")
    assert (await cloud.post(SERVERS, WEB, headers=KEY, who=who)).status_code == 401
