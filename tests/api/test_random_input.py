"""Whatever is sent, the answer is the sender's to mend: never a 500."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cloud import TINY, Cloud

TEXT = st.text(max_size=30)  # NUL, surrogates and all
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
NAMES = ["name", "plan_id", "os_id", "location", "hostname", "ssh_key_id", "backups_enabled", "public_key"]
NAMES += ["permissions", "expires_in_days", "tags", "protected", "user_data"]
GOOD: dict[str, Any] = {"name": "web", **TINY, "public_key": "ssh-ed25519 AAAA"}
LISTING = ["page", "page_size", "status", "location", "tag", "name", "q", "sort", "cursor"]
TOKEN: dict[str, Any] = {"name": "backup", "permissions": ["servers:read"], "expires_in_days": 30}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Mostly objects of the right fields, with something wrong in them."""
    wrong = draw(st.dictionaries(st.sampled_from(NAMES) | TEXT, JSON, max_size=4))
    value = draw(st.sampled_from([{**GOOD, **wrong}, {**TOKEN, **wrong}, wrong]) | JSON)
    return json.dumps(value).encode()  # escapes, so that every character comes through


random_input = settings(
    derandomize=True,
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/servers/"),
        ("PATCH", "/api/v1/servers/1/"),
        ("PUT", "/api/v1/servers/1/"),
        ("POST", "/api/v1/ssh-keys/"),
        ("POST", "/api/v1/account/tokens/"),
    ],
)
@random_input
@given(body=bodies())
async def test_random_json_is_never_a_500(cloud: Cloud, method: str, path: str, body: bytes) -> None:
    answer = await cloud.ask(method, path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 201, 400, 404), answer.text
    if answer.status_code == 400:
        errors = answer.json()
        assert errors
        assert set(errors) == {"detail", "code"} or all(isinstance(messages, list) for messages in errors.values())


KEYS = st.binary(max_size=300) | st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=300).map(
    str.encode
)


@random_input
@given(key=KEYS, body=bodies())
async def test_a_random_idempotency_key_is_never_a_500(cloud: Cloud, key: bytes, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    for _ in range(2):
        answer = await cloud.ask("POST", "/api/v1/account/tokens/", content=body, headers=headers)
        assert answer.status_code in (201, 400, 422), answer.text  # 422: the same key came with another body before


@random_input
@given(query=st.dictionaries(st.sampled_from(["month", "page", "location", "dry_run"]), st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4))  # fmt: skip
async def test_a_random_query_about_money_is_never_a_500(cloud: Cloud, query: dict[str, str]) -> None:
    for path in ("account/usage/", "account/transactions/", "account/events/", "account/tokens/", "plans/"):
        answer = await cloud.get(f"/api/v1/{path}", params=query)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert set(answer.json()) <= set(query)


@random_input
@given(query=st.dictionaries(st.sampled_from(LISTING), st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4))  # fmt: skip
async def test_a_random_query_is_never_a_500(cloud: Cloud, query: dict[str, str]) -> None:
    answer = await cloud.get("/api/v1/servers/", params=query)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert set(answer.json()) <= set(query)
