"""Tokens: made once, shown once, worth something until they end or are revoked."""

import hmac
import re
from typing import Any

import pytest

from tests.api.tables import change, dump, rows
from tests.cloud import Cloud
from tests.idempotency.posts import Stumbling, api_on
from vpsd.accounts import service as accounts
from vpsd.accounts import tokens
from vpsd.accounts.faults import CannotHandOn
from vpsd.accounts.models import tokens as token_table
from vpsd.accounts.permissions import KNOWN, Role
from vpsd.accounts.service import NewPerson
from vpsd.accounts.tokens import NewToken
from vpsd.core.clock import iso_utc
from vpsd.core.context import Actor
from vpsd.core.faults import Faults
from vpsd.core.ids import token_hash
from vpsd.core.pages import Page
from vpsd.errors import Invalid, NotFound, Unauthenticated

TOKENS = "/api/v1/account/tokens/"
ME = "/api/v1/account/me/"
SHAPE = re.compile(r"vps_[2-9a-zA-Z]{40}")
DAY = 86_400


async def make(cloud: Cloud, who: str = "alice", **options: Any) -> dict[str, Any]:
    answer = await cloud.post(TOKENS, {"name": "backup", "permissions": ["servers:read"], **options}, who=who)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    cloud.tokens[made["name"]] = made["token"]
    return made


async def test_a_new_token_is_shown_once_and_works(cloud: Cloud) -> None:
    made = await make(cloud, expires_in_days=30)
    assert SHAPE.fullmatch(made["token"])
    now = cloud.clock.now_ms()
    assert {name: made[name] for name in made if name not in ("id", "uuid", "token")} == {
        "name": "backup",
        "permissions": ["servers:read"],
        "person": None,
        "created_by": {"actor": "token", "token": {"id": 1, "name": "test"}},
        "created_at": iso_utc(now),
        "expires_at": iso_utc(now + 30 * DAY * 1000),
        "last_used_at": None,
    }
    assert (await cloud.get("/api/v1/servers/", who="backup")).status_code == 200
    for path in (TOKENS, ME, "/api/v1/account/events/"):
        text = (await cloud.get(path)).text
        assert made["token"] not in text
        assert token_hash(made["token"]) not in text
    listed = (await cloud.get(TOKENS)).json()["results"]
    assert {**listed[-1], "last_used_at": None} == {key: value for key, value in made.items() if key != "token"}


async def test_of_a_token_the_database_has_only_the_hash(cloud: Cloud) -> None:
    made = await make(cloud)
    row = (await rows(cloud.database, "tokens"))[-1]
    assert row["hash"] == token_hash(made["token"])
    assert row["lookup"] == row["hash"][:16]
    everything = str(await dump(cloud.database))
    for value in (made["token"], made["token"][4:], cloud.tokens["alice"]):
        assert value not in everything


async def test_tokens_are_not_alike(cloud: Cloud) -> None:
    made = {(await make(cloud, name=f"token-{number}"))["token"] for number in range(20)}
    assert len({value[:12] for value in made}) == 20


async def test_no_token_is_valid_that_nobody_made(cloud: Cloud) -> None:
    real = cloud.tokens["alice"]
    (row, _) = await rows(cloud.database, "tokens")
    for value in (
        *("admin", "root", "token", "test", "secret", "password", "changeme", "default", "vpsd", "alice", "null"),
        *("vps_", "vps_test", "vps_admin", "vps_changeme", "YOUR_API_TOKEN", "vps_" + "2" * 40, "vps_" + "a" * 40, "*"),
        *("1", "0", "%", "' OR '1'='1", "_" * 44, row["hash"], row["lookup"], row["uuid"], real[4:], real[:-1]),
        *(real + "x", real.lower(), real.upper(), real.swapcase(), real[::-1], f"{real},{real}", f"{real} {real}"),
    ):
        answer = await cloud.http.get(ME, headers={"Authorization": f"Bearer {value}"})
        assert answer.status_code == 401, value
    for scheme in ("Basic YWRtaW46YWRtaW4=", f"Basic {real}", f"Token {real}", real, f"Bearer{real}"):
        assert (await cloud.http.get(ME, headers={"Authorization": scheme})).status_code == 401
    assert (await cloud.http.get(f"{ME}?token={real}", headers={"Cookie": f"token={real}"})).status_code == 401


async def test_the_whole_hash_decides_where_tokens_share_what_is_looked_up(cloud: Cloud) -> None:
    alice, charlie = await rows(cloud.database, "tokens")
    for mine, other, who in ((alice, charlie, "alice"), (charlie, alice, "charlie")):  # whichever comes first
        async with cloud.database.write() as tx:
            await change(tx, token_table, other["id"], lookup=mine["lookup"])
        answer = await cloud.get(ME, who=who)
        assert answer.json()["account"]["company_name"] == who
        async with cloud.database.write() as tx:
            await change(tx, token_table, other["id"], lookup=other["lookup"])


async def test_a_hash_that_only_begins_alike_lets_nobody_in(cloud: Cloud) -> None:
    row = (await rows(cloud.database, "tokens"))[0]
    last = "0" if row["hash"][-1] != "0" else "1"
    for forged in (row["lookup"] + "f" * 48, row["hash"][:-1] + last, row["hash"][:-1], row["lookup"]):
        async with cloud.database.write() as tx:
            await change(tx, token_table, row["id"], hash=forged)
        assert (await cloud.get(ME)).status_code == 401
    async with cloud.database.write() as tx:
        await change(tx, token_table, row["id"], hash=row["hash"])
    assert (await cloud.get(ME)).status_code == 200


async def test_hashes_are_compared_whole_in_constant_time(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(tokens, "hmac", type("Watched", (), {"compare_digest": staticmethod(compare)}))
    assert (await cloud.get(ME)).status_code == 200
    digest = token_hash(cloud.tokens["alice"])
    assert compared == [(digest, digest)]


async def test_a_token_ends_at_the_moment_that_was_said(cloud: Cloud) -> None:
    await make(cloud, name="brief", permissions=["tokens:*"], expires_in_days=2)
    cloud.clock.advance(2 * DAY - 0.001)
    assert (await cloud.get(ME, who="brief")).status_code == 200
    cloud.clock.advance(0.001)
    answer = await cloud.get(ME, who="brief")
    assert answer.status_code == 401
    assert answer.json() == {"detail": "This token has expired. Make a new one.", "code": "unauthenticated"}
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="vpsd"'
    assert (await cloud.get(ME)).status_code == 200


async def test_a_token_without_an_end_has_none(cloud: Cloud) -> None:
    made = await make(cloud, expires_in_days=None)
    assert made["expires_at"] is None
    cloud.clock.advance(10 * 365 * DAY)
    assert (await cloud.get(ME, who="backup")).status_code == 200


async def test_the_last_use_is_recorded_at_most_once_a_minute(cloud: Cloud) -> None:
    async def last_use() -> str | None:
        (_, found) = (await cloud.get(TOKENS)).json()["results"]
        used: str | None = found["last_used_at"]
        return used

    await make(cloud)
    assert await last_use() is None
    begun = cloud.clock.now_ms()
    assert (await cloud.get(ME, who="backup")).json()["token"]["last_used_at"] == iso_utc(begun)
    cloud.clock.advance(60)
    await cloud.get(ME, who="backup")
    assert await last_use() == iso_utc(begun)
    cloud.clock.advance(1)
    await cloud.get(ME, who="backup")
    assert await last_use() == iso_utc(begun + 61_000)


async def test_a_request_that_only_reads_writes_nothing_within_the_minute(cloud: Cloud) -> None:
    watched = Stumbling(cloud.database)
    async with api_on(cloud, watched) as http:
        for seconds, written in ((0, 0), (30, 0), (31, 1), (0, 1)):
            cloud.clock.advance(seconds)
            assert (await http.get(ME)).status_code == 200
            assert watched.written == written


async def test_a_revoked_token_is_worthless_at_once_and_off_the_list(cloud: Cloud) -> None:
    made = await make(cloud)
    assert (await cloud.get(ME, who="backup")).status_code == 200
    assert (await cloud.ask("DELETE", f"{TOKENS}{made['id']}/")).status_code == 204
    answer = await cloud.get(ME, who="backup")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert [token["name"] for token in (await cloud.get(TOKENS)).json()["results"]] == ["test"]
    assert (await cloud.ask("DELETE", f"{TOKENS}{made['id']}/")).status_code == 404
    assert (await cloud.get(ME)).status_code == 200


async def test_a_token_may_revoke_itself(cloud: Cloud) -> None:
    made = await make(cloud, permissions=["tokens:*"])
    assert (await cloud.ask("DELETE", f"{TOKENS}{made['id']}/", who="backup")).status_code == 204
    assert (await cloud.ask("DELETE", f"{TOKENS}{made['id']}/", who="backup")).status_code == 401


async def test_permissions_that_there_are_not_are_named(cloud: Cloud) -> None:
    before = await dump(cloud.database)
    answer = await cloud.post(TOKENS, {"name": "n", "permissions": ["servers:read", "servers:fly", "root", "*"]})
    assert answer.status_code == 400
    (message,) = answer.json()["permissions"]
    assert message == f"There is no servers:fly, root, *. The permissions are {', '.join(KNOWN)}."
    odd_ones: list[Any] = [[], None, "servers:read", {}, [1], [None], ["*:*"] * 33, ["x" * 33], [""], ["servers:read "]]
    for odd in odd_ones:
        answer = await cloud.post(TOKENS, {"name": "n", "permissions": odd})
        assert (answer.status_code, list(answer.json())) == (400, ["permissions"]), odd
    assert await dump(cloud.database) == before


async def test_everything_that_is_wrong_with_a_token_is_named_at_once(cloud: Cloud) -> None:
    answer = await cloud.post(TOKENS, {"name": "", "permissions": ["x"], "expires_in_days": 0, "person_id": 1})
    assert (answer.status_code, set(answer.json())) == (400, {"name", "permissions", "expires_in_days", "person_id"})
    odd: list[Any] = [0, -1, 3661, 2**63, 1.5, "1", True, [], {}]
    for days in odd:
        answer = await cloud.post(TOKENS, {"name": "n", "permissions": ["*:read"], "expires_in_days": days})
        assert (answer.status_code, list(answer.json())) == (400, ["expires_in_days"]), days


async def test_a_permission_that_is_named_twice_is_had_once(cloud: Cloud) -> None:
    made = await make(cloud, permissions=["servers:read", "billing:read", "servers:read"])
    assert made["permissions"] == ["servers:read", "billing:read"]


async def test_every_permission_fits_into_a_token(cloud: Cloud) -> None:
    await cloud.may_everything()
    made = await make(cloud, permissions=list(KNOWN), name="n" * 255)
    assert made["permissions"] == list(KNOWN)
    assert (await cloud.get(TOKENS, who="n" * 255)).status_code == 200


async def test_a_token_that_ends_makes_none_that_outlives_it(cloud: Cloud) -> None:
    await make(cloud, name="brief", permissions=["*:*"], expires_in_days=10)
    cloud.clock.advance(DAY / 2)
    for days in (None, 10, 3660):
        body = {"name": "longer", "permissions": ["servers:read"], "expires_in_days": days}
        answer = await cloud.post(TOKENS, body, who="brief")
        assert (answer.status_code, list(answer.json())) == (400, ["expires_in_days"])
        assert "at most 9." in answer.json()["expires_in_days"][0]
    made = await make(cloud, "brief", name="shorter", expires_in_days=9)
    assert made["expires_at"] == iso_utc(cloud.clock.now_ms() + 9 * DAY * 1000)


async def test_a_token_that_was_revoked_since_its_request_began_makes_none(cloud: Cloud) -> None:
    made = await make(cloud, permissions=["*:*"])
    async with cloud.reading() as ctx:
        caller = (await tokens.authenticate(ctx, made["token"], None, None)).caller
    assert (await cloud.ask("DELETE", f"{TOKENS}{made['id']}/")).status_code == 204
    with pytest.raises(Unauthenticated):
        async with cloud.runtime.write(caller) as ctx:
            await tokens.create(ctx, NewToken("heir", ["*:*"]), Faults())


async def _person(cloud: Cloud, role: Role) -> int:
    async with cloud.writing("alice") as ctx:
        return (await accounts.add_person(ctx, NewPerson("bob@example.com", "Bob", "Builder", role))).id


async def test_a_persons_token_makes_tokens_of_that_person(cloud: Cloud) -> None:
    bob = await cloud.token("*:*", person_id=await _person(cloud, Role.OWNER))
    made = await make(cloud, bob)
    assert made["person"] == "bob@example.com"
    async with cloud.writing("alice") as ctx:
        await accounts.remove_person(ctx, "BOB@example.com")
    for who in (bob, "backup"):
        assert (await cloud.get(ME, who=who)).status_code == 401
    assert (await cloud.get(ME)).status_code == 200


async def test_the_domain_refuses_what_the_form_lets_by(cloud: Cloud) -> None:
    async with cloud.writing("alice") as ctx:
        for wrong, field in (
            ({"permissions": ["servers:fly"]}, "permissions"),
            ({"permissions": []}, "permissions"),
            ({"name": ""}, "name"),
            ({"name": "n" * 256}, "name"),
            ({"expires_in_days": 0}, "expires_in_days"),
            ({"expires_in_days": 3661}, "expires_in_days"),
        ):
            options: dict[str, Any] = {"name": "n", **wrong}
            with pytest.raises(Invalid) as caught:
                await tokens.add(ctx, **options)
            assert list(caught.value.fields) == [field]
    with pytest.raises(Unauthenticated):
        async with cloud.reading() as ctx:
            await tokens.authenticate(ctx, "", None, None)


async def _alices(cloud: Cloud) -> int:
    """The id of Alice's token."""
    async with cloud.reading("alice") as ctx:
        (token,) = (await tokens.list_tokens(ctx, Page())).rows
    return token.id


async def test_a_strangers_token_is_not_found_whatever_is_done_to_it(cloud: Cloud) -> None:
    token_id = await _alices(cloud)
    for touch in (tokens.get, tokens.revoke):
        with pytest.raises(NotFound):
            async with cloud.writing("charlie") as ctx:
                await touch(ctx, token_id)
    async with cloud.reading("charlie") as ctx:
        assert token_id not in [token.id for token in (await tokens.list_tokens(ctx, Page())).rows]
    assert (await cloud.get(ME)).status_code == 200


async def test_no_token_is_made_in_an_account_with_the_token_of_another(cloud: Cloud) -> None:
    stranger = Actor(kind="token", account_id=(await cloud.account("charlie")).id, token_id=await _alices(cloud))
    with pytest.raises(Unauthenticated):
        async with cloud.runtime.write(stranger) as ctx:
            await tokens.create(ctx, NewToken("heir", ["*:*"]), Faults())


async def test_a_role_that_was_taken_since_the_request_began_cannot_be_handed_on(cloud: Cloud) -> None:
    bob = await cloud.token("*:*", person_id=await _person(cloud, Role.OWNER))
    async with cloud.writing("alice") as ctx:
        caller = (await tokens.authenticate(ctx, cloud.tokens[bob], None, None)).caller
        await accounts.set_role(ctx, "bob@example.com", Role.READ_ONLY)
    with pytest.raises(CannotHandOn):
        async with cloud.runtime.write(caller) as ctx:
            await tokens.create(ctx, NewToken("heir", ["*:*"]), Faults())


async def test_a_persons_role_is_nothing_that_a_stranger_can_change(cloud: Cloud) -> None:
    await _person(cloud, Role.MEMBER)
    async with cloud.writing("charlie") as ctx:
        for change_it in (
            lambda: accounts.set_role(ctx, "bob@example.com", Role.OWNER),
            lambda: accounts.remove_person(ctx, "bob@example.com"),
        ):
            with pytest.raises(NotFound):
                await change_it()
    async with cloud.reading("alice") as ctx:
        assert [person.role for person in await accounts.list_people(ctx)] == [Role.MEMBER]
