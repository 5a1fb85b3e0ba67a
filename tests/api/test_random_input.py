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
GOOD: dict[str, Any] = {"name": "web", **TINY, "public_key": "ssh-ed25519 AAAA"}


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Mostly objects of the right fields, with something wrong in them."""
    wrong = draw(st.dictionaries(st.sampled_from(NAMES) | TEXT, JSON, max_size=4))
    value = draw(st.sampled_from([{**GOOD, **wrong}, wrong]) | JSON)
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


@random_input
@given(query=st.dictionaries(st.sampled_from(["page", "page_size", "status", "location"]), st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4))  # fmt: skip
async def test_a_random_query_is_never_a_500(cloud: Cloud, query: dict[str, str]) -> None:
    answer = await cloud.get("/api/v1/servers/", params=query)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert set(answer.json()) <= set(query)
